use super::*;

/// Checks the values of many seeds against the schema itself.
fn assert_fits(schema: &Value) {
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a valid JSON Schema");
    for seed in 0..50 {
        let value = fitting(schema, "a prompt", seed).expect("a value that fits exists");
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{value} does not fit {schema}: {errors:?}");
    }
}

#[test]
fn every_kind_of_value_fits() {
    assert_fits(&json!({
        "type": "object",
        "properties": {
            "short": {"type": "string", "maxLength": 5},
            "long": {"type": "string", "minLength": 300},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
            "day": {"type": "string", "format": "date"},
            "moment": {"type": "string", "format": "date-time"},
            "choice": {"enum": ["a", 2, null]},
            "age": {"type": "integer", "minimum": 18, "maximum": 20},
            "below": {"type": "integer", "maximum": -5},
            "ratio": {"type": "number", "minimum": 0.5, "maximum": 0.75},
            "yes": {"type": "boolean"},
            "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
            "list": {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 4},
            "none": {"type": "array", "items": {"type": "string"}, "maxItems": 0},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "string"}, {"type": "integer"}],
                "items": false, "minItems": 2,
            },
            "map": {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 2},
        },
        "required": ["short", "code", "choice", "age", "ratio", "list", "pair", "map"],
        "additionalProperties": false,
    }));
}

#[test]
fn items_of_lists_refer_to_each_other() {
    let person = json!({"type": "object", "properties": {
        "person_number": {"type": "integer"}, "person_name": {"type": "string"},
    }, "required": ["person_number", "person_name"]});
    let schema = json!({"type": "object", "properties": {
        "people": {"type": "array", "items": person},
        "other_persons": {"type": "array", "items": {"type": "string"}},
        "numbers": {"type": "array", "items": {"type": "integer"}},
    }, "required": ["people", "other_persons", "numbers"]});
    let expected = json!({
        "people": [
            {"person_number": 1, "person_name": "Person 1"},
            {"person_number": 2, "person_name": "Person 2"},
        ],
        "other_persons": ["Person 1", "Person 2"],
        "numbers": [1, 2],
    });
    assert_eq!(fitting(&schema, "a prompt", 0), Some(expected));
}

#[test]
fn recursion_ends() {
    assert_fits(&json!({
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                },
                "required": ["value", "children"],
            },
            "Chain": {
                "type": "object",
                "properties": {
                    "next": {"anyOf": [{"$ref": "#/$defs/Chain"}, {"type": "null"}]},
                },
                "required": ["next"],
            },
        },
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/Tree"}, "chain": {"$ref": "#/$defs/Chain"}},
        "required": ["tree", "chain"],
    }));
}

#[test]
fn deep_nesting_is_followed() {
    let schema = (0..20).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "object", "properties": {"inner": inner}, "required": ["inner"]}),
    );
    assert_fits(&schema);
}

#[test]
fn a_schema_of_endless_values_has_none() {
    let schema =
        json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
    assert_eq!(fitting(&schema, "", 0), None);
}

#[test]
fn geminis_own_dialect_is_read() {
    let schema = json!({
        "type": "OBJECT",
        "properties": {
            "b": {"type": "INTEGER", "nullable": true},
            "a": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["x"]}, "minItems": "2"},
        },
        "propertyOrdering": ["a", "b"],
        "required": ["a", "b"],
    });
    let values: Vec<Value> =
        (0..50).map(|seed| fitting(&schema, "", seed).expect("a value")).collect();
    for value in &values {
        assert_eq!(value["a"], json!(["x", "x"]));
        let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["a", "b"]);
    }
    assert!(values.iter().any(|value| value["b"].is_null()));
    assert!(values.iter().any(|value| value["b"].is_i64()));
}

#[test]
fn the_same_seed_gives_the_same_value_and_strings_quote_the_prompt() {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    let value = fitting(&schema, "who?", 7);
    assert_eq!(value, fitting(&schema, "who?", 7));
    assert_eq!(value, Some(json!({"name": "Simulated name for: who?"})));
}
