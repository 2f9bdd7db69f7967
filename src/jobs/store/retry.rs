//! Retries of many failed items, which take several transactions.

use crate::jobs::model::Job;

/// The most failed items whose results are removed in one transaction.
pub(super) const MAX_RETRIED: usize = 5000;

/// What became of a part of a retry.
#[derive(Debug, Default)]
pub(super) struct Retried {
    pub job: Option<Job>,
    /// Where the next part begins, if there is one.
    pub next: Option<Rest>,
}

/// Failed results that are not removed yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    pub after: i64,
    /// What fails later does not belong to the retry.
    pub through: i64,
}
