//! Results on their way to the store. While some are being recorded, the next ones gather, so that one
//! transaction has as many as came meanwhile.

use jiff::Timestamp;
use tokio::time::Instant;

use super::backoff;
use crate::jobs::model::{Answered, Job, JobNumber};
use crate::jobs::store::{JobStore, StoreError, Stored};

/// The most results that are recorded at once.
const MAX_RECORDED: usize = 1000;

/// The results of a job that are not recorded.
#[derive(Default)]
pub(super) struct Record {
    gathered: Vec<Answered>,
    pending: Option<Pending>,
    /// How often recording has failed in a row, and when it is tried again.
    failed: u32,
    again_at: Option<Instant>,
}

/// Results that are being recorded.
struct Pending {
    results: Vec<Answered>,
    recorded: Stored<Option<Job>>,
}

impl Record {
    /// Adds a result.
    pub fn add(&mut self, result: Answered) {
        self.gathered.push(result);
    }

    /// Begins to record what has gathered, unless that is going on or has failed a moment ago.
    pub fn begin(&mut self, store: &dyn JobStore, job: JobNumber, now: Instant) {
        let waits = self.again_at.is_some_and(|at| now < at);
        if self.pending.is_some() || self.gathered.is_empty() || waits {
            return;
        }
        let rest = self.gathered.split_off(self.gathered.len().min(MAX_RECORDED));
        let results = std::mem::replace(&mut self.gathered, rest);
        let recorded = store.record(job, results.clone(), Timestamp::now());
        self.pending = Some(Pending { results, recorded });
    }

    /// Waits until results are recorded: returns them, and their job as it is then. Never ready while
    /// nothing is being recorded. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Why they were not. They are recorded later, before others.
    pub async fn done(&mut self) -> Result<(Vec<Answered>, Option<Job>), StoreError> {
        let Some(pending) = &mut self.pending else { return std::future::pending().await };
        let recorded = (&mut pending.recorded).await;
        let results = self.pending.take().map(|pending| pending.results).unwrap_or_default();
        match recorded {
            Ok(job) => {
                (self.failed, self.again_at) = (0, None);
                Ok((results, job))
            }
            Err(error) => {
                self.gathered.splice(..0, results);
                self.again_at = Some(Instant::now() + backoff::again(self.failed));
                self.failed += 1;
                Err(error)
            }
        }
    }

    /// Waits no longer after a failure.
    pub fn try_now(&mut self) {
        self.again_at = None;
    }

    /// Whether results are kept that could not be recorded.
    pub fn is_failing(&self) -> bool {
        self.failed > 0
    }

    /// When recording is tried again.
    pub fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Whether everything is recorded.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.pending.is_none()
    }
}
