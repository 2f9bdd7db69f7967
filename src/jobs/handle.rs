//! The jobs of this process: their store, the keys of their owners, and who is to look again when
//! something changes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::keys::Keys;
use super::model::{Job, JobNumber, ReplicaId};
use super::store::JobStore;
use crate::gemini::ApiKey;

/// After this time a watcher looks again in any case: another replica may have changed the job.
const OTHER_REPLICAS: Duration = Duration::from_secs(1);

/// The jobs, as this process sees them.
#[derive(Debug)]
pub struct Jobs {
    store: Arc<dyn JobStore>,
    replica: ReplicaId,
    keys: Keys,
    /// For each job that is watched, a channel that says that something has changed.
    watched: Mutex<HashMap<JobNumber, watch::Sender<()>>>,
    /// What the runs of this process have of their jobs.
    loads: Mutex<HashMap<JobNumber, Weak<Load>>>,
    /// Wakes the engine.
    engine: Notify,
    /// Wakes what announces the ends of jobs.
    ended: Arc<Notify>,
    /// Cancelled when nothing more is done for jobs here.
    over: CancellationToken,
}

/// What the run of a job in this process has of it.
#[derive(Debug, Default)]
pub(super) struct Load {
    in_flight: Arc<AtomicUsize>,
    /// How many items are claimed and have no result.
    claimed: AtomicUsize,
}

/// Watches a job. What changes after it was made is not missed.
#[derive(Debug)]
pub struct Watch {
    jobs: Arc<Jobs>,
    job: JobNumber,
    changes: watch::Receiver<()>,
}

impl Jobs {
    /// The jobs of a store. The process takes a new name.
    pub fn new(store: Arc<dyn JobStore>) -> Arc<Self> {
        Arc::new(Self {
            store,
            replica: ReplicaId::random(),
            keys: Keys::default(),
            watched: Mutex::default(),
            loads: Mutex::default(),
            engine: Notify::new(),
            ended: Arc::default(),
            over: CancellationToken::new(),
        })
    }

    /// Where the jobs are kept.
    pub fn store(&self) -> &Arc<dyn JobStore> {
        &self.store
    }

    /// The name of this process.
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// Keeps the key of a caller's job in memory until the job ends. To be called before the job is
    /// committed, resumed or retried: a job whose key is unknown is paused.
    pub fn hold_key(&self, job: JobNumber, key: ApiKey) {
        self.keys.hold(job, key);
    }

    /// The key of a caller's job, if it is in memory.
    pub fn key_of(&self, job: JobNumber) -> Option<ApiKey> {
        self.keys.of(job)
    }

    /// Forgets the key of a job that was abandoned or deleted.
    pub fn forget_key(&self, job: JobNumber) {
        self.keys.forget(job);
    }

    /// Forgets the keys of jobs that have ended, given those that have not.
    pub(super) fn keep_keys_for(&self, open: &HashSet<JobNumber>) {
        self.keys.keep_for(open);
    }

    /// Notes that a job runs in this process, until what is returned is dropped.
    pub(super) fn begin_run(&self, job: JobNumber) -> Arc<Load> {
        let load = Arc::default();
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.retain(|_, load| load.strong_count() > 0);
        loads.insert(job, Arc::downgrade(&load));
        load
    }

    /// How many items of a job are in flight. Of those that other replicas have claimed it is not known
    /// how many are: as many as there may be, if `limit` calls may be in flight in all.
    pub fn in_flight(&self, job: &Job, limit: usize) -> u64 {
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let load = loads.get(&job.number).and_then(Weak::upgrade).unwrap_or_default();
        drop(loads);
        let in_flight = load.in_flight.load(Ordering::Relaxed) as u64;
        if !self.store.is_shared() {
            return in_flight;
        }
        let claimed = load.claimed.load(Ordering::Relaxed) as u64;
        let of_others = job.progress.claimed.saturating_sub(claimed);
        in_flight + of_others.min((limit as u64).saturating_sub(in_flight))
    }

    /// Says that a job was changed, so that the engine and those who watch it look again at once.
    pub fn wake(&self, job: JobNumber) {
        self.engine.notify_one();
        self.ended.notify_one();
        self.notify_watchers(job);
    }

    /// Notified when a job may have ended.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Says that there are results of a job.
    pub(super) fn notify_watchers(&self, job: JobNumber) {
        if let Some(changes) = self.watched().get(&job) {
            changes.send_replace(());
        }
    }

    /// Lets the engine look at all jobs again.
    pub(super) fn wake_engine(&self) {
        self.engine.notify_one();
    }

    /// Waits until the engine is to look again.
    pub(super) async fn engine_woken(&self) {
        self.engine.notified().await;
    }

    /// Watches a job from now on.
    pub fn watch(self: &Arc<Self>, job: JobNumber) -> Watch {
        let changes = self.watched().entry(job).or_default().subscribe();
        Watch { jobs: Arc::clone(self), job, changes }
    }

    /// Says that this process ends and does nothing more for jobs, so that nobody waits for that here.
    pub fn end_watches(&self) {
        self.over.cancel();
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<JobNumber, watch::Sender<()>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Counts the calls in flight.
    pub fn in_flight(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.in_flight)
    }

    /// So many items are claimed now.
    pub fn claims(&self, items: usize) {
        self.claimed.store(items, Ordering::Relaxed);
    }
}

impl Watch {
    /// Waits until something has changed since the last call, or since the watch was made. At most 1 s,
    /// since other replicas say nothing, and not at all once [`is_over`](Self::is_over).
    pub async fn changed(&mut self) {
        // Neither a timeout nor a closed channel is a failure: the caller looks again.
        let changed = self.jobs.over.run_until_cancelled(self.changes.changed());
        let _ = timeout(OTHER_REPLICAS, changed).await;
    }

    /// Whether this process ends, so that the job does not change any more here.
    pub fn is_over(&self) -> bool {
        self.jobs.over.is_cancelled()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.jobs.watched();
        if watched.get(&self.job).is_some_and(|changes| changes.receiver_count() <= 1) {
            watched.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::jobs::engine::tests::MemoryStore;

    const JOB: JobNumber = JobNumber(7);

    #[tokio::test(start_paused = true)]
    async fn a_watch_misses_no_change_and_looks_again_after_a_second() {
        let jobs = Jobs::new(Arc::new(MemoryStore::default()));
        let begin = Instant::now();
        let mut watch = jobs.watch(JOB);
        jobs.wake(JOB);
        watch.changed().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        watch.changed().await;
        assert_eq!(begin.elapsed(), OTHER_REPLICAS);
    }

    #[tokio::test]
    async fn jobs_that_nobody_watches_take_no_memory() {
        let jobs = Jobs::new(Arc::new(MemoryStore::default()));
        let (one, other) = (jobs.watch(JOB), jobs.watch(JOB));
        drop(one);
        assert_eq!(jobs.watched().len(), 1);
        drop(other);
        assert!(jobs.watched().is_empty());
    }
}
