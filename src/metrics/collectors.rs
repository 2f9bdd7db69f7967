//! Metrics that are read at each scrape, so that no figures are kept twice.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::history::{AccountState, Concurrency, History, PayerState};
use super::labels::KnownNames;
use super::replicas::Scope;
use crate::limits::{Limiter, QuotaKind, QuotaUsage, SemaphoreUsage};
use crate::prices::NanoDollars;
use crate::telemetry;

/// Reads the limiter's state.
#[derive(Debug)]
pub(super) struct LimiterCollector(pub Arc<Limiter>);

type ReadSemaphore = fn(SemaphoreUsage) -> usize;

const NAMED_GAUGES: [(&str, &str, ReadSemaphore); 3] = [
    ("semaphore_in_use", "Permits of a named semaphore in use", |usage| usage.in_use),
    ("semaphore_waiting", "Calls and leases waiting for a named semaphore", |usage| usage.waiting),
    ("semaphore_limit", "Permits of a named semaphore", |usage| usage.limit),
];

impl Collector for LimiterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (limiter, store) = (self.0.occupancy(), self.0.store());
        for (name, help, value) in [
            ("in_flight", "Calls in flight, of all replicas", limiter.in_flight),
            ("in_flight_here", "Calls in flight, of this replica", store.held_here()),
            ("waiting", "Requests waiting for admission; a batch counts as one", limiter.waiting),
            ("limit", "The most calls in flight at once, of all replicas", limiter.limit),
            (
                "limits_available",
                "Whether the store of the limits can be reached: 1, or 0 while nothing is admitted",
                store.reach().is_ok().into(),
            ),
        ] {
            family(&mut encoder, name, help, [([], value as u64)])?;
        }
        let named = store.named();
        for (name, help, read) in NAMED_GAUGES {
            let of = named.iter().map(|(id, semaphore)| {
                ([("semaphore", id.as_str())], read(semaphore.usage()) as u64)
            });
            family(&mut encoder, name, help, of)?;
        }
        let leased =
            named.iter().map(|(id, _)| ([("semaphore", id.as_str())], store.leased(id) as u64));
        let help = "Permits of a named semaphore that leases hold, among those in use";
        family(&mut encoder, "semaphore_leased", help, leased)
    }
}

/// Reads the last sample of the history. Only accounts whose names have labels of their own are shown.
#[derive(Debug)]
pub(super) struct HistoryCollector {
    pub history: Arc<History>,
    pub known_names: Arc<KnownNames>,
}

impl Collector for HistoryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let replicas = match self.history.scope() {
            Scope::Replicas { count } => count,
            Scope::Alone | Scope::Unreachable { .. } => 1,
        };
        let help = "Replicas that report, this one included; 1 while Redis cannot be reached";
        family(&mut encoder, "replicas", help, [([], replicas as u64)])?;
        let mut accounts = self.history.own_accounts();
        let names = &self.known_names;
        accounts.retain(|account| names.have_labels(&account.payer, Some(&account.model)));
        encode_quotas(&mut encoder, &accounts)?;
        encode_concurrency(&mut encoder, &accounts)?;
        encode_pauses(&mut encoder, &accounts)?;
        let mut payers = self.history.payers();
        payers.retain(|payer| names.have_labels(&payer.payer, None));
        encode_spend(&mut encoder, &payers)
    }
}

type ReadQuota = fn(QuotaUsage) -> Option<u64>;

const QUOTA_GAUGES: [(&str, &str, ReadQuota); 2] = [
    (
        "quota_used",
        "How much of a quota counts: what was sent, and what is reserved for admitted calls",
        |usage| Some(usage.used.saturating_add(usage.reserved)),
    ),
    ("quota_limit", "A quota", |usage| usage.limit),
];

/// Only limited quotas are shown.
fn encode_quotas(encoder: &mut DescriptorEncoder<'_>, accounts: &[AccountState]) -> fmt::Result {
    for (name, help, read) in QUOTA_GAUGES {
        let of = accounts.iter().flat_map(|account| {
            let limited = QuotaKind::ALL
                .into_iter()
                .filter(|kind| !kind.is_of_payer() && account.quotas[*kind].limit.is_some());
            limited.filter_map(move |kind| {
                let [payer, model] = of_account(account);
                Some(([payer, model, ("quota", kind.name())], read(account.quotas[kind])?))
            })
        });
        family(encoder, name, help, of)?;
    }
    Ok(())
}

type ReadConcurrency = fn(&Concurrency) -> usize;

const CONCURRENCY_GAUGES: [(&str, &str, ReadConcurrency); 2] = [
    (
        "adaptive_limit",
        "The adaptive limit on concurrent calls of a key and model, on this replica",
        |concurrency| concurrency.limit,
    ),
    (
        "adaptive_limit_in_use",
        "Calls of a key and model that count towards their adaptive limit, on this replica",
        |concurrency| concurrency.in_use,
    ),
];

fn encode_concurrency(
    encoder: &mut DescriptorEncoder<'_>,
    accounts: &[AccountState],
) -> fmt::Result {
    for (name, help, read) in CONCURRENCY_GAUGES {
        let of = accounts.iter().flat_map(|account| {
            let AccountState { concurrency, flex_concurrency, .. } = account;
            [("standard", concurrency), ("flex", flex_concurrency)].map(|(capacity, limit)| {
                let [payer, model] = of_account(account);
                ([payer, model, ("capacity", capacity)], read(limit) as u64)
            })
        });
        family(encoder, name, help, of)?;
    }
    Ok(())
}

fn encode_pauses(encoder: &mut DescriptorEncoder<'_>, accounts: &[AccountState]) -> fmt::Result {
    let waiting = accounts.iter().map(|account| (of_account(account), account.waiting));
    let help = "Requests that wait for the quotas of a key and model";
    family(encoder, "quota_waiting", help, waiting)?;
    let paused = accounts.iter().filter_map(|account| {
        let [payer, model] = of_account(account);
        Some(([payer, model, ("reason", account.paused?.reason.name())], 1_u64))
    });
    let help = "1 for a key and model of which nothing is sent, with the reason";
    family(encoder, "account_paused", help, paused)
}

fn encode_spend(encoder: &mut DescriptorEncoder<'_>, payers: &[PayerState]) -> fmt::Result {
    let of = |read: fn(QuotaUsage) -> Option<u64>| {
        payers.iter().filter_map(move |payer| {
            let dollars = NanoDollars(read(payer.spend)?).dollars();
            Some(([("payer", &*payer.payer)], dollars))
        })
    };
    let used = of(|spend| Some(spend.used.saturating_add(spend.reserved)));
    let help = "US dollars that a payer with a limit has spent or reserved in the last ten minutes";
    family(encoder, "spend_usd", help, used)?;
    let help = "US dollars that a payer may spend in ten minutes";
    family(encoder, "spend_limit_usd", help, of(|spend| spend.limit))
}

fn of_account(account: &AccountState) -> [(&'static str, &str); 2] {
    [("payer", &*account.payer), ("model", &*account.model)]
}

/// Writes the gauges of one name, each with its labels.
fn family<'a, const N: usize, V: EncodeGaugeValue + Copy + 'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    gauges: impl IntoIterator<Item = ([(&'static str, &'a str); N], V)>,
) -> fmt::Result
where
    ConstGauge<V>: EncodeMetric,
{
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in gauges {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Reads the number of dropped log lines.
#[derive(Debug)]
pub(super) struct LogCollector;

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let dropped = ConstCounter::new(telemetry::dropped_lines());
        let help = "Log lines dropped because they could not be written fast enough";
        let kind = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("log_lines_dropped", help, None, kind)?)
    }
}
