//! One exchange with Gemini.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use reqwest::{Request, Url};
use rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::{Answer, ApiKey, Error, ErrorKind, Model};

/// The header that carries the key. Never the query: queries land in logs.
const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept for the next call: less than the upstream keeps it, so that it is
/// seldom found closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read, in bytes. Text is never near it; images can be.
const MAX_ANSWER: usize = 64 << 20;

/// The upstream. Cheap to clone; all clones share their connections.
///
/// It speaks HTTP/1.1 and never offers anything else. Over HTTP/2 all calls would share one
/// connection, and one connection to Google carries about 100 of them at once: a limit of 300
/// would be 100 without anybody noticing. Over HTTP/1.1 every call in flight has a connection of
/// its own. (`http2` is left out of reqwest's features too, and a test watches the handshake.)
///
/// A proxy is used where the environment names one (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// What stands before the path of every call.
    base: Arc<Url>,
}

impl Client {
    /// A client for the API at `base_url`, such as `https://generativelanguage.googleapis.com` or
    /// `http://127.0.0.1:5005/prefix`: a path stays in front of every call's.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] where it is no `http` or `https` URL, has more to it than a path, or is
    /// `https` on a machine without CA certificates.
    pub fn new(base_url: &str) -> Result<Client, InvalidBaseUrl> {
        let base = parse_base(base_url)?;
        let http = connections(&base)
            .map_err(|error| InvalidBaseUrl(format!("TLS cannot be set up: {}", chain(&error))))?;
        Ok(Client { http, base: Arc::new(base) })
    }

    /// One exchange: `POST {base}/v1beta/models/{model}:generateContent`. There is no retry and no
    /// limit here. `timeout` is from before the connection is made to the answer's last byte.
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
        timeout: Duration,
    ) -> Result<Answer, Error> {
        let exchange = self.exchange(self.request(key, model, body));
        let result = tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            let message = format!("Gemini did not answer within {timeout:?}");
            Err(Error::new(ErrorKind::Timeout, message))
        });
        result.map_err(|error| Error { message: key.redact(error.message), ..error })
    }

    fn request(&self, key: &ApiKey, model: &Model, body: Bytes) -> Request {
        let mut request = Request::new(Method::POST, self.url(model));
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(API_KEY, key.header());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        request
    }

    fn url(&self, model: &Model) -> Url {
        let mut url = Url::clone(&self.base);
        let prefix = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{prefix}/v1beta/{}:generateContent", model.resource()));
        url
    }

    async fn exchange(&self, request: Request) -> Result<Answer, Error> {
        let response = self.http.execute(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(reqwest::Body::from(response), MAX_ANSWER);
        match body.collect().await {
            Ok(whole) => Answer::read(status, &whole.to_bytes()),
            Err(error) => Err(unread(error)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

/// A base URL that calls cannot be sent to, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the base URL of Gemini cannot be used: {0}")]
pub struct InvalidBaseUrl(String);

fn parse_base(base_url: &str) -> Result<Url, InvalidBaseUrl> {
    let url = Url::parse(base_url).map_err(|error| InvalidBaseUrl(error.to_string()))?;
    let fault = if !matches!(url.scheme(), "http" | "https") {
        "it is neither http nor https"
    } else if !url.username().is_empty() || url.password().is_some() {
        "it has a user name or a password in it"
    } else if url.query().is_some() || url.fragment().is_some() {
        "it has a query or a fragment"
    } else {
        return Ok(url);
    };
    Err(InvalidBaseUrl(fault.to_owned()))
}

fn connections(base: &Url) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .http1_only()
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        // An attempt more is for the caller to decide. hyper alone may send a call anew, where it
        // finds an idle connection closed before anything was written to it.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .referer(false)
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(usize::MAX);
    match base.scheme() {
        "https" => {
            // Cryptography is chosen once a process; a choice made before this one stands.
            let _ = ring::default_provider().install_default();
            builder.build()
        }
        _ => builder.tls_backend_preconfigured(no_tls()).build(),
    }
}

/// TLS that trusts nobody, for a base URL without TLS: it spares the machine's CA certificates,
/// which take a while to read and are absent from some images.
fn no_tls() -> ClientConfig {
    ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions of TLS")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// The error for an exchange that ended before the head of an answer had come.
fn broken(error: reqwest::Error) -> Error {
    let message = if error.is_connect() {
        "no connection to Gemini could be made"
    } else {
        "the connection to Gemini broke before an answer came"
    };
    let source: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error.without_url());
    Error { source: Some(source), ..Error::new(ErrorKind::Connection, message) }
}

/// The error for an answer whose body did not come whole.
fn unread(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    if error.is::<LengthLimitError>() {
        let message = format!("the answer is longer than {} MiB", MAX_ANSWER >> 20);
        return Error::new(ErrorKind::Malformed, message);
    }
    let message = "the connection to Gemini broke before the whole answer came";
    Error { source: Some(error.into()), ..Error::new(ErrorKind::Connection, message) }
}

/// An error and all that lies behind it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

#[cfg(test)]
mod tests;
