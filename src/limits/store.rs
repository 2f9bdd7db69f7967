//! Administration of the limits: which semaphores, budgets and leases exist. The limits are kept in
//! this process or in Redis, for all replicas.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::budget::BudgetAdmin;
use super::model::{
    Lease, NewLease, NoSuchLease, Payer, PlannedQuotas, SemaphoreId, StoreUnavailable,
};
use super::semaphore::{Permit, Semaphore};

/// A reply from a store, which may have to ask Redis for it.
pub type Fetched<'a, T> = BoxFuture<'a, Result<T, StoreUnavailable>>;

/// Where the limits are kept.
pub trait Store: Semaphores + LeaseStore {
    /// The budget of an account with the quotas of the settings, for minutes of this length.
    fn budget(
        &self,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<dyn BudgetAdmin>;

    /// Checks that the store can be reached. If it cannot, nothing new is admitted.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn reach(&self) -> Result<(), StoreUnavailable>;

    /// Whether several replicas share the store.
    fn is_shared(&self) -> bool;

    /// Reports about this process to the replicas that share the store, and reads their reports. The store
    /// does not know what is in them. Without effect if the store is not shared.
    fn report(&self, _report: Report) -> Fetched<'_, Reports> {
        ready(Ok(Reports::default())).boxed()
    }

    /// The points of a window that were reported, oldest first.
    fn read_past(&self, _window: &'static str) -> Fetched<'_, Vec<String>> {
        ready(Ok(Vec::new())).boxed()
    }

    /// Opens a login: a name that all replicas accept until it is closed, is not used for `idle`, lasts
    /// for `longest`, or this replica ends. Without effect if the store is not shared.
    fn open_login(&self, _id: &str, _idle: Duration, _longest: Duration) -> Fetched<'_, ()> {
        ready(Ok(())).boxed()
    }

    /// Whether a login is open. With `idle`, this counts as a use: it may be unused for so long from now
    /// on. Always false if the store is not shared.
    fn use_login(&self, _id: &str, _idle: Option<Duration>) -> Fetched<'_, bool> {
        ready(Ok(false)).boxed()
    }

    /// Closes a login for all replicas.
    fn close_login(&self, _id: &str) -> Fetched<'_, ()> {
        ready(Ok(())).boxed()
    }

    /// Gives back what this process holds, before it exits.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What a replica reports.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// About itself. At most 64 KiB are kept.
    pub text: String,
    /// A point of the past of all replicas, for each window that has a new one. Only the
    /// [first](Reports::is_first) replica adds points.
    pub points: BTreeMap<&'static str, String>,
}

/// What the replicas report.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    /// The last report of each running replica, at most 64, this one's included.
    pub texts: Vec<String>,
    /// Whether this replica is the one that adds points to the past of all. There may be none, or two, for
    /// some seconds.
    pub is_first: bool,
}

/// The semaphores of a store.
pub trait Semaphores: fmt::Debug + Send + Sync {
    /// The semaphore that every call uses.
    fn global(&self) -> Arc<dyn Semaphore>;

    /// Changes the limit of the semaphore that every call uses, for waiting calls too. A lower limit
    /// takes no permit away. Of several replicas, the one that set it last decides.
    fn set_global(&self, limit: usize) -> Fetched<'_, ()>;

    /// Creates a semaphore or changes the limit of an existing one, for waiting requests too. A lower
    /// limit takes no permit away. Also returns whether the semaphore is new.
    ///
    /// The limit of enqueued tokens is a setting: of those that running replicas have registered, the
    /// lowest holds.
    fn register(&self, id: SemaphoreId, limit: usize) -> Fetched<'_, (Arc<dyn Semaphore>, bool)>;

    /// Deletes a semaphore. Waiting requests fail; calls and leases that hold permits continue. Returns
    /// whether it existed.
    fn delete(&self, id: &SemaphoreId) -> Fetched<'_, bool>;

    /// The semaphore with this name.
    fn find<'a>(&'a self, id: &'a SemaphoreId) -> Fetched<'a, Option<Arc<dyn Semaphore>>>;

    /// All semaphores with a name, the service's own included, by name, as last reported.
    fn all(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)>;

    /// All semaphores that clients have named.
    fn named(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)> {
        let mut all = self.all();
        all.retain(|(id, _)| !id.is_enqueued());
        all
    }

    /// All semaphores whose permits are enqueued tokens.
    fn enqueued(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)> {
        let mut all = self.all();
        all.retain(|(id, _)| id.is_enqueued());
        all
    }

    /// Updates the usage of all semaphores.
    fn refresh(&self) -> Fetched<'_, ()>;

    /// How many permits of the global semaphore this process holds: not those of other replicas.
    fn held_here(&self) -> usize {
        self.global().usage().in_use
    }

    /// How many permits of a named semaphore are held by leases, as last reported.
    fn leased(&self, id: &SemaphoreId) -> usize;
}

/// The leases of a store.
pub trait LeaseStore: fmt::Debug + Send + Sync {
    /// Turns permits into a lease in one step, so that they are never free in between. If the
    /// idempotency key has a lease by now, gives the permits back and returns that lease. Also
    /// returns whether the lease is new.
    ///
    /// # Errors
    /// [`Unleased::Deleted`] if the semaphore was deleted.
    fn lease(
        &self,
        permit: Permit,
        lease: NewLease,
    ) -> BoxFuture<'static, Result<(Lease, bool), Unleased>>;

    /// The lease that was granted for an idempotency key.
    fn find_lease<'a>(
        &'a self,
        semaphore: &'a Arc<dyn Semaphore>,
        key: &'a str,
    ) -> Fetched<'a, Option<Lease>>;

    /// Extends a lease to `ttl` from now, or to its own time to live, which `ttl` replaces.
    ///
    /// # Errors
    /// [`NoSuchLease`] if the lease has ended. It cannot be revived.
    fn renew_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
        ttl: Option<Duration>,
    ) -> Fetched<'a, Result<Lease, NoSuchLease>>;

    /// Ends a lease. Succeeds if it has already ended.
    ///
    /// # Errors
    /// [`NoSuchLease`] if the lease belongs to another semaphore. It is left alone.
    fn release_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
    ) -> Fetched<'a, Result<(), NoSuchLease>>;

    /// The leases that hold permits of a semaphore, oldest first.
    fn leases<'a>(&'a self, semaphore: &'a Arc<dyn Semaphore>) -> Fetched<'a, Vec<Lease>>;
}

/// Why permits did not become a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unleased {
    /// The semaphore was deleted.
    #[error("the semaphore was deleted")]
    Deleted,
    /// The store became unavailable.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}
