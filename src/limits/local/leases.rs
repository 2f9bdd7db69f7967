//! Leases that are kept in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::limits::model::{Lease, NewLease, NoSuchLease, SemaphoreId};
use crate::limits::semaphore::{Permit, Semaphore};

/// The leases of all named semaphores of this process.
///
/// Leases of a deleted semaphore go on, as calls that hold its permits do, but are no longer listed.
#[derive(Debug, Default)]
pub(super) struct LocalLeases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Arc<str>, Held>,
    last_token: u64,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// How long the next renewal extends it.
    ttl: Duration,
    key: Option<Arc<str>>,
    permit: Permit,
    /// When the lease ends. The task that ends it watches this.
    deadline: watch::Sender<Instant>,
}

impl LocalLeases {
    /// Turns permits into a lease, or returns the lease with the same key.
    pub fn grant(self: &Arc<Self>, permit: Permit, new: NewLease) -> (Lease, bool) {
        let NewLease { id, semaphore_id, terms, key } = new;
        let mut state = self.state();
        if let Some(key) = &key
            && let Some(existing) = state.find(permit.semaphore(), key)
        {
            return (existing, false);
        }
        let (ttl, expires, now) = (terms.ttl, Instant::now() + terms.ttl, Timestamp::now());
        // Tokens come from the clock, so that they also grow across restarts.
        let clock = u64::try_from(now.as_microsecond()).unwrap_or(0);
        state.last_token = clock.max(state.last_token + 1);
        let lease = Lease {
            id: Arc::clone(&id),
            semaphore_id,
            terms,
            expires,
            expires_at: now + ttl,
            fencing_token: state.last_token,
        };
        let (deadline, watched) = watch::channel(expires);
        let held = Held { lease: lease.clone(), ttl, key, permit, deadline };
        state.held.insert(Arc::clone(&id), held);
        tokio::spawn(expire_at_deadline(Arc::downgrade(self), id, watched));
        (lease, true)
    }

    pub fn find(&self, semaphore: &Arc<dyn Semaphore>, key: &str) -> Option<Lease> {
        self.state().find(semaphore, key)
    }

    pub fn renew(
        &self,
        semaphore_id: &SemaphoreId,
        lease_id: &str,
        ttl: Option<Duration>,
    ) -> Result<Lease, NoSuchLease> {
        let mut state = self.state();
        let held = state.held.get_mut(lease_id).filter(|held| held.is_live());
        let held = held.filter(|held| held.lease.semaphore_id == *semaphore_id);
        let held = held.ok_or(NoSuchLease)?;
        held.ttl = ttl.unwrap_or(held.ttl);
        held.lease.expires = Instant::now() + held.ttl;
        held.lease.expires_at = Timestamp::now() + held.ttl;
        held.deadline.send_replace(held.lease.expires);
        Ok(held.lease.clone())
    }

    pub fn release(&self, semaphore_id: &SemaphoreId, lease_id: &str) -> Result<(), NoSuchLease> {
        let mut state = self.state();
        let held = state.held.get(lease_id).map(|held| &held.lease.semaphore_id);
        if held.is_some_and(|id| id != semaphore_id) {
            return Err(NoSuchLease);
        }
        let ended = state.held.remove(lease_id);
        // Dropping the permit takes the semaphore's lock, so this one is released first.
        drop(state);
        drop(ended);
        Ok(())
    }

    pub fn of(&self, semaphore: &Arc<dyn Semaphore>) -> Vec<Lease> {
        let state = self.state();
        let held = state.held.values().filter(|held| held.is_of(semaphore));
        let mut leases: Vec<_> = held.map(|held| held.lease.clone()).collect();
        drop(state);
        leases.sort_by_key(|lease| lease.fencing_token);
        leases
    }

    /// How many permits of a semaphore are leased.
    pub fn permits_of(&self, semaphore: u64) -> usize {
        let state = self.state();
        let permits = state.held.values().map(|held| &held.permit);
        let of_semaphore = permits.filter(|permit| permit.semaphore().number() == semaphore);
        of_semaphore.map(Permit::permits).sum()
    }

    /// Ends a lease that has expired.
    fn expire(&self, lease_id: &str) {
        let mut state = self.state();
        if state.held.get(lease_id).is_none_or(Held::is_live) {
            return;
        }
        let ended = state.held.remove(lease_id);
        drop(state);
        if let Some(held) = &ended {
            held.lease.log_expiry();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, semaphore: &Arc<dyn Semaphore>, key: &str) -> Option<Lease> {
        let matches = |held: &&Held| held.is_of(semaphore) && held.key.as_deref() == Some(key);
        self.held.values().find(matches).map(|held| held.lease.clone())
    }
}

impl Held {
    /// Whether it has not expired.
    fn is_live(&self) -> bool {
        Instant::now() < self.lease.expires
    }

    /// Whether it holds permits of this semaphore. A new semaphore with a deleted one's name is another.
    fn is_of(&self, semaphore: &Arc<dyn Semaphore>) -> bool {
        self.is_live() && self.permit.semaphore().number() == semaphore.number()
    }
}

/// Ends a lease at its deadline. A renewal moves the deadline; a release ends the task.
async fn expire_at_deadline(
    leases: Weak<LocalLeases>,
    id: Arc<str>,
    mut deadline: watch::Receiver<Instant>,
) {
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
