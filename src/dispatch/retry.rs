//! Whether and when a failed call is resent.

use std::time::Duration;

use tokio::time::Instant;

use super::CallKind;
use super::kind::Resend;
use crate::gemini::{Error, ErrorKind, RefusalScope, ServiceTier};

/// How often and for how long Gemini is asked. Retries wait with exponential backoff and full jitter,
/// never less than Gemini says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many times a call is sent at most; at least 1.
    pub max_attempts: usize,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
    /// The same for a flex call.
    pub flex_timeout: Duration,
    /// How many calls continue an answer that Gemini stops before its end, at most.
    pub max_continuations: usize,
    /// The longest wait after the first failure. It doubles with each further one.
    pub base: Duration,
    /// The longest wait after any failure.
    pub cap: Duration,
}

/// The attempts at a call that failed so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FailedAttempts {
    /// How many failed.
    pub all: usize,
    /// How many of them broke off after something had been written, so that Gemini may have run
    /// the call.
    broken_off: usize,
    /// How many of them were flex calls that found no capacity, which use up no attempt.
    without_capacity: usize,
}

impl FailedAttempts {
    /// Counts one more.
    pub(super) fn count(&mut self, tier: ServiceTier, error: &Error) {
        self.all += 1;
        // Gemini has capacity for flex calls again within minutes, and the caller is prepared to wait.
        let is_overload = matches!(error.kind, ErrorKind::Overloaded(_));
        self.without_capacity += usize::from(tier == ServiceTier::Flex && is_overload);
        self.broken_off += usize::from(error.kind == ErrorKind::BrokenOff);
    }
}

impl RetryPolicy {
    /// The policy with 15 minutes for a flex attempt, at most 8 continuations and the usual waits: 0.5 s after the first failure, at
    /// most 30 s.
    pub fn new(max_attempts: usize, attempt_timeout: Duration) -> Self {
        Self {
            max_attempts,
            attempt_timeout,
            flex_timeout: Duration::from_secs(900),
            max_continuations: 8,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
        }
    }

    /// How long one attempt at a call in this tier may take.
    pub(super) fn attempt_timeout_of(&self, tier: ServiceTier) -> Duration {
        match tier {
            ServiceTier::Flex => self.flex_timeout,
            ServiceTier::Standard | ServiceTier::Priority => self.attempt_timeout,
        }
    }

    /// When to resend a call after the latest of its `failed` attempts, which ended with `error`.
    /// `None` where another attempt is useless, is one too many, or could make Gemini do the work
    /// twice.
    pub(super) fn resend_at(
        &self,
        kind: CallKind,
        failed: FailedAttempts,
        error: &Error,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        let may_have_run = matches!(error.kind, ErrorKind::BrokenOff | ErrorKind::DeadlineExceeded);
        let is_too_risky =
            (may_have_run && kind.resend() == Resend::Never) || failed.broken_off > 1;
        let counted = failed.all - failed.without_capacity;
        if counted >= self.max_attempts || !error.is_transient() || is_too_risky {
            return None;
        }
        // A pause of the whole account is waited for in the queue, where the refused calls keep
        // their order.
        if let ErrorKind::RateLimited(refusal) = &error.kind
            && matches!(refusal.scope, RefusalScope::PerMinute | RefusalScope::Spend)
        {
            return Some(now);
        }
        // Jitter is added to what Gemini says: calls that were refused together are told the same
        // moment, and would collide there again.
        let backoff = self.longest(failed.all).mul_f64(fastrand::f64());
        Some(now + retry_after.unwrap_or_default() + backoff)
    }

    /// The longest wait after so many failed attempts; at least one.
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
    fn the_longest_wait_doubles_up_to_the_cap() {
        let longest = |attempt| policy().longest(attempt).as_millis();
        assert_eq!([longest(1), longest(2), longest(3), longest(6)], [500, 1000, 2000, 16_000]);
        assert_eq!([longest(7), longest(100)], [30_000, 30_000]);
    }

    /// When a call is resent after so many attempts that failed in the same way.
    fn resend_at(kind: CallKind, failed: usize, error: &Error) -> Option<Instant> {
        let retry_after = match error.kind {
            ErrorKind::Overloaded(retry_after) => retry_after,
            _ => None,
        };
        let mut attempts = FailedAttempts::default();
        (0..failed).for_each(|_| attempts.count(ServiceTier::Standard, error));
        policy().resend_at(kind, attempts, error, retry_after, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_waits_as_long_as_gemini_says() {
        let told = Some(Duration::from_secs(7));
        let error = Error::new(ErrorKind::Overloaded(told), "overloaded");
        for _ in 0..1000 {
            let wait = resend_at(CallKind::Chat, 2, &error).unwrap() - Instant::now();
            assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_secs(8), "{wait:?}");
        }
    }

    #[test]
    fn only_transient_errors_are_retried_up_to_the_maximum_of_attempts() {
        let overloaded = Error::new(ErrorKind::Unavailable, "overloaded");
        assert!(resend_at(CallKind::Chat, 3, &overloaded).is_some());
        assert!(resend_at(CallKind::Chat, 4, &overloaded).is_none());
        for kind in [
            ErrorKind::InvalidKey,
            ErrorKind::InvalidRequest,
            ErrorKind::Malformed,
            ErrorKind::Unfunded,
        ] {
            assert!(resend_at(CallKind::Chat, 1, &Error::new(kind, "no")).is_none());
        }
    }

    #[test]
    fn a_flex_call_that_finds_no_capacity_uses_up_no_attempt() {
        let mut attempts = FailedAttempts::default();
        let resent = |attempts, error: &Error| {
            policy().resend_at(CallKind::Chat, attempts, error, None, Instant::now()).is_some()
        };
        let full = Error::new(ErrorKind::Overloaded(None), "full");
        (0..100).for_each(|_| attempts.count(ServiceTier::Flex, &full));
        assert!(resent(attempts, &full));
        let failed = Error::new(ErrorKind::Unavailable, "failed");
        (0..3).for_each(|_| attempts.count(ServiceTier::Flex, &failed));
        assert!(resent(attempts, &full));
        attempts.count(ServiceTier::Flex, &failed);
        assert!(!resent(attempts, &full));
    }

    #[test]
    fn a_call_that_gemini_may_have_run_is_resent_once_if_it_is_short_and_never_otherwise() {
        let resent =
            |kind, failed, error| resend_at(kind, failed, &Error::new(error, "")).is_some();
        for kind in [
            CallKind::Chat,
            CallKind::StructuredOutput,
            CallKind::CinematicStoryDesign,
            CallKind::GenerateContent,
            CallKind::StreamGenerateContent,
            CallKind::CountTokens,
            CallKind::EmbedContent,
            CallKind::OpenAiChat,
            CallKind::OpenAiEmbeddings,
        ] {
            assert!(resent(kind, 1, ErrorKind::BrokenOff), "{kind:?}");
            assert!(!resent(kind, 2, ErrorKind::BrokenOff), "{kind:?}");
        }
        for kind in [
            CallKind::Predict,
            CallKind::BatchGenerateContent,
            CallKind::AsyncBatchEmbedContent,
            CallKind::Interaction,
            CallKind::Decision,
            CallKind::Voice,
            CallKind::OtherMethod,
            CallKind::OtherStream,
            CallKind::OpenAiBatch,
            CallKind::OpenAiOther,
        ] {
            assert!(!resent(kind, 1, ErrorKind::BrokenOff), "{kind:?}");
            assert!(!resent(kind, 1, ErrorKind::DeadlineExceeded), "{kind:?}");
            assert!(resent(kind, 3, ErrorKind::Connection), "{kind:?}: nothing was written");
            let overloaded = ErrorKind::Overloaded(None);
            assert!(resent(kind, 3, overloaded), "{kind:?}: Gemini did not run it");
        }
    }
}
