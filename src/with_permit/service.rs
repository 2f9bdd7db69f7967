//! The client of the service's leases: takes, renews and releases one lease.

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

use crate::api::Code;
use crate::connect::connector;
use crate::limits::SemaphoreId;

/// How long one request waits for the lease. Many proxies allow no more than a minute.
const WAIT: Duration = Duration::from_secs(55);

/// After how long the next request is sent while one waits. It is less than [`WAIT`], so that the position in
/// the queue is kept.
const NEXT_REQUEST: Duration = Duration::from_secs(40);

/// How much longer than its wait a request may take before it counts as failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service that was reachable may be unreachable: long enough for a restart.
const ABSENCE: Duration = Duration::from_secs(60);

/// The pause before a retry after a transient error.
const PAUSE: Duration = Duration::from_secs(1);

/// How many times to try to release a lease.
const RELEASES: usize = 3;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// The leases of one semaphore of a running service.
pub(super) struct Service {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    leases: Uri,
    admin_key: HeaderValue,
}

/// A request for a lease.
pub(super) struct LeaseOrder {
    pub holder: String,
    pub permits: u16,
    pub ttl: Duration,
}

/// A lease that was granted.
#[derive(Debug, Deserialize)]
pub(super) struct GrantedLease {
    pub lease_id: String,
    pub fencing_token: u64,
}

/// Why a request for a lease failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    /// No connection can be made.
    #[error("the service at {0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// A transient error.
    #[error("{0}")]
    Transient(String),
    /// The service's queue is full.
    #[error("the service's queue is full")]
    QueueFull,
    /// Too few permits became available in time.
    #[error("no permit became available")]
    Unavailable,
    /// The service refuses the request permanently.
    #[error("{detail}")]
    Refused { status: StatusCode, code: Option<Code>, detail: String },
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

    /// Waits for a lease without a time limit. An answer that is lost leaves no lease behind, because the
    /// next request has the same idempotency key. Dropping the future leaves the queue.
    pub(super) async fn take(&self, request: &LeaseOrder) -> Result<GrantedLease, LeaseError> {
        let key = format!("{:032x}", fastrand::u128(..));
        let mut requests = FuturesUnordered::new();
        let mut next_request = Instant::now();
        let (mut reachable, mut unreachable_since) = (false, None);
        loop {
            if requests.is_empty() || Instant::now() >= next_request {
                requests.push(self.ask(request, &key));
                next_request = Instant::now() + NEXT_REQUEST;
            }
            let answer = tokio::select! {
                Some(answer) = requests.next() => answer,
                () = sleep_until(next_request) => continue,
            };
            match answer {
                Ok(lease) => return Ok(lease),
                Err(LeaseError::Unavailable) => (reachable, unreachable_since) = (true, None),
                Err(LeaseError::QueueFull) => {
                    (reachable, unreachable_since) = (true, None);
                    sleep(PAUSE).await;
                }
                Err(error @ LeaseError::Refused { .. }) => return Err(error),
                Err(error) => {
                    reachable |= !matches!(error, LeaseError::Unreachable(..));
                    let since = *unreachable_since.get_or_insert_with(Instant::now);
                    if !reachable || since.elapsed() >= ABSENCE {
                        return Err(error);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn ask(&self, request: &LeaseOrder, key: &str) -> Result<GrantedLease, LeaseError> {
        let LeaseOrder { holder, permits, ttl } = request;
        let body = json!({
            "holder": holder, "permits": permits, "ttl_seconds": ttl.as_secs_f64(),
            "wait_seconds": WAIT.as_secs(), "idempotency_key": key,
        });
        let request = self.request(Method::POST, None, Some(&body));
        let answer = self.exchange(request, WAIT + ANSWER_TIMEOUT).await?;
        serde_json::from_value(answer)
            .map_err(|error| LeaseError::Transient(format!("the answer is not a lease: {error}")))
    }

    /// Renews a lease. Returns when it expires: not later than it does at the service.
    pub(super) async fn renew(
        &self,
        lease: &GrantedLease,
        ttl: Duration,
    ) -> Result<Instant, LeaseError> {
        let ends = Instant::now() + ttl;
        let body = json!({"ttl_seconds": ttl.as_secs_f64()});
        let request = self.request(Method::PUT, Some(lease), Some(&body));
        self.exchange(request, (ttl / 3).min(ANSWER_TIMEOUT)).await.map(|_| ends)
    }

    /// Renews a lease after each third of its time until it is lost. Returns the reason.
    pub(super) async fn keep(
        &self,
        lease: &GrantedLease,
        ttl: Duration,
        mut ends: Instant,
    ) -> String {
        let mut pause = ttl / 3;
        loop {
            // At its expiry the lease is known to be lost.
            sleep_until(ends.min(Instant::now() + pause)).await;
            let renewal = tokio::select! {
                renewal = self.renew(lease, ttl) => renewal,
                () = sleep_until(ends) => Err(LeaseError::Transient("the renewal was not answered in time".to_owned())),
            };
            match renewal {
                Ok(later) => (ends, pause) = (later, ttl / 3),
                Err(error @ LeaseError::Refused { .. }) => return error.to_string(),
                Err(error) if Instant::now() >= ends => {
                    return format!("it could not be renewed in time: {error}");
                }
                Err(_) => pause = (ttl / 12).min(PAUSE),
            }
        }
    }

    /// Releases a lease. If that fails, the lease expires.
    pub(super) async fn release(&self, lease: &GrantedLease) -> Result<(), LeaseError> {
        let mut attempts = 1;
        loop {
            let request = self.request(Method::DELETE, Some(lease), None);
            match self.exchange(request, ANSWER_TIMEOUT / 2).await {
                Err(LeaseError::Transient(_)) if attempts < RELEASES => {
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
        lease: Option<&GrantedLease>,
        body: Option<&Value>,
    ) -> Request<Full<Bytes>> {
        let url = match lease {
            None => self.leases.to_string(),
            Some(GrantedLease { lease_id, .. }) => format!("{}/{lease_id}", self.leases),
        };
        let request = Request::builder().method(method).uri(url);
        let request = request.header("Admin-API-Key", &self.admin_key);
        let request = match body {
            Some(_) => request.header(CONTENT_TYPE, "application/json"),
            None => request,
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        request
            .body(body.into())
            .expect("a valid URL followed by hexadecimal digits is a valid URL")
    }

    /// Sends a request and reads the answer to its end.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        time_limit: Duration,
    ) -> Result<Value, LeaseError> {
        let answered = timeout(time_limit, async {
            let response = self.http.request(request).await.map_err(|error| self.broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| {
                LeaseError::Transient(format!("the answer is incomplete: {error}"))
            })?;
            Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)))
        });
        let no_answer = || LeaseError::Transient(format!("no answer within {time_limit:?}"));
        let (status, body) = answered.await.map_err(|_| no_answer())??;
        if status.is_success() { Ok(body) } else { Err(failed(status, &body)) }
    }

    fn broken(&self, error: &legacy::Error) -> LeaseError {
        let cause = successors(error.source(), |&error| error.source()).last();
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if error.is_connect() {
            let host = self.leases.authority().map(ToString::to_string).unwrap_or_default();
            LeaseError::Unreachable(host, cause)
        } else {
            LeaseError::Transient(format!("the connection to the service broke: {cause}"))
        }
    }
}

/// The error for an answer that is not a success.
fn failed(status: StatusCode, body: &Value) -> LeaseError {
    let detail = match &body["detail"] {
        Value::String(detail) => detail.clone(),
        Value::Null => format!("the service answered {status}"),
        fields => fields.to_string(),
    };
    let code = body["code"].as_str().and_then(Code::named);
    match code {
        Some(Code::LeaseUnavailable) => LeaseError::Unavailable,
        Some(Code::QueueFull) => LeaseError::QueueFull,
        _ if status.is_server_error() => LeaseError::Transient(detail),
        _ => LeaseError::Refused { status, code, detail },
    }
}

#[cfg(test)]
mod tests;
