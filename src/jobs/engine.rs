//! Sends the items of jobs.
//!
//! The supervisor looks at the jobs that have not ended and starts a run for each that is queued or
//! running. A run claims blocks of items, keeps a window of them in memory, sends them through the
//! bulk runner, and records their results. When a job is paused, its run lets the calls in flight
//! finish, records them, gives its claims back and ends; when a job is cancelled or deleted, its run
//! drops them.
//!
//! | file | what is in it |
//! |---|---|
//! | `supervisor` | which jobs run |
//! | `run` | one job from its first claim to its last result |
//! | `claims` | claims of blocks, and memory for them |
//! | `window` | the items of a job that are in memory |
//! | `memory` | the memory that the items of all jobs take |
//! | `record` | results on their way to the store |
//! | `unrecorded` | how many of them there may be |
//! | `in_doubt` | how many calls there may be that a crash repeats |
//! | `item` | an item in the bulk runner |
//! | `attempts` | the attempts at its call |
//! | `lease` | whether claims are in force |
//! | `backoff` | how long to wait before something is tried again |
//! | `trouble` | when trouble with the store is logged |

mod attempts;
mod backoff;
mod claims;
mod in_doubt;
mod item;
mod lease;
mod memory;
mod record;
mod run;
mod supervisor;
#[cfg(test)]
pub(super) mod tests;
mod trouble;
mod unrecorded;
mod window;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::handle::Jobs;
use super::item::ItemFormat;
use super::model::JobNumber;
use super::observer::JobObserver;
use crate::dispatch::Dispatcher;
use crate::gemini::ApiKey;
use crate::metrics::Metrics;

use in_doubt::InDoubt;
use lease::{Lease, Renewed};
use memory::ItemMemory;
use supervisor::Supervisor;
use trouble::Trouble;

/// The fewest items in a job's window, and how many there are for each slot of the concurrency limit: a
/// slot that becomes free finds an item, while others are being claimed and recorded.
const MIN_WINDOW: usize = 256;
const WINDOW_PER_SLOT: usize = 4;

/// How often jobs are looked for that have ended long ago.
const SWEEP: Duration = Duration::from_secs(60 * 60);

/// How many of them are removed at a time.
const SWEPT: u32 = 100;

/// How long the end of an engine may take once its calls in flight are dropped: for recording what is
/// answered and for giving claims back.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What an engine needs to know.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// For how long items are claimed without a renewal: so long they wait when their process has died.
    pub lease: Duration,
    /// How long jobs are kept after their end; `None` for as long as the store exists.
    pub retention: Option<Duration>,
    /// How many bytes of large items may be in memory, over all jobs: of those that do not fit into the
    /// share of their job. An item that is larger than that is the only one.
    pub large_items: usize,
    /// Where jobs and items are counted.
    pub metrics: Arc<Metrics>,
    /// Who is told what happens to jobs and their items.
    pub observer: Option<Arc<dyn JobObserver>>,
}

/// Sends the items of all jobs, until it is stopped or dropped. Dropping it drops the calls in flight,
/// as a crash does.
#[derive(Debug)]
pub struct Engine {
    jobs: Arc<Jobs>,
    supervisor: AbortOnDropHandle<()>,
    _others: JoinSet<()>,
    stops: Stops,
}

/// The two steps of an engine's end.
#[derive(Debug, Clone, Default)]
struct Stops {
    /// Send nothing more.
    begins: CancellationToken,
    /// Drop the calls in flight.
    ends_now: CancellationToken,
}

/// What the runs of an engine share.
#[derive(Debug)]
struct Shared {
    jobs: Arc<Jobs>,
    dispatcher: Arc<Dispatcher>,
    format: Arc<dyn ItemFormat>,
    metrics: Arc<Metrics>,
    observer: Option<Arc<dyn JobObserver>>,
    /// The memory of the items of all runs.
    memory: Arc<ItemMemory>,
    in_doubt: Arc<InDoubt>,
    lease: Arc<Lease>,
    renewals: watch::Sender<Arc<Renewed>>,
    reading: Trouble,
    writing: Trouble,
}

impl Shared {
    /// How many items a job has in memory, apart from those that were put off.
    fn window(&self) -> usize {
        self.dispatcher.concurrency_limit().saturating_mul(WINDOW_PER_SLOT).max(MIN_WINDOW)
    }
}

impl Engine {
    /// Starts an engine. `server_key` pays for the jobs of the administrator and of callers without a
    /// key.
    pub fn start(
        jobs: Arc<Jobs>,
        dispatcher: Arc<Dispatcher>,
        format: Arc<dyn ItemFormat>,
        server_key: Option<ApiKey>,
        settings: EngineSettings,
    ) -> Self {
        let EngineSettings { lease, retention, large_items, metrics, observer } = settings;
        let shared = Arc::new(Shared {
            jobs: Arc::clone(&jobs),
            dispatcher,
            format,
            metrics,
            observer,
            memory: ItemMemory::new(large_items),
            in_doubt: Arc::default(),
            lease: Arc::new(Lease::new(lease)),
            renewals: watch::Sender::default(),
            reading: Trouble::new(
                "the job store cannot be read",
                "the job store can be read again",
            ),
            writing: Trouble::new(
                "the job store cannot be written; results are kept in memory, and their jobs send \
                 nothing more until it can",
                "the job store can be written again",
            ),
        });
        let stops = Stops::default();
        let supervisor = Supervisor::new(Arc::clone(&shared), server_key, stops.clone());
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
        let mut others = JoinSet::new();
        others.spawn(renew(Arc::clone(&shared)));
        if let Some(retention) = retention {
            others.spawn(sweep(Arc::clone(&jobs), retention));
        }
        Self { jobs, supervisor, _others: others, stops }
    }

    /// Sends nothing more, waits for the calls in flight until `ends_now`, records their results and
    /// gives all claims back.
    pub async fn stop(self, ends_now: impl Future<Output = ()>) {
        let Self { jobs, mut supervisor, _others, stops } = self;
        stops.begins.cancel();
        tokio::select! {
            _ = &mut supervisor => {}
            () = ends_now => {
                stops.ends_now.cancel();
                if timeout(LAST_WRITES, supervisor).await.is_err() {
                    tracing::warn!("results of jobs could not be recorded in time; their items are sent again");
                }
            }
        }
        // What is left of claims ends with their lease.
        let released =
            timeout(LAST_WRITES, jobs.store().release(jobs.replica().clone(), None)).await;
        if let Ok(Err(error)) = released {
            tracing::warn!(%error, "the claims of jobs could not be given back");
        }
    }
}

/// Renews the claims of all runs for as long as it runs.
async fn renew(shared: Arc<Shared>) {
    let (jobs, lease) = (&shared.jobs, &shared.lease);
    loop {
        let (sent, round) = (Instant::now(), lease.begin_round());
        let wait = match jobs.store().renew(jobs.replica().clone(), lease.length()).await {
            Ok(claims) => {
                lease.extend(sent);
                let mut held: HashMap<JobNumber, HashSet<u64>> = HashMap::new();
                claims.into_iter().for_each(|(job, first)| {
                    held.entry(job).or_default().insert(first);
                });
                shared.renewals.send_replace(Arc::new(Renewed { round, held }));
                lease.renewal()
            }
            Err(error) => {
                shared.writing.failed(&error);
                lease.renewal_again()
            }
        };
        sleep(wait).await;
    }
}

/// Removes jobs that ended long ago, for as long as it runs.
async fn sweep(jobs: Arc<Jobs>, retention: Duration) {
    let trouble = Trouble::new(
        "jobs that ended long ago cannot be removed",
        "jobs that ended long ago are removed again",
    );
    let mut failed = 0;
    loop {
        match sweep_once(&jobs, retention).await {
            Ok(()) => {
                trouble.ended();
                failed = 0;
                sleep(SWEEP).await;
            }
            Err(error) => {
                trouble.failed(&error);
                sleep(backoff::again(failed)).await;
                failed += 1;
            }
        }
    }
}

async fn sweep_once(jobs: &Jobs, retention: Duration) -> Result<(), super::StoreError> {
    // A time before all times finds nothing.
    let Ok(before) = Timestamp::now().checked_sub(retention) else { return Ok(()) };
    loop {
        let ended = jobs.store().ended_before(before, SWEPT).await?;
        if ended.is_empty() {
            return Ok(());
        }
        tracing::info!(jobs = ended.len(), "jobs that ended long ago are removed");
        for job in ended {
            jobs.store().delete(job).await?;
            jobs.forget_key(job);
            jobs.notify_watchers(job);
        }
    }
}
