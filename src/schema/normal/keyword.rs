//! The keywords of JSON Schema by draft, and what they contain.

use serde_json::{Map, Value};

use crate::schema::pointer::escape;

/// The draft that a schema is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Draft {
    Draft4,
    Draft6,
    Draft7,
    Draft201909,
    Draft202012,
    /// No draft is declared: the keywords of all drafts apply.
    Undeclared,
}

impl Draft {
    /// The draft that `$schema` names. OpenAPI 3.1 uses 2020-12, and 3.0 a mixture.
    pub(super) fn named(uri: &str) -> Option<Self> {
        let uri = uri.trim();
        let name = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"));
        let name = name.unwrap_or(uri).trim_end_matches(['#', '/']);
        if name.is_empty() || name.starts_with("spec.openapis.org/oas/3.") {
            return Some(Self::Undeclared);
        }
        let draft = name.strip_prefix("json-schema.org/")?.strip_suffix("schema")?;
        let draft = draft.trim_start_matches("draft").trim_matches(['-', '/']);
        match draft.trim_start_matches('0') {
            "" => Some(Self::Undeclared),
            // Draft 5 has the keywords of draft 4.
            "4" | "5" => Some(Self::Draft4),
            "6" => Some(Self::Draft6),
            "7" => Some(Self::Draft7),
            "2019-09" => Some(Self::Draft201909),
            "2020-12" => Some(Self::Draft202012),
            _ => None,
        }
    }

    /// Whether the keywords beside a `$ref` are ignored, as before draft 2019-09.
    fn is_silenced(self, map: &Map<String, Value>) -> bool {
        self <= Self::Draft7 && map.get("$ref").is_some_and(Value::is_string)
    }

    /// The name that a schema declares for itself. In draft 4 the keyword is `id`.
    pub(super) fn identifier(self, map: &Map<String, Value>) -> Option<&str> {
        if self.is_silenced(map) {
            return None;
        }
        let id = match self {
            Self::Draft4 => map.get("id"),
            Self::Undeclared => map.get("$id").or_else(|| map.get("id")),
            _ => map.get("$id"),
        };
        id?.as_str()
    }
}

/// What a keyword contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// No schema.
    Plain,
    /// A schema.
    Schema,
    /// An array of schemas.
    List,
    /// An object of schemas by name. Some of its values may be other than schemas, as in
    /// `dependencies`.
    Named,
}

/// A keyword that its draft knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'k> {
    /// Its name in draft 2020-12.
    pub(super) name: &'k str,
    pub(super) holds: Holds,
}

/// Keywords that restrict no value.
pub(super) const ANNOTATIONS: [&str; 9] = [
    "title",
    "description",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "example",
    "examples",
    "$comment",
];

/// Keywords that only hold schemas for others to refer to.
pub(super) const CONTAINERS: [&str; 2] = ["$defs", "definitions"];

/// Keywords of Google's SDKs, which write them with underscores.
const UNDERSCORED: [(&str, &str); 11] = [
    ("any_of", "anyOf"),
    ("one_of", "oneOf"),
    ("prefix_items", "prefixItems"),
    ("additional_properties", "additionalProperties"),
    ("min_items", "minItems"),
    ("max_items", "maxItems"),
    ("min_length", "minLength"),
    ("max_length", "maxLength"),
    ("min_properties", "minProperties"),
    ("max_properties", "maxProperties"),
    ("property_ordering", "propertyOrdering"),
];

/// The meaning of `keyword` beside the others in `map`; none when it is not in the draft.
pub(super) fn known<'k>(
    map: &Map<String, Value>,
    keyword: &'k str,
    draft: Draft,
) -> Option<Known<'k>> {
    let beside_ref = |keyword| {
        matches!(keyword, "$ref" | "nullable" | "propertyOrdering")
            || CONTAINERS.contains(&keyword)
            || ANNOTATIONS.contains(&keyword)
    };
    if draft.is_silenced(map) && !beside_ref(keyword) {
        return None;
    }
    let is_tuple = || {
        let has_prefix = map.contains_key("prefixItems") && draft >= Draft::Draft202012;
        map.get("items").is_some_and(Value::is_array) && !has_prefix
    };
    let is_true = |keyword| map.get(keyword) == Some(&Value::Bool(true));
    match keyword {
        // Tuples were `items` and `additionalItems` up to draft 2019-09. An array in `items` is one
        // in any draft.
        "items" if is_tuple() => Some(Known { name: "prefixItems", holds: Holds::List }),
        "additionalItems" => is_tuple().then_some(Known { name: "items", holds: Holds::Schema }),
        // In draft 4 these are booleans that apply to the bound beside them.
        "exclusiveMinimum" | "exclusiveMaximum"
            if map.get(keyword).is_some_and(Value::is_boolean) =>
        {
            None
        }
        "minimum" if is_true("exclusiveMinimum") => {
            Some(Known { name: "exclusiveMinimum", holds: Holds::Plain })
        }
        "maximum" if is_true("exclusiveMaximum") => {
            Some(Known { name: "exclusiveMaximum", holds: Holds::Plain })
        }
        _ if !keyword.contains('_') => Some(Known { name: keyword, holds: holds(keyword, draft)? }),
        _ => match UNDERSCORED.iter().find(|(foreign, _)| *foreign == keyword) {
            Some((_, name)) if map.contains_key(*name) => None,
            Some((_, name)) => Some(Known { name, holds: holds(name, draft)? }),
            None => Some(Known { name: keyword, holds: holds(keyword, draft)? }),
        },
    }
}

fn holds(keyword: &str, draft: Draft) -> Option<Holds> {
    let (since, holds) = match keyword {
        "$ref" | "default" | "description" | "enum" | "exclusiveMaximum" | "exclusiveMinimum"
        | "format" | "maxItems" | "maxLength" | "maxProperties" | "maximum" | "minItems"
        | "minLength" | "minProperties" | "minimum" | "multipleOf" | "pattern" | "required"
        | "title" | "type" | "uniqueItems" => (Draft::Draft4, Holds::Plain),
        // From OpenAPI and Gemini.
        "example" | "nullable" | "propertyOrdering" => (Draft::Draft4, Holds::Plain),
        // Without effect on values.
        "$comment" | "deprecated" | "examples" | "readOnly" | "writeOnly" => {
            (Draft::Draft4, Holds::Plain)
        }
        "additionalProperties" | "items" | "not" => (Draft::Draft4, Holds::Schema),
        "allOf" | "anyOf" | "oneOf" => (Draft::Draft4, Holds::List),
        "$defs" | "definitions" | "dependencies" | "patternProperties" | "properties" => {
            (Draft::Draft4, Holds::Named)
        }
        "const" => (Draft::Draft6, Holds::Plain),
        "contains" | "propertyNames" => (Draft::Draft6, Holds::Schema),
        "contentEncoding" | "contentMediaType" => (Draft::Draft7, Holds::Plain),
        "else" | "if" | "then" => (Draft::Draft7, Holds::Schema),
        "dependentRequired" | "maxContains" | "minContains" => (Draft::Draft201909, Holds::Plain),
        "contentSchema" | "unevaluatedItems" | "unevaluatedProperties" => {
            (Draft::Draft201909, Holds::Schema)
        }
        "dependentSchemas" => (Draft::Draft201909, Holds::Named),
        "$dynamicRef" => (Draft::Draft202012, Holds::Plain),
        "prefixItems" => (Draft::Draft202012, Holds::List),
        "$recursiveRef" if matches!(draft, Draft::Draft201909 | Draft::Undeclared) => {
            (Draft::Draft201909, Holds::Plain)
        }
        _ => return None,
    };
    (since <= draft).then_some(holds)
}

/// The path of a schema in the one around it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'m> {
    Keyword(&'m str),
    Named(&'m str, &'m str),
    Listed(&'m str, usize),
}

impl Path<'_> {
    /// Appends the path to the JSON Pointer of the schema around.
    pub(super) fn push_to(self, pointer: &mut String) {
        pointer.push('/');
        match self {
            Self::Keyword(keyword) => pointer.push_str(keyword),
            Self::Named(keyword, name) => {
                pointer.extend([keyword, "/", &escape(name)]);
            }
            Self::Listed(keyword, index) => {
                pointer.extend([keyword, "/", &index.to_string()]);
            }
        }
    }
}

/// Runs with each schema directly inside one.
pub(super) fn subschemas<'m, E>(
    map: &'m Map<String, Value>,
    draft: Draft,
    mut run: impl FnMut(Path<'m>, &'m Value) -> Result<(), E>,
) -> Result<(), E> {
    for (keyword, value) in map {
        if !value.is_object() && !value.is_array() && !value.is_boolean() {
            continue;
        }
        let holds = known(map, keyword, draft).map_or(Holds::Plain, |known| known.holds);
        match (holds, value) {
            (Holds::Named, Value::Object(named)) => {
                for (name, value) in named {
                    run(Path::Named(keyword, name), value)?;
                }
            }
            (Holds::List, Value::Array(list)) => {
                for (index, value) in list.iter().enumerate() {
                    run(Path::Listed(keyword, index), value)?;
                }
            }
            (Holds::Schema, _) => run(Path::Keyword(keyword), value)?,
            _ => {}
        }
    }
    Ok(())
}
