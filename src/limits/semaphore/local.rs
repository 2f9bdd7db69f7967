//! A semaphore that counts in this process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{
    Answer, Fence, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};

/// A semaphore of this process.
///
/// Not tokio's: there, who waits for several takes what comes free bit by bit, so that nobody can
/// tell what is in use from what is set aside, and what is given up in the queue comes back
/// past a limit that was lowered meanwhile.
#[derive(Debug)]
pub struct LocalSemaphore {
    number: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    out: usize,
    /// Those who wait, by their tickets, which grow.
    queue: BTreeMap<u64, Waiter>,
    /// The next ticket of a first request.
    next_ticket: u64,
    /// The next ticket of a returning request: less than all of those.
    next_returning: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    permits: usize,
    answer: oneshot::Sender<Answer>,
}

/// The lowest ticket of first requests. Returning requests have lower ones, so that they go first.
const FIRST_TICKET: u64 = 1 << 63;

/// The only one there is: permits of this process do not end by themselves.
const TENURE: u64 = 0;

impl LocalSemaphore {
    /// A semaphore of which `limit` permits may be out at once.
    pub fn new(limit: usize) -> Arc<Self> {
        let state = State {
            limit,
            out: 0,
            queue: BTreeMap::new(),
            next_ticket: FIRST_TICKET,
            next_returning: 0,
            closed: false,
        };
        static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = LAST_NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Self { number, state: Mutex::new(state) })
    }

    /// A permit, if one is free: never one for which somebody waits already.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.state();
        (!state.closed && state.usage().available() >= 1).then(|| self.take(&mut state, 1))
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

    fn take(self: &Arc<Self>, state: &mut State, permits: usize) -> Permit {
        state.out += permits;
        Permit::new(Arc::<Self>::clone(self), permits, TENURE)
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
                state.out -= unsent.defuse();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Semaphore for LocalSemaphore {
    fn ask(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest {
        let mut state = self.state();
        if state.closed {
            return PermitRequest::answered(Err(NotGranted::Closed));
        }
        let limit = state.limit;
        if permits > limit {
            return PermitRequest::answered(Err(NotGranted::MoreThanLimit { limit }));
        }
        let free = limit.saturating_sub(state.out);
        let returns = mode == WaitMode::Returning;
        if free >= permits && !state.is_anybody_before(returns) {
            return PermitRequest::answered(Ok(self.take(&mut state, permits)));
        }
        if mode == WaitMode::None {
            return PermitRequest::answered(Err(NotGranted::NoneFree));
        }
        let (answer, answered) = oneshot::channel();
        let next = if returns { &mut state.next_returning } else { &mut state.next_ticket };
        let ticket = *next;
        *next += 1;
        state.queue.insert(ticket, Waiter { permits, answer });
        drop(state);
        PermitRequest::waiting(self, ticket, answered)
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn usage(&self) -> SemaphoreUsage {
        self.state().usage()
    }

    fn fence(&self, _tenure: u64) -> Option<Fence> {
        None
    }

    fn give_back(self: Arc<Self>, permits: usize) {
        let mut state = self.state();
        state.out -= permits;
        self.serve(&mut state);
    }

    fn leave(self: Arc<Self>, ticket: u64) {
        let mut state = self.state();
        if state.queue.remove(&ticket).is_some() {
            // Those behind may have waited only for this one.
            self.serve(&mut state);
        }
    }
}

impl State {
    /// Whether a request waits that goes before one that comes now, for the first time or returning.
    fn is_anybody_before(&self, returns: bool) -> bool {
        let last = if returns { FIRST_TICKET } else { u64::MAX };
        self.queue.range(..last).next().is_some()
    }

    fn usage(&self) -> SemaphoreUsage {
        SemaphoreUsage { limit: self.limit, in_use: self.out, waiting: self.queue.len() }
    }
}

#[cfg(test)]
mod tests;
