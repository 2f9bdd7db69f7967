//! The documentation of what is passed on as it came. The most used of it, that is: what Gemini
//! takes and answers is Google's to document.

use super::ExternalSemaphore;
use crate::api::error::{GoogleFailure, OpenAiFailure};

/// Gemini's `generateContent`.
///
/// Every path under `/v1`, `/v1beta`, `/v1alpha`, `/upload` and `/download` is Gemini's own and is
/// passed on as it came, and so is its answer.
#[utoipa::path(
    post,
    path = "/v1beta/models/{model}:generateContent",
    tag = "gemini",
    params(("model" = String, Path, example = "gemini-3.5-flash-lite"), ExternalSemaphore),
    request_body(content = Value, example = json!({
        "contents": [{"role": "user", "parts": [{"text": "Why is the sky blue?"}]}]
    })),
    responses(
        (status = OK, description = "What Gemini answered", body = Value),
        (status = "default", description = "What went wrong", body = GoogleFailure)
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
        ("alt" = Option<String>, Query, description = "`sse`; else a list of JSON comes"),
        ExternalSemaphore
    ),
    request_body(content = Value, example = json!({
        "contents": [{"role": "user", "parts": [{"text": "Why is the sky blue?"}]}]
    })),
    responses(
        (status = OK, description = "What Gemini answered, as it comes", content(
            (String = "text/event-stream"), (Value = "application/json")
        )),
        (status = "default", description = "What went wrong", body = GoogleFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn stream_generate_content() {}

/// OpenAI's chat completions, streamed too.
///
/// They go to Gemini's own endpoint of this shape.
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
        (status = OK, description = "What Gemini answered", content(
            (Value = "application/json"), (String = "text/event-stream")
        )),
        (status = "default", description = "What went wrong", body = OpenAiFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn chat_completions() {}

/// OpenAI's embeddings.
///
/// They go to Gemini's own endpoint of this shape.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    params(ExternalSemaphore),
    request_body(content = Value, example = json!({
        "model": "gemini-embedding-001", "input": "Why is the sky blue?"
    })),
    responses(
        (status = OK, description = "What Gemini answered", body = Value),
        (status = "default", description = "What went wrong", body = OpenAiFailure)
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn embeddings() {}

/// The models: in OpenAI's shape for who brings a bearer token and no `x-goog-api-key`, else in
/// Gemini's.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses(
        (status = OK, description = "What Gemini answered", body = Value),
        (status = "default", description = "What went wrong, in the same shape", content(
            (OpenAiFailure = "application/json")
        ))
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) fn models() {}
