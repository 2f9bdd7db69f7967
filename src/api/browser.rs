//! Requests of browsers (CORS). A browser sends requests for every page that its user visits, so without
//! these checks any page could spend the server's key.

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::methods::METHODS;
use crate::config::{Config, CorsOrigins};

/// How the page that causes a request is related to the server. Source: W3C, Fetch Metadata Request
/// Headers.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a public page may send requests to a server in a private network: a browser's question, and
/// the answer. Source: WICG, Private Network Access.
const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// How long a browser remembers the answer to a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The content types that a browser sends to another origin without a preflight. Source: WHATWG, Fetch,
/// "CORS-safelisted request-header".
const SIMPLE_TYPES: [&str; 3] =
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];

/// Whether a browser sent a request for a page of another, untrusted origin. A page cannot change the
/// headers that show this.
pub(crate) fn is_cross_site(headers: &HeaderMap, trusted: &CorsOrigins) -> bool {
    let origin = headers.get(ORIGIN);
    if origin.is_some_and(|origin| trusted.name(origin)) {
        return false;
    }
    match headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => false,
        Some(_) => true,
        None => origin.is_some_and(|origin| !is_own(origin, headers)),
    }
}

/// Whether an origin is the host of the request. Behind a proxy, the scheme may differ.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin.zip(host).is_some_and(|((_, authority), host)| authority.eq_ignore_ascii_case(host))
}

/// Whether the server's key may be spent for requests to this host name. The owner of another name can
/// point it to this server, even to the loopback address (DNS rebinding).
pub(crate) fn is_trusted_host(headers: &HeaderMap, config: &Config) -> bool {
    // Every browser sends a host, so this is not a browser.
    let Some(host) = headers.get(HOST) else { return true };
    if !config.is_loopback() && config.allowed_hosts.is_empty() {
        return true;
    }
    let name = host_name(host.to_str().unwrap_or_default());
    is_loopback(name) || config.allowed_hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

/// The host without its port.
fn host_name(host: &str) -> &str {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.trim_end_matches('.')
}

fn is_loopback(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a browser may have sent a body without a preflight.
pub(super) fn is_simple(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return true };
    let Ok(content_type) = content_type.to_str() else { return true };
    let essence = content_type.split([';', ',']).next().unwrap_or_default().trim();
    SIMPLE_TYPES.iter().any(|simple| simple.eq_ignore_ascii_case(essence))
}

/// Whether a request is a CORS preflight.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight. It allows all methods and headers; [`expose`] decides which origins may read
/// answers.
pub(super) fn preflight(headers: &HeaderMap, trusted: &CorsOrigins) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    answer.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(wanted) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    if headers.contains_key(REQUEST_PRIVATE_NETWORK) && reader(headers, trusted).is_some() {
        answer.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    response
}

/// The value of `Access-Control-Allow-Origin`, if the origin of a request may read the answer.
pub(super) fn reader(headers: &HeaderMap, trusted: &CorsOrigins) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN).filter(|origin| trusted.allow(origin))?;
    Some(match trusted {
        CorsOrigins::Any => HeaderValue::from_static("*"),
        CorsOrigins::These(_) => origin.clone(),
    })
}

/// Sets the headers that let pages of an origin read an answer.
pub(super) fn expose(answer: &mut HeaderMap, reader: Option<HeaderValue>, trusted: &CorsOrigins) {
    if matches!(trusted, CorsOrigins::These(_)) && !trusted.are_none() {
        answer.append(VARY, HeaderValue::from_static("origin"));
    }
    if let Some(reader) = reader {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, reader);
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_cross_site_request_is_recognized_by_the_headers_of_the_browser() {
        let trusted = CorsOrigins::These(vec![HeaderValue::from_static("https://app.example")]);
        let host = ("host", "gw:5004");
        for (pairs, cross_site) in [
            (&[host][..], false),
            (&[host, ("origin", "http://gw:5004")], false),
            (&[host, ("origin", "https://GW:5004")], false),
            (&[host, ("origin", "http://gw:5005")], true),
            (&[host, ("origin", "https://evil.example")], true),
            (&[host, ("origin", "null")], true),
            (&[host, ("origin", "https://app.example"), ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("sec-fetch-site", "cross-site")], true),
            (&[host, ("sec-fetch-site", "same-site")], true),
            // A proxy has changed the host.
            (&[host, ("origin", "https://gw.example"), ("sec-fetch-site", "same-origin")], false),
        ] {
            assert_eq!(is_cross_site(&headers(pairs), &trusted), cross_site, "{pairs:?}");
        }
    }

    #[test]
    fn a_server_on_loopback_trusts_loopback_hosts_and_those_of_the_setting() {
        let mut config = Config { allowed_hosts: vec!["gw.example".into()], ..Config::default() };
        let trusts = |config: &Config, host: &'static str| {
            is_trusted_host(&headers(&[("host", host)]), config)
        };
        for (host, trusted) in [
            ("localhost", true),
            ("LOCALHOST:5004", true),
            ("a.localhost.:1", true),
            ("127.0.0.1:5004", true),
            ("127.9.9.9", true),
            ("[::1]:5004", true),
            ("gw.example:5004", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("192.168.0.1", false),
            ("[::2]", false),
            ("", false),
        ] {
            assert_eq!(trusts(&config, host), trusted, "{host}");
        }
        config.host = std::net::Ipv4Addr::UNSPECIFIED.into();
        assert!(!trusts(&config, "evil.example"));
        config.allowed_hosts.clear();
        assert!(trusts(&config, "evil.example"));
    }

    #[test]
    fn content_types_that_need_no_preflight_are_simple() {
        for (content_type, simple) in [
            (&[][..], true),
            (&[("content-type", "text/plain;charset=UTF-8")], true),
            (&[("content-type", "Multipart/Form-Data; boundary=x")], true),
            (&[("content-type", "application/x-www-form-urlencoded")], true),
            (&[("content-type", "application/json")], false),
            (&[("content-type", "application/json; charset=utf-8")], false),
        ] {
            assert_eq!(is_simple(&headers(content_type)), simple, "{content_type:?}");
        }
    }
}
