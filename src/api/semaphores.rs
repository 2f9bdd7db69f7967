//! `/_admin/semaphores`: concurrency limits that several services share.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::error::ApiError;
use super::json::JsonBody;
use super::openapi::{AdminErrors, RegisterSemaphoreErrors, SemaphoreErrors};
use super::path::Names;
use super::semaphore_status::SemaphoreStatus;
use super::whole_number::whole_number;
use crate::gateway::Gateway;
use crate::generation::InvalidField;
use crate::limits::{InvalidSemaphore, Semaphore, SemaphoreId, parse_limit};

/// All semaphores.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SemaphoreList {
    /// How many semaphores there are.
    count: usize,
    semaphores: Vec<SemaphoreStatus>,
}

/// A semaphore to register, or a new limit for one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"semaphore_id": "image-service", "limit": 5}))]
pub(super) struct SemaphoreRequest {
    /// The name of the semaphore: 1 to 128 of `A-Z a-z 0-9 . _ : -`, but not `.` or `..`.
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    semaphore_id: String,
    /// How many permits it has, for calls and leases together: 1 to 1000.
    #[serde(deserialize_with = "whole_number")]
    #[schema(value_type = usize, minimum = 1, maximum = 1000)]
    limit: i64,
}

/// List all semaphores, by name.
#[utoipa::path(
    get,
    path = "/_admin/semaphores",
    tag = "semaphores",
    responses((status = OK, description = "The semaphores", body = SemaphoreList), AdminErrors),
    security(("AdminKey" = []))
)]
pub(super) async fn list_semaphores(
    _: Admin,
    State(gateway): State<Gateway>,
) -> Result<Json<SemaphoreList>, ApiError> {
    let store = gateway.limiter.store();
    store.refresh().await?;
    let all = store.named().into_iter();
    let semaphores: Vec<_> = all.map(|(id, own)| SemaphoreStatus::of(id, &*own)).collect();
    Ok(Json(SemaphoreList { count: semaphores.len(), semaphores }))
}

/// Register a semaphore, or change the limit of an existing one. A new limit takes effect at once, even
/// while requests hold the semaphore.
#[utoipa::path(
    post,
    path = "/_admin/semaphores",
    tag = "semaphores",
    request_body = SemaphoreRequest,
    responses(
        (status = CREATED, description = "The semaphore was registered", body = SemaphoreStatus),
        (status = OK, description = "The semaphore has the new limit", body = SemaphoreStatus),
        RegisterSemaphoreErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn register_semaphore(
    _: Admin,
    State(gateway): State<Gateway>,
    JsonBody(request): JsonBody<SemaphoreRequest>,
) -> Result<(StatusCode, Json<SemaphoreStatus>), ApiError> {
    let (id, semaphore, new) = register(&gateway, &request.semaphore_id, request.limit).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(SemaphoreStatus::of(id, &*semaphore))))
}

/// Delete a semaphore. Requests and leases that wait for it fail; those that hold it are not affected.
#[utoipa::path(
    delete,
    path = "/_admin/semaphores/{semaphore_id}",
    tag = "semaphores",
    params(("semaphore_id" = String, Path, description = "The name of the semaphore", example = "image-service")),
    responses(
        (status = NO_CONTENT, description = "The semaphore was deleted"),
        SemaphoreErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn delete_semaphore(
    _: Admin,
    State(gateway): State<Gateway>,
    Names(semaphore_id): Names<String>,
) -> Result<StatusCode, ApiError> {
    unregister(&gateway, &semaphore_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Registers a semaphore, or changes the limit of an existing one. Also returns whether it is new.
///
/// # Errors
/// 422 for an invalid name or limit; 503 if the limits are shared and cannot be reached.
pub(crate) async fn register(
    gateway: &Gateway,
    id: &str,
    limit: i64,
) -> Result<(SemaphoreId, Arc<dyn Semaphore>, bool), ApiError> {
    let id = SemaphoreId::parse(id).map_err(invalid)?;
    let limit = parse_limit(limit).map_err(invalid)?;
    let (semaphore, new) = gateway.limiter.store().register(id.clone(), limit).await?;
    Ok((id, semaphore, new))
}

/// Deletes a semaphore.
///
/// # Errors
/// 404 if it is not registered; 503 if the limits are shared and cannot be reached.
pub(crate) async fn unregister(gateway: &Gateway, id: &str) -> Result<(), ApiError> {
    let deleted = match SemaphoreId::parse(id) {
        Ok(id) => gateway.limiter.store().delete(&id).await?,
        Err(_) => false,
    };
    if deleted { Ok(()) } else { Err(ApiError::unknown_semaphore(id)) }
}

/// The semaphore with this name.
///
/// # Errors
/// 404 if it is not registered.
pub(crate) async fn registered(
    gateway: &Gateway,
    id: &str,
) -> Result<(SemaphoreId, Arc<dyn Semaphore>), ApiError> {
    let unknown = || ApiError::unknown_semaphore(id);
    let id = SemaphoreId::parse(id).map_err(|_| unknown())?;
    let semaphore = gateway.limiter.store().find(&id).await?.ok_or_else(unknown)?;
    Ok((id, semaphore))
}

fn invalid(error: InvalidSemaphore) -> ApiError {
    let (field, kind) = match error {
        InvalidSemaphore::Id => ("semaphore_id", "semaphore_id"),
        InvalidSemaphore::Limit => ("limit", "out_of_range"),
    };
    ApiError::invalid(vec![InvalidField::new(field, kind, error.to_string())])
}
