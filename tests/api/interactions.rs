//! Interactions: counted, retried and settled like other calls, in their own format; and runs in the
//! background, which hold their slots until they end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::IntoResponse;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::simulator::Options;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::limits::plan;
use crate::process::Start;
use crate::recording::Recording;
use crate::support::{Answer, Service, answer, contents, listen, slow};

const PATH: &str = "/v1beta/interactions";
const MODEL: &str = "gemini-3.5-flash-lite";

fn interaction(input: &str) -> Value {
    json!({"model": MODEL, "input": input})
}

fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

fn in_background(input: &str) -> Value {
    with(interaction(input), &json!({"background": true}))
}

/// A service with wide limits, some settings of which are changed, and runs that are not polled.
async fn service(change: impl FnOnce(&mut Config)) -> Service {
    Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:rpm=600000,tpm=1000000000", "");
        config.background_poll = None;
        change(config);
    })
    .await
}

/// The same, with runs that are polled.
async fn polling() -> Service {
    service(|config| config.background_poll = Some(Duration::from_millis(10))).await
}

async fn create(service: &Service, body: &Value) -> Value {
    let created = answer(service.post(PATH, body)).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    created.body
}

fn path_of(interaction: &Value) -> String {
    format!("{PATH}/{}", interaction["id"].as_str().expect("an ID"))
}

async fn text(request: RequestBuilder) -> String {
    request.send().await.expect("an answer").text().await.expect("a whole answer")
}

/// How many interactions ended with this outcome.
async fn ended(service: &Service, outcome: &str) -> f64 {
    let labels = format!("kind=\"interaction\",model=\"{MODEL}\",outcome=\"{outcome}\"");
    service.metric(&format!("gemini_gateway_calls_total{{{labels}}}")).await
}

fn in_flight(service: &Service) -> usize {
    service.gateway.limiter.occupancy().in_flight
}

/// Waits until the simulator has no run any more.
async fn until_runs_ended(service: &Service) {
    crate::support::until("the runs ended", || service.simulator.stats().background_runs == 0)
        .await;
}

/// Asserts that the only account has spent what the simulator counted for it.
async fn assert_booked(service: &Service) {
    service.until_idle().await;
    let (account, stats) = (service.only_account().await, service.simulator.stats());
    assert_eq!(account["input_tokens_per_minute"]["used"], stats.admitted_input_tokens);
    assert_eq!(account["requests_per_minute"]["used"], stats.admitted);
}

#[tokio::test]
async fn an_interaction_spends_the_quota_of_its_model_as_its_usage_says() {
    let service = service(|_| {}).await;
    for version in ["v1", "v1beta", "v1alpha"] {
        let path = format!("/{version}/interactions");
        let created = answer(service.post(&path, &interaction("What is new?"))).await;
        let output = &created.body["steps"][0]["content"][0]["text"];
        assert_eq!(output, "Simulated answer to: What is new?");
        let streamed = with(interaction("What is new?"), &json!({"stream": true}));
        let events = text(service.post(&path, &streamed)).await;
        assert!(events.contains("event: interaction.completed\n"), "{events}");
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    }
    let path = format!("/v1beta/models/{MODEL}:generateContent");
    assert_eq!(answer(service.post(&path, &contents("What is new?"))).await.status, 200);
    assert_booked(&service).await;
    assert_eq!(ended(&service, "success").await, 6.0);
    // An agent has an account of its own.
    let agent = json!({"agent": "deep-research", "input": "What is new?"});
    create(&service, &agent).await;
    assert_eq!(service.limits().await["count"], 2);
}

#[tokio::test]
async fn a_turn_costs_the_whole_conversation() {
    let service = service(|_| {}).await;
    let mut previous = create(&service, &interaction(&"What is new? ".repeat(20))).await;
    for turn in ["And today?", "And tomorrow?"] {
        let chained = json!({"previous_interaction_id": previous["id"]});
        previous = create(&service, &with(interaction(turn), &chained)).await;
        assert_booked(&service).await;
    }
    let reported = previous["usage"]["total_input_tokens"].as_u64().unwrap();
    assert!(reported < 10, "only the new input is reported: {reported}");
}

#[tokio::test]
async fn transient_errors_are_retried_even_as_the_first_event_of_a_stream() {
    let service = service(|_| {}).await;
    for (settings, stream) in [
        ("status=503,fail_times=1", false),
        ("status=500,fail_times=1", true),
        ("fail_after=0,fail_times=1", true),
    ] {
        service.simulator.reset();
        let body = interaction(&format!("[[simulate:{settings}]]Hello {stream}"));
        let body = with(body, &json!({"stream": stream}));
        let answered = service.post(PATH, &body).send().await.unwrap();
        assert_eq!(answered.status(), StatusCode::OK, "{settings}");
        assert!(answered.text().await.unwrap().contains("completed"), "{settings}");
        assert_eq!(service.simulator.stats().calls, 2, "{settings}");
    }
}

#[tokio::test]
async fn refusals_have_the_format_of_interactions() {
    let error = |answer: &Answer| answer.body["error"]["code"].clone();
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:rpm=2", "");
        config.request_timeout = Duration::from_secs(10);
        config.environment_fallback = false;
    })
    .await;
    let keyless = answer(service.post(PATH, &interaction("Hello"))).await;
    assert_eq!(
        (keyless.status, error(&keyless)),
        (StatusCode::UNAUTHORIZED, "authentication".into())
    );
    let own = |body: &Value| answer(service.post(PATH, body).header("x-goog-api-key", "own"));
    let nameless = own(&json!({"model": "../x", "agent": 7})).await;
    assert_eq!(
        (nameless.status, error(&nameless)),
        (StatusCode::BAD_REQUEST, "invalid_request".into())
    );
    let first = own(&interaction("[[simulate:status=404]]")).await;
    assert_eq!((first.status, error(&first)), (StatusCode::NOT_FOUND, "not_found".into()));
    let second = own(&interaction("Hello")).await;
    assert_eq!(second.status, StatusCode::TOO_MANY_REQUESTS, "{}", second.body);
    assert_eq!(error(&second), "rate_limit_exceeded");
    let fields: Vec<_> = second.body["error"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["code", "message"]);
    let wait: u64 = second.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((20..=31).contains(&wait), "{wait}");
    let missing =
        answer(service.get(&format!("{PATH}/v1_x")).header("x-goog-api-key", "own")).await;
    assert_eq!((missing.status, error(&missing)), (StatusCode::NOT_FOUND, "not_found".into()));
}

/// An upstream that streams these events.
async fn streaming(events: &[&str]) -> (Recording, Service) {
    let pieces = events.iter().map(|event| format!("data: {event}\n\n").into_bytes()).collect();
    let recording = Recording::play(200, "text/event-stream", pieces).await;
    let service = Service::over_with(&recording.base_url, |config| {
        config.quota_plan = plan("*:rpm=600000,tpm=1000000000", "");
        config.background_poll = None;
    })
    .await;
    (recording, service)
}

const CREATED: &str =
    r#"{"interaction":{"id":"v1_a","status":"in_progress"},"event_type":"interaction.created"}"#;
const STOPPED: &str = r#"{"index":0,"usage":{"total_input_tokens":70},"event_type":"step.stop"}"#;

#[tokio::test]
async fn a_stream_without_a_settled_status_is_a_failure_and_its_last_usage_counts() {
    let error = r#"{"event_type":"error","error":{"code":"service_unavailable","message":"x"}}"#;
    let ended_by = r#"{"event_type":"interaction.completed","interaction":{"status":"failed"}}"#;
    for (last, outcome, tokens) in [
        ("[DONE]", "upstream_connection", Some(70)),
        (ended_by, "success", Some(70)),
        // A refusal for load may not have counted.
        (error, "upstream_unavailable", None),
    ] {
        let (_upstream, service) = streaming(&[CREATED, STOPPED, last]).await;
        let body = with(interaction("Hello"), &json!({"stream": true}));
        let events = text(service.post(PATH, &body)).await;
        assert!(events.contains(last), "{events}");
        service.until_idle().await;
        assert_eq!(ended(&service, outcome).await, 1.0, "{last}");
        let account = service.only_account().await;
        let used = account["input_tokens_per_minute"]["used"].as_u64();
        assert!(tokens.is_none() || used == tokens, "{last}: {used:?}");
    }
}

#[tokio::test]
async fn a_background_run_holds_its_slot_until_its_caller_reads_that_it_has_ended() {
    let service = service(|_| {}).await;
    for query in ["", "?stream=true"] {
        let created = create(&service, &in_background(&slow(200))).await;
        assert!(created.get("usage").is_none(), "{created}");
        assert_eq!(in_flight(&service), 1);
        let path = path_of(&created);
        let running = answer(service.get(&path)).await.body;
        assert!(["queued", "in_progress"].contains(&running["status"].as_str().unwrap()));
        assert_eq!(in_flight(&service), 1);
        if query.is_empty() {
            until_runs_ended(&service).await;
        }
        assert_eq!(in_flight(&service), 1, "nobody has read that it has ended");
        let read = text(service.get(&format!("{path}{query}"))).await;
        assert!(read.contains("completed"), "{read}");
        assert_booked(&service).await;
    }
    assert_eq!(ended(&service, "success").await, 2.0, "each is booked once");
}

#[tokio::test]
async fn a_background_run_that_nobody_reads_is_polled() {
    let service = polling().await;
    create(&service, &in_background(&slow(200))).await;
    assert_eq!(in_flight(&service), 1);
    let runs = async || service.metric("gemini_gateway_background_runs").await;
    assert_eq!(runs().await, 1.0);
    until_runs_ended(&service).await;
    assert_booked(&service).await;
    assert_eq!(runs().await, 0.0);
    assert_eq!(ended(&service, "success").await, 1.0);
    assert_eq!(service.simulator.stats().calls, 1, "a poll is no call");
}

#[tokio::test]
async fn a_background_run_outlives_the_stream_of_its_creation() {
    let service = polling().await;
    let body = with(in_background(&slow(300)), &json!({"stream": true}));
    let mut response = service.post(PATH, &body).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    crate::support::until("the run is alone", || service.simulator.stats().background_runs == 1)
        .await;
    assert_eq!(in_flight(&service), 1);
    until_runs_ended(&service).await;
    assert_booked(&service).await;
    assert_eq!((ended(&service, "success").await, ended(&service, "cancelled").await), (1.0, 0.0));
}

/// Gemini, slow to answer: a run that is created gets its ID after a while, and has ended when it is
/// read. Returns its URL, and how many requests have come.
async fn slow_to_create(stop: &CancellationToken) -> (String, Arc<AtomicUsize>) {
    const ID_AFTER: Duration = Duration::from_millis(300);
    const STARTED: &str = "{\"interaction\":{\"id\":\"v1_a\",\"status\":\"in_progress\"},\
        \"event_type\":\"interaction.created\"}";
    let came = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&came);
    let router = axum::Router::new().fallback(move |method: Method, body: String| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            if method == Method::GET {
                let usage = json!({"total_input_tokens": 5, "total_output_tokens": 2});
                let ended = json!({"id": "v1_a", "status": "completed", "usage": usage});
                return axum::Json(ended).into_response();
            }
            if !body.contains("\"stream\":true") {
                tokio::time::sleep(ID_AFTER).await;
                return axum::Json(json!({"id": "v1_a", "status": "queued"})).into_response();
            }
            let begun = stream::iter([Ok::<_, Infallible>(": begun\n\n".to_owned())]);
            let started = stream::once(async {
                tokio::time::sleep(ID_AFTER).await;
                Ok(format!("data: {STARTED}\n\n"))
            });
            let body = Body::from_stream(begun.chain(started).chain(stream::pending()));
            ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
        }
    });
    (format!("http://{}", listen(router, stop).await), came)
}

#[tokio::test]
async fn a_background_run_is_followed_if_its_client_hangs_up_before_its_id_comes() {
    for streams in [false, true] {
        let stop = CancellationToken::new();
        let (url, came) = slow_to_create(&stop).await;
        let service = Service::over_with(&url, |config| {
            config.quota_plan = plan("*:rpm=600000,tpm=1000000000", "");
            config.background_poll = Some(Duration::from_millis(10));
        })
        .await;
        let body = with(in_background("Hello"), &json!({"stream": streams}));
        let request = service.post(PATH, &body);
        let client = tokio::spawn(async move {
            let mut response = request.send().await.unwrap();
            response.chunk().await.unwrap();
            response
        });
        let asked = || came.load(Ordering::Relaxed) == 1;
        crate::support::until("Gemini was asked", asked).await;
        if streams {
            drop(client.await.unwrap());
        } else {
            client.abort();
        }
        let polled = || came.load(Ordering::Relaxed) == 2;
        crate::support::until("the run was polled", polled).await;
        service.until_idle().await;
        let account = service.only_account().await;
        assert_eq!(account["input_tokens_per_minute"]["used"], 5);
        assert_eq!(ended(&service, "success").await, 1.0);
        drop(stop.drop_guard());
    }
}

#[tokio::test]
async fn a_run_that_cannot_be_read_holds_its_slot_until_its_time_is_over() {
    let service = service(|config| {
        config.background_poll = Some(Duration::from_millis(10));
        config.background_timeout = Duration::from_millis(1500);
    })
    .await;
    let created =
        create(&service, &in_background("[[simulate:poll_status=400,latency_ms=50]]")).await;
    let read = answer(service.get(&path_of(&created))).await;
    assert_eq!(read.status, StatusCode::BAD_REQUEST, "{}", read.body);
    until_runs_ended(&service).await;
    assert_eq!(in_flight(&service), 1);
    service.until_idle().await;
    // The estimate stands.
    let account = service.only_account().await;
    assert!(account["input_tokens_per_minute"]["used"].as_u64() > Some(0), "{account}");
}

#[tokio::test]
async fn a_run_is_settled_before_it_is_deleted_and_when_it_is_cancelled() {
    let service = service(|_| {}).await;
    let created = create(&service, &in_background(&slow(50))).await;
    until_runs_ended(&service).await;
    assert_eq!(answer(service.delete(&path_of(&created))).await.status, StatusCode::OK);
    assert_booked(&service).await;
    assert_eq!(ended(&service, "success").await, 1.0);
    assert_eq!(answer(service.get(&path_of(&created))).await.status, StatusCode::NOT_FOUND);

    let created = create(&service, &in_background(&slow(60_000))).await;
    let path = format!("{}/cancel", path_of(&created));
    let cancelled = answer(service.post(&path, &json!({}))).await;
    assert_eq!(cancelled.body["status"], "cancelled");
    service.until_idle().await;
    assert_eq!(ended(&service, "cancelled").await, 1.0);
}

#[tokio::test]
async fn a_run_that_is_deleted_before_its_end_holds_its_slot_until_its_time_is_over() {
    for poll in [None, Some(Duration::from_millis(10))] {
        let service = service(|config| {
            config.concurrency_limit = 1;
            config.background_poll = poll;
            config.background_timeout = Duration::from_millis(1500);
        })
        .await;
        let started = Instant::now();
        let created = create(&service, &in_background(&slow(60_000))).await;
        assert_eq!(answer(service.delete(&path_of(&created))).await.status, StatusCode::OK);
        create(&service, &interaction("Hello")).await;
        let stats = service.simulator.stats();
        assert_eq!((stats.calls, in_flight(&service)), (2, 0), "the next one waited");
        assert!(started.elapsed() >= Duration::from_millis(1500));
        // The estimate stands.
        let account = service.only_account().await;
        assert!(account["input_tokens_per_minute"]["used"].as_u64() > Some(0), "{account}");
    }
}

#[tokio::test]
async fn only_who_learns_how_a_run_stands_has_read_it() {
    let service = service(|config| config.background_poll = Some(Duration::from_millis(300))).await;
    let created = create(&service, &in_background(&slow(50))).await;
    let path = path_of(&created);
    let others = async {
        loop {
            let foreign = answer(service.get(&path).header("x-goog-api-key", "another")).await;
            assert_eq!(foreign.status, StatusCode::NOT_FOUND);
            // The owner's, without a body.
            assert_eq!(service.head(&path).send().await.unwrap().status(), StatusCode::OK);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = others => unreachable!("it goes on"),
        () = service.until_idle() => {}
    }
    assert_booked(&service).await;
    assert_eq!(ended(&service, "success").await, 1.0);
}

#[tokio::test]
async fn a_poll_has_the_key_and_the_revision_of_its_run() {
    let created = br#"{"id":"v1_a/b","status":"a_new_one","object":"interaction"}"#;
    let upstream = Recording::play(200, "application/json", vec![created.to_vec()]).await;
    let service = Service::over_with(&upstream.base_url, |config| {
        config.background_poll = Some(Duration::from_millis(1));
        config.background_timeout = Duration::from_millis(300);
    })
    .await;
    let request = service.post("/v1alpha/interactions", &interaction("Hello"));
    let request = request.header("api-revision", "2026-05-20").header("x-goog-api-key", "own");
    assert_eq!(answer(request).await.status, StatusCode::OK);
    service.until_idle().await;
    let requests = upstream.requests();
    assert!(requests.len() > 1, "a status that is not known counts as running");
    for (at, request) in requests.iter().enumerate() {
        let line = match at {
            0 => "POST /v1alpha/interactions HTTP/1.1",
            _ => "GET /v1alpha/interactions/v1_a%2Fb HTTP/1.1",
        };
        assert!(request.starts_with(line), "{request}");
        assert!(request.contains("\r\napi-revision: 2026-05-20\r\n"), "{request}");
        assert!(request.contains("\r\nx-goog-api-key: own\r\n"), "{request}");
    }
}

#[tokio::test]
async fn runs_in_the_background_do_not_delay_the_shutdown() {
    let process = Start::simulated().run().await;
    let created = answer(process.post(PATH, &in_background(&slow(60_000)))).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    process.until_in_flight(1).await;
    process.terminate().await;
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("grace period is over"), "{log}");
}

/// Makes one of three kinds of interaction, or calls `generateContent` of the same model.
async fn any_kind(service: &Service, at: usize) {
    let prompt = format!("[[simulate:latency_ms={}]]Hello {at}", 20 + at % 7 * 10);
    match at % 4 {
        0 => drop(create(service, &interaction(&prompt)).await),
        1 => {
            let body = with(interaction(&prompt), &json!({"stream": true}));
            assert!(text(service.post(PATH, &body)).await.ends_with("[DONE]\n\n"));
        }
        2 => drop(create(service, &in_background(&prompt)).await),
        _ => {
            let path = format!("/v1beta/models/{MODEL}:generateContent");
            let answered = answer(service.post(&path, &contents(&prompt))).await;
            assert_eq!(answered.status, StatusCode::OK, "{}", answered.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_interactions_of_all_kinds_stay_within_the_concurrency_limit() {
    let service = polling().await;
    join_all((0..200).map(|at| any_kind(&service, at))).await;
    until_runs_ended(&service).await;
    assert_booked(&service).await;
    let stats = service.simulator.stats();
    assert_eq!((stats.calls, stats.answered, stats.cancelled), (200, 200, 0), "{stats:?}");
    assert!((10..=15).contains(&stats.highest_in_flight), "{stats:?}");
    assert_eq!(ended(&service, "success").await, 150.0);
}
