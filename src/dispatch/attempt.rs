//! One attempt at a call: exchanged, settled, counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::failure::{REQUEST_TIMEOUT, failure};
use super::settle::{follow_model, settle};
use super::{Call, CallError, CallEvent, Dispatcher, EndedAttempt, SentAttempt};
use crate::gemini::{
    Answer, AnswerPart, Client, Error, ErrorKind, ForwardError, Model, RefusalScope, SendContext,
    Usage,
};
use crate::limits::{InFlightCall, Limiter, NamedBy};
use crate::metrics::{CountedRun, FinishedCall, Metrics, OutcomeClass, Refusal};
use crate::prices::{NanoDollars, Prices};

/// A way to send a call and to read its answer. Everything else about a call is the same for all.
pub(super) trait Reader: Sync {
    /// What an exchange that succeeds gives.
    type Received: Send;
    /// What the caller gets.
    type Answer;

    /// What an observer is told of the request.
    fn shown(&self) -> Shown<'_> {
        Shown::default()
    }

    /// Sends the call once, and waits until it is certain that there is an answer.
    fn exchange(
        &self,
        client: &Client,
        call: &Call,
        context: SendContext,
        time_limit: Duration,
    ) -> impl Future<Output = Result<Self::Received, ForwardError>> + Send;

    /// The status of the answer.
    fn status(&self, received: &Self::Received) -> StatusCode;

    /// The model that Gemini says it asked.
    fn model_version(&self, received: &Self::Received) -> Option<Model>;

    /// Reads what was received. The attempt ends here, or with an answer that is still to come.
    fn read(&self, received: Self::Received, attempt: Attempt) -> Self::Answer;
}

/// What an observer is told of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown<'a> {
    /// Whether a stream is asked for.
    pub streams: bool,
    /// The body, if the gateway reads the answer itself.
    pub body: Option<&'a Bytes>,
}

/// Reads an answer of `generateContent` whole, or a part of it.
pub(super) struct Whole(pub Bytes, pub AnswerPart);

impl Reader for Whole {
    type Received = Answer;
    type Answer = Answer;

    fn shown(&self) -> Shown<'_> {
        Shown { streams: false, body: Some(&self.0) }
    }

    async fn exchange(
        &self,
        client: &Client,
        call: &Call,
        context: SendContext,
        time_limit: Duration,
    ) -> Result<Answer, ForwardError> {
        let Self(body, part) = self;
        let (key, model) = (call.key(), call.model());
        let answer = client.generate(key, model, call.sent_body(body), *part, context, time_limit);
        Ok(answer.await?)
    }

    fn status(&self, _: &Answer) -> StatusCode {
        StatusCode::OK
    }

    fn model_version(&self, answer: &Answer) -> Option<Model> {
        answer.model_version.clone()
    }

    fn read(&self, mut answer: Answer, attempt: Attempt) -> Answer {
        let usage = attempt.end(&Outcome::Answered(Some(&answer)), answer.usage);
        answer.usage = usage;
        answer
    }
}

/// An attempt that Gemini has taken up, with what it holds. Dropping it gives that back, and the
/// estimate of its cost stands.
#[derive(Debug)]
pub(super) struct Attempt {
    in_flight: InFlightCall,
    /// The input tokens that are already counted.
    spent: u64,
    /// The money that is already counted.
    paid: NanoDollars,
    pub call: Call,
    /// The model that Gemini says it asked.
    answered_by: Option<Model>,
    sent: Instant,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    prices: Arc<Prices>,
}

impl Dispatcher {
    /// Makes one attempt, the one of this number. `Ok(Err(_))` where it failed and the call may be sent again.
    ///
    /// # Errors
    /// [`CallError::DeadlineExceeded`] where the call's deadline passed.
    pub(super) async fn attempt<R: Reader>(
        &self,
        call: &Call,
        attempt: usize,
        mut in_flight: InFlightCall,
        reader: &R,
    ) -> Result<Result<R::Answer, ForwardError>, CallError> {
        let sent = Instant::now();
        // One timer for both: an attempt's time, and what is left of the call's.
        let left = call.until().saturating_duration_since(sent);
        let attempt_timeout = self.policy.attempt_timeout_of(call.tier());
        let time_limit = attempt_timeout.min(left);
        let Shown { streams, body } = reader.shown();
        call.observe(CallEvent::Sent(SentAttempt { call, attempt, streams, body }));
        let context = SendContext { check: in_flight.fence(), trace: call.trace_context() };
        let received = reader.exchange(&self.client, call, context, time_limit).await;
        let ForwardError { mut error, response } = match received {
            Ok(received) => {
                call.observe(CallEvent::Accepted { status: reader.status(&received) });
                self.projects.prove(call.key());
                let named = reader.model_version(&received);
                follow_model(&self.limiter, &in_flight, call, named.as_ref(), NamedBy::Answer);
                let attempt = Attempt {
                    in_flight,
                    spent: 0,
                    paid: NanoDollars::default(),
                    call: call.clone(),
                    answered_by: named,
                    sent,
                    limiter: Arc::clone(&self.limiter),
                    metrics: Arc::clone(&self.metrics),
                    prices: Arc::clone(&self.prices),
                };
                return Ok(Ok(reader.read(received, attempt)));
            }
            Err(rejected) => rejected,
        };
        *error.usage = charged(&self.prices, call.model(), None, *error.usage);
        charge(&mut in_flight, *error.usage, NanoDollars::default());
        settle(&self.limiter, in_flight, call, &error);
        let is_overdue = time_limit < attempt_timeout && error.kind == ErrorKind::Timeout;
        let outcome = if is_overdue { Outcome::Overdue } else { Outcome::Failed(&error) };
        outcome.record(&self.metrics, call, None, sent, *error.usage);
        match outcome {
            Outcome::Overdue => Err(CallError::DeadlineExceeded),
            _ => Ok(Err(ForwardError { error, response })),
        }
    }
}

impl Attempt {
    /// Counts the call as a run in the background until the value is dropped.
    pub(super) fn counted_run(&self) -> CountedRun {
        self.metrics.background_run()
    }

    /// Counts what Gemini reports before the end of the call: the input tokens, and what the usage until
    /// now costs. It is not counted again at the end.
    pub(super) fn spend(&mut self, usage: Usage) {
        let tokens = usage.prompt_tokens.saturating_sub(self.spent);
        if tokens > 0 {
            self.in_flight.spend(tokens);
            self.spent = usage.prompt_tokens;
        }
        let cost = charged(&self.prices, self.call.model(), self.answered_by.as_ref(), usage).cost;
        let more = cost.0.saturating_sub(self.paid.0);
        if more > 0 {
            self.in_flight.pay(more);
            self.paid = cost;
        }
    }

    /// The attempt is over: settles and counts it. Returns the usage with what it costs.
    pub(super) fn end(self, outcome: &Outcome<'_>, usage: Usage) -> Usage {
        let Self { mut in_flight, spent, paid, call, answered_by, sent, limiter, metrics, prices } =
            self;
        let usage = charged(&prices, call.model(), answered_by.as_ref(), usage);
        charge(&mut in_flight, usage, paid);
        let left = |reported: Option<u64>| reported.map(|tokens| tokens.saturating_sub(spent));
        match outcome {
            Outcome::Answered(_) => in_flight.answered(left(call.input_tokens(usage))),
            Outcome::BrokenOff(error) | Outcome::Failed(error) => {
                // What Gemini has said of the cost by then stands.
                let accepted_model = error.accepted_model || usage.prompt_tokens > 0;
                let left = usage.prompt_tokens.saturating_sub(spent);
                let usage = Box::new(Usage { prompt_tokens: left, ..usage });
                let error = Error { usage, accepted_model, ..Error::clone(error) };
                settle(&limiter, in_flight, &call, &error);
            }
            _ if usage.prompt_tokens > 0 => in_flight.answered(left(call.input_tokens(usage))),
            _ => drop(in_flight),
        }
        outcome.record(&metrics, &call, answered_by.as_ref(), sent, usage);
        usage
    }
}

/// The usage with what it costs at the prices of the model that answered and of the tier that
/// answered. Where the prices of that model are unknown, those of the model that was asked count.
fn charged(prices: &Prices, asked: &Model, answered_by: Option<&Model>, usage: Usage) -> Usage {
    if !usage.is_known() {
        return usage;
    }
    let answered_by = answered_by.filter(|model| prices.knows(model.as_str()));
    let model = answered_by.unwrap_or(asked).as_str();
    let cost = prices.cost(model, usage.service_tier.unwrap_or_default(), usage.charged());
    Usage { cost, ..usage }
}

/// Settles the payer's spend at what the call cost, if that is known, without what is `paid` already.
fn charge(in_flight: &mut InFlightCall, usage: Usage, paid: NanoDollars) {
    if usage.is_known() {
        in_flight.charge(usage.cost.0.saturating_sub(paid.0));
    }
}

/// How an attempt ended.
pub(super) enum Outcome<'a> {
    /// Gemini answered. The answer is here, if the gateway has read it whole.
    Answered(Option<&'a Answer>),
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
    /// Tells the metrics and the observer, and the estimators what the call cost.
    fn record(
        &self,
        metrics: &Metrics,
        call: &Call,
        answered_by: Option<&Model>,
        sent: Instant,
        usage: Usage,
    ) {
        let (outcome, accepted) = match self {
            Self::Answered(_) => ("success", true),
            Self::Overdue => (REQUEST_TIMEOUT, false),
            Self::Cancelled => ("cancelled", true),
            Self::Failed(error) => (error.kind.code(), error.accepted_model),
            Self::BrokenOff(error) => (error.kind.code(), true),
        };
        let (answer, status) = match self {
            Self::Answered(answer) => (*answer, None),
            Self::Failed(error) | Self::BrokenOff(error) => (None, error.status),
            Self::Overdue | Self::Cancelled => (None, None),
        };
        let ended = EndedAttempt { outcome, status, answered_by, usage, answer };
        call.observe(CallEvent::Ended(&ended));
        call.learn(usage);
        metrics.finished(FinishedCall {
            kind: call.kind().label(),
            model: call.model(),
            answered_by,
            accepted,
            outcome,
            class: self.class(),
            refusal: self.refusal(call),
            took: sent.elapsed(),
            usage,
            trace: call.trace(),
        });
        // A call that failed before its answer began may be sent again: whoever decides that keeps the
        // failure.
        if matches!(self, Self::Overdue | Self::BrokenOff(_)) {
            metrics.failed(failure(call, outcome, false));
        }
    }

    fn class(&self) -> OutcomeClass {
        match self {
            Self::Answered(_) => OutcomeClass::Succeeded,
            Self::Overdue => OutcomeClass::Failed,
            Self::Cancelled => OutcomeClass::Cancelled,
            Self::Failed(error) | Self::BrokenOff(error) => match error.kind {
                ErrorKind::RateLimited(_) | ErrorKind::Unfunded => OutcomeClass::RateLimited,
                ErrorKind::Overloaded(_) => OutcomeClass::Overloaded,
                ErrorKind::InvalidKey
                | ErrorKind::PermissionDenied
                | ErrorKind::ModelNotFound
                | ErrorKind::InvalidRequest => OutcomeClass::Rejected,
                ErrorKind::ContentBlocked { .. }
                | ErrorKind::Malformed
                | ErrorKind::Empty
                | ErrorKind::Truncated => OutcomeClass::Unusable,
                ErrorKind::Unavailable
                | ErrorKind::DeadlineExceeded
                | ErrorKind::Timeout
                | ErrorKind::Connection
                | ErrorKind::BrokenOff => OutcomeClass::Failed,
            },
        }
    }

    /// Why Gemini refused the call, if it did so for a quota, for lack of funds or for load.
    fn refusal(&self, call: &Call) -> Option<Refusal> {
        let (Self::Failed(error) | Self::BrokenOff(error)) = self else { return None };
        let reason = match &error.kind {
            ErrorKind::RateLimited(refusal) => match refusal.scope {
                RefusalScope::PerMinute => "per_minute",
                RefusalScope::PerDay => "per_day",
                RefusalScope::Load => "load",
                RefusalScope::NoQuota => "no_quota",
                RefusalScope::Spend => "spend",
                RefusalScope::Other => "other_quota",
            },
            ErrorKind::Unfunded => "unfunded",
            ErrorKind::Overloaded(_) => "load",
            _ => return None,
        };
        Some(Refusal { payer: call.account().payer().to_string(), reason })
    }
}
