//! Service tiers, spend and retired models.

use std::time::Duration;

use super::*;

fn tiered(text: &str, tier: &str) -> Value {
    let mut request = chat(text);
    request["serviceTier"] = json!(tier);
    request
}

#[tokio::test(start_paused = true)]
async fn flex_has_a_capacity_and_a_latency_of_its_own() {
    let simulator = Simulator::new(Options {
        capacity: Some(2),
        flex_capacity: Some(1),
        latency_ms: 100,
        flex_latency_ms: Some(5_000),
        ..Options::default()
    });
    let call = async |tier: &str| {
        let start = tokio::time::Instant::now();
        let response = post(&simulator, FLASH, &tiered("a", tier)).await;
        let tier = response.headers()["x-gemini-service-tier"].to_str().expect("text").to_owned();
        let (status, answer) = json_of(response).await;
        if status == 200 {
            assert_eq!(answer["usageMetadata"]["serviceTier"], tier);
        }
        (status, tier, start.elapsed().as_millis())
    };
    let (first, second, standard) = tokio::join!(call("flex"), call("FLEX"), call("standard"));
    assert_eq!(first, (200, "flex".to_owned(), 4_999));
    assert_eq!((second.0, standard), (503, (200, "standard".to_owned(), 99)));
    let stats = simulator.stats();
    assert_eq!(stats.highest_flex_in_flight, 1);
    assert_eq!(stats.by_tier, [("flex".to_owned(), 2), ("standard".to_owned(), 1)].into());
    simulator.set_flex_capacity(None);
    assert_eq!(call("flex").await.0, 200);
}

#[tokio::test]
async fn a_tier_is_read_on_every_surface() {
    let simulator = simulator();
    let tier = async |path: &str, body: Value| {
        let response = post(&simulator, path, &body).await;
        response.headers()["x-gemini-service-tier"].to_str().expect("text").to_owned()
    };
    assert_eq!(tier(FLASH, tiered("a", "priority")).await, "priority");
    assert_eq!(tier(FLASH, tiered("[[simulate:tier=standard]]a", "priority")).await, "standard");
    let completion = json!({"model": "gemini-3.5-flash-lite", "service_tier": "flex",
        "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(tier("/v1beta/openai/chat/completions", completion).await, "flex");
    let interaction =
        json!({"model": "gemini-3.5-flash-lite", "input": "a", "service_tier": "flex"});
    assert_eq!(tier("/v1/interactions", interaction).await, "flex");
    assert_eq!(post(&simulator, FLASH, &tiered("a", "fast")).await.status(), 400);
}

#[tokio::test]
async fn a_script_refuses_flex_only() {
    let simulator = simulator();
    let prompt = "[[simulate:flex_full]]a";
    assert_eq!(post(&simulator, FLASH, &tiered(prompt, "flex")).await.status(), 503);
    assert_eq!(post(&simulator, FLASH, &tiered(prompt, "standard")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn spending_is_limited_over_ten_minutes_of_the_scaled_clock() {
    // One token of input and eight of output cost 0.75 and 8 × 3.75 millionths of a dollar, and the
    // thoughts 128 × 3.75.
    let simulator = Simulator::new(Options {
        spend_per_ten_minutes: Some(0.0005),
        minute_seconds: 6.0,
        ..Options::default()
    });
    let path = "/v1beta/models/gemini-3.8-flash:generateContent";
    assert_eq!(post(&simulator, path, &chat("abcd")).await.status(), 200);
    assert_eq!(simulator.stats().spent_nanodollars, 750 + (7 + 128) * 3_750);
    let (status, refusal) = json_of(post(&simulator, FLASH, &chat("a")).await).await;
    assert_eq!(status, 429, "other models are refused too");
    assert!(message_of(&refusal).starts_with("You exceeded your spend-based rate limit."));
    assert_eq!(refusal["error"].get("details"), None);
    assert_eq!(simulator.stats().refused_429["spend"], 1);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(ask(&simulator, "a").await.0, 200);
}

#[tokio::test]
async fn flex_costs_half_and_priority_more() {
    let simulator = simulator();
    let mut costs = Vec::new();
    for tier in ["standard", "flex", "priority"] {
        simulator.reset();
        post(&simulator, FLASH, &tiered("[[simulate:text=abcd]]", tier)).await;
        costs.push(simulator.stats().spent_nanodollars);
    }
    assert_eq!(costs[0] / 2, costs[1]);
    assert!(costs[2] > costs[0]);
}

#[tokio::test]
async fn an_unfunded_account_is_refused_until_it_has_credits() {
    let simulator = Simulator::new(Options { unfunded: true, ..Options::default() });
    let (status, refusal) = ask(&simulator, "a").await;
    assert_eq!(status, 402);
    assert!(message_of(&refusal).starts_with("Your prepayment credits are depleted."));
    assert_eq!(refusal["error"]["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(get(&simulator, "/v1beta/models").await.0, 200);
    simulator.set_unfunded(false);
    assert_eq!(ask(&simulator, "a").await.0, 200);
}

#[tokio::test]
async fn scripts_refuse_for_spend_and_for_batches() {
    let (status, refusal) = ask(&simulator(), "[[simulate:quota=spend]]").await;
    assert_eq!(status, 429);
    assert!(message_of(&refusal).contains("spend-based"));
    let (status, refusal) = ask(&simulator(), "[[simulate:quota=batch]]").await;
    assert_eq!((status, refusal["error"]["details"].as_array().map(Vec::len)), (429, Some(1)));
}

#[tokio::test]
async fn retired_models_are_routed_or_gone() {
    let on =
        |day: &str| Options { today: Some(day.parse().expect("a date")), ..Options::default() };
    let version = async |simulator: &Simulator, model: &str| {
        let path = format!("/v1beta/models/{model}:generateContent");
        let (status, answer) = json_of(post(simulator, &path, &chat("a")).await).await;
        (status, answer["modelVersion"].as_str().map(str::to_owned))
    };
    let before = Simulator::new(on("2026-11-30"));
    let after = Simulator::new(on("2026-12-01"));
    let model = "gemini-2.5-pro";
    assert_eq!(version(&before, model).await, (200, Some(model.to_owned())));
    assert_eq!(version(&after, model).await, (200, Some("gemini-3.8-flash".to_owned())));
    assert_eq!(after.stats().by_model[model], 1);
    assert_eq!(version(&after, "gemini-2.5-flash-preview-tts").await, (404, None));
    let (_, listed) = get(&after, "/v1beta/models").await;
    let names: Vec<&str> = listed["models"]
        .as_array()
        .expect("models")
        .iter()
        .filter_map(|model| model["name"].as_str())
        .collect();
    assert!(names.contains(&"models/gemini-4-argon"));
    assert!(!names.contains(&"models/gemini-embedding-2-preview"));
}
