//! Calls that are counted: they go through admission, and the slots they hold are given back when
//! their answer has passed.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use tokio::time::Instant;

use super::NotRelayed;
use super::headers::{forward, strip_answer};
use crate::api::auth::{Caller, Tier, check_model};
use crate::api::body::{measured, read, semaphore_id, with_body};
use crate::api::browser::is_simple;
use crate::api::destination::{Counted, Destination, Target};
use crate::api::error::ApiError;
use crate::api::single::named_semaphore;
use crate::dispatch::{Call, Route, Unanswered};
use crate::gateway::Gateway;
use crate::gemini::{
    ApiKey, Forward, Model, Surface, embedding_requests, named_model, requested_images,
};
use crate::generation::InvalidField;
use crate::limits::Semaphore;

/// Sends a call through admission and passes its answer back. Who pays is known before the body is
/// read.
pub(super) async fn send(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    destination: Destination,
    counted: Counted,
) -> Result<Response, NotRelayed> {
    let Destination { surface, path, purpose, .. } = destination;
    let Counted { kind, target, apart, streams } = counted;
    let caller = Caller::of(&head.headers, head.uri.query(), gateway);
    let payer = caller.relayed(purpose, gateway)?;
    check_body(&head.headers, &body, payer.tier)?;
    let semaphore = semaphore_id(&head.headers);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let request = forward(gateway, surface, head, &path, Some(payer.tier))?;
    let body = read(&request.headers, body, gateway).await?;
    let deadline = Instant::now() + gateway.config.request_timeout;
    let input = measured(body.clone()).await?;
    let model = model(surface, target, &body).await?;
    check_model(&model, gateway)?;
    let requests = requests(kind, surface, body.clone()).await?;
    let images = images(&model, body.clone()).await?;
    let route = route(gateway, apart, payer.key, model, semaphore);
    let call = Call { kind, route, input, requests, images, deadline };
    let request = Forward { streams, ..request };
    answer(gateway, &call, request, body).await.map_err(|unanswered| failed(&call, unanswered))
}

/// Whether a body can be counted, and cannot come from a web page that spends the server's key
/// without having asked.
fn check_body(headers: &HeaderMap, body: &Body, tier: Tier) -> Result<(), ApiError> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::encoded_body());
    }
    if tier == Tier::Fallback { check_type(headers, body) } else { Ok(()) }
}

/// Refuses a body that a web page can send without having asked.
pub(super) fn check_type(headers: &HeaderMap, body: &Body) -> Result<(), ApiError> {
    if is_simple(headers) && !body.is_end_stream() { Err(ApiError::not_json()) } else { Ok(()) }
}

/// The model of a call, or what it is counted as.
async fn model(surface: Surface, target: Target, body: &Bytes) -> Result<Model, ApiError> {
    let resource = match target {
        Target::Path(model) => return Ok(model),
        Target::Body => None,
        Target::BodyOr(resource) => Some(resource),
    };
    let invalid =
        |kind, message: String| ApiError::invalid(vec![InvalidField::new("model", kind, message)]);
    let named = with_body(body.clone(), named_model).await?;
    let named = named.map_err(|repeated| invalid("duplicate", repeated.to_string()))?;
    match (named, resource) {
        (Some(name), _) if surface == Surface::OpenAi => {
            Model::parse(&name).map_err(|error| invalid("model_name", error.to_string()))
        }
        (Some(name), Some(resource)) => Ok(model_of(&name).unwrap_or(resource)),
        (None, Some(resource)) => Ok(resource),
        (_, None) => Err(invalid("missing", "Field required".to_owned())),
    }
}

/// The model of a name, or of its last part: `projects/p/models/m`, `agents/a`.
fn model_of(name: &str) -> Option<Model> {
    let last = name.rsplit('/').next().unwrap_or_default();
    Model::parse(name).or_else(|_| Model::parse(last)).ok()
}

/// The way of a call, which may be counted apart under a name.
fn route(
    gateway: &Gateway,
    apart: Option<&str>,
    key: ApiKey,
    model: Model,
    semaphore: Option<Arc<dyn Semaphore>>,
) -> Arc<Route> {
    let dispatcher = &gateway.dispatcher;
    let place = dispatcher.place();
    match apart {
        Some(name) => dispatcher.route_apart(name, &place, key, model, semaphore),
        None => dispatcher.route(&place, key, model, semaphore),
    }
}

async fn answer(
    gateway: &Gateway,
    call: &Call,
    mut request: Forward,
    body: Bytes,
) -> Result<Response, Unanswered> {
    // All of the body is here, however it came.
    request.headers.remove(CONTENT_LENGTH);
    let dispatcher = &gateway.dispatcher;
    let admission = dispatcher.admit(call).await?;
    let idle = gateway.config.stream_idle_timeout;
    // Boxed so that a request that waits is no larger than its wait.
    let forwarded = Box::pin(dispatcher.forward(call, &request, body, admission, idle)).await?;
    let mut response = forwarded.map(Body::new);
    strip_answer(response.headers_mut());
    Ok(response)
}

fn failed(call: &Call, unanswered: Unanswered) -> NotRelayed {
    let failed = NotRelayed::from(unanswered);
    let code = failed.error.code();
    tracing::warn!(kind = call.kind, model = %call.route.model(), code, "no answer");
    failed
}

/// How many images a call asks for.
async fn images(model: &Model, body: Bytes) -> Result<u64, ApiError> {
    let model = model.clone();
    with_body(body, move |body| requested_images(model.as_str(), body)).await
}

/// As how many requests Gemini counts a call of this kind: each text to embed is one. A body in which
/// they cannot be counted is refused.
async fn requests(kind: &str, surface: Surface, body: Bytes) -> Result<u64, ApiError> {
    match kind {
        "embed_content" | "openai_embeddings" => {
            let texts = with_body(body, move |body| embedding_requests(surface, body)).await?;
            texts.ok_or_else(ApiError::not_json)
        }
        _ => Ok(1),
    }
}
