//! Prompts whose answer is JSON of a schema: how they are sent, checked and corrected.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::extract::{self, Json};
use super::schemas::CompiledSchema;
use super::{Defaults, Generated, Generation, InvalidField, Mismatch, ModelOptions, ReadError};
use crate::dispatch::CallKind;
use crate::gemini::{Answer, Error, ErrorKind, GenerateContent, InputFeatures, Model};
use crate::schema::{Stopped, Work};

/// What a caller asks, not yet checked.
#[derive(Debug)]
pub struct SchemaPrompt {
    /// What the output is made from. Not blank.
    pub user_content: String,
    /// The system instruction. Not blank.
    pub system_prompt: String,
    /// How the model is to generate.
    pub options: ModelOptions,
}

/// A kind of generation whose answers are JSON of a schema.
pub trait SchemaKind: Send + Sync + Sized + 'static {
    /// The kind of its calls.
    const KIND: CallKind;
    /// What the model generates.
    type Value: Send + Sync + 'static;

    /// The value for JSON that matches the schema. `json` is its text if that is not the whole text
    /// of the answer.
    ///
    /// # Errors
    /// What in it does not match, beyond what the schema can say.
    fn value(
        answer: &mut Answer,
        value: Value,
        json: Option<String>,
    ) -> Result<Self::Value, Vec<String>>;

    /// Flaws of a value that the model is asked to correct, but that are acceptable if it does not.
    fn flaws(_: &Self::Value) -> Vec<String> {
        Vec::new()
    }
}

/// A prompt with a schema, checked and ready to be sent.
#[derive(Debug)]
pub struct SchemaGeneration<K> {
    model: Model,
    user_content: String,
    system_prompt: String,
    options: ModelOptions,
    schema: Arc<CompiledSchema>,
    kind: PhantomData<K>,
}

/// Why an answer is not JSON of the schema.
#[derive(Debug)]
enum CheckError {
    /// It does not match the schema, for these reasons.
    Violations(Vec<String>),
    /// It is incomplete.
    Truncated,
    /// The work ran out before that was known.
    OutOfWork,
}

impl From<Stopped> for CheckError {
    fn from(_: Stopped) -> Self {
        Self::OutOfWork
    }
}

impl<K: SchemaKind> SchemaGeneration<K> {
    /// Checks all fields of a prompt. `schema` is the compiled schema, or why it cannot be used.
    pub(super) fn check(
        prompt: SchemaPrompt,
        schema: Result<Arc<CompiledSchema>, InvalidField>,
        defaults: &Defaults,
    ) -> Result<Self, Vec<InvalidField>> {
        let SchemaPrompt { user_content, system_prompt, options } = prompt;
        let mut errors = InvalidField::blanks(&[
            ("user_content", &user_content),
            ("system_prompt", &system_prompt),
        ]);
        let model = options.check(&defaults.structured_model, &mut errors);
        match (schema, model) {
            (Ok(schema), Some(model)) if errors.is_empty() => {
                let kind = PhantomData;
                Ok(Self { model, user_content, system_prompt, options, schema, kind })
            }
            (schema, _) => {
                errors.extend(schema.err());
                Err(errors)
            }
        }
    }

    /// The answer as JSON, if it matches the caller's schema.
    fn json<'a>(&self, answer: &'a Answer, work: &Work) -> Result<Json<'a>, CheckError> {
        work.spend(answer.text.len())?;
        let json = match extract::read(&answer.text, work)? {
            // A number that was cut off is a number as well.
            Ok(Json { value: Value::Number(_), .. }) | Err(_) if answer.is_cut_off() => {
                return Err(CheckError::Truncated);
            }
            Ok(json) => json,
            Err(error) if answer.finish_reason == "STOP" => {
                return Err(CheckError::Violations(vec![format!("it is not JSON: {error}")]));
            }
            Err(error) => {
                let reason = &answer.finish_reason;
                let violation =
                    format!("it is not JSON: {error}; it ended with finishReason {reason}");
                return Err(CheckError::Violations(vec![violation]));
            }
        };
        let violations = self.schema.violations(&json.value, work)?;
        if violations.is_empty() { Ok(json) } else { Err(CheckError::Violations(violations)) }
    }

    fn content(&self) -> GenerateContent<'_> {
        self.options.content(&self.user_content, &self.system_prompt)
    }

    /// The body with the configuration and the schema. The text of the schema is inserted as it is,
    /// because serializing a large schema for each request would take milliseconds.
    fn with_schema(&self, content: GenerateContent<'_>) -> Bytes {
        let body = content.configured(Some(&self.config())).to_json();
        let Some((field, schema)) = self.schema.sent() else { return body };
        let end = b"}}";
        let body = body.strip_suffix(end).expect("the configuration is last, and not empty");
        [body, b",\"", field.as_bytes(), b"\":", schema.as_bytes(), end].concat().into()
    }

    /// The caller's configuration with the MIME type of JSON and without a schema. The caller's own
    /// values of these are removed, in both spellings that Gemini accepts.
    fn config(&self) -> Map<String, Value> {
        let mut config = self.options.generation_config.clone().unwrap_or_default();
        for key in [
            "responseMimeType",
            "response_mime_type",
            "responseSchema",
            "response_schema",
            "responseJsonSchema",
            "response_json_schema",
        ] {
            config.shift_remove(key);
        }
        config.insert("responseMimeType".into(), "application/json".into());
        config
    }
}

impl<K: SchemaKind> Generation for SchemaGeneration<K> {
    const KIND: CallKind = K::KIND;
    type Value = K::Value;

    fn model(&self) -> &Model {
        &self.model
    }

    fn body(&self) -> Bytes {
        self.with_schema(self.content())
    }

    /// The schema counts as input. Source: Gemini API docs, structured output.
    fn input(&self) -> InputFeatures {
        self.content().text() + self.schema.input()
    }

    fn read(
        &self,
        mut answer: Answer,
        work: &Work,
    ) -> Result<Generated<K::Value>, ReadError<Self>> {
        let (value, json) = match self.json(&answer, work) {
            Ok(Json { value, text }) => {
                let is_whole =
                    matches!(text, Cow::Borrowed(text) if text.len() == answer.text.len());
                (value, (!is_whole).then(|| text.into_owned()))
            }
            Err(error) => return Err(error.of(answer)),
        };
        let value = match K::value(&mut answer, value, json) {
            Ok(value) => value,
            Err(violations) => return Err(CheckError::Violations(violations).of(answer)),
        };
        let violations = K::flaws(&value);
        let Answer { text, finish_reason, usage, .. } = answer;
        let generated = Generated { value, model: self.model.clone(), finish_reason, usage };
        if violations.is_empty() {
            return Ok(generated);
        }
        let fallback = Some(generated);
        Err(ReadError::Mismatch(Box::new(Mismatch { text, violations, usage, fallback })))
    }

    fn correction(&self, mismatch: &Mismatch<K::Value>) -> Bytes {
        let correction = format!(
            "Your answer does not match what was asked for:\n- {}\nAnswer again, complete and \
             corrected, with JSON only.",
            mismatch.violations.join("\n- ")
        );
        self.with_schema(self.content().continued(&mismatch.text, &correction))
    }
}

impl CheckError {
    /// The error of an answer that has no fallback.
    fn of<G: Generation>(self, answer: Answer) -> ReadError<G> {
        let usage = answer.usage;
        match self {
            Self::Violations(violations) => {
                let text = answer.text;
                ReadError::Mismatch(Box::new(Mismatch { text, violations, usage, fallback: None }))
            }
            Self::Truncated => {
                let why = match &*answer.finish_reason {
                    "MAX_TOKENS" => "it reached the limit on output tokens",
                    _ => "Gemini wants to be asked to continue",
                };
                let reason = &answer.finish_reason;
                let message = format!("The answer is incomplete: {why} ({reason})");
                let error = Error::new(ErrorKind::Truncated, message);
                ReadError::Permanent(Error { usage, accepted_model: true, ..error })
            }
            Self::OutOfWork => ReadError::OutOfWork(answer),
        }
    }
}
