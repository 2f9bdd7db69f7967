//! Sending a response: its framing and its timing.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use serde_json::Value;
use tokio::time::Instant;

use super::plan::{Plan, Reply, ResponseChunks};
use super::refusal::{ErrorResponse, JSON};
use super::stats::{CallOutcome, RunningCall};
use super::tier::ServiceTier;

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// How a response is framed.
#[derive(Clone, Copy)]
pub(super) enum Framing {
    /// One JSON object.
    Whole,
    /// Server-sent events.
    Events,
    /// A JSON array.
    Array,
    /// Server-sent events as OpenAI writes them, ended by `[DONE]`.
    OpenAiEvents,
    /// Server-sent events with names, ended by `done`. The chunks are whole events.
    NamedEvents,
}

/// The last event of an interaction's stream.
pub(super) const DONE: &[u8] = b"event: done\ndata: [DONE]\n\n";

/// The header that names the tier that served the call. Source: recorded responses.
const SERVICE_TIER: HeaderName = HeaderName::from_static("x-gemini-service-tier");

impl Framing {
    fn content_type(self) -> HeaderValue {
        match self {
            Self::Whole | Self::Array => JSON,
            Self::Events | Self::OpenAiEvents | Self::NamedEvents => EVENT_STREAM,
        }
    }

    /// Writes an error into a stream. Source: a recorded stream and, for OpenAI's surface, a recorded
    /// response.
    fn failure(self, refusal: &ErrorResponse, is_first: bool) -> Bytes {
        let pretty = serde_json::from_slice::<Value>(refusal.body());
        let pretty = pretty.map_or_else(|_| String::new(), |json| format!("{json:#}"));
        match self {
            Self::Whole | Self::Events => pretty.replace('\n', "\r\n").into(),
            Self::Array if is_first => format!("[{pretty}\r\n]").into(),
            Self::Array => format!(",\r\n{pretty}\r\n]").into(),
            Self::NamedEvents => {
                let mut event = serde_json::from_slice::<Value>(refusal.body()).unwrap_or_default();
                event["event_type"] = "error".into();
                format!("event: error\ndata: {event}\n\n").into()
            }
            Self::OpenAiEvents => [b"data: [", &refusal.body()[..], b"]\n\n"].concat().into(),
        }
    }

    fn frames(self, chunks: Vec<Bytes>) -> Vec<Bytes> {
        let last = chunks.len().saturating_sub(1);
        let frame = |(index, chunk): (usize, Bytes)| match self {
            Self::Whole => chunk,
            Self::NamedEvents if index == last => [&chunk[..], DONE].concat().into(),
            Self::NamedEvents => chunk,
            Self::Events => [b"data: ", &chunk[..], b"\r\n\r\n"].concat().into(),
            Self::Array => {
                let opening: &[u8] = if index == 0 { b"[" } else { b",\r\n" };
                let closing: &[u8] = if index == last { b"]\n" } else { b"" };
                [opening, &chunk, closing].concat().into()
            }
            Self::OpenAiEvents => {
                let closing: &[u8] = if index == last { b"data: [DONE]\n\n" } else { b"" };
                [b"data: ", &chunk[..], b"\n\n", closing].concat().into()
            }
        };
        chunks.into_iter().enumerate().map(frame).collect()
    }
}

/// Answers a call as planned, and counts its outcome.
pub(super) async fn deliver(
    plan: Plan,
    call: RunningCall,
    arrived: Instant,
    framing: Framing,
) -> Response {
    let tier = plan.tier;
    let mut response = send(plan, call, arrived, framing).await;
    add_tier(&mut response, tier);
    response
}

/// Names the tier that served a call.
pub(super) fn add_tier(response: &mut Response, tier: ServiceTier) {
    response.headers_mut().insert(SERVICE_TIER, tier.header());
}

async fn send(plan: Plan, call: RunningCall, arrived: Instant, framing: Framing) -> Response {
    let done_at = arrived + plan.latency;
    match plan.reply {
        Reply::Refused(refusal) => {
            wait_until(done_at).await;
            call.end(&CallOutcome::Refused(&refusal));
            refusal.into_response()
        }
        Reply::Closed => {
            wait_until(done_at).await;
            call.end(&CallOutcome::Broken);
            Response::new(Body::from_stream(stream::once(async { broken() })))
        }
        Reply::Answered(ResponseChunks {
            mut chunks, truncated: false, stall_after: None, ..
        }) if matches!(framing, Framing::Whole) => {
            wait_until(done_at).await;
            call.end(&CallOutcome::Answered);
            with_content_type(Body::from(chunks.remove(0)), framing)
        }
        Reply::Answered(answered) => {
            let transmission = Transmission::new(answered, framing, call, arrived, plan.latency);
            wait_until(transmission.next_at()).await;
            let whole = matches!(framing, Framing::Whole).then_some(transmission.bytes);
            let mut response = with_content_type(transmission.into_body(), framing);
            if let Some(bytes) = whole {
                response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
            }
            response
        }
    }
}

/// A response with the content type of its framing.
pub(super) fn with_content_type(body: Body, framing: Framing) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, framing.content_type());
    response
}

/// The first half of the frames, or half of a single frame.
fn first_half(mut frames: Vec<Bytes>) -> Vec<Bytes> {
    match frames.as_mut_slice() {
        [only] => only.truncate(only.len() / 2),
        _ => frames.truncate(frames.len() / 2),
    }
    frames
}

/// A response being sent, evenly over the latency.
struct Transmission {
    frames: std::vec::IntoIter<Bytes>,
    /// The number of frames.
    length: u32,
    /// The size in bytes.
    bytes: usize,
    sent: u32,
    arrived: Instant,
    latency: Duration,
    truncated: bool,
    /// After how many frames nothing more is sent.
    stall_after: Option<u32>,
    /// The error that ends the stream.
    refusal: Option<ErrorResponse>,
    /// `None` once it has ended.
    call: Option<RunningCall>,
}

impl Transmission {
    fn new(
        answered: ResponseChunks,
        framing: Framing,
        call: RunningCall,
        arrived: Instant,
        latency: Duration,
    ) -> Self {
        let ResponseChunks { chunks, truncated, stall_after, failure } = answered;
        let mut frames = framing.frames(chunks);
        let refusal = failure.map(|(after, refusal)| {
            frames.truncate(after as usize);
            let failure = framing.failure(&refusal, frames.is_empty());
            frames.push(failure);
            refusal
        });
        let (length, bytes) = (frames.len() as u32, frames.iter().map(Bytes::len).sum());
        let frames = if truncated { first_half(frames) } else { frames }.into_iter();
        let call = Some(call);
        Self {
            frames,
            length,
            bytes,
            sent: 0,
            arrived,
            latency,
            truncated,
            stall_after,
            refusal,
            call,
        }
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
        if self.stall_after == Some(self.sent) {
            std::future::pending::<()>().await;
        }
        if let Some(frame) = self.frames.next() {
            wait_until(self.next_at()).await;
            self.sent += 1;
            return Some(Ok(frame));
        }
        let call = self.call.take()?;
        if !self.truncated {
            let outcome = self.refusal.as_ref().map_or(CallOutcome::Answered, CallOutcome::Refused);
            call.end(&outcome);
            return None;
        }
        // The server sends what it has before the connection breaks.
        tokio::task::yield_now().await;
        call.end(&CallOutcome::Broken);
        Some(broken())
    }
}

/// The server closes the connection when a body fails.
fn broken() -> io::Result<Bytes> {
    Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed as the script says"))
}

/// The average lag of tokio's timer, which rounds up to whole milliseconds, including waking the
/// task. Measured over loopback.
const TIMER_LAG: Duration = Duration::from_micros(1_500);

/// Sleeps until a deadline, early by the timer's lag.
pub(super) async fn wait_until(deadline: Instant) {
    let wake_at = deadline - TIMER_LAG;
    if wake_at > Instant::now() {
        tokio::time::sleep_until(wake_at).await;
    }
}
