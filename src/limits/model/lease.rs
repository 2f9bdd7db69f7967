//! The terms of leases.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::SemaphoreId;

/// The longest time that a lease is held without a renewal.
pub const MAX_LEASE_TTL: Duration = Duration::from_secs(3600);

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTerms {
    /// A name for the holder, shown to operators.
    pub holder: Arc<str>,
    /// The number of permits.
    pub permits: usize,
    /// How long the lease lasts after it is granted or renewed.
    pub ttl: Duration,
}

/// A lease as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// 32 random hexadecimal digits.
    pub id: Arc<str>,
    /// The semaphore whose permits it holds.
    pub semaphore_id: SemaphoreId,
    /// What the client asked for.
    pub terms: LeaseTerms,
    /// When the lease ends unless it is renewed.
    pub expires: Instant,
    /// The same moment by the wall clock.
    pub expires_at: Timestamp,
    /// Greater than the token of every lease granted before, of any semaphore.
    pub fencing_token: u64,
}

impl Lease {
    pub(in crate::limits) fn log_expiry(&self) {
        tracing::warn!(
            semaphore = self.semaphore_id.as_str(),
            holder = %self.terms.holder,
            fencing_token = self.fencing_token,
            "a lease was not renewed and has ended"
        );
    }
}

/// A lease that is about to be granted.
#[derive(Debug, Clone)]
pub struct NewLease {
    /// The id that it will have.
    pub id: Arc<str>,
    /// The semaphore whose permits it will hold.
    pub semaphore_id: SemaphoreId,
    /// What the client asked for.
    pub terms: LeaseTerms,
    /// The request's idempotency key.
    pub key: Option<Arc<str>>,
}

/// The semaphore has no lease with this id: it was released, it has expired, or it never existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such lease")]
pub struct NoSuchLease;
