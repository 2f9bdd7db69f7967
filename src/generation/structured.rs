//! Structured output: JSON that fits the caller's schema.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::found::Fit;
use super::question::{SchemaPrompt, SchemaQuestion};
use super::{
    Credentials, Generation, InvalidField, Misfit, Preparation, Request, Schemas, Terms, Unusable,
};
use crate::dispatch::CallKind;
use crate::gemini::{Answer, InputFeatures, Model, Usage};
use crate::schema::Work;

/// What every structured success says.
pub(super) const MESSAGE: &str = "Successfully generated structured output";

/// Asks the model for JSON that fits a schema.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "user_content": "Anna is 31 and lives in Lisbon.",
    "system_prompt": "Extract the person.",
    "json_schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"]
    }
}))]
pub struct StructuredRequest {
    /// What the output is made from. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    user_content: String,
    /// What the model is to do. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    system_prompt: String,
    /// The JSON Schema that the output fits.
    #[schema(value_type = Object)]
    json_schema: Box<RawValue>,
    /// Such as `gemini-3.8-flash` or `tunedModels/x`; else the server's default.
    #[schema(pattern = "^(models/)?(tunedModels/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    model: Option<String>,
    /// The caller's own key.
    credentials: Option<Credentials>,
    /// A registered semaphore to hold in addition to the global limit.
    external_semaphore_id: Option<String>,
    /// Cached content that stands in front of what is asked, by its name: `cachedContents/abc`. It
    /// belongs to the key that made it and to the model it was made for. Gemini takes no system
    /// instruction beside it: `system_prompt` becomes the first part of what is asked.
    #[schema(pattern = "^cachedContents/[A-Za-z0-9_-]{1,128}$")]
    cached_content: Option<String>,
    /// Gemini's `generationConfig`, as given; the schema and the MIME type are the service's.
    #[schema(value_type = Option<Object>)]
    generation_config: Option<Map<String, Value>>,
}

/// The JSON that the model gave. It fits the schema.
#[derive(Debug, Serialize, ToSchema)]
pub struct StructuredResponse {
    /// Always true.
    success: bool,
    /// The JSON, to the letter as the model wrote it; without a code fence or words around it.
    #[schema(value_type = Value)]
    data: Box<RawValue>,
    /// `Successfully generated structured output`.
    #[schema(value_type = String)]
    message: &'static str,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// Why the model stopped, in Gemini's words; `STOP`, unless what it wrote is complete all the same.
    finish_reason: String,
    /// What it cost, a second call for an answer that did not fit included.
    usage: Usage,
}

/// A structured output, checked and ready to be asked for.
#[derive(Debug)]
pub struct Structured(SchemaQuestion);

impl Request for StructuredRequest {
    fn take_terms(&mut self) -> Terms {
        let credentials = self.credentials.take();
        Terms { credentials, external_semaphore_id: self.external_semaphore_id.take() }
    }

    fn add_schema(&self, schemas: &mut Schemas) {
        schemas.add_json(self.json_schema.get());
    }
}

impl Generation for Structured {
    const KIND: CallKind = CallKind::StructuredOutput;
    type Request = StructuredRequest;
    type Output = StructuredResponse;

    fn prepare(
        request: StructuredRequest,
        preparation: &Preparation<'_>,
    ) -> Result<Self, Vec<InvalidField>> {
        let schema = preparation.schemas.json("json_schema", request.json_schema.get());
        SchemaPrompt {
            user_content: request.user_content,
            system_prompt: request.system_prompt,
            model: request.model,
            cache: request.cached_content,
            config: request.generation_config,
        }
        .prepare(schema, &preparation.defaults.structured_model)
        .map(Self)
    }

    fn model(&self) -> &Model {
        self.0.model()
    }

    fn ask(&self) -> Bytes {
        self.0.ask()
    }

    fn input(&self) -> InputFeatures {
        self.0.input()
    }

    fn read(
        &self,
        answer: Answer,
        work: &Work,
    ) -> Result<StructuredResponse, Unusable<StructuredResponse>> {
        let json = match self.0.check(&answer, work) {
            Ok(Fit { json: Cow::Borrowed(json), .. }) if json.len() == answer.text.len() => None,
            Ok(Fit { json, .. }) => Some(json.into_owned()),
            Err(fault) => return Err(fault.of(answer)),
        };
        let Answer { text, finish_reason, usage, .. } = answer;
        let data = RawValue::from_string(json.unwrap_or(text));
        let data = data.expect("a text that was read as JSON is JSON");
        let (message, model) = (MESSAGE, self.0.model().clone());
        Ok(StructuredResponse { success: true, data, message, model, finish_reason, usage })
    }

    fn ask_again(&self, misfit: &Misfit<StructuredResponse>) -> Bytes {
        self.0.ask_again(&misfit.text, &misfit.violations)
    }

    fn charge(output: &mut StructuredResponse, usage: Usage) {
        output.usage += usage;
    }
}
