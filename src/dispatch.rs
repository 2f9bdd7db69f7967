//! Calls to Gemini, each through admission: queued, admitted, sent, settled, counted, and resent
//! after a transient error.
//!
//! Only this module has the upstream client, so nothing reaches Gemini past the limits. A
//! [`CallRequest`] says what is asked; [`CallKind`] has all that depends on the kind of call. There
//! is one retry loop, `Dispatcher::run`, for every way to read an answer: whole
//! ([`Dispatcher::generate`]), as it comes ([`Dispatcher::forward`]), or as one side of a
//! conversation ([`Dispatcher::open_live`]).

mod attempt;
mod background;
mod call;
mod continuation;
mod enqueued;
mod failure;
mod forward;
mod kind;
mod live;
mod observer;
mod progress;
mod projects;
mod retry;
mod settle;
mod spend;
mod tier;
mod timeline;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, Uri};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use crate::gemini::{
    AnswerPart, ApiKey, Client, Error, ErrorKind, Forward, ForwardError, RefusalScope, Secrets,
};
use crate::limits::{
    Admission, EnqueuedTokens, Exhausted, InFlightCall, Limiter, PermitsExpired, Refused,
};
use crate::metrics::Metrics;
use crate::prices::Prices;

use attempt::{Reader, Whole};
use background::{BackgroundRuns, Creation};
use failure::REQUEST_TIMEOUT;
use forward::PassOn;
use projects::Projects;
use retry::FailedAttempts;

pub use background::{BackgroundPolicy, Observed};
pub use call::{Admitted, Call, CallQueue, CallRequest, CallSize};
pub use continuation::LongAnswer;
pub use forward::Forwarded;
pub use kind::{CallKind, ChargedTo, CountedAs};
pub use live::{CountedReceiver, LiveSession, SessionEnd};
pub use observer::{CallEvent, CallObserver, EndedAttempt, SentAttempt};
pub use progress::{ClientFault, UploadProgress};
pub use retry::RetryPolicy;
pub use tier::TierChoice;
pub use timeline::{Timeline, TimelineEntry, TimelineEvent};

/// Makes calls to Gemini.
#[derive(Debug)]
pub struct Dispatcher {
    client: Client,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    policy: RetryPolicy,
    projects: Arc<Projects>,
    prices: Arc<Prices>,
    background: Arc<BackgroundRuns>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was not admitted.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its deadline passed, in the queue or while Gemini worked on it.
    #[error("the request took longer than it may")]
    DeadlineExceeded,
    /// Gemini gave no answer that can be used.
    #[error("{error}")]
    Upstream {
        /// What went wrong.
        error: Box<Error>,
        /// How long to wait until another attempt can succeed, where Gemini says so.
        retry_after: Option<Duration>,
        /// Gemini's response, where a whole one came and its client may see it.
        response: Option<Box<Response<Bytes>>>,
    },
}

/// Goes on with a call if its caller stops waiting for it: what it creates exists at Gemini.
async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> Result<T, CallError> {
    // It fails only if the process ends.
    tokio::spawn(call).await.unwrap_or(Err(CallError::DeadlineExceeded))
}

impl From<Error> for CallError {
    /// The error for an answer that came and cannot be used.
    fn from(error: Error) -> Self {
        let retry_after = retry_after(&error);
        Self::rejected(error.into(), retry_after)
    }
}

impl CallError {
    fn rejected(rejected: ForwardError, retry_after: Option<Duration>) -> Self {
        let ForwardError { error, response } = rejected;
        Self::Upstream { error: Box::new(error), retry_after, response }
    }

    /// The stable code of the error, for callers and dashboards.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.code(),
            Self::DeadlineExceeded => REQUEST_TIMEOUT,
            Self::Upstream { error, .. } => error.kind.code(),
        }
    }

    /// The cause, for the log only.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Upstream { error, .. } => error.cause(),
            Self::Refused(_) | Self::DeadlineExceeded => None,
        }
    }
}

impl Dispatcher {
    /// A dispatcher over an upstream and a limiter, which charges calls at these prices.
    pub fn new(
        client: Client,
        limiter: Arc<Limiter>,
        metrics: Arc<Metrics>,
        policy: RetryPolicy,
        prices: Arc<Prices>,
    ) -> Self {
        let (projects, background) = (Arc::default(), Arc::default());
        Self { client, limiter, metrics, policy, projects, prices, background }
    }

    /// The same, which follows runs in the background in this way.
    pub fn following(self, policy: BackgroundPolicy) -> Self {
        Self { background: Arc::new(BackgroundRuns::new(policy)), ..self }
    }

    /// The same, with connections of its own and everything else shared.
    pub fn with_own_connections(&self) -> Self {
        Self {
            client: self.client.with_own_connections(),
            limiter: Arc::clone(&self.limiter),
            metrics: Arc::clone(&self.metrics),
            policy: self.policy,
            projects: Arc::clone(&self.projects),
            prices: Arc::clone(&self.prices),
            background: Arc::clone(&self.background),
        }
    }

    /// The path and query of a URL, if it is one of Gemini's.
    pub fn path_of<'a>(&self, url: &'a Uri) -> Option<&'a str> {
        self.client.path_of(url)
    }

    /// The keys that must not appear in the answer to a call.
    pub fn secrets(&self, call: &Call) -> Secrets {
        self.client.secrets(Some(call.key()))
    }

    /// The tokens that Gemini reads again for an interaction that continues another one, as far as
    /// they are known from earlier answers to the same key.
    pub fn conversation_tokens(&self, key: &ApiKey, previous: &str) -> u64 {
        self.background.conversation(key.sha256(), previous)
    }

    /// How many calls may be in flight at once, as the settings say now.
    pub fn concurrency_limit(&self) -> usize {
        self.limiter.concurrency_limit()
    }

    /// How many calls continue an answer that Gemini stops before its end, at most.
    pub fn max_continuations(&self) -> usize {
        self.policy.max_continuations
    }

    /// Waits for admission, then asks Gemini and reads the answer whole, over as many calls as that
    /// takes.
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn generate(&self, call: &Call, body: Bytes) -> Result<LongAnswer, CallError> {
        let admitted = self.admit(call).await?;
        self.generate_admitted(call, body, admitted).await
    }

    /// The same for a call whose first attempt has been [admitted](Dispatcher::admit).
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn generate_admitted(
        &self,
        call: &Call,
        body: Bytes,
        admitted: Admitted,
    ) -> Result<LongAnswer, CallError> {
        let answer = self.run(admitted, Whole(body.clone(), AnswerPart::First)).await?;
        if answer.continuation.is_none() {
            return Ok(LongAnswer { answer, interrupted: None });
        }
        // Boxed so that the usual call takes no memory for it.
        Box::pin(self.continue_answer(call, &body, answer)).await
    }

    /// Waits for admission, then sends a request and passes its answer on as it comes. The call is
    /// resent only as long as nothing was passed on. Between two pieces of the answer `idle` may
    /// pass.
    ///
    /// Dropping the future ends the call, unless Gemini has been asked for a run in the background:
    /// such a run goes on at Gemini, so that its ID is waited for.
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn forward(
        self: &Arc<Self>,
        call: &Call,
        request: &Forward,
        body: Bytes,
        idle: Duration,
    ) -> Result<Response<Forwarded>, CallError> {
        let admitted = self.admit(call).await?;
        let creation = Creation::of(request, &self.background, &self.client);
        if creation.is_some() && request.runs_on {
            let (dispatcher, request) = (Arc::clone(self), request.clone());
            let run = to_its_end(async move {
                let reader = PassOn { request: &request, body, idle, creation };
                dispatcher.run(admitted, reader).await
            });
            return Box::pin(run).await;
        }
        // Boxed so that a call that waits takes no more memory than its wait.
        Box::pin(self.run(admitted, PassOn { request, body, idle, creation })).await
    }

    /// The same for a call that was admitted, and that runs on nowhere after its answer.
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn forward_admitted(
        &self,
        request: &Forward,
        body: Bytes,
        idle: Duration,
        admitted: Admitted,
    ) -> Result<Response<Forwarded>, CallError> {
        self.run(admitted, PassOn { request, body, idle, creation: None }).await
    }

    /// The same for a call that creates a batch job, which then holds `tokens`. Dropping the future
    /// ends the call only until Gemini has been asked.
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn create_job(
        self: &Arc<Self>,
        call: &Call,
        request: &Forward,
        body: Bytes,
        idle: Duration,
        tokens: EnqueuedTokens,
    ) -> Result<Response<Forwarded>, CallError> {
        let admitted = self.admit(call).await?;
        let (dispatcher, request) = (Arc::clone(self), request.clone());
        let run = to_its_end(async move {
            let reader = PassOn { request: &request, body, idle, creation: None };
            let forwarded = dispatcher.run(admitted, reader).await?;
            dispatcher.hold_enqueued(tokens, forwarded.body().complete()).await;
            Ok(forwarded)
        });
        Box::pin(run).await
    }

    /// Attempts a call until it succeeds, fails for good, or its attempts or its time are used up. A
    /// flex call that was not served in time may then be attempted in the standard tier.
    async fn run<R: Reader>(
        &self,
        Admitted { call, admission }: Admitted,
        reader: R,
    ) -> Result<R::Answer, CallError> {
        let failed = match self.run_in_tier(&call, admission, &reader).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        let Admitted { call, admission } = self.admit_after(&call, failed).await?;
        Box::pin(self.run_in_tier(&call, admission, &reader)).await
    }

    /// The same in the call's own tier. The first attempt uses `admission`; each further one is
    /// admitted anew.
    async fn run_in_tier<R: Reader>(
        &self,
        call: &Call,
        mut admission: Admission,
        reader: &R,
    ) -> Result<R::Answer, CallError> {
        let mut failed = FailedAttempts::default();
        loop {
            let in_flight = self.start(call, admission).await?;
            let attempt = failed.all + 1;
            let rejected = match self.attempt(call, attempt, in_flight, reader).await? {
                Ok(answer) => return Ok(answer),
                Err(rejected) => rejected,
            };
            admission = match self.readmit(call, &mut failed, &rejected.error).await? {
                Ok(admission) => admission,
                Err(retry_after) => return Err(CallError::rejected(rejected, retry_after)),
            };
        }
    }

    /// Lets an admitted call start. It is admitted anew where that was too long ago.
    async fn start(
        &self,
        call: &Call,
        mut admission: Admission,
    ) -> Result<InFlightCall, CallError> {
        loop {
            match admission.start() {
                Ok(in_flight) => return Ok(in_flight),
                Err(PermitsExpired) => admission = self.admit_in_tier(call).await?,
            }
        }
    }

    /// Waits until a failed call may be resent, holding nothing, and then for admission. `Ok(Err(_))`
    /// where it is not resent, with how long Gemini says to wait.
    async fn readmit(
        &self,
        call: &Call,
        failed: &mut FailedAttempts,
        error: &Error,
    ) -> Result<Result<Admission, Option<Duration>>, CallError> {
        let retry_after = retry_after(error);
        failed.count(call.tier(), error);
        let (kind, now) = (call.kind(), Instant::now());
        let resend_at = self.policy.resend_at(kind, *failed, error, retry_after, now);
        let Some(resend_at) = resend_at.filter(|at| *at < call.until()) else {
            self.note_failure(call, error.kind.code(), false);
            return Ok(Err(retry_after));
        };
        tracing::debug!(
            attempt = failed.all,
            code = error.kind.code(),
            cause = error.cause(),
            "the call will be sent again"
        );
        self.metrics.retried(kind.label(), error.kind.code());
        self.note_failure(call, error.kind.code(), true);
        call.observe(CallEvent::RetryAt(resend_at));
        sleep_until(resend_at).await;
        match self.admit_in_tier(call).await {
            Ok(admission) => Ok(Ok(admission)),
            // What Gemini said tells the caller more than a deadline that passes in the queue, or
            // than a pause of the account for its spend that outlasts the deadline.
            Err(CallError::DeadlineExceeded) => Ok(Err(retry_after)),
            Err(CallError::Refused(Refused::Exhausted(Exhausted::NotBefore { .. })))
                if is_for_spend(error) =>
            {
                Ok(Err(retry_after))
            }
            Err(error) => {
                self.not_admitted(call, &error);
                Err(error)
            }
        }
    }
}

/// How long to wait until another attempt can succeed, where Gemini says so.
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
