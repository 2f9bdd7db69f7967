//! What a job is, and what is known of its progress.

mod id;
mod rate;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::prices::NanoDollars;

pub use id::{JobId, ReplicaId};
pub use rate::Rate;

/// The number of a job in its store, in the order in which jobs were begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobNumber(pub i64);

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
    /// The bytes of the [`SharedFields`] as JSON; 0 if there are none.
    #[serde(default)]
    pub shared_bytes: usize,
}

/// Fields that are added to each item of a job that lacks them. They may be long, so they are kept apart from
/// the job, and are in memory only while it runs.
pub type SharedFields = serde_json::Map<String, serde_json::Value>;

/// A job as it is begun.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id, made by [`JobId::random`].
    pub id: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// What is asked for.
    pub spec: JobSpec,
    /// What each item gets that lacks it.
    pub shared: SharedFields,
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
    /// What is asked for. It never changes.
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
    /// Items without a result in blocks that are claimed.
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

/// What a claim found.
#[derive(Debug, Clone, Default)]
pub struct Claimed {
    /// The blocks, in their order.
    pub blocks: Vec<Block>,
    /// The bytes of the next block, if it was left because it alone is larger than what was asked for.
    /// Then there are no others.
    pub too_large: Option<usize>,
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

impl Job {
    /// Items without a result.
    pub fn unanswered(&self) -> u64 {
        self.total.saturating_sub(self.progress.succeeded).saturating_sub(self.progress.failed)
    }
}
