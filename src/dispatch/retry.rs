//! Whether and when a failed call is sent again.

use std::time::Duration;

use tokio::time::Instant;

use crate::gemini::{Error, ErrorKind, RefusalScope};

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

/// What became of a call's attempts so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attempts {
    /// How many failed.
    pub failed: usize,
    /// How many of them broke off after something had been written: Gemini may have run those.
    broken_off: usize,
}

/// The kinds of calls that are soon over and change nothing at Gemini. One of these is worth being
/// sent once more although Gemini may have run it, and charged for it. All others are not: a method
/// that nobody here has heard of may paint for a minute, or start a job that is then there twice.
const SHORT: [&str; 9] = [
    "chat",
    "structured_output",
    "cinematic_story_design",
    "generate_content",
    "stream_generate_content",
    "count_tokens",
    "embed_content",
    "openai_chat",
    "openai_embeddings",
];

impl Attempts {
    /// One more has failed.
    pub fn count(&mut self, error: &Error) {
        self.failed += 1;
        self.broken_off += usize::from(error.kind == ErrorKind::BrokenOff);
    }
}

impl RetryPolicy {
    /// The policy with the usual waits: 0.5 s after the first failure, at most 30 s.
    pub fn new(max_attempts: usize, attempt_timeout: Duration) -> Self {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(30));
        Self { max_attempts, attempt_timeout, base, cap }
    }

    /// When to send again a call of a kind that failed so often, this time with `error`; `None`
    /// where another attempt is of no use, one too many, or could have Gemini do the work twice.
    pub(super) fn resend_at(
        &self,
        kind: &str,
        attempts: Attempts,
        error: &Error,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        let may_have_run = matches!(error.kind, ErrorKind::BrokenOff | ErrorKind::DeadlineExceeded);
        let is_too_risky = (may_have_run && !SHORT.contains(&kind)) || attempts.broken_off > 1;
        if attempts.failed >= self.max_attempts || !error.is_transient() || is_too_risky {
            return None;
        }
        // What pauses the whole account is waited for in the queue, where all who were refused keep
        // their turns.
        if let ErrorKind::RateLimited(refusal) = &error.kind
            && matches!(refusal.scope, RefusalScope::PerMinute | RefusalScope::Spend)
        {
            return Some(now);
        }
        // The jitter comes on top of what Gemini says: all who were refused together are told
        // the same moment, and would meet there again.
        let backoff = self.longest(attempts.failed).mul_f64(fastrand::f64());
        Some(now + retry_after.unwrap_or_default() + backoff)
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

    /// When a call is sent again of which so many attempts failed alike.
    fn resend_at(kind: &str, failed: usize, error: &Error) -> Option<Instant> {
        let retry_after = match error.kind {
            ErrorKind::Overloaded(retry_after) => retry_after,
            _ => None,
        };
        let mut attempts = Attempts::default();
        (0..failed).for_each(|_| attempts.count(error));
        policy().resend_at(kind, attempts, error, retry_after, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_again_before_gemini_says() {
        let told = Some(Duration::from_secs(7));
        let error = Error::new(ErrorKind::Overloaded(told), "overloaded");
        for _ in 0..1000 {
            let wait = resend_at("chat", 2, &error).unwrap() - Instant::now();
            assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_secs(8), "{wait:?}");
        }
    }

    #[test]
    fn only_passing_failures_are_sent_again_and_only_so_often() {
        let overloaded = Error::new(ErrorKind::Unavailable, "overloaded");
        assert!(resend_at("chat", 3, &overloaded).is_some());
        assert!(resend_at("chat", 4, &overloaded).is_none());
        for kind in [
            ErrorKind::InvalidKey,
            ErrorKind::InvalidRequest,
            ErrorKind::Malformed,
            ErrorKind::Unfunded,
        ] {
            assert!(resend_at("chat", 1, &Error::new(kind, "no")).is_none());
        }
    }

    #[test]
    fn what_may_have_run_is_sent_once_more_where_that_costs_little_and_else_never() {
        let resent =
            |kind, failed, error| resend_at(kind, failed, &Error::new(error, "")).is_some();
        for kind in SHORT {
            assert!(resent(kind, 1, ErrorKind::BrokenOff), "{kind}");
            assert!(!resent(kind, 2, ErrorKind::BrokenOff), "{kind}");
        }
        for kind in ["predict", "interactions", "other_method", "a_kind_of_tomorrow"] {
            assert!(!resent(kind, 1, ErrorKind::BrokenOff), "{kind}");
            assert!(!resent(kind, 1, ErrorKind::DeadlineExceeded), "{kind}");
            assert!(resent(kind, 3, ErrorKind::Connection), "{kind}: nothing was written");
            assert!(resent(kind, 3, ErrorKind::Overloaded(None)), "{kind}: Gemini did not run it");
        }
    }
}
