//! The keys that callers send for their jobs. They are kept in memory and nowhere else.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::model::JobNumber;
use crate::gemini::ApiKey;

/// How long a key is kept whose job was never seen: that of an upload that broke off.
const UPLOAD: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys of jobs that have not ended.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<HashMap<JobNumber, Held>>);

/// A key that is held.
#[derive(Debug)]
struct Held {
    key: ApiKey,
    since: Instant,
    /// Whether its job was open at some time since then. A job that is being uploaded is not yet.
    was_open: bool,
}

impl Keys {
    pub fn hold(&self, job: JobNumber, key: ApiKey) {
        let held = Held { key, since: Instant::now(), was_open: false };
        self.lock().insert(job, held);
    }

    pub fn of(&self, job: JobNumber) -> Option<ApiKey> {
        self.lock().get(&job).map(|held| held.key.clone())
    }

    pub fn forget(&self, job: JobNumber) {
        self.lock().remove(&job);
    }

    /// Forgets the keys of jobs that have ended or were deleted: those that were open once, and are not
    /// among the `open` ones.
    pub fn keep_for(&self, open: &HashSet<JobNumber>) {
        let now = Instant::now();
        self.lock().retain(|job, held| {
            let is_open = open.contains(job);
            held.was_open |= is_open;
            is_open || (!held.was_open && now.duration_since(held.since) < UPLOAD)
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobNumber, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobNumber = JobNumber(1);

    fn keys() -> Keys {
        let keys = Keys::default();
        keys.hold(JOB, ApiKey::new("a-key").unwrap());
        keys
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_forgotten_when_its_job_has_ended() {
        let keys = keys();
        keys.keep_for(&HashSet::from([JOB]));
        assert!(keys.of(JOB).is_some());
        keys.keep_for(&HashSet::new());
        assert!(keys.of(JOB).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_key_of_an_upload_is_kept_for_a_day() {
        let keys = keys();
        keys.keep_for(&HashSet::new());
        assert!(keys.of(JOB).is_some());
        tokio::time::advance(UPLOAD).await;
        keys.keep_for(&HashSet::new());
        assert!(keys.of(JOB).is_none());
    }
}
