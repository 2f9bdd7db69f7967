//! A semaphore of all replicas.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::command::SemaphoreGeneration;
use super::link::{Link, LinkedSemaphore};
use super::reply::TouchedSemaphore;
use crate::limits::semaphore::{
    Fence, NotGranted, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};

/// A semaphore whose permits Redis grants.
#[derive(Debug)]
pub(super) struct SharedSemaphore {
    link: Arc<Link>,
    generation: SemaphoreGeneration,
    /// Its limit in the settings of this process, if it has one there.
    setting: OnceLock<usize>,
    deleted: AtomicBool,
    /// As last reported.
    usage: Mutex<SemaphoreUsage>,
    /// How many permits leases hold, as last reported.
    leased: AtomicUsize,
}

impl SharedSemaphore {
    pub fn new(link: Arc<Link>, generation: SemaphoreGeneration, limit: usize) -> Arc<Self> {
        let usage = Mutex::new(SemaphoreUsage { limit, ..SemaphoreUsage::default() });
        let (setting, deleted) = (OnceLock::new(), AtomicBool::new(false));
        let leased = AtomicUsize::new(0);
        Arc::new(Self { link, generation, setting, deleted, usage, leased })
    }

    pub fn generation(&self) -> SemaphoreGeneration {
        self.generation
    }

    /// Its limit in the settings of this process, if it has one there.
    pub fn setting(&self) -> Option<usize> {
        self.setting.get().copied()
    }

    /// Notes its limit in the settings, which do not change.
    pub fn note_setting(&self, limit: usize) {
        let _ = self.setting.set(limit);
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    pub fn set_usage(&self, touched: TouchedSemaphore) {
        let TouchedSemaphore { limit, in_use, leased, waiting } = touched;
        let usage = SemaphoreUsage { limit, in_use, waiting };
        self.leased.store(leased, Ordering::Relaxed);
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// How many permits leases hold, as last reported.
    pub fn leased(&self) -> usize {
        self.leased.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> usize {
        self.usage().limit
    }

    pub fn set_limit(&self, limit: usize) {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).limit = limit;
    }
}

impl LinkedSemaphore for SharedSemaphore {
    fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }
}

impl Semaphore for SharedSemaphore {
    fn request(self: Arc<Self>, permits: usize, mode: WaitMode) -> PermitRequest {
        // A request that waits keeps its position until the connection is back.
        if mode == WaitMode::None
            && let Err(reason) = self.link.lease.reach()
        {
            return PermitRequest::done(Err(NotGranted::StoreUnavailable(reason)));
        }
        let semaphore: Arc<Self> = Arc::clone(&self);
        let (ticket, result) = self.link.request_permits(semaphore, self.generation, permits, mode);
        PermitRequest::queued(self, ticket, result)
    }

    fn number(&self) -> u64 {
        self.generation
    }

    fn usage(&self) -> SemaphoreUsage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fence(&self, lease_epoch: u64) -> Option<Fence> {
        let link = Arc::clone(&self.link);
        Some(Arc::new(move || link.lease.is_in_force(lease_epoch)))
    }

    fn release(self: Arc<Self>, permits: usize) {
        self.link.release(self.generation, permits);
    }

    fn cancel(self: Arc<Self>, ticket: u64) {
        self.link.cancel(ticket);
    }
}
