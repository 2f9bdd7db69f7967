//! Which callers see which jobs.

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{JobService, accepted, chats};
use crate::support::{Answer, SERVER_KEY, admin, answer};

fn with(key: &str, request: RequestBuilder) -> RequestBuilder {
    request.header("x-goog-api-key", key)
}

fn prompts() -> String {
    chats((0..3).map(|n| n.to_string()))
}

async fn listed(request: RequestBuilder) -> Vec<String> {
    let list = answer(request).await;
    assert_eq!(list.status, StatusCode::OK, "{list:?}");
    let jobs = list.body["jobs"].as_array().unwrap();
    jobs.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

fn is_unknown(lost: &Answer) -> bool {
    lost.status == StatusCode::NOT_FOUND && lost.body["code"] == "job_not_found"
}

#[tokio::test]
async fn a_key_sees_its_own_jobs_and_the_admin_all() {
    let service = JobService::start().await;
    let alice = accepted(answer(with("alice-key", service.upload("chat", prompts()))).await);
    let bob = accepted(answer(with("bob-key", service.upload("chat", prompts()))).await);
    let anybody = accepted(answer(service.upload("chat", prompts())).await);
    let admins = accepted(answer(admin(service.upload("chat", prompts()))).await);

    let newest_first = [&admins, &anybody, &bob, &alice].map(String::clone);
    assert_eq!(listed(admin(service.get("/jobs"))).await, newest_first);
    assert_eq!(listed(with("alice-key", service.get("/jobs"))).await, std::slice::from_ref(&alice));
    assert_eq!(listed(with("carol-key", service.get("/jobs"))).await, [""; 0]);
    assert_eq!(answer(service.get("/jobs")).await.status, StatusCode::UNAUTHORIZED);

    for id in [&alice, &bob, &anybody, &admins] {
        for path in ["", "/results", "/events", "/results?follow=true"] {
            let get = || service.get(&format!("/jobs/{id}{path}"));
            let sees =
                async |request: RequestBuilder| request.send().await.unwrap().status() == 200;
            assert!(sees(admin(get())).await, "{id}{path}");
            assert_eq!(sees(with("alice-key", get())).await, *id == alice, "{path}");
            assert_eq!(sees(with("bob-key", get())).await, *id == bob, "{path}");
            assert_eq!(sees(get()).await, *id == anybody, "{path}");
        }
        for change in ["pause", "resume", "cancel", "retry"] {
            let request = service.http.post(service.url(&format!("/jobs/{id}/{change}")));
            assert!(is_unknown(&answer(with("carol-key", request)).await), "{change}");
        }
        let request = service.http.delete(service.url(&format!("/jobs/{id}")));
        assert!(is_unknown(&answer(with("carol-key", request)).await));
    }
    for id in ["job_0", "x", "job_00000000000000000000000000000000", "%ff"] {
        assert!(!answer(admin(service.get(&format!("/jobs/{id}")))).await.status.is_success());
    }
    let after = answer(with("bob-key", service.get(&format!("/jobs?after={alice}")))).await;
    assert!(is_unknown(&after), "{after:?}");
}

#[tokio::test]
async fn the_owners_key_pays() {
    let service = JobService::start().await;
    for (key, request) in [
        ("alice-key", with("alice-key", service.upload("chat", prompts()))),
        (SERVER_KEY, service.upload("chat", prompts())),
        (SERVER_KEY, admin(service.upload("chat", prompts()))),
        (
            "carol-key",
            service.post(
                "/jobs",
                &json!({
            "kind": "chat", "credentials": {"gemini_api_key": "carol-key"},
            "requests": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]}),
            ),
        ),
    ] {
        let before = service.simulator.journal().len();
        let id = accepted(answer(request).await);
        let results = admin(service.get(&format!("/jobs/{id}/results?follow=true")));
        let text = results.send().await.unwrap().text().await.unwrap();
        assert_eq!(text.lines().count(), 3);
        let calls = service.simulator.journal();
        let keys: Vec<_> = calls[before..].iter().map(|call| &*call.api_key).collect();
        assert_eq!(keys, [key; 3]);
    }
}

#[tokio::test]
async fn without_a_key_nothing_is_begun_where_a_key_is_required() {
    let service = JobService::with(|config| config.environment_fallback = false).await;
    for request in [
        service.upload("chat", prompts()),
        service.get("/jobs"),
        service.get("/jobs/job_00000000000000000000000000000000"),
        with("a b", service.get("/jobs")),
    ] {
        assert_eq!(answer(request).await.status, StatusCode::UNAUTHORIZED);
    }
    let two = with("a-key", service.upload("chat", prompts())).bearer_auth("another-key");
    assert_eq!(answer(two).await.body["code"], "multiple_credentials");
    let page = service.upload("chat", prompts()).header("origin", "https://elsewhere.example");
    assert_eq!(answer(page).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn idempotency_keys_of_different_owners_are_apart() {
    let service = JobService::without_engine(|_| {}).await;
    let send =
        |key: &str| with(key, service.upload("chat", prompts())).header("Idempotency-Key", "x");
    let alice = accepted(answer(send("alice-key")).await);
    let bob = accepted(answer(send("bob-key")).await);
    assert_ne!(alice, bob);
    assert_eq!(answer(send("alice-key")).await.body["job_id"], alice);
}

/// As after a restart: the job is in the store, and its key is not in memory.
#[tokio::test]
async fn a_job_whose_key_is_not_in_memory_waits_for_its_owner() {
    let mut service = JobService::without_engine(|_| {}).await;
    let id = accepted(answer(with("alice-key", service.upload("chat", prompts()))).await);
    let number = service.gateway.jobs.store().jobs(None, None, 1).await.unwrap()[0].number;
    service.gateway.jobs.forget_key(number);
    service.run_engine();
    let own = |request: RequestBuilder| with("alice-key", request);
    let job = loop {
        let job = answer(own(service.get(&format!("/jobs/{id}")))).await.body;
        if job["status"] == "paused" {
            break job;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(job["reason"], "key_needed");
    let resume = || service.http.post(service.url(&format!("/jobs/{id}/resume")));
    let refused = answer(admin(resume())).await;
    assert_eq!(refused.body["code"], "job_state_conflict", "{refused:?}");
    let pause = service.http.post(service.url(&format!("/jobs/{id}/pause")));
    assert_eq!(answer(admin(pause)).await.body["reason"], "requested");
    let refused = answer(admin(resume())).await;
    assert_eq!(refused.body["code"], "job_state_conflict", "{refused:?}");
    assert!(is_unknown(&answer(with("bob-key", resume())).await));
    assert_eq!(answer(own(resume())).await.status, StatusCode::OK);
    let results = own(service.get(&format!("/jobs/{id}/results?follow=true")));
    let text = results.send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(service.simulator.journal().iter().all(|call| call.api_key == "alice-key"));
    // The key of a job that has ended is of no use.
    assert_eq!(answer(own(resume())).await.status, StatusCode::CONFLICT);
    assert!(service.gateway.jobs.key_of(number).is_none());
    assert_eq!(Value::from(id), job["job_id"]);
}
