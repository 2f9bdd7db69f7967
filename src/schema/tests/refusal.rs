//! Schemas that are refused, and those that nearly are.

use serde_json::{Value, json};

use super::{assert_refused, compile, object_of, try_compile, violations};
use crate::schema::Dialect;

#[test]
fn unusable_schemas_are_refused_where_they_fail() {
    for schema in [json!(false), json!("string"), json!(null), json!([])] {
        assert_refused(schema, "", "must be a JSON object");
    }
    let contradiction = json!({ "allOf": [{ "type": "string" }, { "type": "null" }] });
    assert_refused(contradiction, "/allOf/1", "no value");
    assert_refused(object_of(json!({ "type": "text" })), "/properties/a/type", "write \"string\"");
    assert_refused(
        object_of(json!({ "type": "thing" })),
        "/properties/a/type",
        "\"thing\" is not a type",
    );
    assert_refused(object_of(json!("int")), "/properties/a", r#"write {"type": "integer"}"#);
    assert_refused(object_of(json!({ "minLength": -1 })), "/properties/a/minLength", "-1");
    assert_refused(
        json!({ "$schema": "https://example.com/mine" }),
        "/$schema",
        "names no known draft",
    );
    assert_refused(object_of(json!({ "pattern": "(" })), "/properties/a/pattern", "(");
}

#[test]
fn references_out_of_the_document_are_refused_and_not_fetched() {
    for (reference, message) in [
        ("http://127.0.0.1:1/schema.json", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("other.json#/a", "not fetched"),
        ("#/$defs/absent", "refers to no schema"),
        ("#absent", "refers to no schema"),
        ("#/properties/a/$ref", "refers to no schema"),
    ] {
        let schema = object_of(json!({ "$ref": reference }));
        assert_refused(schema, "/properties/a/$ref", message);
    }
    assert_refused(
        object_of(json!({ "not": { "$ref": "https://example.com" } })),
        "/properties/a/not/$ref",
        "not fetched",
    );
}

#[test]
fn a_schema_that_only_refers_to_itself_is_refused() {
    assert_refused(json!({ "$ref": "#" }), "/$ref", "refers to itself");
    assert_refused(
        json!({ "anyOf": [{ "$ref": "#/$defs/A" }], "$defs": { "A": { "allOf": [{ "$ref": "#" }] } } }),
        "/$defs/A/allOf/0/$ref",
        "refers to itself",
    );
}

/// Each definition refers twice to the next: 2^40 schemas when inlined.
fn doubling(keyword: &str) -> Value {
    let mut definitions = serde_json::Map::new();
    for i in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", i + 1) });
        let schema = match keyword {
            "properties" => json!({ "type": "object", "properties": { "a": next, "b": next } }),
            _ => json!({ keyword: [next, next] }),
        };
        definitions.insert(format!("d{i}"), schema);
    }
    definitions.insert("d40".to_owned(), json!({ "type": "string" }));
    json!({ "$ref": "#/$defs/d0", "$defs": definitions })
}

#[test]
fn doubling_references_in_one_place_are_refused() {
    for keyword in ["allOf", "anyOf"] {
        assert_refused(doubling(keyword), "", "over and over");
    }
}

#[test]
fn deep_schemas_are_refused() {
    let around = |inner| Value::Object([("not".to_owned(), inner)].into_iter().collect());
    let nested = |levels| (0..levels).fold(json!({}), |inner, _| around(inner));
    compile(nested(100));
    compile((0..100).fold(json!({}), |inner, _| json!({ "items": inner })));
    compile((0..50).fold(json!({}), |inner, _| json!({ "properties": { "a": inner } })));
    let error = try_compile(&nested(101)).expect_err("the schema is refused");
    assert!(error.message.contains("nested deeper"), "{error}");
    assert!(error.pointer.starts_with("/not/not"), "{error}");
    let mut far = nested(5_000);
    assert!(try_compile(&far).is_err());
    // Taken apart level by level, for dropping it whole is recursive.
    while let Some(inner) = far.get_mut("not").map(Value::take) {
        far = inner;
    }
}

#[test]
fn long_chains_of_references_fit_the_stack_or_are_refused() {
    let chain = |length: usize| {
        let mut definitions = serde_json::Map::new();
        for i in 0..length {
            let next = json!({ "$ref": format!("#/$defs/d{}", i + 1) });
            definitions.insert(format!("d{i}"), json!({ "oneOf": [next, false] }));
        }
        definitions.insert(format!("d{length}"), json!({ "type": "string" }));
        json!({ "$ref": "#/$defs/d0", "$defs": definitions })
    };
    assert_eq!(violations(&compile(chain(149)), &json!(1)).len(), 1);
    assert_refused(chain(150), "", "a chain of more than 300");
    assert_refused(chain(5_000), "", "a chain of more than 300");
}

#[test]
fn doubling_references_are_kept() {
    let schema = compile(doubling("properties"));
    let Dialect::ResponseJsonSchema(sent) = schema.dialect() else { panic!() };
    assert_eq!(sent["properties"]["b"], json!({ "$ref": "#/$defs/d1" }));
    assert_eq!(sent["$defs"]["d3"]["properties"]["b"], json!({ "$ref": "#/$defs/d4" }));
    assert_eq!(sent["$defs"].as_object().map(serde_json::Map::len), Some(39));
}
