//! What of a request's head goes on to Gemini, and what of an answer's comes back.

use http::header::{
    ALT_SVC, AUTHORIZATION, CONNECTION, EXPECT, HOST, LOCATION, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::api::auth::{ADMIN_API_KEY, without_key};
use crate::api::body::EXTERNAL_SEMAPHORE_ID;
use crate::api::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::{API_KEY, Forward, Surface};

/// Headers that are about one connection. Source: RFC 9110, section 7.6.1.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that are for this service.
const OURS: [HeaderName; 6] =
    [ADMIN_API_KEY, API_KEY, AUTHORIZATION, EXTERNAL_SEMAPHORE_ID, HOST, EXPECT];

/// Headers of answers that hold a URL of Gemini's, at which an upload goes on.
const UPLOAD_URLS: [HeaderName; 3] = [
    LOCATION,
    HeaderName::from_static("x-goog-upload-url"),
    HeaderName::from_static("x-goog-upload-control-url"),
];

/// What a request is passed on as: what is for this service stays here, the key above all.
///
/// # Errors
/// 400 where the path was escaped so that it is none any more.
pub(super) fn forward(surface: Surface, head: Parts, path: &str) -> Result<Forward, ApiError> {
    let Parts { method, uri, mut headers, .. } = head;
    let query = without_key(uri.query().unwrap_or_default());
    let mark = if query.is_empty() { "" } else { "?" };
    let path = format!("{path}{mark}{query}").parse();
    let path = path.map_err(|_| ApiError::unusable_path("The path cannot be passed on."))?;
    strip(&mut headers);
    OURS.iter().for_each(|name| drop(headers.remove(name)));
    Ok(Forward { surface, method, path, headers, streams: false })
}

/// Takes out what is about one connection.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(','));
    let named: Vec<_> = named.filter_map(|name| name.trim().parse::<HeaderName>().ok()).collect();
    named.iter().chain(&HOP_BY_HOP).for_each(|name| drop(headers.remove(name)));
    // It invites to another port of the same host, where this service is not.
    headers.remove(ALT_SVC);
}

/// Where the client reaches this service, as it or the proxy before it says.
pub(super) fn origin(head: &Parts) -> Option<String> {
    let text = |name: HeaderName| head.headers.get(name)?.to_str().ok();
    let scheme = text(HeaderName::from_static("x-forwarded-proto"));
    let scheme = scheme.filter(|scheme| matches!(*scheme, "http" | "https")).unwrap_or("http");
    Some(format!("{scheme}://{}", text(HOST)?))
}

/// Makes the URLs at which an upload goes on lead through this service, where its client may be
/// the only one to reach.
pub(super) fn redirect_uploads(gateway: &Gateway, headers: &mut HeaderMap, origin: &str) {
    for name in UPLOAD_URLS {
        let Some(url) = headers.get(&name).and_then(|url| Uri::try_from(url.as_bytes()).ok())
        else {
            continue;
        };
        let Some(path) = gateway.dispatcher.path_of(&url) else { continue };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let url = format!("{origin}{path}?{}", without_key(query));
        if let Ok(url) = HeaderValue::try_from(url) {
            headers.insert(name, url);
        }
    }
}
