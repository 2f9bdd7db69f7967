//! Reads sent schemas as JSON Schema.

use std::collections::HashSet;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// A sent schema. As in Gemini, an object that lists properties has no others, unless
/// `additionalProperties` allows them.
pub struct Sent {
    root: Value,
    validator: Result<Validator, String>,
}

impl Sent {
    pub fn read(field: &str, sent: &Value) -> Self {
        let root = match field {
            "responseSchema" => of_response_schema(sent),
            _ => closed(sent),
        };
        let validator = jsonschema::options().should_validate_formats(false).offline().build(&root);
        let validator = validator.map_err(|error| error.to_string());
        Self { root, validator }
    }

    pub fn admits(&self, instance: &Value) -> bool {
        self.validator.as_ref().is_ok_and(|validator| validator.is_valid(instance))
    }

    /// Why the schema does not accept the instance.
    pub fn objection(&self, instance: &Value) -> String {
        match &self.validator {
            Err(error) => error.clone(),
            Ok(validator) => match validator.iter_errors(instance).next() {
                Some(error) => format!("at {}: {}", error.instance_path().as_str(), error.masked()),
                None => "without the names that are not sent, it is not valid".to_owned(),
            },
        }
    }

    /// The instance without the members of objects that the schema does not list.
    pub fn listed(&self, instance: &Value) -> Value {
        self.pruned(instance, &self.at_place(vec![&self.root]))
    }

    fn pruned(&self, instance: &Value, schemas: &[&Value]) -> Value {
        match instance {
            Value::Object(members) => {
                let kept = members.iter().filter_map(|(name, member)| {
                    let inside = self.member(schemas, name)?;
                    Some((name.clone(), self.pruned(member, &inside)))
                });
                Value::Object(kept.collect())
            }
            Value::Array(elements) => {
                let element = |(index, element)| {
                    let inside = self.element(schemas, index);
                    self.pruned(element, &inside)
                };
                Value::Array(elements.iter().enumerate().map(element).collect())
            }
            other => other.clone(),
        }
    }

    /// The schemas for a member; none when no schema lists it.
    fn member<'a>(&'a self, schemas: &[&'a Value], name: &str) -> Option<Vec<&'a Value>> {
        let mut inside = Vec::new();
        let mut is_listed = schemas.is_empty();
        for schema in schemas {
            let properties = schema.get("properties");
            let listed = properties.and_then(|properties| properties.get(name));
            let further = schema.get("additionalProperties");
            match listed.or(further) {
                Some(Value::Bool(false)) => {}
                Some(schema) => {
                    is_listed = true;
                    inside.push(schema);
                }
                None => {
                    is_listed |= schema.get("type").is_none_or(names_object) && properties.is_none()
                }
            }
        }
        is_listed.then(|| self.at_place(inside))
    }

    fn element<'a>(&'a self, schemas: &[&'a Value], index: usize) -> Vec<&'a Value> {
        let item = |schema: &&'a Value| {
            let tuple = schema.get("prefixItems").and_then(|items| items.get(index));
            tuple.or_else(|| schema.get("items"))
        };
        self.at_place(schemas.iter().filter_map(item).collect())
    }

    /// The schemas, the targets of their references, and the alternatives of all.
    fn at_place<'a>(&'a self, schemas: Vec<&'a Value>) -> Vec<&'a Value> {
        let mut found: Vec<&Value> = Vec::new();
        let mut open = schemas;
        while let Some(schema) = open.pop() {
            if found.iter().any(|known| std::ptr::eq(*known, schema)) {
                continue;
            }
            found.push(schema);
            if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
                open.extend(self.root.pointer(&decoded(reference.trim_start_matches('#'))));
            }
            for keyword in ["anyOf", "oneOf"] {
                open.extend(schema.get(keyword).and_then(Value::as_array).into_iter().flatten());
            }
        }
        // Schemas that only lead to others have no keywords of their own.
        found.retain(|schema| {
            let says =
                ["$ref", "anyOf", "oneOf"].iter().all(|keyword| schema.get(keyword).is_none());
            says || schema.get("properties").is_some()
        });
        found
    }
}

fn names_object(kind: &Value) -> bool {
    kind == "object" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("object")))
}

fn decoded(fragment: &str) -> String {
    percent_encoding::percent_decode_str(fragment).decode_utf8_lossy().into_owned()
}

/// A `responseJsonSchema` with its objects closed.
fn closed(schema: &Value) -> Value {
    match schema {
        Value::Object(keywords) => {
            let mut read = inside(keywords, closed);
            close(&mut read);
            Value::Object(read)
        }
        other => other.clone(),
    }
}

/// A `responseSchema` as JSON Schema.
fn of_response_schema(schema: &Value) -> Value {
    let Value::Object(keywords) = schema else { return schema.clone() };
    let mut read = inside(keywords, of_response_schema);
    read.shift_remove("example");
    if let Some(Value::String(kind)) = read.get_mut("type") {
        *kind = kind.to_ascii_lowercase();
    }
    close(&mut read);
    for bound in
        ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]
    {
        if let Some(number) =
            read.get(bound).and_then(Value::as_str).and_then(|text| text.parse::<u64>().ok())
        {
            read.insert(bound.into(), number.into());
        }
    }
    if read.shift_remove("nullable") == Some(json!(true)) {
        return json!({ "anyOf": [Value::Object(read), { "type": "null" }] });
    }
    Value::Object(read)
}

fn close(keywords: &mut Map<String, Value>) {
    if keywords.contains_key("properties") && !keywords.contains_key("additionalProperties") {
        keywords.insert("additionalProperties".into(), false.into());
    }
}

/// The keywords, with `read` applied to the schemas directly inside.
fn inside(keywords: &Map<String, Value>, read: fn(&Value) -> Value) -> Map<String, Value> {
    let each = |(keyword, value): (&String, &Value)| {
        let value = match (keyword.as_str(), value) {
            ("properties" | "$defs", Value::Object(named)) => {
                named.iter().map(|(name, schema)| (name.clone(), read(schema))).collect()
            }
            ("anyOf" | "oneOf" | "prefixItems", Value::Array(list)) => {
                list.iter().map(read).collect()
            }
            ("items" | "additionalProperties", schema) => read(schema),
            _ => value.clone(),
        };
        (keyword.clone(), value)
    };
    keywords.iter().map(each).collect()
}

/// The names of properties that a sent schema lists.
pub struct Names<'a> {
    listed: HashSet<&'a str>,
    /// Whether other names are allowed somewhere.
    others: bool,
}

impl Names<'_> {
    pub fn allows(&self, name: &str) -> bool {
        self.others || self.listed.contains(name)
    }
}

pub fn names(sent: &Value) -> Names<'_> {
    let mut names = Names { listed: HashSet::new(), others: false };
    let mut open = vec![sent];
    while let Some(value) = open.pop() {
        if let Value::Object(keywords) = value {
            let properties = keywords.get("properties").and_then(Value::as_object);
            names.listed.extend(properties.into_iter().flatten().map(|(name, _)| name.as_str()));
            let others = keywords.get("additionalProperties");
            names.others |= others.is_some_and(|others| *others != json!(false));
            open.extend(keywords.values());
        } else if let Value::Array(values) = value {
            open.extend(values);
        }
    }
    names
}

/// The names in all `required` lists.
pub fn demanded(schema: &Value) -> impl Iterator<Item = &str> {
    let mut demanded = Vec::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        if let Value::Object(keywords) = value {
            let required = keywords.get("required").and_then(Value::as_array);
            demanded.extend(required.into_iter().flatten().filter_map(Value::as_str));
            open.extend(keywords.values());
        } else if let Value::Array(values) = value {
            open.extend(values);
        }
    }
    demanded.into_iter()
}
