//! Unwraps schemas from the formats of other APIs, and refuses objects that are not schemas.

use serde_json::{Map, Value};

use super::keyword::{ANNOTATIONS, Draft, known};
use crate::schema::SchemaError;

/// The most nested wrappings.
const MAX_WRAPPINGS: usize = 3;

/// The fields in which other APIs have a schema: OpenAI's response formats and functions, MCP's and
/// Anthropic's tools.
const SCHEMA_FIELDS: [&str; 9] = [
    "schema",
    "json_schema",
    "jsonSchema",
    "inputSchema",
    "input_schema",
    "parameters",
    "function",
    "format",
    "response_format",
];

/// Other fields beside it.
const OTHER_FIELDS: [&str; 9] = [
    "name",
    "type",
    "title",
    "description",
    "strict",
    "annotations",
    "outputSchema",
    "output_schema",
    "_meta",
];

/// The values of `type` in a wrapping.
const WRAPPINGS: [&str; 3] = ["json_schema", "function", "custom"];

/// Names of types in other languages, with those of JSON Schema.
const TYPES_ELSEWHERE: [(&str, &str); 12] = [
    ("str", "string"),
    ("text", "string"),
    ("int", "integer"),
    ("long", "integer"),
    ("float", "number"),
    ("double", "number"),
    ("decimal", "number"),
    ("bool", "boolean"),
    ("list", "array"),
    ("dict", "object"),
    ("map", "object"),
    ("none", "null"),
];

/// The schema without its wrappings, and the JSON Pointer to it.
pub(super) fn unwrapped(value: &Value) -> (&Value, String) {
    let (mut schema, mut pointer) = (value, String::new());
    for _ in 0..MAX_WRAPPINGS {
        let Some((field, inside)) = schema.as_object().and_then(wrapped) else { break };
        schema = inside;
        pointer = format!("{pointer}/{field}");
    }
    (schema, pointer)
}

/// The field with a schema in an object that is not a schema itself.
fn wrapped(map: &Map<String, Value>) -> Option<(&'static str, &Value)> {
    let kind = map.get("type").map(|kind| kind.as_str().unwrap_or_default());
    if kind.is_some_and(|kind| !WRAPPINGS.contains(&kind)) {
        return None;
    }
    let mut fields = SCHEMA_FIELDS.into_iter().filter(|field| map.contains_key(*field));
    let (field, others) = (fields.next()?, fields.count());
    let is_wrapping = map.keys().all(|key| key == field || OTHER_FIELDS.contains(&key.as_str()));
    let inside = map.get(field)?;
    (others == 0 && is_wrapping && is_schema(inside)).then_some((field, inside))
}

/// Whether a value looks like a schema or a wrapping, and not like a field in a map of fields.
fn is_schema(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty() || has_keyword(map) || wrapped(map).is_some(),
        Value::Bool(is_any) => *is_any,
        _ => false,
    }
}

fn has_keyword(map: &Map<String, Value>) -> bool {
    let is_restriction = |keyword: &String| {
        !ANNOTATIONS.contains(&keyword.as_str()) && known(map, keyword, Draft::Undeclared).is_some()
    };
    map.keys().any(is_restriction)
}

/// Refuses an object without any keyword of JSON Schema, which would allow everything.
pub(super) fn check(map: &Map<String, Value>) -> Result<(), SchemaError> {
    let is_annotation = |key: &String| ANNOTATIONS.contains(&key.as_str()) || key.starts_with('$');
    // A field may have the name of an annotation, but the text of an annotation is hardly the name
    // of a type.
    let is_field = |(key, value): &(&String, &Value)| {
        !is_annotation(key) || value.as_str().is_some_and(|text| meant_type(text).is_some())
    };
    if has_keyword(map) || map.contains_key("$schema") {
        return Ok(());
    }
    let Some((name, value)) = map.iter().find(is_field) else { return Ok(()) };
    let kind = match value {
        Value::String(kind) => meant_type(kind),
        _ => None,
    };
    let property = match (kind, value) {
        (Some(kind), _) => format!("{{\"type\": \"{kind}\"}}"),
        _ => "{…}".to_owned(),
    };
    let name = super::shorten(&Value::from(name.as_str()).to_string());
    Err(SchemaError::new(
        "",
        format!(
            "has no keyword of JSON Schema and would allow any value; for an object with \
             properties, write {{\"type\": \"object\", \"properties\": {{{name}: {property}}}}}; \
             for any value, write {{}}"
        ),
    ))
}

/// The JSON Schema type that a name stands for.
pub(super) fn meant_type(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let known = ["string", "number", "integer", "boolean", "array", "object", "null"];
    known.into_iter().find(|known| *known == lower).or_else(|| {
        TYPES_ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == lower).map(|(_, known)| *known)
    })
}
