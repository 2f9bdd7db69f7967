//! A call: what is asked, who pays, and until when.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::{CallError, CallKind, ChargedTo, Dispatcher};
use crate::gemini::{ApiKey, InputFeatures, Model, TokenEstimator, Usage, warn_of_retirement};
use crate::limits::{
    AccountQueue, Admission, Cost, Estimate, HeadOfQueue, QueueTicket, Resource, Semaphore,
};

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
    /// When the answer is no longer wanted, queueing and retries included.
    pub deadline: Instant,
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
}

/// The calls of one request that are of one kind, for one key and model, and hold the same
/// semaphore, if any. They are admitted one after the other.
#[derive(Debug)]
pub struct CallQueue {
    kind: CallKind,
    key: ApiKey,
    model: Model,
    queue: AccountQueue,
    estimator: Arc<TokenEstimator>,
}

impl Dispatcher {
    /// Puts one call into the queue.
    pub fn enqueue(&self, request: CallRequest) -> Call {
        let CallRequest { kind, key, model, semaphore, size, deadline } = request;
        let ticket = QueueTicket::new(Arc::clone(&self.limiter));
        let queue = Arc::new(self.queue(&ticket, kind, key, model, semaphore));
        Call { queue, size, deadline }
    }

    /// Puts a batch into the queue, where it has one position, however many calls it makes.
    pub fn enqueue_batch(&self) -> Arc<QueueTicket> {
        QueueTicket::for_many(Arc::clone(&self.limiter))
    }

    /// A queue for those calls of a batch that are of one kind, for one key and model, and hold the
    /// same semaphore.
    pub fn queue(
        &self,
        ticket: &Arc<QueueTicket>,
        kind: CallKind,
        key: ApiKey,
        model: Model,
        semaphore: Option<Arc<dyn Semaphore>>,
    ) -> CallQueue {
        let (payer, accounts) = (self.projects.payer(&key), self.limiter.accounts());
        let account = match kind.charged_to() {
            ChargedTo::Model => accounts.of(&payer, model.shared()),
            ChargedTo::Method(method) => accounts.apart(&payer, model.as_str(), method),
        };
        warn_of_retirement(&model);
        // Kept with the account, so that no key can teach another one's estimator nonsense.
        let estimator = account.attached();
        CallQueue { kind, key, model, queue: ticket.queue(account, semaphore), estimator }
    }

    /// Waits until a call is admitted.
    ///
    /// # Errors
    /// [`CallError::Refused`], or [`CallError::DeadlineExceeded`] while it waited.
    pub async fn admit(&self, call: &Call) -> Result<Admission, CallError> {
        let head = timeout_at(call.deadline, call.queue.head());
        let head = head.await.map_err(|_| CallError::DeadlineExceeded)?;
        self.admit_at_head(call, head).await
    }

    /// Waits until a call at the head of its queue is admitted.
    ///
    /// # Errors
    /// As for [`Dispatcher::admit`].
    pub async fn admit_at_head(
        &self,
        call: &Call,
        head: HeadOfQueue<'_>,
    ) -> Result<Admission, CallError> {
        let admission = timeout_at(call.deadline, head.admit(call.estimate(), call.deadline));
        let admission = admission.await.map_err(|_| CallError::DeadlineExceeded)??;
        self.metrics.admitted(admission.waited);
        Ok(admission)
    }
}

impl CallQueue {
    /// Waits until the calls of this queue that came before have been admitted.
    pub async fn head(&self) -> HeadOfQueue<'_> {
        self.queue.head().await
    }

    /// A call in this queue. It may be admitted only with the [head](CallQueue::head) of the same.
    pub fn call(self: &Arc<Self>, size: impl Into<CallSize>, deadline: Instant) -> Call {
        Call { queue: Arc::clone(self), size: size.into(), deadline }
    }
}

impl Call {
    /// A call after this one, with another body, for the same purpose and until the same deadline.
    pub fn followed_by(&self, size: impl Into<CallSize>) -> Self {
        self.queue.call(size, self.deadline)
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

    /// The text in its body.
    pub fn input(&self) -> InputFeatures {
        self.size.input
    }

    /// When the answer is no longer wanted.
    pub fn deadline(&self) -> Instant {
        self.deadline
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

    pub(super) fn key(&self) -> &ApiKey {
        &self.queue.key
    }

    pub(super) fn estimator(&self) -> &TokenEstimator {
        &self.queue.estimator
    }

    fn estimate(&self) -> Estimate {
        let CallSize { input, requests, images, history } = self.size;
        let estimator = self.estimator();
        let tokens = estimator.estimate(input).saturating_add(history);
        Estimate {
            cost: Cost::of(requests, tokens).with(Resource::Images, images),
            at_least: estimator.at_least(input),
        }
    }
}
