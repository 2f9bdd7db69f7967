//! A semaphore that all replicas share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::link::Link;
use super::wire::{Generation, Stands};
use crate::limits::semaphore::{
    Fence, NotGranted, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};

/// A semaphore of which Redis gives the permits.
#[derive(Debug)]
pub(super) struct SharedSemaphore {
    link: Arc<Link>,
    generation: Generation,
    deleted: AtomicBool,
    /// As last heard.
    usage: Mutex<SemaphoreUsage>,
}

impl SharedSemaphore {
    pub fn new(link: Arc<Link>, generation: Generation, limit: usize) -> Arc<Self> {
        let usage = Mutex::new(SemaphoreUsage { limit, ..SemaphoreUsage::default() });
        Arc::new(Self { link, generation, deleted: AtomicBool::new(false), usage })
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Redis says that it is no more.
    pub fn delete(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    pub fn stands(&self, Stands { limit, out, waiting }: Stands) {
        let usage = SemaphoreUsage { limit, in_use: out, waiting };
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    pub fn limit(&self) -> usize {
        self.usage().limit
    }

    pub fn has_limit(&self, limit: usize) {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).limit = limit;
    }
}

impl Semaphore for SharedSemaphore {
    fn ask(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest {
        let waits = mode != WaitMode::None;
        // Who waits keeps a place until the line is there again.
        if !waits && let Err(reason) = self.link.tenure.reach() {
            return PermitRequest::answered(Err(NotGranted::StoreUnavailable(reason)));
        }
        let (ticket, answer) = self.link.ask_permits(Arc::clone(&self), permits, mode);
        PermitRequest::waiting(self, ticket, answer)
    }

    fn number(&self) -> u64 {
        self.generation
    }

    fn usage(&self) -> SemaphoreUsage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fence(&self, tenure: u64) -> Option<Fence> {
        let link = Arc::clone(&self.link);
        Some(Arc::new(move || link.tenure.is_in_force(tenure)))
    }

    fn give_back(self: Arc<Self>, permits: usize) {
        self.link.give_back(self.generation, permits);
    }

    fn leave(self: Arc<Self>, ticket: u64) {
        self.link.leave(ticket);
    }
}
