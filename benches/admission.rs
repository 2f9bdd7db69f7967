//! What the service itself costs: the limiter, empty and crowded; building a body and parsing an
//! answer; and whole requests, from the router to an upstream that takes no time.

use std::collections::VecDeque;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Request, StatusCode};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::{Answer, ApiKey, GenerateContent};
use gemini_concurrent_generation::limits::{
    Admission, Cost, Limit, LimitScope, Limiter, Limits, QueueTicket, QuotaKind, QuotaPlan, Refused,
};
use gemini_concurrent_generation::server::Worker;
use gemini_concurrent_generation::simulator::{Options, Simulator};

#[path = "support/listen.rs"]
mod listen;

use listen::listen;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Long enough for a hundred thousand calls at one a minute.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A key as long as Google's, so that redaction searches for it.
const KEY: &str = "AIzaSyB7Rm4kWzTq1Nc8XvLd3GhJ6YpFs0UeQo5";

const PROMPT: &str = "Why is the sky blue, and why is it red in the evening?";

fn limiter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    group.bench_function("admit and release, nobody waiting", |bencher| {
        let limiter = Limiter::new(1, 0, QuotaPlan::default());
        bencher.iter(|| admitted(enter(&limiter)));
    });
    for waiting in [1, 1_000, 100_000] {
        group.bench_function(format!("hand over, {waiting} waiting"), |bencher| {
            let mut queue = Queue::new(waiting);
            bencher.iter(|| queue.hand_over());
        });
    }
    group.finish();
}

/// The cost of the queue for an exhausted quota: refusing a request, and joining and leaving.
fn quota(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime starts");
    let _clock = runtime.enter();
    let mut group = criterion.benchmark_group("quota");
    for waiting in [1, 1_000, 100_000] {
        let mut plan = QuotaPlan::default();
        let limits = Limits::default().with(QuotaKind::RequestsPerMinute, Limit::AtMost(1));
        plan.add_limits(LimitScope { label: None, model: None }, limits).expect("no other limits");
        let limiter = Limiter::new(1, 2 * waiting + 1, plan);
        drop(admitted(enter(&limiter)).start().unwrap());
        let _queue: Vec<_> = (0..waiting).map(|_| waits(enter(&limiter))).collect();
        group.bench_function(format!("refused at once, {waiting} waiting"), |bencher| {
            bencher
                .iter(|| enter_before(&limiter, Instant::now()).now_or_never().expect("at once"));
        });
        group.bench_function(format!("join and leave, {waiting} waiting"), |bencher| {
            bencher.iter(|| waits(enter(&limiter)));
        });
    }
    group.finish();
}

/// The memory of a waiting request without its HTTP connection. Printed, since it is not a time.
fn memory(_: &mut Criterion) {
    const WAITING: usize = 100_000;
    let before = resident();
    let queue = Queue::new(WAITING);
    let each = (resident() - before) / WAITING;
    drop(queue);
    println!("memory of a request that waits, {WAITING} waiting: {each} bytes");
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("a Linux machine");
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number of pages") * 4096
}

type Entering = Pin<Box<dyn Future<Output = Result<Admission, Refused>>>>;

/// A request at the limiter.
fn enter(limiter: &Arc<Limiter>) -> Entering {
    enter_before(limiter, Instant::now() + TEN_YEARS)
}

fn enter_before(limiter: &Arc<Limiter>, deadline: Instant) -> Entering {
    let account = limiter.accounts().of(&[0; 32], &"gemini-3.5-flash-lite".into());
    let queue = QueueTicket::new(Arc::clone(limiter)).queue(account, None);
    Box::pin(async move { queue.head().await.admit(Cost::one(100), deadline).await })
}

/// A request that has to wait, once polled.
fn waits(mut entering: Entering) -> Entering {
    assert!(entering.as_mut().now_or_never().is_none(), "the request must wait");
    entering
}

fn admitted(entering: Entering) -> Admission {
    entering.now_or_never().expect("it is admitted at once").expect("it is not refused")
}

/// A limiter whose only slot is taken, and the requests that wait for it.
struct Queue {
    limiter: Arc<Limiter>,
    admitted: Option<Admission>,
    waiting: VecDeque<Entering>,
}

impl Queue {
    fn new(length: usize) -> Self {
        let limiter = Limiter::new(1, 2 * length + 1, QuotaPlan::default());
        let admitted = Some(admitted(enter(&limiter)));
        let mut queue = Self { limiter, admitted, waiting: VecDeque::new() };
        (0..length).for_each(|_| queue.join());
        queue
    }

    fn join(&mut self) {
        self.waiting.push_back(waits(enter(&self.limiter)));
    }

    /// One more request joins, the one with the slot ends, and the head of the queue is admitted.
    fn hand_over(&mut self) {
        self.join();
        self.admitted = None;
        let first = self.waiting.pop_front().expect("one has just joined");
        self.admitted = Some(admitted(first));
    }
}

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    group.bench_function("build a body", |bencher| {
        bencher.iter(|| {
            let body =
                GenerateContent::ask(black_box(PROMPT)).instructed("Answer in one sentence.");
            body.to_json()
        });
    });
    for kilobytes in [1, 64] {
        let answer = json!({
            "candidates": [{
                "content": {"parts": [{"text": "blue\n".repeat(200 * kilobytes)}], "role": "model"},
                "finishReason": "STOP",
                "index": 0
            }],
            "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 200},
            "modelVersion": "gemini-3.5-flash-lite"
        });
        let answer = answer.to_string();
        group.throughput(Throughput::Bytes(answer.len() as u64));
        group.bench_function(format!("read an answer of {kilobytes} KB"), |bencher| {
            bencher.iter(|| Answer::read(StatusCode::OK, black_box(answer.as_bytes())));
        });
    }
    group.finish();
}

/// What a request costs from the router to an upstream that takes no time and back: a chat, a
/// relayed call, and the first byte of a stream, compared with the upstream alone.
fn whole(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime starts");
    let gateway = runtime.block_on(gateway_to_simulator());
    let upstream = gateway.config.base_url.clone();
    let direct = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let router = api::router(gateway);
    let chat = json!({"prompt": PROMPT}).to_string();
    let native = json!({"contents": [{"parts": [{"text": PROMPT}]}]}).to_string();
    const MODEL: &str = "/v1beta/models/gemini-3.5-flash-lite";
    let generate = format!("{MODEL}:generateContent");
    let stream = format!("{MODEL}:streamGenerateContent?alt=sse");
    let post = |path: &str, body: &String| {
        let request =
            Request::post(path).header(HOST, "localhost").header(CONTENT_TYPE, "application/json");
        request.body(Body::from(body.clone())).expect("a valid request")
    };
    let answered = async |request: Request<Body>| {
        let response = router.clone().oneshot(request).await.expect("the router never fails");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    };
    for (name, path, body) in [("chat", "/chat", &chat), ("forwarded call", &generate, &native)] {
        let name = format!("{name}, from the router to a simulator and back");
        criterion.bench_function(&name, |bencher| {
            bencher.to_async(&runtime).iter(async || {
                let body = answered(post(path, body)).await;
                body.collect().await.expect("a whole body").to_bytes()
            });
        });
    }
    let mut group = criterion.benchmark_group("a stream's first byte");
    let first_byte = async |mut body: Body, asked: std::time::Instant| {
        body.frame().await.expect("an event").expect("a whole body");
        let took = asked.elapsed();
        body.collect().await.expect("a whole body");
        took
    };
    group.bench_function("of the simulator itself", |bencher| {
        bencher.to_async(&runtime).iter_custom(async |times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let mut request = post(&format!("{upstream}{stream}"), &native);
                request.headers_mut().insert("x-goog-api-key", HeaderValue::from_static(KEY));
                let asked = std::time::Instant::now();
                let response = direct.request(request).await.expect("an answer");
                took += first_byte(Body::new(response.into_body()), asked).await;
            }
            took
        });
    });
    group.bench_function("through the service", |bencher| {
        bencher.to_async(&runtime).iter_custom(async |times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let request = post(&stream, &native);
                let asked = std::time::Instant::now();
                took += first_byte(answered(request).await, asked).await;
            }
            took
        });
    });
    group.finish();
}

/// A gateway to a simulator in this process that answers at once.
async fn gateway_to_simulator() -> Gateway {
    let workers = vec![Worker::here(Simulator::new(Options::default()).router())];
    let address = listen(workers, &CancellationToken::new()).await;
    let mut config = Config { base_url: format!("http://{address}"), ..Config::default() };
    config.set_gemini_api_key(ApiKey::new(KEY).expect("a key"));
    Gateway::new(config, true).expect("a valid base URL")
}

criterion_group!(benches, memory, limiter, quota, wire, whole);
criterion_main!(benches);
