//! Permits, of which only so many are out at once, given in the order in which they were asked for.

mod local;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

pub use local::LocalSemaphore;

/// A first-come-first-served semaphore of which one can ask for several permits at a time, and
/// whose limit can change while it is held. It counts in this process ([`LocalSemaphore`]) or for
/// all replicas.
pub trait Semaphore: fmt::Debug + Send + Sync {
    /// Asks for permits. Those who ask later for fewer do not overtake. Where they are not free,
    /// the place waits behind those who asked before, or is refused with
    /// [`NotGranted::NoneFree`].
    fn ask(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest;

    /// Its number, which no other of its store has or had.
    fn number(&self) -> u64;

    /// How many are out and how many wait: as last heard, where others count it.
    fn usage(&self) -> SemaphoreUsage;

    /// What tells whether a permit of that tenure may still be used, where that can end by itself.
    fn fence(&self, tenure: u64) -> Option<Fence>;

    /// Takes permits back.
    fn give_back(self: Arc<Self>, permits: usize);

    /// Lets one who waits leave the queue.
    fn leave(self: Arc<Self>, ticket: u64);
}

/// Tells whether something may still be done.
pub type Fence = Arc<dyn Fn() -> bool + Send + Sync>;

/// Whether one who asks waits for what is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    /// No.
    None,
    /// For as long as it takes.
    Endless,
    /// For as long as it takes, before all that ask for the first time, on whatever replica: the
    /// caller had a permit and gave it back because it lacked something else.
    Returning,
}

/// How a semaphore stands at one moment, in permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SemaphoreUsage {
    /// How many may be out at once.
    pub limit: usize,
    /// How many are out: more than the limit for a while after it was lowered.
    pub in_use: usize,
    /// How many callers wait.
    pub waiting: usize,
}

impl SemaphoreUsage {
    /// How many permits could be taken now without waiting: none where somebody waits.
    pub fn available(self) -> usize {
        if self.waiting == 0 { self.limit.saturating_sub(self.in_use) } else { 0 }
    }
}

/// Why no permit was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// Too few are free, and the caller does not wait.
    #[error("too few permits are free")]
    NoneFree,
    /// The semaphore was deleted, before the caller came or while it waited.
    #[error("the semaphore was deleted")]
    Closed,
    /// So many can never be had at once, unless the limit is raised.
    #[error("the semaphore has no more than {limit} permits")]
    MoreThanLimit {
        /// The semaphore's limit.
        limit: usize,
    },
    /// Nothing can be had before the store that the replicas share is there again.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}

/// The store that the replicas share cannot be reached, so that nobody knows what others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared limits are unavailable")]
pub struct StoreUnavailable {
    /// In how long it is worth another try.
    pub retry_after: Duration,
}

/// The asking for permits that all semaphores have in common.
pub trait Acquire {
    /// Asks for one permit and waits for it.
    fn acquire(&self) -> PermitRequest;

    /// Asks for a permit that counts as so many and waits for it.
    fn acquire_many(&self, permits: usize) -> PermitRequest;
}

impl<S: Semaphore + ?Sized> Acquire for Arc<S> {
    fn acquire(&self) -> PermitRequest {
        self.acquire_many(1)
    }

    fn acquire_many(&self, permits: usize) -> PermitRequest {
        Arc::clone(self).ask(permits, WaitMode::Endless)
    }
}

/// The right to some of a semaphore's places; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit {
    permits: usize,
    tenure: u64,
    semaphore: Arc<dyn Semaphore>,
}

impl Permit {
    /// A permit that its semaphore has counted as out.
    pub(super) fn new(semaphore: Arc<dyn Semaphore>, permits: usize, tenure: u64) -> Self {
        Self { permits, tenure, semaphore }
    }

    /// The semaphore that it is of.
    pub fn semaphore(&self) -> &Arc<dyn Semaphore> {
        &self.semaphore
    }

    /// How many places it counts as.
    pub fn permits(&self) -> usize {
        self.permits
    }

    /// What tells whether it can still be used, where others share it: it may end meanwhile.
    pub fn fence(&self) -> Option<Fence> {
        self.semaphore.fence(self.tenure)
    }

    /// Whether it can still be used.
    pub fn is_in_force(&self) -> bool {
        self.fence().is_none_or(|fence| fence())
    }

    /// Takes the places out of it without giving them back.
    pub(super) fn defuse(&mut self) -> usize {
        std::mem::take(&mut self.permits)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let permits = self.defuse();
        if permits > 0 {
            Arc::clone(&self.semaphore).give_back(permits);
        }
    }
}

/// What one who asks waits with, and for.
type Answer = Result<Permit, NotGranted>;

/// One who has asked for permits, until they come. Dropping it leaves the queue; a permit that
/// came and was not taken up goes back.
#[derive(Debug)]
#[must_use = "dropping a place leaves the queue"]
pub struct PermitRequest(Asked);

#[derive(Debug)]
enum Asked {
    Answered(Option<Answer>),
    Waits(Ticket),
}

#[derive(Debug)]
struct Ticket {
    semaphore: Arc<dyn Semaphore>,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl PermitRequest {
    /// A place of one who has its answer already.
    pub(super) fn answered(answer: Answer) -> Self {
        Self(Asked::Answered(Some(answer)))
    }

    /// A place of one who waits for its answer; a semaphore that is gone has none.
    pub(super) fn waiting(
        semaphore: Arc<dyn Semaphore>,
        ticket: u64,
        answer: oneshot::Receiver<Answer>,
    ) -> Self {
        Self(Asked::Waits(Ticket { semaphore, number: ticket, answer }))
    }
}

impl Future for PermitRequest {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        match &mut self.0 {
            Asked::Answered(answer) => {
                Poll::Ready(answer.take().expect("a place is not asked again once it has answered"))
            }
            Asked::Waits(ticket) => Pin::new(&mut ticket.answer)
                .poll(context)
                .map(|answer| answer.unwrap_or(Err(NotGranted::Closed))),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        Arc::clone(&self.semaphore).leave(self.number);
    }
}
