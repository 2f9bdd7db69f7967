//! One exchange with Gemini.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_TYPE, PROXY_AUTHORIZATION, USER_AGENT},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use jiff::Timestamp;
use tower_http::timeout::TimeoutError;

use super::{
    Answer, ApiKey, Error, ErrorKind, Model, Secrets, Surface, retry_after, status::MAX_ERROR,
    unreachable,
};
use crate::connect::{Authorities, Connector, Proxy, ProxyError, upstream_connector};

/// The header that carries a key. Never the query: queries land in logs.
pub const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// The header that says which project an access token charges.
pub const USER_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

/// What the service calls itself.
pub(super) const NAME: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// No other encoding is asked for: no key could be found in one.
pub(super) const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// How long a connection is kept for the next call: less than the upstream keeps it, so that it is
/// seldom found closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read, in bytes. Text is never near it; images can be.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Whatever went wrong.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The upstream. Cheap to clone; all clones share their connections.
///
/// It speaks HTTP/1.1 and never offers anything else. Over HTTP/2 all calls would share one
/// connection, and one connection to Google carries about 100 of them at once: a limit of 300
/// would be 100 without anybody noticing. Over HTTP/1.1 every call in flight has a connection of
/// its own. (The features for HTTP/2 are left out too, and a test watches the handshake.)
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<Connector>, Fenced>,
    connector: Arc<HttpsConnector<Connector>>,
    base: Base,
    /// The proxy that reads each request and passes it on, if there is one. Of one that connections
    /// lead through only the connector knows.
    forward_proxy: Option<Arc<Proxy>>,
    /// Overwritten in every answer, whoever pays for it.
    secrets: Secrets,
}

/// Where the API is.
#[derive(Clone)]
struct Base {
    scheme: Scheme,
    authority: Authority,
    /// What stands in front of every path; empty, or begun with a slash and not ended with one.
    prefix: String,
}

impl Client {
    /// A client for the API at `base_url` without a proxy, such as `https://generativelanguage.googleapis.com` or
    /// `http://127.0.0.1:5005/prefix`: a path stays in front of every call's.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] where it is no `http` or `https` URL, has more to it than a path, or is
    /// `https` on a machine without CA certificates.
    pub fn new(base_url: &str) -> Result<Client, InvalidBaseUrl> {
        Self::through(base_url, None, &Authorities::default())
    }

    /// The same, through a proxy where there is one, and trusting these authorities in addition to
    /// the system's.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`], as for [`Client::new`].
    pub fn through(
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

    /// The same client with connections of its own, made as the others are.
    pub fn with_own_connections(&self) -> Client {
        Client { http: pool(&self.connector), ..self.clone() }
    }

    /// The same client, from whose answers this key never comes out, whichever key pays.
    pub fn guarding(self, key: Option<&ApiKey>) -> Client {
        Client { secrets: Secrets::new(key), ..self }
    }

    /// What is overwritten in the answers to calls with a key.
    pub fn secrets(&self, key: Option<&ApiKey>) -> Secrets {
        key.map_or_else(|| self.secrets.clone(), |key| self.secrets.with(key))
    }

    /// Whether calls could be sent to a base URL, as far as its text tells.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] where it is no `http` or `https` URL or has more to it than a path.
    pub fn check_base_url(base_url: &str) -> Result<(), InvalidBaseUrl> {
        Base::parse(base_url).map(drop)
    }

    /// One exchange: `POST {base}/v1beta/models/{model}:generateContent`. There is no retry and no
    /// limit here, but that a call is written anew where an idle connection turns out closed
    /// before anything was written to it. `timeout` is from before the connection is made to the
    /// answer's last byte. Nothing is written once `fence` says that it must not be.
    ///
    /// Dropping the future closes the connection, which tells Gemini to stop.
    ///
    /// # Errors
    ///
    /// An [`Error`] where there is no text to give; its message never shows the key.
    pub async fn generate(
        &self,
        key: &ApiKey,
        model: &Model,
        body: Bytes,
        fence: Option<Fence>,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        let exchange = self.exchange(key, self.request(key, model, body), fence);
        let result = tokio::time::timeout(timeout, exchange).await;
        result.unwrap_or_else(|_| Err(Error::late(timeout)))
    }

    /// Sends a request as it is.
    pub(super) async fn send(
        &self,
        mut request: Request<Payload>,
        fence: Option<Fence>,
    ) -> Result<Response<Incoming>, Error> {
        *request.uri_mut() = self.base.url(format_args!("{}", request.uri()));
        self.written(request, fence).await
    }

    /// Writes a request and waits for the head of its answer.
    async fn written(
        &self,
        mut request: Request<Payload>,
        fence: Option<Fence>,
    ) -> Result<Response<Incoming>, Error> {
        let forward_proxy = self.forward_proxy.as_deref();
        if let Some(authorization) = forward_proxy.and_then(Proxy::authorization) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let written = Arc::new(AtomicBool::new(false));
        let request =
            request.map(|payload| Fenced { payload, fence, written: Arc::clone(&written) });
        let answer = self.http.request(request).await;
        let answer = answer.map_err(|error| broken(error, written.load(Ordering::Relaxed)))?;
        // Only a proxy says this, so that the call has not reached Gemini.
        let is_rejected = answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        if is_rejected && forward_proxy.is_some() {
            return Err(unconnected(ProxyError::Unauthorized));
        }
        Ok(answer)
    }

    /// The path and query of a URL that is one of this API's, without the prefix.
    pub fn path_of<'a>(&self, url: &'a Uri) -> Option<&'a str> {
        let own = url.authority() == Some(&self.base.authority);
        let path = url.path_and_query().filter(|_| own)?.as_str();
        path.strip_prefix(&*self.base.prefix)
    }

    fn request(&self, key: &ApiKey, model: &Model, body: Bytes) -> Request<Payload> {
        let mut request = Request::new(Payload::Whole(Full::new(body)));
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
        fence: Option<Fence>,
    ) -> Result<Answer, Error> {
        let response = self.written(request, fence).await?;
        let status = response.status();
        let wait = retry_after::read(response.headers(), Timestamp::now());
        let content_type = response.headers().get(CONTENT_TYPE).cloned();
        let body = whole(status, response.into_body()).await?;
        if let Some(error) = Error::foreign(status, content_type.as_ref(), &body) {
            return Err(error.waiting(wait));
        }
        let secrets = self.secrets(Some(key));
        match Answer::read(status, &secrets.mask(body)) {
            Ok(answer) => Ok(answer.masked(&secrets)),
            Err(error) => Err(error.waiting(wait).masked(&secrets)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { scheme, authority, prefix } = &self.base;
        write!(f, "Client({scheme}://{authority}{prefix})")
    }
}

/// A base URL that calls cannot be sent to, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the base URL of Gemini cannot be used: {0}")]
pub struct InvalidBaseUrl(String);

impl Base {
    fn parse(base_url: &str) -> Result<Self, InvalidBaseUrl> {
        let invalid = |fault: &str| Err(InvalidBaseUrl(fault.to_owned()));
        if base_url.contains(['?', '#']) {
            return invalid("it has a query or a fragment");
        }
        let url: Uri =
            base_url.parse().map_err(|error| InvalidBaseUrl(format!("it is no URL: {error}")))?;
        let parts = url.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return invalid("it is no absolute URL");
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return invalid("it is neither http nor https");
        }
        if authority.as_str().contains('@') {
            return invalid("it has a user name or a password in it");
        }
        // An authority whose port is no number up to 65535 still parses; only its port is missing.
        let after_host = &authority.as_str()[authority.host().len()..];
        if !after_host.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
            return invalid("its port is not a number from 1 to 65535");
        }
        let path = parts.path_and_query.map_or_else(String::new, |path| path.to_string());
        Ok(Self { scheme, authority, prefix: path.trim_end_matches('/').to_owned() })
    }

    /// The URL of a path and query, which were checked.
    fn url(&self, path: fmt::Arguments<'_>) -> Uri {
        let path = format!("{}{path}", self.prefix);
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(
            PathAndQuery::from_maybe_shared(Bytes::from(path)).expect("all of it was checked"),
        );
        Uri::from_parts(parts).expect("all parts are there")
    }
}

/// Tells whether something may still be done.
pub type Fence = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a call sends.
#[derive(Debug)]
pub enum Payload {
    /// All of it is there, so that it can be sent again.
    Whole(Full<Bytes>),
    /// It passes by, of whatever size.
    Passing(UnsyncBoxBody<Bytes, BoxError>),
}

/// A body that a fence can keep back. The connection asks for it right before it writes, head and
/// body together, on whatever thread and however long after the call was made.
struct Fenced {
    payload: Payload,
    fence: Option<Fence>,
    /// Whether a connection has asked for it, so that some of the request may have been written.
    written: Arc<AtomicBool>,
}

/// The fence kept a call back.
#[derive(Debug, thiserror::Error)]
#[error("the call must not be sent any more")]
struct KeptBack;

impl Body for Fenced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.fence.as_ref().is_some_and(|may_leave| !may_leave()) {
            return Poll::Ready(Some(Err(KeptBack.into())));
        }
        self.written.store(true, Ordering::Relaxed);
        match &mut self.payload {
            Payload::Whole(body) => {
                Pin::new(body).poll_frame(context).map_err(|never| match never {})
            }
            Payload::Passing(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = match &self.payload {
            Payload::Whole(body) => body.is_end_stream(),
            Payload::Passing(body) => body.is_end_stream(),
        };
        // An empty body is asked for nothing more: from here on its head may have been written.
        if is_over {
            self.written.store(true, Ordering::Relaxed);
        }
        is_over
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Whole(body) => body.size_hint(),
            Payload::Passing(body) => body.size_hint(),
        }
    }
}

fn pool(
    connector: &HttpsConnector<Connector>,
) -> legacy::Client<HttpsConnector<Connector>, Fenced> {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(usize::MAX)
        .build(connector.clone())
}

/// The error for a call that reached no upstream.
fn unconnected(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let reason = unreachable::reason(&error).map(|reason| format!(": {reason}"));
    let message = "no connection to Gemini could be made";
    let message = format!("{message}{}", reason.unwrap_or_default());
    Error { source: Some(Arc::new(error)), ..Error::new(ErrorKind::Connection, message) }
}

/// The error for an exchange that ended before the head of an answer had come.
fn broken(error: legacy::Error, written: bool) -> Error {
    if error.is_connect() {
        return unconnected(error);
    }
    let (kind, message) = if written {
        (ErrorKind::BrokenOff, "the connection to Gemini broke before an answer came".to_owned())
    } else {
        let message = "the connection to Gemini broke before the call was written";
        (ErrorKind::Connection, message.to_owned())
    };
    Error { source: Some(Arc::new(error)), ..Error::new(kind, message) }
}

/// The body of an answer, once it is whole.
pub(super) async fn whole(status: StatusCode, body: Incoming) -> Result<Bytes, Error> {
    let most = if status.is_success() { MAX_ANSWER } else { MAX_ERROR };
    Ok(Limited::new(body, most).collect().await.map_err(unread)?.to_bytes())
}

/// The error for an answer whose body did not come whole.
pub(super) fn unread(error: BoxError) -> Error {
    if error.is::<LengthLimitError>() {
        return Error::too_long();
    }
    if error.is::<TimeoutError>() {
        let message = "Gemini has said nothing for too long in the midst of its answer";
        return Error::new(ErrorKind::Timeout, message);
    }
    let message = "the connection to Gemini broke before the whole answer came";
    Error { source: Some(error.into()), ..Error::new(ErrorKind::BrokenOff, message) }
}

#[cfg(test)]
mod tests;
