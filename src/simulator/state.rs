//! The state that all calls share.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use super::batches::store::Batches;
use super::files::store::Files;
use super::interactions::store::Interactions;
use super::models;
use super::options::Options;
use super::other_calls::triggers::Triggers;
use super::quota::KeyQuotas;
use super::stats::{JournalEntry, Stats, StatsCollector};
use super::tier::ServiceTier;

/// A simulated Gemini API. Clones share their state.
#[derive(Clone)]
pub struct Simulator(Arc<Shared>);

struct Shared {
    options: Options,
    quotas: KeyQuotas,
    collector: Arc<StatsCollector>,
    files: Files,
    interactions: Interactions,
    batches: Batches,
    triggers: Triggers,
    /// `usize::MAX` when unlimited.
    capacity: AtomicUsize,
    /// `usize::MAX` when unlimited.
    flex_capacity: AtomicUsize,
    /// In milliseconds.
    latency_ms: AtomicU64,
    unfunded: AtomicBool,
    /// How many identifiers have been given out.
    identifiers: AtomicU64,
    random: Mutex<Rng>,
    /// How many calls with a `fail_times` marker have arrived, by hash of key, model and prompt.
    attempts: Mutex<HashMap<u64, u32>>,
}

/// What a call is charged for.
pub(super) struct Charge<'a> {
    pub key: &'a str,
    /// The model that answered.
    pub model: &'a str,
    pub tier: ServiceTier,
    pub input_tokens: u64,
    /// Thoughts included.
    pub output_tokens: u64,
}

impl Simulator {
    /// A simulator with these options.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Shared {
            quotas: KeyQuotas::new(&options),
            collector: Arc::default(),
            files: Files::default(),
            interactions: Interactions::default(),
            batches: Batches::default(),
            triggers: Triggers::default(),
            capacity: AtomicUsize::new(options.capacity.unwrap_or(usize::MAX)),
            flex_capacity: AtomicUsize::new(options.flex_capacity.unwrap_or(usize::MAX)),
            latency_ms: AtomicU64::new(options.latency_ms),
            unfunded: AtomicBool::new(options.unfunded),
            identifiers: AtomicU64::new(0),
            random: Mutex::new(Rng::with_seed(options.seed)),
            attempts: Mutex::default(),
            options,
        }))
    }

    /// The counters since the start or the last reset.
    pub fn stats(&self) -> Stats {
        let tokens = self.0.batches.active_tokens(Instant::now());
        self.0.collector.set_enqueued_tokens(tokens);
        self.0.collector.stats()
    }

    /// The generating calls in the order of their arrival; empty unless [`Options::journal`].
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.0.collector.journal()
    }

    /// Clears the counters, the journal and the calls counted for `fail_times`. Used quota stays
    /// used; files and interactions stay.
    pub fn reset(&self) {
        let tokens = self.0.batches.active_tokens(Instant::now());
        self.0.collector.set_enqueued_tokens(tokens);
        self.0.collector.reset();
        self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Changes [`Options::capacity`] for later calls.
    pub fn set_capacity(&self, capacity: Option<usize>) {
        self.0.capacity.store(capacity.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Changes [`Options::flex_capacity`] for later calls.
    pub fn set_flex_capacity(&self, capacity: Option<usize>) {
        self.0.flex_capacity.store(capacity.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Changes [`Options::latency_ms`] for later calls.
    pub fn set_latency_ms(&self, latency_ms: u64) {
        self.0.latency_ms.store(latency_ms, Ordering::Relaxed);
    }

    /// Changes [`Options::unfunded`] for later calls.
    pub fn set_unfunded(&self, unfunded: bool) {
        self.0.unfunded.store(unfunded, Ordering::Relaxed);
    }

    pub(super) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(super) fn quotas(&self) -> &KeyQuotas {
        &self.0.quotas
    }

    pub(super) fn collector(&self) -> &Arc<StatsCollector> {
        &self.0.collector
    }

    pub(super) fn files(&self) -> &Files {
        &self.0.files
    }

    pub(super) fn interactions(&self) -> &Interactions {
        &self.0.interactions
    }

    pub(super) fn batches(&self) -> &Batches {
        &self.0.batches
    }

    pub(super) fn triggers(&self) -> &Triggers {
        &self.0.triggers
    }

    /// How many calls of a tier are served at once. Flex has a capacity of its own.
    pub(super) fn capacity(&self, tier: ServiceTier) -> usize {
        match tier {
            ServiceTier::Flex => self.0.flex_capacity.load(Ordering::Relaxed),
            ServiceTier::Standard | ServiceTier::Priority => {
                self.0.capacity.load(Ordering::Relaxed)
            }
        }
    }

    pub(super) fn is_unfunded(&self) -> bool {
        self.0.unfunded.load(Ordering::Relaxed)
    }

    /// Counts what a call costs the key.
    pub(super) fn charge(&self, charge: &Charge<'_>, at: Instant) {
        let standard = models::cost(charge.model, charge.input_tokens, charge.output_tokens);
        let cost = (standard * charge.tier.price_factor()) as u64;
        self.0.quotas.spend(charge.key, cost, at);
        self.0.collector.spend(cost);
    }

    /// The day that decides which models have retired.
    pub(super) fn today(&self) -> Date {
        self.0
            .options
            .today
            .unwrap_or_else(|| Timestamp::now().to_zoned_datetime(TimeZone::UTC).date())
    }

    /// The models of the options; without any, those of the table that exist today.
    pub(super) fn listed_models(&self) -> Vec<&str> {
        let named = &self.0.options.models;
        if named.is_empty() {
            return models::existing(self.today()).collect();
        }
        named.iter().map(String::as_str).collect()
    }

    pub(super) fn next_response_id(&self) -> String {
        format!("simulated-{}", self.next_number())
    }

    /// A number that no earlier call got.
    pub(super) fn next_number(&self) -> u64 {
        self.0.identifiers.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts one more call with this hash and returns how many there have been.
    pub(super) fn count_attempt(&self, hash: u64) -> u32 {
        let mut attempts = self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = attempts.entry(hash).or_default();
        *attempt += 1;
        *attempt
    }

    /// The median latency of a tier.
    pub(super) fn median_latency(&self, tier: ServiceTier) -> Duration {
        let flex = self.0.options.flex_latency_ms.filter(|_| tier == ServiceTier::Flex);
        let latency_ms = flex.unwrap_or_else(|| self.0.latency_ms.load(Ordering::Relaxed));
        Duration::from_millis(latency_ms)
    }

    /// Draws the latency of a call and, at the error rates, the status it fails with. Takes the lock
    /// only where something is random.
    pub(super) fn draw(&self, tier: ServiceTier) -> (Duration, Option<StatusCode>) {
        let Options { latency_sigma, error_rate_503, error_rate_500, error_rate_429, .. } =
            self.0.options;
        let median = self.median_latency(tier);
        let rates = [
            (StatusCode::SERVICE_UNAVAILABLE, error_rate_503),
            (StatusCode::INTERNAL_SERVER_ERROR, error_rate_500),
            (StatusCode::TOO_MANY_REQUESTS, error_rate_429),
        ];
        if latency_sigma == 0.0 && rates.iter().all(|(_, rate)| *rate == 0.0) {
            return (median, None);
        }
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        let latency = median.mul_f64((latency_sigma * standard_normal(&mut random)).exp());
        let mut chance = random.f64();
        let failure = rates.into_iter().find(|(_, rate)| {
            chance -= rate;
            chance < 0.0
        });
        (latency, failure.map(|(status, _)| status))
    }
}

/// A draw from the standard normal distribution, by the Box–Muller transform.
fn standard_normal(random: &mut Rng) -> f64 {
    let (radius, angle) = (1.0 - random.f64(), random.f64());
    (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
}
