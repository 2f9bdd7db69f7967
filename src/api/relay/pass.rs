//! Requests that cost nothing: they are passed on at once, whatever their size.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Method;
use http::request::Parts;
use http_body_util::Full;
use hyper::body::Body as _;
use tower_http::timeout::TimeoutBody;

use super::RelayError;
use super::counted::check_type;
use super::headers::{forward, public_url, redirect_uploads, strip_answer};
use super::upload;
use crate::api::auth::{Caller, Payer, Tier};
use crate::api::destination::Destination;
use crate::api::error::ApiError;
use crate::dispatch::{CallError, ClientFault, UploadProgress};
use crate::gateway::Gateway;
use crate::gemini::Payload;

/// The path to which OpenAI's clients upload files, as forms.
const OPENAI_FILES: &str = "/v1beta/openai/files";

/// Passes a request on, and its answer back.
pub(super) async fn pass(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    destination: Destination,
) -> Result<Response, RelayError> {
    let config = &gateway.config;
    let payer = payer(gateway, &head, &destination)?;
    let public_url = public_url(&head);
    let tier = payer.as_ref().map(|payer| payer.tier);
    let takes_json = head.method == Method::POST && !takes_any_type(&destination.path);
    if takes_json && tier == Some(Tier::Fallback) {
        check_type(&head.headers, &body)?;
    }
    let request = forward(gateway, destination.surface, head, &destination.path, tier)?;
    let (payload, mut progress) = watched(body, config.client_timeout);
    let key = payer.as_ref().map(|payer| &payer.key);
    let passed = gateway.dispatcher.pass(&request, key, payload, &mut progress).await;
    let response = passed.map_err(|error| match progress.fault() {
        Some(ClientFault::TooSlow) => ApiError::body_too_slow(config.client_timeout).into(),
        Some(ClientFault::Broken) => ApiError::body_broken().into(),
        None => failed(error),
    })?;
    let mut response =
        response.map(|body| Body::new(TimeoutBody::new(config.stream_idle_timeout, body)));
    strip_answer(response.headers_mut());
    if let Some(public_url) = public_url {
        redirect_uploads(gateway, response.headers_mut(), &public_url);
    }
    Ok(response)
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
    if caller.brings_key() || !upload::continues(path, query) {
        return caller.relayed(destination.purpose, gateway).map(Some);
    }
    if upload::is_signed(&gateway.config, path, query, jiff::Timestamp::now()) {
        Ok(None)
    } else {
        Err(ApiError::unknown_upload())
    }
}
