//! Gemini's calls beside generation that cost tokens: what each counts as.

use gemini_concurrent_generation::simulator::Options;
use serde_json::{Value, json};

use crate::limits::plan;
use crate::support::{Answer, Service, answer};

const MODEL: &str = "gemini-3.8-flash";
const UPLOAD: &str = "/upload/v1beta/fileSearchStores/mine:uploadToFileSearchStore";

async fn post(service: &Service, path: &str, body: &Value) -> Answer {
    let answered = answer(service.post(path, body)).await;
    assert_eq!(answered.status, 200, "{path}: {}", answered.body);
    answered
}

/// How often a call was answered, by its kind and model in the metrics.
async fn answered(service: &Service, kind: &str, model: &str) -> f64 {
    let labels = format!("kind=\"{kind}\",model=\"{model}\",outcome=\"success\"");
    service.metric(&format!("gemini_gateway_calls_total{{{labels}}}")).await
}

#[tokio::test]
async fn decisions_and_voices_settle_at_the_tokens_that_gemini_reports() {
    let service = Service::start().await;
    let input = "word ".repeat(1000);
    let decision = json!({"model": MODEL, "input": input, "questions": {"a": {"type": "noul"}}});
    let reported = post(&service, "/v1beta/decisions", &decision).await.body;
    let tokens = &reported["usage"]["total_input_tokens"];
    let account = service.only_account().await;
    assert_eq!(account["model"], MODEL);
    assert_eq!(&account["input_tokens_per_minute"]["used"], tokens, "{account}");

    let service = Service::start().await;
    let prompt = json!({"prompt": input});
    let voice = json!({"voice": {"type": "prompted", "model": MODEL, "prompted": prompt}});
    let reported = post(&service, "/v1/voices", &voice).await.body;
    let account = service.only_account().await;
    assert_eq!(account["model"], MODEL, "it is named within the voice");
    let tokens = &reported["usage"]["total_input_tokens"];
    assert_eq!(&account["input_tokens_per_minute"]["used"], tokens, "{account}");
}

#[tokio::test]
async fn an_execution_of_a_trigger_is_counted_and_its_creation_is_not() {
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("triggers:rpd=1", "");
    })
    .await;
    let interaction = json!({"agent": "deep-research-preview-04-2026", "input": "a"});
    let trigger = json!({"interaction": interaction, "schedule": "0 0 * * *", "time_zone": "UTC"});
    let trigger = post(&service, "/v1beta/triggers", &trigger).await.body;
    let path = format!("/v1beta/triggers/{}/executions", trigger["id"].as_str().unwrap());
    post(&service, &path, &json!({})).await;
    assert_eq!(service.only_account().await["model"], "triggers");
    assert_eq!(answered(&service, "trigger_execution", "triggers").await, 1.0);
    assert_eq!(answer(service.post(&path, &json!({}))).await.status, 429);
    assert_eq!(service.simulator.stats().calls, 1);
}

#[tokio::test]
async fn a_file_that_is_embedded_is_counted_when_it_is_imported() {
    let service = Service::start().await;
    let uploaded = post(&service, "/upload/v1beta/files", &json!("0123456789")).await.body;
    let import = json!({"fileName": uploaded["file"]["name"]});
    post(&service, "/v1beta/fileSearchStores/mine:importFile", &import).await;
    assert_eq!(answered(&service, "index_file", "fileSearchStores").await, 1.0);
    assert_eq!(service.only_account().await["model"], "fileSearchStores");
}

#[tokio::test]
async fn an_upload_that_is_embedded_waits_for_a_slot_and_for_quota() {
    let service = Service::with(Options::default(), |config| {
        config.concurrency_limit = 1;
        config.quota_plan = plan("fileSearchStores:rpd=2", "");
    })
    .await;
    let path = "/v1beta/models/gemini-3.8-flash:generateContent";
    let slow = crate::support::contents(&crate::support::slow(60_000));
    let held = tokio::spawn(answer(service.post(path, &slow)));
    service.until("one is in flight", |limiter| limiter.in_flight == 1).await;
    let text = "x".repeat(40_000);
    let upload = reqwest::Client::new().post(service.url(UPLOAD)).body(text);
    let upload = upload.header("content-type", "text/plain");
    let upload = tokio::spawn(answer(upload));
    service.until("the upload waits", |limiter| limiter.waiting == 1).await;
    assert_eq!(service.simulator.stats().calls, 1);
    held.abort();
    let uploaded = upload.await.unwrap();
    assert_eq!(uploaded.status, 200, "{}", uploaded.body);
    service.until_idle().await;
    let limits = service.limits().await;
    let accounts = limits["limits"].as_array().unwrap();
    let store = accounts.iter().find(|account| account["model"] == "fileSearchStores").unwrap();
    assert_eq!(store["input_tokens_per_minute"]["used"], 10_000, "by its size: {store}");

    // A resumable upload counts when it begins, and by the size that it announces.
    let begin = service.post(UPLOAD, &json!({})).header("x-goog-upload-protocol", "resumable");
    let begin = begin.header("x-goog-upload-command", "start");
    let begin = begin.header("x-goog-upload-header-content-type", "text/plain");
    let begun = begin.header("x-goog-upload-header-content-length", "40").send().await.unwrap();
    let url = begun.headers()["x-goog-upload-url"].to_str().unwrap();
    let rest = reqwest::Client::new().post(url).body("x".repeat(40));
    let rest = rest.header("x-goog-upload-command", "upload, finalize");
    let rest = answer(rest.header("x-goog-upload-offset", "0")).await;
    assert_eq!(rest.status, 200, "{}", rest.body);
    assert_eq!(answered(&service, "index_file", "fileSearchStores").await, 2.0);
    let refused = answer(service.post(UPLOAD, &json!("x"))).await;
    assert_eq!(refused.body["error"]["status"], "RESOURCE_EXHAUSTED", "{}", refused.body);
}

#[tokio::test]
async fn an_upload_that_gemini_refuses_is_answered_with_geminis_error() {
    let service = Service::start().await;
    let refused = service.post(UPLOAD, &json!("x")).header("x-goog-api-key", "invalid");
    let refused = answer(refused).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(refused.body["error"]["details"][0]["reason"], "API_KEY_INVALID");
    service.until_idle().await;
}
