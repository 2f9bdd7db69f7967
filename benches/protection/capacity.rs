//! Gemini's capacity falls to a third and recovers: how the service follows.
//!
//! A hundred and twenty clients send one chat after the other. The simulator refuses with 503 what
//! exceeds its capacity, which is not announced. An ideal client would have exactly `capacity`
//! calls in flight and get `capacity / latency` answers a second.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use gemini_concurrent_generation::simulator::{Options, Simulator, Stats};

use crate::load::sampled;
use crate::stage::{Protection, Service, Stage};
use crate::{Scale, announce, percent, print_table};

const CLIENTS: usize = 120;
const CONCURRENCY: usize = 100;
const CAPACITIES: [usize; 3] = [60, 20, 60];
const LATENCY: Duration = Duration::from_millis(200);
const PHASE: Duration = Duration::from_secs(60);
const QUICK_PHASE: Duration = Duration::from_secs(10);

/// How often the limit is sampled, and how many samples are averaged: one second's.
const PERIOD: Duration = Duration::from_millis(100);
const SMOOTHED: usize = 10;

/// The largest relative difference from the capacity that counts as near.
const NEAR: f64 = 0.1;

/// What was measured during the time with one capacity.
struct Phase {
    capacity: usize,
    length: Duration,
    calls: u64,
    refused: u64,
    answered: u64,
    /// The limit in force, every [`PERIOD`].
    limits: Vec<f64>,
}

pub async fn measure(scale: Scale) {
    let length = if scale.quick { QUICK_PHASE } else { PHASE };
    println!("## Capacity\n");
    println!(
        "{CLIENTS} clients, a concurrency limit of {CONCURRENCY}, a latency of {} ms, {} s for \
         each capacity.\n",
        LATENCY.as_millis(),
        length.as_secs(),
    );
    let stage = Stage::start(Options {
        capacity: Some(CAPACITIES[0]),
        latency_ms: LATENCY.as_millis() as u64,
        ..Options::default()
    })
    .await;
    let protection =
        Protection { concurrency: CONCURRENCY, limits: String::new(), minute: scale.minute };
    let service = stage.service(&protection).await;
    // Dropping the clients stops them.
    let _clients: JoinSet<()> = (0..CLIENTS).map(|_| ask_on(service.clone())).collect();
    let mut rows = Vec::new();
    for capacity in CAPACITIES {
        announce(&format!("capacity {capacity}"));
        rows.push(phase(&stage.simulator, &service, capacity, length).await.row());
    }
    let heading = [
        "capacity",
        "limit within 10 % for good after",
        "calls",
        "refused (503)",
        "refused of all calls",
        "answered a second",
        "of the oracle's",
    ];
    print_table(heading, &rows);
}

async fn ask_on(service: Service) {
    loop {
        service.chat("How many of us are there?".to_owned()).await;
    }
}

async fn phase(
    simulator: &Simulator,
    service: &Service,
    capacity: usize,
    length: Duration,
) -> Phase {
    let limit_in_force = || service.limit_in_force().unwrap_or(CONCURRENCY) as f64;
    simulator.set_capacity(Some(capacity));
    let (before, start) = (simulator.stats(), Instant::now());
    let ((), limits) = sampled(sleep(length), start, PERIOD, limit_in_force).await;
    let (after, length) = (simulator.stats(), start.elapsed());
    let since = |count: fn(&Stats) -> u64| count(&after) - count(&before);
    Phase {
        capacity,
        length,
        calls: since(|stats| stats.calls),
        refused: since(|stats| stats.refused_503),
        answered: since(|stats| stats.answered),
        limits,
    }
}

impl Phase {
    fn row(&self) -> [String; 7] {
        let answered = self.answered as f64 / self.length.as_secs_f64();
        let oracle = self.capacity as f64 / LATENCY.as_secs_f64();
        [
            self.capacity.to_string(),
            self.settled().map_or_else(
                || "never".to_owned(),
                |after| format!("{:.1} s", after.as_secs_f64()),
            ),
            self.calls.to_string(),
            self.refused.to_string(),
            percent(self.refused as f64 / self.calls as f64),
            format!("{answered:.0}"),
            percent(answered / oracle),
        ]
    }

    /// After how long the limit, averaged over a second, was near the capacity and stayed there.
    fn settled(&self) -> Option<Duration> {
        let capacity = self.capacity as f64;
        let is_far = |looks: &[f64]| {
            let mean = looks.iter().sum::<f64>() / looks.len() as f64;
            (mean - capacity).abs() > NEAR * capacity
        };
        let last_far = self.limits.windows(SMOOTHED).rposition(is_far);
        // A second's average counts from its end.
        let near_from = last_far.map_or(0, |window| window + SMOOTHED);
        (near_from < self.limits.len()).then(|| PERIOD * near_from as u32)
    }
}
