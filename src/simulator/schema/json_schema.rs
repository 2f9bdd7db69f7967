//! The part of JSON Schema that `responseJsonSchema` supports.
//!
//! Source: Gemini API reference, `GenerationConfig`.

use serde_json::{Map, Value};

use super::loops::required_loop;
use crate::simulator::refusal::ErrorResponse;

/// The keywords that hold no schema. `default` and `pattern` are undocumented, but were accepted in
/// recordings.
const PLAIN_KEYWORDS: [&str; 16] = [
    "$id",
    "$ref",
    "$anchor",
    "type",
    "format",
    "title",
    "description",
    "enum",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "required",
    "propertyOrdering",
    "default",
    "pattern",
];

const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "array", "object", "null"];

/// Refuses a `responseJsonSchema` that Gemini refuses.
pub(in crate::simulator) fn check_response_json_schema(
    schema: &Value,
) -> Result<(), ErrorResponse> {
    let mut broken = Vec::new();
    let place = "GenerateContentRequest.generation_config.response_json_schema";
    Check { root: schema, broken: &mut broken }.schema(schema, place, true);
    if !broken.is_empty() {
        return Err(ErrorResponse::rules(&broken));
    }
    required_loop(schema).map_or(Ok(()), |place| {
        Err(ErrorResponse::invalid_argument(format!(
            "ref loops are only supported if they include optional or nullable property values, or \
             a potentially-zero-length array items, but a ref loop of required fields was found at \
             {place}"
        )))
    })
}

struct Check<'a> {
    root: &'a Value,
    broken: &'a mut Vec<String>,
}

impl Check<'_> {
    /// Unknown keywords, and keywords beside a `$ref`. The rule applies to inner schemas only: a
    /// recorded schema with a `title` beside its outermost `$ref` was accepted.
    fn schema(&mut self, schema: &Value, place: &str, is_root: bool) {
        let Value::Object(keywords) = schema else {
            if !schema.is_boolean() || is_root {
                self.broken.push(format!("{place}: must be a schema"));
            }
            return;
        };
        let is_reference = !is_root && keywords.contains_key("$ref");
        for (keyword, value) in keywords {
            if is_reference && !keyword.starts_with('$') {
                self.broken.push(format!("{place}.{keyword}: not allowed beside $ref"));
                continue;
            }
            self.keyword(keyword, value, place);
        }
        self.required_names(keywords, place);
    }

    fn keyword(&mut self, keyword: &str, value: &Value, place: &str) {
        match keyword {
            "properties" | "$defs" => {
                for (name, schema) in value.as_object().into_iter().flatten() {
                    self.schema(schema, &format!("{place}.{keyword}[\"{name}\"]"), false);
                }
            }
            "anyOf" | "oneOf" | "prefixItems" => {
                for (index, schema) in value.as_array().into_iter().flatten().enumerate() {
                    self.schema(schema, &format!("{place}.{keyword}[{index}]"), false);
                }
            }
            "items" | "additionalProperties" => {
                self.schema(value, &format!("{place}.{keyword}"), false);
            }
            "type" => {
                let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let is_known =
                    |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
                if names.is_empty() || !names.iter().all(is_known) {
                    self.broken.push(format!("{place}.type: unknown type"));
                }
            }
            "enum" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    if value == "" {
                        self.broken.push(format!("{place}.enum[{index}]: cannot be empty"));
                    } else if !value.is_string() && !value.is_number() {
                        let message =
                            format!("{place}.enum[{index}]: must be a string or a number");
                        self.broken.push(message);
                    }
                }
            }
            "$ref" => {
                let pointer = value.as_str().and_then(|reference| reference.strip_prefix('#'));
                let is_found = pointer.is_some_and(|pointer| {
                    // Anything but a pointer is an anchor.
                    (!pointer.is_empty() && !pointer.starts_with('/'))
                        || self.root.pointer(pointer).is_some()
                });
                if !is_found {
                    self.broken.push(format!("{place}.$ref: refers to no schema"));
                }
            }
            plain if PLAIN_KEYWORDS.contains(&plain) => {}
            _ => self.broken.push(format!("{place}.{keyword}: unknown keyword")),
        }
    }

    fn required_names(&mut self, keywords: &Map<String, Value>, place: &str) {
        let properties = keywords.get("properties").and_then(Value::as_object);
        let required = keywords.get("required").and_then(Value::as_array);
        for (index, name) in required.into_iter().flatten().enumerate() {
            let name = name.as_str().unwrap_or_default();
            if !properties.is_some_and(|properties| properties.contains_key(name)) {
                self.broken.push(format!("{place}.required[{index}]: property is not defined"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::message;
    use super::*;

    #[test]
    fn a_recursive_json_schema_is_taken() {
        let schema = json!({
            "$defs": {"Node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "default": []}},
            }},
            "$ref": "#/$defs/Node",
            "title": "Node",
        });
        assert!(check_response_json_schema(&schema).is_ok());
    }

    #[test]
    fn unknown_keywords_and_keywords_beside_a_reference_are_refused() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": {"const": 1},
                "b": {"$ref": "#/$defs/B", "description": "the second"},
            },
            "$defs": {"B": {"type": "string"}},
        });
        let place = "GenerateContentRequest.generation_config.response_json_schema.properties";
        assert_eq!(
            message(check_response_json_schema(&schema)),
            format!(
                "* {place}[\"a\"].const: unknown keyword\n\
                 * {place}[\"b\"].description: not allowed beside $ref\n"
            )
        );
    }

    #[test]
    fn a_cycle_of_required_properties_is_refused() {
        let filter = |required: Value| {
            json!({
                "$defs": {
                    "And": {
                        "type": "object",
                        "properties": {"left": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Not"}]}},
                        "required": required,
                    },
                    "Not": {
                        "type": "object",
                        "properties": {"parts": {"type": "array", "items": {"$ref": "#/$defs/And"}}},
                        "required": ["parts"],
                    },
                },
                "$ref": "#/$defs/And",
            })
        };
        assert!(check_response_json_schema(&filter(json!([]))).is_ok());
        assert_eq!(
            message(check_response_json_schema(&filter(json!(["left"])))),
            "ref loops are only supported if they include optional or nullable property values, or a \
             potentially-zero-length array items, but a ref loop of required fields was found at \
             $defs.And.properties.left.anyOf.1"
        );
    }

    #[test]
    fn names_values_and_references_that_are_wrong_are_refused() {
        let place = "GenerateContentRequest.generation_config.response_json_schema";
        for (schema, expected) in [
            (json!({"type": "object", "required": ["a"]}), ".required[0]: property is not defined"),
            (json!({"type": "string", "enum": ["a", ""]}), ".enum[1]: cannot be empty"),
            (json!({"enum": [true]}), ".enum[0]: must be a string or a number"),
            (json!({"type": "text"}), ".type: unknown type"),
            (json!({"items": {"$ref": "#/$defs/A"}}), ".items.$ref: refers to no schema"),
        ] {
            let error = message(check_response_json_schema(&schema));
            assert_eq!(error, format!("* {place}{expected}\n"), "{schema}");
        }
    }
}
