//! Leases: permits of a named semaphore for work outside this process.
//!
//! A lease waits in the same queue as this service's own calls and holds the same permits. Its
//! holder cannot be observed, so a lease ends by itself unless it is renewed.

#[cfg(test)]
mod tests;
mod waits;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::timeout;

use super::limiter::{Limiter, QueueTicket, Refused};
use super::model::{Lease, LeaseTerms, MAX_LEASE_TTL, NewLease, SemaphoreId, StoreUnavailable};
use super::semaphore::{NotGranted, Permit, Semaphore, WaitMode};
use super::store::Unleased;
use waits::LeaseWaits;

pub use waits::LeaseWait;

/// Why no lease was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLease {
    /// Too few permits became free in time.
    #[error("too few permits came free in time")]
    Unavailable,
    /// The idempotency key belongs to a lease with other terms.
    #[error("the idempotency key was used for a lease of other terms")]
    KeyReused,
    /// The request was refused, at once or while it waited.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreUnavailable> for NoLease {
    fn from(reason: StoreUnavailable) -> Self {
        Self::Refused(reason.into())
    }
}

impl From<Unleased> for NoLease {
    fn from(reason: Unleased) -> Self {
        match reason {
            Unleased::Deleted => Self::Refused(Refused::SemaphoreDeleted),
            Unleased::StoreUnavailable(reason) => reason.into(),
        }
    }
}

/// Grants leases.
#[derive(Debug)]
pub struct Leases {
    limiter: Arc<Limiter>,
    /// The waiting requests that have an idempotency key.
    waiting: Mutex<HashMap<KeyName, WaitingRequest>>,
    /// All waiting requests.
    waits: LeaseWaits,
}

/// An idempotency key. It is valid for one semaphore.
type KeyName = (SemaphoreId, Arc<str>);

/// What a request for a lease results in, with whether the lease is new.
type LeaseResult = Result<(Lease, bool), NoLease>;

/// One wait for a lease that all requests with the same key share. It leaves the queue when the last
/// of them is dropped.
type SharedWait = Shared<BoxFuture<'static, LeaseResult>>;

#[derive(Debug)]
struct WaitingRequest {
    lease_id: Arc<str>,
    /// The semaphore's number: a new semaphore with a deleted one's name is another.
    semaphore: u64,
    terms: LeaseTerms,
    wait: WeakShared<BoxFuture<'static, LeaseResult>>,
}

impl Leases {
    /// How many permits one lease can hold.
    pub const PERMITS: RangeInclusive<usize> = 1..=1000;

    /// How long a lease can be held without a renewal.
    pub const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=MAX_LEASE_TTL;

    /// How long a request can wait for a lease.
    pub const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

    /// Leases of the semaphores of a limiter.
    pub fn new(limiter: Arc<Limiter>) -> Arc<Self> {
        Arc::new(Self { limiter, waiting: Mutex::default(), waits: LeaseWaits::default() })
    }

    /// Waits for a lease for at most `wait`, behind earlier calls and leases. Without a wait, it
    /// takes free permits or fails at once. Dropping the future leaves the queue. Also returns whether
    /// the lease is new: a request with the key of a lease, or of another request that waits, gets
    /// the same lease.
    ///
    /// # Errors
    /// [`NoLease::Unavailable`] when the time is over; [`NoLease::KeyReused`] if the key was sent with
    /// other terms before; [`Refused::QueueFull`], [`Refused::SemaphoreDeleted`],
    /// [`Refused::MoreThanLimit`] and [`Refused::StoreUnavailable`], the last three also while it
    /// waits.
    pub async fn acquire(
        self: &Arc<Self>,
        semaphore_id: SemaphoreId,
        semaphore: &Arc<dyn Semaphore>,
        terms: LeaseTerms,
        key: Option<&str>,
        wait: Duration,
    ) -> LeaseResult {
        let new = NewLease {
            id: format!("{:032x}", fastrand::u128(..)).into(),
            semaphore_id,
            terms,
            key: key.map(Arc::from),
        };
        let request = PendingLease {
            leases: Arc::clone(self),
            semaphore: Arc::clone(semaphore),
            new: new.clone(),
            mode: if wait.is_zero() { WaitMode::None } else { WaitMode::Endless },
        };
        let own = request.obtain().boxed().shared();
        let (shared, is_own) = match self.share(semaphore, &new, &own) {
            Some((terms, _)) if terms != new.terms => return Err(NoLease::KeyReused),
            Some((_, shared)) => (shared, false),
            None => (own, true),
        };
        // A request without a wait still waits for the reply of the store.
        let result = if wait.is_zero() && is_own {
            shared.await
        } else {
            timeout(wait, shared).await.unwrap_or(Err(NoLease::Unavailable))
        };
        result.map(|(lease, new)| (lease, new && is_own))
    }

    /// At most `most` requests that wait at this replica for permits of a semaphore, the oldest first, and
    /// how many there are in all.
    pub fn waits(&self, semaphore: &Arc<dyn Semaphore>, most: usize) -> (Vec<LeaseWait>, usize) {
        self.waits.of(semaphore.number(), most)
    }

    /// Registers a request with a key. If one with the same key waits already, returns that one's
    /// terms and its wait to share instead.
    fn share(
        &self,
        semaphore: &Arc<dyn Semaphore>,
        new: &NewLease,
        own: &SharedWait,
    ) -> Option<(LeaseTerms, SharedWait)> {
        let name = (new.semaphore_id.clone(), new.key.clone()?);
        let request = WaitingRequest {
            lease_id: Arc::clone(&new.id),
            semaphore: semaphore.number(),
            terms: new.terms.clone(),
            wait: own.downgrade()?,
        };
        let mut waiting = self.waiting();
        let earlier = waiting.get(&name).filter(|earlier| earlier.semaphore == request.semaphore);
        let earlier =
            earlier.and_then(|earlier| Some((earlier.terms.clone(), earlier.wait.upgrade()?)));
        if earlier.is_none() {
            waiting.insert(name, request);
        }
        earlier
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<KeyName, WaitingRequest>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request for a lease, until it has one or gives up.
struct PendingLease {
    leases: Arc<Leases>,
    semaphore: Arc<dyn Semaphore>,
    new: NewLease,
    mode: WaitMode,
}

impl PendingLease {
    async fn obtain(self) -> LeaseResult {
        let store = self.leases.limiter.store();
        if let Some(key) = &self.new.key
            && let Some(existing) = store.find_lease(&self.semaphore, key).await?
        {
            return self.check_terms((existing, false));
        }
        let permit = self.permit().await?;
        let granted = store.lease(permit, self.new.clone()).await?;
        self.check_terms(granted)
    }

    async fn permit(&self) -> Result<Permit, NoLease> {
        let (semaphore, permits) = (&self.semaphore, self.new.terms.permits);
        if self.mode == WaitMode::Endless {
            let _waiting = self.leases.waits.begin(semaphore.number(), &self.new.terms);
            let ticket = QueueTicket::new(Arc::clone(&self.leases.limiter));
            return Ok(ticket.acquire_many(semaphore, permits).await?);
        }
        let permit = Arc::clone(semaphore).request(permits, WaitMode::None).await;
        permit.map_err(|reason| match reason {
            NotGranted::NoneFree => NoLease::Unavailable,
            other => Refused::from(other).into(),
        })
    }

    /// Fails if the lease has other terms than those requested.
    fn check_terms(&self, granted: (Lease, bool)) -> LeaseResult {
        if granted.0.terms == self.new.terms { Ok(granted) } else { Err(NoLease::KeyReused) }
    }
}

impl Drop for PendingLease {
    fn drop(&mut self) {
        if let Some(key) = &self.new.key {
            let name = (self.new.semaphore_id.clone(), Arc::clone(key));
            let mut waiting = self.leases.waiting();
            // The key may have been used again since.
            if waiting.get(&name).is_some_and(|request| request.lease_id == self.new.id) {
                waiting.remove(&name);
            }
        }
    }
}
