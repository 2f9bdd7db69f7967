//! `POST /structured-output` and `POST /batch/structured-output`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::batch::{BatchRequest, BatchResponse, answer_batch};
use super::error::ApiError;
use super::generation_request::{GenerationKind, GenerationRequest};
use super::incoming::Incoming;
use super::jobs::{IdempotencyKey, JobStatus};
use super::openapi::{BatchErrors, ExternalSemaphore, GenerationErrors, Prefer};
use super::single::generate;
use crate::gateway::Gateway;
use crate::gemini::{Model, Usage};
use crate::generation::structured::StructuredOutput;
use crate::generation::{
    Defaults, Generated, InvalidField, ModelOptions, SchemaGeneration, SchemaPrompt, Schemas,
};
use crate::jobs::JobKind;

/// The `message` of every answer.
pub(super) const MESSAGE: &str = "Successfully generated structured output";

/// A prompt and the JSON Schema of the output.
pub(super) type StructuredRequest = GenerationRequest<StructuredFields>;

/// A prompt and the JSON Schema of the output.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = StructuredRequest, example = json!({
    "user_content": "Anna is 31 and lives in Lisbon.",
    "system_prompt": "Extract the person.",
    "json_schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"]
    }
}))]
pub(super) struct StructuredFields {
    /// What the output is made from. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    user_content: String,
    /// The task of the model. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    system_prompt: String,
    /// The JSON Schema that the output must match.
    #[schema(value_type = Object)]
    json_schema: Box<RawValue>,
}

/// JSON that matches the schema.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StructuredResponse {
    /// Always true.
    success: bool,
    /// The JSON, exactly as the model wrote it, without a code fence or words around it.
    #[schema(value_type = Value)]
    data: Box<RawValue>,
    /// `Successfully generated structured output`.
    #[schema(value_type = String)]
    message: &'static str,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// The model that answered; null if Gemini does not say.
    #[schema(value_type = Option<String>)]
    model_version: Option<Model>,
    /// Gemini's `finishReason`: `STOP`, or another one if the JSON is complete nevertheless.
    finish_reason: String,
    /// The tokens that were spent, including those of a second call that corrected the first.
    usage: Usage,
}

impl GenerationKind for StructuredFields {
    const JOB_KIND: JobKind = JobKind::StructuredOutput;
    type Generation = SchemaGeneration<StructuredOutput>;
    type Response = StructuredResponse;

    fn add_schema(&self, schemas: &mut Schemas) {
        schemas.add_json(self.json_schema.get());
    }

    fn generation(
        self,
        options: ModelOptions,
        schemas: &Schemas,
        defaults: &Defaults,
    ) -> Result<Self::Generation, Vec<InvalidField>> {
        let Self { user_content, system_prompt, json_schema } = self;
        let prompt = SchemaPrompt { user_content, system_prompt, options };
        SchemaGeneration::structured(prompt, json_schema.get(), schemas, defaults)
    }
}

impl From<Generated<Box<RawValue>>> for StructuredResponse {
    fn from(generated: Generated<Box<RawValue>>) -> Self {
        let Generated { value: data, model, model_version, finish_reason, usage } = generated;
        let (success, message) = (true, MESSAGE);
        Self { success, data, message, model, model_version, finish_reason, usage }
    }
}

/// Get JSON that matches a schema.
#[utoipa::path(
    post,
    path = "/structured-output",
    tag = "generation",
    request_body = StructuredRequest,
    responses((status = OK, description = "The JSON", body = StructuredResponse), GenerationErrors),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn structured(
    State(gateway): State<Gateway>,
    incoming: Incoming<StructuredRequest>,
) -> Result<Json<StructuredResponse>, ApiError> {
    generate(&gateway, incoming).await
}

/// Get JSON for many prompts, each with its own schema, in their order.
#[utoipa::path(
    post,
    path = "/batch/structured-output",
    tag = "generation",
    request_body(
        content = BatchRequest<StructuredRequest>,
        example = json!({"requests": [
            {
                "user_content": "Anna is 31 and lives in Lisbon.",
                "system_prompt": "Extract the person.",
                "json_schema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                    "required": ["name", "age"]
                }
            },
            {
                "user_content": "The soup was cold, but the waiter was kind.",
                "system_prompt": "Judge the review.",
                "json_schema": {"type": "string", "enum": ["good", "mixed", "bad"]}
            }
        ]})
    ),
    responses(
        (status = OK, description = "A result for each request, in the order of the requests; with \
                                     `Accept: application/x-ndjson` a line for each as soon as it \
                                     is there, and a last one with the totals", content(
            (BatchResponse<StructuredResponse> = "application/json"),
            (String = "application/x-ndjson")
        )),
        (status = ACCEPTED, description = "With `Prefer: respond-async`: the batch as a job",
            body = JobStatus),
        BatchErrors
    ),
    params(ExternalSemaphore, Prefer, IdempotencyKey),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_structured(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, ApiError> {
    answer_batch::<StructuredFields>(&gateway, request).await
}
