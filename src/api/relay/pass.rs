//! Requests that cost nothing: they pass at once, of whatever size.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Method;
use http::request::Parts;
use http_body_util::Full;
use hyper::body::Body as _;
use tower_http::timeout::TimeoutBody;

use super::NotRelayed;
use super::counted::check_type;
use super::headers::{forward, public_url, redirect_uploads, strip_answer};
use super::upload;
use crate::api::auth::{Caller, Payer, Tier};
use crate::api::destination::Destination;
use crate::api::error::ApiError;
use crate::dispatch::{ClientFault, Sending, Unanswered};
use crate::gateway::Gateway;
use crate::gemini::Payload;

/// Where OpenAI's clients send files, as forms.
const OPENAI_FILES: &str = "/v1beta/openai/files";

/// Passes a request on, and its answer back.
pub(super) async fn pass(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    destination: Destination,
) -> Result<Response, NotRelayed> {
    let config = &gateway.config;
    let payer = payer(gateway, &head, &destination)?;
    let public_url = public_url(&head);
    let tier = payer.as_ref().map(|payer| payer.tier);
    let takes_json = head.method == Method::POST && !takes_any_type(&destination.path);
    if takes_json && tier == Some(Tier::Fallback) {
        check_type(&head.headers, &body)?;
    }
    let request = forward(gateway, destination.surface, head, &destination.path, tier)?;
    let (payload, mut sending) = sending(body, config.client_timeout);
    let key = payer.as_ref().map(|payer| &payer.key);
    let passed = gateway.dispatcher.pass(&request, key, payload, &mut sending).await;
    let response = passed.map_err(|unanswered| match sending.fault() {
        Some(ClientFault::TooSlow) => ApiError::body_too_slow(config.client_timeout).into(),
        Some(ClientFault::Broken) => ApiError::body_broken().into(),
        None => failed(unanswered),
    })?;
    let mut response =
        response.map(|body| Body::new(TimeoutBody::new(config.stream_idle_timeout, body)));
    strip_answer(response.headers_mut());
    if let Some(public_url) = public_url {
        redirect_uploads(gateway, response.headers_mut(), &public_url);
    }
    Ok(response)
}

/// Why Gemini gave no answer to pass on. What lies behind it is told to the log.
fn failed(unanswered: Unanswered) -> NotRelayed {
    let cause = unanswered.failure.cause();
    let failed = NotRelayed::from(unanswered);
    if cause.is_some() {
        tracing::warn!(code = failed.error.code(), cause, "the call failed");
    }
    failed
}

/// Whether what is sent to a path may be something else than JSON: a file, or a form with one.
fn takes_any_type(path: &str) -> bool {
    path.starts_with("/upload/") || path == OPENAI_FILES
}

/// What is sent of a body, each piece of which may be waited for so long, and how far it is.
fn sending(body: Body, client_timeout: Duration) -> (Payload, Sending) {
    if body.is_end_stream() {
        return (Payload::Whole(Full::default()), Sending::nothing());
    }
    let (body, sending) = Sending::of(TimeoutBody::new(client_timeout, body));
    (Payload::Passing(body), sending)
}

/// The key that pays. An upload that began here goes on without one: its URL is its proof.
fn payer(
    gateway: &Gateway,
    head: &Parts,
    destination: &Destination,
) -> Result<Option<Payer>, ApiError> {
    let (path, query) = (&destination.path, head.uri.query().unwrap_or_default());
    let caller = Caller::of(&head.headers, Some(query), gateway);
    if caller.brings_key() || !upload::goes_on(path, query) {
        return caller.relayed(destination.purpose, gateway).map(Some);
    }
    if upload::is_signed(&gateway.config, path, query, jiff::Timestamp::now()) {
        Ok(None)
    } else {
        Err(ApiError::unknown_upload())
    }
}
