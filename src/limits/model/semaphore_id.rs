//! The names of semaphores, under which several services share them.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;

use super::Payer;

/// The limits that a named semaphore can have.
pub const NAMED_LIMITS: RangeInclusive<usize> = 1..=1000;

/// The prefix of the semaphores that hold enqueued tokens. No client can name one: `/` is not allowed
/// in its names.
const ENQUEUED: &str = "enqueued/";

/// The name of a semaphore: 1 to 128 of `[A-Za-z0-9._:-]`, or one of the service's own. `.` and `..` are
/// none, because clients resolve them in paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SemaphoreId(Arc<str>);

/// Why a semaphore cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSemaphore {
    /// The name is empty, too long, holds other characters, or is `.` or `..`.
    #[error("a semaphore's id is 1 to 128 of the characters A-Z a-z 0-9 . _ : - and not . or ..")]
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
        let is_step = matches!(id, "." | "..");
        if (1..=128).contains(&id.len()) && id.bytes().all(allowed) && !is_step {
            Ok(Self(id.into()))
        } else {
            Err(InvalidSemaphore::Id)
        }
    }

    /// Reads a name in the store, which has the service's own semaphores too.
    pub(in crate::limits) fn read(id: &str) -> Result<Self, InvalidSemaphore> {
        if id.starts_with(ENQUEUED) { Ok(Self(id.into())) } else { Self::parse(id) }
    }

    /// The semaphore whose permits are the enqueued tokens of a payer and a model.
    pub(in crate::limits) fn enqueued(payer: &Payer, model: &str) -> Self {
        Self(format!("{ENQUEUED}{}/{model}", payer.whole_name()).into())
    }

    /// Whether its permits are enqueued tokens.
    pub(in crate::limits) fn is_enqueued(&self) -> bool {
        self.0.starts_with(ENQUEUED)
    }

    /// Whether its permits are enqueued tokens of a payer.
    pub(in crate::limits) fn is_enqueued_by(&self, payer: &Payer) -> bool {
        let rest = self.0.strip_prefix(ENQUEUED);
        let rest = rest.and_then(|rest| rest.strip_prefix(&*payer.whole_name()));
        rest.is_some_and(|rest| rest.starts_with('/'))
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
