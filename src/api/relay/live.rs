//! Live sessions over WebSockets.
//!
//! Errors that are known before the handshake are HTTP responses. Later errors are close frames: see
//! [`session`].

mod client;
mod session;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{Instrument, Span};

use super::headers::forward;
use super::options;
use crate::api::auth::{Caller, Purpose};
use crate::api::browser;
use crate::api::destination::single_slashes;
use crate::api::error::ApiError;
use crate::api::incoming::{observer, semaphore_id};
use crate::api::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::{LiveApi, Surface};
use crate::upgrade::Takeover;
use session::Session;

/// The routes of live sessions. Source: Google's Python SDK 3.6.1.
pub(in crate::api) const ROUTES: [&str; 4] = [
    "/ws/{*path}",
    "/v1/interactions/live",
    "/v1beta/interactions/live",
    "/v1alpha/interactions/live",
];

/// The version of the protocol. Source: RFC 6455, section 4.1.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// Whether a path, without doubled slashes, is one of live sessions.
pub(in crate::api) fn is_live(path: &str) -> bool {
    path.starts_with("/ws/") || ROUTES[1..].contains(&path)
}

/// Accepts a WebSocket, and relays its messages.
pub(in crate::api) async fn live(State(gateway): State<Gateway>, request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return options();
    }
    // Google's SDKs join a base URL that ends with a slash and a path that begins with one.
    let path = single_slashes(request.uri().path()).into_owned();
    let api = api(&path);
    let is_of_interactions = matches!(api, Ok(LiveApi::Interactions));
    let accepted = async { accept(gateway, request, api?, &path).await };
    accepted.await.unwrap_or_else(|error| {
        let mut refusal = match is_of_interactions {
            true => error.into_interactions(),
            false => error.into_google(),
        };
        if refusal.status() == StatusCode::UPGRADE_REQUIRED {
            refusal.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, VERSION);
        }
        refusal
    })
}

async fn accept(
    gateway: Gateway,
    mut request: Request,
    api: LiveApi,
    path: &str,
) -> Result<Response, ApiError> {
    let accepted = accepted(&request).ok_or_else(ApiError::upgrade_required)?;
    let takeover = request.extensions().get::<Takeover>().cloned();
    let takeover = takeover.ok_or_else(ApiError::upgrade_required)?;
    let connection = hyper::upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    check_origin(&head.headers, &gateway)?;
    let caller = Caller::of(&head.headers, head.uri.query(), &gateway);
    let payer = caller.relayed(Purpose::Generation, &gateway)?;
    gateway.limiter.check_queue()?;
    let observer = observer(&head.extensions);
    let semaphore = semaphore_id(&head.headers);
    let semaphore = named_semaphore(&gateway, semaphore.as_deref()).await?;
    let request = forward(&gateway, Surface::Gemini, head, path, Some(payer.tier))?;
    let session = Session { gateway, api, key: payer.key, semaphore, request, observer };
    let span = Span::current();
    takeover.with(move |cut_off| session.run(connection, cut_off).instrument(span));
    Ok(switching_protocols(accepted))
}

/// The API at a path.
fn api(path: &str) -> Result<LiveApi, ApiError> {
    let Some(method) = path.strip_prefix("/ws/") else { return Ok(LiveApi::Interactions) };
    let method = method.strip_prefix("google.ai.generativelanguage.v");
    let method = method.and_then(|method| method.split_once(".GenerativeService.Bidi"));
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_known = method.is_some_and(|(version, name)| is_word(version) && is_word(name));
    if is_known { Ok(LiveApi::Bidi) } else { Err(ApiError::not_found()) }
}

/// The value of `Sec-WebSocket-Accept` for a handshake; `None` if the request is not a handshake.
/// Source: RFC 6455, section 4.2.
fn accepted(request: &Request<Body>) -> Option<HeaderValue> {
    let headers = request.headers();
    let is_handshake = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket")
        && headers.get(SEC_WEBSOCKET_VERSION) == Some(&VERSION);
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?.as_bytes();
    let nonce = STANDARD.decode(key).ok().filter(|nonce| nonce.len() == 16);
    nonce.and_then(|_| HeaderValue::try_from(derive_accept_key(key)).ok())
}

/// Whether the list in a header has a token.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut tokens = values.flat_map(|value| value.split(','));
    tokens.any(|other| other.trim().eq_ignore_ascii_case(token))
}

/// Refuses a session that a browser opens for a page that may not read answers. Browsers send no
/// preflight request for WebSockets.
fn check_origin(headers: &HeaderMap, gateway: &Gateway) -> Result<(), ApiError> {
    let trusted = &gateway.config.cors_origins;
    let may_read = browser::reader(headers, trusted).is_some();
    if browser::is_cross_site(headers, trusted) && !may_read {
        return Err(ApiError::cross_site_session());
    }
    Ok(())
}

fn switching_protocols(accepted: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bidirectional_methods_of_gemini_are_served() {
        for version in ["v1", "v1beta", "v1alpha"] {
            for method in ["GenerateContent", "GenerateContentConstrained", "GenerateMusic"] {
                let service = format!("google.ai.generativelanguage.{version}.GenerativeService");
                let found = api(&format!("/ws/{service}.Bidi{method}"));
                assert!(matches!(found, Ok(LiveApi::Bidi)), "{method}");
            }
            let found = api(&format!("/{version}/interactions/live"));
            assert!(matches!(found, Ok(LiveApi::Interactions)));
        }
        for path in [
            "/ws/",
            "/ws/google.ai.generativelanguage.v1beta.GenerativeService.GenerateContent",
            "/ws/google.ai.generativelanguage.v1beta.GenerativeService.Bidi/../x",
            "/ws/google.ai.generativelanguage.v1beta.OtherService.BidiGenerateContent",
            "/ws/google.ai.generativelanguage.v1beta.GenerativeService.Bidi%47enerateContent",
        ] {
            assert!(api(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_handshake_is_recognized_by_its_headers_and_version() {
        let handshake = || {
            Request::get("/ws/x")
                .header(CONNECTION, "keep-alive, Upgrade")
                .header(UPGRADE, "WebSocket")
                .header(SEC_WEBSOCKET_VERSION, "13")
                .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
                .body(Body::empty())
                .unwrap()
        };
        // Source: RFC 6455, section 1.3.
        assert_eq!(accepted(&handshake()).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (name, value) in [
            (CONNECTION, "close"),
            (UPGRADE, "h2c"),
            (SEC_WEBSOCKET_VERSION, "8"),
            (SEC_WEBSOCKET_KEY, "c2hvcnQ="),
            (SEC_WEBSOCKET_KEY, "not base64"),
        ] {
            let mut other = handshake();
            other.headers_mut().insert(name, HeaderValue::from_static(value));
            assert!(accepted(&other).is_none(), "{value}");
        }
        let mut other = handshake();
        *other.version_mut() = Version::HTTP_2;
        assert!(accepted(&other).is_none());
        let other = handshake().map(|_| Body::from("x"));
        assert!(accepted(&other).is_none());
    }
}
