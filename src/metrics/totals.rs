//! What was counted since the process began, for the history.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, SharedDistribution};
use crate::prices::NanoDollars;

/// How a call to Gemini ended, in a few classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// Gemini answered.
    Succeeded,
    /// Gemini refused it for a quota or for lack of funds: 429.
    RateLimited,
    /// Gemini refused it because it is overloaded: 503.
    Overloaded,
    /// Gemini rejects the request, the key or the model: any other 4xx.
    Rejected,
    /// An answer came that cannot be used: blocked, empty, truncated or malformed.
    Unusable,
    /// Anything else: another 5xx, a timeout, a broken connection.
    Failed,
    /// The client hung up, or the call was cancelled.
    Cancelled,
}

impl OutcomeClass {
    /// All classes.
    pub const ALL: [Self; 7] = [
        Self::Succeeded,
        Self::RateLimited,
        Self::Overloaded,
        Self::Rejected,
        Self::Unusable,
        Self::Failed,
        Self::Cancelled,
    ];
}

/// Calls by the class of their outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u64>")]
pub struct Calls([u64; OutcomeClass::ALL.len()]);

impl From<Vec<u64>> for Calls {
    /// Of another version's classes, those that are known.
    fn from(counts: Vec<u64>) -> Self {
        Self(std::array::from_fn(|n| counts.get(n).copied().unwrap_or_default()))
    }
}

impl Calls {
    /// How many calls ended in this way.
    pub fn of(&self, class: OutcomeClass) -> u64 {
        self.0[class as usize]
    }

    /// How many calls ended.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many calls Gemini refused, for a quota (429) or for load (503).
    pub fn refusals(&self) -> u64 {
        self.of(OutcomeClass::RateLimited).saturating_add(self.of(OutcomeClass::Overloaded))
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n].saturating_sub(before.0[n])))
    }
}

/// What was counted, since the process began or in an interval.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Calls to Gemini that ended, retries included.
    pub calls: Calls,
    /// Calls that were sent again.
    pub retries: u64,
    /// Calls that were not admitted, because a quota has no room for them, the queue is full, ….
    #[serde(default)]
    pub not_admitted: u64,
    /// Tokens of the input.
    pub input_tokens: u64,
    /// Tokens of the output, thinking included.
    pub output_tokens: u64,
    /// What the calls cost.
    #[serde(with = "nanodollars")]
    pub cost: NanoDollars,
    /// How long calls waited for admission.
    pub queue_wait: Distribution,
    /// How long calls took from their sending to the end of their answers.
    pub latency: Distribution,
}

impl Counts {
    /// Adds what was counted elsewhere or later.
    pub(super) fn add(&mut self, other: &Self) {
        self.calls.add(&other.calls);
        self.retries = self.retries.saturating_add(other.retries);
        self.not_admitted = self.not_admitted.saturating_add(other.not_admitted);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cost = self.cost.saturating_add(other.cost);
        self.queue_wait.add(&other.queue_wait);
        self.latency.add(&other.latency);
    }

    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls.since(&before.calls),
            retries: self.retries.saturating_sub(before.retries),
            not_admitted: self.not_admitted.saturating_sub(before.not_admitted),
            input_tokens: self.input_tokens.saturating_sub(before.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
            cost: NanoDollars(self.cost.0.saturating_sub(before.cost.0)),
            queue_wait: self.queue_wait.since(&before.queue_wait),
            latency: self.latency.since(&before.latency),
        }
    }
}

mod nanodollars {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::prices::NanoDollars;

    pub fn serialize<S: Serializer>(cost: &NanoDollars, serializer: S) -> Result<S::Ok, S::Error> {
        cost.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<NanoDollars, D::Error> {
        u64::deserialize(deserializer).map(NanoDollars)
    }
}

/// What all threads have counted since the process began.
#[derive(Debug, Default)]
pub(super) struct Totals {
    calls: [AtomicU64; OutcomeClass::ALL.len()],
    retries: AtomicU64,
    not_admitted: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    cost: AtomicU64,
    queue_wait: SharedDistribution,
    latency: SharedDistribution,
}

impl Totals {
    /// Counts an admitted call.
    pub fn admitted(&self, waited: Duration) {
        self.queue_wait.observe(waited);
    }

    /// Counts a call that is sent again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that was not admitted.
    pub fn not_admitted(&self) {
        self.not_admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that ended, without its cost.
    pub fn finished(&self, class: OutcomeClass, took: Duration, input: u64, output: u64) {
        self.calls[class as usize].fetch_add(1, Ordering::Relaxed);
        self.latency.observe(took);
        for (tokens, more) in [(&self.input_tokens, input), (&self.output_tokens, output)] {
            if more > 0 {
                tokens.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Counts what a call cost.
    pub fn charged(&self, cost: NanoDollars) {
        self.cost.fetch_add(cost.0, Ordering::Relaxed);
    }

    /// What was counted until now.
    pub fn read(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            calls: Calls(std::array::from_fn(|n| read(&self.calls[n]))),
            retries: read(&self.retries),
            not_admitted: read(&self.not_admitted),
            input_tokens: read(&self.input_tokens),
            output_tokens: read(&self.output_tokens),
            cost: NanoDollars(read(&self.cost)),
            queue_wait: self.queue_wait.read(),
            latency: self.latency.read(),
        }
    }
}
