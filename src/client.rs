//! A client of a gateway: of a service that runs elsewhere, or of one in this process.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::iter::successors;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::api::Code;
use crate::connect::connector;
use crate::gemini::{ApiKey, Surface};

/// The header of the admin key.
const ADMIN_API_KEY: HeaderName = HeaderName::from_static("admin-api-key");

/// The longest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// On whose behalf a client asks. No key is shown by `Debug`.
#[derive(Debug, Clone)]
pub enum ClientKey {
    /// The administrator's: the value of the header `Admin-API-Key`.
    Admin(HeaderValue),
    /// A caller's own key.
    Own(ApiKey),
    /// Nobody's.
    None,
}

/// A client of one gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GatewayClient {
    transport: Transport,
    /// The URL of the service without a slash at its end; empty for one in this process.
    base: String,
    key: ClientKey,
}

/// How requests reach the gateway.
#[derive(Debug, Clone)]
enum Transport {
    Network(Box<legacy::Client<HttpsConnector<HttpConnector>, Body>>),
    InProcess(Router),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection can be made.
    #[error("the service at {host} cannot be reached: {cause}")]
    Unreachable {
        /// The host and the port.
        host: String,
        /// What the system says.
        cause: String,
    },
    /// The connection broke, or the answer is incomplete or late.
    #[error("{0}")]
    Broken(String),
    /// The service takes connections, and says nothing.
    #[error("the service at {host} does not answer: nothing came for {} s", time.as_secs())]
    Silent {
        /// The host and the port.
        host: String,
        /// For how long nothing came.
        time: Duration,
    },
    /// The service answered with an error.
    #[error("{0}")]
    Refused(Refusal),
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Its code; `None` if a proxy answered without one.
    pub code: Option<Code>,
    /// What went wrong: a text, or a list of invalid fields.
    pub detail: Value,
}

impl Refusal {
    /// Reads the body of an error.
    pub fn new(status: StatusCode, body: &Value) -> Self {
        let code = body["code"].as_str().and_then(Code::named);
        Self { status, code, detail: body["detail"].clone() }
    }

    /// The status that the code has, since a proxy may change it; or else that of the answer.
    pub fn status(&self) -> StatusCode {
        self.code.map_or(self.status, Code::status)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Value::String(detail) => f.write_str(detail),
            Value::Null => write!(f, "the service answered {}", self.status),
            fields => match messages(fields) {
                Some(messages) => f.write_str(&messages),
                None => write!(f, "{fields}"),
            },
        }
    }
}

/// What a list of invalid fields says about each.
fn messages(fields: &Value) -> Option<String> {
    let message = |field: &Value| {
        let path = field["loc"].as_array().map(Vec::as_slice).unwrap_or_default();
        Some(format!("{}{}", path_of_field(path), field["msg"].as_str()?))
    };
    let messages = fields.as_array()?.iter().map(message);
    Some(messages.collect::<Option<Vec<_>>>()?.join("; "))
}

/// The path of an invalid field, as it precedes a message: `image.size: `, or nothing for the whole body.
pub fn path_of_field(path: &[Value]) -> String {
    let path = path.strip_prefix(&[Value::from("body")]).unwrap_or(path);
    let text = |step: &Value| step.as_str().map_or_else(|| step.to_string(), str::to_owned);
    let path: Vec<_> = path.iter().map(text).collect();
    if path.is_empty() { String::new() } else { format!("{}: ", path.join(".")) }
}

impl ClientError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken(_) | Self::Silent { .. } => true,
            Self::Refused(refusal) => {
                refusal.status.is_server_error() || refusal.code.is_some_and(Code::is_retryable)
            }
        }
    }

    /// Whether the service has no room on its disk.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == StatusCode::INSUFFICIENT_STORAGE)
    }
}

impl GatewayClient {
    /// A client of the service at a URL.
    ///
    /// # Errors
    /// If the URL is none of `http` or `https`, or TLS cannot be set up.
    pub fn new(url: &str, key: ClientKey) -> Result<Self, String> {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            // It may be a password, and is not repeated.
            return Err("expected a URL of the service without a user or a password".to_owned());
        }
        if url.contains('#') {
            return Err(format!("{url}: expected a URL without a fragment"));
        }
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Uri = base.parse().map_err(|error| format!("{url}: {error}"))?;
        let tls = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{url}: expected a URL that begins with http:// or https://")),
        };
        if parsed.query().is_some() {
            return Err(format!("{url}: expected a URL without a query"));
        }
        let connector = connector(tls).map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { transport: Transport::Network(Box::new(client)), base, key })
    }

    /// A client of a gateway in this process.
    pub fn in_process(router: Router, key: ClientKey) -> Self {
        Self { transport: Transport::InProcess(router), base: String::new(), key }
    }

    /// The URL of the service; `None` if it is in this process.
    pub fn url(&self) -> Option<&str> {
        (!self.base.is_empty()).then_some(&self.base)
    }

    /// A request with the key. `path` begins with a slash and may have a query.
    ///
    /// # Panics
    /// If the path is not valid in a URL.
    pub fn request(&self, method: Method, path: &str, body: Body) -> Request<Body> {
        let uri = format!("{}{path}", self.base);
        let request = Request::builder().method(method).uri(uri);
        let mut request = request.body(body).expect("a valid URL and a valid path");
        let headers = request.headers_mut();
        if matches!(self.transport, Transport::InProcess(_)) {
            headers.insert(HOST, HeaderValue::from_static("localhost"));
        }
        self.key.insert_into(headers);
        request
    }

    /// A request with a JSON body.
    pub fn json_request(&self, method: Method, path: &str, body: &Value) -> Request<Body> {
        let mut request = self.request(method, path, body.to_string().into());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    /// Sends a request. Returns an answer that is a success, with its body unread.
    ///
    /// # Errors
    /// [`ClientError`] if there is no answer, or it is not a success.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ClientError> {
        let response = match &self.transport {
            Transport::Network(client) => {
                let response = client.request(request).await;
                response.map_err(|error| self.broken(&error))?.map(Body::new)
            }
            Transport::InProcess(router) => {
                let response: Result<_, Infallible> = router.clone().oneshot(request).await;
                response.unwrap_or_else(|never| match never {})
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read(response).await?;
        Err(ClientError::Refused(Refusal::new(status, &body)))
    }

    /// Sends a request and reads the answer to its end. JSON is expected: anything else is null.
    ///
    /// # Errors
    /// [`ClientError`], as for [`send`](Self::send), or if the answer takes longer than the limit.
    pub async fn exchange(
        &self,
        request: Request<Body>,
        time_limit: Duration,
    ) -> Result<Value, ClientError> {
        Ok(self.exchange_with_status(request, time_limit).await?.1)
    }

    /// As [`exchange`](Self::exchange), with the status of the answer.
    ///
    /// # Errors
    /// [`ClientError`], as for [`exchange`](Self::exchange).
    pub async fn exchange_with_status(
        &self,
        request: Request<Body>,
        time_limit: Duration,
    ) -> Result<(StatusCode, Value), ClientError> {
        let answered = timeout(time_limit, async {
            let response = self.send(request).await?;
            Ok((response.status(), read(response).await?))
        });
        answered.await.map_err(|_| self.silent(time_limit))?
    }

    /// The error for a service from which nothing came for this long.
    pub fn silent(&self, time: Duration) -> ClientError {
        ClientError::Silent { host: self.host(), time }
    }

    /// The host and the port of the service.
    fn host(&self) -> String {
        let uri = self.base.parse::<Uri>().ok();
        uri.as_ref().and_then(Uri::authority).map(ToString::to_string).unwrap_or_default()
    }

    fn broken(&self, error: &legacy::Error) -> ClientError {
        let cause = innermost(error);
        if error.is_connect() {
            ClientError::Unreachable { host: self.host(), cause }
        } else {
            ClientError::Broken(format!("the connection to the service broke: {cause}"))
        }
    }
}

impl ClientKey {
    fn insert_into(&self, headers: &mut HeaderMap) {
        match self {
            Self::Admin(key) => {
                headers.insert(ADMIN_API_KEY, key.clone());
            }
            Self::Own(key) => key.insert_into(headers, Surface::Gemini),
            Self::None => {}
        }
    }
}

async fn read(response: Response<Body>) -> Result<Value, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let incomplete = |error| ClientError::Broken(format!("the answer is incomplete: {error}"));
    let body = body.map_err(incomplete)?.to_bytes();
    Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// The text of the first cause of an error.
fn innermost(error: &dyn Error) -> String {
    let cause = successors(error.source(), |&error| error.source()).last();
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_says_what_is_wrong_with_which_field() {
        let refusal = |detail: Value| {
            Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, code: None, detail }.to_string()
        };
        let fields = json!([
            {"type": "out_of_range", "loc": ["body", "permits"], "msg": "Too many"},
            {"type": "missing", "loc": ["body", "requests", 0, "prompt"], "msg": "Field required"},
            {"type": "json_invalid", "loc": ["body"], "msg": "Not JSON"},
        ]);
        let expected = "permits: Too many; requests.0.prompt: Field required; Not JSON";
        assert_eq!(refusal(fields), expected);
        assert_eq!(refusal(json!("No such lease.")), "No such lease.");
        assert_eq!(refusal(json!([{"loc": []}])), r#"[{"loc":[]}]"#, "of another service");
    }

    #[test]
    fn a_url_with_a_password_or_a_fragment_is_refused_without_repeating_the_password() {
        for url in ["http://me:secret@host", "http://secret@host/x", "me:secret@host"] {
            let refused = GatewayClient::new(url, ClientKey::None).unwrap_err();
            assert!(refused.contains("without a user"), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        let refused = GatewayClient::new("http://host/#x", ClientKey::None).unwrap_err();
        assert!(refused.contains("without a fragment"), "{refused}");
    }
}
