//! A question whose answer is JSON of a schema: how it is put, checked and put once more.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::found::{self, Fit};
use super::schemas::CompiledSchema;
use super::{InvalidField, Misfit, Preparation, Unusable};
use crate::gemini::{Answer, Error, ErrorKind, GenerateContent, InputFeatures, Model};
use crate::schema::{Stopped, Work};

/// What a caller says of a question, not yet checked.
#[derive(Debug)]
pub(super) struct SchemaPrompt {
    pub user_content: String,
    pub system_prompt: String,
    pub model: Option<String>,
    /// The cached content that stands in front.
    pub cache: Option<String>,
    pub config: Option<Map<String, Value>>,
}

/// A question, checked and ready to be asked.
#[derive(Debug)]
pub(super) struct SchemaQuestion {
    model: Model,
    user_content: String,
    system_prompt: String,
    cache: Option<String>,
    config: Option<Map<String, Value>>,
    schema: Arc<CompiledSchema>,
}

/// Why an answer is not JSON of the schema.
#[derive(Debug)]
pub(super) enum Fault {
    /// It breaks the schema in these ways.
    Violations(Vec<String>),
    /// It ends before its end.
    Truncated,
    /// The work was stopped before that was known.
    Unfinished,
}

impl From<Stopped> for Fault {
    fn from(_: Stopped) -> Self {
        Self::Unfinished
    }
}

impl SchemaPrompt {
    /// Checks all fields, with the outcome for the schema, which comes from elsewhere.
    pub(super) fn prepare(
        self,
        schema: Result<Arc<CompiledSchema>, InvalidField>,
        default_model: &Model,
    ) -> Result<SchemaQuestion, Vec<InvalidField>> {
        let Self { user_content, system_prompt, model, cache, config } = self;
        let mut faults = InvalidField::blanks(&[
            ("user_content", &user_content),
            ("system_prompt", &system_prompt),
        ]);
        let model = Preparation::model(model.as_deref(), default_model, &mut faults);
        faults.extend(InvalidField::several_candidates(config.as_ref()));
        faults.extend(InvalidField::cache(cache.as_deref()));
        match (schema, model) {
            (Ok(schema), Some(model)) if faults.is_empty() => {
                Ok(SchemaQuestion { model, user_content, system_prompt, cache, config, schema })
            }
            (schema, _) => {
                faults.extend(schema.err());
                Err(faults)
            }
        }
    }
}

impl SchemaQuestion {
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn ask(&self) -> Bytes {
        self.body(self.question())
    }

    /// The text in the question, the schema included: Gemini's documentation says that it counts.
    pub(super) fn input(&self) -> InputFeatures {
        self.question().text() + self.schema.input()
    }

    pub(super) fn ask_again(&self, answer: &str, violations: &[String]) -> Bytes {
        let correction = format!(
            "Your answer does not fit what was asked for:\n- {}\nAnswer again, complete and \
             corrected, with JSON only.",
            violations.join("\n- ")
        );
        self.body(self.question().continued(answer, &correction))
    }

    /// The answer as JSON, if it fits the caller's schema.
    pub(super) fn check<'a>(&self, answer: &'a Answer, work: &Work) -> Result<Fit<'a>, Fault> {
        work.spend(answer.text.len())?;
        let found = found::read(&answer.text, work)?;
        let Fit { value, json } = match found {
            // A number of which the end may be missing is a number as well.
            Ok(Fit { value: Value::Number(_), .. }) | Err(_) if answer.is_cut_off() => {
                return Err(Fault::Truncated);
            }
            Ok(fit) => fit,
            Err(error) if answer.finish_reason == "STOP" => {
                return Err(Fault::Violations(vec![format!("it is not JSON: {error}")]));
            }
            Err(error) => {
                let reason = &answer.finish_reason;
                let violation = format!("it is not JSON: {error}, and it ended for {reason}");
                return Err(Fault::Violations(vec![violation]));
            }
        };
        let violations = self.schema.violations(&value, work)?;
        if violations.is_empty() {
            Ok(Fit { value, json })
        } else {
            Err(Fault::Violations(violations))
        }
    }

    fn question(&self) -> GenerateContent<'_> {
        GenerateContent::ask(&self.user_content)
            .instructed(&self.system_prompt)
            .cached(self.cache.as_deref())
    }

    /// The body with the configuration and the schema. The schema's text is put in as it is: a
    /// large one would take milliseconds to be written again for each request.
    fn body(&self, question: GenerateContent<'_>) -> Bytes {
        let body = question.configured(Some(&self.config())).to_json();
        let Some((field, schema)) = self.schema.sent() else { return body };
        let end = b"}}";
        let body = body.strip_suffix(end).expect("the configuration is last, and not empty");
        [body, b",\"", field.as_bytes(), b"\":", schema.as_bytes(), end].concat().into()
    }

    /// The caller's configuration with the MIME type of JSON and without any schema; a caller's
    /// own go, in either of the spellings that Gemini takes.
    fn config(&self) -> Map<String, Value> {
        let mut config = self.config.clone().unwrap_or_default();
        for own in [
            "responseMimeType",
            "response_mime_type",
            "responseSchema",
            "response_schema",
            "responseJsonSchema",
            "response_json_schema",
        ] {
            config.shift_remove(own);
        }
        config.insert("responseMimeType".into(), "application/json".into());
        config
    }
}

impl Fault {
    /// The fault of an answer for which nothing makes up.
    pub(super) fn of<Output>(self, answer: Answer) -> Unusable<Output> {
        let usage = answer.usage;
        match self {
            Self::Violations(violations) => {
                Unusable::Misfit(Misfit { text: answer.text, violations, usage, fallback: None })
            }
            Self::Truncated => {
                let why = match &*answer.finish_reason {
                    "MAX_TOKENS" => "at the limit on output tokens",
                    _ => "where Gemini wants to be asked to continue",
                };
                let reason = &answer.finish_reason;
                let message = format!("the answer ends {why}, before its end: {reason}");
                let error = Error::new(ErrorKind::Truncated, message);
                Unusable::Hopeless(Error { usage, accepted_model: true, ..error })
            }
            Self::Unfinished => Unusable::Unfinished(answer),
        }
    }
}
