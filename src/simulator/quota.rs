//! The quotas: requests and input tokens per minute and requests per day, each per key and model,
//! and dollars in ten minutes per key.
//!
//! Gemini counts per project and model; here a key is a project. A call counts when it arrives,
//! whatever its outcome; a call refused for a quota does not count.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::meter::{Meter, rest_of_minute};
use super::options::{Counting, Options};
use super::tier::Tier;
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
pub(super) struct QuotaExceeded {
    /// The quotas without room for the call, each with its limit.
    pub violations: Vec<(Quota, u64)>,
    /// How long until the per-minute quotas have room. A per-day violation alone says what is
    /// left of the minute: the recordings carry a short delay there too.
    pub retry_in: Duration,
}

/// What a call asks of the quotas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand<'a> {
    pub key: &'a str,
    pub model: &'a str,
    pub requests: u64,
    pub input_tokens: u64,
    pub tier: Tier,
}

/// The share of a quota that priority calls may use. Source: Gemini API docs, priority inference.
const PRIORITY_SHARE: f64 = 0.3;

/// What every key has used of its quotas.
pub(super) struct Quotas {
    options: Options,
    calendar: Calendar,
    /// By key, then by model.
    accounts: Mutex<HashMap<String, HashMap<String, Account>>>,
    /// By key, in billionths of a dollar.
    spend: Mutex<HashMap<String, Meter>>,
}

impl Quotas {
    /// Quotas of which nothing is used yet.
    pub fn new(options: &Options) -> Self {
        Self::with_calendar(options, Calendar { wall: Timestamp::now(), instant: Instant::now() })
    }

    fn with_calendar(options: &Options, calendar: Calendar) -> Self {
        let (accounts, spend) = (Mutex::default(), Mutex::default());
        Self { options: options.clone(), calendar, accounts, spend }
    }

    /// Counts a call and returns the tier that serves it, or the quotas that have no room for it.
    pub fn admit(&self, demand: &Demand<'_>, now: Instant) -> Result<Tier, QuotaExceeded> {
        if self.is_unlimited() {
            return Ok(demand.tier);
        }
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.get_mut(demand.key).and_then(|models| models.get_mut(demand.model));
        if let Some(account) = account {
            return account.admit(demand, now, self.calendar);
        }
        let models = accounts.entry(demand.key.to_owned()).or_default();
        let account = models.entry(demand.model.to_owned()).or_insert_with(|| self.open_account());
        account.admit(demand, now, self.calendar)
    }

    /// Whether the spend of the last ten minutes leaves room for so many billionths of a dollar.
    pub fn may_spend(&self, key: &str, cost: u64, now: Instant) -> bool {
        self.on_spend(key, |spend| spend.wait(cost.max(1), now).is_zero()).unwrap_or(true)
    }

    /// Adds a cost, in billionths of a dollar, to what a key has spent.
    pub fn spend(&self, key: &str, cost: u64, now: Instant) {
        self.on_spend(key, |spend| spend.take(cost, now));
    }

    /// `None` where spending is unlimited.
    fn on_spend<T>(&self, key: &str, act: impl FnOnce(&mut Meter) -> T) -> Option<T> {
        let limit = (self.options.spend_per_ten_minutes? * 1e9) as u64;
        let ten_minutes = self.options.minute() * 10;
        let start = self.calendar.instant;
        let mut keys = self.spend.lock().unwrap_or_else(PoisonError::into_inner);
        let spend = keys
            .entry(key.to_owned())
            .or_insert_with(|| Meter::new(Counting::SlidingWindow, limit, ten_minutes, start));
        Some(act(spend))
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
        let priority = |limit: u64| meter((limit as f64 * PRIORITY_SHARE) as u64);
        Account {
            requests: self.options.requests_per_minute.map(meter),
            input_tokens: self.options.input_tokens_per_minute.map(meter),
            priority_requests: self.options.requests_per_minute.map(priority),
            priority_input_tokens: self.options.input_tokens_per_minute.map(priority),
            day: self.options.requests_per_day.map(|limit| Day { limit, used: 0, ends: start }),
            minute,
        }
    }
}

/// What one key has used of its quotas for one model.
struct Account {
    requests: Option<Meter>,
    input_tokens: Option<Meter>,
    priority_requests: Option<Meter>,
    priority_input_tokens: Option<Meter>,
    day: Option<Day>,
    minute: Duration,
}

impl Account {
    fn admit(
        &mut self,
        demand: &Demand<'_>,
        now: Instant,
        calendar: Calendar,
    ) -> Result<Tier, QuotaExceeded> {
        let (requests, tokens) = (demand.requests, demand.input_tokens);
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
            return Err(QuotaExceeded { violations, retry_in });
        }
        self.take(requests, tokens, now);
        let downgraded = demand.tier == Tier::Priority && !self.take_priority(demand, now);
        Ok(if downgraded { Tier::Standard } else { demand.tier })
    }

    /// Counts a priority call, unless the priority quotas have no room for it.
    fn take_priority(&mut self, demand: &Demand<'_>, now: Instant) -> bool {
        let mut meters = [
            (&mut self.priority_requests, demand.requests),
            (&mut self.priority_input_tokens, demand.input_tokens),
        ];
        let has_room = |(meter, amount): &mut (&mut Option<Meter>, u64)| {
            meter.as_mut().is_none_or(|meter| meter.wait(*amount, now).is_zero())
        };
        if !meters.iter_mut().all(has_room) {
            return false;
        }
        for (meter, amount) in meters {
            if let Some(meter) = meter {
                meter.take(amount, now);
            }
        }
        true
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
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn requests(counting: Counting, requests_per_minute: u64) -> Quotas {
        Quotas::new(&Options {
            requests_per_minute: Some(requests_per_minute),
            counting,
            ..Options::default()
        })
    }

    fn demand<'a>(key: &'a str, model: &'a str, input_tokens: u64) -> Demand<'a> {
        Demand { key, model, requests: 1, input_tokens, tier: Tier::Standard }
    }

    fn admit(quotas: &Quotas, tokens: u64) -> Result<(), QuotaExceeded> {
        quotas.admit(&demand("key", "gemini-a", tokens), Instant::now()).map(drop)
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
        assert_eq!(quotas.admit(&demand("a", "gemini-a", 1), now), Ok(Tier::Standard));
        assert_eq!(quotas.admit(&demand("a", "gemini-b", 1), now), Ok(Tier::Standard));
        assert_eq!(quotas.admit(&demand("b", "gemini-a", 1), now), Ok(Tier::Standard));
        assert!(quotas.admit(&demand("a", "gemini-a", 1), now).is_err());
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
    async fn priority_calls_above_their_share_are_served_as_standard() {
        let quotas = requests(Counting::SlidingWindow, 10);
        let priority = Demand { tier: Tier::Priority, ..demand("key", "gemini-a", 1) };
        let tiers: Vec<Tier> =
            (0..4).map(|_| quotas.admit(&priority, Instant::now()).expect("room")).collect();
        assert_eq!(tiers, [Tier::Priority, Tier::Priority, Tier::Priority, Tier::Standard]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_key_spends_counts_for_ten_minutes_over_all_models() {
        let options = Options { spend_per_ten_minutes: Some(1e-6), ..Options::default() };
        let quotas = Quotas::new(&options);
        assert!(quotas.may_spend("a", 1000, Instant::now()));
        quotas.spend("a", 1000, Instant::now());
        assert!(!quotas.may_spend("a", 0, Instant::now()));
        assert!(quotas.may_spend("b", 0, Instant::now()));
        tokio::time::advance(599 * SECOND).await;
        assert!(!quotas.may_spend("a", 0, Instant::now()));
        tokio::time::advance(SECOND).await;
        assert!(quotas.may_spend("a", 0, Instant::now()));
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
