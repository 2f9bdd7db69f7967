//! What heavy and hostile schemas cost, and that only their sender pays for it.

use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::schema::SchemaLimits;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Answer, Service, answer, until};
use crate::upstream::Upstream;

const PATH: &str = "/structured-output";
const BATCH: &str = "/batch/structured-output";

fn question(json_schema: &Value) -> Value {
    json!({"user_content": "Anna", "system_prompt": "Extract.", "json_schema": json_schema})
}

fn batch(schemas: &[Value]) -> Value {
    json!({"requests": schemas.iter().map(question).collect::<Vec<_>>()})
}

async fn send(service: &Service, schema: &Value) -> Answer {
    answer(service.post(PATH, &question(schema))).await
}

/// A schema and an answer whose check takes minutes: each item fits only the last alternative.
fn endless() -> (Value, String) {
    let alternatives: Vec<Value> = (0..1_000).map(|i| json!({"const": {"a": i}})).collect();
    let answer = Value::Array(vec![json!({"a": 999}); 400_000]);
    (json!({"type": "array", "items": {"anyOf": alternatives}}), answer.to_string())
}

async fn until_checked(service: &Service) {
    until("no check runs", || service.gateway.offload.running() == 0).await;
}

#[tokio::test]
async fn a_schema_is_compiled_only_after_authentication() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    let broken = json!({"type": "no such type"});
    for (path, body) in [(PATH, question(&broken)), (BATCH, batch(std::slice::from_ref(&broken)))] {
        let refused = answer(service.post(path, &body)).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// This test has a single thread: the chat is answered only if the check runs elsewhere.
#[tokio::test]
async fn a_schema_check_does_not_block_chats_and_stops_when_its_client_disconnects() {
    let (schema, long) = endless();
    let upstream = Upstream::answering([long, "A chat.".to_owned()]).await;
    let service = Service::over_with(&upstream.base_url, |_| {}).await;
    let request = service.post(PATH, &question(&schema));
    let heavy = tokio::spawn(request.send());
    until("the answer is being checked", || {
        upstream.requests().len() == 1 && service.gateway.offload.running() == 1
    })
    .await;
    assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    assert_eq!(service.gateway.offload.running(), 1, "the check still runs");
    heavy.abort();
    until_checked(&service).await;
    service.until_idle().await;
}

#[tokio::test]
async fn a_schema_check_stops_at_the_requests_deadline() {
    let (schema, long) = endless();
    let upstream = Upstream::answering([long]).await;
    let deadline = Duration::from_secs(1);
    let service =
        Service::over_with(&upstream.base_url, |config| config.request_timeout = deadline).await;
    let failed = send(&service, &schema).await;
    assert_eq!(failed.body["code"], "request_timeout", "{failed:?}");
    until_checked(&service).await;
}

#[tokio::test]
async fn an_answer_that_takes_too_long_to_check_is_a_schema_violation() {
    let (schema, long) = endless();
    let upstream = Upstream::answering([long]).await;
    let service = Service::over_with(&upstream.base_url, |config| {
        config.schema_timeout = Duration::from_secs(5)
    })
    .await;
    let failed = send(&service, &schema).await;
    assert_eq!(failed.body["code"], "schema_violation", "{failed:?}");
    let detail = failed.body["detail"].as_str().unwrap();
    assert!(detail.contains("takes longer than 5s"), "{detail}");
    assert_eq!(upstream.requests().len(), 1, "no second call");
    until_checked(&service).await;
}

#[tokio::test]
async fn a_schema_past_a_limit_is_refused_and_the_limit_is_named() {
    let small = |config: &mut Config| {
        config.schema_limits = SchemaLimits { bytes: 200_000, nodes: 20_000 };
    };
    let hasty = |config: &mut Config| config.schema_timeout = Duration::from_nanos(1);
    let small = Service::with(Options::default(), small).await;
    let hasty = Service::with(Options::default(), hasty).await;
    let of_bytes = |bytes: usize, one: &str| json!({"description": one.repeat(bytes)});
    let large = of_bytes(190_000, "a");
    for (service, schema, bound) in [
        (&small, of_bytes(200_001, "a"), "MAX_SCHEMA_BYTES"),
        (&small, json!({"enum": vec![1; 20_000]}), "MAX_SCHEMA_NODES"),
        (&hasty, large, "SCHEMA_TIMEOUT_SECONDS"),
    ] {
        for (path, body) in
            [(PATH, question(&schema)), (BATCH, batch(std::slice::from_ref(&schema)))]
        {
            let refused = answer(service.post(path, &body)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{bound}");
            let message = refused.body["detail"][0]["msg"].as_str().unwrap();
            assert!(message.contains(bound), "{path}: {message}");
        }
    }
}

#[tokio::test]
async fn a_batchs_schemas_share_one_limit_and_equal_ones_count_once() {
    let bound = |config: &mut Config| config.schema_limits.bytes = 20_000;
    let service = Service::with(Options::default(), bound).await;
    let large = |one: &str| json!({"type": "object", "properties": {"a": {"type": "string"}}, "description": one.repeat(15_000)});
    let equal = answer(service.post(BATCH, &batch(&vec![large("a"); 5]))).await;
    assert_eq!(equal.body["successful_requests"], 5, "{equal:?}");
    let distinct = batch(&["a", "b", "c"].map(large));
    let refused = answer(service.post(BATCH, &distinct)).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let fault = &refused.body["detail"][0];
    assert_eq!(fault["loc"], json!(["body", "requests", 2, "json_schema"]));
    assert!(fault["msg"].as_str().unwrap().contains("2 times MAX_SCHEMA_BYTES"), "{fault}");
}

#[tokio::test]
async fn a_hundred_thousand_levels_are_refused_in_schemas_and_answers() {
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let upstream = Upstream::answering([deep.clone(), deep.clone()]).await;
    let service = Service::over_with(&upstream.base_url, |_| {}).await;
    let failed = send(&service, &json!({"type": "array"})).await;
    assert_eq!(failed.body["code"], "schema_violation", "{failed:?}");

    let body = question(&json!("here")).to_string().replace("\"here\"", &deep);
    let request = service.post(PATH, &Value::Null).body(body);
    let refused = answer(request).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let expected = json!([{
        "type": "too_deep", "loc": ["body"], "msg": "The body is nested more than 127 levels deep"
    }]);
    assert_eq!(refused.body["detail"], expected);
}
