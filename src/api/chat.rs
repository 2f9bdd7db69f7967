//! `POST /chat` and `POST /batch/chat`.

mod stream;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
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
use crate::generation::chat::{Chat, ChatPrompt};
use crate::generation::{Defaults, Generated, InvalidField, ModelOptions, Schemas};
use crate::jobs::JobKind;
use stream::{ChatStreamEvent, STREAM_EXAMPLE};

/// A prompt for the model.
pub(super) type ChatRequest = GenerationRequest<ChatFields>;

/// A prompt for the model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChatRequest, example = json!({
    "prompt": "Why is the sky blue?",
    "system_prompt": "Answer in one sentence."
}))]
pub(super) struct ChatFields {
    /// The prompt. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    prompt: String,
    /// The system instruction.
    #[schema(default = "")]
    system_prompt: Option<String>,
    /// Whether the reply is streamed, as server-sent events. Not in a batch.
    #[schema(default = false)]
    stream: Option<bool>,
}

/// The model's reply.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatResponse {
    /// Always true.
    success: bool,
    /// The text of the reply.
    response: String,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// The model that answered; null if Gemini does not say.
    #[schema(value_type = Option<String>)]
    model_version: Option<Model>,
    /// Gemini's `finishReason`: `STOP`, `MAX_TOKENS`, …
    finish_reason: String,
    /// Whether Gemini stopped before the model was done, so that the text may be incomplete: the
    /// finish reason is not `STOP`.
    truncated: bool,
    /// The tokens that were spent.
    usage: Usage,
}

impl GenerationKind for ChatFields {
    const JOB_KIND: JobKind = JobKind::Chat;
    type Generation = Chat;
    type Response = ChatResponse;

    fn generation(
        self,
        options: ModelOptions,
        _: &Schemas,
        defaults: &Defaults,
    ) -> Result<Chat, Vec<InvalidField>> {
        let Self { prompt, system_prompt, stream } = self;
        let chat = Chat::new(&ChatPrompt { prompt, system_prompt, options }, defaults);
        if stream != Some(true) {
            return chat;
        }
        let message = "A chat in a batch cannot be streamed";
        let error = InvalidField::new("stream", "value_error", message);
        Err(chat.err().into_iter().flatten().chain([error]).collect())
    }
}

impl From<Generated<String>> for ChatResponse {
    fn from(generated: Generated<String>) -> Self {
        let truncated = generated.is_truncated();
        let Generated { value: response, model, model_version, finish_reason, usage } = generated;
        Self { success: true, response, model, model_version, finish_reason, truncated, usage }
    }
}

/// Send a prompt, get the model's reply: whole or, with `stream`, piece by piece.
#[utoipa::path(
    post,
    path = "/chat",
    tag = "generation",
    request_body = ChatRequest,
    params(ExternalSemaphore),
    responses(
        (status = OK, description = "The model's reply", content(
            (ChatResponse = "application/json"),
            (ChatStreamEvent = "text/event-stream", example = json!(STREAM_EXAMPLE))
        )),
        GenerationErrors
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn chat(
    State(gateway): State<Gateway>,
    mut incoming: Incoming<ChatRequest>,
) -> Result<Response, ApiError> {
    match incoming.body.own.stream.take() {
        // Boxed so that a chat that is not streamed takes no memory for it.
        Some(true) => Box::pin(stream::stream(&gateway, incoming)).await,
        Some(false) | None => generate(&gateway, incoming).await.map(Json::into_response),
    }
}

/// Send many prompts, get the model's replies in their order.
#[utoipa::path(
    post,
    path = "/batch/chat",
    tag = "generation",
    request_body(
        content = BatchRequest<ChatRequest>,
        example = json!({"requests": [
            {"prompt": "Why is the sky blue?", "system_prompt": "Answer in one sentence."},
            {"prompt": "Why is the sea salty?", "system_prompt": "Answer in one sentence."}
        ]})
    ),
    params(ExternalSemaphore, Prefer, IdempotencyKey),
    responses(
        (status = OK, description = "A result for each request, in the order of the requests; with \
                                     `Accept: application/x-ndjson` a line for each as soon as it \
                                     is there, and a last one with the totals", content(
            (BatchResponse<ChatResponse> = "application/json"),
            (String = "application/x-ndjson")
        )),
        (status = ACCEPTED, description = "With `Prefer: respond-async`: the batch as a job",
            body = JobStatus),
        BatchErrors
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_chat(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, ApiError> {
    answer_batch::<ChatFields>(&gateway, request).await
}
