//! The documentation of relayed requests: only of the most common ones, because Google documents
//! them.

use super::ExternalSemaphore;
use crate::api::error::{GoogleFailure, OpenAiFailure};

/// Gemini's `generateContent`.
///
/// Every path under `/v1`, `/v1beta`, `/v1alpha`, `/upload` and `/download` is Gemini's own. Requests
/// and answers are relayed unchanged.
#[utoipa::path(
    post,
    path = "/v1beta/models/{model}:generateContent",
    tag = "gemini",
    params(("model" = String, Path, example = "gemini-3.5-flash-lite"), ExternalSemaphore),
    request_body(content = Value, example = json!({
        "contents": [{"role": "user", "parts": [{"text": "Why is the sky blue?"}]}]
    })),
    responses(
        (status = OK, description = "Gemini's answer", body = Value),
        (status = "default", description = "The error", body = GoogleFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn generate_content() {}

/// Gemini's `streamGenerateContent`, as server-sent events.
#[utoipa::path(
    post,
    path = "/v1beta/models/{model}:streamGenerateContent",
    tag = "gemini",
    params(
        ("model" = String, Path, example = "gemini-3.5-flash-lite"),
        ("alt" = Option<String>, Query, description = "`sse`; otherwise the answer is a JSON list"),
        ExternalSemaphore
    ),
    request_body(content = Value, example = json!({
        "contents": [{"role": "user", "parts": [{"text": "Why is the sky blue?"}]}]
    })),
    responses(
        (status = OK, description = "Gemini's answer, as a stream", content(
            (String = "text/event-stream"), (Value = "application/json")
        )),
        (status = "default", description = "The error", body = GoogleFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn stream_generate_content() {}

/// OpenAI's chat completions, whole or streamed.
///
/// They are relayed to Gemini's OpenAI-compatible endpoint.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "openai",
    params(ExternalSemaphore),
    request_body(content = Value, example = json!({
        "model": "gemini-3.5-flash-lite",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}]
    })),
    responses(
        (status = OK, description = "Gemini's answer", content(
            (Value = "application/json"), (String = "text/event-stream")
        )),
        (status = "default", description = "The error", body = OpenAiFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn chat_completions() {}

/// OpenAI's embeddings.
///
/// They are relayed to Gemini's OpenAI-compatible endpoint.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    params(ExternalSemaphore),
    request_body(content = Value, example = json!({
        "model": "gemini-embedding-001", "input": "Why is the sky blue?"
    })),
    responses(
        (status = OK, description = "Gemini's answer", body = Value),
        (status = "default", description = "The error", body = OpenAiFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn embeddings() {}

/// The models: in OpenAI's format for requests with a bearer token and no `x-goog-api-key`, otherwise
/// in Gemini's.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses(
        (status = OK, description = "Gemini's answer", body = Value),
        (status = "default", description = "The error, in the same format", content(
            (OpenAiFailure = "application/json")
        ))
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn models() {}
