//! What applies to every request: checks of the host and the method, and headers for browsers.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_SECURITY_POLICY, HOST, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderValue, Version};

use super::browser;
use super::error::ApiError;
use super::methods::{METHODS, is_known};
use crate::gateway::Gateway;

/// What a browser may do with an answer of this service. The pages of `/docs` use style attributes and
/// pictures in `data:` URLs, and nothing from other origins.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
);

/// Refuses invalid requests, answers the preflights of browsers, and sets the security headers of every
/// answer.
pub(super) async fn guard(
    State(gateway): State<Gateway>,
    request: Request,
    next: Next,
) -> Response {
    let trusted = &gateway.config.cors_origins;
    let reader = browser::reader(request.headers(), trusted);
    let mut response = if let Some(refusal) = refusal(&request) {
        refusal
    } else if browser::is_preflight(request.method(), request.headers()) {
        browser::preflight(request.headers(), trusted)
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    browser::expose(headers, reader, trusted);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(PAGE_POLICY);
    response
}

/// The answer to a request without exactly one host, or with an unknown method. TRACE is unknown because
/// it would show a client the key that the server adds.
fn refusal(request: &Request) -> Option<Response> {
    if !has_one_host(request) {
        return Some(ApiError::invalid_host().into_response());
    }
    if is_known(request.method()) {
        return None;
    }
    let mut refusal = ApiError::method_not_allowed().into_response();
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    Some(refusal)
}

/// Whether a request has exactly one host, without user information. It may have none only before
/// HTTP/1.1. Source: RFC 9112, section 3.2; RFC 9113, section 8.3.1.
fn has_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => !host.as_bytes().contains(&b'@'),
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}
