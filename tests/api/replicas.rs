//! Several replicas of the real program over one simulator and one Redis.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gemini_concurrent_generation::simulator::{Options, Simulator};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::process::{Process, Start};
use crate::redis_server::RedisServer;
use crate::support::{ADMIN_KEY, SERVER_KEY, TEST_TIMEOUT, answer, listen, slow, until};

const LIMIT: usize = 20;
const LEASE: Duration = Duration::from_secs(4);

/// The simulator and the Redis of some replicas.
pub struct Backends {
    pub simulator: Simulator,
    pub redis: RedisServer,
    upstream: SocketAddr,
    _stop: DropGuard,
}

impl Backends {
    pub async fn new(redis: RedisServer) -> Self {
        let stop = CancellationToken::new();
        let simulator = Simulator::new(Options { journal: true, ..Options::default() });
        let upstream = listen(simulator.router(), &stop).await;
        Self { simulator, redis, upstream, _stop: stop.drop_guard() }
    }

    /// A replica that has not been started yet.
    pub fn replica(&self, limit: usize) -> Start {
        Start::with_arguments(&["serve"])
            .set("GEMINI_BASE_URL", &format!("http://{}", self.upstream))
            .set("GEMINI_API_KEY", SERVER_KEY)
            .set("ADMIN_API_KEY", ADMIN_KEY)
            .set("GEMINI_CONCURRENCY_LIMIT", &limit.to_string())
            .set("REDIS_URL", &self.redis.url())
    }

    /// Waits until this many calls are in flight.
    pub async fn until_in_flight(&self, calls: usize) {
        until("all are in flight", || self.simulator.stats().in_flight == calls).await;
    }
}

pub async fn until_connected(replica: &Process, connected: bool) {
    let wait = async {
        while replica.health().await["shared_limits"]["connected"] != connected {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("the state never changed");
}

/// Clients that keep a replica busy, also at a new address, and try again if they get no answer.
struct Load {
    at: Mutex<SocketAddr>,
    answered: AtomicUsize,
}

impl Load {
    fn start(replica: &Process, clients: &TaskTracker, stop: &CancellationToken) -> Arc<Self> {
        let load = Arc::new(Self { at: Mutex::new(replica.address), answered: 0.into() });
        for client in 0..12 {
            let work = Arc::clone(&load).work(50 + 5 * client);
            clients.spawn(stop.clone().run_until_cancelled_owned(work));
        }
        load
    }

    async fn work(self: Arc<Self>, latency_ms: u64) {
        let http = reqwest::Client::builder().timeout(TEST_TIMEOUT).build().expect("a client");
        let body = json!({"prompt": slow(latency_ms)}).to_string();
        loop {
            let url = format!("http://{}/chat", self.at.lock().unwrap());
            let request = http.post(url).header("content-type", "application/json");
            match request.body(body.clone()).send().await {
                Ok(response) if response.status().is_success() => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Waits until every replica has answered more requests than now.
async fn until_all_answer_more(loads: &[Arc<Load>]) {
    let answered = |load: &Arc<Load>| load.answered.load(Ordering::Relaxed);
    let before: Vec<_> = loads.iter().map(answered).collect();
    until("all answer more", || {
        loads.iter().zip(&before).all(|(load, before)| answered(load) >= before + 10)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_never_exceed_the_limit_through_crashes_and_pauses() {
    let mut backends = Backends::new(RedisServer::start().await).await;
    let lease = LEASE.as_secs().to_string();
    let start = || backends.replica(LIMIT).set("REDIS_LEASE_SECONDS", &lease).run();
    let mut replicas = vec![start().await, start().await, start().await, start().await];
    let (clients, stop) = (TaskTracker::new(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    let loads: Vec<_> =
        replicas.iter().map(|replica| Load::start(replica, &clients, &stop)).collect();
    until_all_answer_more(&loads).await;
    backends.until_in_flight(LIMIT).await;

    // One replica is killed. Its slots are free again when its lease expires.
    let killed = replicas.remove(0);
    let began = Instant::now();
    killed.kill().await;
    until("its calls have ended", || backends.simulator.stats().in_flight < LIMIT).await;
    backends.until_in_flight(LIMIT).await;
    println!("in full use again {:?} after SIGKILL, with a lease of {LEASE:?}", began.elapsed());
    let restarted = start().await;
    *loads[0].at.lock().unwrap() = restarted.address;
    replicas.insert(0, restarted);
    until_all_answer_more(&loads).await;

    // One replica is paused for longer than its lease, and then resumes.
    replicas[1].signal("STOP").await;
    sleep(LEASE + LEASE / 4).await;
    backends.until_in_flight(LIMIT).await;
    replicas[1].signal("CONT").await;
    until_all_answer_more(&loads).await;
    replicas[1].until_logged("connected to Redis again").await;

    // Redis stops and restarts empty.
    let items: Vec<_> = (0..60).map(|n| json!({"prompt": format!("{n} {}", slow(50))})).collect();
    let batch = replicas[3].post("/batch/chat", &json!({"requests": items}));
    let batch = tokio::spawn(answer(batch));
    until_all_answer_more(&loads).await;
    backends.redis.stop().await;
    for replica in &replicas {
        until_connected(replica, false).await;
        assert_eq!(replica.health().await["status"], "degraded");
        let refused = answer(replica.post("/chat", &json!({"prompt": "Hello"}))).await;
        assert_eq!(refused.status, 503, "{:?}", refused.body);
        assert_eq!(refused.body["code"], "limits_unavailable");
        assert!(refused.headers.contains_key("retry-after"));
    }
    assert!(!batch.is_finished());
    backends.redis.restart().await;
    for replica in &replicas {
        until_connected(replica, true).await;
        assert_eq!(replica.health().await["status"], "healthy");
    }
    until_all_answer_more(&loads).await;
    backends.until_in_flight(LIMIT).await;
    let batch = batch.await.expect("an answer").body;
    assert_eq!(batch["successful_requests"], 60, "waiting items are answered: {batch}");

    stop.cancel();
    clients.close();
    clients.wait().await;
    let stats = backends.simulator.stats();
    println!("{} calls, {} in flight at most", stats.calls, stats.highest_in_flight);
    assert_eq!(stats.highest_in_flight, LIMIT);
}
