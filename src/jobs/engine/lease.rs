//! Whether the claims of this process are certainly in force, and what their renewals have shown.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::jobs::model::JobNumber;

/// How often claims are renewed in the time for which they hold.
const RENEWALS: u32 = 3;

/// The part of that time after which a renewal that failed is tried again, and the part before its end
/// in which a claim is no longer used: the store's clock may be faster by as much.
const PART: u32 = 12;

/// The lease on all claims of this process. Times are measured here, so that no clock that is set has
/// an effect.
#[derive(Debug)]
pub(super) struct Lease {
    /// How long a claim holds after it was made or renewed.
    length: Duration,
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
    /// A lease of this length that begins now.
    pub fn new(length: Duration) -> Self {
        let begin = Instant::now();
        let lease = Self { length, begin, until: AtomicU64::new(0), round: AtomicU64::new(0) };
        lease.extend(begin);
        lease
    }

    /// How long a claim holds after it was made or renewed.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// How long to wait after a renewal.
    pub fn renewal(&self) -> Duration {
        self.length / RENEWALS
    }

    /// How long to wait after a renewal that failed.
    pub fn renewal_again(&self) -> Duration {
        self.length / PART
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
        let until = sent + self.length - self.length / PART;
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
