//! Counters and, for tests, the journal of calls.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::refusal::ErrorResponse;
use super::tier::ServiceTier;

/// Counters since the start or the last reset. They count generating calls unless stated otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Calls that arrived.
    pub calls: u64,
    /// Calls answered to the last byte, blocked prompts included.
    pub answered: u64,
    /// Calls that the quotas admitted, whatever their outcome.
    pub admitted: u64,
    /// The input tokens of the admitted calls.
    pub admitted_input_tokens: u64,
    /// Calls refused with 429, by `quotaId`. A call above two quotas counts under both. The spend limit
    /// is `spend`, the batch limits are `batch`, and a refusal that names no quota is `unspecified`.
    pub refused_429: BTreeMap<String, u64>,
    /// Calls refused with 503.
    pub refused_503: u64,
    /// Calls refused with another status, or broken off by a marker.
    pub errors: u64,
    /// Calls whose client hung up before the last byte of the response, and cancelled background
    /// interactions.
    pub cancelled: u64,
    /// Calls in flight, from their arrival to the last byte of the response, including those of
    /// `countTokens`.
    pub in_flight: usize,
    /// The most calls that were in flight at the same time.
    pub highest_in_flight: usize,
    /// Calls of `countTokens`, which otherwise count only as calls in flight.
    pub count_tokens: u64,
    /// Admitted calls by the service tier that served them.
    pub by_tier: BTreeMap<String, u64>,
    /// The most flex calls that were served at the same time.
    pub highest_flex_in_flight: usize,
    /// The cost of the calls, in billionths of a US dollar.
    pub spent_nanodollars: u64,
    /// Open live sessions. A session counts as a call in flight too, once it has named its model.
    pub live_sessions: usize,
    /// The most live sessions that were open at the same time.
    pub highest_live_sessions: usize,
    /// Background interactions that are running. Each is a call in flight too.
    pub background_runs: usize,
    /// Tokens that active batches hold.
    pub enqueued_tokens: u64,
    /// The most tokens that active batches held at the same time.
    pub highest_enqueued_tokens: u64,
    /// Calls by model.
    pub by_model: BTreeMap<String, u64>,
    /// Calls by key, shown as a hash.
    pub by_key: BTreeMap<String, u64>,
}

impl Stats {
    /// Counts one more call in flight.
    fn enter(&mut self) {
        self.in_flight += 1;
        self.highest_in_flight = self.highest_in_flight.max(self.in_flight);
    }
}

/// One generating call, kept when [`Options::journal`](super::Options::journal) is set.
#[derive(Clone, Debug)]
pub struct JournalEntry {
    /// The key as it was sent; empty without one.
    pub api_key: String,
    /// The model, without `models/`.
    pub model: String,
    /// The last text that is not the model's, markers included.
    pub prompt_text: String,
    /// The body; null when it is not JSON.
    pub body: Value,
    /// When it arrived, on tokio's clock.
    pub arrived_at: Instant,
    /// The status of the response; `None` while the call is in flight, when the client hung up and
    /// when a marker broke it off.
    pub status: Option<u16>,
}

impl JournalEntry {
    /// An entry for a call that arrives now, without a prompt and a body.
    pub(super) fn without_body(api_key: &str, model: &str) -> Self {
        Self {
            api_key: api_key.to_owned(),
            model: model.to_owned(),
            prompt_text: String::new(),
            body: Value::Null,
            arrived_at: Instant::now(),
            status: None,
        }
    }
}

/// The outcome of a call.
pub(super) enum CallOutcome<'a> {
    Answered,
    Refused(&'a ErrorResponse),
    /// Broken off by a marker.
    Broken,
}

/// Counts calls.
#[derive(Default)]
pub(super) struct StatsCollector(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// All counters except those by key.
    stats: Stats,
    /// By the hash of the key.
    by_key: HashMap<u64, u64>,
    /// Calls that take up the capacity of the standard and priority tiers.
    serving: usize,
    /// Calls that take up the capacity of the flex tier.
    serving_flex: usize,
    journal: Vec<JournalEntry>,
    /// How many journal entries resets have dropped.
    journal_offset: usize,
}

impl Counts {
    /// How many calls take up the capacity of a tier.
    fn serving(&mut self, tier: ServiceTier) -> &mut usize {
        match tier {
            ServiceTier::Flex => &mut self.serving_flex,
            ServiceTier::Standard | ServiceTier::Priority => &mut self.serving,
        }
    }
}

impl StatsCollector {
    /// The current counters.
    pub fn stats(&self) -> Stats {
        let counts = self.counts();
        let by_key = counts.by_key.iter().map(|(hash, calls)| (format!("{hash:016x}"), *calls));
        Stats { by_key: by_key.collect(), ..counts.stats.clone() }
    }

    /// The calls in the order of their arrival.
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.counts().journal.clone()
    }

    /// Resets the counters. Calls in flight stay in flight.
    pub fn reset(&self) {
        let mut counts = self.counts();
        let Stats { in_flight, live_sessions, background_runs, enqueued_tokens, .. } = counts.stats;
        counts.stats = Stats {
            in_flight,
            highest_in_flight: in_flight,
            live_sessions,
            highest_live_sessions: live_sessions,
            background_runs,
            enqueued_tokens,
            highest_enqueued_tokens: enqueued_tokens,
            ..Stats::default()
        };
        counts.by_key.clear();
        counts.journal_offset += counts.journal.len();
        counts.journal.clear();
    }

    /// Counts a call of `countTokens`, which is in flight until the guard is dropped.
    pub fn count_tokens_called(self: &Arc<Self>) -> CountTokensCall {
        let stats = &mut self.counts().stats;
        stats.count_tokens += 1;
        stats.enter();
        CountTokensCall(Arc::clone(self))
    }

    /// Counts what a call cost, in billionths of a dollar.
    pub fn spend(&self, cost: u64) {
        self.counts().stats.spent_nanodollars += cost;
    }

    /// Counts further input tokens of an admitted call, such as a live session.
    pub fn admit_tokens(&self, input_tokens: u64) {
        self.counts().stats.admitted_input_tokens += input_tokens;
    }

    /// Counts a live session until the guard is dropped.
    pub fn live_session_opened(self: &Arc<Self>) -> LiveSession {
        let stats = &mut self.counts().stats;
        stats.live_sessions += 1;
        stats.highest_live_sessions = stats.highest_live_sessions.max(stats.live_sessions);
        LiveSession(Arc::clone(self))
    }

    /// Counts a background run until the guard is dropped.
    pub fn background_run_started(self: &Arc<Self>) -> BackgroundRun {
        self.counts().stats.background_runs += 1;
        BackgroundRun(Arc::clone(self))
    }

    /// Sets how many tokens all active batches hold.
    pub fn set_enqueued_tokens(&self, tokens: u64) {
        let stats = &mut self.counts().stats;
        stats.enqueued_tokens = tokens;
        stats.highest_enqueued_tokens = stats.highest_enqueued_tokens.max(tokens);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight. Dropping it without ending it counts as the client hanging up.
#[must_use]
pub(super) struct RunningCall {
    collector: Arc<StatsCollector>,
    /// The tier whose capacity it takes up.
    serving: Option<ServiceTier>,
    has_ended: bool,
    journal_index: Option<usize>,
}

impl RunningCall {
    /// Counts a call that has arrived.
    pub fn arrive(collector: &Arc<StatsCollector>, model: &str, key: Option<&str>) -> Self {
        let mut counts = collector.counts();
        if let Some(key) = key {
            *counts.by_key.entry(hash(key)).or_default() += 1;
        }
        let stats = &mut counts.stats;
        stats.calls += 1;
        stats.enter();
        increment(&mut stats.by_model, model);
        drop(counts);
        let collector = Arc::clone(collector);
        Self { collector, serving: None, has_ended: false, journal_index: None }
    }

    /// Adds the call to the journal.
    pub fn record(&mut self, entry: JournalEntry) {
        let mut counts = self.collector.counts();
        self.journal_index = Some(counts.journal_offset + counts.journal.len());
        counts.journal.push(entry);
    }

    /// Counts the call as admitted.
    pub fn admit(&self, input_tokens: u64, tier: ServiceTier) {
        let stats = &mut self.collector.counts().stats;
        stats.admitted += 1;
        increment(&mut stats.by_tier, tier.name());
        stats.admitted_input_tokens += input_tokens;
    }

    /// Takes up capacity of a tier until the call ends. Returns `false` if none is left.
    pub fn take_capacity(&mut self, capacity: usize, tier: ServiceTier) -> bool {
        let mut counts = self.collector.counts();
        let serving = counts.serving(tier);
        if *serving >= capacity {
            return false;
        }
        *serving += 1;
        if tier == ServiceTier::Flex {
            let serving = counts.serving_flex;
            let highest = &mut counts.stats.highest_flex_in_flight;
            *highest = serving.max(*highest);
        }
        self.serving = Some(tier);
        true
    }

    /// Ends the call with an outcome.
    pub fn end(mut self, outcome: &CallOutcome<'_>) {
        self.has_ended = true;
        let mut counts = self.collector.counts();
        let status = match outcome {
            CallOutcome::Answered => Some(200),
            CallOutcome::Refused(refusal) => Some(refusal.status().as_u16()),
            CallOutcome::Broken => None,
        };
        match (outcome, status) {
            (CallOutcome::Answered, _) => counts.stats.answered += 1,
            (CallOutcome::Refused(refusal), Some(429)) => {
                let ids = refusal.quota_ids();
                let ids = if ids.is_empty() { &["unspecified"] } else { ids };
                ids.iter().for_each(|id| increment(&mut counts.stats.refused_429, id));
            }
            (CallOutcome::Refused(_), Some(503)) => counts.stats.refused_503 += 1,
            (CallOutcome::Refused(_) | CallOutcome::Broken, _) => counts.stats.errors += 1,
        }
        let index = self.journal_index.and_then(|index| index.checked_sub(counts.journal_offset));
        if let Some(entry) = index.and_then(|index| counts.journal.get_mut(index)) {
            entry.status = status;
        }
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut counts = self.collector.counts();
        counts.stats.in_flight -= 1;
        if let Some(tier) = self.serving {
            *counts.serving(tier) -= 1;
        }
        counts.stats.cancelled += u64::from(!self.has_ended);
    }
}

/// An open live session.
#[must_use]
pub(super) struct LiveSession(Arc<StatsCollector>);

impl Drop for LiveSession {
    fn drop(&mut self) {
        self.0.counts().stats.live_sessions -= 1;
    }
}

/// A running background interaction.
#[must_use]
pub(super) struct BackgroundRun(Arc<StatsCollector>);

impl Drop for BackgroundRun {
    fn drop(&mut self) {
        self.0.counts().stats.background_runs -= 1;
    }
}

/// A call of `countTokens` in flight.
#[must_use]
pub(super) struct CountTokensCall(Arc<StatsCollector>);

impl Drop for CountTokensCall {
    fn drop(&mut self) {
        self.0.counts().stats.in_flight -= 1;
    }
}

fn increment(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => _ = counts.insert(name.to_owned(), 1),
    }
}

/// A hash that is stable within one version of the program.
pub(super) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
