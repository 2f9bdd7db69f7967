//! The calls that failed last.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many failures are kept.
pub const MAX_FAILURES: usize = 200;

/// Among how many of the last failures a new one is looked for, to count it there.
const COUNTED_AMONG: usize = 16;

/// A call without an answer that can be used. It has neither a prompt nor an answer, no key, and no text
/// from upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it failed; the last time, if several failed alike.
    pub at: Timestamp,
    /// The code of the error, as callers see it.
    pub code: Arc<str>,
    /// The kind of call: `chat`, `structured_output`, …
    pub kind: Arc<str>,
    /// The requested model. Callers can invent names.
    pub model: Arc<str>,
    /// The key's label, or the first 8 hex digits of its SHA-256.
    pub payer: Arc<str>,
    /// How many calls failed alike, such as the items of a batch.
    pub count: u64,
    /// Whether the call was sent again, so that it may have succeeded later.
    pub retried: bool,
    /// The `X-Request-Id` of the request, if the call was made for one and not for a job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<Arc<str>>,
}

impl Failure {
    /// Whether another failure differs only in its time.
    fn is_like(&self, other: &Self) -> bool {
        let Self { at: _, count: _, code, kind, model, payer, retried, request_id } = self;
        (code, kind, model, payer) == (&other.code, &other.kind, &other.model, &other.payer)
            && (retried, request_id) == (&other.retried, &other.request_id)
    }
}

/// The calls that failed last in this process.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Failure>>);

impl Failures {
    /// Notes a failure. It is counted with one of the last ones if it is like that; otherwise the oldest
    /// one is forgotten if there are [`MAX_FAILURES`]. So a batch or a job whose items fail does not
    /// displace all others.
    pub fn note(&self, mut failure: Failure) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = failures.len().saturating_sub(COUNTED_AMONG);
        let like = failures.range(first..).position(|known| known.is_like(&failure));
        if let Some(known) = like.and_then(|index| failures.remove(first + index)) {
            failure.count = failure.count.saturating_add(known.count);
        } else if failures.len() == MAX_FAILURES {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// At most `most` failures, the latest first.
    pub fn latest(&self, most: usize) -> Vec<Failure> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().rev().take(most).cloned().collect()
    }
}
