//! Service tiers: where they are named, what they change, and falling back from flex to standard.

use std::time::Duration;

use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Service, answer, contents, kinds};

/// Longer than any test may take.
const NEVER: u64 = 600_000;

/// The service tiers that the calls to the simulator asked for, in their order.
fn asked(service: &Service) -> Vec<Value> {
    let tier = |body: &Value| body["serviceTier"].clone();
    service.simulator.journal().iter().map(|call| tier(&call.body)).collect()
}

#[tokio::test]
async fn every_generation_and_every_item_is_sent_in_the_tier_that_it_names() {
    for (path, body) in kinds() {
        let service = Service::start().await;
        let tiers = ["standard", "flex", "priority"];
        for tier in tiers {
            let mut body = body.clone();
            body["service_tier"] = json!(tier);
            let answered = answer(service.post(path, &body)).await;
            assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
        }
        assert_eq!(asked(&service), tiers, "{path}");

        let service = Service::start().await;
        let answered = answer(service.post(path, &body)).await;
        assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
        assert_eq!(asked(&service), [Value::Null], "Gemini's default");

        let service = Service::start().await;
        let mut own = body.clone();
        own["service_tier"] = json!("priority");
        let batch = json!({"requests": [body, own], "service_tier": "flex"});
        let answered = answer(service.post(&format!("/batch{path}"), &batch)).await;
        assert_eq!(answered.body["successful_requests"], 2, "{answered:?}");
        let mut asked: Vec<_> = asked(&service).iter().map(ToString::to_string).collect();
        asked.sort();
        assert_eq!(asked, ["\"flex\"", "\"priority\""], "{path}");
    }
}

#[tokio::test]
async fn a_streamed_chat_is_sent_in_its_tier() {
    let service = Service::start().await;
    let chat = json!({"prompt": "Hello", "stream": true, "service_tier": "flex"});
    let response = service.post("/chat", &chat).send().await.unwrap();
    assert!(response.text().await.unwrap().contains("\"success\":true"));
    assert_eq!(asked(&service), ["flex"]);
}

#[tokio::test]
async fn a_tier_or_a_fallback_that_cannot_be_used_is_refused_before_anything_is_sent() {
    let service = Service::start().await;
    for (body, field) in [
        (json!({"service_tier": "Flex"}), "service_tier"),
        (json!({"service_tier": "deferred"}), "service_tier"),
        (json!({"service_tier": ""}), "service_tier"),
        (json!({"service_tier": 1}), "service_tier"),
        (json!({"flex_fallback_seconds": 5}), "flex_fallback_seconds"),
        (json!({"service_tier": "standard", "flex_fallback_seconds": 5}), "flex_fallback_seconds"),
        (json!({"service_tier": "flex", "flex_fallback_seconds": 0}), "flex_fallback_seconds"),
        (json!({"service_tier": "flex", "flex_fallback_seconds": -1}), "flex_fallback_seconds"),
        (json!({"service_tier": "flex", "flex_fallback_seconds": 1e300}), "flex_fallback_seconds"),
        (json!({"service_tier": "flex", "flex_fallback_seconds": "5"}), "flex_fallback_seconds"),
    ] {
        for (path, mut request) in kinds() {
            let fields = body.as_object().unwrap().clone();
            request.as_object_mut().unwrap().extend(fields.clone());
            let refused = answer(service.post(path, &request)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
            assert_eq!(refused.body["detail"][0]["loc"], json!(["body", field]), "{refused:?}");

            let batch = json!({"requests": [request]});
            let refused = answer(service.post(&format!("/batch{path}"), &batch)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
            let place = json!(["body", "requests", 0, field]);
            assert_eq!(refused.body["detail"][0]["loc"], place, "{refused:?}");

            let mut batch = json!({"requests": []});
            batch.as_object_mut().unwrap().extend(fields);
            let refused = answer(service.post(&format!("/batch{path}"), &batch)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
        }
    }
    assert!(service.simulator.journal().is_empty());
}

#[tokio::test]
async fn an_item_without_flex_ignores_the_fallback_of_its_batch() {
    let service = Service::start().await;
    let requests = json!([{"prompt": "One", "service_tier": "standard"}, {"prompt": "Two"}]);
    let batch = json!({"requests": requests, "service_tier": "flex", "flex_fallback_seconds": 60});
    let answered = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(answered.body["successful_requests"], 2, "{answered:?}");
}

#[tokio::test]
async fn the_tier_of_a_relayed_call_passes_unchanged() {
    let service = Service::start().await;
    let path = "/v1beta/models/gemini-3.8-flash:generateContent";
    for name in ["serviceTier", "service_tier"] {
        for tier in ["flex", "priority", "standard"] {
            let mut body = contents("Hello");
            body[name] = json!(tier);
            let answered = answer(service.post(path, &body)).await;
            assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
            assert_eq!(answered.headers["x-gemini-service-tier"], tier);
            assert_eq!(service.simulator.journal().last().unwrap().body, body);
        }
    }
    let chat = json!({
        "model": "gemini-3.8-flash", "service_tier": "flex",
        "messages": [{"role": "user", "content": "Hello"}],
    });
    let answered = answer(service.post("/v1beta/openai/chat/completions", &chat)).await;
    assert_eq!(answered.headers["x-gemini-service-tier"], "flex");
}

#[tokio::test]
async fn a_refusal_for_lack_of_flex_capacity_lowers_the_limit_of_flex_calls_only() {
    let own = ("/chat", json!({"prompt": "[[simulate:flex_full]]", "service_tier": "flex"}));
    let mut body = contents("[[simulate:flex_full]]");
    body["serviceTier"] = json!("flex");
    let native = ("/v1beta/models/gemini-3.5-flash-lite:generateContent", body);
    for (path, body) in [own, native] {
        let service = Service::with(Options::default(), |config| {
            config.request_timeout = Duration::from_millis(300);
            config.flex_timeout = Duration::from_millis(300);
        })
        .await;
        let refused = answer(service.post(path, &body)).await;
        assert!(refused.status.is_server_error(), "{path}: {refused:?}");
        let account = service.only_account().await;
        let ceiling = &account["concurrency"]["ceiling"];
        assert_eq!(&account["concurrency"]["limit"], ceiling, "{path}");
        assert!(account["concurrency"]["broke_at"].is_null(), "{path}");
        assert_ne!(&account["flex_concurrency"]["limit"], ceiling, "{path}: {account}");
        let answered = service.chat("Hello").await;
        assert_eq!(answered.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn flex_calls_have_time_limits_of_their_own() {
    let options = Options { flex_latency_ms: Some(1000), ..Options::default() };
    let service = Service::with(options, |config| {
        config.upstream_timeout = Duration::from_millis(100);
        config.request_timeout = Duration::from_millis(300);
        config.flex_timeout = Duration::from_secs(30);
    })
    .await;
    let chat = json!({"prompt": "Hello", "service_tier": "flex"});
    let mut native = contents("Hello");
    native["serviceTier"] = json!("flex");
    let path = "/v1beta/models/gemini-3.8-flash:generateContent";
    let batch = json!({"requests": [chat]});
    let (alone, item, relayed) = tokio::join!(
        answer(service.post("/chat", &chat)),
        answer(service.post("/batch/chat", &batch)),
        answer(service.post(path, &native)),
    );
    assert_eq!(alone.status, StatusCode::OK, "{alone:?}");
    assert_eq!(item.body["successful_requests"], 1, "{item:?}");
    assert_eq!(relayed.status, StatusCode::OK, "{relayed:?}");
}

/// A service whose flex calls take for ever.
async fn without_flex() -> Service {
    let options = Options { flex_latency_ms: Some(NEVER), ..Options::default() };
    Service::with(options, |config| config.concurrency_limit = 2).await
}

#[tokio::test]
async fn a_flex_call_that_is_not_served_in_time_is_served_as_standard() {
    let service = without_flex().await;
    for (path, mut body) in kinds() {
        let start = Instant::now();
        body["service_tier"] = json!("flex");
        body["flex_fallback_seconds"] = json!(0.5);
        let answered = answer(service.post(path, &body)).await;
        assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
        assert!(start.elapsed() >= Duration::from_millis(500));
        let asked = asked(&service);
        assert_eq!(asked[asked.len() - 2..], ["flex", "standard"], "{path}");
    }
    let chat = json!({
        "prompt": "Hello", "stream": true, "service_tier": "flex", "flex_fallback_seconds": 0.2,
    });
    let response = service.post("/chat", &chat).send().await.unwrap();
    assert!(response.text().await.unwrap().contains("\"success\":true"));
    service.until_idle().await;
}

#[tokio::test]
async fn a_flex_call_that_finds_no_capacity_is_served_as_standard() {
    let service = Service::start().await;
    let chat = json!({
        "prompt": "[[simulate:flex_full]]", "service_tier": "flex", "flex_fallback_seconds": 0.5,
    });
    let answered = answer(service.post("/chat", &chat)).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    let asked = asked(&service);
    let (last, earlier) = asked.split_last().unwrap();
    assert_eq!(last, "standard");
    assert!(!earlier.is_empty() && earlier.iter().all(|tier| tier == "flex"), "{asked:?}");
}

#[tokio::test]
async fn a_flex_call_that_is_wrong_does_not_fall_back() {
    let service = Service::start().await;
    let chat = json!({
        "prompt": "[[simulate:status=400]]", "service_tier": "flex", "flex_fallback_seconds": 60,
    });
    let refused = answer(service.post("/chat", &chat)).await;
    assert_eq!(refused.body["code"], "invalid_request", "{refused:?}");
    assert_eq!(asked(&service), ["flex"]);
}

#[tokio::test]
async fn the_items_of_a_flex_batch_fall_back_at_the_same_time() {
    let service = without_flex().await;
    let requests: Vec<_> = (0..20).map(|n| json!({"prompt": format!("Item {n}")})).collect();
    let batch = json!({
        "requests": requests, "service_tier": "flex", "flex_fallback_seconds": 0.5,
    });
    let start = Instant::now();
    let answered = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(answered.body["successful_requests"], 20, "{answered:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "not one after the other");
    let asked = asked(&service);
    let standard = asked.iter().filter(|tier| *tier == "standard").count();
    assert_eq!((standard, asked.len()), (20, 22), "two slots were tried in flex: {asked:?}");
    service.until_idle().await;
}

#[tokio::test]
async fn usage_says_which_tier_answered_and_what_it_cost() {
    let service = Service::start().await;
    let chat = |prompt: &str, tier: &str| json!({"prompt": prompt, "service_tier": tier});
    let usage =
        async |chat: Value| answer(service.post("/chat", &chat)).await.body["usage"].clone();
    let standard = usage(chat("Hello", "standard")).await;
    let flex = usage(chat("Hello", "flex")).await;
    assert_eq!(
        (&standard["service_tier"], &flex["service_tier"]),
        (&json!("standard"), &json!("flex"))
    );
    let cost = |usage: &Value| usage["cost_usd"].as_f64().unwrap();
    assert!(cost(&standard) > 0.0 && (cost(&flex) * 2.0 - cost(&standard)).abs() < 1e-12);
    // Above its own limit, priority is served as standard.
    let served_as = usage(chat("[[simulate:tier=standard]]Hello", "priority")).await;
    assert_eq!(served_as["service_tier"], "standard");

    let batch = json!({"requests": [chat("Hello", "standard"), chat("Hello", "flex")]});
    let batch = answer(service.post("/batch/chat", &batch)).await.body;
    let total = &batch["usage"];
    assert!((cost(total) - cost(&standard) - cost(&flex)).abs() < 1e-12, "{batch}");
    assert!(total["service_tier"].is_null(), "two tiers: {batch}");
    assert_eq!(total["prompt_tokens"], 2 * standard["prompt_tokens"].as_u64().unwrap());
    for name in ["cached_tokens", "tool_tokens"] {
        assert_eq!(total[name], 0);
    }
}

#[tokio::test]
async fn the_cost_of_a_long_answer_is_that_of_all_its_calls() {
    let service = Service::start().await;
    let cost = async |hops: usize, stream: bool| {
        let prompt = format!("[[simulate:hops={hops},text={}]]", "A long text ".repeat(12));
        let chat = json!({"prompt": prompt, "stream": stream});
        let text = service.post("/chat", &chat).send().await.unwrap().text().await.unwrap();
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).unwrap();
        assert_eq!(last["model_version"], "gemini-3.5-flash-lite", "{last}");
        last["usage"]["cost_usd"].as_f64().unwrap()
    };
    let (whole, streamed) = (cost(3, false).await, cost(3, true).await);
    assert!(whole > cost(1, false).await);
    assert!((whole - streamed).abs() < 1e-12, "{whole} {streamed}");
    let spent = service.simulator.stats().spent_nanodollars;
    assert!(spent > 0);
}
