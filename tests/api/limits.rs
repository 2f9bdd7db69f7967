//! Quotas: kept before Gemini has to refuse, learned from Gemini if not set, and shown to the
//! administrator.

use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gemini::ApiKey;
use gemini_concurrent_generation::limits::{NamedBy, QuotaPlan};
use gemini_concurrent_generation::prices::Prices;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::recording::Recording;
use crate::support::{SERVER_KEY, Service, answer, slow};

/// The plan for these settings. The server's key has a label.
pub fn plan(limits: &str, labels: &str) -> QuotaPlan {
    let lookup = |name: &str| match name {
        "GEMINI_LIMITS" => Some(limits.to_owned()),
        "GEMINI_KEY_LABELS" => Some(labels.to_owned()),
        "GEMINI_API_KEY" => Some(SERVER_KEY.to_owned()),
        _ => None,
    };
    Config::read(lookup).expect("valid settings").quota_plan
}

/// A service with these limits, in the form of `GEMINI_LIMITS`, whose requests wait up to ten
/// seconds.
async fn limited(limits: &str) -> Service {
    Service::with(Options::default(), |config| {
        config.quota_plan = plan(limits, "");
        config.request_timeout = Duration::from_secs(10);
    })
    .await
}

#[tokio::test]
async fn a_request_that_cannot_start_in_time_is_refused_at_once_with_the_right_retry_after() {
    let service = limited("*:rpm=2").await;
    assert_eq!(service.chat("one").await.status, StatusCode::OK);
    let refused = service.chat("two").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.body["code"], "rate_limited");
    let detail = "The key's quota of requests per minute for the model has no room for the request \
                  before its deadline.";
    assert_eq!(refused.body["detail"], detail);
    // Two requests a minute are spaced half a minute apart.
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((20..=31).contains(&wait), "{wait}");

    let batch = json!({"requests": [{"prompt": "three"}]});
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.body["results"][0]["error_code"], "rate_limited");
    assert_eq!(batch.body["results"][0]["retryable"], true);
    assert_eq!(service.simulator.stats().calls, 1, "Gemini refuses nothing");
    service.until_idle().await;
}

#[tokio::test]
async fn a_request_larger_than_the_minute_quota_is_refused_at_once() {
    let service = limited("*:tpm=100").await;
    let refused = service.chat("word ".repeat(1000)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.body["code"], "request_exceeds_quota");
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("tokens, more than the 100 that"), "{detail}");
    assert_eq!(service.chat("word").await.status, StatusCode::OK);
    assert_eq!(service.simulator.stats().calls, 1);
}

#[tokio::test]
async fn each_text_to_embed_counts_as_one_request() {
    const PATH: &str = "/v1beta/models/gemini-embedding-001:batchEmbedContents";
    let service = limited("*:rpm=10").await;
    let texts = |count: usize| (0..count).map(|n| json!(format!("text {n}")));
    let openai = json!({"model": "gemini-embedding-001", "input": texts(11).collect::<Vec<_>>()});
    let refused = answer(service.post("/v1/embeddings", &openai)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(
        refused.body.to_string().contains("11 requests, more than the 10 that"),
        "{}",
        refused.body
    );
    let gemini = |count| {
        let request = |text| json!({"content": {"parts": [{"text": text}]}});
        let requests: Vec<_> = texts(count).map(request).collect();
        answer(service.post(PATH, &json!({"requests": requests})))
    };
    assert_eq!(gemini(11).await.status, StatusCode::BAD_REQUEST);
    let uncounted = service.post(PATH, &json!({})).body("{'requests': [{}, {}]}");
    assert_eq!(answer(uncounted).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(service.simulator.stats().calls, 0);

    assert_eq!(gemini(6).await.status, StatusCode::OK);
    assert_eq!(service.only_account().await["requests_per_minute"]["used"], 6);
}

/// What the server's key has spent, as `/_admin/limits` shows it.
async fn spend(service: &Service) -> Value {
    let all = service.limits().await["spend"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    all[0].clone()
}

#[tokio::test]
async fn what_a_key_spends_is_counted_over_all_models_and_surfaces() {
    let service = limited("*:spend=0.5").await;
    let native = "/v1beta/models/gemini-3.8-flash:generateContent";
    let streamed = "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse";
    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}], "serviceTier": "flex"});
    let openai = json!({
        "model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": "Hello"}]
    });
    assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    for (path, body) in
        [(native, &contents), (streamed, &contents), ("/v1/chat/completions", &openai)]
    {
        let response = service.post(path, body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.bytes().await.expect("a whole answer");
    }
    let structured = json!({"prompt": "Hello", "response_schema": {"type": "object"}});
    answer(service.post("/structured-output", &structured)).await;
    service.until_idle().await;
    let shown = spend(&service).await;
    let spent = service.simulator.stats().spent_nanodollars as f64 / 1e9;
    assert!(spent > 0.0);
    let used = shown["used_usd"].as_f64().unwrap();
    assert!((used - spent).abs() < 1e-6, "{used} instead of {spent}");
    assert_eq!((&shown["limit_usd"], &shown["source"]), (&json!(0.5), &json!("setting")));
    assert_eq!((&shown["reserved_usd"], &shown["waiting"]), (&json!(0.0), &json!(0)));
    let metric = "gemini_gateway_cost_usd_total{model=\"gemini-3.8-flash\",tier=\"flex\"}";
    let flex = service.metric(metric).await;
    assert!(flex > 0.0 && flex < spent, "{flex}");
}

#[tokio::test]
async fn a_call_for_which_there_is_no_money_before_its_deadline_is_refused_at_once() {
    // A call costs about 0.00035 dollars, and one is expected to cost 0.0025.
    let service = limited("*:spend=0.001").await;
    assert_eq!(service.chat("one").await.status, StatusCode::OK);
    let other = json!({"prompt": "two", "model": "gemini-3.8-flash"});
    let refused = answer(service.post("/chat", &other)).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "of any model: {}", refused.body);
    assert_eq!(refused.body["code"], "spend_limited");
    let detail = "What the key may spend in ten minutes has no room for the request before its \
                  deadline.";
    assert_eq!(refused.body["detail"], detail);
    let batch = answer(service.post("/batch/chat", &json!({"requests": [other]}))).await;
    assert_eq!(batch.body["results"][0]["error_code"], "spend_limited");
    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}]});
    let openai = json!({
        "model": "gemini-3.8-flash", "messages": [{"role": "user", "content": "Hello"}]
    });
    let interaction = json!({"model": "gemini-3.8-flash", "input": "Hello"});
    for (path, body, place, code) in [
        (
            "/v1beta/models/gemini-3.8-flash:generateContent",
            &contents,
            "status",
            "RESOURCE_EXHAUSTED",
        ),
        ("/v1/chat/completions", &openai, "code", "spend_limited"),
        ("/v1beta/interactions", &interaction, "code", "rate_limit_exceeded"),
    ] {
        let refused = answer(service.post(path, body)).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
        let error = &refused.body["error"];
        assert_eq!((&error[place], &error["message"]), (&json!(code), &json!(detail)), "{path}");
    }
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((10..=625).contains(&wait), "{wait}");
    assert_eq!(service.simulator.stats().calls, 1, "Gemini refuses nothing");
    service.until_idle().await;
    assert_eq!(spend(&service).await["reserved_usd"], 0.0);
}

#[tokio::test]
async fn prices_of_a_file_count() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let prices = "updated = 2027-01-01\n[models.\"gemini-3.8-flash\"]\ninput = 1000\noutput = 0\n";
    std::fs::write(&file, prices).unwrap();
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:spend=1000", "");
        config.prices = Prices::with_file(file.path()).unwrap().into();
    })
    .await;
    let body = json!({"prompt": "Hello", "model": "gemini-3.8-flash"});
    let usage = answer(service.post("/chat", &body)).await.body["usage"].clone();
    service.until_idle().await;
    let tokens = usage["prompt_tokens"].as_f64().unwrap();
    assert_eq!(spend(&service).await["used_usd"], tokens / 1000.0);
}

#[tokio::test]
async fn calls_that_cost_nothing_wait_for_no_money() {
    let service = limited("*:spend=0").await;
    let refused = service.chat("one").await;
    assert_eq!(
        (refused.status, &refused.body["code"], &refused.body["detail"]),
        (
            StatusCode::FORBIDDEN,
            &json!("no_quota"),
            &json!("What the key may spend in ten minutes is 0.")
        )
    );
    let free = json!({"prompt": "two", "model": "gemini-without-a-price"});
    assert_eq!(answer(service.post("/chat", &free)).await.status, StatusCode::OK);
    let count = "/v1beta/models/gemini-3.8-flash:countTokens";
    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}]});
    assert_eq!(answer(service.post(count, &contents)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_quota_of_zero_admits_nothing() {
    let service = limited("gemini-3.5-flash-lite:rpd=0").await;
    let refused = service.chat("Hello").await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::FORBIDDEN, &json!("no_quota"))
    );
    let detail = "The key's quota of requests per day for the model is 0.";
    assert_eq!(refused.body["detail"], detail);
    let other = json!({"prompt": "Hello", "model": "gemini-other"});
    assert_eq!(answer(service.post("/chat", &other)).await.status, StatusCode::OK);
    assert_eq!(service.simulator.stats().calls, 1);
}

#[tokio::test]
async fn daily_requests_are_counted() {
    let service = limited("*:rpd=3").await;
    for _ in 0..3 {
        assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    }
    let refused = service.chat("Hello").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.body["code"], "daily_quota_exhausted");
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=25 * 3600).contains(&wait), "{wait}");
    assert_eq!(service.simulator.stats().calls, 3);
    let day = &service.only_account().await["requests_per_day"];
    assert_eq!(*day, json!({"limit": 3, "source": "setting", "used": 3, "reserved": 0}));
}

#[tokio::test]
async fn a_daily_quota_that_gemini_reports_exhausted_pauses_the_account() {
    let service = Service::start().await;
    let first = service.chat("[[simulate:quota=day]]").await;
    let second = service.chat("Hello").await;
    for refused in [&first, &second] {
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.body["code"], "daily_quota_exhausted");
        assert!(refused.headers.contains_key("retry-after"));
    }
    assert_eq!(service.simulator.stats().calls, 1);

    let other_model = json!({"prompt": "Hello", "model": "gemini-other"});
    let other_key = json!({"prompt": "Hello", "credentials": {"gemini_api_key": "another-key"}});
    for chat in [other_model, other_key] {
        assert_eq!(answer(service.post("/chat", &chat)).await.status, StatusCode::OK, "{chat}");
    }
}

/// The simulator's minute lasts a second, so that the test is short. The service's minute does not,
/// so that no call starts too early on a slow machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_limits_are_learned_from_the_first_refusal_and_obeyed() {
    let options = Options {
        requests_per_minute: Some(20),
        minute_seconds: 1.0,
        latency_ms: 20,
        ..Options::default()
    };
    let service = Service::with(options, |config| {
        config.concurrency_limit = 50;
        config.quota_plan.minute = Duration::from_secs(2);
    })
    .await;
    let chats = join_all((0..50).map(|n| service.chat(format!("chat {n}")))).await;
    assert!(chats.iter().all(|chat| chat.status == StatusCode::OK));
    let refused: u64 = service.simulator.stats().refused_429.values().sum();
    assert!((1..=30).contains(&refused), "{refused}: not only the first burst was refused");
    let found = &service.only_account().await["requests_per_minute"];
    assert_eq!((&found["limit"], &found["source"]), (&json!(20), &json!("gemini")));
}

#[tokio::test]
async fn a_refused_call_is_counted_once() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let refused = service.chat("[[simulate:quota=tokens]]").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let account = service.only_account().await;
    assert_eq!(account["requests_per_minute"]["used"], 0);
    let found = json!({"limit": 10, "source": "gemini", "used": 0, "reserved": 0});
    assert_eq!(account["input_tokens_per_minute"], found);
    let paused = account["paused_for_seconds"].as_f64().unwrap();
    assert!((1.0..=12.345).contains(&paused), "{account}");
    assert!(account["next_slot_in_seconds"].as_f64().unwrap() >= paused - 0.1, "{account}");
}

#[tokio::test]
async fn an_exhausted_model_does_not_delay_items_of_other_models() {
    let service = limited("gemini-slow:rpm=1").await;
    let item = |n: usize| {
        let model = if n < 10 { "gemini-slow" } else { "gemini-3.5-flash-lite" };
        json!({"prompt": format!("item {n}"), "model": model})
    };
    let batch = json!({"requests": (0..100).map(item).collect::<Vec<_>>()});
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.body["successful_requests"], 91, "{}", batch.body["results"][0]);
    for (n, result) in batch.body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["index"], n);
        if n == 0 || n >= 10 {
            assert_eq!(result["response"], format!("Simulated answer to: item {n}"));
        } else {
            assert_eq!(result["error_code"], "rate_limited");
        }
    }
    service.until_idle().await;
}

#[tokio::test]
async fn load_refusals_lower_the_adaptive_limit_and_health_reports_it() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let refused = service.chat("[[simulate:status=503]]").await;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    let concurrency = &service.only_account().await["concurrency"];
    let lowered = json!({"limit": 12, "ceiling": 15, "in_use": 0, "waiting": 0, "broke_at": 15});
    assert_eq!(*concurrency, lowered);
    let health = answer(service.get("/")).await.body;
    let lowered = json!({"gemini-3.5-flash-lite": 12});
    assert_eq!(health["concurrency_status"]["adaptive_limits"], lowered);
}

#[tokio::test]
async fn limits_are_shown_by_account_and_model_without_the_key() {
    const OWN_KEY: &str = "a-caller's-own-key";
    const LABELLED: [&str; 2] = ["first-of-a-project", "second-of-a-project"];
    let digest = |key: &str| -> String {
        let sha256 = *ApiKey::new(key).unwrap().sha256();
        sha256[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let labels = LABELLED.map(|key| format!("team-a={}", digest(key))).join(",");
    let settings = "*:rpm=100,tpm=2000;team-a@*:rpm=700;team-a@gemini-3.5-flash-lite:rpd=none";
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan(settings, &labels);
    })
    .await;
    for key in [OWN_KEY, LABELLED[0]] {
        let chat = json!({"prompt": "Hello", "credentials": {"gemini_api_key": key}});
        assert_eq!(answer(service.post("/chat", &chat)).await.status, StatusCode::OK);
    }
    let running = json!({"prompt": slow(60_000)});
    let running = tokio::spawn(answer(service.post("/chat", &running)));
    service.until("it is in flight", |limiter| limiter.in_flight == 1).await;

    let unauthenticated = answer(service.get("/_admin/limits")).await;
    assert_eq!(unauthenticated.status, StatusCode::UNAUTHORIZED);
    let shown = service.limits().await;
    let of = |key: &str| {
        let limits = shown["limits"].as_array().unwrap();
        limits.iter().find(|limit| limit["key"] == key).unwrap_or_else(|| panic!("{key}: {shown}"))
    };
    assert_eq!(shown["count"], 3);
    let quota =
        |limit, used| json!({"limit": limit, "source": "setting", "used": used, "reserved": 0});
    let unlimited = json!({"limit": null, "source": null, "used": 1, "reserved": 0});
    assert_eq!(of(&digest(OWN_KEY))["requests_per_minute"], quota(100, 1));
    assert_eq!(of("team-a")["requests_per_minute"], quota(700, 1));
    assert_eq!(of("team-a")["requests_per_day"], unlimited);
    assert_eq!(of("server")["input_tokens_per_minute"]["limit"], 2000);
    assert_eq!(of("server")["concurrency"]["in_use"], 1);
    let text = shown.to_string();
    for key in [OWN_KEY, LABELLED[0], SERVER_KEY] {
        assert!(!text.contains(key));
    }
    running.abort();

    // The project's other key uses the same quota.
    let chat = json!({"prompt": "Hello", "credentials": {"gemini_api_key": LABELLED[1]}});
    assert_eq!(answer(service.post("/chat", &chat)).await.status, StatusCode::OK);
    assert_eq!(service.limits().await["count"], 3);
}

#[tokio::test]
async fn one_keys_costs_do_not_change_anothers_estimates() {
    let absurd = json!({
        "candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9_000_000, "totalTokenCount": 9_000_001},
    });
    let absurd = vec![absurd.to_string().into_bytes()];
    let upstream = Recording::play(200, "application/json", absurd).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url = upstream.base_url.clone();
        config.quota_plan = plan("*:tpm=1500;server@*:tpm=none", "");
    })
    .await;
    let prompt = "word ".repeat(1000);
    for _ in 0..20 {
        assert_eq!(service.chat(&prompt).await.status, StatusCode::OK);
        let model = &service.limits().await["limits"][0]["model"];
        let path = format!("/v1beta/models/{}:generateContent", model.as_str().unwrap());
        let body = json!({
            "contents": [{"parts": [{"text": prompt}]}], "cachedContent": "cachedContents/a",
        });
        assert_eq!(answer(service.post(&path, &body)).await.status, StatusCode::OK);
    }
    let other = json!({"prompt": prompt, "credentials": {"gemini_api_key": "another-key"}});
    assert_eq!(answer(service.post("/chat", &other)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn learned_limits_can_be_forgotten() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let refused = service.chat("[[simulate:quota=tokens]]").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let account = service.only_account().await;
    assert_eq!(account["input_tokens_per_minute"]["limit"], 10);
    let path = format!("/_admin/limits/server/{}", account["model"].as_str().unwrap());
    let http = reqwest::Client::new();
    let anybody = answer(http.delete(service.url(&path))).await;
    assert_eq!(anybody.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer(service.delete(&path)).await.status, StatusCode::NO_CONTENT);
    let account = service.only_account().await;
    assert_eq!(account["input_tokens_per_minute"]["limit"], Value::Null);
    assert_eq!(account["paused_for_seconds"], Value::Null);
    assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    for unknown in ["/_admin/limits/server/gemini-unknown", "/_admin/limits/nobody/gemini%2Fa"] {
        let unknown = answer(service.delete(unknown)).await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        assert_eq!(unknown.body["code"], "account_not_found");
    }
}

#[tokio::test]
async fn an_alias_is_shown_with_the_limits_of_the_model_that_is_charged() {
    let service = limited("gemini-real:rpm=100").await;
    let alias = json!({"prompt": "Hello", "model": "gemini-latest"});
    assert_eq!(answer(service.post("/chat", &alias)).await.status, StatusCode::OK);
    let accounts = service.gateway.limiter.accounts();
    let key = *ApiKey::new(SERVER_KEY).unwrap().sha256();
    let alias_account = accounts.of(&key, &"gemini-latest".into());
    accounts.alias(&alias_account, "gemini-real", NamedBy::Answer);
    assert_eq!(answer(service.post("/chat", &alias)).await.status, StatusCode::OK);
    let shown = service.limits().await;
    assert_eq!(shown["count"], 2);
    let used = json!({"limit": 100, "source": "setting", "used": 2, "reserved": 0});
    for (account, counts_as) in [(0, json!("gemini-real")), (1, Value::Null)] {
        let account = &shown["limits"][account];
        assert_eq!(account["counts_as"], counts_as, "{shown}");
        assert_eq!(account["requests_per_minute"], used, "{shown}");
    }
}
