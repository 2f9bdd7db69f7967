//! The enqueued tokens of batch jobs: reserved when a job is created, given back when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gemini_concurrent_generation::simulator::Options;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::limits::plan;
use crate::support::{Answer, Service, answer, listen, until};

const CREATE: &str = "/v1beta/models/gemini-3.8-flash:batchGenerateContent";

/// A service over a simulator whose jobs take an hour. Both allow 1,000 enqueued tokens.
async fn service() -> Service {
    let options =
        Options { enqueued_tokens: Some(1000), batch_ms: 3_600_000, ..Options::default() };
    Service::with(options, |config| {
        config.quota_plan = plan("gemini-3.8-flash:enqueued=1000", "");
        config.request_timeout = Duration::from_secs(1);
    })
    .await
}

/// A job of about 600 tokens.
fn job() -> Value {
    let contents = json!([{"parts": [{"text": "word ".repeat(480)}]}]);
    let requests = json!({"requests": [{"request": {"contents": contents}}]});
    json!({"batch": {"displayName": "a", "inputConfig": {"requests": requests}}})
}

async fn create(service: &Service) -> Answer {
    answer(service.post(CREATE, &job())).await
}

/// Creates a job and returns its path.
async fn created(service: &Service) -> String {
    let created = create(service).await;
    assert_eq!(created.status, 200, "{}", created.body);
    format!("/v1beta/{}", created.body["name"].as_str().unwrap())
}

/// What the jobs hold, as `/_admin/limits` shows it.
async fn held(service: &Service) -> Value {
    service.only_account().await["enqueued_tokens"].clone()
}

async fn until_free(service: &Service) {
    let free = async {
        while held(service).await["used"] != 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), free).await.expect("the tokens come free");
}

#[tokio::test]
async fn a_job_without_room_is_not_sent() {
    let service = service().await;
    let path = created(&service).await;
    let shown = held(&service).await;
    assert_eq!((&shown["limit"], &shown["source"]), (&json!(1000), &json!("setting")));
    assert!((400..900).contains(&shown["used"].as_u64().unwrap()), "{shown}");
    let refused = create(&service).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["error"]["status"]),
        (429, &json!("RESOURCE_EXHAUSTED"))
    );
    assert_eq!(refused.headers["retry-after"], "60");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("jobs"), "{message}");
    assert_eq!(service.simulator.stats().calls, 1, "Gemini is not asked");
    // A status of a job that goes on changes nothing.
    assert_eq!(answer(service.get(&path)).await.status, 200);
    assert_eq!(answer(service.get("/v1beta/batches")).await.status, 200);
    assert_eq!(create(&service).await.status, 429);
}

#[tokio::test]
async fn a_job_holds_its_tokens_if_its_client_hangs_up_before_the_answer() {
    let stop = CancellationToken::new();
    let came = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&came);
    let router = axum::Router::new().fallback(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            axum::Json(json!({"name": "batches/a", "metadata": {"state": "BATCH_STATE_PENDING"}}))
        }
    });
    let url = format!("http://{}", listen(router, &stop).await);
    let service = Service::over_with(&url, |config| {
        config.quota_plan = plan("gemini-3.8-flash:enqueued=1000", "");
    })
    .await;
    let client = tokio::spawn(service.post(CREATE, &job()).send());
    until("Gemini was asked", || came.load(Ordering::Relaxed) == 1).await;
    client.abort();
    // The call takes its slot until the answer has come.
    service.until_idle().await;
    assert_ne!(held(&service).await["used"], 0);
    drop(stop.drop_guard());
}

#[tokio::test]
async fn a_status_that_reports_the_end_gives_the_tokens_back() {
    let service = service().await;
    for status in ["one", "list"] {
        let path = created(&service).await;
        let cancelled = answer(service.post(&format!("{path}:cancel"), &json!({}))).await;
        assert_eq!(cancelled.status, 200, "{}", cancelled.body);
        let path = if status == "one" { &path } else { "/v1beta/batches" };
        assert_eq!(answer(service.get(path)).await.status, 200);
        until_free(&service).await;
    }
    let path = created(&service).await;
    let deleted = answer(reqwest::Client::new().delete(service.url(&path))).await;
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    until_free(&service).await;
    created(&service).await;
}

#[tokio::test]
async fn a_waiting_job_is_created_when_another_ends() {
    let service = Service::with(Options { batch_ms: 3_600_000, ..Options::default() }, |config| {
        config.quota_plan = plan("*:enqueued=1000", "");
    })
    .await;
    let path = created(&service).await;
    let waiting = tokio::spawn(answer(service.post(CREATE, &job())));
    service.until("the job waits", |limiter| limiter.waiting == 1).await;
    assert_eq!(service.gateway.limiter.occupancy().in_flight, 0, "it holds no slot");
    let deleted = answer(reqwest::Client::new().delete(service.url(&path))).await;
    assert_eq!(deleted.status, 200);
    assert_eq!(waiting.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_job_that_gemini_refuses_holds_nothing() {
    let service = service().await;
    let invalid = json!({"batch": {"inputConfig": {"requests": {"requests": []}}}});
    assert_eq!(answer(service.post(CREATE, &invalid)).await.status, 400);
    assert_eq!(held(&service).await["used"], 0);
    created(&service).await;
}

#[tokio::test]
async fn a_file_of_requests_counts_by_its_size() {
    let service = service().await;
    let upload = reqwest::Client::new().post(service.url("/upload/v1beta/files"));
    let upload = upload.header("content-type", "application/jsonl").body("x".repeat(2000));
    let file = answer(upload).await.body["file"]["name"].clone();
    let job = json!({"batch": {"input_config": {"file_name": file}}});
    let created = answer(service.post(CREATE, &job)).await;
    assert_eq!(created.status, 200, "{}", created.body);
    assert_eq!(held(&service).await["used"], 500);
}

#[tokio::test]
async fn a_job_that_names_its_file_twice_is_refused() {
    let service = service().await;
    let name = |file: &str| format!(r#""fileName":"files/{file}""#);
    let (small, large) = (name("small"), name("large"));
    for config in [
        format!(r#""inputConfig":{{{small},{large}}}"#),
        format!(r#""inputConfig":{{{small}}},"input_config":{{{large}}}"#),
    ] {
        let job = format!(r#"{{"batch":{{{config}}}}}"#);
        let refused = answer(service.post(CREATE, &json!({})).body(job)).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("appears more than once"), "{message}");
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn the_tokens_of_jobs_are_not_shown_as_semaphores() {
    let service = service().await;
    created(&service).await;
    let listed = answer(crate::support::admin(service.get("/_admin/semaphores"))).await;
    assert_eq!(listed.body["count"], 0, "{}", listed.body);
    assert!(
        !service.get("/metrics").send().await.unwrap().text().await.unwrap().contains("enqueued/")
    );
}
