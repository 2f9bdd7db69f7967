//! A store in memory that keeps the promises of [`JobStore`], fails when it is told to, and counts.

mod operations;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::jobs::store::Stored;
use crate::jobs::{
    Answered, Change, Job, JobNumber, JobState, PauseReason, ReplicaId, SharedFields, StoreError,
};

#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<JobNumber, Stand>,
    begun: i64,
    settings: Settings,
    counted: Counted,
}

/// How the store behaves.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether changes fail.
    pub fails: Option<StoreError>,
    /// How long a record takes.
    pub record_takes: Duration,
    pub is_shared: bool,
    /// Says that a claim failed, though it took effect.
    pub loses_claims: bool,
}

/// What the store has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub records: usize,
    pub failed: usize,
    /// The most items that were claimed and had no result at one time.
    pub most_claimed: u64,
    /// The most bytes of all blocks that were claimed at one time.
    pub most_bytes: usize,
    /// Results of items that had one.
    pub repeated: usize,
    /// How often the fields that a job shares were read.
    pub shared_fields: usize,
}

#[derive(Debug)]
struct Stand {
    job: Job,
    shared: SharedFields,
    committed: bool,
    /// Those with items that have no result.
    blocks: BTreeMap<u64, StoredBlock>,
    /// The others.
    finished: BTreeMap<u64, StoredBlock>,
    results: BTreeMap<u64, Answered>,
}

#[derive(Debug)]
struct StoredBlock {
    lines: Bytes,
    items: u64,
    claim: Option<(ReplicaId, Instant)>,
}

impl MemoryStore {
    /// Changes how the store behaves from now on.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.lock().settings);
    }

    pub fn counted(&self) -> Counted {
        self.lock().counted
    }

    /// The job as it is.
    pub fn get(&self, job: JobNumber) -> Job {
        let state = self.lock();
        let stand = &state.jobs[&job];
        let mut job = stand.job.clone();
        job.progress.claimed = stand.claimed();
        job
    }

    /// Whether there is such a job.
    pub fn has(&self, job: JobNumber) -> bool {
        self.lock().jobs.contains_key(&job)
    }

    pub fn results_of(&self, job: JobNumber) -> Vec<Answered> {
        self.lock().jobs[&job].results.values().cloned().collect()
    }

    /// Ends all claims of a process, as if its lease had ended.
    pub fn expire(&self, replica: &ReplicaId) {
        self.release_claims(replica, None);
    }

    fn release_claims(&self, replica: &ReplicaId, of: Option<JobNumber>) {
        for (job, stand) in &mut self.lock().jobs {
            for block in stand.blocks.values_mut() {
                if of.is_none_or(|of| of == *job) {
                    block.claim.take_if(|(holder, _)| holder == replica);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A change, unless changes fail. It takes effect when it is awaited.
    fn change_with<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Stored<T> {
        let store = self.clone();
        async move {
            let mut state = store.lock();
            if let Some(error) = state.settings.fails.clone() {
                state.counted.failed += 1;
                return Err(error);
            }
            Ok(change(&mut state))
        }
        .boxed()
    }
}

impl State {
    fn claimed_bytes(&self) -> usize {
        let now = Instant::now();
        let blocks = self.jobs.values().flat_map(|stand| stand.blocks.values());
        blocks.filter(|block| block.is_claimed(now)).map(|block| block.lines.len()).sum()
    }
}

impl Stand {
    fn claimed(&self) -> u64 {
        let now = Instant::now();
        let claimed = self.blocks.iter().filter(|(_, block)| block.is_claimed(now));
        claimed.map(|(first, block)| block.items - self.answered(*first, block.items)).sum()
    }

    fn answered(&self, first: u64, items: u64) -> u64 {
        self.results.range(first..first + items).count() as u64
    }

    fn change(&mut self, change: Change) {
        let job = &mut self.job;
        let open = matches!(job.state, JobState::Queued | JobState::Running);
        match change {
            Change::Pause(reason) if open => {
                (job.state, job.reason) = (JobState::Paused, Some(reason));
            }
            Change::Pause(PauseReason::Requested) if job.state == JobState::Paused => {
                job.reason = Some(PauseReason::Requested);
            }
            Change::Resume if job.state == JobState::Paused => {
                let state =
                    if job.started_at.is_some() { JobState::Running } else { JobState::Queued };
                (job.state, job.reason) = (state, None);
            }
            Change::Cancel if job.state != JobState::Completed => {
                (job.state, job.reason, job.ended_at) =
                    (JobState::Cancelled, None, Some(Timestamp::now()));
            }
            _ => {}
        }
    }
}

impl StoredBlock {
    fn is_claimed(&self, now: Instant) -> bool {
        self.claim.as_ref().is_some_and(|(_, until)| *until > now)
    }
}
