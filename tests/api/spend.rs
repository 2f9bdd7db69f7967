//! What an account may spend in ten minutes, used up under mixed load and never exceeded.

use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::simulator::{Options, Stats};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::limits::plan;
use crate::support::{SERVER_KEY, Service, admin, answer, contents};

/// Ten minutes of the gateway and of the simulator.
const TEN_MINUTES: Duration = Duration::from_secs(12);

/// The length of the measurement, in ten minutes.
const WINDOWS: u32 = 2;

/// The dollars of ten minutes.
const LIMIT: f64 = 10.0;

/// What the simulator saw of half as many calls again as the money is enough for: three models, three tiers,
/// streams and whole answers, cheap and expensive ones. They go through the gateway with a limit, or straight to the simulator.
async fn load(paced: bool) -> (Stats, f64) {
    let options = Options {
        spend_per_ten_minutes: Some(LIMIT),
        minute_seconds: TEN_MINUTES.as_secs_f64() / 10.0,
        latency_ms: 150,
        latency_sigma: 0.4,
        ..Options::default()
    };
    let service = Service::with(options, |config| {
        config.quota_plan = plan(&format!("*:spend={LIMIT}"), "");
        config.quota_plan.minute = TEN_MINUTES / 10;
        config.concurrency_limit = 50;
        config.max_attempts = 1;
        config.request_timeout = 10 * TEN_MINUTES;
    })
    .await;
    let mut random = fastrand::Rng::with_seed(7);
    let end = Instant::now() + TEN_MINUTES * WINDOWS;
    let count = 1200 * WINDOWS;
    let calls = (0..count).map(|n| {
        let model = ["gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-4-argon"][n as usize % 3];
        let bytes = if random.u32(..10) == 0 { 30_000 } else { random.u32(100..12_000) };
        let tier = ["standard", "standard", "flex", "priority"][random.usize(..4)];
        let prompt = format!("[[simulate:bytes={bytes}]]{}", "word ".repeat(random.usize(..400)));
        let body = json!({
            "contents": [{"role": "user", "parts": [{"text": prompt}]}], "serviceTier": tier,
        });
        let method = ["generateContent", "streamGenerateContent?alt=sse"][random.usize(..2)];
        let path = format!("/v1beta/models/{model}:{method}");
        let base = if paced { service.url("") } else { service.gateway.config.base_url.clone() };
        let request = service.http.post(base + &path).body(body.to_string());
        let request = request.header("x-goog-api-key", SERVER_KEY);
        let request = request.header("content-type", "application/json");
        let arrives = TEN_MINUTES * WINDOWS * n / count;
        async move {
            sleep(arrives).await;
            let response = request.timeout(10 * TEN_MINUTES).send().await.expect("an answer");
            response.bytes().await.expect("a whole answer");
        }
    });
    let _ = timeout_at(end, join_all(calls)).await;
    let stats = service.simulator.stats();
    let spent = stats.spent_nanodollars as f64 / 1e9;
    (stats, spent)
}

/// The refusals for spend among the refused calls.
fn refusals(stats: &Stats) -> u64 {
    stats.refused_429.get("spend").copied().unwrap_or(0)
}

#[tokio::test]
async fn ten_minutes_of_mixed_load_spend_nearly_all_and_are_never_refused() {
    let (stats, spent) = load(true).await;
    println!("paced: {spent:.2} $ in {} calls, {} refusals", stats.calls, refusals(&stats));
    assert_eq!(refusals(&stats), 0);
    let budget = LIMIT * f64::from(WINDOWS);
    assert!(spent >= 0.9 * budget, "{spent} $ of {budget}");
    assert_eq!(stats.refused_429.values().sum::<u64>(), 0);
}

#[tokio::test]
async fn the_same_load_without_the_gateway_is_refused() {
    let (stats, spent) = load(false).await;
    println!("unpaced: {spent:.2} $ in {} calls, {} refusals", stats.calls, refusals(&stats));
    assert!(refusals(&stats) > 0);
}

/// Every call of an account without credits is refused by the gateway itself, on every surface, for every
/// model and every key with the same label, until the account has credits and a probe finds out.
#[tokio::test]
async fn a_call_without_input_counts_as_spent_what_it_costs() {
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:spend=10", "");
    })
    .await;
    let mut spent = vec![0.0];
    for _ in 0..3 {
        let path = "/v1beta/models/gemini-3.8-flash:generateContent";
        let called = answer(service.post(path, &contents(""))).await;
        assert_eq!(called.status, 200, "{}", called.body);
        service.until_idle().await;
        let limits = answer(admin(service.get("/_admin/limits"))).await.body;
        spent.push(limits["spend"][0]["used_usd"].as_f64().expect("dollars"));
    }
    assert!(spent.is_sorted_by(|one, next| one < next), "{spent:?}");
}

#[tokio::test]
async fn an_unfunded_account_is_closed_for_all_its_keys_models_and_surfaces() {
    let labels = format!("project={},project={}", digest(SERVER_KEY), digest("second-key"));
    let service = Service::with(Options { unfunded: true, ..Options::default() }, |config| {
        let limits = plan("", &labels);
        config.quota_plan = limits;
    })
    .await;
    let failed = service.chat("Hello").await;
    assert_eq!((failed.status.as_u16(), &failed.body["code"]), (402, &json!("account_unfunded")));
    let calls = service.simulator.stats().calls;

    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}]});
    let prompt = json!({"prompt": "Hello", "model": "gemini-3.8-flash"});
    let openai = json!({
        "model": "gemini-4-argon", "messages": [{"role": "user", "content": "Hello"}]
    });
    let interaction = json!({"model": "gemini-3.8-flash", "input": "Hello"});
    for (path, body) in [
        ("/chat", &prompt),
        ("/v1beta/models/gemini-4-hydrogen:generateContent", &contents),
        ("/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse", &contents),
        ("/v1/chat/completions", &openai),
        ("/v1beta/interactions", &interaction),
    ] {
        for key in [SERVER_KEY, "second-key"] {
            let request = service.post(path, body).header("x-goog-api-key", key);
            let refused = answer(request).await;
            assert_eq!(refused.status.as_u16(), 402, "{path}: {}", refused.body);
        }
    }
    let batch = json!({"requests": [prompt, prompt]});
    let batch = answer(service.post("/batch/chat", &batch)).await.body;
    let codes = batch["results"].as_array().unwrap().iter().map(|item| &item["error_code"]);
    assert!(codes.eq([&json!("account_unfunded"); 2]), "{batch}");
    assert_eq!(service.simulator.stats().calls, calls, "no further call reached Gemini");
    let shown: Value = service.limits().await;
    let refused = shown["limits"].as_array().unwrap().iter().map(|account| &account["refused"]);
    assert!(
        refused.clone().count() > 1
            && refused.clone().all(|refused| refused["code"] == "account_unfunded")
    );
}

/// The first digits of a key's SHA-256.
fn digest(key: &str) -> String {
    let key = gemini_concurrent_generation::gemini::ApiKey::new(key).unwrap();
    key.sha256()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
