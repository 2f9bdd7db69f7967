//! `POST /jobs`, and batches that become jobs.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, StatusCode};
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::options::{self, JobBatch, JobOptions};
use super::owner::{change, owner};
use super::query::Query;
use super::status::JobStatus;
use super::storing::Storing;
use super::upload::{self, Form, Uploader};
use crate::api::auth::Caller;
use crate::api::batch::check_length;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::openapi::{BeginJobErrors, ExternalSemaphore};
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::generation::InvalidField;
use crate::jobs::{Change, Committed, Job, Owner, PauseReason};

/// The header that makes a request safe to send again.
pub(in crate::api) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest idempotency key, in bytes.
const MAX_KEY: usize = 256;

/// The parameters of `POST /jobs`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(in crate::api) struct JobParameters {
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
pub(in crate::api) struct IdempotencyKey {
    /// 1 to 256 visible characters. The same key with the same content is the same job; with another
    /// content it is an error.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// A job that was accepted.
#[derive(Debug)]
pub(in crate::api) struct Accepted {
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
pub(in crate::api) async fn begin_job(
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
pub(in crate::api) async fn begin_batch(
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
pub(in crate::api) async fn resume_failing(job: Job, gateway: &Gateway) -> Result<Job, ApiError> {
    match job.reason {
        Some(PauseReason::Failing(_)) => change(job.number, Change::Resume, gateway).await,
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

/// Accepts a job whose items are all stored, even if the client hangs up meanwhile.
async fn accept(gateway: &Gateway, storing: Storing) -> Result<Accepted, ApiError> {
    let gateway = gateway.clone();
    let accepted = tokio::spawn(async move {
        let (mut job, is_known) = match storing.commit().await? {
            Committed::New(job) => (*job, false),
            Committed::Same(job) => (*job, true),
            Committed::Conflict => return Err(ApiError::idempotency_conflict()),
        };
        if job.reason == Some(PauseReason::KeyNeeded) {
            // Its owner's key is there again.
            job = change(job.number, Change::Resume, &gateway).await?;
        }
        gateway.jobs.wake(job.number);
        Ok(Accepted { job, is_known })
    });
    accepted.await.map_err(|_| ApiError::internal())?
}

impl Accepted {
    /// 202 for a new job, and 200 for one that was accepted before.
    fn answer(&self, gateway: &Gateway) -> Response {
        let status = if self.is_known { StatusCode::OK } else { StatusCode::ACCEPTED };
        self.answer_with(status, gateway)
    }

    /// The job, with its path.
    pub(in crate::api) fn answer_with(&self, status: StatusCode, gateway: &Gateway) -> Response {
        let path = [(LOCATION, format!("/jobs/{}", self.job.id))];
        (status, path, Json(JobStatus::of(&self.job, gateway))).into_response()
    }
}
