//! A first-come-first-served semaphore whose limit can change while it is held.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync;

/// A semaphore that hands out permits in the order they were asked for.
///
/// Built on tokio's, which has no way to take a permit back from its holder: lowering the limit
/// below what is in use leaves a *debt*, paid by the next permits that come back.
#[derive(Debug)]
pub struct Semaphore {
    permits: Arc<sync::Semaphore>,
    limit: Mutex<Limit>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Limit {
    /// How many may be out at once.
    size: usize,
    /// Permits that are out beyond `size`, to be withdrawn as they come back.
    debt: usize,
}

/// The semaphore was deleted while the caller waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the semaphore was deleted")]
pub struct Closed;

impl Semaphore {
    /// A semaphore of which `limit` permits may be out at once.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(sync::Semaphore::new(limit)),
            limit: Mutex::new(Limit { size: limit, debt: 0 }),
            waiting: AtomicUsize::new(0),
        })
    }

    /// A permit, if one is free: never one for which somebody waits already.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(Permit { permit: Some(permit), semaphore: Arc::clone(self) })
    }

    /// Waits for a permit behind those who asked before. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Closed`] when the semaphore is closed before a permit comes free.
    pub async fn acquire(self: &Arc<Self>) -> Result<Permit, Closed> {
        let _waiting = Waiting::join(&self.waiting);
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Closed)?;
        Ok(Permit { permit: Some(permit), semaphore: Arc::clone(self) })
    }

    /// Changes the limit for those who wait as for those who come. Lowering it takes nothing
    /// from those who hold a permit; no new one is given until fewer than `limit` are out.
    pub fn resize(&self, limit: usize) {
        let mut state = self.state();
        if limit >= state.size {
            let added = limit - state.size;
            let forgiven = added.min(state.debt);
            state.debt -= forgiven;
            self.permits.add_permits(added - forgiven);
        } else {
            let removed = state.size - limit;
            state.debt += removed - self.permits.forget_permits(removed);
        }
        state.size = limit;
    }

    /// Ends the semaphore: those who wait get [`Closed`], those who hold a permit keep it.
    pub fn close(&self) {
        self.permits.close();
    }

    /// How many permits may be out at once.
    pub fn limit(&self) -> usize {
        self.state().size
    }

    /// How many permits are out.
    pub fn in_use(&self) -> usize {
        let state = self.state();
        (state.size + state.debt).saturating_sub(self.permits.available_permits())
    }

    /// How many permits could be taken now without waiting.
    pub fn available(&self) -> usize {
        self.permits.available_permits()
    }

    /// How many callers wait for a permit.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, Limit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one of a semaphore's places; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit {
    permit: Option<sync::OwnedSemaphorePermit>,
    semaphore: Arc<Semaphore>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        // The permit goes back under the lock: between a look at the debt and the return, a
        // resize could otherwise count this permit as still out.
        let mut state = self.semaphore.state();
        let permit = self.permit.take();
        if state.debt > 0 {
            state.debt -= 1;
            if let Some(permit) = permit {
                permit.forget();
            }
        }
    }
}

/// One caller in a queue, counted for as long as it waits.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn join(queue: &'a AtomicUsize) -> Self {
        queue.fetch_add(1, Ordering::Relaxed);
        Self(queue)
    }

    /// Joins, unless `most` wait already.
    pub(super) fn join_up_to(queue: &'a AtomicUsize, most: usize) -> Option<Self> {
        queue
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1))
            .ok()
            .map(|_| Self(queue))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn those_who_asked_first_go_first() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.acquire().await.unwrap();
        let mut first = Box::pin(semaphore.acquire());
        let mut second = Box::pin(semaphore.acquire());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(semaphore.waiting(), 2);

        drop(held);
        assert!((&mut second).now_or_never().is_none());
        let first = first.now_or_never().expect("the first in the queue goes next").unwrap();
        drop(first);
        assert!(second.now_or_never().is_some());
        assert_eq!(semaphore.waiting(), 0);
    }

    #[tokio::test]
    async fn a_lowered_limit_holds_as_soon_as_permits_come_back() {
        let semaphore = Semaphore::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(semaphore.acquire().await.unwrap());
        }
        semaphore.resize(1);
        assert_eq!((semaphore.limit(), semaphore.in_use(), semaphore.available()), (1, 3, 0));

        held.truncate(1);
        assert_eq!((semaphore.in_use(), semaphore.available()), (1, 0));
        assert!(semaphore.acquire().now_or_never().is_none(), "one is out and one is allowed");
        held.clear();
        assert!(semaphore.acquire().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_raised_limit_forgives_the_debt_and_wakes_those_who_wait() {
        let semaphore = Semaphore::new(3);
        let held =
            [semaphore.acquire().await, semaphore.acquire().await, semaphore.acquire().await];
        semaphore.resize(1);
        let mut next = Box::pin(semaphore.acquire());
        assert!((&mut next).now_or_never().is_none());

        semaphore.resize(4);
        let fourth = next.now_or_never().expect("three are out and four are allowed").unwrap();
        assert_eq!((semaphore.in_use(), semaphore.available()), (4, 0));
        drop((held, fourth));
        assert_eq!((semaphore.in_use(), semaphore.available()), (0, 4));
    }

    #[tokio::test]
    async fn closing_ends_the_wait_and_leaves_the_holders_alone() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.acquire().await.unwrap();
        let mut waiting = Box::pin(semaphore.acquire());
        assert!((&mut waiting).now_or_never().is_none());
        semaphore.close();
        assert_eq!(waiting.await.err(), Some(Closed));
        assert_eq!(semaphore.in_use(), 1);
        drop(held);
        assert_eq!(semaphore.in_use(), 0);
        assert_eq!(semaphore.acquire().await.err(), Some(Closed));
    }

    #[tokio::test]
    async fn leaving_the_queue_gives_up_nothing() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.acquire().await.unwrap();
        let mut leaver = Box::pin(semaphore.acquire());
        assert!((&mut leaver).now_or_never().is_none());
        // The permit is handed to the leaver, who goes before it has taken it.
        drop(held);
        drop(leaver);
        assert_eq!((semaphore.waiting(), semaphore.available()), (0, 1));
    }
}
