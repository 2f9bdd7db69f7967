//! What reads jobs.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::request::Parts;

use super::events::{self, JobEvent};
use super::owner::viewer;
use super::query::Query;
use super::results::{self, ResultQuery, ResultReader};
use super::status::{JobList, JobStatus};
use crate::api::error::ApiError;
use crate::api::openapi::{JobErrors, ListJobsErrors};
use crate::api::path::Names;
use crate::gateway::Gateway;

/// How many jobs a page of the list has by default, and at most.
const PAGE: u64 = 20;
const MAX_PAGE: u64 = 100;

/// List jobs, newest first. The admin key lists all, a key of one's own those that it pays for.
#[utoipa::path(
    get,
    path = "/jobs",
    tag = "jobs",
    params(
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 100,
            description = "How many jobs a page has; otherwise 20"),
        ("after" = Option<String>, Query, description = "The last job of the page before, as `next` names it")
    ),
    responses((status = OK, description = "The jobs", body = JobList), ListJobsErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn list_jobs(
    State(gateway): State<Gateway>,
    head: Parts,
) -> Result<Json<JobList>, ApiError> {
    let viewer = viewer(&head, &gateway)?;
    let query = Query::read(head.uri.query(), &["limit", "after"])?;
    let limit = query.number("limit", MAX_PAGE)?.unwrap_or(PAGE).max(1);
    let before = match query.get("after") {
        Some(id) => Some(viewer.job(id, &gateway).await?.number),
        None => None,
    };
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let mut jobs = gateway.jobs.store().jobs(viewer.listed()?, before, limit + 1).await?;
    let has_more = jobs.len() > limit as usize;
    jobs.truncate(limit as usize);
    let next = jobs.last().filter(|_| has_more).map(|job| job.id.to_string());
    let jobs = jobs.iter().map(|job| JobStatus::of(job, &gateway)).collect();
    Ok(Json(JobList { jobs, next }))
}

/// See how far a job is.
#[utoipa::path(
    get,
    path = "/jobs/{job_id}",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses((status = OK, description = "The job", body = JobStatus), JobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn show_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    Ok(Json(JobStatus::of(&job, &gateway)))
}

/// Follow a job: an event at each change, at most two a second, and one at its end.
#[utoipa::path(
    get,
    path = "/jobs/{job_id}/events",
    tag = "jobs",
    params(("job_id" = String, Path, description = "The id of the job", example = "{job_id}")),
    responses(
        (status = OK, description = "The progress of the job", content(
            (JobEvent = "text/event-stream", example = json!(events::EXAMPLE))
        )),
        JobErrors
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn job_events(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Response, ApiError> {
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    Ok(events::stream(job, gateway))
}

/// Read the results of a job, one a line: those that are there, or with `follow` all until the job has
/// ended.
#[utoipa::path(
    get,
    path = "/jobs/{job_id}/results",
    tag = "jobs",
    params(
        ("job_id" = String, Path, description = "The id of the job", example = "{job_id}"),
        ("order" = Option<String>, Query,
            description = "`input` (default): in the order of the items; `completion`: in the order in which they ended"),
        ("after" = Option<u64>, Query,
            description = "Where reading begins: in input order the index of the first result, in the order of completion the `position` of the result before it"),
        ("follow" = Option<bool>, Query, description = "Whether the answer goes on until the job has ended"),
        ("only" = Option<String>, Query, description = "`failed`: only the results of failed items")
    ),
    responses(
        (status = OK, description = "The results, in the format of the batch's results for the gateway's \
                                     own kinds, and in that of Gemini's or OpenAI's batch output for theirs",
            content((String = "application/x-ndjson"))),
        JobErrors
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(in crate::api) async fn job_results(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Response, ApiError> {
    let viewer = viewer(&head, &gateway)?;
    let query = ResultQuery::read(head.uri.query())?;
    let job = viewer.job(&id, &gateway).await?;
    Ok(results::lines(ResultReader::of(&job, query, &gateway)))
}
