//! The replicas of the service: real processes that are started, stopped, killed and checked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::calls::{CHAT_MODEL, STRUCTURED_MODEL};
use crate::clock::{Clock, tidy_up};
use crate::record::{Claim, Life, Record, around, find};
use crate::redis::free_port;
use crate::settings::{
    ADMIN_KEY, LEASE, LIMIT, REPLICAS, REQUEST_TIMEOUT, SERVER_KEY, UPSTREAM_TIMEOUT,
};
use crate::upstream::Upstream;

/// How long a replica may take to start, including attempts without Redis.
const START: Duration = Duration::from_secs(60);

/// One replica. Its process changes, its port does not.
pub struct Replica {
    pub slot: usize,
    pub port: u16,
    pub clock: Clock,
    life: AtomicUsize,
    /// Locked while anything is done to the process.
    process: Mutex<Option<Process>>,
    variables: Vec<(&'static str, String)>,
    binary: PathBuf,
    folder: PathBuf,
    record: Arc<Record>,
    upstream: Upstream,
}

struct Process {
    child: Child,
    life: Life,
    log: PathBuf,
}

/// Replicas that have not been started.
pub fn replicas(
    binary: &Path,
    folder: &Path,
    redis: u16,
    upstream: &Upstream,
    record: &Arc<Record>,
    clocks: bool,
) -> Vec<Arc<Replica>> {
    let replica = |slot| {
        Arc::new(Replica {
            slot,
            port: free_port(),
            clock: Clock::new(folder, &format!("replica-{slot}"), clocks),
            life: AtomicUsize::new(usize::MAX),
            process: Mutex::default(),
            variables: variables(slot, redis),
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            record: Arc::clone(record),
            upstream: upstream.clone(),
        })
    };
    (0..REPLICAS).map(replica).collect()
}

fn variables(slot: usize, redis: u16) -> Vec<(&'static str, String)> {
    let seconds = |duration: Duration| duration.as_secs().to_string();
    // One of them logs more. No key may appear there either.
    let limits = "server@*:rpm=10000000,tpm=10000000000,rpd=1000000000";
    let log = if slot == 1 { "info,gemini_concurrent_generation=debug" } else { "info" };
    vec![
        ("HOST", "127.0.0.1".to_owned()),
        ("GEMINI_API_KEY", SERVER_KEY.to_owned()),
        ("ADMIN_API_KEY", ADMIN_KEY.to_owned()),
        ("GEMINI_CONCURRENCY_LIMIT", LIMIT.to_string()),
        ("GEMINI_LIMITS", limits.to_owned()),
        ("GEMINI_CHAT_MODEL", CHAT_MODEL.to_owned()),
        ("GEMINI_STRUCTURED_MODEL", STRUCTURED_MODEL.to_owned()),
        ("REDIS_URL", format!("redis://127.0.0.1:{redis}")),
        ("REDIS_LEASE_SECONDS", seconds(LEASE)),
        ("UPSTREAM_TIMEOUT_SECONDS", seconds(UPSTREAM_TIMEOUT)),
        ("STREAM_IDLE_TIMEOUT_SECONDS", seconds(UPSTREAM_TIMEOUT)),
        ("REQUEST_TIMEOUT_SECONDS", seconds(REQUEST_TIMEOUT)),
        ("CLIENT_TIMEOUT_SECONDS", "10".to_owned()),
        ("SHUTDOWN_GRACE_SECONDS", "3".to_owned()),
        ("RUST_LOG", log.to_owned()),
    ]
}

impl Replica {
    /// Which of its processes is running.
    pub fn life(&self) -> Life {
        self.life.load(Ordering::Relaxed)
    }

    /// Starts it, and again if it ends because Redis is unavailable.
    pub async fn start(&self) {
        let mut process = self.process.lock().await;
        self.start_in(&mut process).await;
    }

    async fn start_in(&self, process: &mut Option<Process>) {
        let began = Instant::now();
        while began.elapsed() < START {
            let mut new = self.spawn();
            self.life.store(new.life, Ordering::Relaxed);
            if self.is_up(&mut new).await {
                *process = Some(new);
                self.record.is_down(self.slot, false);
                return;
            }
            self.end(new).await;
            sleep(Duration::from_millis(300)).await;
        }
        self.record.violated(Claim::Processes, || format!("replica {} does not start", self.slot));
    }

    fn spawn(&self) -> Process {
        let life = self.record.register(self.slot);
        let log = self.folder.join(format!("replica-{}-{life}.log", self.slot));
        let file = File::create(&log).expect("a log can be written");
        let upstream = format!("http://{}/life/{life}", self.upstream.address);
        let child = Command::new(&self.binary)
            .arg("serve")
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(self.clock.variables(false))
            .env("PORT", self.port.to_string())
            .env("GEMINI_BASE_URL", upstream)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log can be written"))
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started");
        Process { child, life, log }
    }

    /// Waits until it listens. Returns false if it ends instead.
    async fn is_up(&self, process: &mut Process) -> bool {
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if process.child.try_wait().expect("a child").is_some() {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Kills it with SIGKILL. Stops it and notifies the upstream first, so that the upstream's
    /// count misses nothing.
    pub async fn kill_and_start(&self) {
        let mut process = self.process.lock().await;
        if let Some(old) = process.take() {
            self.record.is_down(self.slot, true);
            old.signal(Signal::STOP);
            old.until_stopped().await;
            self.upstream.kill(old.life).await;
            old.signal(Signal::KILL);
            self.end(old).await;
        }
        self.start_in(&mut process).await;
    }

    /// Stops it for some time.
    pub async fn pause(&self, time: Duration) {
        let process = self.process.lock().await;
        let Some(process) = &*process else { return };
        process.signal(Signal::STOP);
        self.record.paused(process.life);
        sleep(time).await;
        self.record.resumed(process.life);
        process.signal(Signal::CONT);
    }

    /// If it has ended by itself, reports that and starts it again.
    pub async fn look_after(&self) {
        let Ok(mut process) = self.process.try_lock() else { return };
        let Some(running) = &mut *process else { return };
        let Some(status) = running.child.try_wait().expect("a child") else { return };
        self.record.violated(Claim::Processes, || {
            let log = std::fs::read_to_string(&running.log).unwrap_or_default();
            let end = log.lines().rev().take(3).collect::<Vec<_>>().join(" | ");
            format!("replica {} ended by itself with {status}: {end}", self.slot)
        });
        self.record.is_down(self.slot, true);
        if let Some(old) = process.take() {
            self.upstream.kill(old.life).await;
            self.end(old).await;
        }
        self.start_in(&mut process).await;
    }

    /// Stops it with SIGTERM and checks how it ends.
    pub async fn stop(&self) {
        let Some(mut process) = self.process.lock().await.take() else { return };
        self.record.is_down(self.slot, true);
        process.signal(Signal::TERM);
        match timeout(Duration::from_secs(10), process.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            ended => self.record.violated(Claim::Processes, || {
                format!("replica {} after SIGTERM: {ended:?}", self.slot)
            }),
        }
        self.end(process).await;
    }

    /// Its resident memory, in bytes.
    pub async fn memory(&self) -> Option<u64> {
        let pid = self.process.lock().await.as_ref()?.child.id()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    }

    /// Waits for its end and searches its log.
    async fn end(&self, mut process: Process) {
        let pid = process.child.id();
        _ = process.child.start_kill();
        _ = process.child.wait().await;
        pid.into_iter().for_each(tidy_up);
        let log = std::fs::read(&process.log).unwrap_or_default();
        self.record.search(&format!("the log of replica {}", self.slot), &log);
        for sign in ["panicked", "stack overflow"] {
            if let Some(at) = find(&log, sign.as_bytes()) {
                self.record.violated(Claim::Processes, || {
                    format!("replica {}: {}", self.slot, around(&log, at))
                });
            }
        }
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            _ = kill_process(pid, signal);
        }
    }

    /// Waits until the kernel has stopped all of its threads.
    async fn until_stopped(&self) {
        let Some(pid) = self.child.id() else { return };
        for _ in 0..200 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z'])) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}
