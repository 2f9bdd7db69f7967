//! Requests that are passed on as they come, whatever their size: those that cost nothing, and files
//! that are embedded when they are uploaded.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use tokio::time::Instant;
use tower_http::timeout::TimeoutBody;

use super::RelayError;
use super::counted::check_type;
use super::headers::{forward, public_url, redirect_uploads, strip_answer};
use super::upload;
use crate::api::auth::{Caller, Payer, Tier, check_model};
use crate::api::destination::{CountedCall, Destination, JobStatus, ModelSource, continues_upload};
use crate::api::error::ApiError;
use crate::api::incoming::{observer, semaphore_id};
use crate::api::single::named_semaphore;
use crate::dispatch::{
    CallError, CallObserver, CallRequest, ClientFault, Observed, TierChoice, UploadProgress,
};
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Forward, InputFeatures, Payload};

/// The path to which OpenAI's clients upload files, as forms.
const OPENAI_FILES: &str = "/v1beta/openai/files";

/// Headers with the type and the size of a file that the next requests send. Source: recorded uploads.
const FILE_TYPE: HeaderName = HeaderName::from_static("x-goog-upload-header-content-type");
const FILE_SIZE: HeaderName = HeaderName::from_static("x-goog-upload-header-content-length");

/// Passes a request on, and its answer back. One that is counted goes through admission first.
pub(super) async fn pass(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    destination: Destination,
    counted: Option<CountedCall>,
) -> Result<Response, RelayError> {
    let config = &gateway.config;
    let payer = payer(gateway, &head, &destination)?;
    let public_url = public_url(&head);
    let tier = payer.as_ref().map(|payer| payer.tier);
    let takes_json = head.method == Method::POST && !takes_any_type(&destination.path);
    if takes_json && tier == Some(Tier::Fallback) {
        check_type(&head.headers, &body)?;
    }
    let (semaphore, observer) = (semaphore_id(&head.headers), observer(&head.extensions));
    let request = forward(gateway, destination.surface, head, &destination.path, tier)?;
    let key = payer.map(|payer| payer.key);
    let (watch, deleted_by) = match (&destination.jobs, &key) {
        (Some(JobStatus::Shown), Some(key)) => (gateway.dispatcher.job_watch(key), None),
        (Some(JobStatus::Deleted(_)), Some(key)) => (None, Some(key.clone())),
        _ => (None, None),
    };
    let (passed, progress) = match (counted, key) {
        (Some(counted), Some(key)) => {
            let file = File { counted, key, semaphore, observer };
            upload(gateway, file, &request, body).await?
        }
        (_, key) => {
            let (payload, mut progress) = watched(body, config.client_timeout);
            let passed = gateway.dispatcher.pass(&request, key.as_ref(), payload, &mut progress);
            (passed.await, progress)
        }
    };
    let response = passed.map_err(|error| match progress.fault() {
        Some(ClientFault::TooSlow) => ApiError::body_too_slow(config.client_timeout).into(),
        Some(ClientFault::Broken) => ApiError::body_broken().into(),
        None => failed(error),
    })?;
    if let (Some(JobStatus::Deleted(job)), Some(key)) = (&destination.jobs, &deleted_by) {
        gateway.dispatcher.job_ended(key, job).await;
    }
    let body = |body| Body::new(TimeoutBody::new(config.stream_idle_timeout, body));
    let mut response = response.map(|passed| match watch {
        Some(mut watch) => Body::new(body(passed).map_frame(move |frame| {
            frame.data_ref().inspect(|bytes| watch(bytes));
            frame
        })),
        None => body(passed),
    });
    strip_answer(response.headers_mut());
    if let Some(public_url) = public_url {
        redirect_uploads(gateway, response.headers_mut(), &public_url);
    }
    if destination.schedules_runs && response.status().is_success() {
        tracing::warn!(
            "a trigger was created: Google runs it by itself, and nothing counts its runs"
        );
    }
    Ok(response)
}

/// A counted call whose body is a file.
struct File {
    counted: CountedCall,
    key: ApiKey,
    /// The name of the semaphore that the call holds.
    semaphore: Option<String>,
    observer: Option<Arc<dyn CallObserver>>,
}

type Passed = Result<http::Response<Observed>, CallError>;

/// Passes on the file of a counted call once it is admitted. Nothing of it is read before.
async fn upload(
    gateway: &Gateway,
    File { counted, key, semaphore, observer }: File,
    request: &Forward,
    body: Body,
) -> Result<(Passed, UploadProgress), RelayError> {
    let CountedCall { kind, model: ModelSource::BodyOr { resource: model, .. }, .. } = counted
    else {
        return Err(ApiError::internal().into());
    };
    check_model(&model, gateway)?;
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let size = file_size(&request.headers).into();
    let deadline = Instant::now() + gateway.config.request_timeout;
    let tier = TierChoice::default();
    let call = CallRequest { kind, key, model, semaphore, size, tier, deadline, observer };
    let call = gateway.dispatcher.enqueue(call);
    let admitted = gateway.dispatcher.admit(&call).await.map_err(failed)?;
    let (payload, mut progress) = watched(body, gateway.config.client_timeout);
    let passed = gateway.dispatcher.upload(admitted, request, payload, &mut progress);
    Ok((passed.await, progress))
}

/// What a file costs to embed, as far as the headers of its upload tell.
fn file_size(headers: &HeaderMap) -> InputFeatures {
    let first = |names: [&HeaderName; 2]| {
        names.into_iter().find_map(|name| headers.get(name)?.to_str().ok())
    };
    let content_type = first([&FILE_TYPE, &CONTENT_TYPE]).unwrap_or_default();
    // The file in a form is taken for text, of which the fewest bytes make a token.
    let is_form = content_type.is_empty() || content_type.starts_with("multipart/");
    let content_type = if is_form { "text/plain" } else { content_type };
    let size = first([&FILE_SIZE, &CONTENT_LENGTH]).and_then(|size| size.trim().parse().ok());
    InputFeatures::of_file(content_type, size.unwrap_or_default())
}

/// The error to answer with. Its cause, if it has one, goes to the log only.
fn failed(error: CallError) -> RelayError {
    let cause = error.cause();
    let failed = RelayError::from(error);
    if cause.is_some() {
        tracing::warn!(code = failed.error.code(), cause, "the call failed");
    }
    failed
}

/// Whether a body sent to the path may be something other than JSON: a file, or a form with one.
fn takes_any_type(path: &str) -> bool {
    path.starts_with("/upload/") || path == OPENAI_FILES
}

/// The body to send, and its progress. The client may take `client_timeout` for each piece of it.
fn watched(body: Body, client_timeout: Duration) -> (Payload, UploadProgress) {
    if body.is_end_stream() {
        return (Payload::Buffered(Full::default()), UploadProgress::without_body());
    }
    let (body, progress) = UploadProgress::of(TimeoutBody::new(client_timeout, body));
    (Payload::Streaming(body), progress)
}

/// The key that is used. An upload that was begun through this gateway goes on without a key, at its
/// signed URL.
fn payer(
    gateway: &Gateway,
    head: &Parts,
    destination: &Destination,
) -> Result<Option<Payer>, ApiError> {
    let (path, query) = (&destination.path, head.uri.query().unwrap_or_default());
    let caller = Caller::of(&head.headers, Some(query), gateway);
    if caller.brings_key() || !continues_upload(path, query) {
        return caller.relayed(destination.purpose, gateway).map(Some);
    }
    if upload::is_signed(&gateway.config, path, query, jiff::Timestamp::now()) {
        Ok(None)
    } else {
        Err(ApiError::unknown_upload())
    }
}
