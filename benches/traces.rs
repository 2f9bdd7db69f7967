//! What traces cost: chats without traces, with one trace in a hundred, and with all traces, in turns in
//! one run. Prints the times of a chat over those without traces.
//!
//! `cargo bench --bench traces -- [ROUNDS]`
//!
//! The processor time is that of the whole process: of the client, the gateway, the simulator, the
//! exporter's thread and the receiver, which throws spans away.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use http_body_util::BodyExt;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::ApiKey;
use gemini_concurrent_generation::metrics::Format;
use gemini_concurrent_generation::server::Worker;
use gemini_concurrent_generation::simulator::{Options, Simulator};
use gemini_concurrent_generation::traces::{Collector, SpanQueue, TraceSampler, TraceSettings};

#[path = "support/listen.rs"]
mod listen;

use listen::listen;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "AIzaSyB7Rm4kWzTq1Nc8XvLd3GhJ6YpFs0UeQo5";
const PROMPT: &str = "Why is the sky blue, and why is it red in the evening?";

/// How many chats a sample has, and how many samples there are of each variant.
const SAMPLE: usize = 100;
const ROUNDS: usize = 200;

/// A gateway, and the samples of its chats.
struct Variant {
    name: &'static str,
    gateway: Gateway,
    router: Router,
    samples: Vec<Sample>,
}

/// The mean time of a chat in one sample, in microseconds.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    processor: f64,
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the runtime starts").block_on(run(rounds.unwrap_or(ROUNDS)));
}

async fn run(rounds: usize) {
    let receiver = receiver();
    let mut variants = [
        variant("off", None).await,
        variant("one in a hundred", Some(settings(&receiver, 0.01))).await,
        variant("all", Some(settings(&receiver, 1.0))).await,
    ];
    let chat = json!({"prompt": PROMPT}).to_string();
    for _ in 0..rounds {
        for variant in &mut variants {
            let sample = sample(&variant.router, &chat).await;
            variant.samples.push(sample);
        }
    }
    let [off, ..] = &variants;
    let (wall, processor) = (off.of(|sample| sample.wall), off.of(|sample| sample.processor));
    println!(
        "traces            time, shortest and median   over off        processor time over off"
    );
    for variant in &variants {
        let own = variant.of(|sample| sample.wall);
        let ratio = |a: [f64; 2], b: [f64; 2]| format!("{:.3} {:.3}", a[0] / b[0], a[1] / b[1]);
        println!(
            "{:17} {:6.1} {:6.1} us                {}     {}",
            variant.name,
            own[0],
            own[1],
            ratio(own, wall),
            ratio(variant.of(|sample| sample.processor), processor),
        );
    }
    let [.., all] = &variants;
    all.gateway.traces.stop().await;
    let spans = all.gateway.metrics.encode(Format::Text).expect("text");
    spans.lines().filter(|line| line.contains("spans_total{")).for_each(|line| println!("{line}"));
}

impl Variant {
    /// The shortest and the median of a time.
    fn of(&self, time: impl Fn(&Sample) -> f64) -> [f64; 2] {
        let mut times: Vec<_> = self.samples.iter().map(time).collect();
        times.sort_by(f64::total_cmp);
        [times[0], times[times.len() / 2]]
    }
}

/// Sends some chats, one after the other.
async fn sample(router: &Router, chat: &str) -> Sample {
    let (began, processor) = (Instant::now(), processor_time());
    for _ in 0..SAMPLE {
        let request = Request::post("/chat").header(HOST, "localhost");
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(chat.to_owned())).expect("a valid request");
        let answer = router.clone().oneshot(request).await.expect("never fails");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body().collect().await.expect("a whole body");
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / SAMPLE as f64;
    let processor = processor_time() - processor;
    Sample { wall: micros(began.elapsed()), processor: micros(processor) }
}

/// The processor time of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

async fn variant(name: &'static str, traces: Option<TraceSettings>) -> Variant {
    let workers = vec![Worker::here(Simulator::new(Options::default()).router())];
    let address = listen(workers, &CancellationToken::new()).await;
    let mut config = Config { base_url: format!("http://{address}"), traces, ..Config::default() };
    config.set_gemini_api_key(ApiKey::new(KEY).expect("a key"));
    let gateway = Gateway::new(config, true).expect("a valid base URL");
    Variant { name, router: api::router(gateway.clone()), gateway, samples: Vec::new() }
}

fn settings(receiver: &str, ratio: f64) -> TraceSettings {
    TraceSettings {
        collector: Collector {
            url: receiver.parse().expect("a URL"),
            headers: Vec::new(),
            timeout: Duration::from_secs(10),
            compresses: false,
            authorities: Default::default(),
            proxy: None,
        },
        resource: vec![("service.name".to_owned(), "bench".to_owned())],
        sampler: TraceSampler { ratio, follows_caller: true },
        propagates: true,
        captures_content: false,
        queue: SpanQueue { delay: Duration::from_millis(200), ..SpanQueue::default() },
    }
}

/// The URL of a receiver on a thread of its own.
fn receiver() -> String {
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("the runtime starts").block_on(async {
            let router = Router::new().route("/v1/traces", post(async |_: Bytes| ""));
            let stop = CancellationToken::new();
            let address = listen(vec![Worker::here(router)], &stop).await;
            sender.send(address).expect("it is waited for");
            std::future::pending::<()>().await;
        });
    });
    format!("http://{}/v1/traces", address.recv().expect("an address"))
}
