//! Which headers and parameters of a request are sent to Gemini, and which headers of its response
//! are passed on.

use http::header::{
    ALT_SVC, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, COOKIE, EXPECT,
    FORWARDED, HOST, LOCATION, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::upload;
use crate::api::auth::{ADMIN_API_KEY, Tier, holds_admin_key, name_of, parameters, without_key};
use crate::api::error::ApiError;
use crate::api::incoming::EXTERNAL_SEMAPHORE_ID;
use crate::gateway::Gateway;
use crate::gemini::{API_KEY, Forward, Surface, TraceContext, USER_PROJECT};

/// Hop-by-hop headers, which concern a single connection. Source: RFC 9110, section 7.6.1.
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

/// Request headers that are not sent to Gemini: those that are meant for the gateway, those that
/// describe its client or the page that sent the client, those that would turn the request into
/// another one, and those that Gemini would take for a second credential.
const KEPT_BACK: [HeaderName; 30] = [
    ADMIN_API_KEY,
    API_KEY,
    AUTHORIZATION,
    EXTERNAL_SEMAPHORE_ID,
    HOST,
    EXPECT,
    COOKIE,
    REFERER,
    ORIGIN,
    HeaderName::from_static("x-referer"),
    HeaderName::from_static("x-origin"),
    FORWARDED,
    VIA,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-goog-iam-authorization-token"),
    HeaderName::from_static("x-goog-iam-authority-selector"),
    // Credentials of other services, which Gemini must not see.
    HeaderName::from_static("x-serverless-authorization"),
    HeaderName::from_static("x-goog-iap-jwt-assertion"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
];

/// Prefixes of the names of further such headers.
const KEPT_BACK_FAMILIES: [&str; 4] =
    ["x-forwarded-", "sec-fetch-", "access-control-", "x-goog-authenticated-user-"];

/// Parameters that would turn the request into another one, or its answer into a script, and are not
/// sent. `$ct` would override the content type, which the gateway has checked. Sources:
/// closure-library, `goog.net.rpc.HttpCors`; Google's system parameters.
const KEPT_BACK_PARAMETERS: [&str; 5] =
    ["$httpMethod", "$httpHeaders", "callback", "$callback", "$ct"];

/// Keeps a browser from running a page of Gemini's, or an uploaded file, with the gateway's origin.
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'");

/// The prefix that a proxy has removed from the path of a request.
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The longest such prefix that is accepted, in bytes.
const MAX_PREFIX: usize = 256;

/// Response headers with the URL of Gemini's at which an upload continues.
const UPLOAD_URLS: [HeaderName; 3] = [
    LOCATION,
    HeaderName::from_static("x-goog-upload-url"),
    HeaderName::from_static("x-goog-upload-control-url"),
];

/// The request to send to Gemini, without what is meant for the gateway, above all the key.
///
/// # Errors
/// 400 for a path that cannot be sent; 401 if the admin key would be sent with the request.
pub(super) fn forward(
    gateway: &Gateway,
    surface: Surface,
    head: Parts,
    path: &str,
    tier: Option<Tier>,
) -> Result<Forward, ApiError> {
    let Parts { method, uri, mut headers, extensions, .. } = head;
    let query = passed_on(uri.query().unwrap_or_default());
    strip(&mut headers);
    let kept_back: Vec<_> = headers.keys().filter(|name| is_kept_back(name)).cloned().collect();
    kept_back.iter().for_each(|name| drop(headers.remove(name)));
    // Only the owner of a key may choose the project that is charged.
    if tier != Some(Tier::Own) {
        headers.remove(USER_PROJECT);
    }
    if shows(gateway, path, &query, &headers) {
        return Err(ApiError::misplaced_admin_key());
    }
    if let Some(trace) = extensions.get::<TraceContext>() {
        trace.insert_into(&mut headers);
    }
    let mark = if query.is_empty() { "" } else { "?" };
    let path = format!("{path}{mark}{query}").parse();
    let path = path.map_err(|_| ApiError::unusable_path("The path cannot be passed on."))?;
    Ok(Forward { surface, method, path, headers, streams: false, is_read: false, runs_on: false })
}

/// The parameters of a query that are sent, unchanged.
fn passed_on(query: &str) -> String {
    let without_key = without_key(query);
    let is_kept_back = |parameter: &&str| {
        !upload::is_ours(parameter) && !KEPT_BACK_PARAMETERS.contains(&&*name_of(parameter))
    };
    let rest: Vec<_> = parameters(&without_key).filter(is_kept_back).collect();
    rest.join("&")
}

fn is_kept_back(name: &HeaderName) -> bool {
    KEPT_BACK.contains(name)
        || KEPT_BACK_FAMILIES.iter().any(|family| name.as_str().starts_with(family))
}

/// Whether the admin key is anywhere in the head of a request, escaped or not.
fn shows(gateway: &Gateway, path: &str, query: &str, headers: &HeaderMap) -> bool {
    let Some(admin) = &gateway.config.admin_api_key else { return false };
    let is_in = |text: &[u8]| holds_admin_key(text, gateway);
    path.split(['/', ':']).chain([path, query]).any(|text| is_in(text.as_bytes()))
        || parameters(query)
            .flat_map(|parameter| parameter.splitn(2, '='))
            .any(|text| is_in(text.as_bytes()))
        || headers.keys().any(|name| admin.is_in_name(name))
        || headers.values().any(|value| is_in(value.as_bytes()))
}

/// Removes the hop-by-hop headers.
fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(','));
    let named: Vec<_> = named.filter_map(|name| name.trim().parse::<HeaderName>().ok()).collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        // It overrides the length. Source: RFC 9112, section 6.3.
        headers.remove(CONTENT_LENGTH);
    }
    named.iter().chain(&HOP_BY_HOP).for_each(|name| drop(headers.remove(name)));
}

/// Removes the response headers that concern the connection to Gemini, or a browser's relation to
/// Gemini.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    strip(headers);
    // It would send the client to a port of this host on which the gateway does not listen.
    headers.remove(ALT_SVC);
    headers.remove(SET_COOKIE);
    let cors = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let cors: Vec<_> = headers.keys().filter(cors).cloned().collect();
    cors.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(CONTENT_SECURITY_POLICY, SANDBOX);
}

/// The URL at which the client reaches the gateway, as the client or the proxy before it says.
pub(super) fn public_url(head: &Parts) -> Option<String> {
    let text = |name: HeaderName| head.headers.get(name)?.to_str().ok();
    let scheme = text(HeaderName::from_static("x-forwarded-proto"));
    let scheme = scheme.filter(|scheme| matches!(*scheme, "http" | "https")).unwrap_or("http");
    let prefix = text(X_FORWARDED_PREFIX).and_then(path_prefix).unwrap_or_default();
    Some(format!("{scheme}://{}{prefix}", text(HOST)?))
}

/// Reads the prefix that a proxy removes: `/a/b`, without a trailing slash. Any other value may come
/// from a client that is not a proxy, and is ignored.
fn path_prefix(prefix: &str) -> Option<&str> {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_unreserved =
        |byte| matches!(byte, b'-' | b'.' | b'_' | b'~') || byte.is_ascii_alphanumeric();
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(is_unreserved);
    let is_path = prefix.len() <= MAX_PREFIX && prefix.strip_prefix('/')?.split('/').all(is_name);
    is_path.then_some(prefix)
}

/// Rewrites and signs the URLs at which an upload continues so that they lead through the gateway:
/// the client may be unable to reach Gemini.
pub(super) fn redirect_uploads(gateway: &Gateway, headers: &mut HeaderMap, public_url: &str) {
    for name in UPLOAD_URLS {
        let Some(url) = headers.get(&name).and_then(|url| Uri::try_from(url.as_bytes()).ok())
        else {
            continue;
        };
        let Some(path) = gateway.dispatcher.path_of(&url) else { continue };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let now = jiff::Timestamp::now();
        let query = upload::signed(&gateway.config, path, without_key(query), now);
        if let Ok(url) = HeaderValue::try_from(format!("{public_url}{path}?{query}")) {
            headers.insert(name, url);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_accepted_only_if_it_is_a_plain_path() {
        for (prefix, path) in [
            ("/gemini", Some("/gemini")),
            ("/gemini/", Some("/gemini")),
            ("/team-a/v1.2/~x_y", Some("/team-a/v1.2/~x_y")),
            ("/...", Some("/...")),
            ("", None),
            ("/", None),
            ("gemini", None),
            ("//evil.example", None),
            ("/a//b", None),
            ("/a/../b", None),
            ("/..", None),
            ("/./a", None),
            ("@evil.example", None),
            (".evil.example/", None),
            (":80/", None),
            ("/a?b=c", None),
            ("/a#b", None),
            ("/a%2f..", None),
            ("/a\\b", None),
            ("/a b", None),
            ("/a, /b", None),
            ("/a\r\nx: y", None),
            ("/\u{e9}", None),
        ] {
            assert_eq!(path_prefix(prefix), path, "{prefix:?}");
        }
        assert!(path_prefix(&format!("/{}", "a".repeat(255))).is_some());
        assert!(path_prefix(&format!("/{}", "a".repeat(256))).is_none());
    }
}
