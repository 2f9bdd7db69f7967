//! Which results are read.

use crate::jobs::model::{JobNumber, JobState, Order};

/// Which results are read: see [`JobStore::results`](crate::jobs::JobStore::results).
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub job: JobNumber,
    pub order: Order,
    pub only_failed: bool,
    pub after: u64,
    pub limit: u32,
    pub bytes: usize,
}

impl Query {
    /// Whether a page of a job in this state may skip items.
    pub fn has_gaps(&self, state: JobState) -> bool {
        self.only_failed || self.order == Order::Completion || state == JobState::Cancelled
    }
}
