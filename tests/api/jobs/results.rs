//! Results in every order, the list of jobs, and events.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{JobService, accepted, chats, lines};
use crate::support::{admin, answer, slow};

#[tokio::test]
async fn results_are_read_in_input_order_while_the_job_runs() {
    let service = JobService::with(|config| config.concurrency_limit = 2).await;
    let first = format!("0 {}", slow(300));
    let id = service.chats([first].into_iter().chain((1..50).map(|n| n.to_string()))).await;
    let follow = service.all_results(&id).await;
    let indices: Vec<_> = follow.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, (0..50).collect::<Vec<_>>());
    let later = service.results(&id, "?after=47").await;
    assert_eq!(later[..], follow[47..]);
    assert_eq!(service.results(&id, "?after=50").await, [Value::Null; 0]);
    assert_eq!(service.results(&id, "").await, follow);
}

#[tokio::test]
async fn results_without_follow_end_before_the_first_item_that_has_none() {
    let service = JobService::with(|config| config.concurrency_limit = 2).await;
    let id = service.chats([slow(60_000), "a".to_owned(), "b".to_owned()]).await;
    let followed = service.get(&format!("/jobs/{id}/results?follow=true&order=completion"));
    let mut followed = followed.send().await.unwrap();
    let mut seen = String::new();
    while lines(seen.trim_end()).len() < 2 {
        seen.push_str(std::str::from_utf8(&followed.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(service.results(&id, "").await, [Value::Null; 0]);
    let by_completion = service.results(&id, "?order=completion").await;
    assert_eq!(by_completion, lines(&seen));
    let positions: Vec<_> =
        by_completion.iter().map(|line| line["position"].as_u64().unwrap()).collect();
    let rest = service.results(&id, &format!("?order=completion&after={}", positions[0])).await;
    assert_eq!(rest, by_completion[1..]);
    // A cancelled job has no further results, and the reader that follows ends.
    assert_eq!(service.change(&id, "cancel").await.status, StatusCode::OK);
    while let Some(piece) = followed.chunk().await.unwrap() {
        seen.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert_eq!(lines(&seen), by_completion);
    let indices = service.results(&id, "").await;
    let indices: Vec<_> = indices.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [1, 2]);
}

#[tokio::test]
async fn only_the_failed_results_are_read_if_asked_for() {
    let service = JobService::start().await;
    let blocked = "[[simulate:blocked=SAFETY]]";
    let id = service.chats(["a", blocked, "b", blocked].map(str::to_owned)).await;
    let followed = service.results(&id, "?only=failed&follow=true").await;
    let all = service.all_results(&id).await;
    assert_eq!(all.len(), 4);
    assert_eq!(followed, [all[1].clone(), all[3].clone()]);
    let failed = service.results(&id, "?only=failed").await;
    assert_eq!(failed, [all[1].clone(), all[3].clone()]);
    assert_eq!(service.results(&id, "?only=failed&after=2").await, [all[3].clone()]);
    assert_eq!(failed[0]["error_code"], "content_blocked");
    let job = service.job(&id).await;
    assert_eq!((&job["succeeded"], &job["failed"]), (&json!(2), &json!(2)));
    assert_eq!(job["failures"]["content_blocked"]["count"], 2);
    assert!([1, 3].map(Value::from).contains(&job["failures"]["content_blocked"]["example"]));
    assert!(job["cost_usd"].as_f64().unwrap() > 0.0 && job["input_tokens"].as_u64().unwrap() > 0);
    for query in ["?order=random", "?after=-1", "?follow=yes", "?only=good", "?x=1"] {
        let refused = answer(service.get(&format!("/jobs/{id}/results{query}"))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
}

#[tokio::test]
async fn jobs_are_listed_newest_first_and_in_pages() {
    let service = JobService::without_engine(|_| {}).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let text =
            format!("{}\n{}", json!({"job": {"job_name": n.to_string()}}), chats(["a".to_owned()]));
        ids.push(accepted(answer(service.upload("chat", text)).await));
    }
    ids.reverse();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = answer(admin(service.get(&format!("/jobs?limit=2{after}")))).await.body;
        let jobs = page["jobs"].as_array().unwrap();
        assert!(jobs.len() <= 2);
        seen.extend(jobs.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(Some(next), seen.last().map(|id| &**id));
        after = format!("&after={next}");
    }
    assert_eq!(seen, ids);
    let whole = answer(admin(service.get("/jobs"))).await.body;
    assert_eq!((whole["jobs"].as_array().unwrap().len(), &whole["next"]), (5, &Value::Null));
    let lost = answer(admin(service.get("/jobs?after=job_0"))).await;
    assert_eq!(lost.body["code"], "job_not_found");
    let many = answer(admin(service.get("/jobs?limit=101"))).await;
    assert_eq!(many.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// The events of a job: their names and their data.
async fn events(service: &JobService, id: &str) -> Vec<(String, Value)> {
    let response = service.get(&format!("/jobs/{id}/events")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.expect("a whole answer");
    let events = text.split("\n\n").filter(|event| event.contains("data: "));
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).expect(name).to_owned()
    };
    events
        .map(|event| {
            let data = serde_json::from_str(&field(event, "data: ")).unwrap();
            (field(event, "event: "), data)
        })
        .collect()
}

#[tokio::test]
async fn events_show_the_progress_and_the_end() {
    let service = JobService::with(|config| config.concurrency_limit = 1).await;
    let id = service.chats((0..6).map(|n| format!("{n} {}", slow(200)))).await;
    let events = events(&service, &id).await;
    let (last, earlier) = events.split_last().unwrap();
    assert_eq!((&*last.0, &last.1["status"]), ("end", &json!("completed")));
    assert_eq!(last.1, service.job(&id).await);
    assert!(!earlier.is_empty() && earlier.iter().all(|(name, _)| name == "progress"));
    let done: Vec<_> = events.iter().map(|(_, job)| job["succeeded"].as_u64().unwrap()).collect();
    assert!(done.is_sorted(), "{done:?}");
    // A job that has ended has one event.
    assert_eq!(self::events(&service, &id).await, std::slice::from_ref(last));
}

#[tokio::test]
async fn the_events_of_a_deleted_job_end() {
    let service = JobService::without_engine(|_| {}).await;
    let id = service.chats(["a".to_owned()]).await;
    let deleted = async {
        let stream = service.get(&format!("/jobs/{id}/events")).send().await.unwrap();
        let request = service.http.delete(service.url(&format!("/jobs/{id}")));
        assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT);
        stream.text().await.unwrap()
    };
    let text = deleted.await;
    assert!(text.contains("event: progress\n"), "{text}");
    assert!(text.trim_end().ends_with("\"status\":\"deleted\"}"), "{text}");
    assert_eq!(answer(service.get(&format!("/jobs/{id}"))).await.status, StatusCode::NOT_FOUND);
}
