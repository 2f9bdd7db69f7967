//! `/jobs`: durable bulk work. A job is read and stored whole before it is accepted; its items are sent
//! in the background, and its results can be read while they come and afterwards.

mod events;
mod form;
mod format;
mod item;
mod lines;
mod object;
mod options;
mod owner;
mod pieces;
mod query;
mod results;
mod rules;
mod status;
mod storing;
mod upload;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::auth::Caller;
use super::batch::check_length;
use super::error::ApiError;
use super::json::{self, JsonBody};
use super::openapi::{
    BeginJobErrors, ChangeJobErrors, ExternalSemaphore, JobErrors, ListJobsErrors,
};
use super::path::Names;
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::generation::InvalidField;
use crate::jobs::{Change, Committed, FailuresToRetry, Job, JobState, Owner, PauseReason};
use events::JobEvent;
use owner::{Viewer, owner};
use query::Query;
use status::JobList;
use storing::Storing;
use upload::{Form, Uploader};

pub use format::item_format;
pub(super) use options::{JobBatch, JobOptions};
pub(super) use results::{NDJSON, ResultQuery, ResultReader, ResultsEnded, report};
pub(super) use status::JobStatus;

/// The header that makes a request safe to send again.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest idempotency key, in bytes.
const MAX_KEY: usize = 256;

/// How many jobs a page of the list has by default, and at most.
const PAGE: u64 = 20;
const MAX_PAGE: u64 = 100;

/// The parameters of `POST /jobs`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct JobParameters {
    /// `chat`, `structured-output`, `cinematic-story-design`, `gemini` or `openai`. Lines in Gemini's or
    /// OpenAI's form show it.
    kind: Option<String>,
    /// The model of the items that name none.
    model: Option<String>,
    /// A name for people: 1 to 256 characters.
    job_name: Option<String>,
    /// The semaphore of the items that name none; otherwise the header `X-External-Semaphore-Id` names
    /// it.
    external_semaphore_id: Option<String>,
    /// The service tier of the items that name none: `standard`, `flex` or `priority`.
    service_tier: Option<String>,
    /// With the service tier `flex`: after how many seconds an item that has not been served is sent in
    /// the standard tier instead.
    flex_fallback_seconds: Option<f64>,
    /// Where the end of the job is announced.
    webhook_url: Option<String>,
}

/// The header that makes a request safe to send again.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct IdempotencyKey {
    /// 1 to 256 visible characters. The same key with the same content is the same job; with another
    /// content it is an error.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

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
pub(super) struct RetryRequest {
    /// `retryable`: those that may succeed later; `all`: all of them.
    #[serde(default)]
    #[schema(value_type = String, default = "retryable", pattern = "^(retryable|all)$")]
    which: Which,
}

/// A job that was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub job: Job,
    /// Whether it was accepted before.
    pub is_known: bool,
}

/// Begin a job: many requests of one kind, in one body of any size. It is answered once all of them are
/// stored.
#[utoipa::path(
    post,
    path = "/jobs",
    tag = "jobs",
    params(JobParameters, ExternalSemaphore, IdempotencyKey),
    request_body(
        description = "JSON with a list of requests; or lines of JSON, one request each, of which the \
                       first may be `{\"job\": {…}}` with the options of the job; or a form whose last \
                       field is a file of such lines",
        content(
            (JobBatch = "application/json"),
            (String = "application/x-ndjson"),
            (String = "application/jsonl"),
            (String = "multipart/form-data")
        )
    ),
    responses(
        (status = ACCEPTED, description = "The job is stored", body = JobStatus,
            headers(("Location" = String, description = "The path of the job"))),
        (status = OK, description = "The job of the same `Idempotency-Key`", body = JobStatus,
            headers(("Location" = String, description = "The path of the job"))),
        BeginJobErrors
    ),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn begin_job(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = Query::read(request.uri().query(), options::PARAMETERS)?;
    let options = JobOptions::of_head(query, request.headers())?;
    let accepted = match Form::of(request.headers())? {
        Form::Json => begin_of_json(&gateway, options, request).await?,
        form => {
            let (head, body) = request.into_parts();
            let caller = Caller::of(&head.headers, head.uri.query(), &gateway);
            let (owner, key) = owner(&caller, None, &gateway)?;
            let uploader = uploader(owner, key, &head.headers)?;
            let storing =
                upload::read(&gateway, uploader, form, options, &head.headers, body).await?;
            accept(&gateway, storing).await?
        }
    };
    Ok(accepted.answer(&gateway))
}

/// Stores the requests of a JSON body as a job.
async fn begin_of_json(
    gateway: &Gateway,
    options: JobOptions,
    request: Request,
) -> Result<Accepted, ApiError> {
    let (headers, caller) = caller_of(gateway, &request)?;
    let (batch, _share) = json::read::<JobBatch>(request, gateway).await?;
    let (credentials, in_body, requests) = batch.into_parts();
    let (owner, key) = owner(&caller, credentials.as_ref(), gateway)?;
    let uploader = uploader(owner, key, &headers)?;
    let options = in_body.or(options);
    accept(gateway, upload::read_list(gateway, uploader, options, requests).await?).await
}

/// Stores a batch as a job.
///
/// # Errors
/// 409 if the idempotency key was used for another content; those of the body and of its items; those
/// of the store.
pub(super) async fn begin_batch(
    gateway: &Gateway,
    options: JobOptions,
    request: Request,
) -> Result<Accepted, ApiError> {
    let (headers, caller) = caller_of(gateway, &request)?;
    let (batch, _share) = json::read::<JobBatch>(request, gateway).await?;
    let (credentials, in_body, requests) = batch.into_parts();
    check_length(requests.len(), gateway)?;
    let (owner, key) = owner(&caller, credentials.as_ref(), gateway)?;
    let uploader = uploader(owner, key, &headers)?;
    // The path says of which kind the items are, and not the body.
    let kind = options.kind();
    let options = in_body.or(options).of_kind(kind);
    accept(gateway, upload::read_batch(gateway, uploader, options, requests).await?).await
}

/// The headers of a request, and who sends it. For the admin key, the server's key pays whatever the body
/// says; if there is none, the body is not read.
fn caller_of(gateway: &Gateway, request: &Request) -> Result<(HeaderMap, Caller), ApiError> {
    let headers = request.headers().clone();
    let caller = Caller::of(&headers, request.uri().query(), gateway);
    if caller.is_admin() {
        caller.payer(None, gateway)?;
    }
    Ok((headers, caller))
}

/// Lets a job go on that is paused because its items failed.
///
/// # Errors
/// Those of the store.
pub(super) async fn resume_failing(job: Job, gateway: &Gateway) -> Result<Job, ApiError> {
    match job.reason {
        Some(PauseReason::Failing(_)) => owner::change(job.number, Change::Resume, gateway).await,
        _ => Ok(job),
    }
}

fn uploader(owner: Owner, key: ApiKey, headers: &HeaderMap) -> Result<Uploader, ApiError> {
    let (payer, idempotency_key) = (*key.sha256(), idempotency_key(headers)?);
    let own_key = matches!(owner, Owner::Key(_)).then_some(key);
    Ok(Uploader { owner, payer, own_key, idempotency_key })
}

/// The SHA-256 of the idempotency key, if there is one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<[u8; 32]>, ApiError> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.as_bytes();
    let is_valid = (1..=MAX_KEY).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    if !is_valid || keys.next().is_some() {
        let message = format!("An idempotency key has 1 to {MAX_KEY} visible ASCII characters");
        let field = InvalidField::new("Idempotency-Key", "string_length", message);
        return Err(ApiError::invalid_in_header(field));
    }
    Ok(Some(Sha256::digest(key).into()))
}

/// Accepts a job whose items are all stored.
async fn accept(gateway: &Gateway, storing: Storing) -> Result<Accepted, ApiError> {
    let (mut job, is_known) = match storing.commit().await? {
        Committed::New(job) => (*job, false),
        Committed::Same(job) => (*job, true),
        Committed::Conflict => return Err(ApiError::idempotency_conflict()),
    };
    if job.reason == Some(PauseReason::KeyNeeded) {
        // Its owner's key is there again.
        job = owner::change(job.number, Change::Resume, gateway).await?;
    }
    gateway.jobs.wake(job.number);
    Ok(Accepted { job, is_known })
}

impl Accepted {
    /// 202 for a new job, and 200 for one that was accepted before.
    fn answer(&self, gateway: &Gateway) -> Response {
        let status = if self.is_known { StatusCode::OK } else { StatusCode::ACCEPTED };
        self.answer_with(status, gateway)
    }

    /// The job, with its path.
    pub(super) fn answer_with(&self, status: StatusCode, gateway: &Gateway) -> Response {
        let path = [(LOCATION, format!("/jobs/{}", self.job.id))];
        (status, path, Json(JobStatus::of(&self.job, gateway))).into_response()
    }
}

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
pub(super) async fn list_jobs(
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

fn viewer(head: &Parts, gateway: &Gateway) -> Result<Viewer, ApiError> {
    Viewer::of(&Caller::of(&head.headers, head.uri.query(), gateway), gateway)
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
pub(super) async fn show_job(
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
pub(super) async fn job_events(
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
pub(super) async fn job_results(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Response, ApiError> {
    let viewer = viewer(&head, &gateway)?;
    let query = ResultQuery::read(head.uri.query())?;
    let job = viewer.job(&id, &gateway).await?;
    Ok(results::lines(ResultReader::of(&job, query, &gateway)))
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
pub(super) async fn pause_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    let job = owner::change(job.number, Change::Pause(PauseReason::Requested), &gateway).await?;
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
pub(super) async fn resume_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let viewer = viewer(&head, &gateway)?;
    let job = viewer.job(&id, &gateway).await?;
    if job.reason == Some(PauseReason::KeyNeeded) && matches!(viewer, Viewer::Admin) {
        let detail = "The job waits for its owner's key: its owner has to resume it with that key.";
        return Err(ApiError::job_state_conflict(detail.to_owned()));
    }
    viewer.brings_key(&job, &gateway);
    let job = owner::change(job.number, Change::Resume, &gateway).await?;
    let is_resumed = |state| matches!(state, JobState::Queued | JobState::Running);
    changed(&job, is_resumed, "resumed", &gateway)
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
pub(super) async fn cancel_job(
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    head: Parts,
) -> Result<Json<JobStatus>, ApiError> {
    let job = viewer(&head, &gateway)?.job(&id, &gateway).await?;
    let job = owner::change(job.number, Change::Cancel, &gateway).await?;
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
    request_body = Option<RetryRequest>,
    responses((status = OK, description = "The job", body = JobStatus), ChangeJobErrors),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn retry_job(
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
pub(super) async fn delete_job(
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
