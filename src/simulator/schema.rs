//! Checking schemas as Gemini does.
//!
//! `responseSchema` is a protocol buffer. The JSON reader refuses unknown fields and names the
//! field path; other violations are refused afterwards, with the place written as an expression.
//! `responseJsonSchema` supports a part of JSON Schema. Its error messages are not recorded, so they
//! follow the same style.

mod json_schema;
mod loops;

use serde_json::{Map, Value};

use super::json::field_name;
use super::refusal::{ErrorResponse, FieldViolation};

pub(super) use json_schema::check_response_json_schema;

/// The values of `type`. Lower case is accepted too.
const TYPES: [&str; 7] = ["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"];

/// The fields of `responseSchema` that hold no schema.
const PLAIN_FIELDS: [&str; 15] = [
    "format",
    "title",
    "description",
    "nullable",
    "min_items",
    "max_items",
    "min_properties",
    "max_properties",
    "minimum",
    "maximum",
    "min_length",
    "max_length",
    "pattern",
    "example",
    "default",
];

/// Gemini's error message for a schema that it refuses; `None` for one that it accepts. `field` is
/// the field of `generationConfig`: `responseSchema` or `responseJsonSchema`.
#[must_use]
pub fn refused_schema(field: &str, schema: &Value) -> Option<String> {
    let checked = match field {
        "responseSchema" => check_response_schema(schema),
        _ => check_response_json_schema(schema),
    };
    let body: Value = serde_json::from_slice(checked.err()?.body()).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}

/// Refuses a `responseSchema` that Gemini refuses.
pub(super) fn check_response_schema(schema: &Value) -> Result<(), ErrorResponse> {
    let mut violations = Vec::new();
    read(schema, "generation_config.response_schema", &mut violations);
    if !violations.is_empty() {
        return Err(ErrorResponse::bad_request(&violations));
    }
    let mut broken = Vec::new();
    check_rules(schema, "GenerateContentRequest.generation_config.response_schema", &mut broken);
    if broken.is_empty() { Ok(()) } else { Err(ErrorResponse::rules(&broken)) }
}

/// The fields and values that Google's JSON reader refuses.
fn read(schema: &Value, place: &str, violations: &mut Vec<FieldViolation>) {
    let Value::Object(fields) = schema else {
        violations.push(if schema.is_array() {
            let (parent, name) = place.rsplit_once('.').unwrap_or(("", place));
            FieldViolation::list(name, parent)
        } else {
            let schema_type = "type.googleapis.com/google.ai.generativelanguage.v1beta.Schema";
            FieldViolation::value(place, schema_type, schema)
        });
        return;
    };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let field = field_name(name);
        let place_of_field = format!("{place}.{field}");
        match field.as_str() {
            "type" if value.is_array() => violations.push(FieldViolation::list(name, place)),
            "type" => read_type(value, &place_of_field, violations),
            "enum" | "required" | "property_ordering" => {
                read_strings(value, &place_of_field, violations);
            }
            "items" => read(value, &place_of_field, violations),
            "any_of" => {
                for (index, branch) in value.as_array().into_iter().flatten().enumerate() {
                    read(branch, &format!("{place_of_field}[{index}]"), violations);
                }
            }
            "properties" => {
                let properties = value.as_object().into_iter().flat_map(Map::values);
                for (index, property) in properties.enumerate() {
                    read(property, &format!("{place_of_field}[{index}].value"), violations);
                }
            }
            field if PLAIN_FIELDS.contains(&field) => {}
            _ => violations.push(FieldViolation::unknown_name(name, place)),
        }
    }
}

fn read_type(value: &Value, place: &str, violations: &mut Vec<FieldViolation>) {
    let known = |name: &str| {
        TYPES.contains(&name) || TYPES.map(str::to_ascii_lowercase).contains(&name.to_owned())
    };
    if !value.as_str().is_some_and(known) {
        let type_type = "type.googleapis.com/google.ai.generativelanguage.v1beta.Type";
        violations.push(FieldViolation::value(place, type_type, value));
    }
}

fn read_strings(values: &Value, place: &str, violations: &mut Vec<FieldViolation>) {
    for (index, value) in values.as_array().into_iter().flatten().enumerate() {
        if !value.is_string() {
            let place = format!("{place}[{index}]");
            violations.push(FieldViolation::value(&place, "TYPE_STRING", value));
        }
    }
}

/// The rules that a `responseSchema` with known fields can break.
fn check_rules(schema: &Value, place: &str, broken: &mut Vec<String>) {
    let kind = schema["type"].as_str().unwrap_or_default().to_ascii_uppercase();
    let properties = schema["properties"].as_object();
    let has = |name: &str| !schema[name].is_null();
    if kind == "OBJECT" {
        if properties.is_none_or(Map::is_empty) {
            broken.push(format!("{place}.properties: should be non-empty for OBJECT type"));
        }
    } else {
        for name in ["properties", "required"].into_iter().filter(|name| has(name)) {
            broken.push(format!("{place}.{name}: only allowed for OBJECT type"));
        }
    }
    if kind == "ARRAY" && !has("items") {
        broken.push(format!("{place}.items: missing field."));
    }
    if kind != "STRING" && has("enum") {
        broken.push(format!("{place}.enum: only allowed for STRING type"));
    }
    for (index, value) in schema["enum"].as_array().into_iter().flatten().enumerate() {
        if value == "" {
            broken.push(format!("{place}.enum[{index}]: cannot be empty"));
        }
    }
    for (index, name) in schema["required"].as_array().into_iter().flatten().enumerate() {
        let defined = properties.is_some_and(|properties| {
            name.as_str().is_some_and(|name| properties.contains_key(name))
        });
        if kind == "OBJECT" && !defined {
            broken.push(format!("{place}.required[{index}]: property is not defined"));
        }
    }
    for (name, property) in properties.into_iter().flatten() {
        check_rules(property, &format!("{place}.properties[\"{name}\"]"), broken);
    }
    if has("items") {
        check_rules(&schema["items"], &format!("{place}.items"), broken);
    }
    let branches = schema.get("anyOf").or_else(|| schema.get("any_of")).and_then(Value::as_array);
    for (index, branch) in branches.into_iter().flatten().enumerate() {
        check_rules(branch, &format!("{place}.any_of[{index}]"), broken);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The error message for a schema.
    pub(super) fn message(refused: Result<(), ErrorResponse>) -> String {
        let refusal = refused.expect_err("the schema is refused");
        let body: Value = serde_json::from_slice(refusal.body()).expect("JSON");
        body["error"]["message"].as_str().expect("a message").to_owned()
    }

    #[test]
    fn a_schema_of_either_spelling_and_case_is_taken() {
        let schema = json!({
            "type": "object",
            "properties": {
                "tags": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1", "max_items": 3},
                "size": {"anyOf": [{"type": "INTEGER"}, {"type": "STRING", "enum": ["S", "M"]}]},
            },
            "propertyOrdering": ["tags", "size"],
            "required": ["tags"],
        });
        assert!(check_response_schema(&schema).is_ok());
    }

    #[test]
    fn unknown_fields_are_reported_with_their_path() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "OBJECT",
            "properties": {
                "a": {"type": ["STRING", "NULL"]},
                "b": {"type": "ARRAY", "items": {"type": "STRING", "const": "x"}},
                "c": {"anyOf": [{"type": "TEXT"}]},
                "d": {"type": "INTEGER", "enum": [1]},
            },
        });
        let place = "generation_config.response_schema";
        let expected = [
            format!(
                "Invalid JSON payload received. Unknown name \"$schema\" at '{place}': Cannot find field."
            ),
            format!(
                "Invalid JSON payload received. Unknown name \"type\" at '{place}.properties[0].value': Proto field is not repeating, cannot start list."
            ),
            format!(
                "Invalid JSON payload received. Unknown name \"const\" at '{place}.properties[1].value.items': Cannot find field."
            ),
            format!(
                "Invalid value at '{place}.properties[2].value.any_of[0].type' (type.googleapis.com/google.ai.generativelanguage.v1beta.Type), \"TEXT\""
            ),
            format!("Invalid value at '{place}.properties[3].value.enum[0]' (TYPE_STRING), 1"),
        ];
        assert_eq!(message(check_response_schema(&schema)), expected.join("\n"));
    }

    #[test]
    fn violated_rules_are_reported_with_their_expression() {
        let schema = json!({
            "type": "OBJECT",
            "properties": {
                "a": {"type": "OBJECT", "properties": {}},
                "b": {"type": "ARRAY", "items": {"type": "STRING", "properties": {"x": {"type": "STRING"}}}},
            },
            "required": ["c"],
        });
        let place = "GenerateContentRequest.generation_config.response_schema";
        assert_eq!(
            message(check_response_schema(&schema)),
            format!(
                "* {place}.required[0]: property is not defined\n\
                 * {place}.properties[\"a\"].properties: should be non-empty for OBJECT type\n\
                 * {place}.properties[\"b\"].items.properties: only allowed for OBJECT type\n"
            )
        );
    }

    #[test]
    fn an_enum_with_an_empty_string_is_refused() {
        let schema = json!({"type": "STRING", "enum": ["x", ""]});
        let place = "GenerateContentRequest.generation_config.response_schema";
        assert_eq!(
            message(check_response_schema(&schema)),
            format!("* {place}.enum[1]: cannot be empty\n")
        );
    }
}
