//! What changes jobs.

use axum::Json;
use axum::extract::State;
use http::request::Parts;
use http::{HeaderMap, StatusCode, Uri};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::owner::{Viewer, change, viewer};
use super::query::Query;
use super::status::JobStatus;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::json::JsonBody;
use crate::api::openapi::{ChangeJobErrors, JobErrors};
use crate::api::path::Names;
use crate::gateway::Gateway;
use crate::jobs::{Change, FailuresToRetry, Job, JobState, Owner, PauseReason};

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
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    let job = change(job.number, Change::Pause(PauseReason::Requested), &gateway).await?;
    changed(&job, |state| state == JobState::Paused, "paused", &gateway)
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
    let viewer = viewer(&head, &gateway)?;
    let job = viewer.job(&id, &gateway).await?;
    if matches!((&viewer, &job.owner), (Viewer::Admin, Owner::Key(_))) && is_keyless(&job, &gateway)
    {
        let detail = "The job waits for its owner's key: its owner has to resume it with that key.";
        return Err(ApiError::job_state_conflict(detail.to_owned()));
    }
    viewer.brings_key(&job, &gateway);
    let job = change(job.number, Change::Resume, &gateway).await?;
    forget_unneeded(&job, &gateway);
    let is_resumed = |state| matches!(state, JobState::Queued | JobState::Running);
    changed(&job, is_resumed, "resumed", &gateway)
}

/// Whether no process has the key of a job's owner, as far as that is known here.
fn is_keyless(job: &Job, gateway: &Gateway) -> bool {
    let jobs = &gateway.jobs;
    let is_alone = !jobs.store().is_shared();
    job.reason == Some(PauseReason::KeyNeeded) || (is_alone && jobs.key_of(job.number).is_none())
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
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    let job = change(job.number, Change::Cancel, &gateway).await?;
    changed(&job, |state| state == JobState::Cancelled, "cancelled", &gateway)
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
    let which = if all { Which::All } else { which };
    let job = viewer.job(&id, &gateway).await?;
    if !job.state.has_ended() {
        return Err(conflict(&job, "retried"));
    }
    viewer.brings_key(&job, &gateway);
    let which = match which {
        Which::Retryable => FailuresToRetry::Retryable,
        Which::All => FailuresToRetry::All,
    };
    let retried = gateway.jobs.store().retry(job.number, which, Timestamp::now()).await?;
    gateway.jobs.wake(job.number);
    let job = retried.ok_or_else(ApiError::unknown_job)?;
    forget_unneeded(&job, &gateway);
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
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    let deleted = gateway.jobs.store().delete(job.number);
    deleted.await?;
    gateway.jobs.wake(job.number);
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets the key of a job that has ended.
fn forget_unneeded(job: &Job, gateway: &Gateway) {
    if job.state.has_ended() {
        gateway.jobs.forget_key(job.number);
    }
}

/// A job after a change.
///
/// # Errors
/// 409 if the change did not apply.
fn changed(
    job: &Job,
    is: impl Fn(JobState) -> bool,
    what: &str,
    gateway: &Gateway,
) -> Result<Json<JobStatus>, ApiError> {
    match is(job.state) {
        true => Ok(Json(JobStatus::of(job, gateway))),
        false => Err(conflict(job, what)),
    }
}

fn conflict(job: &Job, what: &str) -> ApiError {
    let state = match job.state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Completed => "completed",
        JobState::Cancelled => "cancelled",
    };
    ApiError::job_state_conflict(format!("The job is {state}: it cannot be {what}."))
}
