//! Requests in the words of Gemini or of OpenAI, which go on as they came, and so do their answers.

mod counted;
mod headers;
mod partial;
mod pass;
mod upload;

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH};
use http::{HeaderValue, Method, StatusCode};

use super::destination::{Destination, single_slashes};
use super::error::ApiError;
use super::methods::METHODS;
use crate::dispatch::Unanswered;
use crate::gateway::Gateway;
use crate::gemini::Surface;
use headers::strip_answer;

/// What the paths begin with that are passed on.
pub(super) const PREFIXES: [&str; 5] = ["/v1/", "/v1beta/", "/v1alpha/", "/upload/", "/download/"];

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
        Self { error: failure.into(), response }
    }
}

impl NotRelayed {
    /// In the words of a surface; on Gemini's own, what Gemini said.
    fn into_response(self, surface: Surface) -> Response {
        match (surface, self.response) {
            (Surface::Gemini, Some(response)) => {
                let mut response = response.map(Body::from);
                strip_answer(response.headers_mut());
                // It is another one where a key was escaped in the body.
                response.headers_mut().remove(CONTENT_LENGTH);
                response
            }
            (Surface::Gemini, None) => self.error.into_google(),
            (Surface::OpenAi, _) => self.error.into_openai(),
        }
    }
}

/// Passes a request on, and its answer back. What is counted goes through admission.
pub(super) async fn relay(State(gateway): State<Gateway>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if head.method == Method::OPTIONS {
        return options();
    }
    let mut destination = match Destination::of(&head) {
        Ok(destination) => destination,
        Err((surface, error)) => return NotRelayed::from(error).into_response(surface),
    };
    let surface = destination.surface;
    let relayed = match destination.call.take() {
        Some(call) => counted::send(&gateway, head, body, destination, call).await,
        None => pass::pass(&gateway, head, body, destination).await,
    };
    relayed.unwrap_or_else(|not_relayed| not_relayed.into_response(surface))
}

/// Answers what has no route of its own. A path that is passed on but for a slash too many goes
/// where it leads without it.
pub(super) async fn unrouted(State(gateway): State<Gateway>, request: Request) -> Response {
    match single_slashes(request.uri().path()) {
        Cow::Owned(path) if PREFIXES.iter().any(|prefix| path.starts_with(prefix)) => {
            relay(State(gateway), request).await
        }
        _ => ApiError::not_found().into_response(),
    }
}

/// What may be sent to a path that is passed on. Gemini is not asked.
fn options() -> Response {
    let allow = [(ALLOW, HeaderValue::from_static(METHODS))];
    (StatusCode::NO_CONTENT, allow).into_response()
}
