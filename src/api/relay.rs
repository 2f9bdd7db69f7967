//! Requests in the words of Gemini or of OpenAI, which go on as they came, and so do their answers.

mod headers;
mod texts;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use tokio::time::Instant;
use tower_http::timeout::TimeoutBody;

use super::auth::{Caller, presented};
use super::body::{read, semaphore_id, with_body};
use super::destination::{COUNT_TOKENS, Destination, ModelCall, openai_generates, openai_kind};
use super::error::ApiError;
use super::single::named_semaphore;
use crate::dispatch::{Call, Unanswered};
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Forward, InputFeatures, Model, Payload, Surface, openai_model};
use crate::generation::{Failure, InvalidField};
use crate::limits::Semaphore;
use headers::{forward, origin, redirect_uploads, strip};
use texts::counted_requests;

/// No answer is waited for longer than this while a body is on its way: a year.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why nothing was passed on.
struct NotRelayed {
    error: ApiError,
    /// What Gemini said, where it said something.
    response: Option<Box<Response<Bytes>>>,
}

impl From<ApiError> for NotRelayed {
    fn from(error: ApiError) -> Self {
        Self { error, response: None }
    }
}

impl From<Unanswered> for NotRelayed {
    fn from(Unanswered { failure, response }: Unanswered) -> Self {
        Self { error: Failure::from(failure).into(), response }
    }
}

/// Passes a request on, and its answer back. What generates goes through the door.
pub(super) async fn relay(State(gateway): State<Gateway>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let destination = match Destination::of(&path, &head.headers) {
        Ok(destination) => destination,
        Err(error) => return error.into_google(),
    };
    let surface = destination.surface;
    let relayed = match destination {
        Destination { surface: Surface::Gemini, path, call: Some(call) } => {
            model_call(&gateway, head, body, &path, call).await
        }
        Destination { surface: Surface::OpenAi, path, .. }
            if head.method == Method::POST && openai_generates(&path) =>
        {
            openai_call(&gateway, head, body, &path).await
        }
        Destination { surface, path, .. } => pass(&gateway, surface, head, body, &path).await,
    };
    match (relayed, surface) {
        (Ok(response), _) => response,
        (Err(NotRelayed { response: Some(response), .. }), Surface::Gemini) => {
            let mut response = response.map(Body::from);
            strip(response.headers_mut());
            // A key may have been taken out of it.
            response.headers_mut().remove(CONTENT_LENGTH);
            response
        }
        (Err(NotRelayed { error, .. }), Surface::Gemini) => error.into_google(),
        (Err(NotRelayed { error, .. }), Surface::OpenAi) => error.into_openai(),
    }
}

/// A call of a model's method, which generates something.
async fn model_call(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    path: &str,
    ModelCall { kind, model, streams }: ModelCall,
) -> Result<Response, NotRelayed> {
    let body = read(&head.headers, body, gateway).await?;
    let ticket = Ticket::of(gateway, &head).await?;
    let request = Forward { streams, ..forward(Surface::Gemini, head, path)? };
    ticket.generate(gateway, kind, model, request, body).await
}

/// A request of OpenAI's shape: a call of the model that its JSON names.
async fn openai_call(
    gateway: &Gateway,
    head: Parts,
    body: Body,
    path: &str,
) -> Result<Response, NotRelayed> {
    let body = read(&head.headers, body, gateway).await?;
    let model = match with_body(body.clone(), openai_model).await? {
        Some(model) => Model::parse(&model)
            .map_err(|error| InvalidField::new("model", "model_name", error.to_string())),
        None => Err(InvalidField::new("model", "missing", "Field required")),
    };
    let model = model.map_err(|field| ApiError::invalid(vec![field]))?;
    let ticket = Ticket::of(gateway, &head).await?;
    let kind = openai_kind(path);
    let request = forward(Surface::OpenAi, head, path)?;
    ticket.generate(gateway, kind, model, request, body).await
}

/// What a call brings to the door.
struct Ticket {
    key: ApiKey,
    semaphore: Option<Arc<dyn Semaphore>>,
    deadline: Instant,
}

impl Ticket {
    async fn of(gateway: &Gateway, head: &Parts) -> Result<Self, ApiError> {
        let deadline = Instant::now() + gateway.config.request_timeout;
        let key = payer(gateway, head)?;
        let semaphore = semaphore_id(&head.headers);
        let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
        Ok(Self { key, semaphore, deadline })
    }

    /// Sends a call through the door and passes its answer back.
    async fn generate(
        self,
        gateway: &Gateway,
        kind: &'static str,
        model: Model,
        mut request: Forward,
        body: Bytes,
    ) -> Result<Response, NotRelayed> {
        let Self { key, semaphore, deadline } = self;
        // What it cost is read out of the answer as it passes.
        request.headers.remove(ACCEPT_ENCODING);
        // All of the body is here, however it came.
        request.headers.remove(CONTENT_LENGTH);
        let measure =
            move |body: &[u8]| (InputFeatures::of_body(body), counted_requests(kind, body));
        let (input, requests) = with_body(body.clone(), measure).await?;
        let dispatcher = &gateway.dispatcher;
        let place = dispatcher.place();
        let route = if kind == COUNT_TOKENS {
            dispatcher.counting_route(&place, key, model, semaphore)
        } else {
            dispatcher.route(&place, key, model, semaphore)
        };
        let call = Call { kind, route, input, requests, deadline };
        let admission = dispatcher.admit(&call).await.map_err(Unanswered::from);
        let idle = gateway.config.stream_idle_timeout;
        let forwarded = match admission {
            // Boxed so that a request that waits is no larger than its wait.
            Ok(admission) => {
                Box::pin(dispatcher.forward(&call, &request, body, admission, idle)).await
            }
            Err(refused) => Err(refused),
        };
        let mut response =
            forwarded.map_err(|unanswered| failed(&call, unanswered))?.map(Body::new);
        strip(response.headers_mut());
        Ok(response)
    }
}

fn failed(call: &Call, unanswered: Unanswered) -> NotRelayed {
    let failed = NotRelayed::from(unanswered);
    let code = failed.error.code();
    tracing::warn!(kind = call.kind, model = %call.route.model(), code, "no answer");
    failed
}

/// Passes on what generates nothing, of whatever size. It takes no slot.
async fn pass(
    gateway: &Gateway,
    surface: Surface,
    head: Parts,
    body: Body,
    path: &str,
) -> Result<Response, NotRelayed> {
    let config = &gateway.config;
    // Who was given the URL of an upload goes on with it without a key.
    let goes_on = path.starts_with("/upload/")
        && query(&head).contains("upload_id=")
        && presented(&head.headers, query(&head)).is_empty();
    let key = if goes_on { None } else { Some(payer(gateway, &head)?) };
    let origin = origin(&head);
    let (patience, payload) = if body.is_end_stream() {
        (config.upstream_timeout, Payload::Whole(Full::default()))
    } else {
        let body = TimeoutBody::new(config.client_timeout, body).boxed_unsync();
        (ENDLESS, Payload::Passing(body))
    };
    let request = forward(surface, head, path)?;
    let response = gateway.dispatcher.pass(&request, key.as_ref(), payload, patience).await?;
    let mut response =
        response.map(|body| Body::new(TimeoutBody::new(config.stream_idle_timeout, body)));
    strip(response.headers_mut());
    if let Some(origin) = origin {
        redirect_uploads(gateway, response.headers_mut(), &origin);
    }
    Ok(response)
}

fn query(head: &Parts) -> &str {
    head.uri.query().unwrap_or_default()
}

/// The key that pays.
fn payer(gateway: &Gateway, head: &Parts) -> Result<ApiKey, ApiError> {
    Caller::of(&head.headers, gateway).relayed(&head.headers, query(head), gateway)
}
