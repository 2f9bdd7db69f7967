//! Limits that are kept in this process.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::leases::LocalLeases;
use super::{Fetched, NewLease, Store, Unleased};
use crate::limits::account::Payer;
use crate::limits::budget::{Budget, LocalBudget};
use crate::limits::lease::{Lease, NoSuchLease};
use crate::limits::named::SemaphoreId;
use crate::limits::plan::PlannedQuotas;
use crate::limits::semaphore::{LocalSemaphore, Permit, Semaphore, StoreUnavailable};

/// The semaphores of this process, and their leases.
#[derive(Debug)]
pub struct LocalStore {
    global: Arc<LocalSemaphore>,
    named: RwLock<BTreeMap<SemaphoreId, Arc<LocalSemaphore>>>,
    leases: Arc<LocalLeases>,
}

impl LocalStore {
    /// A store whose global semaphore has so many permits.
    pub fn new(limit: usize) -> Arc<Self> {
        let global = LocalSemaphore::new(limit);
        Arc::new(Self { global, named: RwLock::default(), leases: Arc::default() })
    }
}

impl Store for LocalStore {
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

    fn named(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let all = named.iter().map(|(id, semaphore)| {
            (id.clone(), Arc::<LocalSemaphore>::clone(semaphore) as Arc<dyn Semaphore>)
        });
        all.collect()
    }

    fn refresh(&self) -> Fetched<'_, ()> {
        ready(Ok(())).boxed()
    }

    fn budget(
        &self,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<dyn Budget> {
        LocalBudget::named(format!("{payer}/{model}").into(), planned, minute)
    }

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
