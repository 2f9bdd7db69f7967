//! Leases: permits of a named semaphore for work outside this process.
//!
//! A lease stands in the same queue as this service's own calls and holds the same permits. Its
//! holder cannot be watched, so that it ends by itself unless it is renewed.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::door::{Door, Refused, Turnstile};
use super::named::SemaphoreId;
use super::semaphore::{Permit, Semaphore};

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
    /// Who holds it.
    pub holder: Arc<str>,
    /// How many permits it holds.
    pub permits: usize,
    /// When it ends unless it is renewed.
    pub expires: Instant,
    /// The same by the clock on the wall.
    pub expires_at: Timestamp,
    /// Greater than that of every lease granted before, of any semaphore.
    pub fencing_token: u64,
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

/// The semaphore has no lease of that name: it was released, has ended, or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such lease")]
pub struct NoSuchLease;

/// All leases, of all named semaphores.
///
/// Those of a semaphore that is deleted live on, as the calls that hold it do, but are no longer
/// listed.
#[derive(Debug)]
pub struct Leases {
    door: Arc<Door>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Arc<str>, Held>,
    /// What became of requests with an idempotency key: they wait, or their lease is held.
    asked: HashMap<KeyName, Asked>,
    last_token: u64,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    ttl: Duration,
    permit: Permit,
    /// When the lease ends, for the task that ends it.
    deadline: watch::Sender<Instant>,
    key: Option<KeyName>,
}

/// An idempotency key, which has a meaning for one semaphore only.
type KeyName = (SemaphoreId, Arc<str>);

/// One wait for a lease, which all requests with the same key share. It leaves the queue when
/// the last of them does.
type Attempt = Shared<BoxFuture<'static, Result<Lease, NoLease>>>;

#[derive(Debug)]
struct Asked {
    lease_id: Arc<str>,
    /// The semaphore of the name, as long as it is the same.
    semaphore: Weak<Semaphore>,
    terms: LeaseTerms,
    waiting: WeakShared<BoxFuture<'static, Result<Lease, NoLease>>>,
}

/// What an earlier request with the same key has come to.
enum Earlier {
    Held(Lease),
    Waits(Attempt),
}

impl Leases {
    /// How many permits one lease can hold.
    pub const PERMITS: RangeInclusive<usize> = 1..=1000;

    /// For how long a lease can be held without being renewed.
    pub const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

    /// How long a request can wait for a lease.
    pub const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

    /// Leases of the semaphores of a door.
    pub fn new(door: Arc<Door>) -> Arc<Self> {
        Arc::new(Self { door, state: Mutex::default() })
    }

    /// Waits for a lease, behind the calls and leases that asked before, for at most `wait`; with
    /// none, takes what is free or fails at once. Dropping the future leaves the queue. With the
    /// lease comes whether it is new: with the key of one that is held, or waited for, it is that
    /// one.
    ///
    /// # Errors
    /// [`NoLease::Unavailable`] when the time is over; [`NoLease::KeyReused`] where the terms are
    /// not those that the key came with before; [`Refused::QueueFull`],
    /// [`Refused::SemaphoreDeleted`] and [`Refused::MoreThanLimit`], the last two also while it
    /// waits.
    pub async fn acquire(
        self: &Arc<Self>,
        semaphore_id: SemaphoreId,
        semaphore: &Arc<Semaphore>,
        terms: LeaseTerms,
        key: Option<&str>,
        wait: Duration,
    ) -> Result<(Lease, bool), NoLease> {
        let key = key.map(|key| (semaphore_id.clone(), Arc::from(key)));
        let asking = Asking {
            leases: Arc::clone(self),
            id: format!("{:032x}", fastrand::u128(..)).into(),
            semaphore_id,
            semaphore: Arc::clone(semaphore),
            terms: terms.clone(),
            key: key.clone(),
            may_wait: !wait.is_zero(),
        };
        let lease_id = Arc::clone(&asking.id);
        let own = asking.obtain().boxed().shared();
        let earlier = key.and_then(|key| {
            let waiting = own.downgrade()?;
            let semaphore = Arc::downgrade(semaphore);
            self.state().ask(key, Asked { lease_id, semaphore, terms: terms.clone(), waiting })
        });
        let (attempt, new) = match earlier {
            Some((before, _)) if before != terms => return Err(NoLease::KeyReused),
            Some((_, Earlier::Held(lease))) => return Ok((lease, false)),
            Some((_, Earlier::Waits(attempt))) => (attempt, false),
            None => (own, true),
        };
        let lease = timeout(wait, attempt).await.unwrap_or(Err(NoLease::Unavailable))?;
        Ok((lease, new))
    }

    /// Lets a lease end only after `ttl` from now, or after its own, which a new one replaces.
    ///
    /// # Errors
    /// [`NoSuchLease`] where it has ended: it does not come back.
    pub fn renew(
        &self,
        semaphore_id: &SemaphoreId,
        lease_id: &str,
        ttl: Option<Duration>,
    ) -> Result<Lease, NoSuchLease> {
        let mut state = self.state();
        let held = state.held.get_mut(lease_id).filter(|held| held.lives());
        let held = held.filter(|held| held.lease.semaphore_id == *semaphore_id);
        let held = held.ok_or(NoSuchLease)?;
        held.ttl = ttl.unwrap_or(held.ttl);
        held.lease.expires = Instant::now() + held.ttl;
        held.lease.expires_at = Timestamp::now() + held.ttl;
        held.deadline.send_replace(held.lease.expires);
        Ok(held.lease.clone())
    }

    /// Ends a lease; one that has ended stays so.
    ///
    /// # Errors
    /// [`NoSuchLease`] where the lease is of another semaphore, which leaves it alone.
    pub fn release(&self, semaphore_id: &SemaphoreId, lease_id: &str) -> Result<(), NoSuchLease> {
        let mut state = self.state();
        let held = state.held.get(lease_id).map(|held| &held.lease.semaphore_id);
        if held.is_some_and(|id| id != semaphore_id) {
            return Err(NoSuchLease);
        }
        let ended = state.end(lease_id);
        drop(state);
        drop(ended);
        Ok(())
    }

    /// The leases that hold a semaphore, the oldest first.
    pub fn of(&self, semaphore: &Arc<Semaphore>) -> Vec<Lease> {
        let state = self.state();
        let of_it = |held: &&Held| held.lives() && Arc::ptr_eq(held.permit.semaphore(), semaphore);
        let mut leases: Vec<_> =
            state.held.values().filter(of_it).map(|held| held.lease.clone()).collect();
        drop(state);
        leases.sort_by_key(|lease| lease.fencing_token);
        leases
    }

    fn grant(self: &Arc<Self>, asking: &Asking, permit: Permit) -> Lease {
        let Asking { id, semaphore_id, key, terms, .. } = asking;
        let LeaseTerms { holder, permits, ttl } = terms.clone();
        let (expires, now) = (Instant::now() + ttl, Timestamp::now());
        let mut state = self.state();
        // From the clock, so that the tokens of a service that was started anew are greater too.
        let clock = u64::try_from(now.as_microsecond()).unwrap_or(0);
        state.last_token = clock.max(state.last_token + 1);
        let lease = Lease {
            id: Arc::clone(id),
            semaphore_id: semaphore_id.clone(),
            holder,
            permits,
            expires,
            expires_at: now + ttl,
            fencing_token: state.last_token,
        };
        let (deadline, watched) = watch::channel(expires);
        let held = Held { lease: lease.clone(), ttl, permit, deadline, key: key.clone() };
        state.held.insert(Arc::clone(id), held);
        tokio::spawn(end_in_time(Arc::downgrade(self), Arc::clone(id), watched));
        lease
    }

    /// Ends a lease whose time is over.
    fn expire(&self, lease_id: &str) {
        let mut state = self.state();
        if state.held.get(lease_id).is_none_or(Held::lives) {
            return;
        }
        let ended = state.end(lease_id);
        drop(state);
        if let Some(Held { lease: Lease { semaphore_id, holder, fencing_token, .. }, .. }) = &ended
        {
            tracing::warn!(
                semaphore = semaphore_id.as_str(), %holder, fencing_token,
                "a lease was not renewed and has ended"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes a request, unless one with the same key came before: then nothing changes, and here
    /// are its terms and what it has come to. The caller drops that when it holds no lock: an
    /// attempt's end takes the lock too.
    fn ask(&mut self, key: KeyName, asked: Asked) -> Option<(LeaseTerms, Earlier)> {
        let earlier = self.asked.get(&key).and_then(|before| {
            // A deleted semaphore and a new one of its name are two.
            if !before.semaphore.ptr_eq(&asked.semaphore) {
                return None;
            }
            let held = self.held.get(&before.lease_id).filter(|held| held.lives());
            let earlier = match held {
                Some(held) => Earlier::Held(held.lease.clone()),
                None => Earlier::Waits(before.waiting.upgrade()?),
            };
            Some((before.terms.clone(), earlier))
        });
        if earlier.is_none() {
            self.asked.insert(key, asked);
        }
        earlier
    }

    /// Forgets a request by its key, unless the key has been used again since.
    fn forget(&mut self, key: Option<&KeyName>, lease_id: &str) {
        if let Some(key) = key
            && self.asked.get(key).is_some_and(|asked| *asked.lease_id == *lease_id)
        {
            self.asked.remove(key);
        }
    }

    /// Takes a lease out. Its permit goes back when the caller drops it.
    fn end(&mut self, lease_id: &str) -> Option<Held> {
        let held = self.held.remove(lease_id)?;
        self.forget(held.key.as_ref(), lease_id);
        Some(held)
    }
}

impl Held {
    /// Whether its time is not over.
    fn lives(&self) -> bool {
        Instant::now() < self.lease.expires
    }
}

/// A request for a lease, from its arrival until it has one or gives up.
struct Asking {
    leases: Arc<Leases>,
    /// What the lease will be called.
    id: Arc<str>,
    semaphore_id: SemaphoreId,
    semaphore: Arc<Semaphore>,
    terms: LeaseTerms,
    key: Option<KeyName>,
    may_wait: bool,
}

impl Asking {
    async fn obtain(self) -> Result<Lease, NoLease> {
        let permits = self.terms.permits;
        let limit = self.semaphore.limit();
        if permits > limit {
            return Err(Refused::MoreThanLimit { limit }.into());
        }
        let permit = if self.may_wait {
            let place = Turnstile::new(Arc::clone(&self.leases.door));
            place.acquire_many(&self.semaphore, permits).await?
        } else {
            self.semaphore.try_acquire_many(permits).ok_or(NoLease::Unavailable)?
        };
        Ok(self.leases.grant(&self, permit))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.key.is_some() {
            let mut state = self.leases.state();
            // With a lease, the key is remembered for as long as that.
            if !state.held.contains_key(&self.id) {
                state.forget(self.key.as_ref(), &self.id);
            }
        }
    }
}

/// Ends a lease at its deadline, which a renewal moves; a release ends the task.
async fn end_in_time(leases: Weak<Leases>, id: Arc<str>, mut deadline: watch::Receiver<Instant>) {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            changed = deadline.changed() => if changed.is_err() { return },
            () = sleep_until(until) => match leases.upgrade() {
                Some(leases) => leases.expire(&id),
                None => return,
            },
        }
    }
}

#[cfg(test)]
mod tests;
