//! Structured output: JSON that matches the caller's schema.

use std::mem;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Defaults, InvalidField, SchemaGeneration, SchemaKind, SchemaPrompt, Schemas};
use crate::dispatch::CallKind;
use crate::gemini::Answer;

/// The kind of generation that returns JSON of the caller's schema.
#[derive(Debug)]
pub enum StructuredOutput {}

impl SchemaKind for StructuredOutput {
    const KIND: CallKind = CallKind::StructuredOutput;
    /// The JSON exactly as the model wrote it, without a code fence or words around it.
    type Value = Box<RawValue>;

    fn value(
        answer: &mut Answer,
        _: Value,
        json: Option<String>,
    ) -> Result<Box<RawValue>, Vec<String>> {
        let json = json.unwrap_or_else(|| mem::take(&mut answer.text));
        Ok(RawValue::from_string(json).expect("the text was read as JSON"))
    }
}

impl SchemaGeneration<StructuredOutput> {
    /// Checks a prompt whose schema is among the compiled ones.
    ///
    /// # Errors
    /// Every field that cannot be used.
    pub fn structured(
        prompt: SchemaPrompt,
        json_schema: &str,
        schemas: &Schemas,
        defaults: &Defaults,
    ) -> Result<Self, Vec<InvalidField>> {
        Self::check(prompt, schemas.json("json_schema", json_schema), defaults)
    }
}
