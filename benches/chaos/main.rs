//! Whether the service keeps its promises while everything around it fails.
//!
//! Four replicas of the real program share their limits through Redis. Clients send a million
//! calls. Meanwhile replicas are killed and stopped, Redis is restarted and emptied, clocks are
//! set, the upstream fails in every way, and clients disconnect. `docs/benchmarks.md` says how to
//! run it and what its figures mean.
//!
//! | file | what is in it |
//! |---|---|
//! | `settings` | what is the same in every run, and a run's arguments |
//! | `calls` | what clients send, and what a valid answer looks like |
//! | `clients` | the clients |
//! | `upstream` | a stand-in for Gemini that counts what is in flight, and its faults |
//! | `replicas`, `redis`, `clock` | the processes |
//! | `storm` | what is done to them |
//! | `aftermath` | what must hold afterwards |
//! | `record` | the promises, and their violations |
//! | `report` | the figures |

mod aftermath;
mod calls;
mod clients;
mod clock;
mod record;
mod redis;
mod replicas;
mod report;
mod settings;
mod storm;
mod upstream;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;

use aftermath::Aftermath;
use clients::{Client, Crowd};
use clock::Clock;
use record::Record;
use redis::{Redis, free_port};
use replicas::{Replica, replicas};
use report::Report;
use settings::{Arguments, Kind, SEMAPHORE, SEMAPHORE_LIMIT};
use storm::Storm;
use upstream::Upstream;

/// The share of all calls that is made before anything is done to the processes: one in this many.
const WARM_UP: u64 = 20;

/// How long the replicas rest before their memory is measured.
const SETTLE: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if !arguments.bench {
        // `cargo test --all-targets` also starts benchmarks, only to see that they start.
        println!("cargo bench --bench chaos");
        return ExitCode::SUCCESS;
    }
    if clock::library().is_none() {
        if arguments.only.is_empty() {
            eprintln!("libfaketime is missing: install the package, or leave out the clocks");
            return ExitCode::from(2);
        }
        arguments.without.extend([Kind::ReplicaClock, Kind::RedisForward, Kind::RedisBack]);
    }
    let seed = arguments.seed.unwrap_or_else(|| Rng::new().u64(..1_000_000));
    eprintln!("seed {seed}");
    let folder = tempfile::Builder::new().prefix("chaos").disable_cleanup(arguments.keep).tempdir();
    let folder = folder.expect("a folder for logs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let is_kept = runtime.expect("a runtime").block_on(async {
        tokio::select! {
            is_kept = run(&arguments, seed, folder.path()) => is_kept,
            () = until_ended() => {
                eprintln!("interrupted");
                false
            }
        }
    });
    if arguments.keep {
        eprintln!("logs are in {}", folder.path().display());
    }
    if is_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits until this process is told to end, so that its child processes end with it.
async fn until_ended() {
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hang_up = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

/// Runs everything. Returns whether every promise was kept.
async fn run(arguments: &Arguments, seed: u64, folder: &Path) -> bool {
    let began = Instant::now();
    let mut random = Rng::with_seed(seed);
    let stage = Stage::set(arguments, &mut random, folder).await;
    let mut report = Report::new(seed, Arc::clone(&stage.record));
    let watch = watch(&stage.aftermath);
    eprintln!("warming up");
    let before = stage.warm_up(arguments, &mut random).await;
    report.add(&stage.upstream.figures().await);
    eprintln!("storm");
    report.storm = stage.storm(arguments, &mut random).await;
    eprintln!("calm");
    stage.calm().await;
    report.add(&stage.upstream.figures().await);
    let after = stage.check(&before).await;
    drop(watch);
    stage.end().await;
    report.memory = before.into_iter().zip(after).collect();
    report.calls = stage.crowd.made();
    report.took = began.elapsed();
    report.print();
    !stage.record.is_violated()
}

/// All processes, and everything that acts on them.
struct Stage {
    record: Arc<Record>,
    redis: Arc<Redis>,
    replicas: Vec<Arc<Replica>>,
    upstream: Upstream,
    crowd: Arc<Crowd>,
    storm: Arc<Storm>,
    aftermath: Arc<Aftermath>,
}

impl Stage {
    /// Starts everything and waits until it serves.
    async fn set(arguments: &Arguments, random: &mut Rng, folder: &Path) -> Self {
        let record = Record::new();
        let has = |kind| arguments.has(kind);
        let sets_clock = has(Kind::RedisForward) || has(Kind::RedisBack);
        let redis_clock = Clock::new(folder, "redis", sets_clock);
        let redis = Redis::new(free_port(), folder.join("redis"), redis_clock, &record);
        redis.start().await;
        let upstream = Upstream::start(Arc::clone(&record), random.u64(..), has(Kind::Faults));
        let (binary, clocks) = (binary(arguments), has(Kind::ReplicaClock));
        let replicas = replicas(&binary, folder, redis.port, &upstream, &record, clocks);
        for replica in &replicas {
            replica.start().await;
        }
        let all = || (Arc::clone(&record), replicas.clone());
        let (hang_ups, largest_batch) = (has(Kind::HangUps), arguments.calls / 600);
        let crowd = Crowd::new(all(), hang_ups, largest_batch);
        let storm = Storm::new(all(), Arc::clone(&crowd), Arc::clone(&redis));
        let aftermath = Arc::new(Aftermath {
            record: Arc::clone(&record),
            crowd: Arc::clone(&crowd),
            upstream: upstream.clone(),
        });
        storm.until_all_serve().await;
        register(&crowd).await;
        Self { record, redis, replicas, upstream, crowd, storm, aftermath }
    }

    /// Makes the first calls. Returns the memory of the replicas after them.
    async fn warm_up(&self, arguments: &Arguments, random: &mut Rng) -> Vec<u64> {
        let clients = self.crowd.start(arguments.calls / WARM_UP, random.u64(..));
        finish(clients, &self.crowd).await;
        sleep(SETTLE).await;
        self.aftermath.memory().await
    }

    /// Disturbs the processes while the calls are made. Returns how long that took.
    async fn storm(&self, arguments: &Arguments, random: &mut Rng) -> Duration {
        let began = Instant::now();
        let from = self.crowd.made();
        let to = from + arguments.calls - arguments.calls / WARM_UP;
        // The clients continue until all disturbances are done, even if they have made their calls.
        let clients = self.crowd.start(u64::MAX, random.u64(..));
        let run = async {
            self.storm.run(arguments, from, to, random.u64(..)).await;
            while self.crowd.made() < to {
                sleep(Duration::from_millis(100)).await;
            }
            self.crowd.end();
        };
        tokio::join!(run, finish(clients, &self.crowd));
        began.elapsed()
    }

    /// Waits until all replicas serve after the last disturbance.
    async fn calm(&self) {
        self.storm.calm();
        self.record.redis_is_disturbed();
        sleep(Duration::from_secs(2)).await;
        self.storm.until_all_serve().await;
    }

    /// Checks what must hold now. Returns the memory of the replicas.
    async fn check(&self, before: &[u64]) -> Vec<u64> {
        let aftermath = &self.aftermath;
        aftermath.until_quiet().await;
        aftermath.use_all().await;
        aftermath.until_quiet().await;
        aftermath.check_pauses().await;
        sleep(SETTLE).await;
        let after = aftermath.memory().await;
        aftermath.check_memory(before, &after);
        after
    }

    async fn end(&self) {
        for replica in &self.replicas {
            replica.stop().await;
        }
        self.redis.stop(Signal::TERM).await;
    }
}

fn binary(arguments: &Arguments) -> PathBuf {
    let built = env!("CARGO_BIN_EXE_gemini-concurrent-generation");
    let binary = arguments.binary.clone().unwrap_or_else(|| built.into());
    std::fs::canonicalize(&binary).unwrap_or_else(|_| panic!("{} is missing", binary.display()))
}

/// Registers the semaphore that some calls name.
async fn register(crowd: &Arc<Crowd>) {
    let client = Client::new(Arc::clone(crowd), Rng::new());
    let body = format!(r#"{{"semaphore_id":"{SEMAPHORE}","limit":{SEMAPHORE_LIMIT}}}"#);
    let reply = client.administer(0, "/_admin/semaphores", body).await;
    assert!(reply.is_some_and(|reply| reply.status == 201), "the semaphore cannot be registered");
}

/// Waits until all clients have ended, and reports progress.
async fn finish(mut clients: JoinSet<()>, crowd: &Crowd) {
    let mut made = crowd.made();
    loop {
        tokio::select! {
            client = clients.join_next() => match client {
                Some(client) => client.expect("a client does not panic"),
                None => return,
            },
            () = sleep(Duration::from_secs(10)) => {
                let now = crowd.made();
                eprintln!("  {now} calls, {} a second", (now - made) / 10);
                made = now;
            }
        }
    }
}

/// Checks the replicas regularly until the returned set is dropped.
fn watch(aftermath: &Arc<Aftermath>) -> JoinSet<()> {
    let aftermath = Arc::clone(aftermath);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            sleep(Duration::from_secs(2)).await;
            for replica in &aftermath.crowd.replicas {
                replica.look_after().await;
            }
            aftermath.check_pages().await;
            aftermath.check_pauses().await;
        }
    });
    tasks
}
