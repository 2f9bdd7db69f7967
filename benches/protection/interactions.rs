//! Interactions against a quota of requests: refusals, calls in flight, and how much of the quota was
//! used.
//!
//! 200 clients send interactions one after the other: plain, as streams and in the background, whose
//! ends half of the clients poll and the gateway learns by itself for the others. In a second run, a
//! third of the calls are `generateContent` of the same model. The concurrency limit is 15, and a minute has
//! room for 600 requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use gemini_concurrent_generation::simulator::{Options, Stats};

use crate::load::{drive, sampled};
use crate::stage::{Call, Protection, Stage};
use crate::{Scale, announce, percent, print_table};

const CLIENTS: usize = 200;
const CONCURRENCY: usize = 15;
const REQUESTS_PER_MINUTE: u64 = 600;

/// The calls of a run: those of five minutes.
const CALLS: usize = 3000;

/// How long a call takes, and how often clients poll, in a minute of 60 seconds. Both are scaled with
/// the minute.
const LATENCY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_secs(1);

const INTERACTIONS: [Call; 4] =
    [Call::Interaction, Call::StreamedInteraction, Call::PolledRun, Call::ForgottenRun];
const MIXED: [Call; 6] = [
    Call::Interaction,
    Call::StreamedInteraction,
    Call::GenerateContent,
    Call::PolledRun,
    Call::ForgottenRun,
    Call::GenerateContent,
];

pub async fn measure(scale: Scale) {
    println!("## Interactions\n");
    println!(
        "{CLIENTS} clients, {CALLS} calls; a minute of {} s has room for {REQUESTS_PER_MINUTE} \
         requests, and {CONCURRENCY} calls may be in flight.\n",
        scale.minute.as_secs_f64(),
    );
    let mut rows = Vec::new();
    for (name, calls) in
        [("interactions", &INTERACTIONS[..]), ("with generateContent mixed in", &MIXED)]
    {
        announce(name);
        rows.push(run(name, calls, scale.minute).await);
    }
    let heading = [
        "calls",
        "answered",
        "refused (429)",
        "highest in flight",
        "in minutes",
        "quota used from the 2nd minute on",
        "least of a minute",
    ];
    print_table(heading, &rows);
}

async fn run(name: &str, calls: &'static [Call], minute: Duration) -> [String; 7] {
    let scaled = move |time: Duration| time.mul_f64(minute.as_secs_f64() / 60.0);
    let stage = Stage::start(Options {
        requests_per_minute: Some(REQUESTS_PER_MINUTE),
        minute_seconds: minute.as_secs_f64(),
        latency_ms: scaled(LATENCY).as_millis() as u64,
        ..Options::default()
    })
    .await;
    let limits = format!("*:rpm={REQUESTS_PER_MINUTE}");
    let protection = Protection { concurrency: CONCURRENCY, limits, minute };
    let service = stage.service(&protection).await;
    let prompts = (0..CALLS).map(|at| format!("What is new in year {at}?")).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let work = drive(CLIENTS, prompts, move |prompt| {
        let (service, at) = (service.clone(), next.fetch_add(1, Ordering::Relaxed));
        async move { service.call(calls[at % calls.len()], &prompt, scaled(POLL)).await }
    });
    let began = Instant::now();
    let admitted = || stage.simulator.stats().admitted;
    let (answered, minutes) = sampled(work, stage.started, minute, admitted).await;
    let took = began.elapsed();
    let Stats { refused_429, highest_in_flight, .. } = stage.simulator.stats();
    let used = |pair: &[u64]| (pair[1] - pair[0]) as f64 / REQUESTS_PER_MINUTE as f64;
    let shares: Vec<f64> = minutes.windows(2).map(used).collect();
    let average = shares.iter().sum::<f64>() / shares.len() as f64;
    [
        name.to_owned(),
        answered.to_string(),
        refused_429.values().sum::<u64>().to_string(),
        highest_in_flight.to_string(),
        format!("{:.2}", took.div_duration_f64(minute)),
        percent(average),
        percent(shares.iter().copied().fold(f64::INFINITY, f64::min)),
    ]
}
