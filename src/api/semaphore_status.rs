//! The state of a semaphore, as `/_admin/semaphores` and errors show it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::limits::{Semaphore, SemaphoreId, SemaphoreUsage};

/// The state of a semaphore at one moment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct SemaphoreStatus {
    /// The name of the semaphore.
    #[schema(value_type = String, example = "image-service")]
    semaphore_id: SemaphoreId,
    /// How many permits it has. A call holds one, a lease one or more.
    #[schema(minimum = 1, maximum = 1000)]
    limit: usize,
    /// How many permits are free.
    available: usize,
    /// How many permits are held.
    in_use: usize,
    /// How many calls and leases wait for permits.
    waiting: usize,
}

impl SemaphoreStatus {
    pub(super) fn of(semaphore_id: SemaphoreId, semaphore: &dyn Semaphore) -> Self {
        let usage = semaphore.usage();
        let SemaphoreUsage { limit, in_use, waiting } = usage;
        Self { semaphore_id, limit, available: usage.available(), in_use, waiting }
    }
}
