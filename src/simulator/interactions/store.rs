//! The interactions that are kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::form::FinishedInteraction;
use crate::simulator::refusal::ErrorResponse;
use crate::simulator::stats::{CallOutcome, RunningCall};

/// How many bytes of interactions are kept. The oldest is dropped first.
const MAX_BYTES: usize = 128 << 20;

/// The interactions that are kept.
#[derive(Default)]
pub(in crate::simulator) struct Interactions(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_id: HashMap<String, StoredInteraction>,
    /// With their sizes in bytes, oldest first; deleted ones stay until they are dropped.
    ids: VecDeque<(String, usize)>,
    bytes: usize,
}

/// An interaction with its times.
struct StoredInteraction {
    finished: FinishedInteraction,
    started_at: Instant,
    queued_until: Instant,
    done_at: Instant,
    cancelled: CancellationToken,
    run: RunInFlight,
}

/// A run in the background that is in flight. Whoever first sees its end counts it, so that no client
/// hears of the end before.
#[derive(Clone, Default)]
pub(in crate::simulator) struct RunInFlight(Arc<Mutex<Option<RunningCall>>>);

impl RunInFlight {
    /// The run has come to its end.
    pub fn end(&self) {
        if let Some(call) = self.take() {
            call.end(&CallOutcome::Answered);
        }
    }

    /// The run is cancelled.
    pub fn cancel(&self) {
        drop(self.take());
    }

    fn start(&self, call: RunningCall) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }

    fn take(&self) -> Option<RunningCall> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a stream of a stored interaction needs.
pub(in crate::simulator) struct Replay {
    pub object: Value,
    pub chunks: usize,
    pub started_at: Instant,
    pub done_at: Instant,
    pub cancelled: CancellationToken,
    pub run: RunInFlight,
}

/// What a chained request takes from the interaction before it.
#[derive(Default)]
pub(in crate::simulator) struct Previous {
    /// Tokens that Gemini reads again.
    pub tokens: u64,
    /// The prompt whose answer is continued.
    pub prompt: Option<String>,
}

impl Interactions {
    /// Keeps an interaction that runs from an instant for so long. One in the foreground counts as
    /// ended, because its response is sent when it ends.
    pub fn insert(&self, finished: FinishedInteraction, started_at: Instant, latency: Duration) {
        if !finished.store {
            return;
        }
        let latency = if finished.background { latency } else { Duration::ZERO };
        let queued = finished.queued.unwrap_or(latency / 10);
        let stored = StoredInteraction {
            started_at,
            queued_until: started_at + queued.min(latency),
            done_at: started_at + latency,
            cancelled: CancellationToken::new(),
            run: RunInFlight::default(),
            finished,
        };
        let mut table = self.table();
        let size = stored.finished.size;
        table.bytes += size;
        while table.bytes > MAX_BYTES
            && let Some((oldest, dropped)) = table.ids.pop_front()
        {
            table.bytes -= dropped;
            table.by_id.remove(&oldest);
        }
        table.ids.push_back((stored.finished.id.clone(), size));
        table.by_id.insert(stored.finished.id.clone(), stored);
    }

    /// The interaction as it is now.
    ///
    /// # Errors
    ///
    /// Refuses an unknown one, one of another key, and one whose script refuses to be read.
    pub fn read(&self, owner: u64, id: &str, include_input: bool) -> Result<Value, ErrorResponse> {
        let mut table = self.table();
        let stored = find(&mut table, owner, id)?;
        stored.check_readable()?;
        let mut object = stored.snapshot(Instant::now());
        if include_input && let Some(input) = &stored.finished.input {
            object["input"] = input.clone();
        }
        Ok(object)
    }

    /// The interaction as it is now, whatever its script says about reading.
    pub fn snapshot(&self, owner: u64, id: &str) -> Result<Value, ErrorResponse> {
        Ok(find(&mut self.table(), owner, id)?.snapshot(Instant::now()))
    }

    /// What a stream of the interaction needs.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn replay(&self, owner: u64, id: &str) -> Result<Replay, ErrorResponse> {
        find(&mut self.table(), owner, id)?.check_readable()?;
        self.replay_any(owner, id)
    }

    /// As [`replay`](Self::replay), whatever the script says about reading.
    pub fn replay_any(&self, owner: u64, id: &str) -> Result<Replay, ErrorResponse> {
        let mut table = self.table();
        let stored = find(&mut table, owner, id)?;
        Ok(Replay {
            object: stored.finished.object.clone(),
            chunks: stored.finished.chunks,
            started_at: stored.started_at,
            done_at: stored.done_at,
            cancelled: stored.cancelled.clone(),
            run: stored.run.clone(),
        })
    }

    /// Starts the run of an interaction. It is in flight until its end.
    pub fn start(&self, owner: u64, id: &str, call: RunningCall) -> Result<Replay, ErrorResponse> {
        let replay = self.replay_any(owner, id)?;
        replay.run.start(call);
        Ok(replay)
    }

    /// What a request takes from the interaction that it names as the previous one.
    ///
    /// # Errors
    ///
    /// Refuses an unknown one and one that is still running.
    pub fn previous(
        &self,
        owner: u64,
        id: &str,
        continues: bool,
    ) -> Result<Previous, ErrorResponse> {
        let mut table = self.table();
        let stored = find(&mut table, owner, id)?;
        if stored.is_running(Instant::now()) {
            return Err(ErrorResponse::failed_precondition(
                "The previous interaction is still in progress.",
            ));
        }
        let finished = &stored.finished;
        Ok(if continues {
            Previous { tokens: finished.earlier_tokens, prompt: Some(finished.prompt.clone()) }
        } else {
            Previous { tokens: finished.total_tokens, prompt: None }
        })
    }

    /// Cancels a running background interaction and returns it.
    pub fn cancel(&self, owner: u64, id: &str) -> Result<Value, ErrorResponse> {
        let mut table = self.table();
        let stored = find(&mut table, owner, id)?;
        let now = Instant::now();
        if stored.finished.background && stored.is_running(now) {
            stored.cancelled.cancel();
            stored.run.cancel();
        }
        Ok(stored.snapshot(now))
    }

    /// Forgets an interaction. A background run continues.
    pub fn delete(&self, owner: u64, id: &str) -> Result<Value, ErrorResponse> {
        let mut table = self.table();
        find(&mut table, owner, id)?;
        table.by_id.remove(id);
        Ok(json!({}))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find<'t>(
    table: &'t mut Table,
    owner: u64,
    id: &str,
) -> Result<&'t StoredInteraction, ErrorResponse> {
    let stored = table.by_id.get(id).filter(|stored| stored.finished.owner == owner);
    stored.ok_or_else(|| ErrorResponse::not_found(&format!("Interaction {id}")))
}

impl StoredInteraction {
    fn is_running(&self, now: Instant) -> bool {
        now < self.done_at && !self.cancelled.is_cancelled()
    }

    fn snapshot(&self, now: Instant) -> Value {
        let status = if self.cancelled.is_cancelled() {
            "cancelled"
        } else if now >= self.done_at {
            self.run.end();
            return self.finished.object.clone();
        } else if now < self.queued_until && self.finished.background {
            "queued"
        } else {
            "in_progress"
        };
        with_status(&self.finished.object, status)
    }

    /// Source of the 400: reported polls with `AQ.` keys.
    fn check_readable(&self) -> Result<(), ErrorResponse> {
        match self.finished.poll_status {
            Some(StatusCode::BAD_REQUEST) => Err(ErrorResponse::invalid_argument(
                "Multiple authentication credentials received. Please pass only one.",
            )),
            Some(status) => Err(ErrorResponse::with_status(status)),
            None => Ok(()),
        }
    }
}

/// An interaction that has not ended: without output and usage.
pub(super) fn with_status(object: &Value, status: &str) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields
            .retain(|name, _| !matches!(name.as_str(), "usage" | "errors" | "continuation_token"));
        fields.insert("steps".to_owned(), json!([]));
        fields.insert("status".to_owned(), status.into());
    }
    object
}
