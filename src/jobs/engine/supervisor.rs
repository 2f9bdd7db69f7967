//! Which jobs run in this process.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::lease::Renewed;
use super::run::{Order, Run};
use super::{Shared, Stops, backoff};
use crate::gemini::ApiKey;
use crate::jobs::model::{Change, Job, JobNumber, JobState, Owner, PauseReason, SharedFields};

/// How often jobs are looked at that nothing says have changed: another replica may have changed them.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The most jobs that run at once in this process. Further ones wait until others have ended.
const MAX_RUNS: usize = 256;

/// The most bytes of shared fields of the jobs that run, unless those of one job are more.
const MAX_SHARED_FIELDS: usize = 64 << 20;

/// How long a job waits whose run ended with a panic.
const AFTER_PANIC: Duration = Duration::from_secs(30);

/// Starts and ends runs.
pub(super) struct Supervisor {
    engine: Arc<Shared>,
    server_key: Option<ApiKey>,
    stops: Stops,
    /// The runs that have not ended.
    started: HashMap<JobNumber, Started>,
    /// Each tells its job, and whether it panicked.
    runs: JoinSet<(JobNumber, bool)>,
    /// Since when no key and no claim was seen of a job.
    keyless: HashMap<JobNumber, Instant>,
    /// Jobs whose run panicked, and when they may run again.
    panicked: HashMap<JobNumber, Instant>,
    renewals: watch::Receiver<Arc<Renewed>>,
}

/// A run that was started.
struct Started {
    /// What it is to do.
    order: watch::Sender<Order>,
    /// The bytes of its job's shared fields.
    shared_bytes: usize,
}

impl Supervisor {
    pub fn new(engine: Arc<Shared>, server_key: Option<ApiKey>, stops: Stops) -> Self {
        let renewals = engine.renewals.subscribe();
        Self {
            engine,
            server_key,
            stops,
            started: HashMap::new(),
            runs: JoinSet::new(),
            keyless: HashMap::new(),
            panicked: HashMap::new(),
            renewals,
        }
    }

    /// Runs jobs until the engine stops and all runs have ended.
    pub async fn run(mut self) {
        let stops = self.stops.clone();
        while !stops.begins.is_cancelled() {
            if stops.begins.run_until_cancelled(self.look()).await.is_none() {
                break;
            }
            tokio::select! {
                () = stops.begins.cancelled() => {}
                () = self.engine.jobs.engine_woken() => {}
                Some(ended) = self.runs.join_next() => self.ended(ended.ok()),
                Ok(()) = self.renewals.changed() => self.release_strays().await,
                () = sleep(LOOK_AGAIN) => {}
            }
        }
        self.order_all(Order::WindDown);
        loop {
            tokio::select! {
                () = stops.ends_now.cancelled(), if !stops.ends_now.is_cancelled() => {
                    self.order_all(Order::Abort);
                }
                ended = self.runs.join_next() => match ended {
                    Some(ended) => self.ended(ended.ok()),
                    None => return,
                },
            }
        }
    }

    /// Looks at all jobs that have not ended: starts runs, and ends others.
    async fn look(&mut self) {
        let jobs = match self.engine.jobs.store().open_jobs().await {
            Ok(jobs) => jobs,
            Err(error) => return self.engine.reading.failed(&error),
        };
        self.engine.reading.ended();
        let open: HashSet<JobNumber> = jobs.iter().map(|job| job.number).collect();
        self.engine.jobs.keep_keys_for(&open);
        self.keyless.retain(|job, _| open.contains(job));
        self.panicked.retain(|job, at| open.contains(job) && *at > Instant::now());
        self.engine.metrics.jobs([
            ("queued", count(&jobs, JobState::Queued)),
            ("running", count(&jobs, JobState::Running)),
            ("paused", count(&jobs, JobState::Paused)),
        ]);
        for (job, started) in &self.started {
            if !open.contains(job) {
                send(&started.order, Order::Abort);
            }
        }
        let mut runnable = Vec::new();
        for job in jobs {
            if job.state == JobState::Paused {
                self.leave_paused(&job).await;
            } else if let Some(key) = self.key(&job) {
                self.keyless.remove(&job.number);
                runnable.push((job, key));
            } else {
                self.without_key(&job).await;
            }
        }
        self.start(runnable);
    }

    /// The key that pays for a job.
    fn key(&self, job: &Job) -> Option<ApiKey> {
        match &job.owner {
            Owner::Admin | Owner::Fallback => self.server_key.clone(),
            Owner::Key(digest) => {
                self.engine.jobs.key_of(job.number).filter(|key| key.sha256() == digest)
            }
        }
    }

    /// Ends the run of a paused job. A job that another replica paused because it lacks the key goes on
    /// if the key is here.
    async fn leave_paused(&mut self, job: &Job) {
        if let Some(started) = self.started.get(&job.number) {
            send(&started.order, Order::WindDown);
        }
        let lacked_key = job.reason == Some(PauseReason::KeyNeeded);
        if lacked_key && self.key(job).is_some() {
            self.change(job, Change::Resume).await;
        }
    }

    /// Pauses a job whose key is not here, unless another replica may have it: then it has claims, or
    /// will have some soon.
    async fn without_key(&mut self, job: &Job) {
        let reason = match job.owner {
            Owner::Key(_) => PauseReason::KeyNeeded,
            Owner::Admin | Owner::Fallback => PauseReason::Failing("unauthenticated".to_owned()),
        };
        let now = Instant::now();
        let since = self.keyless.entry(job.number).or_insert(now);
        if job.progress.claimed > 0 {
            *since = now;
        }
        let is_shared = self.engine.jobs.store().is_shared();
        if !is_shared || now.duration_since(*since) >= self.engine.lease.length() {
            let job_id = job.id.beginning();
            tracing::info!(job_id, ?reason, "a job is paused: there is no key for it");
            self.change(job, Change::Pause(reason)).await;
        }
    }

    async fn change(&self, job: &Job, change: Change) {
        let jobs = &self.engine.jobs;
        match jobs.store().change(job.number, change, Timestamp::now()).await {
            Ok(_) => jobs.wake(job.number),
            Err(error) => self.engine.writing.failed(&error),
        }
    }

    /// Starts runs of jobs that have none, while there are few enough and there is memory for their shared
    /// fields. Owners take turns, so that none waits behind all jobs of another.
    fn start(&mut self, runnable: Vec<(Job, ApiKey)>) {
        let mut of_owner: HashMap<Owner, usize> = HashMap::new();
        let mut waiting: Vec<_> = (runnable.into_iter())
            .map(|(job, key)| {
                let before = of_owner.entry(job.owner.clone()).or_default();
                *before += 1;
                (*before, job, key)
            })
            .filter(|(_, job, _)| {
                !self.started.contains_key(&job.number) && !self.panicked.contains_key(&job.number)
            })
            .collect();
        waiting.sort_by_key(|(before, job, _)| (*before, job.number));
        let mut shared: usize = self.started.values().map(|started| started.shared_bytes).sum();
        for (_, job, key) in waiting {
            let (number, shared_bytes) = (job.number, job.spec.shared_bytes);
            let fits =
                shared_bytes == 0 || shared == 0 || shared + shared_bytes <= MAX_SHARED_FIELDS;
            if self.started.len() >= MAX_RUNS || !fits {
                continue;
            }
            shared += shared_bytes;
            let (order, orders) = watch::channel(Order::Send);
            self.started.insert(number, Started { order, shared_bytes });
            self.engine.memory.run_begins();
            let run = run(Arc::clone(&self.engine), job, key, orders);
            let run = AssertUnwindSafe(run).catch_unwind();
            self.runs.spawn(run.map(move |ended| (number, ended.is_err())));
        }
    }

    fn ended(&mut self, ended: Option<(JobNumber, bool)>) {
        // A run that panics is caught, and none is aborted while the supervisor lives.
        let Some((job, panicked)) = ended else { return };
        self.started.remove(&job);
        self.engine.memory.run_ended();
        if panicked {
            tracing::error!(job = job.0, "the run of a job panicked; it is started again");
            self.panicked.insert(job, Instant::now() + AFTER_PANIC);
        }
        self.engine.jobs.notify_watchers(job);
    }

    /// Gives back claims for jobs that have no run: their run could not, or panicked.
    async fn release_strays(&mut self) {
        let renewed = Arc::clone(&self.renewals.borrow_and_update());
        let jobs = &self.engine.jobs;
        for job in renewed.held.keys().filter(|job| !self.started.contains_key(job)) {
            if let Err(error) = jobs.store().release(jobs.replica().clone(), Some(*job)).await {
                self.engine.writing.failed(&error);
            }
        }
    }

    fn order_all(&self, order: Order) {
        self.started.values().for_each(|started| send(&started.order, order));
    }
}

/// Runs a job once its shared fields are read. If they cannot be, it ends after a pause.
async fn run(engine: Arc<Shared>, job: Job, key: ApiKey, orders: watch::Receiver<Order>) {
    let shared = match job.spec.shared_bytes {
        0 => Ok(SharedFields::new()),
        _ => engine.jobs.store().shared_fields(job.number).await,
    };
    match shared {
        Ok(shared) => {
            let reader = engine.format.reader(&job, shared);
            Run::new(engine, job, reader, key, orders).run().await;
        }
        Err(error) => {
            engine.reading.failed(&error);
            sleep(backoff::again(0)).await;
        }
    }
}

fn send(sender: &watch::Sender<Order>, order: Order) {
    sender.send_if_modified(|current| {
        let changes = order > *current;
        *current = order.max(*current);
        changes
    });
}

fn count(jobs: &[Job], state: JobState) -> usize {
    jobs.iter().filter(|job| job.state == state).count()
}
