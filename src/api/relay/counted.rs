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
use super::partial::complete;
use crate::api::auth::{Caller, Tier, check_model, check_text};
use crate::api::body::read;
use crate::api::browser::is_simple;
use crate::api::buffered::with_body;
use crate::api::destination::{Counted, Destination, Target};
use crate::api::error::ApiError;
use crate::api::form::Form;
use crate::api::incoming::semaphore_id;
use crate::api::json::{check_names_model, measured};
use crate::api::read_ahead::body_ahead;
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
    if payer.tier == Tier::Fallback {
        check_type(&head.headers, &body)?;
    }
    let semaphore = semaphore_id(&head.headers);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let request = forward(gateway, surface, head, &path, Some(payer.tier))?;
    let request = complete(request, kind)?;
    let body = read(&request.headers, body, gateway).await?;
    let deadline = Instant::now() + gateway.config.request_timeout;
    check_text(|| body.clone(), gateway).await?;
    let form = Form::read(&request.headers, &body, &gateway.bodies).await?;
    let (input, named) = match form {
        Some(_) if target == Target::Body => return Err(ApiError::is_form().into()),
        Some(Form { model, input }) => (input, model),
        None => (measured(body.clone()).await?, named(&target, &body).await?),
    };
    let model = model(surface, target, named, &body).await?;
    check_model(&model, gateway)?;
    let requests = requests(kind, surface, body.clone()).await?;
    let images = images(&model, body.clone()).await?;
    let route = route(gateway, apart, payer.key, model, semaphore);
    let call = Call { kind, route, input, requests, images, deadline };
    let request = Forward { streams, ..request };
    answer(gateway, &call, request, body).await.map_err(|unanswered| failed(&call, unanswered))
}

/// Refuses a body that a web page can send without having asked.
pub(super) fn check_type(headers: &HeaderMap, body: &Body) -> Result<(), ApiError> {
    if is_simple(headers) && !body.is_end_stream() { Err(ApiError::not_json()) } else { Ok(()) }
}

/// The model that a body of JSON names, where that matters.
async fn named(target: &Target, body: &Bytes) -> Result<Option<String>, ApiError> {
    if matches!(target, Target::Path(_)) {
        return Ok(None);
    }
    let named = with_body(body.clone(), named_model).await?;
    named.map_err(|repeated| invalid_model("duplicate", repeated.to_string()))
}

fn invalid_model(kind: &'static str, message: String) -> ApiError {
    ApiError::invalid(vec![InvalidField::new("model", kind, message)])
}

/// The model of a call, or what it is counted as.
async fn model(
    surface: Surface,
    target: Target,
    named: Option<String>,
    body: &Bytes,
) -> Result<Model, ApiError> {
    let resource = match target {
        Target::Path(model) => return Ok(model),
        Target::Body => None,
        Target::BodyOr(resource) => Some(resource),
    };
    match (named, resource) {
        (Some(name), _) if surface == Surface::OpenAi => {
            Model::parse(&name).map_err(|error| invalid_model("model_name", error.to_string()))
        }
        (Some(name), Some(resource)) => Ok(model_of(&name).unwrap_or(resource)),
        (None, Some(resource)) => Ok(resource),
        (_, None) => {
            // What cannot be read names no model.
            check_names_model(body.clone()).await?;
            Err(invalid_model("missing", "Field required".to_owned()))
        }
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
    let ticket = dispatcher.enqueue();
    match apart {
        Some(name) => dispatcher.route_apart(name, &ticket, key, model, semaphore),
        None => dispatcher.route(&ticket, key, model, semaphore),
    }
}

async fn answer(
    gateway: &Gateway,
    call: &Call,
    mut request: Forward,
    body: Bytes,
) -> Result<Response, Unanswered> {
    // All of the body is here as it is meant, however it came.
    request.headers.remove(CONTENT_LENGTH);
    request.headers.remove(CONTENT_ENCODING);
    let dispatcher = &gateway.dispatcher;
    let admission = dispatcher.admit(call).await?;
    let idle = gateway.config.stream_idle_timeout;
    // Boxed so that a request that waits is no larger than its wait.
    let forwarded = Box::pin(dispatcher.forward(call, &request, body, admission, idle)).await?;
    let mut response = forwarded.map(|body| body_ahead(body, gateway));
    strip_answer(response.headers_mut());
    Ok(response)
}

fn failed(call: &Call, unanswered: Unanswered) -> NotRelayed {
    let cause = unanswered.failure.cause();
    let failed = NotRelayed::from(unanswered);
    let (model, code) = (call.route.model(), failed.error.code());
    tracing::warn!(kind = call.kind, %model, code, cause, "the call failed");
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
