//! Requests in the form of Gemini, its Interactions, or OpenAI. They are passed on as they came, and so are their answers.

mod counted;
mod headers;
mod live;
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
use crate::dispatch::CallError;
use crate::gateway::Gateway;
use crate::gemini::Surface;
use headers::strip_answer;

use live::is_live;

pub(super) use live::{ROUTES as LIVE_ROUTES, live};

/// The prefixes of the paths that are passed on.
pub(super) const PREFIXES: [&str; 5] = ["/v1/", "/v1beta/", "/v1alpha/", "/upload/", "/download/"];

/// Why a request was not answered with Gemini's answer.
struct RelayError {
    error: ApiError,
    /// Gemini's response, where its client may see it.
    response: Option<Box<Response<Bytes>>>,
}

impl From<ApiError> for RelayError {
    fn from(error: ApiError) -> Self {
        Self { error, response: None }
    }
}

impl From<CallError> for RelayError {
    fn from(mut error: CallError) -> Self {
        let response = match &mut error {
            CallError::Upstream { response, .. } => response.take(),
            CallError::Refused(_) | CallError::DeadlineExceeded => None,
        };
        Self { error: error.into(), response }
    }
}

impl RelayError {
    /// The response in the form of a surface; on Gemini's own and for interactions, Gemini's response
    /// where there is one.
    fn into_response(self, surface: Surface) -> Response {
        match (surface, self.response) {
            (Surface::Gemini | Surface::Interactions, Some(response)) => {
                let mut response = response.map(Body::from);
                strip_answer(response.headers_mut());
                // The body has another length where a key in it was masked.
                response.headers_mut().remove(CONTENT_LENGTH);
                response
            }
            (Surface::Gemini, None) => self.error.into_google(),
            (Surface::Interactions, None) => self.error.into_interactions(),
            (Surface::OpenAi, _) => self.error.into_openai(),
        }
    }
}

/// Passes a request on, and its answer back. A request that costs something goes through admission.
pub(super) async fn relay(State(gateway): State<Gateway>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if head.method == Method::OPTIONS {
        return options();
    }
    let mut destination = match Destination::of(&head) {
        Ok(destination) => destination,
        Err((surface, error)) => return RelayError::from(error).into_response(surface),
    };
    let surface = destination.surface;
    let relayed = match destination.call.take() {
        Some(call) if !call.takes_file => {
            counted::send(&gateway, head, body, destination, call).await
        }
        // Boxed so that a call that waits for admission takes no memory for it.
        call => Box::pin(pass::pass(&gateway, head, body, destination, call)).await,
    };
    relayed.unwrap_or_else(|error| error.into_response(surface))
}

/// Answers requests that match no route. A path that would be passed on without its doubled slashes
/// is passed on.
pub(super) async fn unrouted(State(gateway): State<Gateway>, request: Request) -> Response {
    match single_slashes(request.uri().path()) {
        Cow::Owned(path) if is_live(&path) => live(State(gateway), request).await,
        Cow::Owned(path) if PREFIXES.iter().any(|prefix| path.starts_with(prefix)) => {
            relay(State(gateway), request).await
        }
        _ => ApiError::not_found().into_response(),
    }
}

/// The methods of a path that is passed on. Gemini is not asked.
fn options() -> Response {
    let allow = [(ALLOW, HeaderValue::from_static(METHODS))];
    (StatusCode::NO_CONTENT, allow).into_response()
}
