//! `/_admin/semaphores`: the limits that several services share. For the administrator.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::openapi::{AdminFailures, BodyFailures};
use super::path::Names;
use super::whole_number::whole_number;
use crate::gateway::Gateway;
use crate::generation::InvalidField;
use crate::limits::{InvalidSemaphore, Semaphore, SemaphoreId, SemaphoreUsage, parse_limit};

/// The semaphores there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SemaphoreList {
    /// How many.
    count: usize,
    semaphores: Vec<SemaphoreStatus>,
}

/// A semaphore at one moment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct SemaphoreStatus {
    /// Its name.
    #[schema(value_type = String, example = "image-service")]
    semaphore_id: SemaphoreId,
    /// How many permits it has: each call holds one, a lease one or several.
    #[schema(minimum = 1, maximum = 1000)]
    limit: usize,
    /// How many of them could be taken now.
    available: usize,
    /// How many are held.
    in_use: usize,
    /// How many calls and leases wait for it.
    waiting: usize,
}

/// Registers a semaphore, or changes the limit of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"semaphore_id": "image-service", "limit": 5}))]
pub(super) struct SemaphoreRequest {
    /// Its name: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    semaphore_id: String,
    /// How many permits it has, for calls and leases together: 1 to 1000.
    #[serde(deserialize_with = "whole_number")]
    #[schema(value_type = usize, minimum = 1, maximum = 1000)]
    limit: i64,
}

impl SemaphoreStatus {
    pub(super) fn of(semaphore_id: SemaphoreId, semaphore: &dyn Semaphore) -> Self {
        let usage = semaphore.usage();
        let SemaphoreUsage { limit, in_use, waiting } = usage;
        Self { semaphore_id, limit, available: usage.available(), in_use, waiting }
    }
}

/// All semaphores, in the order of their names.
#[utoipa::path(
    get,
    path = "/_admin/semaphores",
    tag = "semaphores",
    responses((status = OK, description = "The semaphores", body = SemaphoreList), AdminFailures),
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

/// Registers a semaphore, or changes the limit of the one of that name: at once, also while
/// requests hold it.
#[utoipa::path(
    post,
    path = "/_admin/semaphores",
    tag = "semaphores",
    request_body = SemaphoreRequest,
    responses(
        (status = CREATED, description = "There is a new semaphore", body = SemaphoreStatus),
        (status = OK, description = "The semaphore has the new limit", body = SemaphoreStatus),
        (status = 422, description = "The name or the limit cannot be used", body = ErrorBody),
        BodyFailures,
        AdminFailures
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn register_semaphore(
    _: Admin,
    State(gateway): State<Gateway>,
    JsonBody(request): JsonBody<SemaphoreRequest>,
) -> Result<(StatusCode, Json<SemaphoreStatus>), ApiError> {
    let id = SemaphoreId::parse(&request.semaphore_id).map_err(invalid)?;
    let limit = parse_limit(request.limit).map_err(invalid)?;
    let (semaphore, new) = gateway.limiter.store().register(id.clone(), limit).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(SemaphoreStatus::of(id, &*semaphore))))
}

/// Deletes a semaphore. Requests and leases that wait for it fail; those that hold it finish.
#[utoipa::path(
    delete,
    path = "/_admin/semaphores/{semaphore_id}",
    tag = "semaphores",
    params(("semaphore_id" = String, Path, description = "Its name", example = "image-service")),
    responses(
        (status = NO_CONTENT, description = "It is gone"),
        (status = 404, description = "There is none of that name", body = ErrorBody),
        AdminFailures
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn delete_semaphore(
    _: Admin,
    State(gateway): State<Gateway>,
    Names(semaphore_id): Names<String>,
) -> Result<StatusCode, ApiError> {
    let deleted = match SemaphoreId::parse(&semaphore_id) {
        Ok(id) => gateway.limiter.store().delete(&id).await?,
        Err(_) => false,
    };
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::unknown_semaphore(&semaphore_id))
    }
}

/// The semaphore of a name.
///
/// # Errors
/// 404 where there is none.
pub(super) async fn registered(
    gateway: &Gateway,
    id: &str,
) -> Result<(SemaphoreId, Arc<dyn Semaphore>), ApiError> {
    let unknown = || ApiError::unknown_semaphore(id);
    let id = SemaphoreId::parse(id).map_err(|_| unknown())?;
    let semaphore = gateway.limiter.store().find(&id).await?.ok_or_else(unknown)?;
    Ok((id, semaphore))
}

fn invalid(fault: InvalidSemaphore) -> ApiError {
    let (field, kind) = match fault {
        InvalidSemaphore::Id => ("semaphore_id", "semaphore_id"),
        InvalidSemaphore::Limit => ("limit", "out_of_range"),
    };
    ApiError::invalid(vec![InvalidField::new(field, kind, fault.to_string())])
}
