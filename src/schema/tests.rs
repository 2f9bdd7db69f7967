mod check;
mod empty;
mod foreign;
mod reading;
mod refusal;
mod sent;
mod translation;
mod work;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Dialect, NotCompiled, RESPONSE_SCHEMA, Schema, SchemaError, SchemaLimits, Work};

const LIMITS: SchemaLimits = SchemaLimits { bytes: 4 << 20, nodes: 250_000 };

/// Compiles a schema, however long that takes.
pub(super) fn try_compile(schema: &Value) -> Result<Schema, SchemaError> {
    let work = Work::until(CancellationToken::new());
    Schema::compile(schema, &LIMITS, &work).map_err(|error| match error {
        NotCompiled::Unusable(error) => error,
        NotCompiled::Stopped(_) => unreachable!("nothing stops it"),
    })
}

fn compile(schema: Value) -> Schema {
    try_compile(&schema).unwrap_or_else(|error| panic!("{schema} {error}"))
}

/// Checks an answer, however long that takes.
pub(super) fn violations(schema: &Schema, answer: &Value) -> Vec<String> {
    let work = Work::until(CancellationToken::new());
    schema.violations(answer, &work).expect("nothing stops it")
}

#[track_caller]
fn assert_response_schema(schema: Value, expected: Value) {
    assert_eq!(compile(schema).dialect(), Dialect::ResponseSchema(expected));
}

#[track_caller]
fn assert_response_json_schema(schema: Value, expected: Value) {
    assert_eq!(compile(schema).dialect(), Dialect::ResponseJsonSchema(expected));
}

#[track_caller]
fn assert_refused(schema: Value, pointer: &str, message: &str) {
    let error = try_compile(&schema).expect_err("the schema is refused");
    assert_eq!(error.pointer, pointer, "{error}");
    assert!(error.message.contains(message), "{error}");
}

impl Schema {
    pub(super) fn dialect(&self) -> Dialect {
        let read = |text| serde_json::from_str(text).expect("what is sent is JSON");
        match self.sent() {
            None => Dialect::Any,
            Some((RESPONSE_SCHEMA, text)) => Dialect::ResponseSchema(read(text)),
            Some((_, text)) => Dialect::ResponseJsonSchema(read(text)),
        }
    }
}

fn object_of(schema: Value) -> Value {
    json!({ "type": "object", "properties": { "a": schema } })
}

fn response_object_of(schema: Value) -> Value {
    json!({ "type": "OBJECT", "properties": { "a": schema }, "propertyOrdering": ["a"] })
}
