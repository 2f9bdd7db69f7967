//! Whether and when a failed call is sent again.

use std::time::Duration;

use tokio::time::Instant;

use crate::gemini::{Error, ErrorKind, Scope};

/// Exponential backoff with full jitter, never sooner than Gemini says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a call is sent in all; at least 1.
    pub max_attempts: usize,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
    /// The longest wait after the first failure; it doubles with each further one.
    pub base: Duration,
    /// The longest wait after any failure.
    pub cap: Duration,
}

impl RetryPolicy {
    /// The policy with the usual waits: 0.5 s after the first failure, at most 30 s.
    pub fn new(max_attempts: usize, attempt_timeout: Duration) -> Self {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(30));
        Self { max_attempts, attempt_timeout, base, cap }
    }

    /// When to send again a call that failed for the `attempt`-th time, counted from 1; `None`
    /// where another attempt is of no use or one too many.
    pub(super) fn resend_at(
        &self,
        attempt: usize,
        error: &Error,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        if attempt >= self.max_attempts || !error.is_passing() {
            return None;
        }
        // A used-up minute is waited for in the queue, where all who were refused keep their turns.
        if let ErrorKind::RateLimited(refusal) = &error.kind
            && refusal.scope == Scope::PerMinute
        {
            return Some(now);
        }
        // The jitter comes on top of what Gemini says: all who were refused together are told
        // the same moment, and would meet there again.
        Some(now + retry_after.unwrap_or_default() + self.longest(attempt).mul_f64(fastrand::f64()))
    }

    fn longest(&self, attempt: usize) -> Duration {
        let doublings = u32::try_from(attempt - 1).unwrap_or(u32::MAX);
        self.base.saturating_mul(2_u32.saturating_pow(doublings)).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(4, Duration::from_secs(1))
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let longest = |attempt| policy().longest(attempt).as_millis();
        assert_eq!([longest(1), longest(2), longest(3), longest(6)], [500, 1000, 2000, 16_000]);
        assert_eq!([longest(7), longest(100)], [30_000, 30_000]);
    }

    #[test]
    fn nothing_is_sent_again_before_gemini_says() {
        let error = Error::new(ErrorKind::Unavailable, "overloaded");
        let now = Instant::now();
        for _ in 0..1000 {
            let at = policy().resend_at(2, &error, Some(Duration::from_secs(7)), now).unwrap();
            let wait = at - now;
            assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_secs(8), "{wait:?}");
        }
    }

    #[test]
    fn only_passing_failures_are_sent_again_and_only_so_often() {
        let now = Instant::now();
        let overloaded = Error::new(ErrorKind::Unavailable, "overloaded");
        assert!(policy().resend_at(3, &overloaded, None, now).is_some());
        assert!(policy().resend_at(4, &overloaded, None, now).is_none());
        for kind in [ErrorKind::InvalidKey, ErrorKind::InvalidRequest, ErrorKind::Malformed] {
            assert!(policy().resend_at(1, &Error::new(kind, "no"), None, now).is_none());
        }
    }
}
