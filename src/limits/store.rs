//! Where the limits are kept: in this process, or in Redis for all replicas.

mod leases;
mod local;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::account::Payer;
use super::budget::Budget;
use super::lease::{Lease, LeaseTerms, NoSuchLease};
use super::named::SemaphoreId;
use super::plan::PlannedQuotas;
use super::semaphore::{Permit, Semaphore, StoreUnavailable};

pub use local::LocalStore;

/// What is asked of a store; where others share it, it has to be fetched.
pub type Fetched<'a, T> = BoxFuture<'a, Result<T, StoreUnavailable>>;

/// The semaphores there are, and what is leased of them.
pub trait Store: fmt::Debug + Send + Sync {
    /// The semaphore that every call passes.
    fn global(&self) -> Arc<dyn Semaphore>;

    /// Creates a semaphore, or changes the limit of the one of that name: for those who wait as for
    /// those who come. Lowering it takes nothing from those who hold a permit. With it comes
    /// whether it is new.
    fn register(&self, id: SemaphoreId, limit: usize) -> Fetched<'_, (Arc<dyn Semaphore>, bool)>;

    /// Deletes a semaphore: those who wait for it learn so, those who hold it finish, calls and
    /// leases alike. False where there is none of that name.
    fn delete(&self, id: &SemaphoreId) -> Fetched<'_, bool>;

    /// The semaphore of that name.
    fn find<'a>(&'a self, id: &'a SemaphoreId) -> Fetched<'a, Option<Arc<dyn Semaphore>>>;

    /// All of them, in the order of their names, as last heard.
    fn named(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)>;

    /// Hears how all of them stand now.
    fn refresh(&self) -> Fetched<'_, ()>;

    /// What an account may spend, by the settings, in a minute of that length.
    fn budget(
        &self,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<dyn Budget>;

    /// Makes permits a lease, in one step, so that nothing is free in between; or gives them back
    /// where the idempotency key has got a lease meanwhile, which is the answer then. With the
    /// lease comes whether it is new.
    ///
    /// # Errors
    /// [`Unleased::Deleted`] where the semaphore was deleted meanwhile.
    fn lease(
        &self,
        permit: Permit,
        lease: NewLease,
    ) -> BoxFuture<'static, Result<(Lease, bool), Unleased>>;

    /// The lease of an idempotency key.
    fn find_lease<'a>(
        &'a self,
        semaphore: &'a Arc<dyn Semaphore>,
        key: &'a str,
    ) -> Fetched<'a, Option<Lease>>;

    /// Lets a lease end only after `ttl` from now, or after its own, which a new one replaces.
    ///
    /// # Errors
    /// [`NoSuchLease`] where it has ended: it does not come back.
    fn renew_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
        ttl: Option<Duration>,
    ) -> Fetched<'a, Result<Lease, NoSuchLease>>;

    /// Ends a lease; one that has ended stays so.
    ///
    /// # Errors
    /// [`NoSuchLease`] where the lease is of another semaphore, which leaves it alone.
    fn release_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
    ) -> Fetched<'a, Result<(), NoSuchLease>>;

    /// The leases that hold a semaphore, the oldest first.
    fn leases<'a>(&'a self, semaphore: &'a Arc<dyn Semaphore>) -> Fetched<'a, Vec<Lease>>;

    /// Whether the store can be reached; without it, nothing new is let in.
    ///
    /// # Errors
    /// [`StoreUnavailable`] where it cannot.
    fn reach(&self) -> Result<(), StoreUnavailable>;

    /// Whether others share it.
    fn is_shared(&self) -> bool;

    /// Gives back what this process holds, before it ends.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A lease that is to be granted.
#[derive(Debug, Clone)]
pub struct NewLease {
    /// What it will be called.
    pub id: Arc<str>,
    /// The name of the semaphore that it is of.
    pub semaphore_id: SemaphoreId,
    /// What was asked for.
    pub terms: LeaseTerms,
    /// The key by which the request can be told from others.
    pub key: Option<Arc<str>>,
}

/// Why permits did not become a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unleased {
    /// The semaphore was deleted.
    #[error("the semaphore was deleted")]
    Deleted,
    /// The store was lost.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}

#[cfg(test)]
mod tests;
