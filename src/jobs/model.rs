//! What a job is, and what is known of its progress.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::crypto::ring::default_provider;
use serde::{Deserialize, Serialize};

use crate::prices::NanoDollars;

/// The public name of a job: `job_` and 128 random bits. It cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

/// The number of a job in its store, in the order in which jobs were begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobNumber(pub i64);

/// The name of a process that runs jobs, different for each start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaId(pub String);

/// Whose job it is. A key is known by its SHA-256 only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The administrator's; the server's key pays.
    Admin,
    /// A caller's whose own key pays.
    Key([u8; 32]),
    /// A caller's without a key; the server's key pays. Whoever knows its id may use it.
    Fallback,
}

/// In whose words the items are, and where they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Requests of `/chat`.
    Chat,
    /// Requests of `/structured-output`.
    StructuredOutput,
    /// Requests of `/cinematic-story-design`.
    CinematicStoryDesign,
    /// Lines of Gemini's batch files: `{"key": …, "request": {…}}`.
    Gemini,
    /// Lines of OpenAI's batch files: `{"custom_id": …, "method": …, "url": …, "body": {…}}`.
    #[serde(rename = "openai")]
    OpenAi,
}

/// What is asked for, beside the items. It is stored as JSON and contains no key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The kind of the items.
    pub kind: JobKind,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model of items that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The semaphore of items that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_semaphore_id: Option<String>,
    /// The service tier of items that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<String>,
    /// Where the end of the job is announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// Fields that are added to each item that lacks them.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub shared: serde_json::Map<String, serde_json::Value>,
}

/// A job as it is begun.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id, made by [`JobId::random`].
    pub id: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// What is asked for.
    pub spec: JobSpec,
    /// The SHA-256 of the `Idempotency-Key` header.
    pub idempotency_key: Option<[u8; 32]>,
    /// When the request came.
    pub created_at: Timestamp,
}

/// Consecutive items as they came: the unit in which items are stored and claimed.
#[derive(Debug, Clone)]
pub struct NewBlock {
    /// The index of its first item in the job, from 0.
    pub first: u64,
    /// One line for each item, each ended by `\n`. No line contains another line feed.
    pub lines: Bytes,
    /// How many lines there are.
    pub items: u32,
}

/// What was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// How many items there are.
    pub items: u64,
    /// The bytes of their lines.
    pub bytes: u64,
    /// The SHA-256 of all that was asked: options and lines.
    pub content: [u8; 32],
}

/// Where a job is in its life.
///
/// `Queued` → `Running` ⇄ `Paused` → `Completed`; `Cancelled` from any but `Completed`. A retry leads
/// from `Completed` or `Cancelled` back to `Queued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// No item was sent yet.
    Queued,
    /// Items are being sent.
    Running,
    /// Nothing is sent until it is resumed.
    Paused,
    /// Each item has its result.
    Completed,
    /// Items without a result get none.
    Cancelled,
}

/// Why a job is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Its owner asked for it.
    Requested,
    /// Its owner's key is not in memory. It is never written down, so after a restart the owner has to
    /// resume the job with the same key.
    KeyNeeded,
    /// Every item would fail: the error code says why, such as `invalid_api_key` or `account_unfunded`.
    #[serde(untagged)]
    Failing(String),
}

/// A job, and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its number in the store.
    pub number: JobNumber,
    /// Its public id.
    pub id: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// What is asked for. Shared, since it may hold a long prompt and never changes.
    pub spec: Arc<JobSpec>,
    /// How many items it has.
    pub total: u64,
    /// The bytes of its items.
    pub bytes: u64,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it is paused.
    pub reason: Option<PauseReason>,
    /// How far it is.
    pub progress: Progress,
    /// When it came.
    pub created_at: Timestamp,
    /// When its first item was claimed.
    pub started_at: Option<Timestamp>,
    /// When it was completed or cancelled.
    pub ended_at: Option<Timestamp>,
}

/// How far a job is. The store updates it with the results, so that it always agrees with them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// Items that were answered.
    pub succeeded: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// Items without a result in blocks that are claimed. An estimate of those in flight.
    pub claimed: u64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Tokens of all answers, with their thoughts.
    pub output_tokens: u64,
    /// What all calls cost.
    pub cost: NanoDollars,
    /// How fast results come.
    pub rate: Rate,
    /// Failed items by error code.
    pub failures: BTreeMap<String, Failures>,
}

/// The failed items of a job with one error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Failures {
    /// How many there are.
    pub count: u64,
    /// The index of one of them.
    pub example: u64,
}

/// How fast results come: an average that forgets what is more than about a minute old.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Results, each weighted by its age.
    weighted: f64,
    /// The time over which they came, weighted in the same way, in seconds.
    seconds: f64,
    /// When it was last updated, in milliseconds since 1970; 0 before the first result.
    at: i64,
}

/// The age at which a result counts as 1/e of a new one, in seconds.
const RATE_MEMORY: f64 = 30.0;

/// A result as it is recorded.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The index of the item.
    pub index: u64,
    /// The result in the words of the job's kind: one line of JSON without its line feed.
    pub line: Bytes,
    /// The error code, if the item failed.
    pub failure: Option<String>,
    /// Whether the item may succeed later.
    pub retryable: bool,
    /// Tokens of the prompt, over all calls.
    pub input_tokens: u64,
    /// Tokens of the answer and its thoughts, over all calls.
    pub output_tokens: u64,
    /// What the calls cost.
    pub cost: NanoDollars,
}

/// A claimed block.
#[derive(Debug, Clone)]
pub struct Block {
    /// The index of its first item.
    pub first: u64,
    /// As stored: see [`NewBlock::lines`].
    pub lines: Bytes,
    /// The indices of its items that have a result already, in order.
    pub answered: Vec<u64>,
}

/// The order in which results are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// That of the items.
    #[default]
    Input,
    /// That in which they were recorded.
    Completion,
}

/// A result as it is read.
#[derive(Debug, Clone)]
pub struct StoredResult {
    /// The index of the item.
    pub index: u64,
    /// The position after which reading continues: in input order one more than the index, in the order
    /// of completion a number that only grows.
    pub next: u64,
    /// The result, as it was recorded.
    pub line: Bytes,
}

/// Consecutive results.
#[derive(Debug, Clone, Default)]
pub struct ResultPage {
    /// In the order that was asked for. In input order of all results there is no gap: the page ends
    /// before the first item without a result, unless the job is cancelled.
    pub results: Vec<StoredResult>,
    /// Whether the job has ended and there are no further results.
    pub is_last: bool,
}

/// A change of a job's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// From queued or running to paused; of a paused job, the reason is replaced if the new one is
    /// [`PauseReason::Requested`].
    Pause(PauseReason),
    /// From paused to queued or running.
    Resume,
    /// From any state but completed to cancelled.
    Cancel,
}

/// Which failed items are asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailuresToRetry {
    /// Those that may succeed later.
    Retryable,
    /// All.
    All,
}

impl JobId {
    /// A new id.
    pub fn random() -> Self {
        Self(format!("job_{:032x}", u128::from_le_bytes(random_bytes())))
    }

    /// Reads an id; `None` if the text has not its form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("job_")?;
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 32 && digits.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The beginning of the id, for logs: whoever knows the whole id may be able to use the job.
    pub fn beginning(&self) -> &str {
        self.0.get(..12).unwrap_or_default()
    }
}

impl ReplicaId {
    /// A new name.
    pub fn random() -> Self {
        Self(format!("{:032x}", u128::from_le_bytes(random_bytes())))
    }
}

/// From a cryptographic generator, since an id may be all that protects a job.
fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    let filled = default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system gives random bytes");
    bytes
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        })
    }
}

impl JobState {
    /// Whether nothing more is sent unless failed items are retried.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled)
    }
}

impl Rate {
    /// The rate after `results` more results. A clock that was set back counts as standing still.
    #[must_use]
    pub fn after(self, results: u64, now: Timestamp) -> Self {
        let now = now.as_millisecond();
        let passed = if self.at == 0 { 0.0 } else { (now - self.at).max(0) as f64 / 1000.0 };
        let kept = (-passed / RATE_MEMORY).exp();
        Self {
            weighted: self.weighted * kept + results as f64,
            seconds: self.seconds * kept + RATE_MEMORY * (1.0 - kept),
            at: now,
        }
    }

    /// The rate as numbers that a store keeps: results and seconds, both weighted, and the time of the last
    /// update in milliseconds since 1970.
    pub(super) fn to_parts(self) -> (f64, f64, i64) {
        (self.weighted, self.seconds, self.at)
    }

    /// The rate from numbers that a store kept.
    pub(super) fn from_parts((weighted, seconds, at): (f64, f64, i64)) -> Self {
        Self { weighted, seconds, at }
    }

    /// Results per second; 0 before it can be told.
    pub fn per_second(self, now: Timestamp) -> f64 {
        let Self { weighted, seconds, .. } = self.after(0, now);
        if seconds < 0.5 { 0.0 } else { weighted / seconds }
    }
}

impl Job {
    /// Items without a result.
    pub fn unanswered(&self) -> u64 {
        self.total.saturating_sub(self.progress.succeeded).saturating_sub(self.progress.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate after a second of each entry, with so many results.
    fn rate(start: i64, results: &[u64]) -> (Rate, Timestamp) {
        let mut rate = Rate::default().after(0, time(start));
        for (second, results) in (1..).zip(results) {
            rate = rate.after(*results, time(start + 1000 * second));
        }
        (rate, time(start + 1000 * results.len() as i64))
    }

    fn time(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn is_about(found: f64, expected: f64) -> bool {
        (found - expected).abs() < expected * 0.05
    }

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let id = JobId::random();
        assert_eq!(JobId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(JobId::random(), id);
        for text in ["", "job_", "job_0", &id.as_str().to_uppercase(), &format!("{id}0")] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let (steady, now) = rate(1_000_000, &[50; 10]);
        assert!(is_about(steady.per_second(now), 50.0), "{}", steady.per_second(now));
        let changed: Vec<_> = [500; 300].into_iter().chain([20; 300]).collect();
        let (changed, now) = rate(1_000_000, &changed);
        assert!(is_about(changed.per_second(now), 20.0), "{}", changed.per_second(now));
    }

    #[test]
    fn the_rate_is_0_before_it_can_be_told() {
        let now = time(1_000_000);
        assert_eq!(Rate::default().per_second(now), 0.0);
        assert_eq!(Rate::default().after(1000, now).per_second(now), 0.0);
    }

    #[test]
    fn the_rate_falls_while_nothing_comes() {
        let (rate, now) = rate(1_000_000, &[50; 60]);
        let later = time(now.as_millisecond() + 120_000);
        assert!(rate.per_second(later) < 2.0, "{}", rate.per_second(later));
    }

    #[test]
    fn a_clock_that_was_set_back_stands_still_for_the_rate() {
        let (before, now) = rate(10_000_000, &[50; 60]);
        let back = time(1_000_000);
        assert!(is_about(before.per_second(back), before.per_second(now)));
        let mut rate = before.after(50, back);
        for second in 1..60 {
            rate = rate.after(50, time(1_000_000 + 1000 * second));
        }
        assert!(is_about(rate.per_second(time(1_059_000)), 50.0));
    }

    #[test]
    fn a_rate_is_kept_in_its_parts() {
        let (rate, _) = rate(1_000_000, &[3, 1, 4]);
        assert_eq!(Rate::from_parts(rate.to_parts()), rate);
    }
}
