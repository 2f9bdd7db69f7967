//! JSON Schema to Gemini's dialect, and the check of an answer against the caller's schema.
//!
//! Gemini takes a schema in one of two fields, and neither takes JSON Schema whole. What a caller
//! gives is read into a disjunction of shapes (`shape`), with references inlined and unions
//! multiplied out, and written in the first dialect that can say it (`write`). What neither can
//! say is put into a description, so that the model still reads it, and Gemini's answer is judged
//! by the caller's own schema: a dialect that says too little costs a retry, never a wrong answer.

mod cost;
mod document;
mod number;
mod parse;
mod shape;
mod write;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde_json::Value;

use cost::Cost;
use document::Document;

use crate::gemini::InputFeatures;

/// More would only lengthen the prompt of a retry.
const MAX_VIOLATIONS: usize = 20;

/// In characters: some messages repeat a whole `enum`.
const MAX_MESSAGE: usize = 400;

/// In steps, for one match of a pattern that only a backtracking engine can run. The crate's own
/// limit is a million, long enough for a caller to hold a thread for seconds.
const MAX_BACKTRACKING: usize = 20_000;

/// A caller's JSON Schema, compiled: what Gemini is sent, and the check of the answer.
#[derive(Debug)]
pub struct Schema {
    dialect: Dialect,
    text: InputFeatures,
    validator: Validator,
    cost: Cost,
}

/// What Gemini is sent of a schema, by the field of `generationConfig` that carries it.
#[derive(Debug, Clone, PartialEq)]
pub enum Dialect {
    /// The schema allows any JSON: neither field is sent, only `responseMimeType`.
    Any,
    /// Goes as `responseSchema`, the OpenAPI subset that says most about single values.
    ResponseSchema(Value),
    /// Goes as `responseJsonSchema`, which alone says recursion, tuples, maps and enums of numbers.
    ResponseJsonSchema(Value),
}

impl Dialect {
    fn text(&self) -> InputFeatures {
        match self {
            Self::Any => InputFeatures::default(),
            Self::ResponseSchema(schema) | Self::ResponseJsonSchema(schema) => {
                InputFeatures::of(&schema.to_string())
            }
        }
    }
}

/// The schema is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {}: {message}", place(pointer))]
pub struct SchemaError {
    /// JSON Pointer into the caller's schema.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
}

impl SchemaError {
    fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

impl Schema {
    /// Checks `schema` against the draft it declares (2020-12 if none), translates it, and prepares
    /// the check of answers. Nothing is ever fetched.
    ///
    /// # Errors
    ///
    /// When the schema breaks its draft's meta-schema, refers to anything outside itself, is nested
    /// too deeply, or allows no value.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        if !matches!(schema, Value::Object(_) | Value::Bool(true)) {
            let message = "the schema must be a JSON object that allows some value";
            return Err(SchemaError::new("", message));
        }
        document::check_depth(schema)?;
        let draft = declared_draft(schema)?;
        check_meta_schema(schema)?;
        let document = Document::open(schema, draft)?;
        let cost = Cost::of(&document)?;
        let validator = build_validator(schema, draft)?;
        let dialect = write::write(&parse::translate(&document)?);
        let text = dialect.text();
        Ok(Self { dialect, text, validator, cost })
    }

    /// What goes in `generationConfig`.
    #[must_use]
    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    /// The text of what goes in `generationConfig`.
    #[must_use]
    pub fn text(&self) -> InputFeatures {
        self.text
    }

    /// What is wrong with `instance`, as `at /path: message`; empty when it is valid. At most 20.
    ///
    /// `format` is an annotation, as in draft 2020-12, and is not checked.
    #[must_use]
    pub fn violations(&self, instance: &Value) -> Vec<String> {
        if !self.cost.fits_stack(instance) {
            return vec!["at the root: the value is nested too deeply to be checked".to_owned()];
        }
        if self.validator.is_valid(instance) {
            return Vec::new();
        }
        if !self.cost.allows_collecting(instance) {
            return vec!["at the root: the value does not satisfy the schema".to_owned()];
        }
        self.validator
            .iter_errors(instance)
            .take(MAX_VIOLATIONS)
            .map(|error| {
                let path = error.instance_path().as_str();
                format!("at {}: {}", place(path), shorten(&error.masked().to_string()))
            })
            .collect()
    }
}

fn place(pointer: &str) -> &str {
    if pointer.is_empty() { "the root" } else { pointer }
}

fn shorten(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

fn declared_draft(schema: &Value) -> Result<Draft, SchemaError> {
    let Some(uri) = schema.get("$schema").and_then(Value::as_str) else {
        return Ok(Draft::default());
    };
    match Draft::from_schema_uri(uri) {
        Draft::Unknown => Err(SchemaError::new("/$schema", "is no known draft of JSON Schema")),
        draft => Ok(draft),
    }
}

fn check_meta_schema(schema: &Value) -> Result<(), SchemaError> {
    jsonschema::meta::validate(schema).map_err(|error| {
        SchemaError::new(error.instance_path().as_str(), shorten(&error.to_string()))
    })
}

/// The linear-time engine runs whatever it can; only patterns with look-around or back-references,
/// which it refuses, are left to backtracking.
fn build_validator(schema: &Value, draft: Draft) -> Result<Validator, SchemaError> {
    if let Ok(validator) = linear_time(draft).build(schema) {
        return Ok(validator);
    }
    offline(draft)
        .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(MAX_BACKTRACKING))
        .build(schema)
        .map_err(|error| {
            SchemaError::new(error.schema_path().as_str(), shorten(&error.to_string()))
        })
}

fn offline(draft: Draft) -> ValidationOptions<'static> {
    jsonschema::options().with_draft(draft).should_validate_formats(false).offline()
}

fn linear_time(draft: Draft) -> ValidationOptions<'static> {
    offline(draft).with_pattern_options(PatternOptions::regex())
}

/// Whether `pattern` is a regular expression in the strict sense, which any engine runs.
fn is_linear_time(pattern: &str) -> bool {
    linear_time(Draft::default()).build(&serde_json::json!({ "pattern": pattern })).is_ok()
}
