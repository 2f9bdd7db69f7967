//! One call through the door: let in, sent, and sent again when Gemini fails in passing.
//!
//! No other code holds the upstream client, so nothing reaches Gemini past the limits.

mod retry;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::gemini::{Answer, ApiKey, Client, Error, ErrorKind, Model, Usage};
use crate::limits::{Admission, Door, Refused, Semaphore, Turnstile};
use crate::metrics::{Answered, Metrics};

pub use retry::RetryPolicy;

/// Sends calls to Gemini, each through the door.
#[derive(Debug)]
pub struct Dispatcher {
    client: Client,
    door: Arc<Door>,
    metrics: Arc<Metrics>,
    policy: RetryPolicy,
}

/// Who asks for what, and until when: all of a call but its body.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is generated, for the metrics: `chat`, `structured_output`, …
    pub kind: &'static str,
    /// Whose key pays.
    pub key: ApiKey,
    /// The model.
    pub model: Model,
    /// The semaphore the call holds in addition to the global one.
    pub semaphore: Option<Arc<Semaphore>>,
    /// The request's place in the queue, which a batch's calls share.
    pub place: Arc<Turnstile>,
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
        error: Error,
        /// In how long another attempt can succeed, where Gemini says so.
        retry_after: Option<Duration>,
    },
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

    /// A place in the queue for one request or one batch.
    pub fn place(&self) -> Arc<Turnstile> {
        Arc::new(Turnstile::new(Arc::clone(&self.door)))
    }

    /// Waits for the call's turn.
    ///
    /// # Errors
    /// [`Failure::Refused`], or [`Failure::DeadlineExceeded`] while it waited.
    pub async fn admit(&self, call: &Call) -> Result<Admission, Failure> {
        let admission = timeout_at(call.deadline, call.place.admit(call.semaphore.as_ref()))
            .await
            .map_err(|_| Failure::DeadlineExceeded)??;
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
        for attempt in 1.. {
            let error = match self.attempt(call, body.clone(), admission).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let retry_after = retry_after(&error);
            let resend_at = self.policy.resend_at(attempt, &error, retry_after, Instant::now());
            let Some(resend_at) = resend_at.filter(|at| *at < call.deadline) else {
                return Err(Failure::Upstream { error, retry_after });
            };
            tracing::debug!(attempt, code = error.kind.code(), "the call will be sent again");
            self.metrics.retried(call.kind, error.kind.code());
            sleep_until(resend_at).await;
            // A deadline that passes in the queue is less telling than what Gemini had said.
            admission = match self.admit(call).await {
                Err(Failure::DeadlineExceeded) => {
                    return Err(Failure::Upstream { error, retry_after });
                }
                admission => admission?,
            };
        }
        unreachable!("a policy gives up after a number of attempts")
    }

    /// One attempt. The admission goes back as soon as Gemini is done, whatever came of it.
    async fn attempt(
        &self,
        call: &Call,
        body: Bytes,
        admission: Admission,
    ) -> Result<Result<Answer, Error>, Failure> {
        let sent = Instant::now();
        let left = call.deadline.saturating_duration_since(sent);
        // One timer for both: an attempt's time and what is left of the request's.
        let patience = self.policy.attempt_timeout.min(left);
        let result = self.client.generate(&call.key, &call.model, body, patience).await;
        drop(admission);
        let overdue = left < self.policy.attempt_timeout
            && matches!(&result, Err(error) if error.kind == ErrorKind::Timeout);
        let (outcome, accepted, usage) = match &result {
            Ok(answer) => ("success", true, answer.usage),
            Err(_) if overdue => ("request_timeout", false, Usage::default()),
            Err(error) => (error.kind.code(), error.accepted_model, error.usage),
        };
        self.metrics.answered(Answered {
            kind: call.kind,
            model: &call.model,
            accepted,
            outcome,
            took: sent.elapsed(),
            usage,
        });
        if overdue { Err(Failure::DeadlineExceeded) } else { Ok(result) }
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match &error.kind {
        ErrorKind::RateLimited(refusal) => refusal.retry_at(Timestamp::now()),
        _ => None,
    }
}
