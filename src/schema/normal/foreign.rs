//! Translates keywords of OpenAPI, Gemini and older drafts to JSON Schema.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::keyword::{ANNOTATIONS, CONTAINERS, Draft, known};
use super::scope::REFERENCES;
use crate::schema::number;
use crate::schema::shorten;

/// The most examples in a description.
const MAX_EXAMPLES: usize = 5;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Names for any type: in draft 3, and in Gemini's list of types.
const ANY_TYPE: [&str; 2] = ["any", "type_unspecified"];

/// The translation of a keyword that contains no schema.
pub(super) enum Plain {
    /// It is copied.
    Same,
    /// Its value is replaced.
    Other(Value),
    /// It is dropped.
    Nothing,
}

/// Translates a single keyword that contains no schema.
pub(super) fn plain(keyword: &str, value: &Value, is_of_root: bool) -> Plain {
    match (keyword, value) {
        ("type", Value::String(name)) => match type_name(name) {
            Some("any") => Plain::Nothing,
            Some(known) if known != name => Plain::Other(known.into()),
            _ => Plain::Same,
        },
        ("type", Value::Array(names)) => type_names(names),
        // Gemini's `example`, which it reads only in the root.
        ("example", _) if is_of_root => Plain::Same,
        ("$comment" | "nullable" | "example" | "examples", _) => Plain::Nothing,
        ("deprecated" | "readOnly" | "writeOnly", value) if !value.is_boolean() => Plain::Nothing,
        ("title" | "description", value) if !value.is_string() => Plain::Nothing,
        // From draft 3: read with the object around it.
        ("required", Value::Bool(_)) => Plain::Nothing,
        // JSON forms of protocol buffers write integers of 64 bits as strings.
        (_, Value::String(digits)) if is_count(keyword) => match digits.parse::<u64>() {
            Ok(count) => Plain::Other(count.into()),
            Err(_) => Plain::Same,
        },
        _ => Plain::Same,
    }
}

fn is_count(keyword: &str) -> bool {
    let counted = keyword.strip_prefix("min").or_else(|| keyword.strip_prefix("max"));
    counted.is_some_and(|what| matches!(what, "Items" | "Length" | "Properties"))
}

/// The type with this name in any letter case.
pub(super) fn type_name(name: &str) -> Option<&'static str> {
    let same = |known: &&&str| known.eq_ignore_ascii_case(name);
    if ANY_TYPE.iter().any(|any| same(&any)) {
        return Some("any");
    }
    TYPES.iter().find(same).copied()
}

fn type_names(names: &[Value]) -> Plain {
    let meant: Vec<_> = names.iter().map(|name| name.as_str().and_then(type_name)).collect();
    if meant.contains(&Some("any")) {
        return Plain::Nothing;
    }
    let mut known: Vec<&str> = Vec::new();
    for name in meant {
        match name {
            Some(name) if !known.contains(&name) => known.push(name),
            Some(_) => {}
            None => return Plain::Same,
        }
    }
    if known.is_empty() { Plain::Same } else { Plain::Other(known.into()) }
}

pub(super) fn is_list_of_names(value: &Value) -> bool {
    value.as_array().is_some_and(|names| names.iter().all(Value::is_string))
}

/// Requires the properties that are marked as required in their own schemas.
pub(super) fn require_marked(map: &Map<String, Value>, written: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = map.get("properties") else { return };
    if !written.contains_key("properties") {
        return;
    }
    let marked = properties
        .iter()
        .filter(|(_, property)| property.get("required") == Some(&Value::Bool(true)))
        .map(|(name, _)| Value::from(name.as_str()));
    let marked: Vec<Value> = marked.collect();
    if marked.is_empty() {
        return;
    }
    if let Value::Array(required) = written.entry("required").or_insert_with(|| json!([])) {
        let known: HashSet<Value> = required.iter().cloned().collect();
        required.extend(marked.into_iter().filter(|name| !known.contains(name)));
    }
}

/// Whether the schema allows null as well, in the way of OpenAPI 3.0.
pub(super) fn is_nullable(map: &Map<String, Value>) -> bool {
    map.get("nullable") == Some(&Value::Bool(true))
}

/// Whether a keyword stays beside an `anyOf` that allows null.
pub(super) fn stays_outside(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword) || CONTAINERS.contains(&keyword)
}

/// Whether null needs a separate alternative, because other keywords of the schema may rule it out.
pub(super) fn needs_alternative_for_null(map: &Map<String, Value>, draft: Draft) -> bool {
    const COMBINING: [&str; 5] = ["allOf", "anyOf", "oneOf", "not", "if"];
    if !is_nullable(map) {
        return false;
    }
    let is_known = |keyword: &str| known(map, keyword, draft).is_some();
    let combines = COMBINING
        .iter()
        .chain(&REFERENCES)
        .any(|keyword| map.contains_key(*keyword) && is_known(keyword));
    let is_plain_union = || {
        map.get("anyOf").is_some_and(Value::is_array)
            && map.keys().all(|keyword| {
                matches!(keyword.as_str(), "anyOf" | "nullable")
                    || stays_outside(keyword)
                    || !is_known(keyword)
            })
    };
    combines && !is_plain_union()
}

/// Allows null in addition to the types that the keywords allow.
pub(super) fn allow_null(written: &mut Map<String, Value>) {
    if let Some(Value::Array(alternatives)) = written.get_mut("anyOf") {
        alternatives.push(json!({ "type": "null" }));
        return;
    }
    match written.get_mut("type") {
        Some(Value::Array(types)) if !types.contains(&"null".into()) => types.push("null".into()),
        Some(types @ Value::String(_)) if types != "null" => {
            *types = json!([types.take(), "null"]);
        }
        _ => {}
    }
    if let Some(only) = written.get_mut("const").filter(|only| !only.is_null()).map(Value::take) {
        written.shift_remove("const");
        let is_listed = |values: &Vec<Value>| {
            let form = number::canonical(&only);
            values.iter().any(|value| number::canonical(value) == form)
        };
        let listed = written.get("enum").and_then(Value::as_array);
        let values = if listed.is_none_or(is_listed) { vec![only] } else { Vec::new() };
        written.insert("enum".to_owned(), Value::Array(values));
    }
    if let Some(Value::Array(values)) = written.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
}

/// The examples as a line for the description. The root's `example` stays a keyword.
pub(super) fn examples(map: &Map<String, Value>, is_root: bool) -> Option<String> {
    let single = map.get("example").filter(|_| !is_root);
    let several = map.get("examples").and_then(Value::as_array).into_iter().flatten();
    let shown: Vec<String> = single
        .into_iter()
        .chain(several)
        .take(MAX_EXAMPLES)
        .map(|example| shorten(&example.to_string()))
        .collect();
    let label = if shown.len() == 1 { "Example" } else { "Examples" };
    (!shown.is_empty()).then(|| format!("{label}: {}", shown.join(", ")))
}
