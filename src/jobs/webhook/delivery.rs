//! Makes one attempt to deliver a message.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use tokio::time::timeout;

use super::message::Message;
use super::schedule::LONGEST_WAIT;
use super::{WebhookSettings, check_webhook_url};
use crate::connect::{
    Authorities, CheckedConnector, Proxy, Resolver, SystemResolver, checked_connector, unreachable,
};
use crate::gemini::retry_after;

/// How long one attempt may take, from resolving the host to the head of the answer. The specification of
/// Standard Webhooks recommends 15 to 30 seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// How much of an answer's body is read, and for how long: it says nothing, but some receivers fail if
/// nobody reads it.
const MAX_BODY: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 16 << 10;

const NAME: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver does not want it (410).
    Unwanted,
    /// It may succeed later.
    Failed {
        /// The reason, without anything that is secret or that the receiver wrote.
        reason: Cow<'static, str>,
        /// The wait that the receiver asks for.
        wait: Option<Duration>,
    },
}

/// Makes attempts to deliver messages.
pub(super) trait Deliver: Send + Sync {
    /// Makes one attempt.
    fn deliver(&self, message: Message, now: Timestamp) -> BoxFuture<'static, Outcome>;
}

/// Sends signed messages over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct WebhookSender {
    http: Client<HttpsConnector<CheckedConnector>, Full<Bytes>>,
    settings: WebhookSettings,
}

impl WebhookSender {
    /// A sender that reaches public addresses through the proxy if there is one, and trusts these
    /// certificate authorities in addition to the system's.
    ///
    /// # Errors
    /// If messages can be signed, and there are no certificate authorities at all.
    pub fn new(
        settings: WebhookSettings,
        proxy: Option<&Proxy>,
        authorities: &Authorities,
    ) -> io::Result<Self> {
        Self::with_resolver(settings, proxy, authorities, Arc::new(SystemResolver))
    }

    pub(super) fn with_resolver(
        settings: WebhookSettings,
        proxy: Option<&Proxy>,
        authorities: &Authorities,
        resolver: Arc<dyn Resolver>,
    ) -> io::Result<Self> {
        let tls = !settings.secrets.is_empty();
        let allowed = settings.allowed.clone();
        let connector = checked_connector(tls, allowed, resolver, proxy, authorities)?;
        let http = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .http1_max_buf_size(MAX_HEAD)
            .build(connector);
        Ok(Self { http, settings })
    }

    /// Whether messages can be signed.
    pub(super) fn has_secret(&self) -> bool {
        !self.settings.secrets.is_empty()
    }

    async fn attempt(self, message: Message, now: Timestamp) -> Outcome {
        // Checked again: the settings may have changed since the job came.
        let url = match check_webhook_url(&message.url, &self.settings) {
            Ok(url) => url,
            Err(invalid) => return Outcome::failed(invalid.to_string()),
        };
        let timestamp = now.as_second();
        let signature = self.settings.secrets.sign(&message.id, timestamp, &message.body);
        let request = Request::post(url.uri())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, NAME)
            .header("webhook-id", message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(message.body))
            .expect("its parts are valid");
        let response = match timeout(ATTEMPT_TIMEOUT, self.http.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Outcome::failed(reason(&error)),
            Err(_) => {
                let seconds = ATTEMPT_TIMEOUT.as_secs();
                return Outcome::failed(format!("the receiver did not answer in {seconds} s"));
            }
        };
        let status = response.status();
        let wait = retry_after(response.headers(), now, LONGEST_WAIT);
        discard(response.into_body()).await;
        match status {
            status if status.is_success() => Outcome::Delivered,
            StatusCode::GONE => Outcome::Unwanted,
            status => {
                let reason = format!("the receiver answered {}", status.as_u16()).into();
                Outcome::Failed { reason, wait }
            }
        }
    }
}

impl Deliver for WebhookSender {
    fn deliver(&self, message: Message, now: Timestamp) -> BoxFuture<'static, Outcome> {
        Box::pin(self.clone().attempt(message, now))
    }
}

impl Outcome {
    fn failed(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Failed { reason: reason.into(), wait: None }
    }
}

/// Why there is no answer.
fn reason(error: &legacy::Error) -> Cow<'static, str> {
    let reason = unreachable::reason(error);
    if error.is_connect() {
        let reason = reason.unwrap_or("an unknown error".into());
        return format!("cannot connect to the receiver: {reason}").into();
    }
    reason.unwrap_or("the connection broke, or the answer is not HTTP".into())
}

/// Reads what is left of an answer, within limits. Then the connection is closed.
async fn discard(body: Incoming) {
    let _ = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
}

impl fmt::Debug for WebhookSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSender({:?})", self.settings)
    }
}
