//! Flex calls beside standard ones, where Gemini has capacity for a third of the flex calls.
//!
//! Standard clients send one chat after the other, first alone and then beside flex clients, three
//! times as many as Gemini serves at once in flex. An ideal flex client would have exactly as many
//! calls in flight as Gemini has capacity for, and get `capacity / latency` answers a second. The
//! first seconds, in which the limit of the flex calls is found, are counted apart.
//!
//! At the end Gemini has no capacity for flex at all, and flex chats fall back to the standard tier.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use gemini_concurrent_generation::simulator::{Options, Simulator};

use crate::stage::{Protection, Service, Stage};
use crate::{Scale, announce, percent, print_table};

const CONCURRENCY: usize = 80;
const STANDARD_CLIENTS: usize = 15;
const FLEX_CAPACITY: usize = 20;
const FLEX_CLIENTS: usize = 3 * FLEX_CAPACITY;
const LATENCY: Duration = Duration::from_secs(1);
const PHASE: Duration = Duration::from_secs(60);
const QUICK_PHASE: Duration = Duration::from_secs(20);
/// How long the limit of the flex calls may take to be found.
const SETTLING: Duration = Duration::from_secs(15);
const FALLBACK: Duration = Duration::from_secs(3);

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    /// How long the answered standard chats took.
    standard: Mutex<Vec<Duration>>,
    /// How many flex chats were answered.
    flex: AtomicU64,
}

/// What was measured during a phase.
struct Phase {
    name: &'static str,
    length: Duration,
    /// How long the standard chats took, shortest first.
    standard: Vec<Duration>,
    /// How many flex chats were answered, and how many flex calls Gemini refused.
    flex: Option<[u64; 2]>,
}

pub async fn measure(scale: Scale) {
    let length = if scale.quick { QUICK_PHASE } else { PHASE };
    println!("## Service tiers\n");
    println!(
        "{STANDARD_CLIENTS} standard and {FLEX_CLIENTS} flex clients, capacity for \
         {FLEX_CAPACITY} flex calls, a concurrency limit of {CONCURRENCY}, a latency of {} ms, {} \
         s for each phase.\n",
        LATENCY.as_millis(),
        length.as_secs(),
    );
    let stage = Stage::start(Options {
        flex_capacity: Some(FLEX_CAPACITY),
        latency_ms: LATENCY.as_millis() as u64,
        ..Options::default()
    })
    .await;
    let protection =
        Protection { concurrency: CONCURRENCY, limits: String::new(), minute: scale.minute };
    let service = stage.service(&protection).await;
    let seen = Arc::<Seen>::default();
    // Dropping the clients stops them.
    let _standard: JoinSet<()> =
        (0..STANDARD_CLIENTS).map(|_| ask_on(service.clone(), Arc::clone(&seen))).collect();
    announce("standard calls alone");
    // Connections are made and the code is warm before times count.
    sleep(2 * LATENCY).await;
    let alone = Phase::measure("alone", &stage.simulator, &seen, length).await;
    let flex: JoinSet<()> =
        (0..FLEX_CLIENTS).map(|_| ask_flex_on(service.clone(), Arc::clone(&seen))).collect();
    announce("beside flex calls, settling");
    let settling = Phase::measure("flex, settling", &stage.simulator, &seen, SETTLING).await;
    announce("beside flex calls");
    let beside = Phase::measure("flex", &stage.simulator, &seen, length).await;
    drop(flex);
    let rows: Vec<_> = [&alone, &settling, &beside].map(|phase| phase.row(&alone)).into();
    let heading = [
        "phase",
        "standard answered",
        "standard p50",
        "standard p95",
        "p95 over alone",
        "flex answered a second",
        "of the oracle's",
        "flex refused (503)",
    ];
    print_table(heading, &rows);
    announce("fallback");
    fallback(&stage.simulator, &service).await;
}

async fn ask_on(service: Service, seen: Arc<Seen>) {
    loop {
        let start = Instant::now();
        if service.chat("How many of us are there?".to_owned()).await {
            seen.standard().push(start.elapsed());
        }
    }
}

async fn ask_flex_on(service: Service, seen: Arc<Seen>) {
    loop {
        let answered = service.flex_chat("Take your time.", None).await;
        seen.flex.fetch_add(answered.into(), Ordering::Relaxed);
    }
}

/// Sends flex chats that Gemini has no capacity for, and prints when they were answered.
async fn fallback(simulator: &Simulator, service: &Service) {
    simulator.set_flex_capacity(Some(0));
    let chats = (0..STANDARD_CLIENTS).map(|_| {
        let service = service.clone();
        async move {
            let start = Instant::now();
            let answered = service.flex_chat("Hurry.", Some(FALLBACK)).await;
            answered.then(|| start.elapsed().saturating_sub(LATENCY))
        }
    });
    let chats: JoinSet<_> = chats.collect();
    let mut waits: Vec<_> = chats.join_all().await.into_iter().flatten().collect();
    waits.sort();
    let heading = ["flex chats without capacity", "answered", "set", "fell back after, p50", "max"];
    let row = [
        STANDARD_CLIENTS.to_string(),
        waits.len().to_string(),
        seconds(FALLBACK),
        seconds(quantile(&waits, 0.5)),
        seconds(quantile(&waits, 1.0)),
    ];
    print_table(heading, &[row]);
}

impl Seen {
    fn standard(&self) -> MutexGuard<'_, Vec<Duration>> {
        self.standard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    async fn measure(
        name: &'static str,
        simulator: &Simulator,
        seen: &Seen,
        length: Duration,
    ) -> Self {
        let counts = || [seen.flex.load(Ordering::Relaxed), simulator.stats().refused_503];
        seen.standard().clear();
        let (before, start) = (counts(), Instant::now());
        sleep(length).await;
        let (after, length) = (counts(), start.elapsed());
        let mut standard = std::mem::take(&mut *seen.standard());
        standard.sort();
        let flex = [after[0] - before[0], after[1] - before[1]];
        Self { name, length, standard, flex: (flex != [0, 0]).then_some(flex) }
    }

    fn row(&self, alone: &Self) -> [String; 8] {
        let p95 = |phase: &Self| quantile(&phase.standard, 0.95);
        let [answered, oracle, refused] = match self.flex {
            Some([answered, refused]) => {
                let a_second = answered as f64 / self.length.as_secs_f64();
                let oracle = FLEX_CAPACITY as f64 / LATENCY.as_secs_f64();
                [format!("{a_second:.1}"), percent(a_second / oracle), refused.to_string()]
            }
            None => ["", "", ""].map(str::to_owned),
        };
        [
            self.name.to_owned(),
            self.standard.len().to_string(),
            seconds(quantile(&self.standard, 0.5)),
            seconds(p95(self)),
            percent(p95(self).div_duration_f64(p95(alone))),
            answered,
            oracle,
            refused,
        ]
    }
}

/// A quantile of sorted times.
fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}
