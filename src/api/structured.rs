//! `POST /structured-output` and `POST /batch/structured-output`.

use axum::Json;
use axum::extract::State;

use super::batch::{BatchRequest, BatchResponse, many};
use super::body::Asked;
use super::error::ApiError;
use super::openapi::{ExternalSemaphore, Failures};
use super::single::one;
use crate::gateway::Gateway;
use crate::generation::structured::{Structured, StructuredRequest, StructuredResponse};

/// JSON that fits a schema.
#[utoipa::path(
    post,
    path = "/structured-output",
    tag = "generation",
    request_body = StructuredRequest,
    responses((status = OK, description = "What was asked for", body = StructuredResponse), Failures),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn structured(
    State(gateway): State<Gateway>,
    asked: Asked<StructuredRequest>,
) -> Result<Json<StructuredResponse>, ApiError> {
    one::<Structured>(&gateway, asked).await
}

/// Many structured outputs: each in its place.
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
        (status = OK, description = "What came of each", body = BatchResponse<StructuredResponse>),
        Failures
    ),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_structured(
    State(gateway): State<Gateway>,
    asked: Asked<BatchRequest<StructuredRequest>>,
) -> Result<Json<BatchResponse<StructuredResponse>>, ApiError> {
    many::<Structured>(&gateway, asked).await
}
