//! The figures behind the dashboard: recent failures, the history, and the sums over replicas.

use std::sync::Arc;
use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::Usage;
use gemini_concurrent_generation::limits::{
    PerKind, QuotaKind, RedisSettings, SharedStore, Store, WaitMode,
};
use gemini_concurrent_generation::metrics::{
    Failure, FinishedCall, MAX_FAILURES, OutcomeClass, Scope, Window,
};
use gemini_concurrent_generation::simulator::Options;
use serde_json::json;

use crate::limits::plan;
use crate::redis_server::RedisServer;
use crate::support::{SERVER_KEY, Service, answer, contents, until};

fn failures(service: &Service) -> Vec<Failure> {
    let all = service.gateway.history.failures(usize::MAX);
    all.into_iter().map(|(_, failure)| failure).collect()
}

/// The code and whether the call was sent again, of each failure.
fn codes(service: &Service) -> Vec<(String, bool)> {
    let all = failures(service).into_iter();
    all.map(|failure| (failure.code.to_string(), failure.retried)).collect()
}

#[tokio::test]
async fn a_failure_names_its_code_kind_model_payer_and_request() {
    let service = Service::start().await;
    let request = service.post("/chat", &json!({"prompt": "[[simulate:blocked=SAFETY]]"}));
    let refused = answer(request.header("x-request-id", "order-66")).await;
    assert_eq!(refused.body["code"], "content_blocked");
    let generated = "/v1beta/models/gemini-3.8-flash:generateContent";
    let request = service.post(generated, &contents("[[simulate:status=400]]"));
    answer(request.header("x-request-id", "order-67")).await;

    let found = failures(&service);
    let shown: Vec<_> = found
        .iter()
        .map(|Failure { code, kind, model, payer, request_id, retried, .. }| {
            (&**code, &**kind, &**model, &**payer, request_id.as_deref().unwrap(), *retried)
        })
        .collect();
    assert_eq!(
        shown,
        [
            (
                "invalid_request",
                "generate_content",
                "gemini-3.8-flash",
                "server",
                "order-67",
                false
            ),
            ("content_blocked", "chat", "gemini-3.5-flash-lite", "server", "order-66", false),
        ]
    );
    assert!(found[0].at >= found[1].at);
}

#[tokio::test]
async fn a_failure_before_a_retry_is_marked() {
    let service = Service::start().await;
    let prompt = "[[simulate:status=503,fail_times=1]]";
    assert_eq!(service.chat(prompt).await.status, 200);
    assert_eq!(codes(&service), [("upstream_unavailable".to_owned(), true)]);
}

#[tokio::test]
async fn streams_items_of_batches_and_calls_that_are_not_admitted_are_among_the_failures() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let stream = json!({"prompt": "[[simulate:unfinished]]", "stream": true});
    let stream = service.post("/chat", &stream).header("x-request-id", "the-stream");
    stream.send().await.unwrap().text().await.unwrap();
    let item = json!({"prompt": "[[simulate:status=500]]"});
    let batch = service.post("/batch/chat", &json!({"requests": [item, item]}));
    answer(batch.header("x-request-id", "the-batch")).await;
    service.chat("[[simulate:quota=day]]").await;
    assert_eq!(service.chat("fine").await.body["code"], "daily_quota_exhausted");
    let found: Vec<_> = failures(&service)
        .into_iter()
        .map(|failure| (failure.code.to_string(), failure.request_id.map(|id| id.to_string())))
        .collect();
    let expected = [
        ("daily_quota_exhausted", None),
        ("daily_quota_exhausted", None),
        ("upstream_unavailable", Some("the-batch")),
        ("upstream_connection", Some("the-stream")),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((code, id), (expected_code, expected_id)) in found.iter().zip(expected) {
        assert_eq!(code, expected_code, "{found:?}");
        assert!(id.is_some(), "each belongs to a request: {found:?}");
        assert!(expected_id.is_none() || id.as_deref() == expected_id, "{found:?}");
    }
    assert_eq!(failures(&service)[2].count, 2, "both items failed alike");
    let series = r#"gemini_gateway_not_admitted_total{kind="chat",reason="daily_quota_exhausted"}"#;
    assert_eq!(service.metric(series).await, 1.0);
}

#[tokio::test]
async fn failures_have_no_prompt_answer_or_key_and_their_number_is_bounded() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let (key, form) = ("the-callers-own-key", format!("AIza{}", "x".repeat(35)));
    for (index, id) in [key, &form].into_iter().enumerate() {
        let body = json!({
            "prompt": "the-secret-prompt [[simulate:status=400]]",
            "model": form,
            "credentials": {"gemini_api_key": key},
        });
        answer(service.post("/chat", &body).header("x-request-id", id)).await;
        assert_eq!(failures(&service).len(), index + 1);
    }
    let shown = format!("{:?}", failures(&service));
    for secret in [key, &form, "secret", SERVER_KEY] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    let item = json!({"prompt": "[[simulate:status=400]]"});
    let batch = json!({"requests": vec![item.clone(); 50]});
    answer(service.post("/batch/chat", &batch)).await;
    assert_eq!((failures(&service).len(), failures(&service)[0].count), (3, 50));
    for _ in 0..MAX_FAILURES {
        answer(service.post("/chat", &item)).await;
    }
    assert_eq!(failures(&service).len(), MAX_FAILURES);
}

#[tokio::test]
async fn the_history_counts_calls_by_the_class_of_their_outcome() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    for prompt in [
        "fine",
        "[[simulate:quota=minute]]",
        "[[simulate:status=503]]",
        "[[simulate:status=400]]",
        "[[simulate:blocked=SAFETY]]",
        "[[simulate:status=500]]",
    ] {
        // Another model each time: a pause of one does not delay the next.
        let model = format!("gemini-of-{}-characters", prompt.len());
        answer(service.post("/chat", &json!({"prompt": prompt, "model": model}))).await;
    }
    service.gateway.history.sample().await;
    let series = service.gateway.history.series(Window::Hour);
    let counts = &series.points[0].counts;
    for class in OutcomeClass::ALL {
        let expected = u64::from(class != OutcomeClass::Cancelled);
        assert_eq!(counts.calls.of(class), expected, "{class:?}");
    }
    assert_eq!(counts.calls.refusals(), 2);
    assert_eq!((counts.latency.count(), counts.queue_wait.count()), (6, 6));
    assert!(counts.input_tokens > 0 && counts.output_tokens > 0);
}

#[tokio::test]
async fn metrics_show_the_quotas_pauses_spend_and_adaptive_limits_of_accounts() {
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:rpm=600,rpd=5000,spend=7.5", "");
    })
    .await;
    service.chat("fine").await;
    service.chat("[[simulate:quota=day]]").await;
    answer(service.post("/chat", &json!({"prompt": "q", "model": "made-up"}))).await;
    let shown = service.metric("gemini_gateway_quota_limit").await;
    assert_eq!(shown, 0.0, "nothing was sampled");
    service.gateway.history.sample().await;
    let payer = &service.gateway.history.accounts()[0].payer;
    let of = format!(r#"payer="{payer}",model="gemini-3.5-flash-lite""#);
    for (series, value) in [
        (format!(r#"quota_limit{{{of},quota="requests_per_minute"}}"#), 600.0),
        (format!(r#"quota_used{{{of},quota="requests_per_minute"}}"#), 1.0),
        (format!(r#"adaptive_limit{{{of},capacity="standard"}}"#), 15.0),
        (format!(r#"adaptive_limit_in_use{{{of},capacity="flex"}}"#), 0.0),
        (format!(r#"account_paused{{{of},reason="day_used_up"}}"#), 1.0),
        (format!(r#"quota_waiting{{{of}}}"#), 0.0),
        (format!(r#"refusals_total{{{of},reason="per_day"}}"#), 1.0),
        (format!(r#"spend_limit_usd{{payer="{payer}"}}"#), 7.5),
        ("replicas".to_owned(), 1.0),
        ("limits_available".to_owned(), 1.0),
    ] {
        assert_eq!(service.metric(&format!("gemini_gateway_{series}")).await, value, "{series}");
    }
    assert!(service.metric(&format!(r#"gemini_gateway_spend_usd{{payer="{payer}"}}"#)).await > 0.0);
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(!text.contains("made-up") && !text.contains("quota=\"images_per_minute\""));
}

/// A gateway that shares its limits through a Redis.
async fn replica(redis: &RedisServer) -> Gateway {
    let settings = RedisSettings {
        url: redis.url().into(),
        prefix: "figures".to_owned(),
        lease: Duration::from_secs(5),
    };
    let store: Arc<dyn Store> = SharedStore::connect(&settings, 5).await.expect("it answers");
    Gateway::with_store(Config::default(), true, store).expect("a base URL")
}

fn count_calls(gateway: &Gateway, calls: u64) {
    let model = "gemini-3.8-flash".parse().expect("a model");
    for _ in 0..calls {
        gateway.metrics.finished(FinishedCall {
            kind: "chat",
            model: &model,
            answered_by: None,
            accepted: true,
            outcome: "success",
            class: OutcomeClass::Succeeded,
            refusal: None,
            took: Duration::from_secs(1),
            usage: Usage::default(),
            trace: None,
        });
    }
}

fn calls(gateway: &Gateway, window: Window) -> u64 {
    let points = gateway.history.series(window).points;
    points.iter().map(|point| point.counts.calls.total()).sum()
}

#[tokio::test]
async fn replicas_show_the_same_sums_until_one_ends_and_without_redis_their_own() {
    let mut redis = RedisServer::start().await;
    redis.mark_as_long_running("figures").await;
    let [one, two] = [replica(&redis).await, replica(&redis).await];
    for gateway in [&one, &two] {
        gateway.history.sample().await;
    }
    count_calls(&one, 3);
    count_calls(&two, 4);
    let model = "m".into();
    one.limiter
        .accounts()
        .of(&[1; 32], &model)
        .correct(PerKind::default().with(QuotaKind::RequestsPerMinute, 50));
    let permit = one.limiter.store().global().request(2, WaitMode::Endless).await.expect("permits");
    // Each first reports, then reads what the other has reported.
    for _ in 0..2 {
        for gateway in [&one, &two] {
            gateway.history.sample().await;
        }
    }
    for gateway in [&one, &two] {
        let history = &gateway.history;
        assert_eq!(history.scope(), Scope::Replicas { count: 2 });
        assert_eq!(calls(gateway, Window::Hour), 7);
        assert_eq!((history.now().in_flight, history.now().limit), (2, 5));
        let replicas = history.replicas();
        assert_eq!(
            replicas.iter().map(|replica| replica.is_this).collect::<Vec<_>>(),
            [true, false]
        );
        assert_ne!(replicas[0].id, replicas[1].id);
        assert_eq!(replicas.iter().map(|replica| replica.in_flight).sum::<usize>(), 2);
        assert_eq!(history.accounts().len(), 1, "also of the replica that has no calls of it");
    }
    drop(permit);

    // One that starts later shows what the others did before. A point is sent with the next report.
    for gateway in [&one, &two] {
        gateway.history.sample().await;
    }
    let three = replica(&redis).await;
    three.history.sample().await;
    assert_eq!(calls(&three, Window::Hour), 7);
    assert_eq!(three.history.replicas().len(), 3);

    // One ends.
    two.limiter.store().close().await;
    one.history.sample().await;
    assert_eq!(one.history.replicas().len(), 2);
    assert_eq!(one.history.scope(), Scope::Replicas { count: 2 });

    // Redis ends.
    redis.stop().await;
    until("it is noticed", || one.limiter.store().reach().is_err()).await;
    one.history.sample().await;
    assert!(matches!(one.history.scope(), Scope::Unreachable { .. }));
    assert_eq!((calls(&one, Window::Hour), one.history.replicas().len()), (3, 1));
    redis.restart().await;
    until("it is connected again", || one.limiter.store().reach().is_ok()).await;
    one.history.sample().await;
    assert!(matches!(one.history.scope(), Scope::Replicas { .. }));
    assert_eq!(calls(&one, Window::Hour), 7, "what was known is still there");
}
