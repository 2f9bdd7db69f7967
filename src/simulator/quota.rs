//! The quotas: requests and input tokens per minute and requests per day, each per key and model.
//!
//! Gemini counts per project and model; here a key is a project. A call counts when it arrives,
//! whatever becomes of it afterwards; a call refused for a quota does not count.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::meter::{Meter, rest_of_minute};
use super::options::Options;
use crate::pacific::Calendar;

/// One of the quotas that a call can exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    RequestsPerMinute,
    InputTokensPerMinute,
    RequestsPerDay,
}

impl Quota {
    /// The `quotaId`. The paid tier's token quota and all of the free tier's are recorded; the
    /// paid tier's request quotas are named after them.
    pub fn id(self, free_tier: bool) -> &'static str {
        match (self, free_tier) {
            (Self::RequestsPerMinute, false) => "GenerateRequestsPerMinutePerProjectPerModel",
            (Self::RequestsPerMinute, true) => {
                "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
            }
            (Self::InputTokensPerMinute, false) => {
                "GenerateContentPaidTierInputTokensPerModelPerMinute"
            }
            (Self::InputTokensPerMinute, true) => {
                "GenerateContentInputTokensPerModelPerMinute-FreeTier"
            }
            (Self::RequestsPerDay, false) => "GenerateRequestsPerDayPerProjectPerModel",
            (Self::RequestsPerDay, true) => "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
        }
    }

    /// The `quotaMetric`.
    pub fn metric(self, free_tier: bool) -> &'static str {
        match (self, free_tier) {
            (Self::InputTokensPerMinute, true) => {
                "generativelanguage.googleapis.com/generate_content_free_tier_input_token_count"
            }
            (Self::InputTokensPerMinute, false) => {
                "generativelanguage.googleapis.com/generate_content_paid_tier_input_token_count"
            }
            (_, true) => "generativelanguage.googleapis.com/generate_content_free_tier_requests",
            (Self::RequestsPerMinute, false) => {
                "generativelanguage.googleapis.com/generate_requests_per_model"
            }
            (Self::RequestsPerDay, false) => {
                "generativelanguage.googleapis.com/generate_requests_per_model_per_day"
            }
        }
    }
}

/// Why a call was not admitted.
#[derive(Debug, PartialEq)]
pub(super) struct Exceeded {
    /// The quotas without room for the call, each with its limit.
    pub violations: Vec<(Quota, u64)>,
    /// How long until the per-minute quotas have room. A per-day violation alone says what is
    /// left of the minute: the recordings carry a short delay there too.
    pub retry_in: Duration,
}

/// What every key has used of its quotas.
pub(super) struct Quotas {
    options: Options,
    calendar: Calendar,
    /// By key, then by model.
    accounts: Mutex<HashMap<String, HashMap<String, Account>>>,
}

impl Quotas {
    /// Quotas of which nothing is used yet.
    pub fn new(options: &Options) -> Self {
        Self::with_calendar(options, Calendar { wall: Timestamp::now(), instant: Instant::now() })
    }

    fn with_calendar(options: &Options, calendar: Calendar) -> Self {
        Self { options: options.clone(), calendar, accounts: Mutex::default() }
    }

    /// Counts a call, as so many requests, against the quotas, or says which of them have no room for it.
    pub fn admit(
        &self,
        key: &str,
        model: &str,
        requests: u64,
        input_tokens: u64,
        now: Instant,
    ) -> Result<(), Exceeded> {
        if self.is_unlimited() {
            return Ok(());
        }
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get_mut(key).and_then(|models| models.get_mut(model)) {
            return account.admit(requests, input_tokens, now, self.calendar);
        }
        let models = accounts.entry(key.to_owned()).or_default();
        let account = models.entry(model.to_owned()).or_insert_with(|| self.open_account());
        account.admit(requests, input_tokens, now, self.calendar)
    }

    fn is_unlimited(&self) -> bool {
        let Options { requests_per_minute, input_tokens_per_minute, requests_per_day, .. } =
            &self.options;
        requests_per_minute.is_none()
            && input_tokens_per_minute.is_none()
            && requests_per_day.is_none()
    }

    fn open_account(&self) -> Account {
        let minute = self.options.minute();
        let start = self.calendar.instant;
        let meter = |limit: u64| Meter::new(self.options.counting, limit, minute, start);
        Account {
            requests: self.options.requests_per_minute.map(meter),
            input_tokens: self.options.input_tokens_per_minute.map(meter),
            day: self.options.requests_per_day.map(|limit| Day { limit, used: 0, ends: start }),
            minute,
        }
    }
}

/// What one key has used of its quotas for one model.
struct Account {
    requests: Option<Meter>,
    input_tokens: Option<Meter>,
    day: Option<Day>,
    minute: Duration,
}

impl Account {
    fn admit(
        &mut self,
        requests: u64,
        tokens: u64,
        now: Instant,
        calendar: Calendar,
    ) -> Result<(), Exceeded> {
        let mut violations = Vec::new();
        let mut retry_in = Duration::ZERO;
        let meters = [
            (Quota::RequestsPerMinute, &mut self.requests, requests),
            (Quota::InputTokensPerMinute, &mut self.input_tokens, tokens),
        ];
        for (quota, meter, amount) in meters {
            let Some(meter) = meter else { continue };
            let wait = meter.wait(amount, now);
            if !wait.is_zero() {
                violations.push((quota, meter.limit));
                retry_in = retry_in.max(wait);
            }
        }
        if let Some(day) = &mut self.day
            && !day.has_room(requests, now, calendar)
        {
            violations.push((Quota::RequestsPerDay, day.limit));
            retry_in = retry_in.max(rest_of_minute(calendar.instant, now, self.minute));
        }
        if !violations.is_empty() {
            return Err(Exceeded { violations, retry_in });
        }
        self.take(requests, tokens, now);
        Ok(())
    }

    fn take(&mut self, requests: u64, tokens: u64, now: Instant) {
        if let Some(meter) = &mut self.requests {
            meter.take(requests, now);
        }
        if let Some(meter) = &mut self.input_tokens {
            meter.take(tokens, now);
        }
        if let Some(day) = &mut self.day {
            day.used += requests;
        }
    }
}

/// A per-day quota and what is used of it.
struct Day {
    limit: u64,
    used: u64,
    ends: Instant,
}

impl Day {
    fn has_room(&mut self, requests: u64, now: Instant, calendar: Calendar) -> bool {
        if now >= self.ends {
            self.used = 0;
            self.ends = calendar.midnight_after(now);
        }
        self.used + requests <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Counting;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn requests(counting: Counting, requests_per_minute: u64) -> Quotas {
        Quotas::new(&Options {
            requests_per_minute: Some(requests_per_minute),
            counting,
            ..Options::default()
        })
    }

    fn admit(quotas: &Quotas, tokens: u64) -> Result<(), Exceeded> {
        quotas.admit("key", "gemini-a", 1, tokens, Instant::now())
    }

    fn wait(quotas: &Quotas, tokens: u64) -> Duration {
        admit(quotas, tokens).expect_err("a quota is exceeded").retry_in
    }

    #[tokio::test(start_paused = true)]
    async fn a_sliding_window_frees_each_request_a_minute_after_it_came() {
        let quotas = requests(Counting::SlidingWindow, 2);
        assert_eq!(admit(&quotas, 1), Ok(()));
        tokio::time::advance(40 * SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(wait(&quotas, 1), 20 * SECOND);
        tokio::time::advance(20 * SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(wait(&quotas, 1), 40 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_minute_starts_afresh() {
        let quotas = requests(Counting::FixedMinute, 2);
        tokio::time::advance(59 * SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(wait(&quotas, 1), SECOND);
        tokio::time::advance(SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_bucket_saves_up_what_a_second_brings() {
        let quotas = requests(Counting::TokenBucket, 120);
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(wait(&quotas, 1), SECOND / 2);
        tokio::time::advance(SECOND / 2).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
        tokio::time::advance(3600 * SECOND).await;
        assert_eq!((0..9).filter(|_| admit(&quotas, 1).is_ok()).count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_larger_than_the_bucket_leaves_a_debt() {
        let quotas = Quotas::new(&Options {
            input_tokens_per_minute: Some(600),
            counting: Counting::TokenBucket,
            ..Options::default()
        });
        assert_eq!(admit(&quotas, 110), Ok(()));
        assert_eq!(wait(&quotas, 10), 11 * SECOND);
        tokio::time::advance(11 * SECOND).await;
        assert_eq!(admit(&quotas, 110), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_larger_than_the_whole_quota_is_refused_for_ever() {
        for counting in [Counting::SlidingWindow, Counting::FixedMinute, Counting::TokenBucket] {
            let quotas = Quotas::new(&Options {
                input_tokens_per_minute: Some(600),
                counting,
                ..Options::default()
            });
            for _ in 0..3 {
                assert_eq!(wait(&quotas, 601), 60 * SECOND);
                tokio::time::advance(60 * SECOND).await;
            }
            assert_eq!(admit(&quotas, 600), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_minute_can_be_shortened() {
        let quotas = Quotas::new(&Options {
            requests_per_minute: Some(1),
            minute_seconds: 0.5,
            ..Options::default()
        });
        assert_eq!(admit(&quotas, 1), Ok(()));
        assert_eq!(wait(&quotas, 1), SECOND / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_and_models_are_counted_apart() {
        let quotas = requests(Counting::SlidingWindow, 1);
        let now = Instant::now();
        assert_eq!(quotas.admit("a", "gemini-a", 1, 1, now), Ok(()));
        assert_eq!(quotas.admit("a", "gemini-b", 1, 1, now), Ok(()));
        assert_eq!(quotas.admit("b", "gemini-a", 1, 1, now), Ok(()));
        assert!(quotas.admit("a", "gemini-a", 1, 1, now).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_call_does_not_count() {
        let quotas = Quotas::new(&Options {
            requests_per_minute: Some(1),
            input_tokens_per_minute: Some(100),
            ..Options::default()
        });
        assert_eq!(
            admit(&quotas, 101).expect_err("too many tokens").violations,
            [(Quota::InputTokensPerMinute, 100)]
        );
        assert_eq!(admit(&quotas, 100), Ok(()));
        let both = [(Quota::RequestsPerMinute, 1), (Quota::InputTokensPerMinute, 100)];
        assert_eq!(admit(&quotas, 1).expect_err("both are used up").violations, both);
    }

    #[tokio::test(start_paused = true)]
    async fn the_day_ends_at_midnight_in_los_angeles() {
        // One minute before the clocks go back: a day of 25 hours follows.
        let wall = "2026-10-31T23:59:00-07:00".parse().expect("a valid timestamp");
        let options = Options { requests_per_day: Some(1), ..Options::default() };
        let quotas = Quotas::with_calendar(&options, Calendar { wall, instant: Instant::now() });
        assert_eq!(admit(&quotas, 1), Ok(()));
        let refused = admit(&quotas, 1).expect_err("the day's only request is used");
        assert_eq!(refused.violations, [(Quota::RequestsPerDay, 1)]);
        assert!(refused.retry_in <= 60 * SECOND);
        tokio::time::advance(60 * SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
        tokio::time::advance(25 * 3600 * SECOND - SECOND).await;
        assert!(admit(&quotas, 1).is_err());
        tokio::time::advance(SECOND).await;
        assert_eq!(admit(&quotas, 1), Ok(()));
    }
}
