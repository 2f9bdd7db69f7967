//! The reply of a chat as server-sent events.

use std::mem;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{StreamExt, unfold};
use serde_json::json;
use utoipa::ToSchema;

use super::{ChatRequest, ChatResponse};
use crate::api::batch::ItemError;
use crate::api::error::ApiError;
use crate::api::incoming::Incoming;
use crate::api::read_ahead::read_ahead;
use crate::api::single::{enqueue, failed};
use crate::gateway::Gateway;
use crate::generation::chat::{ChatEvent, ChatStream};

pub(super) const STREAM_EXAMPLE: &str = "data: {\"delta\":\"Because\"}\n\n\
    data: {\"delta\":\" of …\"}\n\n\
    data: {\"success\":true,\"response\":\"Because of …\",\"finish_reason\":\"STOP\", …}\n\n";

/// An event of a streamed chat.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct ChatStreamEvent {
    /// JSON: `{"delta": "…"}` with the next piece of the text. The last event is a `ChatResponse`, or,
    /// if the stream fails after its first piece, has the fields of a failed batch item.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Answers with a stream. An error before the first piece of the text is answered with its status; a
/// later one is the last event.
pub(super) async fn stream(
    gateway: &Gateway,
    mut incoming: Incoming<ChatRequest>,
) -> Result<Response, ApiError> {
    let share = mem::take(&mut incoming.share);
    let (chat, call) = enqueue(gateway, incoming).await?;
    let idle = gateway.config.stream_idle_timeout;
    let opened = ChatStream::open(&gateway.dispatcher, &call, chat, idle).await;
    let chat = opened.map_err(|error| failed(&call, error))?;
    let events = unfold((chat, call, share), async |(mut chat, call, share)| {
        let event = chat.next().await?.map_err(|error| {
            let model = call.model().clone();
            ItemError::new(failed(&call, error), model)
        });
        Some((event, (chat, call, share)))
    });
    // The last event repeats the whole text, which is in memory in any case.
    let size = |event: &Result<ChatEvent, ItemError>| match event {
        Ok(ChatEvent::Delta(delta)) => delta.len(),
        Ok(ChatEvent::Done(_)) | Err(_) => 0,
    };
    let events = read_ahead(events, size, &gateway.answers).map(|event| match event {
        Ok(ChatEvent::Delta(delta)) => Event::default().json_data(json!({"delta": delta})),
        Ok(ChatEvent::Done(reply)) => Event::default().json_data(ChatResponse::from(reply)),
        Err(error) => Event::default().json_data(error),
    });
    Ok(Sse::new(events).into_response())
}
