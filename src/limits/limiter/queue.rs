//! The queue: tickets of requests, and waiting for quota, permits and slots.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync;

use super::admission::InFlight;
use super::held_by::Waits;
use super::{AccountQueue, HeldBy, Limiter, Refused};
use crate::limits::accounts::Account;
use crate::limits::local::LocalSemaphore;
use crate::limits::model::Capacity;
use crate::limits::semaphore::{NotGranted, Permit, Semaphore, WaitMode};

/// A request's ticket in the queue. A batch of any size has one ticket, as a single request does.
/// Its calls are admitted one after the other, first attempts and retries alike. So a request that
/// arrives after ten thousand items waits for one of them at most.
///
/// A batch for several models or keys waits for each in an [`AccountQueue`] of its own, so that none
/// delays another. For the global slot it still waits once.
#[derive(Debug)]
pub struct QueueTicket {
    pub(super) limiter: Arc<Limiter>,
    /// Whether requests that arrive while it waits at the head of the queue go first, once.
    pub(super) yields_once: bool,
    /// Whether Gemini has never accepted the account of its last call.
    is_unproven: AtomicBool,
    head: sync::Mutex<()>,
    state: Mutex<QueueState>,
    /// Counts the admitted calls of the request while they hold a global slot.
    in_flight: Option<Arc<AtomicUsize>>,
}

/// The state of a request in the queue.
#[derive(Debug, Default)]
struct QueueState {
    /// Whether the request was accepted into the queue, or admitted without waiting. `None` until
    /// that is decided.
    accepted: Option<bool>,
    /// The number of its account queues in which a call waits.
    queues: usize,
}

impl QueueTicket {
    /// A ticket for one request.
    pub fn new(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::with_policy(limiter, false, None)
    }

    /// A ticket for a batch. While it waits for its next call, requests that arrive meanwhile go first,
    /// once. So a single request beside a batch waits for the next free slot and not for the one
    /// after it, and the batch is no slower.
    pub fn for_many(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::with_policy(limiter, true, None)
    }

    /// The same. Its admitted calls are counted in `in_flight` while they hold a global slot.
    pub fn for_many_counted(limiter: Arc<Limiter>, in_flight: Arc<AtomicUsize>) -> Arc<Self> {
        Self::with_policy(limiter, true, Some(in_flight))
    }

    fn with_policy(
        limiter: Arc<Limiter>,
        yields_once: bool,
        in_flight: Option<Arc<AtomicUsize>>,
    ) -> Arc<Self> {
        let (head, state) = (sync::Mutex::new(()), Mutex::default());
        let is_unproven = AtomicBool::new(false);
        Arc::new(Self { limiter, yields_once, is_unproven, head, state, in_flight })
    }

    /// A queue of the calls for an account and a named semaphore, if any.
    pub fn queue(
        self: &Arc<Self>,
        account: Arc<Account>,
        named: Option<Arc<dyn Semaphore>>,
    ) -> AccountQueue {
        AccountQueue::new(Arc::clone(self), account, named)
    }

    pub(super) async fn acquire(&self, semaphore: &Arc<dyn Semaphore>) -> Result<Permit, Refused> {
        self.acquire_many(semaphore, 1).await
    }

    /// Waits for permits of a semaphore and for nothing else, for work outside this process. It counts
    /// in the queue as a call does. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] if it has to wait and too many requests do;
    /// [`Refused::SemaphoreDeleted`]; [`Refused::MoreThanLimit`]; [`Refused::StoreUnavailable`] if the
    /// request was not accepted before. An accepted request waits until the store is back.
    pub async fn acquire_many(
        &self,
        semaphore: &Arc<dyn Semaphore>,
        permits: usize,
    ) -> Result<Permit, Refused> {
        let request = |mode| Arc::clone(semaphore).request(permits, mode);
        match request(WaitMode::None).await {
            Err(NotGranted::NoneFree) => {}
            Err(NotGranted::StoreUnavailable(_)) if self.may_wait_for_store() => {}
            result => return Ok(result?),
        }
        let _waiting = self.join_queue()?;
        let yields = self.yields_once && semaphore.usage().waiting == 0;
        let permit = request(WaitMode::Endless).await?;
        if !yields || semaphore.usage().waiting == 0 {
            return Ok(permit);
        }
        drop(permit);
        Ok(request(WaitMode::Endless).await?)
    }

    /// Waits for a slot of the account and a global slot.
    #[expect(clippy::manual_async_fn, reason = "an async fn would hold the arguments twice")]
    pub(super) fn slots(
        &self,
        account: &Account,
        capacity: Capacity,
        waits: &mut Waits<'_>,
    ) -> impl Future<Output = Result<(Permit, Permit), Refused>> {
        async move {
            let own = account.concurrency_of(capacity).semaphore();
            let usage = own.usage();
            // If the account's limit is not below the global one, calls wait for the global slot
            // alone. So the first of all replicas is admitted first.
            let is_lowered = usage.limit < self.limiter.global.usage().limit;
            if usage.waiting == 0 && !is_lowered {
                let global = waits.during(HeldBy::ConcurrencyLimit, self.global()).await?;
                if let Some(slot) = own.try_acquire() {
                    return Ok((slot, global));
                }
                // The account's limit fell meanwhile. Other calls may use the global slot while
                // this one waits.
            }
            let own: Arc<dyn Semaphore> = Arc::<LocalSemaphore>::clone(own);
            let slot = waits.during(HeldBy::AdaptiveLimit, self.acquire(&own)).await?;
            Ok((slot, waits.during(HeldBy::ConcurrencyLimit, self.global()).await?))
        }
    }

    async fn global(&self) -> Result<Permit, Refused> {
        let _head = self.head.lock().await;
        self.acquire(&self.limiter.global).await
    }

    /// Notes the account of the next call.
    pub(super) fn note_account(&self, account: &Account) {
        self.is_unproven.store(!account.is_proven(), Ordering::Relaxed);
    }

    /// Whether the request was accepted before the store became unavailable. Otherwise it is refused,
    /// with all of its calls.
    pub(super) fn may_wait_for_store(&self) -> bool {
        *self.state().accepted.get_or_insert(false)
    }

    /// Accepts the request, unless one of its calls was refused. Then none of them is sent.
    pub(super) fn accept(&self) -> Result<(), Refused> {
        if *self.state().accepted.get_or_insert(true) { Ok(()) } else { Err(Refused::QueueFull) }
    }

    /// Joins the queue: the request counts once, however many of its account queues wait. A request
    /// that was accepted is never refused later. One that was not is refused if the store is
    /// unavailable.
    pub(super) fn join_queue(&self) -> Result<InQueue<'_>, Refused> {
        let mut state = self.state();
        if state.accepted != Some(true)
            && let Err(reason) = self.limiter.store.reach()
        {
            state.accepted = Some(false);
            return Err(reason.into());
        }
        if state.queues == 0 {
            let max = match state.accepted {
                None => self.limiter.max_waiting(self.is_unproven.load(Ordering::Relaxed)),
                Some(true) => usize::MAX,
                Some(false) => 0,
            };
            let one_more = |waiting| (waiting < max).then_some(waiting + 1);
            let queue = &self.limiter.waiting;
            let joined = queue.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
            state.accepted = Some(joined);
            if !joined {
                return Err(Refused::QueueFull);
            }
        }
        state.queues += 1;
        Ok(InQueue(self))
    }

    /// Counts an admitted call for as long as it holds a global slot, if the ticket counts them.
    pub(super) fn count(&self) -> Option<InFlight> {
        self.in_flight.as_ref().map(InFlight::new)
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's presence in the queue. Dropping it leaves the queue.
pub(super) struct InQueue<'a>(&'a QueueTicket);

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.queues -= 1;
        if state.queues == 0 {
            self.0.limiter.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
