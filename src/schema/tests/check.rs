//! The check of an answer.

use serde_json::{Value, json};

use super::{compile, violations};
use crate::schema::{Schema, SchemaError};

/// `innermost` in arrays one inside the other.
fn nested(levels: usize, innermost: Value) -> Value {
    (0..levels).fold(innermost, |inner, _| json!([inner]))
}

#[test]
fn recursion_that_doubles_at_every_step_costs_the_check_no_time() {
    for union in ["allOf", "anyOf"] {
        let items = json!({ "type": "array", "items": { "$ref": "#" } });
        let schema = compile(json!({ "not": { "const": 1 }, union: [items, items] }));
        assert_eq!(
            violations(&schema, &nested(100, json!(1))),
            ["at the root: the value does not satisfy the schema"],
            "{union}",
        );
    }
}

#[test]
fn an_answer_too_deep_for_the_stack_is_a_violation() {
    let wrapped = |inner| (0..30).fold(inner, |inner, _| json!({ "oneOf": [inner, false] }));
    let schema = compile(wrapped(json!({ "items": { "$ref": "#" } })));
    assert!(violations(&schema, &nested(10, json!(1))).is_empty());
    assert_eq!(
        violations(&schema, &nested(100, json!(1))),
        ["at the root: the value is nested too deeply to be checked"],
    );
}

#[test]
fn a_catastrophic_pattern_does_not_hang_the_check() {
    let text = json!(format!("{}!", "a".repeat(5_000)));
    for pattern in ["^(a+)+$", "^(?=a)(a+)+$"] {
        let schema = compile(json!({ "type": "string", "pattern": pattern }));
        assert!(!violations(&schema, &text).is_empty(), "{pattern}");
    }
}

#[test]
fn violations_say_where_and_what() {
    let schema = compile(json!({ "type": "object", "required": ["b"], "properties": {
        "a": { "type": "array", "items": { "type": "integer" } } } }));
    assert_eq!(violations(&schema, &json!({ "a": [1], "b": null })), Vec::<String>::new());
    assert_eq!(
        violations(&schema, &json!({ "a": [1, "x"] })),
        ["at the root: \"b\" is a required property", "at /a/1: value is not of type \"integer\"",],
    );
    let many = json!({ "a": vec!["x"; 100], "b": 1 });
    assert_eq!(violations(&schema, &many).len(), 20);
}

#[test]
fn the_check_is_the_callers_schema_not_the_dialects() {
    let schema = compile(json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }));
    assert!(violations(&schema, &json!(1.5)).is_empty());
    assert_eq!(violations(&schema, &json!(1)).len(), 1);
    let schema = compile(json!({ "type": "string", "format": "email" }));
    assert!(violations(&schema, &json!("no address")).is_empty());
}

#[test]
fn an_error_reads_as_a_sentence() {
    let error = SchemaError::new("/a", "is wrong");
    assert_eq!(error.to_string(), "at /a: is wrong");
    assert_eq!(SchemaError::new("", "is wrong").to_string(), "at the root: is wrong");
}

#[test]
fn a_schema_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Schema>();
}
