//! Leases: permits of a named semaphore for work outside this process.
//!
//! A lease stands in the same queue as this service's own calls and holds the same permits. Its
//! holder cannot be watched, so that it ends by itself unless it is renewed.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::limiter::{Limiter, QueueTicket, Refused};
use super::named::SemaphoreId;
use super::semaphore::{NotGranted, Permit, Semaphore, StoreUnavailable, WaitMode};
use super::store::{NewLease, Unleased};

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Who it is for, as it is to be shown.
    pub holder: Arc<str>,
    /// How many permits it is for.
    pub permits: usize,
    /// For how long it is held, from its grant or its last renewal.
    pub ttl: Duration,
}

/// A lease at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is called: 32 hexadecimal digits at random.
    pub id: Arc<str>,
    /// The name of the semaphore that it is of.
    pub semaphore_id: SemaphoreId,
    /// What was asked for.
    pub terms: LeaseTerms,
    /// When it ends unless it is renewed.
    pub expires: Instant,
    /// The same by the clock on the wall.
    pub expires_at: Timestamp,
    /// Greater than that of every lease granted before, of any semaphore.
    pub fencing_token: u64,
}

impl Lease {
    pub(super) fn warn_of_its_end(&self) {
        tracing::warn!(
            semaphore = self.semaphore_id.as_str(),
            holder = %self.terms.holder,
            fencing_token = self.fencing_token,
            "a lease was not renewed and has ended"
        );
    }
}

/// Why no lease was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLease {
    /// Too few permits came free in time.
    #[error("too few permits came free in time")]
    Unavailable,
    /// The idempotency key belongs to a lease of other terms.
    #[error("the idempotency key was used for a lease of other terms")]
    KeyReused,
    /// It could not wait for its turn, or not until it came.
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

/// The semaphore has no lease of that name: it was released, has ended, or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such lease")]
pub struct NoSuchLease;

/// Those who ask for leases.
#[derive(Debug)]
pub struct Leases {
    limiter: Arc<Limiter>,
    /// The requests with an idempotency key that wait.
    asked: Mutex<HashMap<KeyName, Asked>>,
}

/// An idempotency key, which has a meaning for one semaphore only.
type KeyName = (SemaphoreId, Arc<str>);

/// One wait for a lease, which all requests with the same key share. It leaves the queue when
/// the last of them does.
type Attempt = Shared<BoxFuture<'static, Result<(Lease, bool), NoLease>>>;

#[derive(Debug)]
struct Asked {
    lease_id: Arc<str>,
    /// The number of the semaphore: a deleted one and a new one of its name are two.
    semaphore: u64,
    terms: LeaseTerms,
    waiting: WeakShared<BoxFuture<'static, Result<(Lease, bool), NoLease>>>,
}

impl Leases {
    /// How many permits one lease can hold.
    pub const PERMITS: RangeInclusive<usize> = 1..=1000;

    /// For how long a lease can be held without being renewed.
    pub const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

    /// How long a request can wait for a lease.
    pub const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

    /// Leases of the semaphores of a limiter.
    pub fn new(limiter: Arc<Limiter>) -> Arc<Self> {
        Arc::new(Self { limiter, asked: Mutex::default() })
    }

    /// Waits for a lease, behind the calls and leases that asked before, for at most `wait`; with
    /// none, takes what is free or fails at once. Dropping the future leaves the queue. With the
    /// lease comes whether it is new: with the key of one that is held, or waited for, it is that
    /// one.
    ///
    /// # Errors
    /// [`NoLease::Unavailable`] when the time is over; [`NoLease::KeyReused`] where the terms are
    /// not those that the key came with before; [`Refused::QueueFull`],
    /// [`Refused::SemaphoreDeleted`], [`Refused::MoreThanLimit`] and [`Refused::StoreUnavailable`], the
    /// last three also while it waits.
    pub async fn acquire(
        self: &Arc<Self>,
        semaphore_id: SemaphoreId,
        semaphore: &Arc<dyn Semaphore>,
        terms: LeaseTerms,
        key: Option<&str>,
        wait: Duration,
    ) -> Result<(Lease, bool), NoLease> {
        let new = NewLease {
            id: format!("{:032x}", fastrand::u128(..)).into(),
            semaphore_id,
            terms,
            key: key.map(Arc::from),
        };
        let asking = Asking {
            leases: Arc::clone(self),
            semaphore: Arc::clone(semaphore),
            new: new.clone(),
            mode: if wait.is_zero() { WaitMode::None } else { WaitMode::Endless },
        };
        let own = asking.obtain().boxed().shared();
        let (attempt, is_own) = match self.share(semaphore, &new, &own) {
            Some((before, _)) if before != new.terms => return Err(NoLease::KeyReused),
            Some((_, attempt)) => (attempt, false),
            None => (own, true),
        };
        // Without a wait the answer still takes the way to the store and back.
        let answer =
            if wait.is_zero() && is_own { attempt.await } else { in_time(wait, attempt).await };
        answer.map(|(lease, new)| (lease, new && is_own))
    }

    /// Notes a request with a key, unless one with the same key waits: then here are its terms,
    /// and its attempt to share.
    fn share(
        &self,
        semaphore: &Arc<dyn Semaphore>,
        new: &NewLease,
        own: &Attempt,
    ) -> Option<(LeaseTerms, Attempt)> {
        let name = (new.semaphore_id.clone(), new.key.clone()?);
        let asked = Asked {
            lease_id: Arc::clone(&new.id),
            semaphore: semaphore.number(),
            terms: new.terms.clone(),
            waiting: own.downgrade()?,
        };
        let mut all = self.asked();
        let before = all.get(&name).filter(|before| before.semaphore == asked.semaphore);
        let before =
            before.and_then(|before| Some((before.terms.clone(), before.waiting.upgrade()?)));
        if before.is_none() {
            all.insert(name, asked);
        }
        before
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<KeyName, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_time(wait: Duration, attempt: Attempt) -> Result<(Lease, bool), NoLease> {
    timeout(wait, attempt).await.unwrap_or(Err(NoLease::Unavailable))
}

/// A request for a lease, from its arrival until it has one or gives up.
struct Asking {
    leases: Arc<Leases>,
    semaphore: Arc<dyn Semaphore>,
    new: NewLease,
    mode: WaitMode,
}

impl Asking {
    async fn obtain(self) -> Result<(Lease, bool), NoLease> {
        let store = self.leases.limiter.store();
        if let Some(key) = &self.new.key
            && let Some(before) = store.find_lease(&self.semaphore, key).await?
        {
            return self.unless_reused((before, false));
        }
        let permit = self.permit().await?;
        let granted = store.lease(permit, self.new.clone()).await?;
        self.unless_reused(granted)
    }

    async fn permit(&self) -> Result<Permit, NoLease> {
        let (semaphore, permits) = (&self.semaphore, self.new.terms.permits);
        if self.mode == WaitMode::Endless {
            let place = QueueTicket::new(Arc::clone(&self.leases.limiter));
            return Ok(place.acquire_many(semaphore, permits).await?);
        }
        let permit = Arc::clone(semaphore).ask(permits, WaitMode::None).await;
        permit.map_err(|reason| match reason {
            NotGranted::NoneFree => NoLease::Unavailable,
            other => Refused::from(other).into(),
        })
    }

    fn unless_reused(&self, granted: (Lease, bool)) -> Result<(Lease, bool), NoLease> {
        if granted.0.terms == self.new.terms { Ok(granted) } else { Err(NoLease::KeyReused) }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(key) = &self.new.key {
            let name = (self.new.semaphore_id.clone(), Arc::clone(key));
            let mut all = self.leases.asked();
            // Unless the key has been used again since.
            if all.get(&name).is_some_and(|asked| asked.lease_id == self.new.id) {
                all.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
