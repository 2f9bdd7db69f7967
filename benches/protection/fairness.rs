//! How long a chat waits beside a large batch, and how two batches share.
//!
//! The bottleneck is first a concurrency limit of 20 with a latency of 250 ms, and then a quota
//! with the same throughput: one call every 12.5 ms, called a slot-time. A chat that waits for the
//! next slot, and not for the batch, waits at most a slot-time if slots become free evenly. With a
//! concurrency limit they soon do not, as latencies vary a little; so the batch's items that are
//! admitted before the chat are counted too.
//!
//! A chat's wait lasts from when the client sends it until the simulator receives the call. Both
//! times are of one clock, so that no latency has to be subtracted. The latency is fixed, except
//! for the first calls of a batch, which have staggered latencies from one slot-time on: if all
//! began together, all slots would become free at once every 250 ms, and a chat would wait for that
//! moment.

use std::collections::HashMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use gemini_concurrent_generation::simulator::{JournalEntry, Options};

use crate::stage::{Protection, Service, Stage};
use crate::{Scale, announce, percent, print_table};

const ITEMS: usize = 10_000;
const LATENCY: Duration = Duration::from_millis(250);
const LIMIT: usize = 20;
const SLOT: Duration = Duration::from_micros(12_500);

/// The concurrency limit if the quota is the bottleneck.
const AMPLE_LIMIT: usize = 100;

/// The average time between two chats. It varies randomly by half of it.
const INTERVAL: Duration = Duration::from_secs(1);
const QUICK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
enum Bottleneck {
    Limit,
    Quota,
}

/// A batch and how it went.
struct Batch {
    answered: usize,
    took: Duration,
}

/// How long the chats beside a batch waited.
struct Chats {
    sent: usize,
    /// The waits of answered chats in slot-times, shortest first.
    waits: Vec<f64>,
    /// How many items of the batch were admitted while each chat waited, fewest first.
    items_first: Vec<f64>,
}

/// Two concurrent batches.
struct Pair {
    batches: [Batch; 2],
    /// How many items of each were answered when the first batch ended.
    done: [usize; 2],
}

pub async fn measure(scale: Scale) {
    let items = scale.count(ITEMS);
    println!("## Fairness\n");
    println!(
        "A batch of {items}; a slot-time is {} ms, so that nothing is faster than {:.1} s.\n",
        SLOT.as_secs_f64() * 1e3,
        (SLOT * items as u32).as_secs_f64(),
    );
    let (mut chat_rows, mut pair_rows) = (Vec::new(), Vec::new());
    for bottleneck in [Bottleneck::Limit, Bottleneck::Quota] {
        announce(&format!("{}: a batch alone", bottleneck.name()));
        let alone = alone(bottleneck, items, scale).await;
        announce(&format!("{}: a batch with chats beside it", bottleneck.name()));
        let (batch, chats) = beside_chats(bottleneck, items, scale).await;
        chat_rows.push(chat_row(bottleneck, &alone, &batch, &chats));
        announce(&format!("{}: two batches of half the size", bottleneck.name()));
        pair_rows.push(pair(bottleneck, items / 2, scale).await.row(bottleneck));
    }
    let heading = [
        "bottleneck",
        "chats answered",
        "wait p50, slot-times",
        "wait p95, slot-times",
        "items admitted before it, p95",
        "batch alone",
        "batch beside chats",
        "over alone",
        "items answered",
    ];
    print_table(heading, &chat_rows);
    let heading = [
        "bottleneck",
        "batch A",
        "batch B",
        "answered when the first ended",
        "behind",
        "answered in the end",
    ];
    print_table(heading, &pair_rows);
}

impl Bottleneck {
    fn name(self) -> &'static str {
        match self {
            Self::Limit => "concurrency limit",
            Self::Quota => "requests per minute",
        }
    }

    async fn start(self, scale: Scale) -> (Stage, Service) {
        let (concurrency, requests) = match self {
            Self::Limit => (LIMIT, None),
            Self::Quota => (AMPLE_LIMIT, Some(scale.minute.div_duration_f64(SLOT) as u64)),
        };
        let stage = Stage::start(Options {
            requests_per_minute: requests,
            minute_seconds: scale.minute.as_secs_f64(),
            latency_ms: LATENCY.as_millis() as u64,
            journal: true,
            ..Options::default()
        })
        .await;
        let limits = requests.map_or_else(String::new, |requests| format!("*:rpm={requests}"));
        let protection = Protection { concurrency, limits, minute: scale.minute };
        let service = stage.service(&protection).await;
        (stage, service)
    }
}

async fn alone(bottleneck: Bottleneck, items: usize, scale: Scale) -> Batch {
    let (_stage, service) = bottleneck.start(scale).await;
    batch(&service, "item", items).await
}

/// Sends a batch whose prompts begin with a name.
async fn batch(service: &Service, name: &str, items: usize) -> Batch {
    let prompt = |index: usize| {
        let latency = if index < LIMIT { SLOT * (index as u32 + 1) } else { LATENCY };
        format!("{name} {index} [[simulate:latency_ms={}]]", latency.as_millis())
    };
    let start = Instant::now();
    let answered = service.batch((0..items).map(prompt).collect()).await;
    Batch { answered, took: start.elapsed() }
}

async fn beside_chats(bottleneck: Bottleneck, items: usize, scale: Scale) -> (Batch, Chats) {
    let (stage, service) = bottleneck.start(scale).await;
    let interval = if scale.quick { QUICK_INTERVAL } else { INTERVAL };
    let mut chats = JoinSet::new();
    let batch = tokio::select! {
        batch = batch(&service, "item", items) => batch,
        never = chat_on(&service, interval, &mut chats) => match never {},
    };
    let sent = chats.join_all().await;
    (batch, Chats::new(&sent, &arrivals(stage.simulator.journal())))
}

/// Sends chats at intervals, whether or not the last was answered, and records when each was sent.
async fn chat_on(
    service: &Service,
    interval: Duration,
    chats: &mut JoinSet<(String, Instant)>,
) -> std::convert::Infallible {
    let mut random = Rng::with_seed(1);
    for number in 0_u64.. {
        sleep(interval.mul_f64(0.5 + random.f64())).await;
        let (service, prompt) = (service.clone(), format!("chat {number}"));
        chats.spawn(async move {
            let sent = Instant::now();
            service.chat(prompt.clone()).await;
            (prompt, sent)
        });
    }
    unreachable!("the numbers do not run out")
}

/// When the answered calls arrived at the simulator, by their prompts.
fn arrivals(journal: Vec<JournalEntry>) -> HashMap<String, Instant> {
    let answered = journal.into_iter().filter(|entry| entry.status == Some(200));
    answered.map(|entry| (entry.prompt_text, entry.arrived_at)).collect()
}

impl Chats {
    fn new(sent: &[(String, Instant)], arrivals: &HashMap<String, Instant>) -> Self {
        let wait = |(prompt, sent): &(String, Instant)| {
            Some(arrivals.get(prompt)?.duration_since(*sent).div_duration_f64(SLOT))
        };
        let mut items: Vec<_> = arrivals.values().copied().collect();
        items.sort();
        let items_first = |(prompt, sent): &(String, Instant)| {
            let before = |moment: Instant| items.partition_point(|item| *item < moment);
            Some((before(*arrivals.get(prompt)?) - before(*sent)) as f64)
        };
        let waits = sorted(sent.iter().filter_map(wait).collect());
        let items_first = sorted(sent.iter().filter_map(items_first).collect());
        Self { sent: sent.len(), waits, items_first }
    }
}

fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}

fn percentile(sorted: &[f64], fraction: f64, digits: usize) -> String {
    let rank = (sorted.len() as f64 * fraction).ceil() as usize;
    let figure = sorted.get(rank.saturating_sub(1));
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"))
}

fn chat_row(bottleneck: Bottleneck, alone: &Batch, batch: &Batch, chats: &Chats) -> [String; 9] {
    [
        bottleneck.name().to_owned(),
        format!("{} of {}", chats.waits.len(), chats.sent),
        percentile(&chats.waits, 0.5, 2),
        percentile(&chats.waits, 0.95, 2),
        percentile(&chats.items_first, 0.95, 0),
        alone.time(),
        batch.time(),
        format!("{:.3}", batch.took.div_duration_f64(alone.took)),
        format!("{} and {}", alone.answered, batch.answered),
    ]
}

async fn pair(bottleneck: Bottleneck, items: usize, scale: Scale) -> Pair {
    let (stage, service) = bottleneck.start(scale).await;
    let mut both = JoinSet::new();
    for (index, name) in ["A", "B"].into_iter().enumerate() {
        let service = service.clone();
        both.spawn(async move { (index, batch(&service, name, items).await) });
    }
    let mut batches = [const { None }; 2];
    let (first, batch) = both.join_next().await.expect("a task").expect("it does not panic");
    batches[first] = Some(batch);
    let answered = arrivals(stage.simulator.journal());
    let done =
        ["A ", "B "].map(|name| answered.keys().filter(|prompt| prompt.starts_with(name)).count());
    let (second, batch) = both.join_next().await.expect("a task").expect("it does not panic");
    batches[second] = Some(batch);
    Pair { batches: batches.map(|batch| batch.expect("both ended")), done }
}

impl Batch {
    fn time(&self) -> String {
        format!("{:.1} s", self.took.as_secs_f64())
    }
}

impl Pair {
    fn row(&self, bottleneck: Bottleneck) -> [String; 6] {
        let [a, b] = &self.batches;
        let [less, more] = [self.done[0].min(self.done[1]), self.done[0].max(self.done[1])];
        [
            bottleneck.name().to_owned(),
            a.time(),
            b.time(),
            format!("{} and {}", self.done[0], self.done[1]),
            percent(1.0 - less as f64 / more as f64),
            format!("{} and {}", a.answered, b.answered),
        ]
    }
}
