//! Jobs of a hundred thousand and of a million items: whether they are complete and in order, how fast
//! they run compared with batches, and what they take of memory, processor and disk.
//!
//! The service is the real program, with one job store in SQLite. The upstream is in this process and
//! answers each call after 20 ms. `docs/benchmarks.md` says how to run it.

use std::fmt::Write;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use clap::Parser;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use gemini_concurrent_generation::server::Worker;

#[path = "../support/listen.rs"]
mod listen;

use listen::listen;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the upstream takes for a call.
const LATENCY: Duration = Duration::from_millis(20);

/// How many calls the service sends at once.
const LIMIT: usize = 64;

/// The length of a prompt and of an answer, in bytes.
const TEXT: usize = 1_000;

/// How many items a batch has, and how many batches run at once, so that one is sent while the other is
/// read.
const BATCH: usize = 10_000;
const BATCHES_AT_ONCE: usize = 2;

#[derive(Debug, Parser)]
struct Arguments {
    /// The items of each job.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    items: Vec<usize>,
    /// The items of the batches to compare with.
    #[arg(long, default_value_t = 100_000)]
    in_batches: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        // `cargo test --all-targets` also starts benchmarks, only to see that they start.
        println!("cargo bench --bench jobs");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(measure(&arguments));
    ExitCode::SUCCESS
}

async fn measure(arguments: &Arguments) {
    let most = arguments.items.iter().copied().max().unwrap_or(0).max(arguments.in_batches);
    let upstream = Upstream::new(most);
    let stop = CancellationToken::new();
    let address = listen(vec![Worker::start(upstream.router()).expect("a worker")], &stop).await;
    let url = format!("http://{address}");

    println!(
        "| what | items | per second | upload | peak memory | CPU per item | stored | calls |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    let in_batches = batches(&upstream, &url, arguments.in_batches).await;
    for &items in &arguments.items {
        let rate = job(&upstream, &url, items).await;
        println!("\njob to batches: {:.2}\n", rate / in_batches);
    }
    stop.cancel();
}

/// Answers prompts that begin with their number, and counts the calls for each.
struct Upstream {
    calls: Vec<AtomicU8>,
}

impl Upstream {
    fn new(prompts: usize) -> Arc<Self> {
        Arc::new(Self { calls: (0..prompts).map(|_| AtomicU8::new(0)).collect() })
    }

    fn router(self: &Arc<Self>) -> Router {
        Router::new().route("/v1beta/models/{call}", post(reply)).with_state(Arc::clone(self))
    }

    /// How many calls there were for the first `prompts`. Forgets them.
    fn take(&self, prompts: usize) -> usize {
        self.calls[..prompts].iter().map(|calls| usize::from(calls.swap(0, Relaxed))).sum()
    }
}

#[derive(Deserialize)]
struct Request {
    contents: Vec<Content>,
}

#[derive(Deserialize)]
struct Content {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    text: String,
}

async fn reply(
    State(upstream): State<Arc<Upstream>>,
    body: Bytes,
) -> ([(&'static str, &'static str); 1], String) {
    let request: Request = serde_json::from_slice(&body).expect("a request");
    let number = number(&request.contents[0].parts[0].text);
    upstream.calls[number].fetch_add(1, Relaxed);
    sleep(LATENCY).await;
    let text = text(number);
    let answer = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}},"finishReason":"STOP"}}],"usageMetadata":{{"promptTokenCount":250,"candidatesTokenCount":250,"totalTokenCount":500}}}}"#
    );
    ([("content-type", "application/json")], answer)
}

/// A text of a thousand bytes that begins with its number.
fn text(number: usize) -> String {
    let mut text = format!("{number} ");
    while text.len() < TEXT {
        // Numbers, since a store could compress a repeated word to nothing.
        write!(text, "{} ", text.len().wrapping_mul(number + 7919)).expect("a string");
    }
    text.truncate(TEXT);
    text
}

fn number(text: &str) -> usize {
    text.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The real program. It is killed when dropped.
struct Service {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Service {
    async fn start(upstream: &str, data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemini-concurrent-generation"))
            .env_clear()
            .envs([
                ("HOST", "127.0.0.1"),
                ("PORT", "0"),
                ("GEMINI_API_KEY", "a-key"),
                ("LOG_FORMAT", "json"),
            ])
            .env("GEMINI_BASE_URL", upstream)
            .env("GEMINI_CONCURRENCY_LIMIT", LIMIT.to_string())
            .env("DATA_DIR", data)
            .current_dir(data)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the service starts");
        let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
        let address = loop {
            let line = log.next_line().await.expect("its log").expect("it is ready");
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            if line["message"] == "ready" {
                break line["address"].as_str().expect("an address").to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        // The first default provider that is installed stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().build().expect("a client");
        Self { child, url: format!("http://{address}"), http }
    }

    fn read(&self, file: &str) -> String {
        let process = self.child.id().expect("it runs");
        std::fs::read_to_string(format!("/proc/{process}/{file}")).expect("Linux")
    }

    /// The highest memory that it has taken, in MB.
    fn peak_memory(&self) -> f64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0 / 1e6
    }

    /// The processor time that it has taken.
    fn processor_time(&self) -> Duration {
        let stat = self.read("stat");
        let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks: u64 =
            fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
        // Linux counts in hundredths of a second for programs.
        Duration::from_millis(10 * ticks)
    }
}

/// Sends items in batches. Returns how many were answered in a second.
async fn batches(upstream: &Arc<Upstream>, url: &str, items: usize) -> f64 {
    let data = tempfile::tempdir().expect("a folder");
    let service = Service::start(url, data.path()).await;
    let began = Instant::now();
    let all = stream::iter((0..items).step_by(BATCH))
        .map(|first| batch(&service, first, BATCH.min(items - first)));
    all.buffer_unordered(BATCHES_AT_ONCE).collect::<Vec<()>>().await;
    let rate = items as f64 / began.elapsed().as_secs_f64();
    let cpu = service.processor_time() / items as u32;
    let calls = upstream.take(items);
    println!(
        "| `/batch/chat` | {items} | {rate:.0} | | {:.0} MB | {cpu:.0?} | | {calls} |",
        service.peak_memory()
    );
    rate
}

async fn batch(service: &Service, first: usize, items: usize) {
    let requests: Vec<_> =
        (first..first + items).map(|n| format!(r#"{{"prompt":"{}"}}"#, text(n))).collect();
    let body = format!(r#"{{"requests":[{}]}}"#, requests.join(","));
    let request = service.http.post(format!("{}/batch/chat", service.url));
    let answer = request
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .expect("an answer");
    let answer: Value =
        serde_json::from_slice(&answer.bytes().await.expect("a whole answer")).expect("JSON");
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), items);
    for (result, n) in results.iter().zip(first..) {
        assert_eq!(number(result["response"].as_str().expect("an answer")), n);
    }
}

/// Runs a job and checks its results. Returns how many items were answered in a second.
async fn job(upstream: &Arc<Upstream>, url: &str, items: usize) -> f64 {
    let data = tempfile::tempdir().expect("a folder");
    let service = Service::start(url, data.path()).await;
    let lines = stream::iter((0..items).step_by(100)).map(move |first| {
        let lines =
            (first..items.min(first + 100)).map(|n| format!("{{\"prompt\":\"{}\"}}\n", text(n)));
        Ok::<_, std::io::Error>(lines.collect::<String>())
    });
    let began = Instant::now();
    let request = service.http.post(format!("{}/jobs?kind=chat", service.url));
    let request = request
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(lines));
    let accepted = request.send().await.expect("an answer");
    assert_eq!(accepted.status(), 202);
    let upload = began.elapsed();
    let accepted: Value =
        serde_json::from_slice(&accepted.bytes().await.expect("a job")).expect("JSON");
    let id = accepted["job_id"].as_str().expect("an id");

    let ran = Instant::now();
    let results = format!("{}/jobs/{id}/results?follow=true", service.url);
    let results = service.http.get(results).send().await.expect("an answer").bytes_stream();
    let mut next = 0;
    let mut rest = Vec::new();
    let mut pieces = std::pin::pin!(results);
    while let Some(piece) = pieces.next().await {
        rest.extend_from_slice(&piece.expect("a whole answer"));
        let mut read = 0;
        while let Some(end) = memchr::memchr(b'\n', &rest[read..]) {
            check(&rest[read..read + end], next);
            read += end + 1;
            next += 1;
        }
        rest.drain(..read);
    }
    assert_eq!((next, rest.len()), (items, 0));
    let rate = items as f64 / ran.elapsed().as_secs_f64();
    let stored: u64 = std::fs::read_dir(data.path())
        .expect("its files")
        .map(|file| file.expect("a file").metadata().expect("its size").len())
        .sum();
    let (memory, cpu, calls) =
        (service.peak_memory(), service.processor_time() / items as u32, upstream.take(items));
    println!(
        "| job | {items} | {rate:.0} | {:.1} s | {memory:.0} MB | {cpu:.0?} | {:.2} GB | {calls} |",
        upload.as_secs_f64(),
        stored as f64 / 1e9
    );
    rate
}

/// Checks that a line is the result of an item.
fn check(line: &[u8], index: usize) {
    let result: Value = serde_json::from_slice(line).expect("a line of JSON");
    assert_eq!(result["index"], index);
    assert_eq!(result["success"], true, "{result}");
    assert_eq!(number(result["response"].as_str().expect("an answer")), index);
}
