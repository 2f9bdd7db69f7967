//! A job store that keeps announcements in memory, and nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::jobs::store::Stored;
use crate::jobs::{
    Answered, Change, Claimed, Committed, FailuresToRetry, Job, JobId, JobKind, JobNumber, JobSpec,
    JobState, JobStore, NewBlock, NewJob, Order, Owner, Progress, ReplicaId, ResultPage,
    SharedFields, StoreError, Totals,
};
use crate::pacific::WallClock;

#[derive(Debug)]
pub struct MemoryStore {
    pub clock: Arc<dyn WallClock>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    announcements: Vec<Announcement>,
    is_failing: bool,
    claims: usize,
    /// How many outcomes were recorded.
    settled: usize,
}

#[derive(Debug)]
struct Announcement {
    job: Job,
    failed: u32,
    due: Timestamp,
}

/// A job with a webhook.
pub fn job(number: i64) -> Job {
    Job {
        number: JobNumber(number),
        id: JobId::parse(&format!("job_{number:032x}")).unwrap(),
        owner: Owner::Admin,
        spec: Arc::new(JobSpec {
            kind: JobKind::Chat,
            name: None,
            model: None,
            external_semaphore_id: None,
            service_tier: None,
            webhook_url: Some("https://hooks.example/path".to_owned()),
            shared_bytes: 0,
        }),
        total: 7,
        bytes: 70,
        state: JobState::Queued,
        reason: None,
        progress: Progress::default(),
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
    }
}

impl MemoryStore {
    pub fn new(clock: Arc<dyn WallClock>) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default(), changed: Notify::new() })
    }

    /// Lets a job end now. An earlier end of it is forgotten.
    pub fn end(&self, job: Job, state: JobState) {
        let now = self.clock.at(Instant::now());
        let job = Job { state, ended_at: Some(now), ..job };
        let announcements = &mut self.state.lock().unwrap().announcements;
        announcements.retain(|other| other.job.number != job.number);
        announcements.push(Announcement { job, failed: 0, due: now });
    }

    /// From now on, every operation fails or does not.
    pub fn fail(&self, is_failing: bool) {
        self.state.lock().unwrap().is_failing = is_failing;
    }

    /// Whether nothing is left to announce.
    pub fn is_empty(&self) -> bool {
        self.state.lock().unwrap().announcements.is_empty()
    }

    /// How often it was asked for announcements.
    pub fn claims(&self) -> usize {
        self.state.lock().unwrap().claims
    }

    /// Waits until so many outcomes were recorded in all.
    pub async fn settled(&self, outcomes: usize) {
        while self.state.lock().unwrap().settled < outcomes {
            self.changed.notified().await;
        }
    }
}

fn done<T: Send + 'static>(value: T) -> Stored<T> {
    ready(Ok(value)).boxed()
}

fn unused<T>() -> Stored<T> {
    unreachable!("webhooks do not use it")
}

impl JobStore for MemoryStore {
    fn due_announcements(
        &self,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Stored<Vec<(Job, u32)>> {
        let mut state = self.state.lock().unwrap();
        state.claims += 1;
        if state.is_failing {
            return ready(Err(StoreError::Unavailable("as the test asks".to_owned()))).boxed();
        }
        let due = state.announcements.iter_mut().filter(|it| it.due <= now);
        let claimed = due.take(limit as usize).map(|announcement| {
            announcement.due = now + lease;
            (announcement.job.clone(), announcement.failed)
        });
        done(claimed.collect())
    }

    fn announced(
        &self,
        job: JobNumber,
        ended_at: Timestamp,
        next_attempt: Option<Timestamp>,
    ) -> Stored<()> {
        let mut state = self.state.lock().unwrap();
        state.settled += 1;
        let is_it = |it: &Announcement| it.job.number == job && it.job.ended_at == Some(ended_at);
        match next_attempt {
            None => state.announcements.retain(|it| !is_it(it)),
            Some(next) => {
                for announcement in state.announcements.iter_mut().filter(|it| is_it(it)) {
                    announcement.failed += 1;
                    announcement.due = next;
                }
            }
        }
        self.changed.notify_one();
        done(())
    }

    fn begin(&self, _: NewJob, _: ReplicaId) -> Stored<JobNumber> {
        unused()
    }

    fn append(&self, _: JobNumber, _: Vec<NewBlock>) -> Stored<()> {
        unused()
    }

    fn commit(&self, _: JobNumber, _: Totals) -> Stored<Committed> {
        unused()
    }

    fn abandon(&self, _: JobNumber) -> Stored<()> {
        unused()
    }

    fn job(&self, _: JobId) -> Stored<Option<Job>> {
        unused()
    }

    fn shared_fields(&self, _: JobNumber) -> Stored<SharedFields> {
        unused()
    }

    fn jobs(&self, _: Option<Owner>, _: Option<JobNumber>, _: u32) -> Stored<Vec<Job>> {
        unused()
    }

    fn open_jobs(&self) -> Stored<Vec<Job>> {
        unused()
    }

    fn change(&self, _: JobNumber, _: Change, _: Timestamp) -> Stored<Option<Job>> {
        unused()
    }

    fn retry(&self, _: JobNumber, _: FailuresToRetry, _: Timestamp) -> Stored<Option<Job>> {
        unused()
    }

    fn delete(&self, _: JobNumber) -> Stored<()> {
        unused()
    }

    fn claim(&self, _: JobNumber, _: ReplicaId, _: u32, _: usize, _: Duration) -> Stored<Claimed> {
        unused()
    }

    fn renew(&self, _: ReplicaId, _: Duration) -> Stored<Vec<(JobNumber, u64)>> {
        unused()
    }

    fn release(&self, _: ReplicaId, _: Option<JobNumber>) -> Stored<()> {
        unused()
    }

    fn record(&self, _: JobNumber, _: Vec<Answered>, _: Timestamp) -> Stored<Option<Job>> {
        unused()
    }

    fn results(
        &self,
        _: JobNumber,
        _: Order,
        _: bool,
        _: u64,
        _: u32,
        _: usize,
    ) -> Stored<ResultPage> {
        unused()
    }

    fn ended_before(&self, _: Timestamp, _: u32) -> Stored<Vec<JobNumber>> {
        unused()
    }

    fn check(&self) -> Stored<()> {
        unused()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}
