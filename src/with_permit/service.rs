//! The client of the service's leases: takes, renews and releases one lease.

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderValue, Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Code;
use crate::client::{ClientError, ClientKey, GatewayClient, Refusal};
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

/// The leases of one semaphore of a running service.
pub(super) struct Service {
    client: GatewayClient,
    /// The path of the leases.
    leases: String,
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
    #[error("{0}")]
    Unreachable(String),
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
    #[error("{0}")]
    Refused(Refusal),
}

impl Service {
    /// The leases of a semaphore of the service at a URL.
    pub(super) fn new(
        url: &str,
        semaphore: &SemaphoreId,
        admin_key: HeaderValue,
    ) -> Result<Self, String> {
        let client = GatewayClient::new(url, ClientKey::Admin(admin_key))?;
        Ok(Self { client, leases: format!("/_admin/semaphores/{semaphore}/leases") })
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
                Err(error @ LeaseError::Refused(_)) => return Err(error),
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
                Err(error @ LeaseError::Refused(_)) => return error.to_string(),
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
    ) -> Request<Body> {
        let path = match lease {
            None => self.leases.clone(),
            Some(GrantedLease { lease_id, .. }) => format!("{}/{lease_id}", self.leases),
        };
        match body {
            Some(body) => self.client.json_request(method, &path, body),
            None => self.client.request(method, &path, Body::empty()),
        }
    }

    async fn exchange(
        &self,
        request: Request<Body>,
        time_limit: Duration,
    ) -> Result<Value, LeaseError> {
        Ok(self.client.exchange(request, time_limit).await?)
    }
}

impl From<ClientError> for LeaseError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Self::Unreachable(error.to_string()),
            ClientError::Silent { .. } => Self::Transient(error.to_string()),
            ClientError::Broken(reason) => Self::Transient(reason),
            ClientError::Refused(refusal) => match refusal.code {
                Some(Code::LeaseUnavailable) => Self::Unavailable,
                Some(Code::QueueFull) => Self::QueueFull,
                _ if refusal.status.is_server_error() => Self::Transient(refusal.to_string()),
                _ => Self::Refused(refusal),
            },
        }
    }
}

#[cfg(test)]
mod tests;
