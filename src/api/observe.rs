//! Logs and traces every request with an id, which its answer has too, and turns a panic in a handler into
//! an error of that request alone.

use std::any::Any;
use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span, field};

use super::error::ApiError;
use super::route::route_of;
use crate::gateway::Gateway;
use crate::jobs::JobId;
use crate::request_id;
use crate::traces::RequestSpan;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is accepted from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// How much of a path is logged, in bytes.
const MAX_LOGGED_PATH: usize = 1024;

/// The paths of probes.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Gives a request its id, logs the outcome, and traces it if traces are on.
pub(super) async fn observe(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let id_text = id.to_str().unwrap_or_default();
    // The span has the highest level, so that every logged line has it.
    let span = tracing::error_span!(
        "request",
        request_id = id_text,
        method = %request.method(),
        path = &*logged(request.uri().path()),
        trace_id = field::Empty,
    );
    // Probes come every few seconds and say nothing about the load.
    let is_probe = PROBES.contains(&request.uri().path());
    let traced = match gateway.traces.are_on() && !is_probe {
        true => traced(&gateway, &mut request, id_text, &span),
        false => None,
    };
    let started = Instant::now();
    let handled = next.run(request).instrument(span.clone());
    let mut response = request_id::handling(id.clone(), handled).await;
    span.in_scope(|| {
        let status = response.status().as_u16();
        let duration_ms = started.elapsed().as_millis() as u64;
        match is_probe {
            true => tracing::debug!(status, duration_ms, "answered"),
            false => tracing::info!(status, duration_ms, "answered"),
        }
    });
    response.headers_mut().insert(X_REQUEST_ID, id);
    match traced {
        Some(traced) => until_its_end(response, traced),
        None => response,
    }
}

/// Starts the span of a request, and tells the handler where its calls are in the trace.
fn traced(
    gateway: &Gateway,
    request: &mut Request,
    id: &str,
    log: &Span,
) -> Option<Box<RequestSpan>> {
    let route = route_of(request.uri().path());
    let span = gateway.traces.request(request, route, id)?;
    if span.is_sampled() {
        log.record("trace_id", span.trace_id());
    }
    let extensions = request.extensions_mut();
    extensions.insert(span.observer());
    if let Some(position) = span.trace_context() {
        extensions.insert(position);
    }
    Some(Box::new(span))
}

/// The same answer, whose span ends with its last byte.
fn until_its_end(response: Response, mut span: Box<RequestSpan>) -> Response {
    span.answered(response.status());
    if response.body().is_end_stream() || !span.is_sampled() {
        span.is_whole();
        return response;
    }
    response.map(|body| Body::new(TracedBody { body, span: Some(span) }))
}

/// The body of an answer, with the span of its request.
struct TracedBody {
    body: Body,
    /// Until its end.
    span: Option<Box<RequestSpan>>,
}

impl HttpBody for TracedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let is_broken = matches!(frame, Some(Err(_)));
        // Nobody polls a body of known length beyond its end.
        if (is_broken || frame.is_none() || self.body.is_end_stream())
            && let Some(mut span) = self.span.take()
        {
            if is_broken { span.is_broken() } else { span.is_whole() }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The start of a path, for the log. It is bounded because log lines are buffered in memory. Of the id of a job
/// it has the beginning, since whoever knows the id may be able to use the job.
fn logged(path: &str) -> Cow<'_, str> {
    let path = &path[..path.floor_char_boundary(MAX_LOGGED_PATH)];
    let Some(start) = path.find("/jobs/").map(|at| at + "/jobs/".len()) else { return path.into() };
    let (before, id) = path.split_at(start);
    let (id, after) = id.split_at(id.find('/').unwrap_or(id.len()));
    match JobId::parse(id) {
        Some(id) => format!("{before}{}…{after}", id.beginning()).into(),
        None => path.into(),
    }
}

/// The client's id if it is short and printable, otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    };
    headers.get(X_REQUEST_ID).filter(usable).cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", fastrand::u128(..));
        HeaderValue::try_from(id).expect("hexadecimal digits can stand in a header")
    })
}

/// The answer to a request whose handler panicked. The message of the panic is neither returned nor
/// logged, because it may contain data of the request.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_the_beginning_of_a_jobs_id() {
        let id = JobId::random();
        for (before, after) in [("/jobs/", ""), ("/jobs/", "/results"), ("/dashboard/jobs/", "")] {
            let shown = logged(&format!("{before}{id}{after}")).into_owned();
            assert_eq!(shown, format!("{before}{}…{after}", id.beginning()));
        }
        for path in ["/jobs", "/jobs/", "/jobs/ä/results", "/chat"] {
            assert_eq!(logged(path), path);
        }
    }
}
