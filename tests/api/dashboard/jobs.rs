//! The pages of jobs and what can be done there.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Browser;
use crate::jobs::{JobService, accepted, chats};
use crate::support::answer;

fn failing(code: u16) -> String {
    format!("[[simulate:status={code}]]")
}

#[tokio::test]
async fn jobs_are_listed_page_by_page_newest_first() {
    let service = JobService::without_engine(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    browser.get("/dashboard/jobs").await.has("No jobs");
    let mut ids = Vec::new();
    for number in 0..27 {
        let name = format!("?kind=chat&job_name=Job%20{number:02}");
        let upload = service.http.post(service.url(&format!("/jobs{name}")));
        let upload = upload.header("content-type", "application/x-ndjson");
        ids.push(accepted(answer(upload.body(chats(["x".to_owned()]))).await));
    }
    let first = browser.get("/dashboard/jobs").await;
    assert!(first.text.find("Job 26").unwrap() < first.text.find("Job 02").unwrap());
    first.has_not("Job 01");
    let older = format!("/dashboard/jobs?after={}", ids[2]);
    first.has(&older);
    let second = browser.get(&older).await;
    second.has("Job 01");
    second.has("Job 00");
    second.has_not("Job 02");
    second.has("Newest");
    second.has_not("Older");
}

#[tokio::test]
async fn a_job_is_paused_resumed_cancelled_and_deleted() {
    let mut service = JobService::without_engine(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let id = service.chats(["one".to_owned(), "two".to_owned()]).await;
    let page = format!("/dashboard/jobs/{id}");
    let act = async |what: &str, done: &str, state: &str| {
        let sent = browser.post(&format!("{page}/{what}"), &[]).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{what}: {sent:?}");
        let shown = browser.get(sent.leads_to()).await;
        shown.has(done);
        assert_eq!(service.job(&id).await["status"], state);
        shown
    };
    act("pause", "The job is paused.", "paused").await.has("on request");
    act("resume", "The job goes on.", "queued").await;
    act("cancel", "The job is cancelled.", "cancelled").await;
    let refused = browser.post(&format!("{page}/pause"), &[]).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    refused.has("The job is cancelled: it cannot be paused.");
    act("retry", "The job goes on.", "queued").await;
    service.run_engine();
    service.all_results(&id).await;
    browser.get(&page).await.has("2 of 2 (100 %)");
    let deleted = browser.post(&format!("{page}/delete"), &[]).await;
    assert_eq!(deleted.leads_to(), "/dashboard/jobs?done=job-deleted");
    browser.get(deleted.leads_to()).await.has("The job is deleted.");
    assert_eq!(browser.get(&page).await.status, StatusCode::NOT_FOUND);
    let again = browser.post(&format!("{page}/delete"), &[]).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn failures_are_shown_by_code_with_an_example_and_retried() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let browser = Browser::signed_in(&service).await;
    let prompts = [failing(400), "fine".to_owned(), failing(400), failing(404)];
    let id = service.chats(prompts).await;
    let results = service.all_results(&id).await;
    assert_eq!(results.len(), 4);
    let page = format!("/dashboard/jobs/{id}");
    let shown = browser.get(&page).await;
    shown.has("4 of 4 (100 %)");
    shown.has("3 failed");
    shown.has("invalid_request");
    shown.has("Gemini rejected the request");
    shown.has("Item 0");
    shown.has("model_not_found");
    for (which, done, calls) in [("retryable", "nothing-to-retry", 4), ("all", "job-resumed", 7)] {
        let sent = browser.post(&format!("{page}/retry"), &[("which", which)]).await;
        assert_eq!(sent.leads_to(), format!("{page}?done={done}"));
        service.all_results(&id).await;
        assert_eq!(service.simulator.journal().len(), calls);
    }
}

#[tokio::test]
async fn results_and_failures_are_downloaded_as_files() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let browser = Browser::signed_in(&service).await;
    let id = service.chats(["fine".to_owned(), failing(400)]).await;
    service.all_results(&id).await;
    for (query, what, lines) in [("", "results", 2), ("?only=failed", "failures", 1)] {
        let file = browser.get(&format!("/dashboard/jobs/{id}/results{query}")).await;
        assert_eq!(file.headers["content-type"], "application/x-ndjson");
        let name = format!("attachment; filename=\"{id}-{what}.jsonl\"");
        assert_eq!(file.headers["content-disposition"], name);
        let results: Vec<Value> =
            file.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(results.len(), lines);
        assert_eq!(results.last().unwrap()["error_code"], "invalid_request");
    }
}

#[tokio::test]
async fn hostile_names_are_shown_as_text() {
    let service = JobService::without_engine(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let name = format!("<script>alert(1)</script>\u{202e}\"'&{}", "x".repeat(220));
    let job = json!({"job": {"kind": "chat", "job_name": name, "model": "<img src=x>"}});
    let body = format!("{job}\n{}", chats(["x".to_owned()]));
    let begun = answer(service.upload("", body)).await;
    let pages = match begun.body["job_id"].as_str() {
        Some(id) => vec!["/dashboard/jobs".to_owned(), format!("/dashboard/jobs/{id}")],
        // A model is a word, so the name alone is hostile.
        None => {
            let job = json!({"job": {"kind": "chat", "job_name": name}});
            let body = format!("{job}\n{}", chats(["x".to_owned()]));
            let id = accepted(answer(service.upload("", body)).await);
            vec!["/dashboard/jobs".to_owned(), format!("/dashboard/jobs/{id}")]
        }
    };
    for page in pages {
        let shown = browser.get(&page).await;
        shown.has("&lt;script&gt;alert(1)&lt;/script&gt;");
        shown.has_not("<script>alert");
        shown.has_not("\u{202e}");
        shown.has_not(&"x".repeat(201));
        shown.has_not("<img");
    }
}
