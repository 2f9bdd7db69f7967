//! Whether the claims of this process are certainly in force, and what their renewals have shown.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::jobs::model::JobNumber;

/// How long a claim holds after it was made or renewed.
pub(super) const LEASE: Duration = Duration::from_secs(60);

/// How often claims are renewed.
pub(super) const RENEWAL: Duration = Duration::from_secs(20);

/// How soon a renewal that failed is tried again.
pub(super) const RENEWAL_AGAIN: Duration = Duration::from_secs(5);

/// How long before its end a claim is no longer used: the store's clock may be ahead by as much.
const MARGIN: Duration = Duration::from_secs(5);

/// The lease on all claims of this process. Times are measured here, so that no clock that is set has
/// an effect.
#[derive(Debug)]
pub(super) struct Lease {
    begin: Instant,
    /// Until when claims are used, in milliseconds since `begin`.
    until: AtomicU64,
    /// How many renewals were begun.
    round: AtomicU64,
}

/// What a renewal has shown.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    /// The round that it began. Claims of that round and later ones are not in `held`.
    pub round: u64,
    /// The claims that are held: the first indices of their blocks, by job.
    pub held: HashMap<JobNumber, HashSet<u64>>,
}

impl Lease {
    /// A lease that begins now.
    pub fn new() -> Self {
        let lease =
            Self { begin: Instant::now(), until: AtomicU64::new(0), round: AtomicU64::new(0) };
        lease.extend(lease.begin);
        lease
    }

    /// Begins a renewal. Returns its round.
    pub fn begin_round(&self) -> u64 {
        self.round.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The round in which claims are that are made now.
    pub fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// All claims were renewed by a request that was sent then.
    pub fn extend(&self, sent: Instant) {
        let until = sent + LEASE - MARGIN;
        let millis = until.saturating_duration_since(self.begin).as_millis();
        self.until.fetch_max(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Whether all claims that were not found to be lost are in force.
    pub fn is_in_force(&self) -> bool {
        self.begin.elapsed() < Duration::from_millis(self.until.load(Ordering::SeqCst))
    }

    /// When the claims are no longer in force unless they are renewed.
    pub fn ends_at(&self) -> Instant {
        self.begin + Duration::from_millis(self.until.load(Ordering::SeqCst))
    }
}
