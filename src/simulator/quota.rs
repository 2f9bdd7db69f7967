//! The quotas: requests and input tokens per minute and requests per day, each per key and model,
//! and dollars in ten minutes per key.
//!
//! Gemini counts per project and model; here a key is a project. A call counts when it arrives,
//! whatever its outcome; a call refused for a quota does not count.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::meter::{Meter, rest_of_minute};
use super::options::{Counting, Options};
use super::tier::ServiceTier;
use crate::pacific::Calendar;

/// One of the quotas that a call can exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    RequestsPerMinute,
    InputTokensPerMinute,
    RequestsPerDay,
}

impl Quota {
    /// The `quotaId`. Those of the free tier and the paid token quota are recorded; the names of the
    /// paid request quotas are inferred.
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
    /// The exhausted quotas, each with its limit.
    pub violations: Vec<(Quota, u64)>,
    /// How long until the per-minute quotas have room. For a per-day violation alone it is the rest of
    /// the minute, because recorded ones have a short delay too.
    pub retry_in: Duration,
}

/// What a call asks of the quotas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand<'a> {
    pub key: &'a str,
    pub model: &'a str,
    pub requests: u64,
    pub input_tokens: u64,
    pub tier: ServiceTier,
}

/// The share of a quota that priority calls may use. Source: Gemini API docs, priority inference.
const PRIORITY_SHARE: f64 = 0.3;

/// The quotas of all keys.
pub(super) struct KeyQuotas {
    options: Options,
    calendar: Calendar,
    /// By key, then by model.
    accounts: Mutex<HashMap<String, HashMap<String, Account>>>,
    /// By key, in billionths of a dollar.
    spend: Mutex<HashMap<String, Meter>>,
}

impl KeyQuotas {
    /// Unused quotas.
    pub fn new(options: &Options) -> Self {
        Self::with_calendar(options, Calendar { wall: Timestamp::now(), instant: Instant::now() })
    }

    fn with_calendar(options: &Options, calendar: Calendar) -> Self {
        let (accounts, spend) = (Mutex::default(), Mutex::default());
        Self { options: options.clone(), calendar, accounts, spend }
    }

    /// Counts a call and returns the tier that serves it, or the quotas that have no room for it.
    pub fn admit(&self, demand: &Demand<'_>, now: Instant) -> Result<ServiceTier, QuotaExceeded> {
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

/// The quotas of one key for one model.
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
    ) -> Result<ServiceTier, QuotaExceeded> {
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
        let downgraded = demand.tier == ServiceTier::Priority && !self.take_priority(demand, now);
        Ok(if downgraded { ServiceTier::Standard } else { demand.tier })
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

/// A per-day quota and its usage.
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
