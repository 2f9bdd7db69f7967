//! How long whole calls take, for counting instructions: calls of one kind, one after the other on
//! one thread. Prints the shortest time of a call over samples of a hundred, in microseconds.
//!
//! `cargo bench --bench calls -- KIND CALLS`
//!
//! A kind is `chat`, `forward` (a call on Gemini's own surface), `stream`, or `direct` (to the
//! simulator itself), with `-own` if the caller brings a key, `-admin` if there is an admin key,
//! `-log` if the log is written, and `-short` if the server's key is too short for redaction.

use std::time::Instant;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::{AdminKey, Config, LogFormat};
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::{ApiKey, Secrets};
use gemini_concurrent_generation::server::Worker;
use gemini_concurrent_generation::simulator::{Options, Simulator};
use gemini_concurrent_generation::telemetry;

#[path = "support/listen.rs"]
mod listen;

use listen::listen;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROMPT: &str = "Why is the sky blue, and why is it red in the evening?";
const MODEL: &str = "/v1beta/models/gemini-3.5-flash-lite";

/// Keys as long as Google's.
const SERVERS: &str = "AIzaSyB7Rm4kWzTq1Nc8XvLd3GhJ6YpFs0UeQo5";
const OWN: &str = "AIzaSyD3Nq8mVxT0rKc2LwYb5HfJ7uEpG9aZsQ1";

const SAMPLE: usize = 100;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|text| text != "--bench").collect();
    let [kind, calls] = &*arguments else { panic!("KIND CALLS") };
    let calls: usize = calls.parse().expect("a number");
    let _logs = kind.contains("-log").then(|| {
        let secrets = Secrets::new([&ApiKey::new(SERVERS).expect("a key")]);
        telemetry::init(LogFormat::Text, "info", secrets)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the runtime starts").block_on(run(kind, calls));
}

async fn run(kind: &str, calls: usize) {
    let gateway = gateway_to_simulator(kind).await;
    let upstream = gateway.config.base_url.clone();
    let direct = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let router = api::router(gateway);
    let chat = json!({"prompt": PROMPT}).to_string();
    let native = json!({"contents": [{"parts": [{"text": PROMPT}]}]}).to_string();
    let mut shortest = f64::MAX;
    for _ in 0..calls.div_ceil(SAMPLE) {
        let began = Instant::now();
        for _ in 0..SAMPLE {
            let (base, path, body) = match kind.split('-').next().unwrap_or_default() {
                "chat" => ("", "/chat".to_owned(), &chat),
                "forward" => ("", format!("{MODEL}:generateContent"), &native),
                "stream" => ("", format!("{MODEL}:streamGenerateContent?alt=sse"), &native),
                "direct" => (&*upstream, format!("{MODEL}:generateContent"), &native),
                _ => panic!("unknown kind"),
            };
            let mut request =
                Request::post(format!("{base}{path}")).header(CONTENT_TYPE, "application/json");
            if base.is_empty() {
                request = request.header(HOST, "localhost");
            } else {
                request = request.header("x-goog-api-key", "bench");
            }
            if kind.contains("-own") {
                request = request.header("x-goog-api-key", OWN);
            }
            let request = request.body(Body::from(body.clone())).expect("a valid request");
            let body = if base.is_empty() {
                let answer = router.clone().oneshot(request).await.expect("never fails");
                assert_eq!(answer.status(), StatusCode::OK);
                answer.into_body()
            } else {
                Body::new(direct.request(request).await.expect("an answer").into_body())
            };
            body.collect().await.expect("a whole body");
        }
        shortest = shortest.min(began.elapsed().as_secs_f64() / SAMPLE as f64);
    }
    println!("{kind}: {:.1} us", shortest * 1e6);
}

/// A gateway to a simulator in this process, with a key as long as Google's, or for `-short` one
/// too short for redaction.
async fn gateway_to_simulator(kind: &str) -> Gateway {
    let workers = vec![Worker::here(Simulator::new(Options::default()).router())];
    let address = listen(workers, &CancellationToken::new()).await;
    let mut config = Config { base_url: format!("http://{address}"), ..Config::default() };
    let key = if kind.contains("-short") { "bench" } else { SERVERS };
    config.set_gemini_api_key(ApiKey::new(key).expect("a key"));
    if kind.contains("-admin") {
        config.admin_api_key = Some(AdminKey::new("the-key-of-the-administrator"));
    }
    Gateway::new(config, true).expect("a valid base URL")
}
