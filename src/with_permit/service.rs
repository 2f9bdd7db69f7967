//! The service as its client sees it: taking, renewing and releasing one lease.

use std::error::Error;
use std::iter::successors;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::connect::connector;
use crate::limits::SemaphoreId;

/// For how long one request waits for the lease. Longer than this, many a proxy does not.
const WAIT: Duration = Duration::from_secs(55);

/// When the next request is sent beside the one that waits: before that is over, so that the
/// place in the queue is kept.
const ASK_AGAIN: Duration = Duration::from_secs(40);

/// How much longer than its wait a request may take before its answer counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For how long a service is asked anew that was there and has gone: as long as a start takes.
const ABSENCE: Duration = Duration::from_secs(60);

/// How long to rest before what failed in passing is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a lease is tried to be released.
const RELEASES: usize = 3;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// The leases of one semaphore of a running service.
pub(super) struct Service {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    leases: Uri,
    admin_key: HeaderValue,
}

/// What is asked for.
pub(super) struct Terms {
    pub holder: String,
    pub permits: u16,
    pub ttl: Duration,
}

/// A lease that was granted.
#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    pub lease_id: String,
    pub fencing_token: u64,
}

/// Why there is no answer to work with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// No connection can be made.
    #[error("the service at {0} cannot be reached: {1}")]
    Absent(String, String),
    /// It may be better in a moment.
    #[error("{0}")]
    Passing(String),
    /// As many wait as may wait.
    #[error("the service's queue is full")]
    QueueFull,
    /// The permits are in use.
    #[error("no permit came free")]
    Unavailable,
    /// The service does not do it, now or later.
    #[error("{detail}")]
    Refused { status: StatusCode, detail: String },
}

impl Service {
    /// The leases of a semaphore of the service at a URL.
    pub(super) fn new(
        url: &str,
        semaphore: &SemaphoreId,
        admin_key: HeaderValue,
    ) -> Result<Self, String> {
        let leases = format!("{}/_admin/semaphores/{semaphore}/leases", url.trim_end_matches('/'));
        let leases: Uri = leases.parse().map_err(|error| format!("{url}: {error}"))?;
        let tls = match leases.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{url}: expected a URL that begins with http:// or https://")),
        };
        let connector = connector(tls).map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { http, leases, admin_key })
    }

    /// Waits for a lease for as long as it takes. A lost answer leaves no lease behind: the key
    /// leads back to it. Dropping the future leaves the queue.
    pub(super) async fn take(&self, terms: &Terms) -> Result<Lease, Trouble> {
        let key = format!("{:032x}", fastrand::u128(..));
        let mut asking = FuturesUnordered::new();
        let mut ask_again = Instant::now();
        let (mut there, mut absent_since) = (false, None);
        loop {
            if asking.is_empty() || Instant::now() >= ask_again {
                asking.push(self.ask(terms, &key));
                ask_again = Instant::now() + ASK_AGAIN;
            }
            let answer = tokio::select! {
                Some(answer) = asking.next() => answer,
                () = sleep_until(ask_again) => continue,
            };
            match answer {
                Ok(lease) => return Ok(lease),
                Err(Trouble::Unavailable) => (there, absent_since) = (true, None),
                Err(Trouble::QueueFull) => {
                    (there, absent_since) = (true, None);
                    sleep(PAUSE).await;
                }
                Err(trouble @ Trouble::Refused { .. }) => return Err(trouble),
                Err(trouble) => {
                    there |= !matches!(trouble, Trouble::Absent(..));
                    let since = *absent_since.get_or_insert_with(Instant::now);
                    if !there || since.elapsed() >= ABSENCE {
                        return Err(trouble);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn ask(&self, terms: &Terms, key: &str) -> Result<Lease, Trouble> {
        let Terms { holder, permits, ttl } = terms;
        let body = json!({
            "holder": holder, "permits": permits, "ttl_seconds": ttl.as_secs_f64(),
            "wait_seconds": WAIT.as_secs(), "idempotency_key": key,
        });
        let request = self.request(Method::POST, None, Some(&body));
        let answer = self.exchange(request, WAIT + ANSWER_TIMEOUT).await?;
        serde_json::from_value(answer)
            .map_err(|error| Trouble::Passing(format!("the answer is no lease: {error}")))
    }

    /// Renews a lease. Gives the moment at which it ends: not later than the service ends it.
    pub(super) async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Instant, Trouble> {
        let ends = Instant::now() + ttl;
        let body = json!({"ttl_seconds": ttl.as_secs_f64()});
        let request = self.request(Method::PUT, Some(lease), Some(&body));
        self.exchange(request, (ttl / 3).min(ANSWER_TIMEOUT)).await.map(|_| ends)
    }

    /// Renews a lease at each third of its time, until it is lost; gives the reason.
    pub(super) async fn keep(&self, lease: &Lease, ttl: Duration, mut ends: Instant) -> String {
        let mut pause = ttl / 3;
        loop {
            // No longer than it lives: then it is known to be lost.
            sleep_until(ends.min(Instant::now() + pause)).await;
            let renewal = tokio::select! {
                renewal = self.renew(lease, ttl) => renewal,
                () = sleep_until(ends) => Err(Trouble::Passing("it was not answered in time".to_owned())),
            };
            match renewal {
                Ok(later) => (ends, pause) = (later, ttl / 3),
                Err(trouble @ Trouble::Refused { .. }) => return trouble.to_string(),
                Err(trouble) if Instant::now() >= ends => {
                    return format!("it could not be renewed in time: {trouble}");
                }
                Err(_) => pause = (ttl / 12).min(PAUSE),
            }
        }
    }

    /// Releases a lease. Where that does not succeed, it ends by itself.
    pub(super) async fn release(&self, lease: &Lease) -> Result<(), Trouble> {
        let mut attempts = 1;
        loop {
            let request = self.request(Method::DELETE, Some(lease), None);
            match self.exchange(request, ANSWER_TIMEOUT / 2).await {
                Err(Trouble::Passing(_)) if attempts < RELEASES => {
                    attempts += 1;
                    sleep(PAUSE).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    fn request(
        &self,
        method: Method,
        lease: Option<&Lease>,
        body: Option<&Value>,
    ) -> Request<Full<Bytes>> {
        let url = match lease {
            None => self.leases.to_string(),
            Some(Lease { lease_id, .. }) => format!("{}/{lease_id}", self.leases),
        };
        let request = Request::builder().method(method).uri(url);
        let request = request.header("Admin-API-Key", &self.admin_key);
        let request = match body {
            Some(_) => request.header(CONTENT_TYPE, "application/json"),
            None => request,
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        request.body(body.into()).expect("a URL with hexadecimal digits behind it is one")
    }

    /// Sends a request and reads the answer to its end.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        time_limit: Duration,
    ) -> Result<Value, Trouble> {
        let answered = timeout(time_limit, async {
            let response = self.http.request(request).await.map_err(|error| self.broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body =
                body.map_err(|error| Trouble::Passing(format!("no whole answer: {error}")))?;
            Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)))
        });
        let no_answer = || Trouble::Passing(format!("no answer within {time_limit:?}"));
        let (status, body) = answered.await.map_err(|_| no_answer())??;
        if status.is_success() { Ok(body) } else { Err(failed(status, &body)) }
    }

    fn broken(&self, error: &legacy::Error) -> Trouble {
        let cause = successors(error.source(), |&error| error.source()).last();
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if error.is_connect() {
            let host = self.leases.authority().map(ToString::to_string).unwrap_or_default();
            Trouble::Absent(host, cause)
        } else {
            Trouble::Passing(format!("the connection to the service broke: {cause}"))
        }
    }
}

/// What a status that is no success means for one who wants a lease.
fn failed(status: StatusCode, body: &Value) -> Trouble {
    let detail = match &body["detail"] {
        Value::String(detail) => detail.clone(),
        Value::Null => format!("the service answered {status}"),
        fields => fields.to_string(),
    };
    match body["code"].as_str() {
        Some("lease_unavailable") => Trouble::Unavailable,
        Some("queue_full") => Trouble::QueueFull,
        _ if status.is_server_error() => Trouble::Passing(detail),
        _ => Trouble::Refused { status, detail },
    }
}

#[cfg(test)]
mod tests;
