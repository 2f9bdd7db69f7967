mod check;
mod refusal;
mod translation;

use serde_json::{Value, json};

use super::{Dialect, Schema};

fn compile(schema: Value) -> Schema {
    Schema::compile(&schema).unwrap_or_else(|error| panic!("{schema} {error}"))
}

#[track_caller]
fn assert_response_schema(schema: Value, expected: Value) {
    assert_eq!(*compile(schema).dialect(), Dialect::ResponseSchema(expected));
}

#[track_caller]
fn assert_response_json_schema(schema: Value, expected: Value) {
    assert_eq!(*compile(schema).dialect(), Dialect::ResponseJsonSchema(expected));
}

#[track_caller]
fn assert_refused(schema: Value, pointer: &str, message: &str) {
    let error = Schema::compile(&schema).expect_err("the schema is refused");
    assert_eq!(error.pointer, pointer, "{error}");
    assert!(error.message.contains(message), "{error}");
}

fn object_of(schema: Value) -> Value {
    json!({ "type": "object", "properties": { "a": schema } })
}

fn response_object_of(schema: Value) -> Value {
    json!({ "type": "OBJECT", "properties": { "a": schema }, "propertyOrdering": ["a"] })
}
