//! A call: what is asked, who pays, and until when.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::{Instant, timeout_at};

use super::spend::{Learned, SpendEstimator};
use super::tier::{Fallback, TierChoice};
use super::{CallError, CallEvent, CallKind, CallObserver, ChargedTo, Dispatcher};
use crate::gemini::{
    ApiKey, InputFeatures, Model, ServiceTier, TraceContext, Usage, warn_of_retirement,
};
use crate::limits::{
    Account, AccountQueue, Admission, Cost, Estimate, HeadOfQueue, QueueTicket, Resource, Semaphore,
};
use crate::metrics::TraceId;
use crate::request_id;

/// A call to be made.
#[derive(Debug)]
pub struct CallRequest {
    /// What is asked for.
    pub kind: CallKind,
    /// The key that pays.
    pub key: ApiKey,
    /// The model that is asked.
    pub model: Model,
    /// The semaphore that the call holds beside the global one.
    pub semaphore: Option<Arc<dyn Semaphore>>,
    /// What it is expected to cost.
    pub size: CallSize,
    /// The service tier.
    pub tier: TierChoice,
    /// When the answer is no longer wanted, queueing and retries included.
    pub deadline: Instant,
    /// Who is told what happens to the call.
    pub observer: Option<Arc<dyn CallObserver>>,
}

/// What a call is expected to cost, as far as its body tells.
#[derive(Debug, Clone, Copy)]
pub struct CallSize {
    /// The text in the body, from which the input tokens are estimated.
    pub input: InputFeatures,
    /// How many requests Gemini counts it as; at least 1.
    pub requests: u64,
    /// How many images it may generate.
    pub images: u64,
    /// The tokens of an earlier conversation that Gemini reads again and does not report.
    pub history: u64,
}

impl From<InputFeatures> for CallSize {
    /// The size of a call that is one request and generates text.
    fn from(input: InputFeatures) -> Self {
        Self { input, requests: 1, images: 0, history: 0 }
    }
}

/// A call in the queue. It keeps its position for as long as it is resent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Call {
    queue: Arc<CallQueue>,
    size: CallSize,
    deadline: Instant,
    pub(super) observer: Option<Arc<dyn CallObserver>>,
}

/// The calls of one request that are of one kind, for one key and model, and hold the same
/// semaphore, if any. They are admitted one after the other.
#[derive(Debug)]
pub struct CallQueue {
    kind: CallKind,
    key: ApiKey,
    model: Model,
    queue: AccountQueue,
    learned: Arc<Learned>,
    /// `None` if the payer may spend any amount.
    spend: Option<SpendEstimator>,
    tier: TierChoice,
    fallback: Option<Fallback>,
    /// The ID of the request that makes the calls, if one does.
    request_id: Option<HeaderValue>,
}

/// A call that was admitted.
#[derive(Debug)]
pub struct Admitted {
    /// The call, in the service tier in which it was admitted.
    pub(super) call: Call,
    pub(super) admission: Admission,
}

impl Dispatcher {
    /// Puts one call into the queue.
    pub fn enqueue(&self, request: CallRequest) -> Call {
        let CallRequest { kind, key, model, semaphore, size, tier, deadline, observer } = request;
        let ticket = QueueTicket::new(Arc::clone(&self.limiter));
        let queue = Arc::new(self.queue(&ticket, kind, key, model, semaphore, tier));
        Call { queue, size, deadline, observer }
    }

    /// Puts a batch into the queue, where it has one position, however many calls it makes.
    pub fn enqueue_batch(&self) -> Arc<QueueTicket> {
        QueueTicket::for_many(Arc::clone(&self.limiter))
    }

    /// The same. Its calls in flight are counted in `in_flight`.
    pub fn enqueue_counted(&self, in_flight: Arc<AtomicUsize>) -> Arc<QueueTicket> {
        QueueTicket::for_many_counted(Arc::clone(&self.limiter), in_flight)
    }

    /// A queue for those calls of a batch that are of one kind, for one key and model, in one service
    /// tier, and hold the same semaphore.
    pub fn queue(
        &self,
        ticket: &Arc<QueueTicket>,
        kind: CallKind,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
        tier: TierChoice,
    ) -> CallQueue {
        let (payer, accounts) = (self.projects.payer(&key), self.limiter.accounts());
        let account = match kind.charged_to() {
            ChargedTo::Model => accounts.of(&payer, model.shared()),
            ChargedTo::Method(method) => accounts.apart(&payer, model.as_str(), method),
        };
        warn_of_retirement(&model);
        let learned = account.attached();
        let spend = SpendEstimator::new(&account, &self.prices, kind);
        let fallback = tier.fallback().map(|(at, tier)| {
            let (key, model, semaphore) = (key.clone(), model.clone(), semaphore.clone());
            let queue = Arc::new(self.queue(ticket, kind, key, model, semaphore, tier));
            Fallback { at, queue }
        });
        let queue = ticket.queue(account, semaphore).using(tier.capacity());
        let request_id = request_id::current();
        CallQueue { kind, key, model, queue, learned, spend, tier, fallback, request_id }
    }

    /// Waits until a call is admitted.
    ///
    /// # Errors
    /// [`CallError::Refused`], or [`CallError::DeadlineExceeded`] while it waited.
    pub async fn admit(&self, call: &Call) -> Result<Admitted, CallError> {
        match self.admit_in_tier(call).await {
            Ok(admission) => Ok(Admitted { call: call.clone(), admission }),
            Err(refused) => self.fall_back(call, refused).await,
        }
    }

    /// The same in the call's own tier.
    pub(super) async fn admit_in_tier(&self, call: &Call) -> Result<Admission, CallError> {
        call.observe(CallEvent::Enqueued(call));
        let admission = self.admit_queued(call).await;
        call.observe_end_of_wait(&admission);
        admission
    }

    async fn admit_queued(&self, call: &Call) -> Result<Admission, CallError> {
        let head = timeout_at(call.until(), call.queue.head());
        let head = head.await.map_err(|_| CallError::DeadlineExceeded)?;
        self.admit_head(call, head).await
    }

    /// Waits until a call at the head of its queue is admitted.
    ///
    /// # Errors
    /// As for [`Dispatcher::admit`].
    pub async fn admit_at_head(
        &self,
        call: &Call,
        head: HeadOfQueue<'_>,
    ) -> Result<Admitted, CallError> {
        call.observe(CallEvent::Enqueued(call));
        let admission = self.admit_head(call, head).await;
        call.observe_end_of_wait(&admission);
        match admission {
            Ok(admission) => Ok(Admitted { call: call.clone(), admission }),
            Err(refused) => self.fall_back(call, refused).await,
        }
    }

    /// Admits a call that was refused before it was sent, in the tier to which it falls back, if it does.
    async fn fall_back(&self, call: &Call, refused: CallError) -> Result<Admitted, CallError> {
        let admitted = self.admit_after(call, refused).await;
        if let Err(error) = &admitted {
            self.not_admitted(call, error);
        }
        admitted
    }

    async fn admit_head(&self, call: &Call, head: HeadOfQueue<'_>) -> Result<Admission, CallError> {
        let until = call.until();
        let admission = timeout_at(until, head.admit(call.estimate(), until));
        let admission = admission.await.map_err(|_| CallError::DeadlineExceeded)??;
        // A call that falls back is not sent in its own tier once that time has come.
        if until < call.deadline && until <= Instant::now() {
            return Err(CallError::DeadlineExceeded);
        }
        self.metrics.admitted(admission.waited, call.trace());
        Ok(admission)
    }
}

impl Admitted {
    /// The same call with another deadline, for one that was admitted without knowing when.
    #[must_use]
    pub fn due(self, deadline: Instant) -> Self {
        Self { call: self.call.due(deadline), ..self }
    }
}

impl CallQueue {
    /// Waits until the calls of this queue that came before have been admitted.
    pub async fn head(&self) -> HeadOfQueue<'_> {
        self.queue.head().await
    }

    /// Since when the call at the head has been waiting for a limit of its own, such as a quota; `None` if
    /// it waits for a slot only, or there is none.
    pub fn held_up_since(&self) -> Option<Instant> {
        self.queue.held_up_since()
    }

    /// A call in this queue. It may be admitted only with the [head](CallQueue::head) of the same.
    pub fn call(self: &Arc<Self>, size: impl Into<CallSize>, deadline: Instant) -> Call {
        Call { queue: Arc::clone(self), size: size.into(), deadline, observer: None }
    }
}

impl Call {
    /// A call after this one, with another body, for the same purpose and until the same deadline.
    pub fn followed_by(&self, size: impl Into<CallSize>) -> Self {
        self.queue.call(size, self.deadline).observed_by(self.observer.clone())
    }

    /// What is asked for.
    pub fn kind(&self) -> CallKind {
        self.queue.kind
    }

    /// The model that is asked.
    pub fn model(&self) -> &Model {
        &self.queue.model
    }

    /// The SHA-256 of the key that pays.
    pub fn payer(&self) -> &[u8; 32] {
        self.queue.key.sha256()
    }

    /// The account that it was made for. Another one may be charged.
    pub(super) fn account(&self) -> &Account {
        self.queue.queue.account()
    }

    /// The ID of the request that makes it, if one does.
    pub(super) fn request_id(&self) -> Option<&HeaderValue> {
        self.queue.request_id.as_ref()
    }

    /// Its trace, if it is sampled.
    pub(super) fn trace(&self) -> Option<TraceId> {
        self.observer.as_ref()?.trace_id()
    }

    /// The text in its body.
    pub fn input(&self) -> InputFeatures {
        self.size.input
    }

    /// When the answer is no longer wanted.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The service tier that it asks for.
    pub fn tier(&self) -> ServiceTier {
        self.queue.tier.tier()
    }

    /// The same call with another deadline.
    #[must_use]
    pub fn due(self, deadline: Instant) -> Self {
        Self { deadline, ..self }
    }

    /// The same call, which tells this observer what happens to it.
    #[must_use]
    pub fn observed_by(self, observer: Option<Arc<dyn CallObserver>>) -> Self {
        Self { observer, ..self }
    }

    /// When it has been tried for long enough in its tier.
    pub(super) fn until(&self) -> Instant {
        let falls_back_at = self.queue.fallback.as_ref().map(|fallback| fallback.at);
        falls_back_at.map_or(self.deadline, |at| at.min(self.deadline))
    }

    /// The same call in the standard tier, where it falls back to that.
    pub(super) fn in_standard_tier(&self) -> Option<Self> {
        let queue = Arc::clone(&self.queue.fallback.as_ref()?.queue);
        Some(Self { queue, ..self.clone() })
    }

    /// The body as it is sent.
    pub(super) fn sent_body(&self, body: &Bytes) -> Bytes {
        self.queue.tier.added_to(body)
    }

    /// The input tokens that it cost, if Gemini reports them.
    pub(super) fn input_tokens(&self, usage: Usage) -> Option<u64> {
        (usage.prompt_tokens > 0).then(|| usage.prompt_tokens.saturating_add(self.size.history))
    }

    /// The tokens of the conversation that it continued, after it.
    pub(super) fn conversation(&self, usage: Usage) -> u64 {
        let turn = usage.prompt_tokens.saturating_add(usage.output_tokens);
        self.size.history.saturating_add(turn)
    }

    /// The position in a trace that the attempt carries which begins now.
    pub(super) fn trace_context(&self) -> Option<Box<TraceContext>> {
        self.observer.as_ref()?.trace_context()
    }

    pub(super) fn key(&self) -> &ApiKey {
        &self.queue.key
    }

    /// Learns from the usage that Gemini reports.
    pub(super) fn learn(&self, usage: Usage) {
        let CallQueue { learned, spend, .. } = &*self.queue;
        if usage.prompt_tokens > 0 && self.kind().teaches_estimates() {
            learned.tokens.learn(self.input(), usage.prompt_tokens, usage.cached_tokens);
        }
        if let Some(spend) = spend.as_ref().filter(|_| usage.is_known()) {
            spend.learn(learned, usage);
        }
    }

    pub(super) fn estimate(&self) -> Estimate {
        let CallSize { input, requests, images, history } = self.size;
        let CallQueue { learned, spend, .. } = &*self.queue;
        let tokens = learned.tokens.estimate(input).saturating_add(history);
        Estimate {
            cost: Cost::of(requests, tokens).with(Resource::Images, images),
            at_least: learned.tokens.at_least(input),
            spend: spend.as_ref().map_or(0, |spend| spend.estimate(learned, tokens)),
        }
    }
}
