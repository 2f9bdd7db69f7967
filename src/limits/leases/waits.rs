//! The requests for leases that wait at this replica.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::limits::model::LeaseTerms;

/// A request for a lease that waits.
#[derive(Debug, Clone)]
pub struct LeaseWait {
    /// A name for the holder of the lease, shown to operators.
    pub holder: Arc<str>,
    /// The number of permits.
    pub permits: usize,
    /// Since when it has been waiting.
    pub since: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct LeaseWaits(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many have begun.
    begun: u64,
    /// Those that wait, with the numbers of their semaphores, by the order in which they began.
    waits: BTreeMap<u64, (u64, LeaseWait)>,
}

/// Keeps a request among those that wait until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    of: &'a LeaseWaits,
    number: u64,
}

impl LeaseWaits {
    /// A request begins to wait for permits of the semaphore with this number.
    pub fn begin(&self, semaphore: u64, terms: &LeaseTerms) -> Waiting<'_> {
        let LeaseTerms { holder, permits, .. } = terms;
        let wait =
            LeaseWait { holder: Arc::clone(holder), permits: *permits, since: Instant::now() };
        let mut state = self.state();
        let number = state.begun;
        state.begun += 1;
        state.waits.insert(number, (semaphore, wait));
        Waiting { of: self, number }
    }

    /// At most `most` requests that wait for permits of the semaphore with this number, the oldest
    /// first, and how many there are in all.
    pub fn of(&self, semaphore: u64, most: usize) -> (Vec<LeaseWait>, usize) {
        let state = self.state();
        let of_semaphore = state.waits.values().filter(|(number, _)| *number == semaphore);
        let first = of_semaphore.clone().take(most).map(|(_, wait)| wait.clone()).collect();
        (first, of_semaphore.count())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.of.state().waits.remove(&self.number);
    }
}
