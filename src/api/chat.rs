//! `POST /chat` and `POST /batch/chat`.

use axum::Json;
use axum::extract::State;

use super::batch::{BatchRequest, BatchResponse, many};
use super::body::Asked;
use super::error::ApiError;
use super::openapi::Failures;
use super::single::one;
use crate::gateway::Gateway;
use crate::generation::chat::{Chat, ChatRequest, ChatResponse};

/// A text for a text.
#[utoipa::path(
    post,
    path = "/chat",
    tag = "generation",
    request_body = ChatRequest,
    responses((status = OK, description = "What was asked for", body = ChatResponse), Failures),
    security((), ("AdminKey" = []))
)]
pub(super) async fn chat(
    State(gateway): State<Gateway>,
    asked: Asked<ChatRequest>,
) -> Result<Json<ChatResponse>, ApiError> {
    one::<Chat>(&gateway, asked).await
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
    responses(
        (status = OK, description = "What came of each", body = BatchResponse<ChatResponse>),
        Failures
    ),
    security((), ("AdminKey" = []))
)]
pub(super) async fn batch_chat(
    State(gateway): State<Gateway>,
    asked: Asked<BatchRequest<ChatRequest>>,
) -> Result<Json<BatchResponse<ChatResponse>>, ApiError> {
    many::<Chat>(&gateway, asked).await
}
