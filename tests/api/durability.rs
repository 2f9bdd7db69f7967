//! Jobs survive the death of the processes that run them: each item has exactly one result, and no
//! more calls are repeated than were in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::routing::post;
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::{Process, Start};
use crate::support::{SERVER_KEY, answer, listen, until};

#[expect(dead_code, reason = "the unit tests of the store use the rest")]
#[path = "../support/postgres_launcher.rs"]
mod postgres_launcher;

pub use postgres_launcher::Postgres;

/// How many calls each process sends at once.
const LIMIT: usize = 8;

/// How often a process is killed.
const KILLS: usize = 100;

/// Answers every prompt with itself, and counts the calls for each.
pub struct Upstream {
    pub url: String,
    calls: Arc<Calls>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Calls {
    by_prompt: Mutex<HashMap<String, usize>>,
    total: AtomicUsize,
}

impl Upstream {
    pub async fn start() -> Self {
        let calls = Arc::new(Calls::default());
        let router = axum::Router::new()
            .route("/v1beta/models/{call}", post(reply))
            .with_state(Arc::clone(&calls));
        let stop = CancellationToken::new();
        let address = listen(router, &stop).await;
        Self { url: format!("http://{address}"), calls, _stop: stop.drop_guard() }
    }
}

async fn reply(State(calls): State<Arc<Calls>>, Json(request): Json<Value>) -> Json<Value> {
    let prompt = request["contents"][0]["parts"][0]["text"].as_str().expect("a prompt").to_owned();
    calls.total.fetch_add(1, SeqCst);
    *calls.by_prompt.lock().unwrap().entry(prompt.clone()).or_default() += 1;
    sleep(Duration::from_millis(fastrand::u64(100..200))).await;
    Json(json!({
        "candidates": [{"content": {"parts": [{"text": format!("re: {prompt}")}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 3, "totalTokenCount": 6},
    }))
}

/// The lines of a job, one chat each.
fn lines(items: usize) -> String {
    let line =
        |n| json!({"prompt": format!("item {n}"), "custom_id": format!("id-{n}")}).to_string();
    (0..items).map(line).collect::<Vec<_>>().join("\n")
}

pub async fn start(upstream: &Upstream, variables: &[(&str, &str)]) -> Process {
    program(upstream, variables).run().await
}

/// The program over the upstream.
pub fn program(upstream: &Upstream, variables: &[(&str, &str)]) -> Start {
    let start = Start::with_arguments(&["serve"])
        .set("GEMINI_API_KEY", SERVER_KEY)
        .set("GEMINI_BASE_URL", &upstream.url)
        .set("GEMINI_CONCURRENCY_LIMIT", &LIMIT.to_string());
    variables.iter().fold(start, |start, (name, value)| start.set(name, value))
}

pub async fn submit(process: &Process, items: usize) -> String {
    let request = process.request(reqwest::Method::POST, "/jobs?kind=chat");
    let request = request.header("content-type", "application/x-ndjson").body(lines(items));
    let accepted = answer(request).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    accepted.body["job_id"].as_str().expect("an id").to_owned()
}

async fn job(process: &Process, id: &str) -> Value {
    answer(process.get(&format!("/jobs/{id}"))).await.body
}

/// Checks that each item has exactly one result, its own and in its place.
pub async fn check_results(process: &Process, id: &str, items: usize) {
    let results = process.get(&format!("/jobs/{id}/results?follow=true"));
    let results =
        results.timeout(Duration::from_secs(240)).send().await.unwrap().text().await.unwrap();
    let mut count = 0;
    for (n, line) in results.lines().enumerate() {
        let result: Value = serde_json::from_str(line).expect(line);
        assert_eq!(result["index"], n, "{line}");
        assert_eq!(result["custom_id"], format!("id-{n}"), "{line}");
        assert_eq!(result["success"], true, "{line}");
        assert_eq!(result["response"], format!("re: item {n}"), "{line}");
        count += 1;
    }
    assert_eq!(count, items);
    let job = job(process, id).await;
    assert_eq!(
        (&job["status"], &job["succeeded"], &job["failed"]),
        (&json!("completed"), &json!(items), &json!(0))
    );
}

/// How many calls were made more than once, and how many prompts were asked.
pub fn repeated(upstream: &Upstream) -> (usize, usize) {
    let calls = upstream.calls.by_prompt.lock().unwrap();
    (calls.values().sum::<usize>() - calls.len(), calls.len())
}

/// Waits until the upstream has had this many further calls, or the job is done.
pub async fn until_more_calls(upstream: &Upstream, more: usize, items: usize) -> bool {
    let enough = upstream.calls.total.load(SeqCst) + more;
    let is_done = || upstream.calls.by_prompt.lock().unwrap().len() == items;
    until("more calls", || upstream.calls.total.load(SeqCst) >= enough || is_done()).await;
    !is_done()
}

/// Kills processes at random moments while they run a job, and starts each anew. Returns how many were
/// killed.
async fn kill_at_random(
    upstream: &Upstream,
    processes: &mut Vec<Process>,
    variables: &[(&str, &str)],
    items: usize,
) -> usize {
    let mut random = Rng::with_seed(20261129);
    let mut kills = 0;
    while kills < KILLS && until_more_calls(upstream, random.usize(0..3 * LIMIT), items).await {
        let victim = random.usize(..processes.len());
        processes.swap_remove(victim).kill().await;
        kills += 1;
        processes.push(start(upstream, variables).await);
    }
    kills
}

/// Runs a job whose processes are killed again and again, and checks its results and what was asked twice.
async fn run_with_kills(variables: &[(&str, &str)], replicas: usize, items: usize) {
    let upstream = Upstream::start().await;
    let mut processes = Vec::new();
    for _ in 0..replicas {
        processes.push(start(&upstream, variables).await);
    }
    let id = submit(&processes[0], items).await;
    let kills = kill_at_random(&upstream, &mut processes, variables, items).await;
    check_results(&processes[0], &id, items).await;
    let (repeated, asked) = repeated(&upstream);
    println!("{items} items, {kills} kills, {repeated} calls repeated");
    assert_eq!((asked, kills), (items, KILLS));
    assert!(repeated <= kills * LIMIT, "{repeated} calls were repeated in {kills} kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_a_file_is_answered_exactly_once_however_often_its_process_is_killed() {
    let folder = TempDir::new().unwrap();
    run_with_kills(&[("DATA_DIR", folder.path().to_str().unwrap())], 1, 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_postgresql_is_answered_exactly_once_however_often_its_replicas_are_killed() {
    let database = Postgres::start().await;
    run_with_kills(
        &[("JOBS_DATABASE_URL", &database.url()), ("JOBS_LEASE_SECONDS", "2")],
        3,
        4_500,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_repeats_no_call() {
    const ITEMS: usize = 400;
    let folder = TempDir::new().unwrap();
    let variables = [("DATA_DIR", folder.path().to_str().unwrap())];
    let upstream = Upstream::start().await;
    let mut process = start(&upstream, &variables).await;
    let id = submit(&process, ITEMS).await;
    while until_more_calls(&upstream, 60, ITEMS).await {
        process.terminate().await;
        assert_eq!(process.end().await.0, Some(0));
        process = start(&upstream, &variables).await;
    }
    check_results(&process, &id, ITEMS).await;
    assert_eq!(repeated(&upstream), (0, ITEMS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_its_database_is_back() {
    const ITEMS: usize = 400;
    let mut database = Postgres::start().await;
    let upstream = Upstream::start().await;
    let process = start(&upstream, &[("JOBS_DATABASE_URL", &database.url())]).await;
    let id = submit(&process, ITEMS).await;
    assert!(until_more_calls(&upstream, 60, ITEMS).await);
    database.stop().await;
    let gone = answer(process.get(&format!("/jobs/{id}"))).await;
    assert_eq!((gone.status.as_u16(), &gone.body["code"]), (503, &json!("job_store_unavailable")));
    database.start_again().await;
    check_results(&process, &id, ITEMS).await;
    assert_eq!(repeated(&upstream), (0, ITEMS));
}
