//! How many calls of one key and model run at once, found from Gemini's refusals for load.
//!
//! Gemini does not say how much load it accepts, and what it accepts changes. It refuses what is too
//! much, with 503 or a 429 for load. Such a refusal lowers the limit; calls that succeed raise it
//! again. [`Search`] has the rules.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::LocalSemaphore;
use crate::limits::model::Search;
use crate::limits::semaphore::{Permit, Semaphore as _};

/// A limit on concurrent calls, between 1 and a ceiling, that follows the load Gemini accepts.
#[derive(Debug)]
pub struct AdaptiveLimit {
    semaphore: Arc<LocalSemaphore>,
    search: Mutex<Search>,
    /// The search's epoch, which calls read without a lock when they start.
    epoch: AtomicU64,
    /// Whether no success can change anything. Then successes take no lock.
    at_rest: AtomicBool,
}

impl AdaptiveLimit {
    /// A limit that starts at its ceiling, which is at least 1. Until Gemini refuses a call,
    /// nothing is held back.
    pub fn new(ceiling: usize) -> Arc<Self> {
        let ceiling = ceiling.max(1);
        let search = Search::new(ceiling);
        Arc::new(Self {
            semaphore: LocalSemaphore::new(ceiling),
            epoch: AtomicU64::new(search.epoch()),
            at_rest: AtomicBool::new(search.at_rest()),
            search: Mutex::new(search),
        })
    }

    /// The semaphore whose permit a call needs to [`enter`](Self::enter). Only this limit resizes it.
    pub fn semaphore(&self) -> &Arc<LocalSemaphore> {
        &self.semaphore
    }

    /// Turns a permit of [`Self::semaphore`] into the slot of a call that starts now.
    pub fn enter(self: &Arc<Self>, permit: Permit) -> Slot {
        let epoch = self.epoch.load(Ordering::Acquire);
        // More permits are held than the limit allows: this one was granted before the limit fell,
        // and the call's outcome says nothing about the new limit.
        let late = !self.at_rest.load(Ordering::Relaxed) && self.is_overfull();
        let entered = (!late).then_some(epoch);
        Slot { limit: Arc::clone(self), entered, _permit: permit }
    }

    fn is_overfull(&self) -> bool {
        let usage = self.semaphore.usage();
        usage.in_use > usage.limit
    }

    /// The number of calls that may run at once now.
    pub fn limit(&self) -> usize {
        self.search().limit()
    }

    /// The highest value of the limit.
    pub fn ceiling(&self) -> usize {
        self.search().ceiling()
    }

    /// Changes the highest value, which is at least 1.
    pub fn set_ceiling(&self, ceiling: usize) {
        self.update(|search| search.set_ceiling(ceiling.max(1)));
    }

    /// The limit at which Gemini last refused, while the search stays below it.
    pub fn broke_at(&self) -> Option<usize> {
        self.search().broke_at()
    }

    /// Starts again at the ceiling.
    pub fn reset(&self) {
        self.update(Search::reset);
    }

    /// Whether a new limit would behave the same.
    pub fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed)
    }

    /// Updates the search and applies the limit that it concludes.
    fn update(&self, change: impl FnOnce(&mut Search)) {
        let mut search = self.search();
        let epoch = search.epoch();
        change(&mut search);
        self.at_rest.store(search.at_rest(), Ordering::Relaxed);
        if search.epoch() != epoch {
            self.semaphore.resize(search.limit());
            // Only now: a call that enters in between belongs to the old epoch and says nothing
            // about the new limit; a call that enters later sees that the search is not at rest.
            self.epoch.store(search.epoch(), Ordering::Release);
        }
    }

    fn search(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One running call's slot. Dropping it gives the slot back and says nothing about the load.
#[derive(Debug)]
#[must_use = "dropping a slot gives it back at once"]
pub struct Slot {
    limit: Arc<AdaptiveLimit>,
    /// The epoch in which the call entered; `None` if its permit is of an earlier epoch.
    entered: Option<u64>,
    /// Given back after the search is updated, so that a lowered limit keeps it.
    _permit: Permit,
}

impl Slot {
    /// Gemini answered the call.
    pub fn succeeded(self) {
        if self.limit.at_rest.load(Ordering::Relaxed) {
            return;
        }
        let Some(entered) = self.entered else { return };
        self.limit.update(|search| {
            let full = self.limit.semaphore.usage().in_use >= search.limit();
            search.succeeded(entered, full);
        });
    }

    /// Gemini refused the call for load, with 503 or with a 429 that says so.
    pub fn overloaded(self) {
        if let Some(entered) = self.entered {
            self.limit.update(|search| search.overloaded(entered));
        }
    }
}
