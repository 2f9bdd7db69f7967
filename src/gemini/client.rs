//! The HTTP client for one exchange with Gemini.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_TYPE, PROXY_AUTHORIZATION, USER_AGENT},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use jiff::Timestamp;
use tower_http::timeout::TimeoutError;

use super::{
    Answer, AnswerPart, ApiKey, Error, ErrorKind, Model, Payload, Secrets, SendContext, Surface,
    payload::CheckedBody, quota::LONGEST_SHORTAGE, retry_after, status::MAX_ERROR,
    usage::tier_header,
};
use crate::connect::{
    Authorities, Proxy, ProxyError, UpstreamConnector, unreachable, upstream_connector,
};

/// The header that carries an API key. The query never does, because queries are logged.
pub const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// The header with the project that an access token charges.
pub const USER_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

/// The `User-Agent` of the gateway.
pub(super) const NAME: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Only unencoded answers are requested: a key cannot be found in an encoded one.
pub(super) const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// How long an idle connection is kept: shorter than the upstream keeps it, so that a connection is
/// rarely found closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read, in bytes. Text stays far below it; images may come close.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// An error of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The upstream. Cheap to clone; clones share their connections.
///
/// It uses HTTP/1.1 only. Over HTTP/2 all calls would share one connection, and a connection to Google
/// carries about 100 calls at once, so a limit of 300 would silently be 100. Over HTTP/1.1 each call in
/// flight has its own connection. The HTTP/2 features are not compiled in either, and a test checks the
/// handshake.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<UpstreamConnector>, CheckedBody>,
    connector: Arc<HttpsConnector<UpstreamConnector>>,
    base: Base,
    /// The proxy that forwards plain `http` requests, if there is one. A proxy that opens tunnels is
    /// known only to the connector.
    forward_proxy: Option<Arc<Proxy>>,
    /// Keys that are overwritten in every answer, whichever key pays for the call.
    secrets: Secrets,
}

/// The base URL of the API.
#[derive(Clone)]
struct Base {
    scheme: Scheme,
    authority: Authority,
    /// Put before every path. Empty, or starts with a slash and does not end with one.
    prefix: String,
}

impl Client {
    /// A client without a proxy for the API at `base_url`, such as
    /// `https://generativelanguage.googleapis.com` or `http://127.0.0.1:5005/prefix`. The path of
    /// the base URL is put before the path of every call.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if it is not an `http` or `https` URL, has a query, a fragment or a user
    /// name, or is `https` on a machine without CA certificates.
    pub fn new(base_url: &str) -> Result<Client, InvalidBaseUrl> {
        Self::with_proxy(base_url, None, &Authorities::default())
    }

    /// The same, through a proxy if one is given, and trusting these certificate authorities in
    /// addition to the system's.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`], as for [`Client::new`].
    pub fn with_proxy(
        base_url: &str,
        proxy: Option<&Proxy>,
        authorities: &Authorities,
    ) -> Result<Client, InvalidBaseUrl> {
        let base = Base::parse(base_url)?;
        let is_tls = base.scheme == Scheme::HTTPS;
        let connector = upstream_connector(is_tls, proxy, authorities)
            .map_err(|error| InvalidBaseUrl(format!("TLS cannot be set up: {error}")))?;
        let forward_proxy = proxy.filter(|proxy| proxy.is_http() && !is_tls).cloned().map(Arc::new);
        let http = pool(&connector);
        let connector = Arc::new(connector);
        Ok(Client { http, connector, base, forward_proxy, secrets: Secrets::default() })
    }

    /// The same client with its own connection pool.
    pub fn with_own_connections(&self) -> Client {
        Client { http: pool(&self.connector), ..self.clone() }
    }

    /// The same client, which also overwrites this key in every answer, whichever key pays.
    pub fn masking(self, key: Option<&ApiKey>) -> Client {
        Client { secrets: Secrets::new(key), ..self }
    }

    /// The keys that are overwritten in the answers to calls with this key.
    pub fn secrets(&self, key: Option<&ApiKey>) -> Secrets {
        key.map_or_else(|| self.secrets.clone(), |key| self.secrets.with(key))
    }

    /// Checks the form of a base URL; does not connect.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if it is not an `http` or `https` URL or has more than a path.
    pub fn check_base_url(base_url: &str) -> Result<(), InvalidBaseUrl> {
        Base::parse(base_url).map(drop)
    }

    /// Makes one exchange: `POST {base}/v1beta/models/{model}:generateContent`. It does not wait for
    /// limits, and it does not retry. Only if an idle connection turns out to be closed before
    /// anything is written to it, the call is sent on another one. `part` is the part of the answer
    /// that the body asks for. `timeout` covers everything from connecting to the last byte of the
    /// answer. The check of `context` is asked before anything is written, and nothing is written if it
    /// returns `false`.
    ///
    /// Dropping the future closes the connection, which makes Gemini stop.
    ///
    /// # Errors
    ///
    /// An [`Error`] if there is no text to return. Its message never shows the key.
    pub async fn generate(
        &self,
        key: &ApiKey,
        model: &Model,
        body: Bytes,
        part: AnswerPart,
        context: SendContext,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        let exchange = self.exchange(key, self.request(key, model, body), part, context);
        let result = tokio::time::timeout(timeout, exchange).await;
        result.unwrap_or_else(|_| Err(Error::timed_out(timeout)))
    }

    /// Sends a request to its path below the base URL and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Payload>,
        context: SendContext,
    ) -> Result<Response<Incoming>, Error> {
        *request.uri_mut() = self.base.url(format_args!("{}", request.uri()));
        self.send_request(request, context).await
    }

    /// Sends a request whose URL is complete.
    async fn send_request(
        &self,
        mut request: Request<Payload>,
        SendContext { check: send_check, trace }: SendContext,
    ) -> Result<Response<Incoming>, Error> {
        if let Some(trace) = trace {
            trace.insert_into(request.headers_mut());
        }
        let forward_proxy = self.forward_proxy.as_deref();
        if let Some(authorization) = forward_proxy.and_then(Proxy::authorization) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let written = Arc::new(AtomicBool::new(false));
        let request = request.map(|payload| CheckedBody {
            payload,
            send_check,
            written: Arc::clone(&written),
        });
        let answer = self.http.request(request).await;
        let answer =
            answer.map_err(|error| exchange_error(error, written.load(Ordering::Relaxed)))?;
        // Only the proxy sends this status, so the call has not reached Gemini.
        let is_rejected = answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        if is_rejected && forward_proxy.is_some() {
            return Err(connection_error(ProxyError::Unauthorized));
        }
        Ok(answer)
    }

    /// The path and query of a URL of this API, without the prefix; `None` for other URLs.
    pub fn path_of<'a>(&self, url: &'a Uri) -> Option<&'a str> {
        let own = url.authority() == Some(&self.base.authority);
        let path = url.path_and_query().filter(|_| own)?.as_str();
        path.strip_prefix(&*self.base.prefix)
    }

    fn request(&self, key: &ApiKey, model: &Model, body: Bytes) -> Request<Payload> {
        let mut request = Request::new(Payload::Buffered(Full::new(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            self.base.url(format_args!("/v1beta/{}:generateContent", model.resource()));
        let mut headers = HeaderMap::with_capacity(8);
        key.insert_into(&mut headers, Surface::Gemini);
        headers.insert(ACCEPT_ENCODING, IDENTITY);
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(USER_AGENT, NAME);
        *request.headers_mut() = headers;
        request
    }

    async fn exchange(
        &self,
        key: &ApiKey,
        request: Request<Payload>,
        part: AnswerPart,
        context: SendContext,
    ) -> Result<Answer, Error> {
        let response = self.send_request(request, context).await?;
        let status = response.status();
        let wait = retry_after::read(response.headers(), Timestamp::now(), LONGEST_SHORTAGE);
        let content_type = response.headers().get(CONTENT_TYPE).cloned();
        let tier = tier_header(response.headers());
        let body = read_body(status, response.into_body()).await?;
        if let Some(error) = Error::not_gemini(status, content_type.as_ref(), &body) {
            return Err(error.waiting(wait));
        }
        let secrets = self.secrets(Some(key));
        match Answer::read_part(status, &secrets.mask(body), part) {
            Ok(mut answer) => {
                answer.usage.service_tier = answer.usage.service_tier.or(tier);
                Ok(answer.masked(&secrets))
            }
            Err(mut error) => {
                error.usage.service_tier = error.usage.service_tier.or(tier);
                Err(error.waiting(wait).masked(&secrets))
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { scheme, authority, prefix } = &self.base;
        write!(f, "Client({scheme}://{authority}{prefix})")
    }
}

/// A base URL that cannot be used, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the base URL of Gemini cannot be used: {0}")]
pub struct InvalidBaseUrl(String);

impl Base {
    fn parse(base_url: &str) -> Result<Self, InvalidBaseUrl> {
        let invalid = |fault: &str| Err(InvalidBaseUrl(fault.to_owned()));
        if base_url.contains(['?', '#']) {
            return invalid("it has a query or a fragment");
        }
        let url: Uri = base_url
            .parse()
            .map_err(|error| InvalidBaseUrl(format!("it is not a URL: {error}")))?;
        let parts = url.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return invalid("it is not an absolute URL");
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return invalid("it is neither http nor https");
        }
        if authority.as_str().contains('@') {
            return invalid("it contains a user name or a password");
        }
        // An authority with an invalid port still parses, but then has no port.
        let after_host = &authority.as_str()[authority.host().len()..];
        if !after_host.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
            return invalid("its port is not a number from 1 to 65535");
        }
        let path = parts.path_and_query.map_or_else(String::new, |path| path.to_string());
        Ok(Self { scheme, authority, prefix: path.trim_end_matches('/').to_owned() })
    }

    /// The URL of a path and query that were checked.
    fn url(&self, path: fmt::Arguments<'_>) -> Uri {
        let path = format!("{}{path}", self.prefix);
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query =
            Some(PathAndQuery::from_maybe_shared(Bytes::from(path)).expect("the path was checked"));
        Uri::from_parts(parts).expect("scheme, authority and path are present")
    }
}

fn pool(
    connector: &HttpsConnector<UpstreamConnector>,
) -> legacy::Client<HttpsConnector<UpstreamConnector>, CheckedBody> {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(usize::MAX)
        .build(connector.clone())
}

/// The error for a call that did not reach the upstream.
fn connection_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let reason = unreachable::reason(&error).map(|reason| format!(": {reason}"));
    let message = "cannot connect to Gemini";
    let message = format!("{message}{}", reason.unwrap_or_default());
    Error { source: Some(Arc::new(error)), ..Error::new(ErrorKind::Connection, message) }
}

/// The error for an exchange that failed before the head of the answer arrived.
fn exchange_error(error: legacy::Error, written: bool) -> Error {
    if error.is_connect() {
        return connection_error(error);
    }
    let (kind, message) = if written {
        (ErrorKind::BrokenOff, "the connection to Gemini broke before an answer came".to_owned())
    } else {
        let message = "the connection to Gemini broke before the call was written";
        (ErrorKind::Connection, message.to_owned())
    };
    Error { source: Some(Arc::new(error)), ..Error::new(kind, message) }
}

/// Reads the complete body of an answer.
pub(super) async fn read_body(status: StatusCode, body: Incoming) -> Result<Bytes, Error> {
    let most = if status.is_success() { MAX_ANSWER } else { MAX_ERROR };
    Ok(Limited::new(body, most).collect().await.map_err(body_error)?.to_bytes())
}

/// The error for an answer whose body could not be read completely.
pub(super) fn body_error(error: BoxError) -> Error {
    if error.is::<LengthLimitError>() {
        return Error::too_long();
    }
    if error.is::<TimeoutError>() {
        let message = "Gemini sent nothing for too long in the middle of its answer";
        return Error::new(ErrorKind::Timeout, message);
    }
    let message = "the connection to Gemini broke before the whole answer came";
    Error { source: Some(error.into()), ..Error::new(ErrorKind::BrokenOff, message) }
}

#[cfg(test)]
mod tests;
