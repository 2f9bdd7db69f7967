//! Schemas that allow no value.

use serde_json::json;

use super::{assert_refused, compile, object_of};

#[test]
fn contradictions_are_refused_with_their_reason() {
    for (schema, reason) in [
        (json!({ "type": "integer", "enum": ["60", "1440"] }), "none of its values has its type"),
        (json!({ "type": "string", "enum": ["a"], "minLength": 2 }), "keeps to its other keywords"),
        (json!({ "type": "number", "minimum": 2, "maximum": 1 }), "minimum is above its maximum"),
        (json!({ "type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2 }), "no integer"),
        (json!({ "type": "string", "minLength": 2, "maxLength": 1 }), "minLength is above"),
        (json!({ "type": "array", "minItems": 2, "maxItems": 1 }), "minItems is above"),
        (
            json!({ "type": "object", "minProperties": 2, "maxProperties": 1 }),
            "minProperties is above",
        ),
        (json!({ "type": "object", "required": ["a", "b"], "maxProperties": 1 }), "requires more"),
        (
            json!({ "type": "object", "minProperties": 1, "additionalProperties": false }),
            "fewer properties",
        ),
    ] {
        assert_refused(schema.clone(), "", reason);
        let mut around = object_of(schema);
        // Beside it there are other values.
        compile(around.clone());
        around["required"] = json!(["a"]);
        assert_refused(around, "/properties/a", reason);
    }
}

#[test]
fn the_innermost_contradiction_is_reported() {
    assert_refused(
        json!({ "type": "object", "required": ["a"], "properties": { "a": { "type": "array",
            "minItems": 1, "items": { "anyOf": [{ "type": "integer", "enum": ["x"] }, false] } } } }),
        "/properties/a/items/anyOf/0",
        "none of its values has its type; yet one is required",
    );
    assert_refused(
        json!({ "$ref": "#/$defs/A", "$defs": { "A": { "allOf": [
            { "type": "string" }, { "type": "null" }] } } }),
        "/$defs/A/allOf/1",
        "allows no value that the keywords beside it allow",
    );
    assert_refused(
        json!({ "type": "object", "required": ["a"], "properties": { "a": false } }),
        "/properties/a",
        "allows no value; yet one is required",
    );
    assert_refused(
        json!({ "type": "object", "required": ["b"], "properties": { "a": {} },
            "additionalProperties": false }),
        "/required",
        "yet one is required",
    );
}

#[test]
fn an_endless_recursion_is_refused() {
    let next = |required: bool, schema: serde_json::Value| {
        json!({ "$ref": "#/$defs/A", "$defs": { "A": { "type": "object",
            "properties": { "a": schema },
            "required": if required { vec!["a"] } else { vec![] } } } })
    };
    let reference = json!({ "$ref": "#/$defs/A" });
    assert_refused(next(true, reference.clone()), "", "without end");
    assert_refused(
        next(true, json!({ "type": "array", "items": reference, "minItems": 1 })),
        "",
        "without end",
    );
    compile(next(false, reference.clone()));
    compile(next(true, json!({ "type": "array", "items": reference })));
    compile(next(true, json!({ "anyOf": [reference, { "type": "null" }] })));
}
