//! What changes jobs.

use axum::Json;
use axum::extract::State;
use http::request::Parts;
use http::{HeaderMap, StatusCode, Uri};
use serde::Deserialize;
use utoipa::ToSchema;

use super::apply;
use super::owner::{Viewer, viewer};
use super::query::Query;
use super::status::JobStatus;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::json::JsonBody;
use crate::api::openapi::{ChangeJobErrors, JobErrors};
use crate::api::path::Names;
use crate::gateway::Gateway;
use crate::jobs::FailuresToRetry;

/// Which failed items are sent again.
#[derive(Debug, Default, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Which {
    /// Those that may succeed later.
    #[default]
    Retryable,
    /// All.
    All,
}

/// Which failed items are sent again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"which": "retryable"}))]
pub(in crate::api) struct RetryRequest {
    /// `retryable`: those that may succeed later; `all`: all of them.
    #[serde(default)]
    #[schema(value_type = String, default = "retryable", pattern = "^(retryable|all)$")]
    which: Which,
}

/// Pause a job: nothing more is sent until it is resumed. Calls in flight end, and their results are kept.
#[utoipa::path(
    post,
    path = "/jobs/{job_id}/pause",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses((status = OK, description = "The job", body = JobStatus), ChangeJobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn pause_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = apply::pause(&viewer(&head, &gateway)?, &id, &gateway).await?;
    Ok(Json(JobStatus::of(&job, &gateway)))
}

/// Resume a job. One that waits for its owner's key goes on if the request has this key.
#[utoipa::path(
    post,
    path = "/jobs/{job_id}/resume",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses((status = OK, description = "The job", body = JobStatus), ChangeJobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn resume_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = apply::resume(&viewer(&head, &gateway)?, &id, &gateway).await?;
    Ok(Json(JobStatus::of(&job, &gateway)))
}

/// Cancel a job: items without a result get none. Results that are there can still be read.
#[utoipa::path(
    post,
    path = "/jobs/{job_id}/cancel",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses((status = OK, description = "The job", body = JobStatus), ChangeJobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn cancel_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = apply::cancel(&viewer(&head, &gateway)?, &id, &gateway).await?;
    Ok(Json(JobStatus::of(&job, &gateway)))
}

/// Send the failed items of a job that has ended again: those that may succeed later, or all. A
/// cancelled job also goes on with the items that have no result.
#[utoipa::path(
    post,
    path = "/jobs/{job_id}/retry",
    tag = "jobs",
    params(
        ("job_id" = String, Path, description = "The id of the job", example = "{job_id}"),
        ("failed" = Option<String>, Query, description = "`retryable` or `all`, instead of a body")
    ),
    request_body(content = Option<RetryRequest>, example = json!({"which": "retryable"})),
    responses((status = OK, description = "The job", body = JobStatus), ChangeJobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn retry_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Option<JsonBody<RetryRequest>>,
) -> Result<Json<JobStatus>, ApiError> {
    let viewer = Viewer::of(&Caller::of(&headers, uri.query(), &gateway), &gateway)?;
    let query = Query::read(uri.query(), &["failed"])?;
    let all = query.is_second("failed", ["retryable", "all"])?;
    let which = body.unwrap_or_default().0.which;
    let which = match which {
        Which::Retryable if !all => FailuresToRetry::Retryable,
        Which::Retryable | Which::All => FailuresToRetry::All,
    };
    let job = apply::retry(&viewer, &id, which, &gateway).await?;
    Ok(Json(JobStatus::of(&job, &gateway)))
}

/// Delete a job. Nothing more is sent, and its prompts and answers are removed from the disk.
#[utoipa::path(
    delete,
    path = "/jobs/{job_id}",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses((status = NO_CONTENT, description = "The job was deleted"), JobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn delete_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<StatusCode, ApiError> {
    apply::delete(&viewer(&head, &gateway)?, &id, &gateway).await?;
    Ok(StatusCode::NO_CONTENT)
}
