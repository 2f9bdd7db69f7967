//! Semaphores that have a name, so that several services can share one.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

use super::semaphore::Semaphore;

/// The name of a semaphore: 1 to 128 of `[A-Za-z0-9._:-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SemaphoreId(Arc<str>);

/// What a semaphore was asked to be, and cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSemaphore {
    /// The name is empty, too long or holds other characters.
    #[error("a semaphore's id is 1 to 128 of the characters A-Z a-z 0-9 . _ : -")]
    Id,
    /// The limit is out of [`NamedSemaphores::LIMITS`].
    #[error("a semaphore's limit is a whole number from 1 to 1000")]
    Limit,
}

impl SemaphoreId {
    /// Reads a name.
    ///
    /// # Errors
    /// [`InvalidSemaphore::Id`] where it is none.
    pub fn parse(id: &str) -> Result<Self, InvalidSemaphore> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
            Ok(Self(id.into()))
        } else {
            Err(InvalidSemaphore::Id)
        }
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SemaphoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The semaphores that exist now, by name.
#[derive(Debug, Default)]
pub struct NamedSemaphores(RwLock<BTreeMap<SemaphoreId, Arc<Semaphore>>>);

impl NamedSemaphores {
    /// The limits a named semaphore can have.
    pub const LIMITS: RangeInclusive<usize> = 1..=1000;

    /// Creates a semaphore, or changes the limit of the one of that name. With it comes whether
    /// it is new.
    ///
    /// # Errors
    /// [`InvalidSemaphore::Limit`] where the limit is out of [`Self::LIMITS`]; nothing changes then.
    pub fn register(
        &self,
        id: SemaphoreId,
        limit: usize,
    ) -> Result<(Arc<Semaphore>, bool), InvalidSemaphore> {
        if !Self::LIMITS.contains(&limit) {
            return Err(InvalidSemaphore::Limit);
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = all.get(&id) {
            semaphore.resize(limit);
            return Ok((Arc::clone(semaphore), false));
        }
        let semaphore = Semaphore::new(limit);
        all.insert(id, Arc::clone(&semaphore));
        Ok((semaphore, true))
    }

    /// Deletes a semaphore: those who wait for it learn so, those who hold it finish. False
    /// where there is none of that name.
    pub fn delete(&self, id: &SemaphoreId) -> bool {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(semaphore) = &removed {
            semaphore.close();
        }
        removed.is_some()
    }

    /// The semaphore of that name.
    pub fn get(&self, id: &SemaphoreId) -> Option<Arc<Semaphore>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<(SemaphoreId, Arc<Semaphore>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(id, semaphore)| (id.clone(), Arc::clone(semaphore))).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}
