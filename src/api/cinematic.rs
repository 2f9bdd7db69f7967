//! `POST /cinematic-story-design` and `POST /batch/cinematic-story-design`.

use axum::Json;
use axum::extract::State;

use super::batch::{BatchRequest, BatchResponse, many};
use super::body::Asked;
use super::error::ApiError;
use super::openapi::{ExternalSemaphore, Failures};
use super::single::one;
use crate::gateway::Gateway;
use crate::generation::cinematic::{Cinematic, StoryRequest, StoryResponse};

/// A story for the screen, with characters, chapters and scenes.
#[utoipa::path(
    post,
    path = "/cinematic-story-design",
    tag = "generation",
    request_body = StoryRequest,
    responses((status = OK, description = "What was asked for", body = StoryResponse), Failures),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn cinematic(
    State(gateway): State<Gateway>,
    asked: Asked<StoryRequest>,
) -> Result<Json<StoryResponse>, ApiError> {
    one::<Cinematic>(&gateway, asked).await
}

/// Many stories: each in its place.
#[utoipa::path(
    post,
    path = "/batch/cinematic-story-design",
    tag = "generation",
    request_body(
        content = BatchRequest<StoryRequest>,
        example = json!({"requests": [
            {
                "user_content": "A lighthouse keeper's daughter befriends a storm.",
                "system_prompt": "Design a story for children in five scenes.",
                "voice_id_list": ["voice-amber", "voice-basil"]
            },
            {
                "user_content": "A clockmaker repairs the night.",
                "system_prompt": "Design a story for children in five scenes."
            }
        ]})
    ),
    responses(
        (status = OK, description = "What came of each", body = BatchResponse<StoryResponse>),
        Failures
    ),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_cinematic(
    State(gateway): State<Gateway>,
    asked: Asked<BatchRequest<StoryRequest>>,
) -> Result<Json<BatchResponse<StoryResponse>>, ApiError> {
    many::<Cinematic>(&gateway, asked).await
}
