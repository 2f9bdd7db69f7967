//! One call through the limiter: let in, sent, and sent again when Gemini fails in passing.
//!
//! No other code holds the upstream client, so nothing reaches Gemini past the limits.

mod forward;
mod projects;
mod retry;
mod sending;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::gemini::{
    Answer, ApiKey, Client, Error, ErrorKind, InputFeatures, Model, RefusalScope, Secrets,
    TokenEstimator, warn_of_retirement,
};
use crate::limits::{
    Account, AccountQueue, Admission, Cost, Estimate, Exhausted, HeadOfQueue, InFlightCall,
    Limiter, NamedBy, PermitsExpired, QueueTicket, Refused, Resource, Semaphore,
};
use crate::metrics::Metrics;

pub use forward::{Forwarded, Unanswered};
use projects::Projects;
use retry::Attempts;
use settle::{Ended, counts_as, reported, settle};

pub use retry::RetryPolicy;
pub use sending::{ClientFault, Sending};

/// Sends calls to Gemini, each through the limiter.
#[derive(Debug)]
pub struct Dispatcher {
    client: Client,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    policy: RetryPolicy,
    projects: Arc<Projects>,
}

/// Whose key pays for calls to which model, and where they wait for it.
#[derive(Debug)]
pub struct Route {
    key: ApiKey,
    model: Model,
    queue: AccountQueue,
    estimator: Arc<TokenEstimator>,
}

/// Who asks for what, and until when: all of a call but its body.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is generated, for the metrics: `chat`, `structured_output`, …
    pub kind: &'static str,
    /// Whose key pays, and for which model.
    pub route: Arc<Route>,
    /// The text in the body, from which its cost is estimated.
    pub input: InputFeatures,
    /// As how many requests Gemini counts it: at least 1.
    pub requests: u64,
    /// How many images it may generate.
    pub images: u64,
    /// When the answer is no longer wanted, queueing and retries included.
    pub deadline: Instant,
}

/// Why a call gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// It was not let in.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its deadline passed, in the queue or while Gemini worked on it.
    #[error("the request took longer than it may")]
    DeadlineExceeded,
    /// Gemini did not give an answer.
    #[error("{error}")]
    Upstream {
        /// What Gemini said.
        error: Box<Error>,
        /// In how long another attempt can succeed, where Gemini says so.
        retry_after: Option<Duration>,
    },
}

impl From<Error> for Failure {
    /// The failure for an answer that came and cannot be used.
    fn from(error: Error) -> Self {
        let retry_after = retry_after(&error);
        Self::upstream(error, retry_after)
    }
}

impl Failure {
    /// The failure for a call to which Gemini did not give an answer.
    pub(crate) fn upstream(error: Error, retry_after: Option<Duration>) -> Self {
        Self::Upstream { error: Box::new(error), retry_after }
    }

    /// What lies behind it, for the log only.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Upstream { error, .. } => error.cause(),
            Self::Refused(_) | Self::DeadlineExceeded => None,
        }
    }
}

impl Route {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The SHA-256 of the key that pays.
    pub fn payer(&self) -> &[u8; 32] {
        self.key.sha256()
    }

    /// Waits until the calls of this route that asked before are in, of the same request.
    pub async fn head(&self) -> HeadOfQueue<'_> {
        self.queue.head().await
    }
}

impl Dispatcher {
    /// A dispatcher over an upstream and a limiter.
    pub fn new(
        client: Client,
        limiter: Arc<Limiter>,
        metrics: Arc<Metrics>,
        policy: RetryPolicy,
    ) -> Self {
        Self { client, limiter, metrics, policy, projects: Arc::default() }
    }

    /// The same, with connections of its own and everything else in common.
    pub fn with_own_connections(&self) -> Self {
        Self {
            client: self.client.with_own_connections(),
            limiter: Arc::clone(&self.limiter),
            metrics: Arc::clone(&self.metrics),
            policy: self.policy,
            projects: Arc::clone(&self.projects),
        }
    }

    /// A place in the queue for one request.
    pub fn enqueue(&self) -> Arc<QueueTicket> {
        QueueTicket::new(Arc::clone(&self.limiter))
    }

    /// A place in the queue for a batch.
    pub fn enqueue_batch(&self) -> Arc<QueueTicket> {
        QueueTicket::for_many(Arc::clone(&self.limiter))
    }

    /// The way of a request's calls to a model with a key, which hold a semaphore or none.
    pub fn route(
        &self,
        ticket: &Arc<QueueTicket>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        let account = self.limiter.accounts().of(&self.projects.payer(&key), model.shared());
        self.route_for(account, ticket, key, model, semaphore)
    }

    /// The same for calls that Gemini counts beside what the model generates, under a name of
    /// their own, such as `countTokens`. They are not paid for out of the model's quotas.
    pub fn route_apart(
        &self,
        name: &str,
        ticket: &Arc<QueueTicket>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        let payer = self.projects.payer(&key);
        let account = self.limiter.accounts().apart(&payer, model.as_str(), name);
        self.route_for(account, ticket, key, model, semaphore)
    }

    fn route_for(
        &self,
        account: Arc<Account>,
        ticket: &Arc<QueueTicket>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        warn_of_retirement(&model);
        // Each key learns for itself, so that none can teach another nonsense.
        let estimator = account.attached();
        Arc::new(Route { key, model, queue: ticket.queue(account, semaphore), estimator })
    }

    /// The path and query of a URL that is one of Gemini's.
    pub fn path_of<'a>(&self, url: &'a Uri) -> Option<&'a str> {
        self.client.path_of(url)
    }

    /// The keys that must not come out of the answer to a call.
    pub fn secrets(&self, call: &Call) -> Secrets {
        self.client.secrets(Some(&call.route.key))
    }

    /// Waits for the call's turn.
    ///
    /// # Errors
    /// [`Failure::Refused`], or [`Failure::DeadlineExceeded`] while it waited.
    pub async fn admit(&self, call: &Call) -> Result<Admission, Failure> {
        let head = timeout_at(call.deadline, call.route.head());
        let head = head.await.map_err(|_| Failure::DeadlineExceeded)?;
        self.admit_at_head(call, head).await
    }

    /// Waits for the call to be let in whose turn it is.
    ///
    /// # Errors
    /// As for [`Dispatcher::admit`].
    pub async fn admit_at_head(
        &self,
        call: &Call,
        head: HeadOfQueue<'_>,
    ) -> Result<Admission, Failure> {
        let estimator = &call.route.estimator;
        let cost = Estimate {
            cost: Cost::of(call.requests, estimator.estimate(call.input))
                .with(Resource::Images, call.images),
            at_least: estimator.at_least(call.input),
        };
        let admission = timeout_at(call.deadline, head.admit(cost, call.deadline));
        let admission = admission.await.map_err(|_| Failure::DeadlineExceeded)??;
        self.metrics.admitted(admission.waited);
        Ok(admission)
    }

    /// Sends a call until it succeeds, fails for good, or its attempts or its time are used up.
    /// The first attempt goes with `admission`; each other one waits for its own turn. While it
    /// waits to be sent again it holds nothing.
    ///
    /// # Errors
    /// [`Failure`], of the last attempt.
    pub async fn send(
        &self,
        call: &Call,
        body: Bytes,
        mut admission: Admission,
    ) -> Result<Answer, Failure> {
        let mut attempts = Attempts::default();
        loop {
            let in_flight = self.start(call, admission).await?;
            let error = match self.attempt(call, body.clone(), in_flight).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            admission = match self.readmit(call, &mut attempts, &error).await? {
                Ok(admission) => admission,
                Err(retry_after) => return Err(Failure::upstream(error, retry_after)),
            };
        }
    }

    /// Waits until a call that failed may be sent again, holding nothing, and for its turn then.
    /// `Err` where it is not sent again, with the time in which Gemini says it can succeed.
    async fn readmit(
        &self,
        call: &Call,
        attempts: &mut Attempts,
        error: &Error,
    ) -> Result<Result<Admission, Option<Duration>>, Failure> {
        let retry_after = retry_after(error);
        attempts.count(error);
        let now = Instant::now();
        let resend_at = self.policy.resend_at(call.kind, *attempts, error, retry_after, now);
        let Some(resend_at) = resend_at.filter(|at| *at < call.deadline) else {
            return Ok(Err(retry_after));
        };
        tracing::debug!(
            attempt = attempts.failed,
            code = error.kind.code(),
            cause = error.cause(),
            "the call will be sent again"
        );
        self.metrics.retried(call.kind, error.kind.code());
        sleep_until(resend_at).await;
        match self.admit(call).await {
            Ok(admission) => Ok(Ok(admission)),
            // A deadline that passes in the queue is less telling than what Gemini had said, and so
            // is a pause for what the account spends that lasts longer than the call may.
            Err(Failure::DeadlineExceeded) => Ok(Err(retry_after)),
            Err(Failure::Refused(Refused::Exhausted(Exhausted::NotBefore { .. })))
                if is_for_spend(error) =>
            {
                Ok(Err(retry_after))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Lets a call leave; one that was let in too long ago waits for another turn.
    async fn start(&self, call: &Call, mut admission: Admission) -> Result<InFlightCall, Failure> {
        loop {
            match admission.start() {
                Ok(in_flight) => return Ok(in_flight),
                Err(PermitsExpired) => admission = self.admit(call).await?,
            }
        }
    }

    /// One attempt. What it holds goes back as soon as Gemini is done, whatever came of it.
    async fn attempt(
        &self,
        call: &Call,
        body: Bytes,
        in_flight: InFlightCall,
    ) -> Result<Result<Answer, Error>, Failure> {
        let Route { key, model, .. } = &*call.route;
        let sent = Instant::now();
        let time_limit = self.time_limit(call, sent);
        let result = self.client.generate(key, model, body, in_flight.fence(), time_limit).await;
        let usage = result.as_ref().map_or_else(|error| error.usage, |answer| answer.usage);
        match &result {
            Ok(answer) => {
                self.projects.prove(key);
                counts_as(
                    &self.limiter,
                    &in_flight,
                    answer.model_version.as_ref(),
                    NamedBy::Answer,
                );
                in_flight.answered(reported(usage));
            }
            Err(error) => settle(&self.limiter, in_flight, error),
        }
        let ended = match &result {
            Ok(_) => Ended::Answered,
            Err(error) => self.ended(call, sent, error),
        };
        ended.record(&self.metrics, call, sent, usage);
        if matches!(ended, Ended::Overdue) { Err(Failure::DeadlineExceeded) } else { Ok(result) }
    }

    /// One timer for both: an attempt's time and what is left of the request's.
    fn time_limit(&self, call: &Call, sent: Instant) -> Duration {
        self.policy.attempt_timeout.min(call.deadline.saturating_duration_since(sent))
    }

    /// How an attempt ended that failed.
    fn ended<'a>(&self, call: &Call, sent: Instant, error: &'a Error) -> Ended<'a> {
        let overdue = self.time_limit(call, sent) < self.policy.attempt_timeout
            && error.kind == ErrorKind::Timeout;
        if overdue { Ended::Overdue } else { Ended::Failed(error) }
    }
}

/// In how long another attempt can succeed, where Gemini says so.
fn retry_after(error: &Error) -> Option<Duration> {
    match &error.kind {
        ErrorKind::RateLimited(refusal) => refusal.retry_at(Timestamp::now()),
        ErrorKind::Overloaded(retry_after) => *retry_after,
        _ => None,
    }
}

fn is_for_spend(error: &Error) -> bool {
    matches!(&error.kind, ErrorKind::RateLimited(refusal) if refusal.scope == RefusalScope::Spend)
}
