//! Measures the latency of chats alone, and beside another caller's heavy schemas.
//!
//! `cargo bench --bench schemas` prints the latencies of the chats and their ratios. Everything
//! runs in this process: an upstream that echoes requests, the service with a thread for each
//! processor, eight clients that chat, and four clients with another key whose schemas take seconds
//! to compile or to check against.

use std::net::SocketAddr;
use std::time::Duration;

use axum::{Json, Router};
use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::server::{Limits, Worker, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const CHATTING: usize = 8;
const HEAVY: usize = 4;
const PHASE: Duration = Duration::from_secs(10);

/// Sorted latencies of chats.
struct Latencies(Vec<Duration>);

#[tokio::main]
async fn main() {
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let upstream = listen(|| Router::new().fallback(repeat), &stop).await;
    let base_url = format!("http://{upstream}");
    let config = Config { base_url, concurrency_limit: 100, ..Config::default() };
    let gateway = Gateway::new(config, false).expect("a base URL");
    let router = || api::router(gateway.with_own_connections());
    let service = listen(router, &stop).await;

    println!("| chats | p50 | p99 | longest | p50 to alone | p99 to alone |");
    println!("|---|---|---|---|---|---|");
    let alone = phase(service, None).await;
    row("alone", &alone, &alone);
    for (name, body) in [("compiling", compiling()), ("checking", checking())] {
        let beside = phase(service, Some(body)).await;
        row(&format!("beside {name}"), &beside, &alone);
    }
}

fn row(name: &str, latencies: &Latencies, alone: &Latencies) {
    let milliseconds = |duration: Duration| format!("{:.2} ms", duration.as_secs_f64() * 1e3);
    let ratio = |share| latencies.at(share).as_secs_f64() / alone.at(share).as_secs_f64();
    println!(
        "| {name} | {} | {} | {} | {:.2} | {:.2} |",
        milliseconds(latencies.at(0.5)),
        milliseconds(latencies.at(0.99)),
        milliseconds(latencies.at(1.0)),
        ratio(0.5),
        ratio(0.99),
    );
}

impl Latencies {
    fn at(&self, share: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0[(last as f64 * share) as usize]
    }
}

/// A schema close to the bounds.
fn compiling() -> String {
    let parts: Vec<Value> = (0..20_000)
        .map(|i| json!({"if": {"required": [format!("p{i}")]}, "then": {"minProperties": 1}}))
        .collect();
    heavy("Hello", &json!({"type": "object", "allOf": parts}))
}

/// A schema of 95 KB and an answer of 45 KB.
fn checking() -> String {
    let alternatives: Vec<Value> = (0..4_000).map(|i| json!({"const": {"a": i}})).collect();
    let answer = Value::Array(vec![json!({"a": -1}); 5_000]).to_string();
    heavy(&answer, &json!({"type": "array", "items": {"anyOf": alternatives}}))
}

fn heavy(content: &str, schema: &Value) -> String {
    let key = json!({"gemini_api_key": "heavy"});
    let body = json!({"user_content": content, "system_prompt": "Repeat.", "json_schema": schema,
        "credentials": key});
    body.to_string()
}

/// Chats for a while, beside other clients that keep sending a heavy body.
async fn phase(service: SocketAddr, heavy: Option<String>) -> Latencies {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    // Dropping the clients ends them.
    let mut beside = JoinSet::new();
    for body in heavy.into_iter().flat_map(|body| vec![body; HEAVY]) {
        let (http, url) = (http.clone(), format!("http://{service}/structured-output"));
        beside.spawn(async move {
            loop {
                post(&http, &url, body.clone()).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let end = Instant::now() + PHASE;
    let chats: JoinSet<_> = (0..CHATTING).map(|_| chat_until(end, http.clone(), service)).collect();
    let mut latencies = chats.join_all().await.concat();
    latencies.sort_unstable();
    Latencies(latencies)
}

async fn chat_until(end: Instant, http: reqwest::Client, service: SocketAddr) -> Vec<Duration> {
    let url = format!("http://{service}/chat");
    let body =
        json!({"prompt": "Hello", "credentials": {"gemini_api_key": "chatting"}}).to_string();
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        post(&http, &url, body.clone()).await;
        latencies.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    latencies
}

async fn post(http: &reqwest::Client, url: &str, body: String) {
    let request = http.post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await.expect("an answer");
    answer.bytes().await.expect("a whole answer");
}

/// Answers with the text that it receives.
async fn repeat(Json(body): Json<Value>) -> Json<Value> {
    let text = &body["contents"][0]["parts"][0]["text"];
    Json(json!({
        "candidates": [{
            "content": {"parts": [{"text": text}], "role": "model"},
            "finishReason": "STOP",
        }],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
    }))
}

/// Serves on a free port until the token is cancelled, with one worker for each processor.
async fn listen(router: impl Fn() -> Router, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = |_| Worker::start(router()).expect("a thread");
    let workers = (0..processors).map(worker).collect();
    let client_timeout = Duration::from_secs(600);
    let limits = Limits { client_timeout, grace: Duration::ZERO, ..Limits::of(&Config::default()) };
    tokio::spawn(serve(listener, workers, limits, stop.clone()));
    address
}
