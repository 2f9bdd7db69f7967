//! The hot path of concurrency limits: permits of which only so many are held at once, granted in
//! the order in which they were requested.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::model::StoreUnavailable;

/// A first-come-first-served semaphore. A request can be for several permits, and the limit can
/// change while permits are held. [`LocalSemaphore`](super::LocalSemaphore) counts in this process;
/// another implementation counts in Redis, for all replicas.
pub trait Semaphore: fmt::Debug + Send + Sync {
    /// Requests permits. A later request for fewer permits does not overtake. If the permits are
    /// not free, the request waits behind earlier ones, or fails with [`NotGranted::NoneFree`].
    fn request(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest;

    /// A number that is unique among all semaphores of the store, past ones included.
    fn number(&self) -> u64;

    /// The permits held and the requests waiting. If the count is kept in Redis, this is the last
    /// reported state.
    fn usage(&self) -> SemaphoreUsage;

    /// A check whether a permit granted in this epoch of the replica's lease is still valid; `None`
    /// if permits do not expire.
    fn fence(&self, lease_epoch: u64) -> Option<Fence>;

    /// Takes permits back.
    fn release(self: Arc<Self>, permits: usize);

    /// Removes a waiting request from the queue.
    fn cancel(self: Arc<Self>, ticket: u64);
}

/// Returns whether a permit is still valid.
pub type Fence = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a request does if its permits are not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    /// It fails at once.
    None,
    /// It waits without a time limit.
    Endless,
    /// It waits without a time limit, ahead of all first requests on every replica: the caller had
    /// a permit and gave it back because it lacked something else.
    Returning,
}

/// The state of a semaphore at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SemaphoreUsage {
    /// The number of permits that may be held at once.
    pub limit: usize,
    /// The number of permits held. It can exceed the limit for a while after the limit was lowered.
    pub in_use: usize,
    /// The number of requests that wait.
    pub waiting: usize,
}

impl SemaphoreUsage {
    /// The number of permits that a request could get without waiting: none while others wait.
    pub fn available(self) -> usize {
        if self.waiting == 0 { self.limit.saturating_sub(self.in_use) } else { 0 }
    }
}

/// Why a request got no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// Too few permits are free, and the request does not wait.
    #[error("too few permits are free")]
    NoneFree,
    /// The semaphore was deleted, before the request or while it waited.
    #[error("the semaphore was deleted")]
    Closed,
    /// The request is for more permits than the semaphore has.
    #[error("the semaphore has no more than {limit} permits")]
    MoreThanLimit {
        /// The semaphore's limit.
        limit: usize,
    },
    /// No permit can be granted until the shared store is available again.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}

/// Requests that wait without a time limit, for every semaphore.
pub trait Acquire {
    /// Requests one permit and waits for it.
    fn acquire(&self) -> PermitRequest;

    /// Requests several permits at once and waits for them.
    fn acquire_many(&self, permits: usize) -> PermitRequest;
}

impl<S: Semaphore + ?Sized> Acquire for Arc<S> {
    fn acquire(&self) -> PermitRequest {
        self.acquire_many(1)
    }

    fn acquire_many(&self, permits: usize) -> PermitRequest {
        Arc::clone(self).request(permits, WaitMode::Endless)
    }
}

/// Permits that are held. Dropping the value gives them back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit {
    permits: usize,
    lease_epoch: u64,
    semaphore: Arc<dyn Semaphore>,
}

impl Permit {
    /// Permits that the semaphore has already counted as held.
    pub(super) fn new(semaphore: Arc<dyn Semaphore>, permits: usize, lease_epoch: u64) -> Self {
        Self { permits, lease_epoch, semaphore }
    }

    /// The semaphore that granted the permits.
    pub fn semaphore(&self) -> &Arc<dyn Semaphore> {
        &self.semaphore
    }

    /// The number of permits.
    pub fn permits(&self) -> usize {
        self.permits
    }

    /// A check whether the permits are still valid; `None` if they do not expire.
    pub fn fence(&self) -> Option<Fence> {
        self.semaphore.fence(self.lease_epoch)
    }

    /// Whether the permits are still valid.
    pub fn is_in_force(&self) -> bool {
        self.fence().is_none_or(|fence| fence())
    }

    /// Takes the permits out of this value without giving them back to the semaphore.
    pub(super) fn defuse(&mut self) -> usize {
        std::mem::take(&mut self.permits)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let permits = self.defuse();
        if permits > 0 {
            Arc::clone(&self.semaphore).release(permits);
        }
    }
}

/// The outcome of a request.
pub(super) type GrantResult = Result<Permit, NotGranted>;

/// A request for permits: a future of the outcome. Dropping it leaves the queue; a permit that was
/// granted and not received goes back.
#[derive(Debug)]
#[must_use = "dropping a request for permits leaves the queue"]
pub struct PermitRequest(RequestState);

#[derive(Debug)]
enum RequestState {
    Done(Option<GrantResult>),
    Queued(QueuedRequest),
}

#[derive(Debug)]
struct QueuedRequest {
    semaphore: Arc<dyn Semaphore>,
    ticket: u64,
    result: oneshot::Receiver<GrantResult>,
}

impl PermitRequest {
    /// A request whose outcome is already known.
    pub(super) fn done(result: GrantResult) -> Self {
        Self(RequestState::Done(Some(result)))
    }

    /// A request that waits. If the semaphore drops the sender, the request ends with
    /// [`NotGranted::Closed`].
    pub(super) fn queued(
        semaphore: Arc<dyn Semaphore>,
        ticket: u64,
        result: oneshot::Receiver<GrantResult>,
    ) -> Self {
        Self(RequestState::Queued(QueuedRequest { semaphore, ticket, result }))
    }
}

impl Future for PermitRequest {
    type Output = GrantResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<GrantResult> {
        match &mut self.0 {
            RequestState::Done(result) => {
                Poll::Ready(result.take().expect("a finished request is not polled again"))
            }
            RequestState::Queued(queued) => Pin::new(&mut queued.result)
                .poll(context)
                .map(|result| result.unwrap_or(Err(NotGranted::Closed))),
        }
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        Arc::clone(&self.semaphore).cancel(self.ticket);
    }
}
