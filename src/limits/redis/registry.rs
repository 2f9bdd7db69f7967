//! The shared semaphores that this replica knows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::command::{Command, GLOBAL, Registered, SemaphoreGeneration};
use super::link::Link;
use super::reply::{Deleted, TouchedSemaphore};
use super::semaphore::SharedSemaphore;
use crate::limits::model::SemaphoreId;

/// The global semaphore and the named ones.
#[derive(Debug)]
pub(super) struct Registry {
    link: Arc<Link>,
    /// The limit of the global semaphore in this process's settings.
    limit: AtomicUsize,
    pub global: Arc<SharedSemaphore>,
    named: RwLock<Named>,
}

type Named = BTreeMap<SemaphoreId, Arc<SharedSemaphore>>;

impl Registry {
    pub fn new(link: Arc<Link>, limit: usize) -> Arc<Self> {
        let global = SharedSemaphore::new(Arc::clone(&link), GLOBAL, limit);
        Arc::new(Self { link, limit: limit.into(), global, named: RwLock::default() })
    }

    /// The limit of the global semaphore in this process's settings.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Notes a new limit of the global semaphore in this process's settings.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub fn find(&self, id: &SemaphoreId) -> Option<Arc<SharedSemaphore>> {
        self.named().get(id).filter(|known| !known.is_deleted()).cloned()
    }

    pub fn all(&self) -> Vec<(SemaphoreId, Arc<SharedSemaphore>)> {
        self.named().iter().map(|(id, semaphore)| (id.clone(), Arc::clone(semaphore))).collect()
    }

    /// The named semaphores, to restore them if Redis has lost them.
    pub fn known(&self) -> Vec<Registered> {
        let known = |(id, semaphore): (&SemaphoreId, &Arc<SharedSemaphore>)| Registered {
            name: id.as_str().to_owned(),
            semaphore: semaphore.generation(),
            limit: semaphore.limit(),
        };
        self.named().iter().map(known).collect()
    }

    /// The commands that tell Redis the limits in the settings of this process.
    pub fn settings(&self) -> Vec<Command> {
        let named = self.named();
        let limited = named.iter().filter_map(|(id, semaphore)| Some((id, semaphore.setting()?)));
        let command = |(id, limit): (&SemaphoreId, usize)| Command::Register {
            name: id.as_str().to_owned(),
            limit,
            of_setting: true,
        };
        limited.map(command).collect()
    }

    /// Replaces the named semaphores by a complete list.
    pub fn replace(&self, all: Vec<Registered>) {
        let mut named = self.named_mut();
        let mut known = std::mem::take(&mut *named);
        for registered in all {
            if let Ok(id) = SemaphoreId::read(&registered.name) {
                let semaphore = self.same_or_new(known.remove(&id), &registered);
                named.insert(id, semaphore);
            }
        }
    }

    /// Adds a semaphore or updates a known one.
    pub fn register(&self, registered: Registered) -> Option<Arc<SharedSemaphore>> {
        let id = SemaphoreId::read(&registered.name).ok()?;
        let mut named = self.named_mut();
        let semaphore = self.same_or_new(named.remove(&id), &registered);
        named.insert(id, Arc::clone(&semaphore));
        Some(semaphore)
    }

    pub fn remove(&self, deleted: &Deleted) {
        let Ok(id) = SemaphoreId::read(&deleted.name) else { return };
        let mut named = self.named_mut();
        if named.get(&id).is_some_and(|known| known.generation() == deleted.semaphore) {
            named.remove(&id);
        }
    }

    /// Updates the usage of the semaphores that a call touched.
    pub fn update_usage(&self, touched: &BTreeMap<SemaphoreGeneration, TouchedSemaphore>) {
        let named = self.named();
        for semaphore in named.values().chain([&self.global]) {
            if let Some(usage) = touched.get(&semaphore.generation()) {
                semaphore.set_usage(*usage);
            }
        }
    }

    /// The known semaphore if it has the registered generation, or a new one.
    fn same_or_new(
        &self,
        known: Option<Arc<SharedSemaphore>>,
        registered: &Registered,
    ) -> Arc<SharedSemaphore> {
        let Registered { semaphore: generation, limit, .. } = *registered;
        let same = known.filter(|known| known.generation() == generation);
        let semaphore =
            same.unwrap_or_else(|| SharedSemaphore::new(Arc::clone(&self.link), generation, limit));
        semaphore.set_limit(limit);
        semaphore
    }

    fn named(&self) -> RwLockReadGuard<'_, Named> {
        self.named.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn named_mut(&self) -> RwLockWriteGuard<'_, Named> {
        self.named.write().unwrap_or_else(PoisonError::into_inner)
    }
}
