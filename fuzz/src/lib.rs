//! Fuzz targets: each takes any bytes and panics if the service misbehaves.
//!
//! A new target needs a function here, a line in [`TARGETS`], a binary in `fuzz/targets` with an
//! entry in `fuzz/Cargo.toml`, and a folder of small inputs in `fuzz/corpus`.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::{AdminKey, Config};
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::{
    Answer, AnswerBuilder, ApiKey, ErrorKind, Events, InputFeatures, InteractionRequest,
    InteractionScanner, Secrets, StreamMonitor, Surface, TokenEstimator, Usage, UsageScanner,
    embedding_requests, encodings, named_model,
};
use gemini_concurrent_generation::jobs::StoreSettings;
use gemini_concurrent_generation::jobs::item::ItemFormat;
use gemini_concurrent_generation::schema::{Schema, SchemaLimits, Work};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// A fuzz target: takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 5] = [
    ("requests", requests),
    ("jobs", jobs),
    ("answers", answers),
    ("settings", settings),
    ("schemas", schemas),
];

/// The server's key. The corpora contain it, so that answers do.
pub const KEY: &str = "AIzaFuzzFuzzFuzzFuzzFuzzFuzzFuzzFuzzFuz";
const ADMIN: &str = "fuzz-admin-key";

/// The time limit for one input, in the slowest build on a busy machine. Work that should take
/// microseconds and takes this long grows with the input.
const MOST_TIME: Duration = Duration::from_secs(20);

/// The longest time until any quota of Gemini's resets: the longest day, and a second for rounding.
const LONGEST_WAIT: Duration = Duration::from_secs(25 * 60 * 60 + 1);

/// Shorter answers are held back until they are known to contain no key.
const HELD: usize = 32 * 1024;

/// The most bytes of items that are claimed at once.
const MOST_STORED: usize = 1 << 20;

/// The longest input.
const MOST_BYTES: usize = 256 * 1024;

thread_local! {
    /// One runtime and one service for all inputs, as in production.
    static SERVICE: RefCell<(Runtime, Router)> = RefCell::new((runtime(), service(Config::default())));

    /// The same for jobs, whose store has a thread of its own that no paused clock waits for.
    static JOB_SERVICE: RefCell<JobService> = RefCell::new(JobService::new());
}

/// A service with a store for jobs, and without an engine.
struct JobService {
    runtime: Runtime,
    gateway: Gateway,
    router: Router,
    format: Arc<dyn ItemFormat>,
    _folder: TempDir,
}

impl JobService {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let folder = TempDir::new().expect("a folder");
        let job_store = StoreSettings { folder: folder.path().join("data"), database: None };
        let gateway = gateway(Config { job_store, ..Config::default() });
        Self {
            runtime: runtime.expect("a runtime"),
            router: api::router(gateway.clone()),
            format: api::item_format(gateway.clone()),
            gateway,
            _folder: folder,
        }
    }

    /// Posts lines. If they are accepted, each of them can be sent.
    async fn post(&self, path: &[u8], lines: &[u8]) {
        let Some(status) = post(&self.router, path, "application/x-ndjson", lines).await else {
            return;
        };
        if status != StatusCode::ACCEPTED {
            return;
        }
        let (jobs, key) = (&self.gateway.jobs, ApiKey::new(KEY).expect("a key"));
        let store = jobs.store();
        let job = store.open_jobs().await.expect("the store works").pop().expect("a job");
        let shared = store.shared_fields(job.number).await.expect("the store works");
        let reader = self.format.reader(&job, shared);
        let (mut items, lease) = (0, Duration::from_secs(3600));
        loop {
            let claim = store.claim(job.number, jobs.replica().clone(), 1000, MOST_STORED, lease);
            let blocks = claim.await.expect("the store works").blocks;
            if blocks.is_empty() {
                break;
            }
            for block in blocks {
                let lines = block.lines.split_inclusive(|byte| *byte == b'\n');
                for (index, line) in (block.first..).zip(lines) {
                    let line = block.lines.slice_ref(&line[..line.len() - 1]);
                    let prepared = reader.prepare(&key, index, line).await;
                    assert!(prepared.is_ok(), "item {index} was accepted and cannot be sent");
                    items += 1;
                }
            }
        }
        assert_eq!(items, job.total);
        store.delete(job.number).await.expect("the store works");
    }
}

/// A runtime whose clock advances whenever all tasks are idle.
fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime")
}

/// A service over an unreachable upstream.
fn service(config: Config) -> Router {
    api::router(gateway(config))
}

fn gateway(config: Config) -> Gateway {
    let mut config = Config {
        base_url: "http://127.0.0.1:9".to_owned(),
        admin_api_key: Some(AdminKey::new(ADMIN)),
        max_attempts: 1,
        ..config
    };
    config.set_gemini_api_key(ApiKey::new(KEY).expect("a key"));
    Gateway::new(config, false).expect("a base URL")
}

/// A request: its path in the first line, its body in the others.
pub fn requests(input: &[u8]) {
    let input = &input[..input.len().min(MOST_BYTES)];
    let (path, body) = split(input);
    timed(|| {
        InputFeatures::of_body(body);
        let _ = named_model(body, Some("voice"));
        let _ = InteractionRequest::read(body);
        for surface in [Surface::Gemini, Surface::Interactions, Surface::OpenAi] {
            let texts = embedding_requests(surface, body).unwrap_or(1);
            assert!(texts <= body.len().max(1) as u64);
        }
        SERVICE.with_borrow(|(runtime, service)| {
            runtime.block_on(post(service, path, "application/json", body))
        });
    });
}

/// The first line, and the others.
fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    (&input[..line], &input[(line + 1).min(input.len())..])
}

/// Lines of a job: the path with its options in the first line, then the upload.
pub fn jobs(input: &[u8]) {
    let (path, lines) = split(&input[..input.len().min(MOST_BYTES)]);
    if !path.starts_with(b"/jobs") {
        return;
    }
    timed(|| {
        JOB_SERVICE.with_borrow(|service| service.runtime.block_on(service.post(path, lines)));
    });
}

/// Posts a body, and checks the answer. Returns its status; `None` if the path is none.
async fn post(
    service: &Router,
    path: &[u8],
    content_type: &str,
    body: &[u8],
) -> Option<StatusCode> {
    let path = Uri::try_from(path).ok().filter(|path| path.path().starts_with('/'))?;
    let sends_key = holds_key(body) || path.to_string().contains(KEY);
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", content_type)
        .header("admin-api-key", ADMIN)
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let response = service.clone().oneshot(request).await.expect("an answer");
    let status = response.status();
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(body) = response.into_body().collect().await {
        // Errors may show the caller its own body, and so a key that the body contains.
        assert!(sends_key || !holds_key(&body.to_bytes()), "{status} shows the key");
    }
    Some(status)
}

/// An answer of Gemini's, whole and as a stream.
pub fn answers(input: &[u8]) {
    let input = &input[..input.len().min(MOST_BYTES)];
    timed(|| {
        for status in [200, 302, 400, 403, 429, 500, 503] {
            answer(StatusCode::from_u16(status).expect("a status"), input);
        }
        let cut = input.first().map_or(0, |byte| usize::from(*byte) % input.len());
        let pieces = input.split_at(cut);
        stream(&[pieces.0, pieces.1]);
        for surface in [Surface::Gemini, Surface::Interactions, Surface::OpenAi] {
            assert_eq!(counted(surface, &[input]), counted(surface, &[pieces.0, pieces.1]));
        }
        assert_eq!(interaction(&[input]), interaction(&[pieces.0, pieces.1]));
    });
}

fn answer(status: StatusCode, body: &[u8]) {
    let usage = match Answer::read(status, body) {
        Ok(answer) => answer.usage,
        Err(error) => {
            assert!(error.message.len() < 4096, "{} bytes", error.message.len());
            if let ErrorKind::RateLimited(refusal) = &error.kind
                && let Some(wait) = refusal.retry_at(Timestamp::now())
            {
                assert!(wait <= LONGEST_WAIT, "{wait:?}");
            }
            *error.usage
        }
    };
    learn(usage);
}

/// Gemini's counts are added up and used for estimates.
fn learn(usage: Usage) {
    let sum = usage + usage;
    assert!(sum.total_tokens >= usage.total_tokens);
    let (estimator, features) = (TokenEstimator::default(), InputFeatures::of("a text"));
    estimator.learn(features, usage.prompt_tokens, usage.cached_tokens);
    assert!(estimator.estimate(features) < 1000);
}

fn stream(pieces: &[&[u8]]) {
    let secrets = Secrets::new([&ApiKey::new(KEY).expect("a key")]);
    let mut masker = secrets.masker();
    let mut passed: Vec<u8> = Vec::new();
    for piece in pieces {
        passed.extend_from_slice(&masker.push(Bytes::copy_from_slice(piece)));
    }
    passed.extend_from_slice(&masker.finish());
    let whole = pieces.concat();
    assert_eq!(passed, secrets.mask(whole.clone().into()), "splitting makes no difference");
    assert_eq!(passed.len(), whole.len());
    if passed.len() < HELD {
        assert!(encodings(KEY.as_bytes()).iter().all(|spelling| !holds(&passed, spelling)));
    }
    for content_type in ["text/event-stream", "application/json"] {
        let relayed = relayed(&secrets, content_type, pieces);
        assert_eq!(relayed.len(), whole.len());
        assert!(!holds_key(&relayed));
        // What is too long to hold back depends on the pieces.
        if whole.len() < HELD {
            assert_eq!(relayed, self::relayed(&secrets, content_type, &[&whole]));
        }
    }

    let (mut events, mut growing) = (Events::default(), AnswerBuilder::masking(secrets));
    events.extend(&passed);
    events.end();
    let mut watch = StreamMonitor::default();
    watch.scan(&passed);
    let _ = watch.end();
    let mut text = String::new();
    while let Some(event) = events.pop() {
        match growing.push(&event) {
            Ok(delta) => text.push_str(&delta),
            Err(error) => return assert!(!holds_key(error.message.as_bytes())),
        }
    }
    text.push_str(&growing.rest());
    assert!(!holds_key(text.as_bytes()));
    match growing.finish() {
        Ok(answer) => assert_eq!(answer.text, text),
        Err(error) => learn(*error.usage),
    }
}

/// The relayed form of an answer with this content type.
fn relayed(secrets: &Secrets, content_type: &'static str, pieces: &[&[u8]]) -> Vec<u8> {
    let content_type = HeaderValue::from_static(content_type);
    let mut masker = secrets.masker_of(&HeaderMap::from_iter([(CONTENT_TYPE, content_type)]));
    let mut passed = Vec::new();
    for piece in pieces {
        passed.extend_from_slice(&masker.push(Bytes::copy_from_slice(piece)));
    }
    passed.extend_from_slice(&masker.finish());
    passed
}

/// What an answer says of an interaction.
fn interaction(pieces: &[&[u8]]) -> (Option<String>, Option<String>, Option<Usage>) {
    let mut scanner = InteractionScanner::default();
    pieces.iter().for_each(|piece| scanner.scan(piece));
    let text = |text: Option<&str>| text.map(str::to_owned);
    (text(scanner.id()), text(scanner.status()), scanner.usage())
}

fn counted(surface: Surface, pieces: &[&[u8]]) -> Option<Usage> {
    let mut scanner = UsageScanner::new(surface);
    pieces.iter().for_each(|piece| scanner.scan(piece));
    scanner.usage()
}

/// Settings, as lines of `NAME=value`, and a call that their limits apply to.
pub fn settings(input: &[u8]) {
    let Ok(text) = str::from_utf8(&input[..input.len().min(4096)]) else { return };
    let of = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(given, _)| *given == name).map(|(_, value)| value.to_owned())
    };
    timed(|| match Config::read(of) {
        Ok(config) => {
            let service = service(config);
            let chat = br#"{"prompt":"How are you?"}"#;
            runtime().block_on(post(&service, b"/chat", "application/json", chat));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    });
}

/// A JSON Schema, translated for Gemini, and values checked against it.
pub fn schemas(input: &[u8]) {
    let Ok(text) = str::from_utf8(&input[..input.len().min(4096)]) else { return };
    let limits = SchemaLimits { bytes: 4096, nodes: 4096 };
    timed(|| {
        let Ok(compiled) = Schema::read(text, &limits, &Work::brief()) else { return };
        let schema = serde_json::from_str(text).expect("it was read");
        for value in [json!(null), json!({}), json!([[]]), json!("text"), json!(1e300), schema] {
            // A check that takes too long is stopped, and reports that.
            let _ = compiled.violations(&value, &Work::brief());
        }
    });
}

fn holds_key(bytes: &[u8]) -> bool {
    holds(bytes, KEY.as_bytes())
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window[0] == text[0] && window == text)
}

fn timed(work: impl FnOnce()) {
    let started = Instant::now();
    work();
    assert!(started.elapsed() < MOST_TIME, "it took {:?}", started.elapsed());
}
