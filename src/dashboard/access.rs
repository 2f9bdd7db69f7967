//! Who may see a page and send a form.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, REFERRER_POLICY, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use maud::html;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Site;
use super::failure::PageError;
use super::form::Form;
use super::layout;
use super::sessions::{Session, Token};
use crate::api::{is_cross_site, is_trusted_host};
use crate::config::CorsOrigins;

/// What a browser may do with a page: load the files of the dashboard and send its forms.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
);

/// No page of another origin shares a process or a window with the dashboard. Source: WHATWG, HTML,
/// "Cross-origin opener policies"; WHATWG, Fetch, "Cross-Origin-Resource-Policy header".
const ISOLATION: [HeaderName; 2] = [
    HeaderName::from_static("cross-origin-opener-policy"),
    HeaderName::from_static("cross-origin-resource-policy"),
];

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The cookie with the token of a session.
const COOKIE_NAME: &str = "dashboard_session";

/// How many cookies of this name are tried. Pages of other ports and subdomains can add some.
const MAX_COOKIES: usize = 4;

/// No page of another origin may read a page or send a form, whatever `CORS_ORIGINS` says.
const NO_ORIGINS: CorsOrigins = CorsOrigins::These(Vec::new());

/// What stays as it is in the value of a parameter.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// The form field with the token of the session.
pub(super) const CSRF_FIELD: &str = "csrf";

/// Refuses requests for pages of other origins and for other host names, and sets the headers of
/// every page.
pub(super) async fn check(State(site): State<Site>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let mut response = if !is_trusted_host(headers, &site.gateway.config) {
        PageError::foreign_host().into_response()
    } else if is_cross_site(headers, &NO_ORIGINS) && !is_navigation(request.method(), headers) {
        PageError::cross_site().into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    for name in ISOLATION {
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether somebody follows a link.
fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    let mode = headers.get(SEC_FETCH_MODE);
    *method == Method::GET && mode.is_none_or(|mode| mode == "navigate")
}

/// The address of a client. Behind a proxy in a private network, the one that the proxy has seen.
pub(super) fn client_address(head: &Parts) -> IpAddr {
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip().to_canonical());
    let is_near = match peer {
        IpAddr::V4(peer) => peer.is_loopback() || peer.is_private(),
        IpAddr::V6(peer) => peer.is_loopback() || peer.is_unique_local(),
    };
    let forwarded = head.headers.get_all(X_FORWARDED_FOR).iter().next_back();
    let forwarded = forwarded.and_then(|list| list.to_str().ok()?.rsplit(',').next());
    let forwarded = forwarded.and_then(|address| address.trim().parse().ok());
    forwarded.filter(|_| is_near).unwrap_or(peer)
}

/// The header that gives the browser the token of a new session.
pub(super) fn session_cookie(token: &Token, headers: &HeaderMap) -> [(HeaderName, HeaderValue); 1] {
    cookie(&format!("{COOKIE_NAME}={}; {}", token.reveal(), attributes(headers)))
}

/// The header that removes the token from the browser.
pub(super) fn no_session_cookie(headers: &HeaderMap) -> [(HeaderName, HeaderValue); 1] {
    cookie(&format!("{COOKIE_NAME}=; Max-Age=0; {}", attributes(headers)))
}

fn cookie(cookie: &str) -> [(HeaderName, HeaderValue); 1] {
    let mut cookie = HeaderValue::from_str(cookie).expect("it is ASCII");
    cookie.set_sensitive(true);
    [(SET_COOKIE, cookie)]
}

fn attributes(headers: &HeaderMap) -> &'static str {
    // The first proxy, which has the browser's connection, comes first.
    let schemes = headers.get(X_FORWARDED_PROTO).and_then(|schemes| schemes.to_str().ok());
    let scheme = schemes.and_then(|schemes| schemes.split(',').next()).unwrap_or_default();
    match scheme.trim().eq_ignore_ascii_case("https") {
        true => "Path=/dashboard; HttpOnly; SameSite=Strict; Secure",
        false => "Path=/dashboard; HttpOnly; SameSite=Strict",
    }
}

/// The session of a request.
pub(super) async fn session_of(headers: &HeaderMap, site: &Site) -> Option<Session> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let cookies = cookies.flat_map(|cookies| cookies.split(';'));
    let cookies = cookies.filter_map(|cookie| cookie.trim().split_once('='));
    let tokens = cookies.filter(|(name, _)| *name == COOKIE_NAME).take(MAX_COOKIES);
    let tokens: Vec<_> = tokens.filter_map(|(_, token)| Token::parse(token)).collect();
    for token in tokens {
        let session = site.dashboard.sessions.find(&token, site.gateway.limiter.store()).await;
        if session.is_some() {
            return session;
        }
    }
    None
}

/// A request with an open session.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub site: Site,
    pub session: Session,
}

impl FromRequestParts<Site> for View {
    type Rejection = Response;

    async fn from_request_parts(head: &mut Parts, site: &Site) -> Result<Self, Response> {
        match session_of(&head.headers, site).await {
            Some(session) => Ok(Self { site: site.clone(), session }),
            None => Err(without_session(head)),
        }
    }
}

/// Leads to the login, and from there to the page that was asked for.
fn without_session(head: &Parts) -> Response {
    let wanted = match head.method {
        Method::GET => head.uri.path_and_query().map_or("/dashboard", |wanted| wanted.as_str()),
        _ => "/dashboard",
    };
    // Browsers send the cookie only with requests of the dashboard's own pages, so a link from
    // elsewhere has to be followed from here.
    let from_elsewhere = head.headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site");
    if from_elsewhere && head.method == Method::GET {
        let refresh = html! { meta http-equiv="refresh" content=(format!("0; url={wanted}")); };
        return layout::bare("One moment", refresh, html! { p { a href=(wanted) { "Continue" } } });
    }
    let wanted = utf8_percent_encode(wanted, IN_QUERY);
    Redirect::to(&format!("/dashboard/login?next={wanted}")).into_response()
}

/// A form that a page of the session has sent.
#[derive(Debug)]
pub(super) struct Action {
    pub view: View,
    pub form: Form,
}

impl FromRequest<Site> for Action {
    type Rejection = Response;

    async fn from_request(request: Request<Body>, site: &Site) -> Result<Self, Response> {
        let (mut head, body) = request.into_parts();
        let view = View::from_request_parts(&mut head, site).await?;
        let form = Form::read(&head.headers, body, &site.gateway).await;
        let form = form.map_err(IntoResponse::into_response)?;
        if !view.session.is_csrf(form.get(CSRF_FIELD)) {
            return Err(PageError::forged().into_response());
        }
        Ok(Self { view, form })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let request = http::Request::get("/dashboard");
        let request =
            forwarded.iter().fold(request, |request, list| request.header(X_FORWARDED_FOR, *list));
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        head.extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        client_address(&head).to_string()
    }

    #[test]
    fn only_a_proxy_nearby_says_where_a_request_comes_from() {
        assert_eq!(client("203.0.113.1", &["198.51.100.1"]), "203.0.113.1");
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(client("::ffff:127.0.0.1", &["1.1.1.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "2001:db8::1"]), "2001:db8::1");
        assert_eq!(client("fd00::1", &["nonsense"]), "fd00::1");
    }
}
