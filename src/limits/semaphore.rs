//! A first-come-first-served semaphore whose limit can change while it is held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A semaphore that hands out permits in the order they were asked for, one or several at a time.
///
/// Not tokio's: there, who waits for several takes what comes free bit by bit, so that nobody can
/// tell what is in use from what is set aside, and what is given up in the queue comes back
/// past a limit that was lowered meanwhile.
#[derive(Debug)]
pub struct Semaphore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many may be out at once.
    limit: usize,
    /// How many are out: more than the limit for a while after it was lowered.
    out: usize,
    /// Those who wait, by their tickets, which grow.
    queue: BTreeMap<u64, Waiter>,
    next_ticket: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    permits: usize,
    answer: oneshot::Sender<Result<Permit, NotGranted>>,
}

/// Why no permit was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// The semaphore was deleted, before the caller came or while it waited.
    #[error("the semaphore was deleted")]
    Closed,
    /// So many can never be had at once, unless the limit is raised.
    #[error("the semaphore has no more than {limit} permits")]
    MoreThanLimit {
        /// The semaphore's limit.
        limit: usize,
    },
}

impl Semaphore {
    /// A semaphore of which `limit` permits may be out at once.
    pub fn new(limit: usize) -> Arc<Self> {
        let state = State { limit, out: 0, queue: BTreeMap::new(), next_ticket: 0, closed: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A permit, if one is free: never one for which somebody waits already.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        self.try_acquire_many(1)
    }

    /// A permit that counts as so many, if they are free and nobody waits.
    pub fn try_acquire_many(self: &Arc<Self>, permits: usize) -> Option<Permit> {
        let mut state = self.state();
        (!state.closed && state.available() >= permits).then(|| self.take(&mut state, permits))
    }

    /// Waits for a permit behind those who asked before. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// As for [`Self::acquire_many`].
    pub async fn acquire(self: &Arc<Self>) -> Result<Permit, NotGranted> {
        self.acquire_many(1).await
    }

    /// Waits for a permit that counts as so many, behind those who asked before; those who ask
    /// later for fewer do not overtake it. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`NotGranted::Closed`] when the semaphore is closed first; [`NotGranted::MoreThanLimit`]
    /// as soon as the limit is less than was asked for.
    pub async fn acquire_many(self: &Arc<Self>, permits: usize) -> Result<Permit, NotGranted> {
        let mut place = {
            let mut state = self.state();
            if state.closed {
                return Err(NotGranted::Closed);
            }
            if permits > state.limit {
                return Err(NotGranted::MoreThanLimit { limit: state.limit });
            }
            if state.available() >= permits {
                return Ok(self.take(&mut state, permits));
            }
            let (answer, answered) = oneshot::channel();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.queue.insert(ticket, Waiter { permits, answer });
            Place { semaphore: self, ticket, answered }
        };
        (&mut place.answered).await.unwrap_or(Err(NotGranted::Closed))
    }

    /// Changes the limit for those who wait as for those who come. Lowering it takes nothing
    /// from those who hold a permit; no new one is given until fewer than `limit` are out.
    pub fn resize(self: &Arc<Self>, limit: usize) {
        let mut state = self.state();
        state.limit = limit;
        for (_, waiter) in state.queue.extract_if(.., |_, waiter| waiter.permits > limit) {
            // Who is no longer there needs no answer.
            let _ = waiter.answer.send(Err(NotGranted::MoreThanLimit { limit }));
        }
        self.serve(&mut state);
    }

    /// Ends the semaphore: those who wait get [`NotGranted::Closed`], those who hold a permit keep
    /// it.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.queue.clear();
    }

    /// How many permits may be out at once.
    pub fn limit(&self) -> usize {
        self.state().limit
    }

    /// How many permits are out.
    pub fn in_use(&self) -> usize {
        self.state().out
    }

    /// How many permits could be taken now without waiting.
    pub fn available(&self) -> usize {
        self.state().available()
    }

    /// How many callers wait for a permit.
    pub fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    fn take(self: &Arc<Self>, state: &mut State, permits: usize) -> Permit {
        state.out += permits;
        Permit { permits, semaphore: Arc::clone(self) }
    }

    /// Gives those who wait what is free, in their order.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while let Some(first) = state.queue.first_entry()
            && state.out + first.get().permits <= state.limit
        {
            let Waiter { permits, answer } = first.remove();
            let permit = self.take(state, permits);
            if let Err(Ok(mut unsent)) = answer.send(Ok(permit)) {
                // Not to be given back by its drop, which would wait for the lock held here.
                state.out -= std::mem::take(&mut unsent.permits);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many could be taken without waiting: none where somebody waits.
    fn available(&self) -> usize {
        if self.queue.is_empty() { self.limit.saturating_sub(self.out) } else { 0 }
    }
}

/// The right to some of a semaphore's places; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back at once"]
pub struct Permit {
    permits: usize,
    semaphore: Arc<Semaphore>,
}

impl Permit {
    /// The semaphore that it is of.
    pub fn semaphore(&self) -> &Arc<Semaphore> {
        &self.semaphore
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.permits > 0 {
            let mut state = self.semaphore.state();
            state.out -= self.permits;
            self.semaphore.serve(&mut state);
        }
    }
}

/// One who waits. Dropping it leaves the queue; a permit that came and was not taken up goes
/// back with `answered`.
struct Place<'a> {
    semaphore: &'a Arc<Semaphore>,
    ticket: u64,
    answered: oneshot::Receiver<Result<Permit, NotGranted>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.semaphore.state();
        if state.queue.remove(&self.ticket).is_some() {
            // Those behind may have waited only for this one.
            self.semaphore.serve(&mut state);
        }
    }
}

#[cfg(test)]
mod tests;
