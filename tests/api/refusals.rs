//! Refusals other than for load, and calls that may have run: what is retried, and what is not.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use gemini_concurrent_generation::simulator::Options;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::recording::Recording;
use crate::support::{ADMIN_KEY, Answer, SERVER_KEY, Service, answer, closed_port, listen};

/// An upstream that refuses some calls and answers all others.
struct Refusing {
    base_url: String,
    calls: Arc<Mutex<usize>>,
    _stop: DropGuard,
}

impl Refusing {
    /// Refuses the calls for which the function returns a refusal. It gets the call's number, from
    /// 1, and its key.
    async fn with(
        refusal: impl Fn(usize, &str) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let (stop, calls) = (CancellationToken::new(), Arc::new(Mutex::new(0)));
        let (counted, refusal) = (Arc::clone(&calls), Arc::new(refusal));
        let router = Router::new().fallback(move |request: Request| {
            let (counted, refusal) = (Arc::clone(&counted), Arc::clone(&refusal));
            async move {
                let number = {
                    let mut calls = counted.lock().unwrap();
                    *calls += 1;
                    *calls
                };
                refusal(number, &key(&request)).unwrap_or_else(|| success(&request))
            }
        });
        let base_url = format!("http://{}", listen(router, &stop).await);
        Self { base_url, calls, _stop: stop.drop_guard() }
    }

    fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }

    async fn service(&self) -> Service {
        Service::with(Options::default(), |config| {
            config.base_url.clone_from(&self.base_url);
            config.request_timeout = Duration::from_secs(20);
        })
        .await
    }
}

fn key(request: &Request) -> String {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    header("x-goog-api-key").or(header(AUTHORIZATION.as_str())).unwrap_or_default().to_owned()
}

/// An answer in the format of the request's surface.
fn success(request: &Request) -> Response {
    let path = request.uri().path();
    let answer = json!({
        "candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 7},
        "modelVersion": "gemini-3.5-flash-lite",
    });
    let events = |event: &Value| stream(&format!("data: {event}\r\n\r\n"));
    if path.ends_with("/chat/completions") {
        events(&json!({"choices": [{"delta": {"content": "ok"}}]}))
    } else if request.uri().query() == Some("alt=sse") {
        events(&answer)
    } else {
        axum::Json(answer).into_response()
    }
}

fn stream(body: &str) -> Response {
    ([(CONTENT_TYPE, "text/event-stream")], body.to_owned()).into_response()
}

fn refusal(status: u16, message: &str, details: Value) -> Value {
    json!({"error": {
        "code": status, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details,
    }})
}

/// A response with this status and body.
fn refused(status: u16, body: &Value) -> Response {
    let mut response = axum::Json(body.clone()).into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

const UNNAMED: &str = "You exceeded your current quota, please check your plan and billing \
    details. For more information on this error, head to: \
    https://ai.google.dev/gemini-api/docs/rate-limits.";

fn refusal_without_quota() -> Value {
    let help = json!([{"@type": "type.googleapis.com/google.rpc.Help", "links": []}]);
    refusal(429, UNNAMED, help)
}

fn quota(id: &str, value: &str) -> Value {
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": id, "quotaValue": value}],
    }]);
    refusal(429, UNNAMED, details)
}

async fn chat_with(service: &Service, key: &str, model: &str) -> Answer {
    let chat = json!({
        "prompt": "Hello", "model": model, "credentials": {"gemini_api_key": key},
    });
    answer(service.post("/chat", &chat)).await
}

fn assert_failed(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status.as_u16(), &answer.body["code"]),
        (status, &json!(code)),
        "{answer:?}"
    );
}

async fn assert_no_limit_fell(service: &Service) {
    let health = answer(service.get("/")).await.body;
    assert_eq!(health["concurrency_status"]["adaptive_limits"], json!({}));
}

/// What the only account has used of a quota.
async fn used(service: &Service, quota: &str) -> Value {
    let limits = answer(service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY)).await;
    assert_eq!(limits.body["count"], 1, "{}", limits.body);
    limits.body["limits"][0][quota]["used"].clone()
}

#[tokio::test]
async fn an_account_without_funds_is_paused_and_batches_send_no_doomed_calls() {
    for status in [402, 429] {
        let depleted = refusal(status, "Your prepayment credits are depleted.", Value::Null);
        let upstream =
            Refusing::with(move |_, key| (key == SERVER_KEY).then(|| refused(status, &depleted)))
                .await;
        let service = upstream.service().await;
        let items: Vec<_> = (0..1000).map(|n| json!({"prompt": n.to_string()})).collect();
        let batch = answer(service.post("/batch/chat", &json!({"requests": items}))).await;
        assert_eq!(batch.body["failed_requests"], 1000);
        for item in batch.body["results"].as_array().unwrap() {
            assert_eq!(item["error_code"], "account_unfunded", "{item}");
            assert_eq!(item["retryable"], false);
        }
        let calls = upstream.calls();
        assert!(calls <= 15, "{calls} were made, with at most 15 in flight at once");

        assert_failed(
            &chat_with(&service, SERVER_KEY, "another-model").await,
            402,
            "account_unfunded",
        );
        assert_eq!(upstream.calls(), calls, "every model of the account is paused");
        let shown = service.limits().await;
        for account in shown["limits"].as_array().unwrap() {
            let shown = &account["refused"];
            assert_eq!(shown["state"], "refusing", "{account}");
            assert_eq!(shown["code"], "account_unfunded");
            let since: jiff::Timestamp = shown["since"].as_str().unwrap().parse().unwrap();
            assert!(since <= jiff::Timestamp::now());
            let probe_in = shown["next_probe_in_seconds"].as_f64().unwrap();
            assert!((0.0..=180.0).contains(&probe_in) && probe_in > 0.0, "{probe_in}");
        }
        assert_eq!(chat_with(&service, "another-key", "a-model").await.status, StatusCode::OK);
        let shown = service.limits().await;
        let of_another =
            |account: &&Value| account["key"] != "server" && account["model"] == "a-model";
        let accounts = shown["limits"].as_array().unwrap();
        let served = accounts.iter().find(of_another).expect("the account is listed");
        assert_eq!(served["refused"], Value::Null);
        assert_no_limit_fell(&service).await;
        service.until_idle().await;
    }
}

/// Gemini's answers name the model that is charged, in each surface's format.
#[tokio::test]
async fn answers_on_every_surface_map_an_alias_to_the_model_that_is_charged() {
    let native = json!({
        "candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 7},
        "modelVersion": "gemini-real",
    });
    let openai = json!({
        "object": "chat.completion", "model": "gemini-real",
        "choices": [{"index": 0, "message": {"content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    });
    let chat = json!({"prompt": "Hello", "model": "gemini-latest"});
    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}]});
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let completion = json!({"model": "gemini-latest", "messages": messages});
    let events = |event: &Value| format!("data: {event}\r\n\r\n").into_bytes();
    let (json, event_stream) = ("application/json", "text/event-stream");
    let generate = "/v1beta/models/gemini-latest:generateContent";
    let stream = "/v1beta/models/gemini-latest:streamGenerateContent?alt=sse";
    let streamed = with(&completion, "stream", json!(true));
    for (path, body, content_type, pieces) in [
        ("/chat", &chat, json, native.to_string().into_bytes()),
        ("/chat", &with(&chat, "stream", json!(true)), event_stream, events(&native)),
        (generate, &contents, json, native.to_string().into_bytes()),
        (stream, &contents, event_stream, events(&native)),
        ("/v1/chat/completions", &completion, json, openai.to_string().into_bytes()),
        ("/v1/chat/completions", &streamed, event_stream, events(&openai)),
    ] {
        let upstream = Recording::play(200, content_type, vec![pieces]).await;
        let service = Service::with(Options::default(), |config| {
            config.base_url.clone_from(&upstream.base_url);
        })
        .await;
        let response = service.post(path, body).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.bytes().await.expect("a whole answer");
        let shown = service.limits().await;
        let accounts = shown["limits"].as_array().unwrap();
        let counts_as = |model: &str| {
            let account = accounts.iter().find(|account| account["model"] == model);
            account.unwrap_or_else(|| panic!("{path}: {shown}"))["counts_as"].clone()
        };
        assert_eq!(counts_as("gemini-latest"), "gemini-real", "{path}");
        assert_eq!(counts_as("gemini-real"), Value::Null, "{path}");
    }
}

/// A refusal names the model whose quota is exhausted.
#[tokio::test]
async fn a_refusal_maps_an_alias_to_the_model_that_it_names() {
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{
            "quotaId": "GenerateRequestsPerDayPerProjectPerModel", "quotaValue": "50",
            "quotaDimensions": {"location": "global", "model": "gemini-real"},
        }],
    }]);
    let used_up = refusal(429, UNNAMED, details);
    let upstream = Refusing::with(move |_, _| Some(refused(429, &used_up))).await;
    let service = upstream.service().await;
    for model in ["gemini-latest", "gemini-real", "gemini-latest"] {
        assert_failed(&chat_with(&service, SERVER_KEY, model).await, 429, "daily_quota_exhausted");
    }
    assert_eq!(upstream.calls(), 1, "both names are paused");
    let shown = service.limits().await;
    assert_eq!(shown["limits"][0]["counts_as"], "gemini-real", "{shown}");
    assert_eq!(shown["limits"][1]["requests_per_day"]["limit"], 50, "{shown}");
}

fn with(body: &Value, name: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[name] = value;
    body
}

#[tokio::test]
async fn a_quota_of_zero_is_reported_and_not_retried() {
    for id in ["GenerateContentRequestsPerMinutePerProjectPerRegion", "GenerateRequestsPerDay"] {
        let zero = quota(id, "0");
        let upstream = Refusing::with(move |number, _| (number == 1).then(|| refused(429, &zero)));
        let upstream = upstream.await;
        let service = upstream.service().await;
        for _ in 0..2 {
            let failed = chat_with(&service, "a-key", "a-model").await;
            assert_failed(&failed, 403, "no_quota");
            assert!(!failed.headers.contains_key(RETRY_AFTER), "no time is known");
        }
        assert_eq!(upstream.calls(), 1);
        let other = chat_with(&service, "a-key", "another-model").await;
        assert_eq!(other.status, StatusCode::OK, "only that model is paused");
    }
}

#[tokio::test]
async fn a_refusal_without_a_quota_is_not_retried_and_affects_no_other_call() {
    for body in [refusal_without_quota(), quota("BatchEnqueuedTokensPerModel", "500")] {
        let upstream = Refusing::with(move |number, _| (number == 1).then(|| refused(429, &body)));
        let upstream = upstream.await;
        let service = upstream.service().await;
        let failed = service.chat("Hello").await;
        assert_failed(&failed, 429, "other_quota_exhausted");
        assert_eq!((&failed.headers[RETRY_AFTER], upstream.calls()), (&"60".parse().unwrap(), 1));
        assert_no_limit_fell(&service).await;
        assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_spend_limit_pauses_every_model_of_the_account() {
    let message = "You exceeded your spend-based rate limit. Your spending rate has exceeded the \
        allowed limit for your account's billing history and tier.";
    let spend = refusal(429, message, Value::Null);
    let upstream = Refusing::with(move |number, _| (number == 2).then(|| refused(429, &spend)));
    let upstream = upstream.await;
    let service = upstream.service().await;
    assert_eq!(chat_with(&service, "a-key", "used").await.status, StatusCode::OK);
    let failed = chat_with(&service, "a-key", "refused").await;
    assert_failed(&failed, 429, "spend_limited");
    assert_eq!(failed.headers[RETRY_AFTER], "60");
    for model in ["used", "refused"] {
        assert_failed(&chat_with(&service, "a-key", model).await, 429, "spend_limited");
    }
    assert_eq!(upstream.calls(), 2);
    assert_eq!(chat_with(&service, "another-key", "used").await.status, StatusCode::OK);
    assert_no_limit_fell(&service).await;
}

#[tokio::test]
async fn a_retry_after_header_is_obeyed() {
    for (status, message) in [(503, "overloaded"), (429, "Resource has been exhausted.")] {
        let body = refusal(status, message, Value::Null);
        let upstream = Refusing::with(move |number, _| {
            let mut response = refused(status, &body);
            response.headers_mut().insert(RETRY_AFTER, "2".parse().unwrap());
            (number == 1).then_some(response)
        })
        .await;
        let service = upstream.service().await;
        let asked = Instant::now();
        assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
        assert_eq!(upstream.calls(), 2);
        // The backoff alone is at most half a second.
        assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_call_that_may_have_run_is_retried_at_most_once_and_counts_as_spent() {
    let cut_off = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_vec();
    for answered in [vec![], vec![cut_off]] {
        for (path, calls) in [
            ("/chat", 2),
            ("/v1beta/models/m:generateContent", 2),
            ("/v1beta/models/m:predict", 1),
            ("/v1beta/models/m:predictLongRunning", 1),
        ] {
            let upstream = Recording::write(answered.clone()).await;
            let service = Service::with(Options::default(), |config| {
                config.base_url.clone_from(&upstream.base_url);
            })
            .await;
            let failed = answer(service.post(path, &json!({"prompt": "Hello"}))).await;
            assert_eq!(failed.status, StatusCode::BAD_GATEWAY, "{path}: {failed:?}");
            assert_eq!(upstream.requests().len(), calls, "{path}");
            assert_eq!(used(&service, "requests_per_day").await, calls, "{path}");
            assert_eq!(used(&service, "requests_per_minute").await, calls, "{path}");
            service.until_idle().await;
        }
    }
}

#[tokio::test]
async fn a_request_that_gemini_declines_does_not_use_the_daily_quota() {
    for status in [400, 401, 403, 404] {
        let service = Service::start().await;
        let failed = service.chat(format!("[[simulate:status={status}]]")).await;
        assert!(failed.status.is_client_error());
        assert_eq!(used(&service, "requests_per_day").await, 0, "{status}");
        assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
        assert_eq!(used(&service, "requests_per_day").await, 1, "{status}");
    }
}

#[tokio::test]
async fn a_failed_connection_uses_no_quota() {
    let closed_port = closed_port();
    let service = Service::with(Options::default(), |config| {
        config.base_url = format!("http://127.0.0.1:{closed_port}");
        config.max_attempts = 1;
    })
    .await;
    assert_failed(&service.chat("Hello").await, 502, "upstream_connection");
    for quota in ["requests_per_day", "requests_per_minute", "input_tokens_per_minute"] {
        assert_eq!(used(&service, quota).await, 0, "{quota}");
    }
}

const SSE: &str = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent?alt=sse";
const LIST: &str = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent";

/// A streaming request on each surface, with each format in which an error can be sent with a 200.
fn streams(error: &Value) -> Vec<(&'static str, Value, String)> {
    let chat = json!({"prompt": "Hello", "stream": true});
    let gemini = json!({"contents": [{"parts": [{"text": "Hello"}]}]});
    let openai = json!({"model": "gemini-3.5-flash-lite", "messages": [], "stream": true});
    let event = format!("data: {error}\r\n\r\n");
    let pretty = format!("{error:#}");
    vec![
        ("/chat", chat.clone(), event.clone()),
        ("/chat", chat, pretty.clone()),
        (SSE, gemini.clone(), event.clone()),
        (SSE, gemini.clone(), pretty.clone()),
        (LIST, gemini.clone(), format!("[{pretty}\n]\n")),
        ("/v1beta/models/gemini-3.5-flash-lite:generateContent", gemini, pretty),
        ("/v1/chat/completions", openai.clone(), event),
        ("/v1/chat/completions", openai, format!(": hello\n\ndata: [{error}]\n\n")),
    ]
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_retried() {
    let error = json!({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}});
    for (path, asked, body) in streams(&error) {
        let (first, is_list) = (body.clone(), path == LIST);
        let upstream = Refusing::with(move |number, _| {
            let content_type = if is_list { "application/json" } else { "text/event-stream" };
            // The answer may arrive in pieces.
            let pieces =
                first.as_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
            let pieces: Vec<_> = pieces.collect();
            let body = Body::from_stream(futures_util::stream::iter(pieces));
            (number == 1).then(|| ([(CONTENT_TYPE, content_type)], body).into_response())
        })
        .await;
        let service = upstream.service().await;
        let response = service.post(path, &asked).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}: {body}");
        let text = response.text().await.unwrap();
        assert!(text.contains("ok") && !text.contains("overloaded"), "{path}: {text}");
        assert_eq!(upstream.calls(), 2, "{path}: {body}");
        service.until_idle().await;
    }
}

#[tokio::test]
async fn every_kind_of_quota_is_learned_from_the_refusal_that_names_it() {
    for (id, name) in [
        ("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "requests_per_minute"),
        ("GenerateContentPaidTierInputTokensPerModelPerMinute", "input_tokens_per_minute"),
        ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests_per_day"),
        ("GenerateContentInputTokensPerModelPerDay-FreeTier", "input_tokens_per_day"),
        ("GenerateImagesPerMinutePerProjectPerModel", "images_per_minute"),
    ] {
        let refusal = quota(id, "1234567");
        let upstream = Refusing::with(move |_, _| Some(refused(429, &refusal))).await;
        let service = upstream.service().await;
        let _ = chat_with(&service, "any-key-of-mine", "gemini-3.5-flash-lite").await;
        let limits = answer(service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY)).await;
        let account = limits.body["limits"][0].as_object().unwrap().clone();
        let learned = account.iter().filter(|(_, quota)| quota["source"] == "gemini");
        let learned: Vec<_> = learned.map(|(name, quota)| (&**name, &quota["limit"])).collect();
        assert_eq!(learned, [(name, &json!(1_234_567))], "{id}");
    }
}

#[tokio::test]
async fn a_stream_that_begins_with_a_refusal_settles_as_a_refusal() {
    let day = quota("GenerateRequestsPerDayPerProjectPerModel", "7");
    for (path, asked, body) in streams(&day) {
        let first = body.clone();
        let upstream = Refusing::with(move |_, _| Some(stream(&first))).await;
        let service = upstream.service().await;
        let response = service.post(path, &asked).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        if path.starts_with("/v1beta") {
            assert_eq!((status, &*text), (StatusCode::OK, &*body), "{path}: relayed unchanged");
        } else {
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{path}: {text}");
            assert!(text.contains("daily_quota_exhausted"), "{path}: {text}");
        }
        let next = answer(service.post(path, &asked)).await;
        assert_eq!(
            next.status,
            StatusCode::TOO_MANY_REQUESTS,
            "{path}: the daily quota is exhausted"
        );
        assert_eq!(upstream.calls(), 1, "{path}");
        let limits = answer(service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY)).await;
        let learned = &limits.body["limits"][0]["requests_per_day"];
        assert_eq!((&learned["limit"], &learned["used"]), (&json!(7), &json!(0)), "{path}");
        service.until_idle().await;
    }
}
