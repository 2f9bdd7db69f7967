//! Ten thousand chats against quotas: refusals, time, and how much of the quotas was used.
//!
//! Fifty clients send 4,000 chats, and two batches have 3,000 items each. The quotas allow a fifth
//! of the requests a minute and a tenth less than that of their tokens, so that both are near and
//! the token quota is the tighter one. Nothing can be faster than the token quota allows.
//!
//! Clients without protection send straight to the simulator and retry in the usual way: after half
//! a second, a second, two, …, each times a random fraction, at most eight attempts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use gemini_concurrent_generation::simulator::{Counting, Options, Stats};

use crate::load::{self, drive, sampled};
use crate::stage::{Protection, Service, Stage, Upstream};
use crate::{Scale, announce, percent, print_table};

const REQUESTS: usize = 10_000;
const LATENCY_MS: u64 = 300;
const LATENCY_SIGMA: f64 = 0.3;

/// Clients that send one chat at a time.
const CLIENTS: usize = 50;

/// The service's concurrency limit: far more than the quotas allow, so that the quotas decide.
const CONCURRENCY: usize = 100;

/// The attempts of a client without protection, and its longest first wait.
const TRIES: u32 = 8;
const BACKOFF: Duration = Duration::from_millis(500);

/// Prompts, by how they are sent.
#[derive(Clone)]
struct Load {
    singles: Vec<String>,
    batches: [Vec<String>; 2],
}

/// The quotas of a minute.
#[derive(Clone, Copy)]
struct Quotas {
    requests: u64,
    tokens: u64,
}

/// How the clients send their calls.
#[derive(Clone, Copy)]
enum Sender {
    Service { limits_known: bool },
    Unprotected,
    Semaphore(usize),
}

/// What the simulator had admitted at the end of a minute.
#[derive(Clone, Copy)]
struct Admitted {
    requests: u64,
    tokens: u64,
}

/// The result of a run.
struct Run {
    answered: usize,
    stats: Stats,
    took: Duration,
    /// At the end of each whole minute.
    minutes: Vec<Admitted>,
}

pub async fn measure(scale: Scale) {
    let load = Load::new(scale.count(REQUESTS));
    let quotas = Quotas::near(&load);
    introduce(&load, quotas, scale);
    let counted = [Counting::SlidingWindow, Counting::FixedMinute, Counting::TokenBucket];
    let known = counted.map(|counting| (Sender::Service { limits_known: true }, counting));
    // With this way of counting, a burst has the least room.
    let others = [
        Sender::Service { limits_known: false },
        Sender::Unprotected,
        Sender::Semaphore(15),
        Sender::Semaphore(60),
    ]
    .map(|sender| (sender, Counting::SlidingWindow));
    let mut rows = Vec::new();
    for (sender, counting) in known.into_iter().chain(others) {
        let name = format!("{}, {}", sender.name(), name(counting));
        announce(&name);
        let run = run(sender, counting, load.clone(), quotas, scale.minute).await;
        rows.push(run.row(name, load.len(), quotas, scale.minute));
    }
    let heading = [
        "sender, how Gemini counts",
        "answered",
        "never answered",
        "refused (429)",
        "refused of all calls",
        "time",
        "in minutes",
        "quota used from the 2nd minute on",
        "least of a minute",
    ];
    print_table(heading, &rows);
}

fn introduce(load: &Load, quotas: Quotas, scale: Scale) {
    let tokens = load.tokens();
    println!("## Quotas\n");
    println!(
        "{} chats, of {} tokens on average; a minute of {} s has room for {} requests and {} \
         tokens. The tokens alone take {:.2} minutes.\n",
        load.len(),
        tokens / load.len() as u64,
        scale.minute.as_secs_f64(),
        quotas.requests,
        quotas.tokens,
        tokens as f64 / quotas.tokens as f64,
    );
}

impl Load {
    fn new(requests: usize) -> Self {
        let mut singles = load::prompts(requests, 1);
        let first = singles.split_off(requests * 4 / 10);
        let (first, second) = first.split_at(first.len() / 2);
        Self { singles, batches: [first.to_vec(), second.to_vec()] }
    }

    fn len(&self) -> usize {
        self.singles.len() + self.batches.iter().map(Vec::len).sum::<usize>()
    }

    fn tokens(&self) -> u64 {
        load::tokens(self.singles.iter().chain(self.batches.iter().flatten()))
    }
}

impl Quotas {
    fn near(load: &Load) -> Self {
        Self { requests: load.len() as u64 / 5, tokens: load.tokens() * 9 / 50 }
    }

    /// In the form of the service's setting, for every model.
    fn setting(self) -> String {
        format!("*:rpm={},tpm={}", self.requests, self.tokens)
    }

    /// The used share of a minute's quota, for the quota of which more was used.
    fn used(self, minute: Admitted) -> f64 {
        let share = |used: u64, quota: u64| used as f64 / quota as f64;
        share(minute.requests, self.requests).max(share(minute.tokens, self.tokens))
    }
}

impl Sender {
    fn name(self) -> String {
        match self {
            Self::Service { limits_known: true } => "the service, limits known".to_owned(),
            Self::Service { limits_known: false } => "the service, limits unknown".to_owned(),
            Self::Unprotected => "clients without a limit".to_owned(),
            Self::Semaphore(limit) => format!("clients with a semaphore of {limit}"),
        }
    }
}

fn name(counting: Counting) -> &'static str {
    match counting {
        Counting::SlidingWindow => "sliding window",
        Counting::FixedMinute => "fixed minute",
        Counting::TokenBucket => "token bucket",
    }
}

async fn run(
    sender: Sender,
    counting: Counting,
    load: Load,
    quotas: Quotas,
    minute: Duration,
) -> Run {
    let stage = Stage::start(Options {
        requests_per_minute: Some(quotas.requests),
        input_tokens_per_minute: Some(quotas.tokens),
        counting,
        minute_seconds: minute.as_secs_f64(),
        latency_ms: LATENCY_MS,
        latency_sigma: LATENCY_SIGMA,
        answer_bytes: Some(200),
        ..Options::default()
    })
    .await;
    let work = async {
        match sender {
            Sender::Service { limits_known } => {
                let limits = if limits_known { quotas.setting() } else { String::new() };
                let protection = Protection { concurrency: CONCURRENCY, limits, minute };
                through(stage.service(&protection).await, load).await
            }
            Sender::Unprotected => without(stage.upstream(), None, load).await,
            Sender::Semaphore(limit) => without(stage.upstream(), Some(limit), load).await,
        }
    };
    let began = Instant::now();
    let admitted = || {
        let stats = stage.simulator.stats();
        Admitted { requests: stats.admitted, tokens: stats.admitted_input_tokens }
    };
    let (answered, minutes) = sampled(work, stage.started, minute, admitted).await;
    Run { answered, took: began.elapsed(), stats: stage.simulator.stats(), minutes }
}

/// Sends everything through the service. Returns how many calls were answered.
async fn through(service: Service, Load { singles, batches: [first, second] }: Load) -> usize {
    let chats = service.clone();
    let singles = drive(CLIENTS, singles, move |prompt| {
        let service = chats.clone();
        async move { service.chat(prompt).await }
    });
    let answered = tokio::join!(singles, service.batch(first), service.batch(second));
    answered.0 + answered.1 + answered.2
}

/// Sends everything straight to the simulator: the calls of a batch all at once, unless a semaphore
/// limits them. A call does not hold it while it waits for a retry.
async fn without(
    upstream: Upstream,
    limit: Option<usize>,
    Load { singles, batches: [first, second] }: Load,
) -> usize {
    let semaphore = limit.map(|limit| Arc::new(Semaphore::new(limit)));
    let ask = move |prompt: String| {
        let (upstream, semaphore) = (upstream.clone(), semaphore.clone());
        async move { persist(&upstream, semaphore.as_deref(), &prompt).await }
    };
    let answered = tokio::join!(
        drive(CLIENTS, singles, ask.clone()),
        drive(first.len(), first, ask.clone()),
        drive(second.len(), second, ask),
    );
    answered.0 + answered.1 + answered.2
}

/// Sends a call until it is answered or the attempts are used up. Returns whether it was answered.
async fn persist(upstream: &Upstream, semaphore: Option<&Semaphore>, prompt: &str) -> bool {
    for attempt in 0..TRIES {
        if attempt > 0 {
            sleep((BACKOFF * 2_u32.pow(attempt - 1)).mul_f64(fastrand::f64())).await;
        }
        let _permit = match semaphore {
            Some(semaphore) => semaphore.acquire().await.ok(),
            None => None,
        };
        match upstream.generate(prompt).await {
            Some(200) => return true,
            // A burst can break connections too.
            Some(429 | 503) | None => {}
            Some(_) => return false,
        }
    }
    false
}

impl Run {
    fn row(&self, name: String, requests: usize, quotas: Quotas, minute: Duration) -> [String; 9] {
        // Only the quotas refuse here.
        let refused = self.stats.calls - self.stats.admitted;
        let (average, least) = self.used(quotas).map_or_else(
            || ("–".to_owned(), "–".to_owned()),
            |(average, least)| (percent(average), percent(least)),
        );
        [
            name,
            self.answered.to_string(),
            (requests - self.answered).to_string(),
            refused.to_string(),
            percent(refused as f64 / self.stats.calls as f64),
            format!("{:.1} s", self.took.as_secs_f64()),
            format!("{:.2}", self.took.div_duration_f64(minute)),
            average,
            least,
        ]
    }

    /// The share of the tighter quota used from the second minute to the last whole one, on average
    /// and at least. `None` if the run ended before.
    fn used(&self, quotas: Quotas) -> Option<(f64, f64)> {
        let minutes = self.minutes.windows(2).map(|pair| quotas.used(pair[1].since(pair[0])));
        let shares: Vec<f64> = minutes.collect();
        let least = shares.iter().copied().reduce(f64::min)?;
        Some((shares.iter().sum::<f64>() / shares.len() as f64, least))
    }
}

impl Admitted {
    fn since(self, earlier: Self) -> Self {
        Self { requests: self.requests - earlier.requests, tokens: self.tokens - earlier.tokens }
    }
}
