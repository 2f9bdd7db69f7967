//! The batches that are kept.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::simulator::refusal::ErrorResponse;

/// How many batches are kept. The oldest is dropped first.
const KEPT: usize = 1_000;

/// How many batches of a key can be active. Source: Gemini API docs, rate limits.
const MAX_ACTIVE: usize = 100;

/// What the requests of a batch ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::simulator) enum Kind {
    Generate,
    Embed,
}

/// A batch with its answers.
pub(in crate::simulator) struct Batch {
    /// Hash of the key that it belongs to.
    pub owner: u64,
    /// The resource name, such as `batches/1`.
    pub name: String,
    pub display_name: Value,
    pub kind: Kind,
    pub model: String,
    /// The tokens that it holds while it is active.
    pub tokens: u64,
    pub created: Timestamp,
    /// Until then it is pending.
    pub running_at: Instant,
    pub done_at: Instant,
    /// The state that it ends in, such as `SUCCEEDED`.
    pub end: String,
    pub output: Value,
    pub requests: usize,
    pub failed: usize,
    pub cancelled: bool,
}

/// The batches that are kept.
#[derive(Default)]
pub(in crate::simulator) struct Batches(Mutex<VecDeque<Batch>>);

impl Batches {
    /// Adds a batch and returns its operation.
    ///
    /// # Errors
    ///
    /// Refuses a batch above the limit of tokens of its key and model, or of active batches.
    pub fn enqueue(
        &self,
        batch: Batch,
        limit: Option<u64>,
        now: Instant,
    ) -> Result<Value, ErrorResponse> {
        let mut batches = self.batches();
        let own = batches.iter().filter(|other| other.owner == batch.owner && other.is_active(now));
        let (mut active, mut tokens) = (0, batch.tokens);
        for other in own {
            active += 1;
            tokens += if other.model == batch.model { other.tokens } else { 0 };
        }
        if active >= MAX_ACTIVE || limit.is_some_and(|limit| tokens > limit) {
            return Err(ErrorResponse::batch_limit());
        }
        let operation = batch.operation(now);
        if batches.len() == KEPT {
            batches.pop_front();
        }
        batches.push_back(batch);
        Ok(operation)
    }

    /// The tokens that all active batches hold.
    pub fn active_tokens(&self, now: Instant) -> u64 {
        let batches = self.batches();
        batches.iter().filter(|batch| batch.is_active(now)).map(|batch| batch.tokens).sum()
    }

    /// The batches of a key.
    pub fn list(&self, owner: u64, now: Instant) -> Value {
        let batches = self.batches();
        let own = batches.iter().filter(|batch| batch.owner == owner);
        json!({"operations": own.map(|batch| batch.operation(now)).collect::<Vec<_>>()})
    }

    /// The operation of a batch.
    pub fn read(&self, owner: u64, id: &str, now: Instant) -> Result<Value, ErrorResponse> {
        let batches = self.batches();
        position(&batches, owner, id).map(|index| batches[index].operation(now))
    }

    /// Cancels a batch, unless it has ended.
    pub fn cancel(&self, owner: u64, id: &str, now: Instant) -> Result<Value, ErrorResponse> {
        let mut batches = self.batches();
        let index = position(&batches, owner, id)?;
        let batch = &mut batches[index];
        batch.cancelled |= batch.is_active(now);
        Ok(json!({}))
    }

    /// Forgets a batch, and with it the tokens that it holds.
    pub fn delete(&self, owner: u64, id: &str) -> Result<Value, ErrorResponse> {
        let mut batches = self.batches();
        let index = position(&batches, owner, id)?;
        batches.remove(index);
        Ok(json!({}))
    }

    fn batches(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn position(batches: &VecDeque<Batch>, owner: u64, id: &str) -> Result<usize, ErrorResponse> {
    let name = format!("batches/{id}");
    let found = batches.iter().position(|batch| batch.owner == owner && batch.name == name);
    found.ok_or_else(|| ErrorResponse::not_found(&name))
}

impl Batch {
    fn is_active(&self, now: Instant) -> bool {
        now < self.done_at && !self.cancelled
    }

    fn state(&self, now: Instant) -> &str {
        if self.cancelled {
            "CANCELLED"
        } else if now >= self.done_at {
            &self.end
        } else if now < self.running_at {
            "PENDING"
        } else {
            "RUNNING"
        }
    }

    /// The operation as it is now. Counts are strings, as recorded.
    fn operation(&self, now: Instant) -> Value {
        let state = self.state(now);
        let has_succeeded = state == "SUCCEEDED";
        let kind = match self.kind {
            Kind::Generate => "GenerateContentBatch",
            Kind::Embed => "EmbedContentBatch",
        };
        let mut stats = json!({"requestCount": self.requests.to_string()});
        if has_succeeded {
            let succeeded = self.requests - self.failed;
            stats["successfulRequestCount"] = succeeded.to_string().into();
            stats["failedRequestCount"] = self.failed.to_string().into();
        } else {
            stats["pendingRequestCount"] = self.requests.to_string().into();
        }
        let time = Timestamp::now().to_string();
        let mut metadata = json!({
            "@type": format!("type.googleapis.com/google.ai.generativelanguage.v1main.{kind}"),
            "model": format!("models/{}", self.model),
            "displayName": self.display_name,
            "name": self.name,
            "state": format!("BATCH_STATE_{state}"),
            "createTime": self.created.to_string(),
            "updateTime": time,
            "batchStats": stats,
        });
        let is_done = !self.is_active(now);
        if is_done {
            metadata["endTime"] = time.into();
        }
        let mut operation = json!({"name": self.name});
        if has_succeeded {
            metadata["output"] = self.output.clone();
            operation["response"] = self.output.clone();
        }
        operation["metadata"] = metadata;
        if is_done {
            operation["done"] = true.into();
        }
        operation
    }
}
