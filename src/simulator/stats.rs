//! What the simulator has seen: counts, and for tests the calls themselves.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::refusal::Refusal;

/// Counts since the start or the last reset, of the generating calls only unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Calls that arrived.
    pub calls: u64,
    /// Calls answered to the last byte, blocked prompts included.
    pub answered: u64,
    /// Calls that the quotas had room for, whatever became of them afterwards.
    pub admitted: u64,
    /// What those calls cost, in input tokens.
    pub admitted_input_tokens: u64,
    /// Calls refused with 429, by `quotaId`; a call that exceeds two quotas is under both, one
    /// whose refusal names none is under `unspecified`.
    pub refused_429: BTreeMap<String, u64>,
    /// Calls refused with 503.
    pub refused_503: u64,
    /// Calls refused with another status, or cut off on demand.
    pub errors: u64,
    /// Calls whose client hung up before the last byte of the answer.
    pub cancelled: u64,
    /// Calls being worked on, from their arrival to the last byte of the answer; those of
    /// `countTokens` too.
    pub in_flight: usize,
    /// The most calls that were in flight at the same time.
    pub highest_in_flight: usize,
    /// Calls of `countTokens`, which are only counted here and while they are in flight.
    pub count_tokens: u64,
    /// Calls by model.
    pub by_model: BTreeMap<String, u64>,
    /// Calls by key, which is shown as a short hash.
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
    /// The key it came with, as it came; empty without one.
    pub api_key: String,
    /// The model, without `models/`.
    pub model: String,
    /// The last text that is not the model's, markers included.
    pub prompt_text: String,
    /// The whole body; null when it is no JSON.
    pub body: Value,
    /// When it arrived, on tokio's clock.
    pub arrived_at: Instant,
    /// The status it was answered with; none while it is in flight, when the client hung up and
    /// when it was cut off on demand.
    pub status: Option<u16>,
}

/// What became of a call.
pub(super) enum Fate<'a> {
    Answered,
    Refused(&'a Refusal),
    /// Cut off on demand.
    Broken,
}

/// Where calls are counted.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// All counts but those by key.
    stats: Stats,
    /// By the hash of the key.
    by_key: HashMap<u64, u64>,
    /// Calls that take up capacity.
    serving: usize,
    journal: Vec<JournalEntry>,
    /// How many journal entries were thrown away by resets.
    journal_offset: usize,
}

impl Ledger {
    /// The counts as they are.
    pub fn stats(&self) -> Stats {
        let pages = self.pages();
        let by_key = pages.by_key.iter().map(|(hash, calls)| (format!("{hash:016x}"), *calls));
        Stats { by_key: by_key.collect(), ..pages.stats.clone() }
    }

    /// The calls in the order of their arrival.
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.pages().journal.clone()
    }

    /// Starts counting afresh; the calls in flight stay in flight.
    pub fn reset(&self) {
        let mut pages = self.pages();
        let in_flight = pages.stats.in_flight;
        pages.stats = Stats { in_flight, highest_in_flight: in_flight, ..Stats::default() };
        pages.by_key.clear();
        pages.journal_offset += pages.journal.len();
        pages.journal.clear();
    }

    /// Counts a call of `countTokens`, which is in flight until the guard is dropped.
    pub fn count_tokens_called(self: &Arc<Self>) -> CountTokensCall {
        let stats = &mut self.pages().stats;
        stats.count_tokens += 1;
        stats.enter();
        CountTokensCall(Arc::clone(self))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight. Dropping it without saying what became of it means that the client hung up.
#[must_use]
pub(super) struct Call {
    ledger: Arc<Ledger>,
    is_serving: bool,
    has_ended: bool,
    journal_index: Option<usize>,
}

impl Call {
    /// Counts a call that has arrived.
    pub fn arrive(ledger: &Arc<Ledger>, model: &str, key: Option<&str>) -> Self {
        let mut pages = ledger.pages();
        if let Some(key) = key {
            *pages.by_key.entry(hash(key)).or_default() += 1;
        }
        let stats = &mut pages.stats;
        stats.calls += 1;
        stats.enter();
        increment(&mut stats.by_model, model);
        drop(pages);
        let ledger = Arc::clone(ledger);
        Self { ledger, is_serving: false, has_ended: false, journal_index: None }
    }

    /// Puts the call into the journal.
    pub fn record(&mut self, entry: JournalEntry) {
        let mut pages = self.ledger.pages();
        self.journal_index = Some(pages.journal_offset + pages.journal.len());
        pages.journal.push(entry);
    }

    /// Counts the call as one that the quotas had room for.
    pub fn admit(&self, input_tokens: u64) {
        let stats = &mut self.ledger.pages().stats;
        stats.admitted += 1;
        stats.admitted_input_tokens += input_tokens;
    }

    /// Takes up one of so many places until the call ends, unless all are taken.
    pub fn take_place(&mut self, capacity: usize) -> bool {
        let mut pages = self.ledger.pages();
        self.is_serving = pages.serving < capacity;
        pages.serving += usize::from(self.is_serving);
        self.is_serving
    }

    /// Says what became of the call.
    pub fn end(mut self, fate: &Fate<'_>) {
        self.has_ended = true;
        let mut pages = self.ledger.pages();
        let status = match fate {
            Fate::Answered => Some(200),
            Fate::Refused(refusal) => Some(refusal.status().as_u16()),
            Fate::Broken => None,
        };
        match (fate, status) {
            (Fate::Answered, _) => pages.stats.answered += 1,
            (Fate::Refused(refusal), Some(429)) => {
                let ids = refusal.quota_ids();
                let ids = if ids.is_empty() { &["unspecified"] } else { ids };
                ids.iter().for_each(|id| increment(&mut pages.stats.refused_429, id));
            }
            (Fate::Refused(_), Some(503)) => pages.stats.refused_503 += 1,
            (Fate::Refused(_) | Fate::Broken, _) => pages.stats.errors += 1,
        }
        let index = self.journal_index.and_then(|index| index.checked_sub(pages.journal_offset));
        if let Some(entry) = index.and_then(|index| pages.journal.get_mut(index)) {
            entry.status = status;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut pages = self.ledger.pages();
        pages.stats.in_flight -= 1;
        pages.serving -= usize::from(self.is_serving);
        pages.stats.cancelled += u64::from(!self.has_ended);
    }
}

/// A call of `countTokens` in flight.
#[must_use]
pub(super) struct CountTokensCall(Arc<Ledger>);

impl Drop for CountTokensCall {
    fn drop(&mut self) {
        self.0.pages().stats.in_flight -= 1;
    }
}

fn increment(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => _ = counts.insert(name.to_owned(), 1),
    }
}

/// The same for the same value within one version of the program.
pub(super) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
