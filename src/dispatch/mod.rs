//! One call through the door: let in, sent, and sent again when Gemini fails in passing.
//!
//! No other code holds the upstream client, so nothing reaches Gemini past the limits.

mod forward;
mod retry;
mod sending;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::gemini::{
    Answer, ApiKey, Client, Error, ErrorKind, InputFeatures, Model, Period, Quantity, Refusal,
    Scope, Secrets, TokenEstimator, Usage, Violation, warn_of_retirement,
};
use crate::limits::{
    Account, Admission, Cost, Door, Estimate, Exhausted, Lane, Lapsed, QuotaKind, Quotas, Refused,
    Resource, Semaphore, Turn, Turnstile, Underway, Window,
};
use crate::metrics::{Answered, Metrics};

pub use forward::{Forwarded, Unanswered};
use retry::Attempts;

pub use retry::RetryPolicy;
pub use sending::{ClientFault, Sending};

/// Sends calls to Gemini, each through the door.
#[derive(Debug)]
pub struct Dispatcher {
    client: Client,
    door: Arc<Door>,
    metrics: Arc<Metrics>,
    policy: RetryPolicy,
}

/// Whose key pays for calls to which model, and where they wait for it.
#[derive(Debug)]
pub struct Route {
    key: ApiKey,
    model: Model,
    lane: Lane,
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

impl Failure {
    /// The failure for a call to which Gemini did not give an answer.
    pub(crate) fn upstream(error: Error, retry_after: Option<Duration>) -> Self {
        Self::Upstream { error: Box::new(error), retry_after }
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
    pub async fn turn(&self) -> Turn<'_> {
        self.lane.turn().await
    }
}

impl Dispatcher {
    /// A dispatcher over an upstream and a door.
    pub fn new(
        client: Client,
        door: Arc<Door>,
        metrics: Arc<Metrics>,
        policy: RetryPolicy,
    ) -> Self {
        Self { client, door, metrics, policy }
    }

    /// The same, with connections of its own and everything else in common.
    pub fn with_client(&self, client: Client) -> Self {
        Self {
            client,
            door: Arc::clone(&self.door),
            metrics: Arc::clone(&self.metrics),
            policy: self.policy,
        }
    }

    /// A place in the queue for one request.
    pub fn place(&self) -> Arc<Turnstile> {
        Turnstile::new(Arc::clone(&self.door))
    }

    /// A place in the queue for a batch.
    pub fn place_for_many(&self) -> Arc<Turnstile> {
        Turnstile::for_many(Arc::clone(&self.door))
    }

    /// The way of a request's calls to a model with a key, which hold a semaphore or none.
    pub fn route(
        &self,
        place: &Arc<Turnstile>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        let account = self.door.accounts().of(key.sha256(), model.shared());
        self.route_for(account, place, key, model, semaphore)
    }

    /// The same for calls that Gemini counts beside what the model generates, under a name of
    /// their own, such as `countTokens`. They are not paid for out of the model's quotas.
    pub fn route_apart(
        &self,
        name: &str,
        place: &Arc<Turnstile>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        let account = self.door.accounts().apart(key.sha256(), model.as_str(), name);
        self.route_for(account, place, key, model, semaphore)
    }

    fn route_for(
        &self,
        account: Arc<Account>,
        place: &Arc<Turnstile>,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> Arc<Route> {
        warn_of_retirement(&model);
        // Each key learns for itself, so that none can teach another nonsense.
        let estimator = account.attached();
        Arc::new(Route { key, model, lane: place.lane(account, semaphore), estimator })
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
        let turn = timeout_at(call.deadline, call.route.turn());
        let turn = turn.await.map_err(|_| Failure::DeadlineExceeded)?;
        self.admit_in_turn(call, turn).await
    }

    /// Waits for the call to be let in whose turn it is.
    ///
    /// # Errors
    /// As for [`Dispatcher::admit`].
    pub async fn admit_in_turn(&self, call: &Call, turn: Turn<'_>) -> Result<Admission, Failure> {
        let estimator = &call.route.estimator;
        let cost = Estimate {
            cost: Cost::of(call.requests, estimator.estimate(call.input))
                .with(Resource::Images, call.images),
            at_least: estimator.at_least(call.input),
        };
        let admission = timeout_at(call.deadline, turn.admit(cost, call.deadline));
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
            let underway = self.depart(call, admission).await?;
            let error = match self.attempt(call, body.clone(), underway).await? {
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
    async fn depart(&self, call: &Call, mut admission: Admission) -> Result<Underway, Failure> {
        loop {
            match admission.depart() {
                Ok(underway) => return Ok(underway),
                Err(Lapsed) => admission = self.admit(call).await?,
            }
        }
    }

    /// One attempt. What it holds goes back as soon as Gemini is done, whatever came of it.
    async fn attempt(
        &self,
        call: &Call,
        body: Bytes,
        underway: Underway,
    ) -> Result<Result<Answer, Error>, Failure> {
        let Route { key, model, .. } = &*call.route;
        let sent = Instant::now();
        let patience = self.patience(call, sent);
        let result = self.client.generate(key, model, body, underway.fence(), patience).await;
        let usage = result.as_ref().map_or_else(|error| error.usage, |answer| answer.usage);
        match &result {
            Ok(answer) => {
                self.counts_as(&underway, answer.model_version.as_ref());
                underway.answered(reported(usage));
            }
            Err(error) => self.settle(underway, error),
        }
        let ended = match &result {
            Ok(_) => Ended::Answered,
            Err(error) => self.ended(call, sent, error),
        };
        ended.record(&self.metrics, call, sent, usage);
        if matches!(ended, Ended::Overdue) { Err(Failure::DeadlineExceeded) } else { Ok(result) }
    }

    /// Tells the limits what became of a call that failed.
    fn settle(&self, call: Underway, error: &Error) {
        match &error.kind {
            ErrorKind::RateLimited(refusal) => self.refuse(call, refusal),
            ErrorKind::Unfunded => call.unfunded(),
            ErrorKind::Overloaded(_) => call.overloaded(),
            ErrorKind::Connection => call.unsent(),
            // Gemini took the call up, though nothing came of it that could be used.
            _ if error.accepted_model => call.answered(reported(error.usage)),
            ErrorKind::InvalidKey
            | ErrorKind::PermissionDenied
            | ErrorKind::ModelNotFound
            | ErrorKind::InvalidRequest => call.declined(),
            // It may have run, and counts as spent: the estimate stands.
            _ => drop(call),
        }
    }

    fn refuse(&self, call: Underway, refusal: &Refusal) {
        // Google names one model a refusal; a few are looked at, however many there are.
        let named = refusal.violations.iter().take(4).filter_map(|quota| quota.model.as_deref());
        for model in named.filter_map(|name| Model::parse(name).ok()) {
            self.counts_as(&call, Some(&model));
        }
        let named = named_quotas(refusal);
        let wait = refusal.retry_at(Timestamp::now()).unwrap_or_default();
        match refusal.scope {
            Scope::Load => call.overloaded(),
            Scope::PerMinute => call.refused(Instant::now() + wait, named),
            Scope::PerDay => call.refused_for_the_day(named),
            Scope::NoQuota => call.without_quota(),
            Scope::Spend => {
                self.door.accounts().pause_payer(call.account(), Instant::now() + wait);
                call.refused_alone();
            }
            Scope::Other => call.refused_alone(),
        }
    }

    /// Gemini counts a call for the model that it names, which may be another than was asked.
    fn counts_as(&self, call: &Underway, real: Option<&Model>) {
        let asked = call.account().model();
        // Tuned models and what is counted apart have quotas of their own.
        let is_plain = !asked.contains(['/', ':']);
        if let Some(real) = real.filter(|real| is_plain && real.as_str() != asked) {
            self.door.accounts().alias(call.account(), real.as_str());
        }
    }

    /// One timer for both: an attempt's time and what is left of the request's.
    fn patience(&self, call: &Call, sent: Instant) -> Duration {
        self.policy.attempt_timeout.min(call.deadline.saturating_duration_since(sent))
    }

    /// How an attempt ended that failed.
    fn ended<'a>(&self, call: &Call, sent: Instant, error: &'a Error) -> Ended<'a> {
        let overdue = self.patience(call, sent) < self.policy.attempt_timeout
            && error.kind == ErrorKind::Timeout;
        if overdue { Ended::Overdue } else { Ended::Failed(error) }
    }
}

/// How an attempt ended.
enum Ended<'a> {
    /// Gemini answered.
    Answered,
    /// The request's time was up before the attempt's was.
    Overdue,
    /// The client hung up while the answer was on its way.
    Cancelled,
    /// It failed.
    Failed(&'a Error),
    /// It failed in the midst of its answer.
    BrokenOff(&'a Error),
}

impl Ended<'_> {
    fn record(&self, metrics: &Metrics, call: &Call, sent: Instant, usage: Usage) {
        let Route { model, estimator, .. } = &*call.route;
        let (outcome, accepted) = match self {
            Self::Answered => ("success", true),
            Self::Overdue => ("request_timeout", false),
            Self::Cancelled => ("cancelled", true),
            Self::Failed(error) => (error.kind.code(), error.accepted_model),
            Self::BrokenOff(error) => (error.kind.code(), true),
        };
        if usage.prompt_tokens > 0 {
            estimator.learn(call.input, usage.prompt_tokens, usage.cached_tokens);
        }
        let kind = call.kind;
        metrics.answered(Answered { kind, model, accepted, outcome, took: sent.elapsed(), usage });
    }
}

/// What a call cost, where Gemini says so.
fn reported(usage: Usage) -> Option<u64> {
    (usage.prompt_tokens > 0).then_some(usage.prompt_tokens)
}

/// The quotas that a refusal names. One of 0 is not taken over: it would keep every later call from
/// finding out that there is one again.
fn named_quotas(refusal: &Refusal) -> Quotas {
    let mut named = Quotas::default();
    for violation in &refusal.violations {
        if let Some(kind) = quota_kind(violation) {
            named[kind] = violation.limit.filter(|limit| *limit > 0).or(named[kind]);
        }
    }
    named
}

/// The kind of quota that a refusal names, if calls are held to it here.
fn quota_kind(violation: &Violation) -> Option<QuotaKind> {
    let resource = match violation.quantity {
        Quantity::Requests => Resource::Requests,
        Quantity::InputTokens => Resource::InputTokens,
        Quantity::Images => Resource::Images,
        Quantity::Apart | Quantity::Other => return None,
    };
    let window = match violation.period {
        Period::Minute => Window::Minute,
        Period::Day => Window::Day,
        Period::Unknown => return None,
    };
    QuotaKind::of(resource, window)
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
    matches!(&error.kind, ErrorKind::RateLimited(refusal) if refusal.scope == Scope::Spend)
}
