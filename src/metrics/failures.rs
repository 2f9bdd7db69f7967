//! The calls that failed last.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many failures are kept.
pub const MAX_FAILURES: usize = 200;

/// A call without an answer that can be used. It has neither a prompt nor an answer, no key, and no text
/// from upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it failed.
    pub at: Timestamp,
    /// The code of the error, as callers see it.
    pub code: Arc<str>,
    /// The kind of call: `chat`, `structured_output`, …
    pub kind: Arc<str>,
    /// The requested model. Callers can invent names.
    pub model: Arc<str>,
    /// The key's label, or the first 8 hex digits of its SHA-256.
    pub payer: Arc<str>,
    /// Whether the call was sent again, so that it may have succeeded later.
    pub retried: bool,
    /// The `X-Request-Id` of the request, if the call was made for one and not for a job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<Arc<str>>,
}

/// The calls that failed last in this process.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Failure>>);

impl Failures {
    /// Notes a failure. The oldest one is forgotten if there are [`MAX_FAILURES`].
    pub fn note(&self, failure: Failure) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() == MAX_FAILURES {
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
