//! `POST /chat` and `POST /batch/chat`.

use std::mem;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{StreamExt, unfold};
use serde_json::json;
use utoipa::ToSchema;

use super::batch::{BatchRequest, BatchResponse, ItemFailure, many};
use super::body::Asked;
use super::error::ApiError;
use super::openapi::{ExternalSemaphore, Failures};
use super::read_ahead::read_ahead;
use super::single::{enqueued, failed, one};
use crate::gateway::Gateway;
use crate::generation::chat::{Chat, ChatEvent, ChatRequest, ChatResponse, ChatStream};

/// A text for a text, at once or, with `stream`, piece by piece.
#[utoipa::path(
    post,
    path = "/chat",
    tag = "generation",
    request_body = ChatRequest,
    params(ExternalSemaphore),
    responses(
        (status = OK, description = "What was asked for", content(
            (ChatResponse = "application/json"),
            (ChatStreamEvent = "text/event-stream", example = json!(STREAM_EXAMPLE))
        )),
        Failures
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn chat(
    State(gateway): State<Gateway>,
    mut asked: Asked<ChatRequest>,
) -> Result<Response, ApiError> {
    if asked.body.take_stream() {
        return stream(&gateway, asked).await;
    }
    one::<Chat>(&gateway, asked).await.map(Json::into_response)
}

const STREAM_EXAMPLE: &str = "data: {\"delta\":\"Because\"}\n\ndata: {\"delta\":\" of …\"}\n\n\
    data: {\"success\":true,\"response\":\"Because of …\",\"finish_reason\":\"STOP\", …}\n\n";

/// An event of a streamed chat.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its documentation is used")]
struct ChatStreamEvent {
    /// JSON: `{"delta": "…"}` with the next piece of the text; in the last event a `ChatResponse`,
    /// or, where the stream fails after its first piece, what a failed item of a batch has.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What fails before its first text is answered as any failure; later, it is the last event.
async fn stream(gateway: &Gateway, mut asked: Asked<ChatRequest>) -> Result<Response, ApiError> {
    let share = mem::take(&mut asked.share);
    let (chat, call) = enqueued::<Chat>(gateway, asked).await?;
    let idle = gateway.config.stream_idle_timeout;
    let opened = ChatStream::open(&gateway.dispatcher, &call, chat, idle).await;
    let chat = opened.map_err(|failure| failed(&call, failure))?;
    let events = unfold((chat, call, share), async |(mut chat, call, share)| {
        let event = chat.next().await?.map_err(|failure| {
            let model = call.model().clone();
            ItemFailure::of(failed(&call, failure), model)
        });
        Some((event, (chat, call, share)))
    });
    // The last event has the whole text, which is in memory in any case.
    let size = |event: &Result<ChatEvent, ItemFailure>| match event {
        Ok(ChatEvent::Delta(delta)) => delta.len(),
        Ok(ChatEvent::Done(_)) | Err(_) => 0,
    };
    let events = read_ahead(events, size, &gateway.answers).map(|event| match event {
        Ok(ChatEvent::Delta(delta)) => Event::default().json_data(json!({"delta": delta})),
        Ok(ChatEvent::Done(response)) => Event::default().json_data(response),
        Err(failure) => Event::default().json_data(failure),
    });
    Ok(Sse::new(events).into_response())
}

/// Many chats: each answer in its place.
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
    params(ExternalSemaphore),
    responses(
        (status = OK, description = "What came of each", body = BatchResponse<ChatResponse>),
        Failures
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_chat(
    State(gateway): State<Gateway>,
    asked: Asked<BatchRequest<ChatRequest>>,
) -> Result<Json<BatchResponse<ChatResponse>>, ApiError> {
    many::<Chat>(&gateway, asked).await
}
