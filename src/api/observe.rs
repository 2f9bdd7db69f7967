//! Logs every request with an id, which its answer has too, and turns a panic in a handler into an error
//! of that request alone.

use std::any::Any;
use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Instrument;

use super::error::ApiError;
use crate::request_id;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is accepted from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// How much of a path is logged, in bytes.
const MAX_LOGGED_PATH: usize = 1024;

/// Gives a request its id and logs the outcome.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let id_text = id.to_str().unwrap_or_default();
    // The span has the highest level, so that every logged line has it.
    let span = tracing::error_span!(
        "request",
        request_id = id_text,
        method = %request.method(),
        path = logged(request.uri().path()),
    );
    let started = Instant::now();
    let handled = next.run(request).instrument(span.clone());
    let mut response = request_id::handling(id.clone(), handled).await;
    span.in_scope(|| {
        let status = response.status().as_u16();
        tracing::info!(status, duration_ms = started.elapsed().as_millis() as u64, "answered");
    });
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// The start of a path, for the log. It is bounded because log lines are buffered in memory.
fn logged(path: &str) -> &str {
    let end = path.floor_char_boundary(MAX_LOGGED_PATH);
    &path[..end]
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
