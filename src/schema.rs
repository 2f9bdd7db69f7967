//! Translates JSON Schema to Gemini's dialects, and checks answers against the caller's schema.
//!
//! Gemini takes a schema in one of two fields, and each supports a part of JSON Schema. The
//! caller's schema is rewritten to one draft (`normal`) and read into a disjunction of shapes
//! (`shape`), with conjunctions multiplied out. The shapes are written in the first dialect that
//! can express them (`write`). References are inlined where that adds little (`references`). What
//! neither dialect can express goes into a description for the model to read. Answers are checked
//! against the caller's own schema, so a dialect that expresses too little costs a retry, never a
//! wrong answer.
//!
//! Schemas are hostile input. Their size is bounded ([`SchemaLimits`]), and all work is counted and can
//! be stopped ([`Work`]).

mod cost;
mod document;
mod empty;
mod formats;
mod keywords;
mod metered;
mod normal;
mod number;
mod order;
mod parse;
mod patterns;
mod pointer;
mod references;
mod shape;
mod stack;
mod work;
mod write;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jsonschema::{Draft, Validator};
use serde_json::Value;

use cost::CheckCost;
use document::Document;
use metered::{Meter, Metered, MeteredNode, NamePatterns};
use normal::Normal;
use patterns::{PatternMemory, Patterns, ValidatorOptions};
use work::{Interrupt, interruptible};

pub use document::SchemaLimits;
pub use work::{Stopped, Work};

/// The most violations reported: more would only lengthen the prompt of a retry.
const MAX_VIOLATIONS: usize = 20;

/// The longest message, in characters: some messages repeat a whole `enum`.
const MAX_MESSAGE: usize = 400;

/// Dropping a schema of more values takes milliseconds.
const MANY_NODES: usize = 5_000;

/// Steps for collecting violations, each of which takes memory. Beyond it the answer is only
/// reported as invalid.
const COLLECTING: u64 = 500_000;

/// A caller's JSON Schema, compiled: the schema sent to Gemini, and the check of answers.
#[derive(Debug)]
pub struct Schema {
    /// As text, which is far smaller than the value.
    sent: Option<(&'static str, Box<str>)>,
    validator: Validator<Metered>,
    names: NamePatterns,
    /// Of the expressions in the validator.
    _memory: Arc<PatternMemory>,
    cost: CheckCost,
    is_large: bool,
    checks_formats: bool,
}

/// The schema sent to Gemini, by the field of `generationConfig` that carries it.
#[derive(Debug, Clone, PartialEq)]
enum Dialect {
    /// The schema allows any JSON: neither field is sent, only `responseMimeType`.
    Any,
    /// Sent as `responseSchema`, the OpenAPI subset, which has the most keywords for single values.
    ResponseSchema(Value),
    /// Sent as `responseJsonSchema`, which alone has recursion, tuples, maps and enums of numbers.
    ResponseJsonSchema(Value),
}

impl Dialect {
    fn into_sent(self) -> Option<(&'static str, Box<str>)> {
        let (field, schema) = match self {
            Self::Any => return None,
            Self::ResponseSchema(schema) => (RESPONSE_SCHEMA, schema),
            Self::ResponseJsonSchema(schema) => (RESPONSE_JSON_SCHEMA, schema),
        };
        Some((field, schema.to_string().into()))
    }
}

const RESPONSE_SCHEMA: &str = "responseSchema";
const RESPONSE_JSON_SCHEMA: &str = "responseJsonSchema";

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {}: {message}", place(pointer))]
pub struct SchemaError {
    /// JSON Pointer into the caller's schema.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
}

impl SchemaError {
    pub(super) fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// Why a schema was not compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCompiled {
    /// The schema cannot be used.
    #[error(transparent)]
    Unusable(#[from] SchemaError),
    /// The work was stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Schema {
    /// Reads a schema and compiles it.
    ///
    /// # Errors
    /// As for [`Schema::compile`]; also when the text is not JSON, is nested too deeply, or is too
    /// long.
    pub fn read(text: &str, limits: &SchemaLimits, work: &Work) -> Result<Self, NotCompiled> {
        limits.check_bytes(text.len())?;
        work.spend(text.len())?;
        let schema =
            serde_json::from_str(text).map_err(|error| SchemaError::new("", error.to_string()))?;
        Self::compile(&schema, limits, work)
    }

    /// Reads `schema` by the draft that it declares, or by all drafts if it declares none,
    /// translates it, and prepares the check of answers. References are never fetched.
    ///
    /// # Errors
    ///
    /// [`NotCompiled::Unusable`] when the schema breaks its draft's meta-schema, refers to anything
    /// outside itself, is too large or nested too deeply, or allows no value.
    pub fn compile(
        schema: &Value,
        limits: &SchemaLimits,
        work: &Work,
    ) -> Result<Self, NotCompiled> {
        work.spend(document::check_size(schema, limits)?)?;
        let normal = Normal::of(schema, limits, work)?;
        Self::canonical(&normal.document, limits, work).map_err(|error| normal.locate(error))
    }

    /// Compiles a schema in canonical form.
    fn canonical(schema: &Value, limits: &SchemaLimits, work: &Work) -> Result<Self, NotCompiled> {
        let nodes = document::check_size(schema, limits)?;
        work.spend(nodes)?;
        check_meta_schema(schema, work)?;
        let document = Document { root: schema };
        let cost = CheckCost::of(&document)?;
        let patterns = Arc::new(Patterns::of(schema, work)?);
        if let Some(refusal) = patterns.memory().refusal() {
            return Err(SchemaError::new("", refusal).into());
        }
        let validator = build_validator(schema, &patterns)?;
        work.spend(nodes)?;
        let translation = parse::translate(&document, nodes, work)?;
        let sent = write::write(&translation, &patterns)?.into_sent();
        let (names, is_large) = (patterns.names, nodes > MANY_NODES);
        let memory = Arc::clone(patterns.memory());
        Ok(Self { sent, validator, names, _memory: memory, cost, is_large, checks_formats: true })
    }

    /// The same schema, with `format` as an annotation that is not checked.
    #[must_use]
    pub fn without_formats(self) -> Self {
        Self { checks_formats: false, ..self }
    }

    /// The field of `generationConfig` that carries the schema, with its JSON; none when any JSON
    /// is allowed.
    #[must_use]
    pub fn sent(&self) -> Option<(&'static str, &str)> {
        self.sent.as_ref().map(|(field, text)| (*field, &**text))
    }

    /// Whether dropping it takes milliseconds.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.is_large
    }

    /// The violations in `instance`, at most 20, each as `at /path: message`; empty when it is
    /// valid.
    ///
    /// The formats `date`, `date-time`, `time`, `email`, `uri`, `uuid`, `ipv4`, `ipv6` and
    /// `hostname` are checked; any other is an annotation.
    ///
    /// # Errors
    /// [`Stopped`] when the work is stopped before the result is known.
    pub fn violations(&self, instance: &Value, work: &Work) -> Result<Vec<String>, Stopped> {
        let levels = self.cost.levels(instance);
        let checked = stack::with_levels(levels, work, |work| self.check(instance, work));
        let too_deep = "at the root: the value is nested too deeply to be checked";
        checked.unwrap_or_else(|| Ok(vec![too_deep.to_owned()]))
    }

    fn check(&self, instance: &Value, work: &Work) -> Result<Vec<String>, Stopped> {
        let meter = self.meter(work);
        match interruptible(|| self.validator.is_valid(MeteredNode::new(instance, &meter))) {
            Ok(true) => Ok(Vec::new()),
            Ok(false) => self.collected(instance, work),
            Err(Interrupt::Stopped) => Err(Stopped),
            Err(Interrupt::TooLongForPattern) => {
                let message = "at the root: a text is too long to be matched against its pattern";
                Ok(vec![message.to_owned()])
            }
            Err(Interrupt::PatternTooLarge) => {
                let message = "at the root: the patterns that apply take too much memory";
                Ok(vec![message.to_owned()])
            }
        }
    }

    fn meter<'w>(&self, work: &'w Work) -> Meter<'w> {
        let place = self.cost.steps_of_place();
        Meter { work, names: self.names, place, formats: self.checks_formats }
    }

    /// Collects the violations of an invalid instance within a limited number of steps.
    fn collected(&self, instance: &Value, work: &Work) -> Result<Vec<String>, Stopped> {
        let steps = COLLECTING.min(work.left());
        let part = work.part(steps);
        let meter = self.meter(&part);
        let collected = interruptible(|| {
            let errors = self.validator.iter_errors(MeteredNode::new(instance, &meter));
            let violation = |error: jsonschema::ValidationError<'_>| {
                let path = error.instance_path().as_str();
                format!("at {}: {}", place(path), shorten(&error.masked().to_string()))
            };
            errors.take(MAX_VIOLATIONS).map(violation).collect()
        });
        match collected {
            Ok(violations) => Ok(violations),
            Err(_) if steps < COLLECTING => Err(Stopped),
            Err(_) => Ok(vec!["at the root: the value does not satisfy the schema".to_owned()]),
        }
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

fn check_meta_schema(schema: &Value, work: &Work) -> Result<(), NotCompiled> {
    let meter = Meter::reading(work);
    let checked = interruptible(|| {
        jsonschema::meta::validate_for::<Metered>(MeteredNode::new(schema, &meter)).map_err(
            |error| SchemaError::new(error.instance_path().as_str(), shorten(&error.to_string())),
        )
    });
    Ok(checked.map_err(|_| Stopped)??)
}

fn build_validator(
    schema: &Value,
    patterns: &Arc<Patterns>,
) -> Result<Validator<Metered>, SchemaError> {
    let options = patterns.engine_for_names(offline(), Draft::Draft202012);
    keywords::register(options, Arc::clone(patterns)).build(schema).map_err(|error| {
        SchemaError::new(error.schema_path().as_str(), shorten(&error.to_string()))
    })
}

fn offline<'i>() -> ValidatorOptions<'i> {
    jsonschema::options_for().should_validate_formats(false).offline()
}
