//! Limits that are kept in this process.
//!
//! | file | what is in it |
//! |---|---|
//! | `semaphore` | a semaphore |
//! | `budget` | the quotas of one account, with its queue |
//! | `adaptive` | how many calls of an account run at once, found from refusals for load |
//! | `leases` | the leases of all semaphores |

mod adaptive;
mod budget;
mod leases;
mod semaphore;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::budget::BudgetAdmin;
use super::model::{
    Lease, NewLease, NoSuchLease, Payer, PlannedQuotas, SemaphoreId, StoreUnavailable,
};
use super::semaphore::{Permit, Semaphore};
use super::store::{Fetched, LeaseStore, Semaphores, Store, Unleased};
use leases::LocalLeases;

pub use adaptive::{AdaptiveLimit, Slot};
pub use budget::LocalBudget;
#[cfg(test)]
pub(super) use budget::tests as budget_tests;
pub use semaphore::LocalSemaphore;

/// The semaphores of this process, and their leases.
#[derive(Debug)]
pub struct LocalStore {
    global: Arc<LocalSemaphore>,
    named: RwLock<BTreeMap<SemaphoreId, Arc<LocalSemaphore>>>,
    leases: Arc<LocalLeases>,
}

impl LocalStore {
    /// A store whose global semaphore has `limit` permits.
    pub fn new(limit: usize) -> Arc<Self> {
        let global = LocalSemaphore::new(limit);
        Arc::new(Self { global, named: RwLock::default(), leases: Arc::default() })
    }
}

impl Semaphores for LocalStore {
    fn global(&self) -> Arc<dyn Semaphore> {
        Arc::<LocalSemaphore>::clone(&self.global)
    }

    fn register(&self, id: SemaphoreId, limit: usize) -> Fetched<'_, (Arc<dyn Semaphore>, bool)> {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let new = !named.contains_key(&id);
        let semaphore = named.entry(id).or_insert_with(|| LocalSemaphore::new(limit));
        semaphore.resize(limit);
        let semaphore: Arc<dyn Semaphore> = Arc::<LocalSemaphore>::clone(semaphore);
        ready(Ok((semaphore, new))).boxed()
    }

    fn delete(&self, id: &SemaphoreId) -> Fetched<'_, bool> {
        let removed = self.named.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(semaphore) = &removed {
            semaphore.close();
        }
        ready(Ok(removed.is_some())).boxed()
    }

    fn find<'a>(&'a self, id: &'a SemaphoreId) -> Fetched<'a, Option<Arc<dyn Semaphore>>> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let found = named.get(id).cloned().map(|semaphore| semaphore as Arc<dyn Semaphore>);
        ready(Ok(found)).boxed()
    }

    fn all(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let all = named.iter().map(|(id, semaphore)| {
            (id.clone(), Arc::<LocalSemaphore>::clone(semaphore) as Arc<dyn Semaphore>)
        });
        all.collect()
    }

    fn refresh(&self) -> Fetched<'_, ()> {
        ready(Ok(())).boxed()
    }

    fn leased(&self, id: &SemaphoreId) -> usize {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let number = named.get(id).map(|semaphore| semaphore.number());
        drop(named);
        number.map_or(0, |number| self.leases.permits_of(number))
    }
}

impl LeaseStore for LocalStore {
    fn lease(
        &self,
        permit: Permit,
        lease: NewLease,
    ) -> BoxFuture<'static, Result<(Lease, bool), Unleased>> {
        ready(Ok(self.leases.grant(permit, lease))).boxed()
    }

    fn find_lease<'a>(
        &'a self,
        semaphore: &'a Arc<dyn Semaphore>,
        key: &'a str,
    ) -> Fetched<'a, Option<Lease>> {
        ready(Ok(self.leases.find(semaphore, key))).boxed()
    }

    fn renew_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
        ttl: Option<Duration>,
    ) -> Fetched<'a, Result<Lease, NoSuchLease>> {
        ready(Ok(self.leases.renew(semaphore_id, lease_id, ttl))).boxed()
    }

    fn release_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
    ) -> Fetched<'a, Result<(), NoSuchLease>> {
        ready(Ok(self.leases.release(semaphore_id, lease_id))).boxed()
    }

    fn leases<'a>(&'a self, semaphore: &'a Arc<dyn Semaphore>) -> Fetched<'a, Vec<Lease>> {
        ready(Ok(self.leases.of(semaphore))).boxed()
    }
}

impl Store for LocalStore {
    fn budget(
        &self,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<dyn BudgetAdmin> {
        LocalBudget::named(format!("{payer}/{model}").into(), planned, minute)
    }

    fn reach(&self) -> Result<(), StoreUnavailable> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}
