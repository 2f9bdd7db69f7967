//! Pausing, resuming, cancelling, retrying and deleting.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{JobService, accepted, chats};
use crate::support::{Answer, answer, slow};

fn status(changed: &Answer) -> &str {
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    changed.body["status"].as_str().unwrap()
}

fn refuses(changed: &Answer, state: &str) {
    assert_eq!(changed.status, StatusCode::CONFLICT, "{changed:?}");
    assert_eq!(changed.body["code"], "job_state_conflict");
    assert!(changed.body["detail"].as_str().unwrap().contains(state), "{changed:?}");
}

#[tokio::test]
async fn a_paused_job_goes_on_when_it_is_resumed() {
    let mut service = JobService::without_engine(|_| {}).await;
    let id = service.chats((0..20).map(|n| n.to_string())).await;
    let paused = service.change(&id, "pause").await;
    assert_eq!((status(&paused), &paused.body["reason"]), ("paused", &json!("requested")));
    assert_eq!(status(&service.change(&id, "pause").await), "paused");
    service.run_engine();
    // The engine passes it over: another job that comes later is completed.
    let other = service.chats(["a".to_owned()]).await;
    assert_eq!(service.all_results(&other).await.len(), 1);
    assert_eq!(service.job(&id).await["succeeded"], 0);
    refuses(&service.change(&id, "retry").await, "paused");
    let resumed = service.change(&id, "resume").await;
    assert!(matches!(status(&resumed), "queued" | "running"), "{resumed:?}");
    assert_eq!(resumed.body["reason"], Value::Null);
    assert_eq!(service.all_results(&id).await.len(), 20);
    for change in ["pause", "resume", "cancel"] {
        refuses(&service.change(&id, change).await, "completed");
    }
}

#[tokio::test]
async fn a_cancelled_job_keeps_its_results() {
    let service = JobService::with(|config| config.concurrency_limit = 1).await;
    let id = service.chats(["a".to_owned(), slow(60_000), "never".to_owned()]).await;
    service.until("the second runs", |limiter| limiter.in_flight == 1).await;
    while service.job(&id).await["succeeded"] == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&service.change(&id, "cancel").await), "cancelled");
    assert_eq!(status(&service.change(&id, "cancel").await), "cancelled");
    service.until_idle().await;
    let results = service.all_results(&id).await;
    assert_eq!(results.len(), 1, "{results:?}");
    let job = service.job(&id).await;
    assert_eq!((&job["running"], &job["waiting"]), (&json!(0), &json!(0)));
    assert!(job["ended_at"].is_string() && job["expires_at"].is_string(), "{job}");
    refuses(&service.change(&id, "pause").await, "cancelled");
    refuses(&service.change(&id, "resume").await, "cancelled");
    assert!(service.simulator.journal().iter().all(|call| !call.prompt_text.contains("never")));
}

#[tokio::test]
async fn failed_items_are_sent_again() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let id = service.chats(["a".to_owned(), "[[simulate:blocked=SAFETY]]".to_owned()]).await;
    let before = service.all_results(&id).await;
    let calls = service.simulator.journal().len();
    // None of them may succeed later.
    let retried = service.change(&id, "retry").await;
    assert_eq!(status(&retried), "completed");
    assert_eq!(service.simulator.journal().len(), calls);
    for all in ["retry?failed=all", "retry"] {
        let request = service.post(&format!("/jobs/{id}/{all}"), &json!({"which": "all"}));
        assert_eq!(status(&answer(request).await), "queued");
        assert_eq!(service.all_results(&id).await, before);
    }
    assert_eq!(service.simulator.journal().len(), calls + 2);
    for body in [json!({"which": "some"}), json!({"wich": "all"})] {
        let refused = answer(service.post(&format!("/jobs/{id}/retry"), &body)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    }
}

#[tokio::test]
async fn a_deleted_job_is_gone_and_nothing_more_is_sent() {
    let service = JobService::with(|config| config.concurrency_limit = 1).await;
    let id = service.chats([slow(60_000), "never".to_owned()]).await;
    service.until("the first runs", |limiter| limiter.in_flight == 1).await;
    let mut followed =
        service.get(&format!("/jobs/{id}/results?follow=true")).send().await.unwrap();
    let delete = || answer(service.http.delete(service.url(&format!("/jobs/{id}"))));
    assert_eq!(delete().await.status, StatusCode::NO_CONTENT);
    service.until_idle().await;
    assert!(followed.chunk().await.is_err(), "a reader must not take it for the end");
    let lost = delete().await;
    assert_eq!((lost.status, &lost.body["code"]), (StatusCode::NOT_FOUND, &json!("job_not_found")));
    for path in ["", "/results", "/events"] {
        let lost = answer(service.get(&format!("/jobs/{id}{path}"))).await;
        assert_eq!(lost.status, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(service.list().await, [Value::Null; 0]);
    // Its idempotency key is free again.
    let send =
        || answer(service.upload("chat", chats(["a".to_owned()])).header("Idempotency-Key", "x"));
    let id = accepted(send().await);
    service.all_results(&id).await;
    let deleted = answer(service.http.delete(service.url(&format!("/jobs/{id}")))).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_ne!(accepted(send().await), id);
}

#[tokio::test]
async fn a_job_with_a_key_that_gemini_rejects_is_paused_and_loses_no_item() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let request = service.upload("chat", chats((0..5).map(|n| n.to_string())));
    let id = accepted(answer(request.header("x-goog-api-key", "invalid-key")).await);
    let own =
        |request: reqwest::RequestBuilder| answer(request.header("x-goog-api-key", "invalid-key"));
    let job = loop {
        let job = own(service.get(&format!("/jobs/{id}"))).await.body;
        if job["status"] == "paused" {
            break job;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(job["reason"], "invalid_api_key");
    assert_eq!((&job["failed"], &job["waiting"]), (&json!(0), &json!(5)));
}
