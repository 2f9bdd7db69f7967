//! The accounts in the history: the usage of their quotas, and what holds them back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Window;
use crate::limits::{
    Account, AdaptiveLimit, BudgetUsage, Capacity, Limiter, PerKind, QuotaKind, QuotaUsage,
    Semaphore as _, SemaphoreUsage, Source, Spending, StoreUnavailable, Tripped,
};

/// How many accounts the history keeps. Those that Gemini has accepted and that were used last come first.
pub const MAX_ACCOUNTS: usize = 64;

/// How many aliases of a model are named.
const MAX_ALIASES: usize = 8;

/// A key, or a label that several keys share, with a model, at its last sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountState {
    /// The key's label, or the first 8 hex digits of its SHA-256, as `/_admin/limits` shows it.
    pub payer: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// Other models that were asked for and whose calls Gemini charges to this one. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Arc<str>>,
    /// When the sample was taken.
    pub at: Timestamp,
    /// Each quota: what is used, what is reserved, the limit if there is one. With shared limits, those are
    /// of all replicas.
    #[serde(with = "quota_usages")]
    pub quotas: PerKind<QuotaUsage>,
    /// Where each limit comes from.
    pub sources: PerKind<Option<Source>>,
    /// How many requests wait for these quotas.
    pub waiting: u64,
    /// When the quotas would admit a small request that arrives now; `None` for never.
    pub next_slot_at: Option<Timestamp>,
    /// Why nothing is sent, and until when; `None` if calls are sent.
    pub paused: Option<Paused>,
    /// The adaptive limit on concurrent calls, flex calls aside.
    pub concurrency: Concurrency,
    /// The same for flex calls.
    pub flex_concurrency: Concurrency,
}

/// Why no call of an account is sent, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Until when, or until the next probe. `None` if the next call is the probe.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: PauseReason,
}

/// Why no call of an account is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Gemini refused a call for this quota, if it is known which.
    Refused(Option<QuotaKind>),
    /// Gemini says that the quota of the day is used up.
    DayUsedUp,
    /// Gemini says that the payer has no funds.
    Unfunded,
    /// Gemini says that a quota of the account is 0.
    NoQuota,
}

impl PauseReason {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::DayUsedUp => "day_used_up",
            Self::Unfunded => "unfunded",
            Self::NoQuota => "no_quota",
        }
    }
}

/// An adaptive limit. Each replica has its own: their limits and calls are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Concurrency {
    /// The current limit. Gemini's refusals for load lower it, successful calls raise it.
    pub limit: usize,
    /// The highest limit.
    pub ceiling: usize,
    /// How many calls are admitted.
    pub in_use: usize,
    /// How many calls wait for this limit.
    pub waiting: usize,
    /// The limit at which Gemini last refused for load, while the search stays below it.
    pub broke_at: Option<usize>,
}

/// What a payer with a limit on its spend has spent on all models in the last ten minutes. With shared
/// limits, on all replicas.
#[derive(Debug, Clone, PartialEq)]
pub struct PayerState {
    /// The key's label, or the first 8 hex digits of its SHA-256.
    pub payer: Arc<str>,
    /// The limit, what is used and what is reserved, in billionths of a US dollar.
    pub spend: QuotaUsage,
    /// How many requests wait for the limit.
    pub waiting: u64,
    /// Until when nothing is sent because Gemini refused a call for the spend.
    pub paused_until: Option<Timestamp>,
}

/// The past of an account.
#[derive(Debug, Clone)]
pub struct AccountSeries {
    /// The window.
    pub window: Window,
    /// The points, oldest first. There is none for times in which the account was unknown.
    pub points: Vec<AccountPoint>,
}

/// An account in an interval. Numbers are exact to 7 digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccountPoint {
    /// When the interval ended.
    pub at: Timestamp,
    /// Its length.
    pub duration: Duration,
    /// What counted of each quota, sent or reserved: the most in the interval.
    pub used: PerKind<f64>,
    /// The limit of each quota, if it has one.
    pub limits: PerKind<Option<f64>>,
    /// The adaptive limit: the lowest in the interval.
    pub concurrency_limit: usize,
    /// The calls admitted: the most in the interval.
    pub in_use: usize,
    /// Whether nothing was sent at some moment of the interval.
    pub paused: bool,
}

/// A later time. Redis may report any duration.
fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The accounts of this process that Gemini has accepted.
///
/// # Errors
/// [`StoreUnavailable`] if the limits are shared and cannot be reached.
pub(super) async fn sample(
    limiter: &Limiter,
    at: Timestamp,
) -> Result<Vec<AccountState>, StoreUnavailable> {
    let mut charged: Vec<(Arc<Account>, Vec<Arc<str>>)> = Vec::new();
    for account in limiter.accounts().proven(MAX_ACCOUNTS) {
        let real = account.charged();
        let alias = (!Arc::ptr_eq(&real, &account)).then(|| Arc::from(account.model()));
        match charged.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &real)) {
            Some((_, aliases)) => aliases.extend(alias),
            None => charged.push((real, alias.into_iter().collect())),
        }
    }
    let states = charged.into_iter().map(async |(account, mut aliases)| {
        let (planned, usage) = account.quotas().await?;
        aliases.truncate(MAX_ALIASES);
        let (enqueued, held) = limiter.enqueued_usage(&account);
        let planned = planned.with(QuotaKind::EnqueuedTokens, enqueued);
        Ok(AccountState {
            payer: account.payer().to_string().into(),
            model: account.model().into(),
            aliases,
            at,
            quotas: PerKind::from_fn(|kind| match kind {
                QuotaKind::EnqueuedTokens => QuotaUsage {
                    limit: enqueued.map(|planned| planned.limit),
                    used: held,
                    reserved: 0,
                },
                kind => usage.quotas[kind],
            }),
            sources: PerKind::from_fn(|kind| planned[kind].map(|planned| planned.source)),
            waiting: usage.waiting,
            next_slot_at: usage.next_free_in.map(|wait| after(at, wait)),
            paused: Paused::of(&account, &usage, at),
            concurrency: Concurrency::of(account.concurrency()),
            flex_concurrency: Concurrency::of(account.concurrency_of(Capacity::Flex)),
        })
    });
    join_all(states).await.into_iter().collect()
}

/// The payers with a limit on their spend.
///
/// # Errors
/// [`StoreUnavailable`] if the limits are shared and cannot be reached.
pub(super) async fn sample_payers(
    limiter: &Limiter,
    at: Timestamp,
) -> Result<Vec<PayerState>, StoreUnavailable> {
    let spending = limiter.accounts().spending(MAX_ACCOUNTS).await?;
    let states = spending.into_iter().map(|Spending { payer, usage, .. }| PayerState {
        payer: payer.to_string().into(),
        spend: usage[QuotaKind::SpendPerTenMinutes],
        waiting: usage.waiting,
        paused_until: usage.paused_for.map(|time| after(at, time)),
    });
    Ok(states.collect())
}

impl Paused {
    /// What holds an account back for the longest time.
    fn of(account: &Account, usage: &BudgetUsage, at: Timestamp) -> Option<Self> {
        if let Some(refused) = account.refused_here() {
            let reason = match refused.reason {
                Tripped::Unfunded => PauseReason::Unfunded,
                Tripped::NoQuota => PauseReason::NoQuota,
            };
            let until = Some(after(at, refused.next_probe_in)).filter(|until| *until > at);
            return Some(Self { until, reason });
        }
        let day = usage.day_closed_for.map(|time| (time, PauseReason::DayUsedUp));
        let refused = PauseReason::Refused(usage.paused_quota);
        let pause = usage.paused_for.map(|time| (time, refused));
        let (time, reason) = day.into_iter().chain(pause).max_by_key(|(time, _)| *time)?;
        Some(Self { until: Some(after(at, time)), reason })
    }
}

impl Concurrency {
    fn of(limit: &AdaptiveLimit) -> Self {
        let SemaphoreUsage { in_use, waiting, .. } = limit.semaphore().usage();
        let (ceiling, broke_at) = (limit.ceiling(), limit.broke_at());
        Self { limit: limit.limit(), ceiling, in_use, waiting, broke_at }
    }

    /// The sum with another replica's limit for the same account.
    fn and(self, other: Self) -> Self {
        let broke_at = |limit: &Self| limit.broke_at.unwrap_or(limit.limit);
        let is_broken = self.broke_at.or(other.broke_at).is_some();
        Self {
            limit: self.limit.saturating_add(other.limit),
            ceiling: self.ceiling.saturating_add(other.ceiling),
            in_use: self.in_use.saturating_add(other.in_use),
            waiting: self.waiting.saturating_add(other.waiting),
            broke_at: is_broken.then(|| broke_at(&self).saturating_add(broke_at(&other))),
        }
    }
}

impl AccountState {
    /// The same account as two replicas see it.
    fn and(&self, other: &Self) -> Self {
        // What is limited is counted in Redis, for all. Anything else, each replica counts for itself.
        let usage = |own: QuotaUsage, other: QuotaUsage| match own.limit.or(other.limit) {
            Some(_) => QuotaUsage {
                limit: own.limit.or(other.limit),
                used: own.used.max(other.used),
                reserved: own.reserved.max(other.reserved),
            },
            None => QuotaUsage {
                limit: None,
                used: own.used.saturating_add(other.used),
                reserved: own.reserved.saturating_add(other.reserved),
            },
        };
        let later = |own: &Option<Paused>, other: &Option<Paused>| {
            own.iter().chain(other).max_by_key(|paused| paused.until).copied()
        };
        let mut aliases = self.aliases.clone();
        aliases.extend(other.aliases.iter().filter(|alias| !self.aliases.contains(alias)).cloned());
        aliases.truncate(MAX_ALIASES);
        Self {
            payer: Arc::clone(&self.payer),
            model: Arc::clone(&self.model),
            aliases,
            at: self.at.max(other.at),
            quotas: PerKind::from_fn(|kind| usage(self.quotas[kind], other.quotas[kind])),
            sources: self.sources.or(other.sources),
            waiting: match self.quotas.iter().any(|(_, quota)| quota.limit.is_some()) {
                true => self.waiting.max(other.waiting),
                false => self.waiting.saturating_add(other.waiting),
            },
            next_slot_at: self.next_slot_at.max(other.next_slot_at),
            paused: later(&self.paused, &other.paused),
            concurrency: self.concurrency.and(other.concurrency),
            flex_concurrency: self.flex_concurrency.and(other.flex_concurrency),
        }
    }
}

/// The accounts of all replicas, by payer and model. At most [`MAX_ACCOUNTS`], the own ones first.
pub(super) fn merge<'a>(
    own: &'a [AccountState],
    others: impl Iterator<Item = &'a AccountState>,
) -> Vec<AccountState> {
    let mut merged: BTreeMap<(Arc<str>, Arc<str>), AccountState> = BTreeMap::new();
    for account in own.iter().chain(others) {
        let name = (Arc::clone(&account.payer), Arc::clone(&account.model));
        let is_full = merged.len() >= MAX_ACCOUNTS;
        match merged.get_mut(&name) {
            Some(known) => *known = known.and(account),
            None if is_full => {}
            None => drop(merged.insert(name, account.clone())),
        }
    }
    merged.into_values().collect()
}

/// The quotas of which something is known.
mod quota_usages {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::limits::{PerKind, QuotaUsage};

    pub fn serialize<S: Serializer>(
        quotas: &PerKind<QuotaUsage>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let is_known = |usage: &QuotaUsage| *usage != QuotaUsage::default();
        PerKind::from_fn(|kind| Some(quotas[kind]).filter(is_known)).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PerKind<QuotaUsage>, D::Error> {
        let known = PerKind::<Option<QuotaUsage>>::deserialize(deserializer)?;
        Ok(PerKind::from_fn(|kind| known[kind].unwrap_or_default()))
    }
}
