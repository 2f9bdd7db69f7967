//! The routes, and how an answer reaches the client.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, StatusCode, Uri, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Simulator;
use super::exchange::{Exchange, Plan, Reply, Target, api_key, check_key, query_value};
use super::refusal::{JSON, Refusal};
use super::request::count_tokens;
use super::stats::{Call, Fate, Stats};

/// The largest body, in bytes: Gemini's documented limit for data in a request.
const MAX_BODY: usize = 100 * 1024 * 1024;

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// What is listed when any model goes.
const LISTED_MODELS: [&str; 3] = ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-flash-preview"];

/// Every route of the simulator.
pub(super) fn router(simulator: Simulator) -> Router {
    let mut router = Router::new()
        .route("/_simulator/stats", get(stats))
        .route("/_simulator/reset", post(reset));
    for version in ["/v1", "/v1beta"] {
        router = router
            .route(&format!("{version}/models"), get(list_models))
            .route(&format!("{version}/models/{{call}}"), get(get_model).post(call_model))
            .route(&format!("{version}/tunedModels/{{call}}"), get(get_model).post(call_model));
    }
    router.with_state(simulator)
}

async fn stats(State(simulator): State<Simulator>) -> Json<Stats> {
    Json(simulator.stats())
}

async fn reset(State(simulator): State<Simulator>) -> StatusCode {
    simulator.reset();
    StatusCode::NO_CONTENT
}

async fn list_models(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    if let Err(refusal) = check_key(api_key(request.headers(), request.uri()), options) {
        return refusal.into_response();
    }
    let listed: Vec<Value> = if options.models.is_empty() {
        LISTED_MODELS.iter().map(|model| described(&format!("models/{model}"))).collect()
    } else {
        options.models.iter().map(|model| described(&format!("models/{model}"))).collect()
    };
    json_response(json!({"models": listed}))
}

async fn get_model(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    let checked = check_key(api_key(request.headers(), request.uri()), options)
        .and_then(|_| target(request.uri(), "GetModel"))
        .and_then(|target| target.check_model(options).map(|()| target.resource()));
    match checked {
        Ok(resource) => json_response(described(&resource)),
        Err(refusal) => refusal.into_response(),
    }
}

fn described(resource: &str) -> Value {
    json!({
        "name": resource,
        "version": "001",
        "displayName": resource,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    })
}

/// Any call of a model's method.
async fn call_model(State(simulator): State<Simulator>, request: Request) -> Response {
    let target = match target(request.uri(), "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    match target.method {
        "generateContent" => generate(&simulator, request, Framing::Whole).await,
        "streamGenerateContent" if query_value(request.uri(), "alt") == Some("sse") => {
            generate(&simulator, request, Framing::Events).await
        }
        "streamGenerateContent" => generate(&simulator, request, Framing::Array).await,
        "countTokens" => call_count_tokens(&simulator, request).await,
        _ => {
            let Target { version, method, .. } = target;
            Refusal::model_not_found(&target.resource(), version, method).into_response()
        }
    }
}

fn target<'a>(uri: &'a Uri, default_method: &'a str) -> Result<Target<'a>, Refusal> {
    let target =
        Target::from_path(uri.path()).ok_or_else(|| Refusal::with_status(StatusCode::NOT_FOUND))?;
    let method = if target.method.is_empty() { default_method } else { target.method };
    Ok(Target { method, ..target })
}

async fn call_count_tokens(simulator: &Simulator, request: Request) -> Response {
    simulator.ledger().count_tokens_called();
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return Refusal::with_status(StatusCode::BAD_REQUEST).into_response();
    };
    let options = simulator.options();
    let counted = check_key(api_key(&parts.headers, &parts.uri), options)
        .and_then(|_| target(&parts.uri, "")?.check_model(options))
        .and_then(|()| count_tokens(&body));
    match counted {
        Ok(tokens) => json_response(json!({
            "totalTokens": tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
        })),
        Err(refusal) => refusal.into_response(),
    }
}

fn json_response(body: Value) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response()
}

async fn generate(simulator: &Simulator, request: Request, framing: Framing) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let target = match target(&parts.uri, "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let key = api_key(&parts.headers, &parts.uri);
    let mut call = Call::arrive(simulator.ledger(), target.model, key);
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return Refusal::with_status(StatusCode::BAD_REQUEST).into_response();
    };
    let chunks = match framing {
        Framing::Whole => None,
        Framing::Events | Framing::Array => Some(simulator.options().stream_chunks),
    };
    let headers = &parts.headers;
    let exchange = Exchange { simulator, target, headers, key, body: &body, arrived, chunks };
    let plan = exchange.plan(&mut call);
    deliver(plan, call, arrived, framing).await
}

/// How an answer is written.
#[derive(Clone, Copy)]
enum Framing {
    /// One JSON object.
    Whole,
    /// Server-sent events.
    Events,
    /// A JSON array of what would be the events.
    Array,
}

impl Framing {
    fn content_type(self) -> HeaderValue {
        match self {
            Self::Whole | Self::Array => JSON,
            Self::Events => EVENT_STREAM,
        }
    }

    fn frames(self, chunks: Vec<Bytes>) -> Vec<Bytes> {
        let last = chunks.len().saturating_sub(1);
        let frame = |(index, chunk): (usize, Bytes)| match self {
            Self::Whole => chunk,
            Self::Events => [b"data: ", &chunk[..], b"\r\n\r\n"].concat().into(),
            Self::Array => {
                let opening: &[u8] = if index == 0 { b"[" } else { b",\r\n" };
                let closing: &[u8] = if index == last { b"]\n" } else { b"" };
                [opening, &chunk, closing].concat().into()
            }
        };
        chunks.into_iter().enumerate().map(frame).collect()
    }
}

async fn deliver(plan: Plan, call: Call, arrived: Instant, framing: Framing) -> Response {
    let done_at = arrived + plan.latency;
    match plan.reply {
        Reply::Refused(refusal) => {
            wait_until(done_at).await;
            call.end(&Fate::Refused(&refusal));
            refusal.into_response()
        }
        Reply::Closed => {
            wait_until(done_at).await;
            call.end(&Fate::Broken);
            Response::new(Body::from_stream(stream::once(async { broken() })))
        }
        Reply::Answered { mut chunks, truncated: false } if matches!(framing, Framing::Whole) => {
            wait_until(done_at).await;
            call.end(&Fate::Answered);
            with_content_type(Body::from(chunks.remove(0)), framing)
        }
        Reply::Answered { chunks, truncated } => {
            let frames = framing.frames(chunks);
            let whole = matches!(framing, Framing::Whole).then(|| frames[0].len());
            let transmission = Transmission::new(frames, truncated, call, arrived, plan.latency);
            wait_until(transmission.next_at()).await;
            let mut response = with_content_type(transmission.into_body(), framing);
            if let Some(length) = whole {
                response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            }
            response
        }
    }
}

fn with_content_type(body: Body, framing: Framing) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, framing.content_type());
    response
}

/// Half of the frames, or half of the only one.
fn first_half(mut frames: Vec<Bytes>) -> Vec<Bytes> {
    match frames.as_mut_slice() {
        [only] => only.truncate(only.len() / 2),
        _ => frames.truncate(frames.len() / 2),
    }
    frames
}

/// An answer on its way, sent evenly over the latency.
struct Transmission {
    frames: std::vec::IntoIter<Bytes>,
    /// Frames of the whole answer.
    length: u32,
    sent: u32,
    arrived: Instant,
    latency: Duration,
    truncated: bool,
    /// Until it has ended.
    call: Option<Call>,
}

impl Transmission {
    fn new(
        frames: Vec<Bytes>,
        truncated: bool,
        call: Call,
        arrived: Instant,
        latency: Duration,
    ) -> Self {
        let length = frames.len() as u32;
        let frames = if truncated { first_half(frames) } else { frames }.into_iter();
        Self { frames, length, sent: 0, arrived, latency, truncated, call: Some(call) }
    }

    fn next_at(&self) -> Instant {
        self.arrived + self.latency * (self.sent + 1) / self.length
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut transmission| async move {
            let frame = transmission.next_frame().await?;
            Some((frame, transmission))
        }))
    }

    async fn next_frame(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(frame) = self.frames.next() {
            wait_until(self.next_at()).await;
            self.sent += 1;
            return Some(Ok(frame));
        }
        let call = self.call.take()?;
        if !self.truncated {
            call.end(&Fate::Answered);
            return None;
        }
        // Lets the server send what it has before the connection breaks.
        tokio::task::yield_now().await;
        call.end(&Fate::Broken);
        Some(broken())
    }
}

/// The server closes the connection when a body fails.
fn broken() -> io::Result<Bytes> {
    Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed as the script says"))
}

/// How late tokio's timer is on average: it rounds a deadline up to a millisecond of its own clock
/// and sleeps whole ones, and then the task has to be woken. Measured over loopback.
const TIMER_LAG: Duration = Duration::from_micros(1_500);

async fn wait_until(deadline: Instant) {
    let wake_at = deadline - TIMER_LAG;
    if wake_at > Instant::now() {
        tokio::time::sleep_until(wake_at).await;
    }
}
