//! The names of semaphores, under which several services share them.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;

/// The limits that a named semaphore can have.
pub const NAMED_LIMITS: RangeInclusive<usize> = 1..=1000;

/// The name of a semaphore: 1 to 128 of `[A-Za-z0-9._:-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SemaphoreId(Arc<str>);

/// Why a semaphore cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSemaphore {
    /// The name is empty, too long or holds other characters.
    #[error("a semaphore's id is 1 to 128 of the characters A-Z a-z 0-9 . _ : -")]
    Id,
    /// The limit is outside of [`NAMED_LIMITS`].
    #[error("a semaphore's limit is a whole number from 1 to 1000")]
    Limit,
}

impl SemaphoreId {
    /// Reads a name.
    ///
    /// # Errors
    /// [`InvalidSemaphore::Id`].
    pub fn parse(id: &str) -> Result<Self, InvalidSemaphore> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
            Ok(Self(id.into()))
        } else {
            Err(InvalidSemaphore::Id)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SemaphoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the limit of a named semaphore.
///
/// # Errors
/// [`InvalidSemaphore::Limit`] if it is outside of [`NAMED_LIMITS`].
pub fn parse_limit(limit: i64) -> Result<usize, InvalidSemaphore> {
    let limit = usize::try_from(limit).ok().filter(|limit| NAMED_LIMITS.contains(limit));
    limit.ok_or(InvalidSemaphore::Limit)
}
