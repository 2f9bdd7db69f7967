//! Named semaphores: registering, changing, listing and deleting them, idle and in use.

use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{ADMIN_KEY, Answer, Service, answer, slow, until};

const PATH: &str = "/_admin/semaphores";

async fn list(service: &Service) -> Value {
    let listed = answer(service.get(PATH).header("Admin-API-Key", ADMIN_KEY)).await;
    assert_eq!(listed.status, StatusCode::OK);
    listed.body
}

async fn register(service: &Service, body: Value) -> Answer {
    answer(service.post(PATH, &body).header("Admin-API-Key", ADMIN_KEY)).await
}

async fn delete(service: &Service, id: &str) -> Answer {
    answer(service.delete(&format!("{PATH}/{id}"))).await
}

/// Starts a chat that uses the semaphore.
fn chat(service: &Service, semaphore: &str, latency_ms: u64) -> JoinHandle<Answer> {
    let body = json!({"prompt": slow(latency_ms), "external_semaphore_id": semaphore});
    tokio::spawn(answer(service.post("/chat", &body)))
}

#[tokio::test]
async fn a_semaphore_is_created_changed_listed_and_deleted() {
    let service = Service::start().await;
    assert_eq!(list(&service).await, json!({"count": 0, "semaphores": []}));

    let status = |id: &str, limit: u64| json!({"semaphore_id": id, "limit": limit, "available": limit, "in_use": 0, "waiting": 0});
    let created = service.register("images", 5).await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(created.body, status("images", 5));
    let changed = service.register("images", 7).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(changed.body, status("images", 7));
    service.register("audio", 1).await;
    let both = json!({"count": 2, "semaphores": [status("audio", 1), status("images", 7)]});
    assert_eq!(list(&service).await, both);

    let deleted = delete(&service, "images").await;
    assert_eq!((deleted.status, deleted.body), (StatusCode::NO_CONTENT, Value::Null));
    assert_eq!(list(&service).await, json!({"count": 1, "semaphores": [status("audio", 1)]}));
    let gone = delete(&service, "images").await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(gone.body["code"], "semaphore_not_found");
    assert!(gone.body["detail"].as_str().unwrap().contains("\"images\""), "{gone:?}");
    assert_eq!(service.register("images", 2).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_limit_is_a_whole_number_from_1_to_1000() {
    let service = Service::start().await;
    for limit in [1, 1000] {
        let registered = service.register(&format!("limit-{limit}"), limit).await;
        assert_eq!(registered.status, StatusCode::CREATED);
        assert_eq!(registered.body["available"], limit);
    }
    for limit in [
        json!(0),
        json!(1001),
        json!(-1),
        json!("x"),
        json!("5"),
        json!(1.5),
        json!(null),
        json!(true),
        json!(u64::MAX),
        json!(i64::MIN),
    ] {
        for id in ["limit-1", "new"] {
            let refused = register(&service, json!({"semaphore_id": id, "limit": limit})).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{limit}");
            assert_eq!(refused.body["detail"][0]["loc"], json!(["body", "limit"]), "{limit}");
        }
    }
    let missing = register(&service, json!({"semaphore_id": "new"})).await;
    let fault = json!({"type": "missing", "loc": ["body", "limit"], "msg": "Field required"});
    assert_eq!(missing.body["detail"], json!([fault]));

    let listed = list(&service).await;
    assert_eq!((&listed["count"], &listed["semaphores"][0]["limit"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn an_id_may_contain_only_certain_characters() {
    let service = Service::start().await;
    let longest = "i".repeat(128);
    for id in ["a", "Team-1.images_v2:eu", &longest] {
        assert_eq!(service.register(id, 1).await.status, StatusCode::CREATED, "{id}");
    }
    let too_long = "i".repeat(129);
    for id in ["", " ", "a b", "a/b", "a\"b", "a\nb", "ü", "a%20b", &too_long] {
        let refused = service.register(id, 1).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{id:?}");
        assert_eq!(refused.body["detail"][0]["loc"], json!(["body", "semaphore_id"]), "{id:?}");
    }
    assert_eq!(list(&service).await["count"], 3);
}

#[tokio::test]
async fn an_id_in_the_path_is_percent_decoded() {
    let service = Service::start().await;
    for encoded in ["team:images", "team%3Aimages", "%74eam%3aimages"] {
        assert_eq!(service.register("team:images", 1).await.status, StatusCode::CREATED);
        assert_eq!(delete(&service, encoded).await.status, StatusCode::NO_CONTENT, "{encoded}");
    }
    for (encoded, named) in [("a%2Fb", "\"a/b\""), ("a%20b", "\"a b\""), ("%22", r#""\"""#)] {
        let unknown = delete(&service, encoded).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{encoded}");
        assert_eq!(unknown.body["code"], "semaphore_not_found");
        assert!(unknown.body["detail"].as_str().unwrap().contains(named), "{unknown:?}");
    }
    let no_text = delete(&service, "%FF").await;
    assert_eq!(no_text.status, StatusCode::NOT_FOUND);
    assert_eq!(no_text.body["code"], "not_found");
}

#[tokio::test]
async fn only_the_administrator_manages_semaphores() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let body = json!({"semaphore_id": "images", "limit": 2});
    for key in [None, Some(""), Some("wrong"), Some("The-Admin-Key"), Some("the-admin-key2")] {
        let requests = [
            service.get(PATH),
            service.post(PATH, &body),
            // A caller without a key gets no details about its body.
            service.post(PATH, &json!({})),
            reqwest::Client::new().delete(service.url(&format!("{PATH}/images"))),
        ];
        for request in requests {
            let request = key.into_iter().fold(request, |r, key| r.header("Admin-API-Key", key));
            let refused = answer(request).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{key:?}");
            assert_eq!(refused.body["code"], "unauthenticated");
        }
    }
    assert_eq!(list(&service).await["semaphores"][0]["limit"], 1);
}

#[tokio::test]
async fn a_limit_can_change_while_requests_hold_permits() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let mut chats = Vec::new();
    for waiting in 0..5 {
        chats.push(chat(&service, "images", 60_000));
        // One after the other, so that their order is known.
        service
            .until("it waits", |limiter| limiter.in_flight == 1 && limiter.waiting == waiting)
            .await;
    }
    assert_eq!(service.register("images", 3).await.status, StatusCode::OK);
    service.until("two more start", |limiter| limiter.in_flight == 3 && limiter.waiting == 2).await;

    let lowered = service.register("images", 2).await;
    assert_eq!(lowered.status, StatusCode::OK);
    let expected =
        json!({"semaphore_id": "images", "limit": 2, "available": 0, "in_use": 3, "waiting": 2});
    assert_eq!(lowered.body, expected);
    assert_eq!(list(&service).await["semaphores"], json!([expected]));

    chats[0].abort();
    service.until("two are left", |limiter| limiter.in_flight == 2).await;
    assert_eq!(
        service.gateway.limiter.occupancy().waiting,
        2,
        "two hold permits and two wait for one"
    );
    assert_eq!(service.simulator.stats().calls, 3);
    chats[1].abort();
    service
        .until("the next one starts", |limiter| limiter.in_flight == 2 && limiter.waiting == 1)
        .await;
    until("it was sent", || service.simulator.stats().calls == 4).await;

    for chat in chats {
        chat.abort();
    }
    service.until_idle().await;
    let idle =
        json!({"semaphore_id": "images", "limit": 2, "available": 2, "in_use": 0, "waiting": 0});
    assert_eq!(list(&service).await["semaphores"], json!([idle]));
}

#[tokio::test]
async fn deleting_a_semaphore_fails_waiting_requests_and_lets_running_ones_finish() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let running = chat(&service, "images", 1_500);
    service.until("it runs", |limiter| limiter.in_flight == 1).await;
    let waiting = chat(&service, "images", 0);
    let requests = vec![json!({"prompt": "in a batch"}); 3];
    let batch = json!({"requests": requests, "external_semaphore_id": "images"});
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    service.until("both wait", |limiter| limiter.waiting == 2).await;

    assert_eq!(delete(&service, "images").await.status, StatusCode::NO_CONTENT);
    let waiting = waiting.await.unwrap();
    assert_eq!(waiting.status, StatusCode::CONFLICT);
    assert_eq!(waiting.body["code"], "semaphore_deleted");
    let batch = batch.await.unwrap();
    assert_eq!(batch.status, StatusCode::OK);
    assert_eq!(batch.body["failed_requests"], 3);
    for result in batch.body["results"].as_array().unwrap() {
        assert_eq!(result["error_code"], "semaphore_deleted");
        assert_eq!(result["retryable"], false);
    }
    assert_eq!(running.await.unwrap().status, StatusCode::OK);
    assert_eq!(service.simulator.stats().calls, 1);
    service.until_idle().await;
}

/// A new semaphore of the same name does not count holders of the old one.
#[tokio::test]
async fn a_recreated_semaphore_is_independent_of_the_deleted_one() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let old = chat(&service, "images", 60_000);
    service.until("it runs", |limiter| limiter.in_flight == 1).await;
    delete(&service, "images").await;
    let created = service.register("images", 1).await;
    assert_eq!((created.status, &created.body["in_use"]), (StatusCode::CREATED, &json!(0)));
    assert_eq!(chat(&service, "images", 0).await.unwrap().status, StatusCode::OK);
    old.abort();
    service.until_idle().await;
    assert_eq!(
        list(&service).await["semaphores"][0]["available"],
        1,
        "no slot was given back twice"
    );
}

#[tokio::test]
async fn an_unknown_semaphore_is_named_and_nothing_is_sent() {
    let service = Service::with(Options::default(), |_| {}).await;
    service.register("known", 1).await;
    let chat = json!({"prompt": "Hello"});
    let lost = json!({"prompt": "Hello", "external_semaphore_id": "lost"});
    let structured = json!({
        "user_content": "u", "system_prompt": "s", "json_schema": {"type": "object"},
        "external_semaphore_id": "lost",
    });
    let story = json!({"user_content": "u", "system_prompt": "s", "external_semaphore_id": "lost"});
    for (path, body) in [
        ("/chat", lost.clone()),
        ("/structured-output", structured),
        ("/cinematic-story-design", story),
        ("/batch/chat", json!({"requests": [chat], "external_semaphore_id": "lost"})),
        ("/batch/chat", json!({"requests": [], "external_semaphore_id": "lost"})),
        ("/batch/chat", json!({"requests": [chat, lost]})),
        ("/batch/chat", json!({"requests": [chat, lost], "external_semaphore_id": "known"})),
    ] {
        let refused = answer(service.post(path, &body)).await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{path} {body}");
        assert_eq!(refused.body["code"], "semaphore_not_found");
        assert!(refused.body["detail"].as_str().unwrap().contains("\"lost\""), "{refused:?}");
    }
    assert_eq!(service.simulator.stats().calls, 0);
}
