//! Batches that are answered later, line by line, or again.

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{JobService, accepted, faults, lines};
use crate::support::{answer, kinds, slow};

fn batch(service: &JobService, prompts: &[&str]) -> RequestBuilder {
    let requests: Vec<_> = prompts.iter().map(|prompt| json!({"prompt": prompt})).collect();
    service.post("/batch/chat", &json!({"requests": requests}))
}

async fn lines_of(request: RequestBuilder) -> Vec<Value> {
    let response = request.header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    lines(&response.text().await.expect("a whole answer"))
}

#[tokio::test]
async fn a_batch_is_answered_later_if_that_is_preferred() {
    let service = JobService::start().await;
    for (path, body) in kinds() {
        let request = || service.post(&format!("/batch{path}"), &json!({"requests": [body, body]}));
        let begun = answer(request().header("Prefer", "respond-async")).await;
        assert_eq!(begun.headers["preference-applied"], "respond-async");
        assert_eq!(begun.body["kind"], path[1..]);
        let id = accepted(begun);
        let at_once = answer(request()).await.body;
        assert_eq!(service.all_results(&id).await, at_once["results"].as_array().unwrap()[..]);
    }
}

#[tokio::test]
async fn a_batch_is_answered_line_by_line_as_its_items_finish() {
    let service = JobService::start().await;
    let first = slow(60_000);
    let mut response = batch(&service, &[&first, "a", "[[simulate:blocked=SAFETY]]"])
        .header("accept", "application/x-ndjson")
        .send()
        .await
        .unwrap();
    let mut text = String::new();
    while lines(text.trim_end()).len() < 2 {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    let mut indices: Vec<_> =
        lines(&text).iter().map(|line| line["index"].as_u64().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, [1, 2]);
    // A client that hangs up cancels the rest.
    drop(response);
    service.until_idle().await;

    let whole = answer(batch(&service, &["a", "b", "[[simulate:blocked=SAFETY]]"])).await.body;
    let mut all = lines_of(batch(&service, &["a", "b", "[[simulate:blocked=SAFETY]]"])).await;
    let totals = all.pop().unwrap();
    all.sort_by_key(|line| line["index"].as_u64());
    assert_eq!(all, whole["results"].as_array().unwrap()[..]);
    for (name, total) in totals.as_object().unwrap() {
        assert_eq!(*total, whole[name], "{name}");
    }
    assert_eq!(totals["total_requests"], 3);
    let empty = lines_of(batch(&service, &[])).await;
    assert_eq!((empty.len(), &empty[0]["total_requests"]), (1, &json!(0)));
    let refused =
        answer(batch(&service, &["a", ""]).header("accept", "application/x-ndjson")).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_answered_with_the_same_results() {
    let service = JobService::start().await;
    let prompts = ["a", "[[simulate:blocked=SAFETY]]", "b"];
    let again = |prompts: &[&str]| batch(&service, prompts).header("Idempotency-Key", "one");
    let first = answer(again(&prompts)).await;
    assert_eq!(first.status, StatusCode::OK);
    let plain = answer(batch(&service, &prompts)).await;
    assert_eq!(first.body, plain.body);
    let calls = service.simulator.journal().len();
    assert_eq!(answer(again(&prompts)).await.body, first.body);
    let mut streamed = lines_of(again(&prompts)).await;
    assert_eq!(streamed.pop().unwrap()["total_requests"], 3);
    streamed.sort_by_key(|line| line["index"].as_u64());
    streamed.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("position")));
    assert_eq!(streamed, first.body["results"].as_array().unwrap()[..]);
    let later = answer(again(&prompts).header("Prefer", "respond-async")).await;
    assert_eq!((later.status, &later.body["status"]), (StatusCode::OK, &json!("completed")));
    assert_eq!(service.simulator.journal().len(), calls);
    let other = answer(again(&["c"])).await;
    assert_eq!(
        (other.status, &other.body["code"]),
        (StatusCode::CONFLICT, &json!("idempotency_conflict"))
    );
    let empty = answer(batch(&service, &[]).header("Idempotency-Key", "two")).await;
    assert_eq!(empty.body, answer(batch(&service, &[])).await.body);
}

#[tokio::test]
async fn a_batch_whose_client_hung_up_goes_on_and_is_waited_for_when_it_is_sent_again() {
    let service = JobService::start().await;
    let prompt = slow(1_000);
    let send = || batch(&service, &[&prompt]).header("Idempotency-Key", "one");
    let first = tokio::spawn(send().send());
    service.until("it runs", |limiter| limiter.in_flight == 1).await;
    first.abort();
    let answered = answer(send()).await;
    assert_eq!(answered.body["successful_requests"], 1, "{answered:?}");
    assert_eq!(service.simulator.journal().len(), 1);
}

#[tokio::test]
async fn a_batch_that_is_waited_for_is_told_when_its_job_stops() {
    let service = JobService::start().await;
    let prompt = slow(60_000);
    for (change, expected) in [("pause", "job_state_conflict"), ("cancel", "job_state_conflict")] {
        let send = answer(batch(&service, &[&prompt]).header("Idempotency-Key", change));
        let stop = async {
            service.until("it runs", |limiter| limiter.in_flight > 0).await;
            let id = service.list().await[0]["job_id"].as_str().unwrap().to_owned();
            assert_eq!(service.change(&id, change).await.status, StatusCode::OK);
            assert_eq!(service.change(&id, "cancel").await.status, StatusCode::OK);
        };
        let (answered, ()) = tokio::join!(send, stop);
        assert_eq!(answered.body["code"], expected, "{change}: {answered:?}");
        service.until_idle().await;
    }
    let send = |key: &str| {
        let request = batch(&service, &["a"]).header("Idempotency-Key", "three");
        answer(request.header("x-goog-api-key", key))
    };
    let refused = send("invalid-key").await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::UNAUTHORIZED, &json!("invalid_api_key"))
    );
    assert_eq!(send("a-good-key").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_batch_that_becomes_a_job_is_checked_as_ever() {
    let service = JobService::without_engine(|config| config.max_batch_size = 2).await;
    let later =
        |body: Value| answer(service.post("/batch/chat", &body).header("Prefer", "respond-async"));
    for (body, place) in [
        (
            json!({"requests": [{"prompt": "a"}, {"prompt": ""}]}),
            r#"["body","requests",1,"prompt"]"#,
        ),
        (
            json!({"requests": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]}),
            r#"["body","requests"]"#,
        ),
        (
            json!({"requests": [{"prompt": "a", "credentials": {"gemini_api_key": "x"}}]}),
            r#"["body","requests",0,"credentials"]"#,
        ),
        (json!({"requests": [], "kin": "chat"}), r#"["body","kin"]"#),
    ] {
        let refused = later(body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(faults(&refused)[0].0, place, "{refused:?}");
    }
    assert_eq!(service.list().await, [Value::Null; 0]);
}
