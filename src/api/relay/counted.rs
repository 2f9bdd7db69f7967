//! Calls that are counted: they go through admission and hold their slots until their answer has
//! passed.

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use tokio::time::Instant;

use super::RelayError;
use super::headers::{forward, strip_answer};
use super::partial::complete;
use crate::api::auth::{Caller, Tier, check_model, check_text};
use crate::api::body::read;
use crate::api::browser::is_simple;
use crate::api::buffered::with_body;
use crate::api::destination::{CountedCall, Destination, ModelSource};
use crate::api::error::ApiError;
use crate::api::form::Form;
use crate::api::incoming::{observer, semaphore_id};
use crate::api::json::{check_names_model, measured};
use crate::api::read_ahead::body_ahead;
use crate::api::single::named_semaphore;
use crate::dispatch::{Call, CallError, CallKind, CallRequest, CallSize, CountedAs, TierChoice};
use crate::gateway::Gateway;
use crate::gemini::{
    Forward, InteractionRequest, Model, RepeatedField, ServiceTier, Surface, batch_file,
    embedding_requests, named_model, requested_images,
};
use crate::generation::InvalidField;

/// Sends a call through admission and passes its answer back. The key is checked before the body is
/// read.
pub(super) async fn send(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    destination: Destination,
    counted: CountedCall,
) -> Result<Response, RelayError> {
    let Destination { surface, path, purpose, .. } = destination;
    let CountedCall { kind, model, .. } = counted;
    let caller = Caller::of(&head.headers, head.uri.query(), gateway);
    let payer = caller.relayed(purpose, gateway)?;
    if payer.tier == Tier::Fallback {
        check_type(&head.headers, &body)?;
    }
    let observer = observer(&head.extensions);
    let semaphore = semaphore_id(&head.headers);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let request = forward(gateway, surface, head, &path, Some(payer.tier))?;
    let mut request = Forward { streams: kind.streams(), ..complete(request, kind)? };
    let body = read(&request.headers, body, gateway).await?;
    let came_at = Instant::now();
    check_text(|| body.clone(), gateway).await?;
    let (model, mut size, tier) = cost(gateway, kind, model, &request, &body).await?;
    if kind == CallKind::Interaction {
        let asked = with_body(body.clone(), InteractionRequest::read).await?.map_err(repeated)?;
        request.runs_on = asked.in_background;
        let tokens =
            |previous: &String| gateway.dispatcher.conversation_tokens(&payer.key, previous);
        size.history = asked.previous.as_ref().map_or(0, tokens);
    }
    let deadline = came_at + gateway.config.request_timeout_of(tier);
    let (key, tier) = (payer.key, TierChoice::of_body(tier));
    let call = CallRequest { kind, key, model, semaphore, size, tier, deadline, observer };
    let call = gateway.dispatcher.enqueue(call);
    let file = match gateway.dispatcher.enqueues(&call) {
        true => with_body(body.clone(), batch_file).await?.map_err(repeated)?,
        false => None,
    };
    answer(gateway, &call, request, body, file).await.map_err(|error| failed(&call, error))
}

/// Refuses a body that a browser lets a page of any origin send.
pub(super) fn check_type(headers: &HeaderMap, body: &Body) -> Result<(), ApiError> {
    if is_simple(headers) && !body.is_end_stream() { Err(ApiError::not_json()) } else { Ok(()) }
}

/// What a call costs, which model it is for, and its service tier.
async fn cost(
    gateway: &Gateway,
    kind: CallKind,
    source: ModelSource,
    request: &Forward,
    body: &Bytes,
) -> Result<(Model, CallSize, ServiceTier), RelayError> {
    let form = Form::read(&request.headers, body, &gateway.bodies).await?;
    let ((input, tier), named) = match form {
        Some(_) if source == ModelSource::Body => return Err(ApiError::is_form().into()),
        Some(Form { model, input }) => ((input, ServiceTier::default()), model),
        None => (measured(body.clone()).await?, named(&source, body).await?),
    };
    let model = model(request.surface, source, named, body).await?;
    check_model(&model, gateway)?;
    let requests = requests(kind, request.surface, body.clone()).await?;
    let images = images(&model, body.clone()).await?;
    Ok((model, CallSize { requests, images, ..input.into() }, tier))
}

/// The model that a JSON body names, where it is needed.
async fn named(source: &ModelSource, body: &Bytes) -> Result<Option<String>, ApiError> {
    if matches!(source, ModelSource::Path(_)) {
        return Ok(None);
    }
    let within = match source {
        ModelSource::BodyOr { within, .. } => *within,
        _ => None,
    };
    let named = with_body(body.clone(), move |body| named_model(body, within)).await?;
    named.map_err(|repeated| invalid_model("duplicate", repeated.to_string()))
}

fn repeated(field: RepeatedField) -> ApiError {
    ApiError::invalid(vec![InvalidField::new(field.0, "duplicate", field.to_string())])
}

fn invalid_model(kind: &'static str, message: String) -> ApiError {
    ApiError::invalid(vec![InvalidField::new("model", kind, message)])
}

/// The model of a call, or the name that it is counted under.
async fn model(
    surface: Surface,
    source: ModelSource,
    named: Option<String>,
    body: &Bytes,
) -> Result<Model, ApiError> {
    let resource = match source {
        ModelSource::Path(model) => return Ok(model),
        ModelSource::Body => None,
        ModelSource::BodyOr { resource, .. } => Some(resource),
    };
    match (named, resource) {
        (Some(name), _) if surface == Surface::OpenAi => {
            Model::parse(&name).map_err(|error| invalid_model("model_name", error.to_string()))
        }
        (Some(name), Some(resource)) => Ok(model_of(&name).unwrap_or(resource)),
        (None, Some(resource)) => Ok(resource),
        (_, None) => {
            // A body that cannot be read names no model; it is refused for what is wrong with it.
            check_names_model(body.clone()).await?;
            Err(invalid_model("missing", "Field required".to_owned()))
        }
    }
}

/// The model that a name or its last part stands for: `projects/p/models/m`, `agents/a`.
pub(super) fn model_of(name: &str) -> Option<Model> {
    let last = name.rsplit('/').next().unwrap_or_default();
    Model::parse(name).or_else(|_| Model::parse(last)).ok()
}

async fn answer(
    gateway: &Gateway,
    call: &Call,
    mut request: Forward,
    body: Bytes,
    file: Option<String>,
) -> Result<Response, CallError> {
    // The body is sent decoded and whole, however it came.
    request.headers.remove(CONTENT_LENGTH);
    request.headers.remove(CONTENT_ENCODING);
    let idle = gateway.config.stream_idle_timeout;
    let dispatcher = &gateway.dispatcher;
    let enqueued = match dispatcher.enqueues(call) {
        true => dispatcher.reserve_enqueued(call, file.as_deref()).await?,
        false => None,
    };
    let forwarded = match enqueued {
        Some(tokens) => dispatcher.create_job(call, &request, body, idle, tokens).await?,
        None => dispatcher.forward(call, &request, body, idle).await?,
    };
    let mut response = forwarded.map(|body| body_ahead(body, gateway));
    strip_answer(response.headers_mut());
    Ok(response)
}

fn failed(call: &Call, error: CallError) -> RelayError {
    let cause = error.cause();
    let failed = RelayError::from(error);
    let (kind, model, code) = (call.kind().label(), call.model(), failed.error.code());
    tracing::warn!(kind, %model, code, cause, "the call failed");
    failed
}

/// How many images a call asks for.
async fn images(model: &Model, body: Bytes) -> Result<u64, ApiError> {
    let model = model.clone();
    let images = with_body(body, move |body| requested_images(model.as_str(), body)).await?;
    images.map_err(repeated)
}

/// How many requests Gemini counts a call as. A body in which texts are counted and cannot be is
/// refused.
async fn requests(kind: CallKind, surface: Surface, body: Bytes) -> Result<u64, ApiError> {
    match kind.counted_as() {
        CountedAs::OneRequest => Ok(1),
        CountedAs::OneRequestPerText => {
            let texts = with_body(body, move |body| embedding_requests(surface, body)).await?;
            texts.ok_or_else(ApiError::not_json)
        }
    }
}
