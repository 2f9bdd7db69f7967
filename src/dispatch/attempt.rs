//! One attempt at a call: exchanged, settled, counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::settle::{follow_model, settle};
use super::{Call, CallError, Dispatcher};
use crate::gemini::{Answer, Client, Error, ErrorKind, ForwardError, Model, SendCheck, Usage};
use crate::limits::{InFlightCall, Limiter, NamedBy};
use crate::metrics::{FinishedCall, Metrics};

/// A way to send a call and to read its answer. Everything else about a call is the same for all.
pub(super) trait Reader: Sync {
    /// What an exchange that succeeds gives.
    type Received: Send;
    /// What the caller gets.
    type Answer;

    /// Sends the call once, and waits until it is certain that there is an answer.
    fn exchange(
        &self,
        client: &Client,
        call: &Call,
        fence: Option<SendCheck>,
        time_limit: Duration,
    ) -> impl Future<Output = Result<Self::Received, ForwardError>> + Send;

    /// The model that Gemini says it asked.
    fn model_version(&self, received: &Self::Received) -> Option<Model>;

    /// Reads what was received. The attempt ends here, or with an answer that is still to come.
    fn read(&self, received: Self::Received, attempt: Attempt) -> Self::Answer;
}

/// Reads an answer of `generateContent` whole.
pub(super) struct Whole(pub Bytes);

impl Reader for Whole {
    type Received = Answer;
    type Answer = Answer;

    async fn exchange(
        &self,
        client: &Client,
        call: &Call,
        fence: Option<SendCheck>,
        time_limit: Duration,
    ) -> Result<Answer, ForwardError> {
        let answer = client.generate(call.key(), call.model(), self.0.clone(), fence, time_limit);
        Ok(answer.await?)
    }

    fn model_version(&self, answer: &Answer) -> Option<Model> {
        answer.model_version.clone()
    }

    fn read(&self, answer: Answer, attempt: Attempt) -> Answer {
        attempt.end(&Outcome::Answered, answer.usage);
        answer
    }
}

/// An attempt that Gemini has taken up, with what it holds. Dropping it gives that back, and the
/// estimate of its cost stands.
#[derive(Debug)]
pub(super) struct Attempt {
    in_flight: InFlightCall,
    pub call: Call,
    sent: Instant,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
}

impl Dispatcher {
    /// Makes one attempt. `Ok(Err(_))` where it failed and the call may be sent again.
    ///
    /// # Errors
    /// [`CallError::DeadlineExceeded`] where the call's deadline passed.
    pub(super) async fn attempt<R: Reader>(
        &self,
        call: &Call,
        in_flight: InFlightCall,
        reader: &R,
    ) -> Result<Result<R::Answer, ForwardError>, CallError> {
        let sent = Instant::now();
        // One timer for both: an attempt's time, and what is left of the call's.
        let left = call.deadline().saturating_duration_since(sent);
        let time_limit = self.policy.attempt_timeout.min(left);
        let received = reader.exchange(&self.client, call, in_flight.fence(), time_limit).await;
        let ForwardError { error, response } = match received {
            Ok(received) => {
                self.projects.prove(call.key());
                let named = reader.model_version(&received);
                follow_model(&self.limiter, &in_flight, call, named.as_ref(), NamedBy::Answer);
                let attempt = Attempt {
                    in_flight,
                    call: call.clone(),
                    sent,
                    limiter: Arc::clone(&self.limiter),
                    metrics: Arc::clone(&self.metrics),
                };
                return Ok(Ok(reader.read(received, attempt)));
            }
            Err(rejected) => rejected,
        };
        settle(&self.limiter, in_flight, call, &error);
        let is_overdue =
            time_limit < self.policy.attempt_timeout && error.kind == ErrorKind::Timeout;
        let outcome = if is_overdue { Outcome::Overdue } else { Outcome::Failed(&error) };
        outcome.record(&self.metrics, call, sent, error.usage);
        match outcome {
            Outcome::Overdue => Err(CallError::DeadlineExceeded),
            _ => Ok(Err(ForwardError { error, response })),
        }
    }
}

impl Attempt {
    /// The attempt is over: settles and counts it.
    pub(super) fn end(self, outcome: &Outcome<'_>, usage: Usage) {
        let Self { in_flight, call, sent, limiter, metrics } = self;
        match outcome {
            Outcome::Answered => in_flight.answered(call.input_tokens(usage)),
            Outcome::BrokenOff(error) | Outcome::Failed(error) => {
                // What Gemini has said of the cost by then stands.
                let accepted_model = error.accepted_model || usage.prompt_tokens > 0;
                let error = Error { usage, accepted_model, ..Error::clone(error) };
                settle(&limiter, in_flight, &call, &error);
            }
            _ if usage.prompt_tokens > 0 => in_flight.answered(call.input_tokens(usage)),
            _ => drop(in_flight),
        }
        outcome.record(&metrics, &call, sent, usage);
    }
}

/// How an attempt ended.
pub(super) enum Outcome<'a> {
    /// Gemini answered.
    Answered,
    /// The call's deadline passed before the attempt's.
    Overdue,
    /// The client hung up while the answer was on its way.
    Cancelled,
    /// It failed.
    Failed(&'a Error),
    /// It failed after the answer had begun.
    BrokenOff(&'a Error),
}

impl Outcome<'_> {
    /// Tells the metrics, and the estimator what the input cost.
    fn record(&self, metrics: &Metrics, call: &Call, sent: Instant, usage: Usage) {
        let (outcome, accepted) = match self {
            Self::Answered => ("success", true),
            Self::Overdue => ("request_timeout", false),
            Self::Cancelled => ("cancelled", true),
            Self::Failed(error) => (error.kind.code(), error.accepted_model),
            Self::BrokenOff(error) => (error.kind.code(), true),
        };
        if usage.prompt_tokens > 0 {
            call.estimator().learn(call.input(), usage.prompt_tokens, usage.cached_tokens);
        }
        metrics.finished(FinishedCall {
            kind: call.kind().label(),
            model: call.model(),
            accepted,
            outcome,
            took: sent.elapsed(),
            usage,
        });
    }
}
