//! A semaphore that counts in this process.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::semaphore::{
    Fence, GrantResult, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};

/// A semaphore of this process.
///
/// tokio's semaphore is not used for two reasons. A request for several permits takes them there
/// one by one as they become free, so permits in use cannot be told from permits set aside. And a
/// cancelled request gives its part back even if the limit was lowered meanwhile.
#[derive(Debug)]
pub struct LocalSemaphore {
    number: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    in_use: usize,
    /// The waiting requests by ticket, in ascending order.
    queue: BTreeMap<u64, Waiter>,
    /// The ticket of the next first request.
    next_ticket: u64,
    /// The ticket of the next returning request: lower than that of any first request.
    next_returning: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    permits: usize,
    result: oneshot::Sender<GrantResult>,
}

/// The lowest ticket of first requests. Returning requests have lower tickets and go first.
const FIRST_TICKET: u64 = 1 << 63;

/// The only epoch: permits of this process do not expire.
const LEASE_EPOCH: u64 = 0;

impl LocalSemaphore {
    /// A semaphore with `limit` permits.
    pub fn new(limit: usize) -> Arc<Self> {
        let state = State {
            limit,
            in_use: 0,
            queue: BTreeMap::new(),
            next_ticket: FIRST_TICKET,
            next_returning: 0,
            closed: false,
        };
        static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = LAST_NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Self { number, state: Mutex::new(state) })
    }

    /// A permit, if one is free and no request waits.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.state();
        (!state.closed && state.usage().available() >= 1).then(|| self.take(&mut state, 1))
    }

    /// Changes the limit, for waiting requests too. A lower limit takes no permit away; no new
    /// permit is granted until fewer than `limit` are held.
    pub fn resize(self: &Arc<Self>, limit: usize) {
        let mut state = self.state();
        state.limit = limit;
        for (_, waiter) in state.queue.extract_if(.., |_, waiter| waiter.permits > limit) {
            // The receiver may be gone.
            let _ = waiter.result.send(Err(NotGranted::MoreThanLimit { limit }));
        }
        self.grant_free(&mut state);
    }

    /// Closes the semaphore. Waiting requests fail with [`NotGranted::Closed`]; permits that are held
    /// stay valid.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.queue.clear();
    }

    fn take(self: &Arc<Self>, state: &mut State, permits: usize) -> Permit {
        state.in_use += permits;
        Permit::new(Arc::<Self>::clone(self), permits, LEASE_EPOCH)
    }

    /// Grants free permits to waiting requests, in their order.
    fn grant_free(self: &Arc<Self>, state: &mut State) {
        while let Some(first) = state.queue.first_entry()
            && state.in_use + first.get().permits <= state.limit
        {
            let Waiter { permits, result } = first.remove();
            let permit = self.take(state, permits);
            if let Err(Ok(mut unsent)) = result.send(Ok(permit)) {
                // Its drop would wait for the lock that is held here.
                state.in_use -= unsent.defuse();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Semaphore for LocalSemaphore {
    fn request(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest {
        let mut state = self.state();
        if state.closed {
            return PermitRequest::done(Err(NotGranted::Closed));
        }
        let limit = state.limit;
        if permits > limit {
            return PermitRequest::done(Err(NotGranted::MoreThanLimit { limit }));
        }
        let free = limit.saturating_sub(state.in_use);
        let returning = mode == WaitMode::Returning;
        if free >= permits && !state.is_any_ahead(returning) {
            return PermitRequest::done(Ok(self.take(&mut state, permits)));
        }
        if mode == WaitMode::None {
            return PermitRequest::done(Err(NotGranted::NoneFree));
        }
        let (result, receiver) = oneshot::channel();
        let next = if returning { &mut state.next_returning } else { &mut state.next_ticket };
        let ticket = *next;
        *next += 1;
        state.queue.insert(ticket, Waiter { permits, result });
        drop(state);
        PermitRequest::queued(self, ticket, receiver)
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn usage(&self) -> SemaphoreUsage {
        self.state().usage()
    }

    fn fence(&self, _lease_epoch: u64) -> Option<Fence> {
        None
    }

    fn release(self: Arc<Self>, permits: usize) {
        let mut state = self.state();
        state.in_use -= permits;
        self.grant_free(&mut state);
    }

    fn cancel(self: Arc<Self>, ticket: u64) {
        let mut state = self.state();
        if state.queue.remove(&ticket).is_some() {
            // The requests behind it may have waited only for this one.
            self.grant_free(&mut state);
        }
    }
}

impl State {
    /// Whether a waiting request goes before a new one, which is a first or a returning request.
    fn is_any_ahead(&self, returning: bool) -> bool {
        let end = if returning { FIRST_TICKET } else { u64::MAX };
        self.queue.range(..end).next().is_some()
    }

    fn usage(&self) -> SemaphoreUsage {
        SemaphoreUsage { limit: self.limit, in_use: self.in_use, waiting: self.queue.len() }
    }
}
