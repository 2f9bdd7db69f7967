//! Leases that are kept in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::NewLease;
use crate::limits::lease::{Lease, NoSuchLease};
use crate::limits::named::SemaphoreId;
use crate::limits::semaphore::{Permit, Semaphore};

/// All leases, of all named semaphores of this process.
///
/// Those of a semaphore that is deleted live on, as the calls that hold it do, but are no longer
/// listed.
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
    /// For how long its next renewal holds.
    ttl: Duration,
    key: Option<Arc<str>>,
    permit: Permit,
    /// When the lease ends, for the task that ends it.
    deadline: watch::Sender<Instant>,
}

impl LocalLeases {
    /// Makes permits a lease, or finds the one of the same key.
    pub fn grant(self: &Arc<Self>, permit: Permit, new: NewLease) -> (Lease, bool) {
        let NewLease { id, semaphore_id, terms, key } = new;
        let mut state = self.state();
        if let Some(key) = &key
            && let Some(before) = state.find(permit.semaphore(), key)
        {
            return (before, false);
        }
        let (ttl, expires, now) = (terms.ttl, Instant::now() + terms.ttl, Timestamp::now());
        // From the clock, so that the tokens of a service that was started anew are greater too.
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
        tokio::spawn(end_in_time(Arc::downgrade(self), id, watched));
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
        let held = state.held.get_mut(lease_id).filter(|held| held.lives());
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
        // The permit that goes back with it is served under another lock.
        drop(state);
        drop(ended);
        Ok(())
    }

    pub fn of(&self, semaphore: &Arc<dyn Semaphore>) -> Vec<Lease> {
        let state = self.state();
        let of_it = state.held.values().filter(|held| held.is_of(semaphore));
        let mut leases: Vec<_> = of_it.map(|held| held.lease.clone()).collect();
        drop(state);
        leases.sort_by_key(|lease| lease.fencing_token);
        leases
    }

    /// Ends a lease whose time is over.
    fn expire(&self, lease_id: &str) {
        let mut state = self.state();
        if state.held.get(lease_id).is_none_or(Held::lives) {
            return;
        }
        let ended = state.held.remove(lease_id);
        drop(state);
        if let Some(held) = &ended {
            held.lease.warn_of_its_end();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, semaphore: &Arc<dyn Semaphore>, key: &str) -> Option<Lease> {
        let asked = |held: &&Held| held.is_of(semaphore) && held.key.as_deref() == Some(key);
        self.held.values().find(asked).map(|held| held.lease.clone())
    }
}

impl Held {
    /// Whether its time is not over.
    fn lives(&self) -> bool {
        Instant::now() < self.lease.expires
    }

    /// Whether it holds that semaphore: a deleted one and a new one of its name are two.
    fn is_of(&self, semaphore: &Arc<dyn Semaphore>) -> bool {
        self.lives() && self.permit.semaphore().number() == semaphore.number()
    }
}

/// Ends a lease at its deadline, which a renewal moves; a release ends the task.
async fn end_in_time(
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
