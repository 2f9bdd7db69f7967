//! Cached content on the service's own endpoints.

use gemini_concurrent_generation::simulator::Options;
use serde_json::{Value, json};

use crate::recording::Recording;
use crate::support::{Service, answer, kinds};

const CACHE: &str = "cachedContents/1e9odc8cm11aab2truxzl4pd";

fn cached(body: &Value, name: &str) -> Value {
    let mut body = body.clone();
    body["cached_content"] = json!(name);
    body
}

#[tokio::test]
async fn cached_content_is_sent_first_and_replaces_the_system_instruction() {
    let service = Service::start().await;
    for (path, body) in kinds() {
        let body = cached(&body, CACHE);
        let batch = json!({"requests": [body]});
        for request in [service.post(path, &body), service.post(&format!("/batch{path}"), &batch)] {
            assert_eq!(answer(request).await.status, 200, "{path}");
            let sent = service.simulator.journal().pop().unwrap().body;
            assert_eq!(sent["cachedContent"], CACHE, "{path}");
            assert!(sent.get("systemInstruction").is_none(), "{path}: {sent}");
            let parts = sent["contents"][0]["parts"].as_array().unwrap();
            let instruction = body["system_prompt"].as_str();
            let asked = body.get("prompt").or(body.get("user_content")).unwrap().as_str();
            let texts = parts.iter().map(|part| part["text"].as_str());
            let expected = [instruction, asked].into_iter().filter(Option::is_some);
            assert!(texts.eq(expected), "{path}: {sent}");
        }
    }
    // Without cached content, the request is unchanged.
    answer(service.post("/chat", &json!({"prompt": "x", "system_prompt": "y"}))).await;
    let sent = service.simulator.journal().pop().unwrap().body;
    assert_eq!(sent["systemInstruction"]["parts"][0]["text"], "y");
    assert!(sent.get("cachedContent").is_none());
}

#[tokio::test]
async fn an_invalid_cached_content_name_is_refused() {
    let service = Service::start().await;
    let long = format!("cachedContents/{}", "x".repeat(129));
    for name in ["", "abc", "cachedContents/", "cachedContents/a/b", "cachedContents/a?b", &long] {
        for (path, body) in kinds() {
            let refused = answer(service.post(path, &cached(&body, name))).await;
            assert_eq!(refused.status, 422, "{path}: {name:?}");
            let detail = &refused.body["detail"][0];
            assert_eq!(detail["type"], "cache_name", "{refused:?}");
            assert_eq!(detail["loc"], json!(["body", "cached_content"]));
        }
    }
    assert_eq!(service.simulator.journal().len(), 0);
}

/// The gateway cannot see a cache's tokens, so they must not affect the estimate for text.
#[tokio::test]
async fn cached_tokens_do_not_change_the_token_estimate() {
    let answered = json!({
        "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 100_000, "cachedContentTokenCount": 50_000,
            "candidatesTokenCount": 1, "totalTokenCount": 100_001},
    });
    let answered = answered.to_string().into_bytes();
    let recording = Recording::play(200, "application/json", vec![answered]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
    })
    .await;
    let prompt = "word ".repeat(1000);
    for _ in 0..5 {
        let body = cached(&json!({"prompt": prompt}), CACHE);
        assert_eq!(answer(service.post("/chat", &body)).await.status, 200);
    }
    let limits = service.get("/_admin/limits").header("Admin-API-Key", crate::support::ADMIN_KEY);
    let limits = answer(limits).await.body;
    let used = &limits["limits"][0]["input_tokens_per_minute"]["used"];
    assert_eq!(used, 500_000, "the call settles at Gemini's count: {limits}");
}
