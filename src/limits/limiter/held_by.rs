//! Which limit a call waited for the longest.

use std::time::Duration;

use tokio::time::Instant;

/// The limit that a call waited for the longest before it was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// The account's quotas, or what its payer may spend.
    Quota,
    /// The named semaphore.
    Semaphore,
    /// The account's adaptive limit on concurrent calls.
    AdaptiveLimit,
    /// The global limit on concurrent calls.
    ConcurrencyLimit,
}

impl HeldBy {
    /// Its name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Semaphore => "semaphore",
            Self::AdaptiveLimit => "adaptive_limit",
            Self::ConcurrencyLimit => "concurrency_limit",
        }
    }
}

/// The waits of a call for one limit after the other, in milliseconds: it is part of the memory of every
/// waiting call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waits {
    /// How long the call had waited when the latest of the waits ended.
    until: u32,
    longest: u32,
    held_by: Option<HeldBy>,
}

impl Waits {
    /// A wait for this limit has ended, in a call that waits `since` then. One of less than a
    /// millisecond is none.
    pub fn end(&mut self, held_by: HeldBy, since: Instant) {
        let now = millis(since.elapsed());
        let waited = now.saturating_sub(self.until);
        self.until = now;
        if waited > self.longest {
            (self.longest, self.held_by) = (waited, Some(held_by));
        }
    }

    /// The limit that was waited for the longest; `None` if there was no wait.
    pub fn held_by(self) -> Option<HeldBy> {
        self.held_by
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
