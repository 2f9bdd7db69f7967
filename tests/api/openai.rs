//! OpenAI's surface: which paths it has, who pays, and the format of errors.

use gemini_concurrent_generation::simulator::Options;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::limits::plan;
use crate::recording::Recording;
use crate::support::{ADMIN_KEY, SERVER_KEY, Service, answer};

const CHAT: &str = "/v1/chat/completions";

fn chat(service: &Service, body: &Value) -> RequestBuilder {
    service.post(CHAT, body).header("authorization", "Bearer callers-key")
}

fn question(text: &str) -> Value {
    json!({"model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn requests_are_sent_to_geminis_openai_endpoints_with_a_bearer_token() {
    let body = b"{\"object\":\"x\",\"usage\":{\"prompt_tokens\":7}}".to_vec();
    let recording = Recording::play(200, "application/json", vec![body]).await;
    let service = Service::over(&recording.base_url).await;
    for (path, sent_to) in [
        (CHAT, "/v1beta/openai/chat/completions"),
        ("/v1/embeddings", "/v1beta/openai/embeddings"),
        ("/v1beta/openai/chat/completions?a=b", "/v1beta/openai/chat/completions?a=b"),
        ("/v1/openai/images/generations", "/v1beta/openai/images/generations"),
    ] {
        let asked = question("Hello");
        let request = service.post(path, &asked).header("authorization", "Bearer callers-key");
        assert_eq!(answer(request).await.body["object"], "x");
        let sent = recording.requests().pop().unwrap();
        assert!(sent.starts_with(&format!("POST {sent_to} HTTP/1.1\r\n")), "{sent}");
        assert!(sent.contains("authorization: Bearer callers-key\r\n"), "{sent}");
        assert!(!sent.contains("x-goog-api-key"), "{sent}");
        assert!(sent.ends_with(&asked.to_string()), "{sent}");
    }
    let calls = "gemini_gateway_calls_total{kind=\"openai_chat\",model=\"gemini-3.5-flash-lite\",\
                 outcome=\"success\"}";
    assert_eq!(service.metric(calls).await, 2.0);
    let tokens = "gemini_gateway_tokens_total{model=\"gemini-3.5-flash-lite\",type=\"prompt\"}";
    assert_eq!(service.metric(tokens).await, 28.0);
}

#[tokio::test]
async fn a_bearer_token_lists_the_models_in_openais_format() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let bearer = ("authorization", "Bearer k");
    for (headers, path, sent_to) in [
        (vec![bearer], "/v1/models", "/v1beta/openai/models"),
        (
            vec![bearer],
            "/v1/models/gemini-3.5-flash-lite",
            "/v1beta/openai/models/gemini-3.5-flash-lite",
        ),
        (vec![("x-goog-api-key", "k")], "/v1/models", "/v1/models"),
        (vec![bearer, ("x-goog-api-key", "k")], "/v1/models", "/v1/models"),
        (vec![], "/v1/models?key=k", "/v1/models"),
        (vec![], "/v1/models", "/v1/models"),
        (vec![bearer], "/v1beta/models", "/v1beta/models"),
    ] {
        let request = headers
            .iter()
            .fold(service.get(path), |request, (name, value)| request.header(*name, *value));
        assert_eq!(answer(request).await.status, 200);
        let sent = recording.requests().pop().unwrap();
        assert!(sent.starts_with(&format!("GET {sent_to} HTTP/1.1\r\n")), "{path}: {sent}");
    }
}

#[tokio::test]
async fn a_post_is_counted_for_its_model_whatever_its_content_type() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let text = |path: &str, body: &Value| {
            let request = reqwest::Client::new().post(service.url(path)).body(body.to_string());
            request.header("content-type", kind).header("authorization", "Bearer callers-key")
        };
        assert_eq!(answer(text(CHAT, &question("Hello"))).await.status, 200);
        assert_eq!(answer(text(CHAT, &json!({"messages": []}))).await.status, 400);
        assert_eq!(answer(text("/v1/openai/images/generations", &json!({}))).await.status, 400);
        assert_eq!(answer(text("/v1beta/openai/files", &json!({}))).await.status, 200);
        let doubled = text(CHAT, &Value::Null).body(r#"{"model":"a","model":"b"}"#);
        assert_eq!(answer(doubled).await.status, 400);
        // A call that names no model and needs none is counted too.
        assert_eq!(answer(text("/v1beta/openai/a%20b", &json!({}))).await.status, 200);
        let sent = recording.requests().pop().unwrap();
        assert!(sent.starts_with("POST /v1beta/openai/a%20b HTTP/1.1\r\n"), "{sent}");
    }
    assert_eq!(service.metric("gemini_gateway_queue_wait_seconds_count").await, 4.0);
}

#[tokio::test]
async fn openai_paths_map_to_geminis_or_are_refused() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    for (path, sent_to) in [
        ("/v1/images/generations", "/v1beta/openai/images/generations"),
        ("/v1/videos", "/v1beta/openai/videos"),
        ("/v1/files", "/v1beta/openai/files"),
        ("/v1/batches", "/v1beta/openai/batches"),
        ("/v1/batches/b/cancel?a=%2F", "/v1beta/openai/batches/b/cancel?a=%2F"),
    ] {
        let request = service.post(path, &question("Hello"));
        let request = request.header("authorization", "Bearer callers-key");
        assert_eq!(answer(request).await.status, 200, "{path}");
        let sent = recording.requests().pop().unwrap();
        assert!(sent.starts_with(&format!("POST {sent_to} HTTP/1.1\r\n")), "{path}: {sent}");
        assert!(sent.contains("authorization: Bearer callers-key\r\n"), "{sent}");
    }
    let sent = recording.requests().len();
    for path in ["/v1/responses", "/v1/responses/r/cancel", "/v1/audio/speech"] {
        let request = service.post(path, &question("Hello"));
        let missing = answer(request.header("authorization", "Bearer callers-key")).await;
        assert_eq!(missing.status, 404, "{path}");
        assert_eq!(missing.body["error"]["code"], "not_found");
        assert_eq!(missing.body["error"]["type"], "invalid_request_error");
    }
    assert_eq!(recording.requests().len(), sent);
}

#[tokio::test]
async fn the_admin_key_may_be_the_bearer_token() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let request = service.post(CHAT, &question("Hello"));
    let request = request.header("authorization", format!("Bearer {ADMIN_KEY}"));
    assert_eq!(answer(request).await.status, 200);
    let sent = recording.requests().pop().unwrap();
    assert!(sent.contains(&format!("authorization: Bearer {SERVER_KEY}\r\n")), "{sent}");
}

#[tokio::test]
async fn every_error_uses_openais_error_format() {
    let gemini = json!([{"error": {
        "code": 400, "message": "API key not valid. Please pass a valid API key.",
        "status": "INVALID_ARGUMENT",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    }}]);
    let recording = Recording::play(400, "application/json", vec![gemini.to_string().into()]).await;
    let service = Service::over(&recording.base_url).await;
    let bad_key = chat(&service, &question("Hello"));
    let listing = service.get("/v1/models").header("authorization", "Bearer callers-key");
    for request in [bad_key, listing] {
        let refused = answer(request).await;
        assert_eq!(refused.status, 401);
        assert_eq!(
            refused.body,
            json!({"error": {
                "message": "API key not valid. Please pass a valid API key.",
                "type": "authentication_error", "param": null, "code": "invalid_api_key"
            }})
        );
    }

    let service =
        Service::with(Options::default(), |config| config.quota_plan = plan("*:rpd=0", "")).await;
    for (body, status, kind, code) in [
        (question("Hello"), 403, "permission_error", "no_quota"),
        (json!({"messages": []}), 400, "invalid_request_error", "validation_error"),
        (json!({"model": "a/b"}), 400, "invalid_request_error", "validation_error"),
    ] {
        let refused = answer(chat(&service, &body)).await;
        let error = &refused.body["error"];
        assert_eq!(
            (refused.status.as_u16(), &error["type"], &error["code"]),
            (status, &json!(kind), &json!(code))
        );
    }
    assert_eq!(service.simulator.stats().calls, 0);
}
