//! How many calls of one key and model run at once, found out from what Gemini refuses.
//!
//! Gemini does not say how much load it takes, and what it takes changes. It only refuses what is
//! too much, with 503 or a 429 for load. The limit falls with such a refusal and is
//! searched upward again while calls succeed; by which rules is told at [`search::Search`].

mod search;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::semaphore::{LocalSemaphore, Permit, Semaphore as _};
use search::Search;

/// A limit on the calls that run at once, between 1 and a ceiling, that follows the load Gemini
/// takes.
#[derive(Debug)]
pub struct AdaptiveLimit {
    semaphore: Arc<LocalSemaphore>,
    search: Mutex<Search>,
    ceiling: usize,
    /// The search's epoch, for those who enter: they need no lock.
    epoch: AtomicU64,
    /// Whether no success can change anything, so that none needs the lock.
    at_rest: AtomicBool,
}

impl AdaptiveLimit {
    /// A limit that starts at its ceiling, which is at least 1: until Gemini refuses, nothing
    /// is held back.
    pub fn new(ceiling: usize) -> Arc<Self> {
        let ceiling = ceiling.max(1);
        let search = Search::new(ceiling);
        Arc::new(Self {
            semaphore: LocalSemaphore::new(ceiling),
            ceiling,
            epoch: AtomicU64::new(search.epoch()),
            at_rest: AtomicBool::new(search.at_rest()),
            search: Mutex::new(search),
        })
    }

    /// Where callers wait for the permit with which they enter. Only this limit resizes it.
    pub fn semaphore(&self) -> &Arc<LocalSemaphore> {
        &self.semaphore
    }

    /// Makes a permit of [`Self::semaphore`] the slot of a call that leaves now.
    pub fn enter(self: &Arc<Self>, permit: Permit) -> Slot {
        let epoch = self.epoch.load(Ordering::Acquire);
        // More are out than may be: the permit was granted before the limit fell, if only taken
        // up now, and what becomes of the call says nothing about the new limit.
        let late = !self.at_rest.load(Ordering::Relaxed) && self.is_overfull();
        let entered = (!late).then_some(epoch);
        Slot { limit: Arc::clone(self), entered, _permit: permit }
    }

    fn is_overfull(&self) -> bool {
        let usage = self.semaphore.usage();
        usage.in_use > usage.limit
    }

    /// How many calls may run at once now.
    pub fn limit(&self) -> usize {
        self.search().limit()
    }

    /// What the limit never exceeds.
    pub fn ceiling(&self) -> usize {
        self.ceiling
    }

    /// The limit at which Gemini last refused, for as long as the search keeps below it.
    pub fn broke_at(&self) -> Option<usize> {
        self.search().broke_at()
    }

    /// Begins again at the ceiling.
    pub fn reset(&self) {
        self.learn(Search::reset);
    }

    /// Whether a new limit would be as good.
    pub fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed)
    }

    /// Tells the search of a call and puts what it concludes into force.
    fn learn(&self, lesson: impl FnOnce(&mut Search)) {
        let mut search = self.search();
        let epoch = search.epoch();
        lesson(&mut search);
        self.at_rest.store(search.at_rest(), Ordering::Relaxed);
        if search.epoch() != epoch {
            self.semaphore.resize(search.limit());
            // Only now: who gets in between counts as having entered before the change, and says
            // nothing about the new limit; who gets in after knows that it is no longer at rest.
            self.epoch.store(search.epoch(), Ordering::Release);
        }
    }

    fn search(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One running call's place; dropping it gives the place back and says nothing of the load.
#[derive(Debug)]
#[must_use = "dropping a slot gives its place back at once"]
pub struct Slot {
    limit: Arc<AdaptiveLimit>,
    /// The epoch in which the call entered; `None` for a permit of an epoch before.
    entered: Option<u64>,
    /// Comes back after the search has learnt, so that a lowered limit keeps it.
    _permit: Permit,
}

impl Slot {
    /// Gemini answered the call.
    pub fn succeeded(self) {
        if self.limit.at_rest.load(Ordering::Relaxed) {
            return;
        }
        let Some(entered) = self.entered else { return };
        self.limit.learn(|search| {
            let full = self.limit.semaphore.usage().in_use >= search.limit();
            search.succeeded(entered, full);
        });
    }

    /// Gemini refused the call for load: with 503, or with a 429 that says so.
    pub fn overloaded(self) {
        if let Some(entered) = self.entered {
            self.limit.learn(|search| search.overloaded(entered));
        }
    }
}
