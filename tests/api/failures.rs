//! Gemini's errors: each is classified, transient ones are retried, and no slot is held meanwhile.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Service, answer, closed_port, slow, until};

/// A chat that fails, and the expected error.
struct Failing {
    chat: Value,
    status: u16,
    code: &'static str,
    retryable: bool,
    /// A part of the error's detail.
    detail_part: &'static str,
}

/// An error that a marker in the prompt causes.
fn marked(
    marker: &str,
    status: u16,
    code: &'static str,
    retryable: bool,
    detail_part: &'static str,
) -> Failing {
    let chat = json!({"prompt": format!("Hello [[simulate:{marker}]]")});
    Failing { chat, status, code, retryable, detail_part }
}

/// Errors that are the same on every attempt.
fn permanent_errors() -> Vec<Failing> {
    let blocked = |marker, reason| marked(marker, 400, "content_blocked", false, reason);
    let bad_key = json!({"prompt": "Hello", "credentials": {"gemini_api_key": "invalid-key"}});
    let model = |model| json!({"prompt": "Hello", "model": model});
    vec![
        Failing {
            chat: bad_key,
            status: 401,
            code: "invalid_api_key",
            retryable: false,
            detail_part: "API key not valid. Please pass a valid API key.",
        },
        Failing {
            chat: model("gemini-unknown"),
            status: 404,
            code: "model_not_found",
            retryable: false,
            detail_part: "models/gemini-unknown is not found",
        },
        Failing {
            chat: model("gemini-retired"),
            status: 404,
            code: "model_not_found",
            retryable: false,
            detail_part: "no longer available",
        },
        marked("status=401", 401, "invalid_api_key", false, "Unauthorized"),
        marked("status=402", 402, "account_unfunded", false, "credits are depleted"),
        marked("status=403", 403, "permission_denied", false, "reported as leaked"),
        marked("status=404", 404, "model_not_found", false, "Not Found"),
        marked("status=400", 400, "invalid_request", false, "contains an invalid argument"),
        marked("html=400", 400, "invalid_request", false, "400"),
        marked("no_such_marker", 400, "invalid_request", false, "is not a setting"),
        blocked("blocked=SAFETY", "SAFETY"),
        blocked("blocked=PROHIBITED_CONTENT", "PROHIBITED_CONTENT"),
        blocked("finish=SAFETY", "SAFETY"),
        blocked("finish=RECITATION", "RECITATION"),
        blocked("finish=SPII", "SPII"),
        marked("quota=day", 429, "daily_quota_exhausted", true, "exceeded your current quota"),
        marked("empty", 502, "empty_answer", true, "has no text"),
        marked("finish=MALFORMED_FUNCTION_CALL", 502, "empty_answer", true, "MALFORMED_FUNCTION"),
        marked("finish=MAX_TOKENS,empty", 502, "truncated_answer", false, "limit of output tokens"),
        marked("html=200", 502, "malformed_answer", true, "200 OK with text/html"),
        marked("status=302", 502, "malformed_answer", true, ""),
    ]
}

/// Errors that another attempt may not meet.
fn transient_errors() -> Vec<Failing> {
    let gone = |marker| marked(marker, 502, "upstream_connection", true, "connection to Gemini");
    vec![
        marked("status=429", 429, "rate_limited", true, "Resource has been exhausted"),
        marked("status=500", 502, "upstream_unavailable", true, "An internal error has occurred"),
        marked("status=502", 502, "upstream_unavailable", true, "Bad Gateway"),
        marked("html=502", 502, "upstream_unavailable", true, "502"),
        marked("html=503", 502, "upstream_unavailable", true, "503"),
        marked("status=499", 502, "upstream_unavailable", true, "Unknown error"),
        marked("status=503", 502, "upstream_unavailable", true, "The model is overloaded"),
        marked("status=504", 504, "upstream_timeout", true, "Deadline expired"),
        gone("close"),
        gone("truncate_body"),
    ]
}

/// The same chat with a unique key, so that no earlier refusal applies.
fn with_unique_key(chat: &Value) -> Value {
    let mut chat = chat.clone();
    if chat.get("credentials").is_none() {
        chat["credentials"] = json!({"gemini_api_key": format!("key-{}", fastrand::u64(..))});
    }
    chat
}

#[tokio::test]
async fn each_error_has_its_own_status_and_code() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let minute = |marker| marked(marker, 429, "rate_limited", true, "Please retry in 12.345");
    let minutes = [minute("quota=minute"), minute("quota=tokens")];
    for failing in permanent_errors().into_iter().chain(transient_errors()).chain(minutes) {
        let Failing { chat, status, code, retryable, detail_part } = failing;
        let single = answer(service.post("/chat", &with_unique_key(&chat))).await;
        assert_eq!(single.status.as_u16(), status, "{chat}: {single:?}");
        assert_eq!(single.body["code"], code, "{chat}");
        let detail = single.body["detail"].as_str().unwrap();
        assert!(detail.contains(detail_part), "{chat}: {detail}");
        assert!(!detail.contains('<'), "{chat}: HTML in {detail}");
        assert_eq!(single.headers.contains_key("retry-after"), status == 429, "{chat}");
        assert_eq!(single.body.as_object().unwrap().len(), 2, "{chat}: {}", single.body);

        let batch = json!({"requests": [with_unique_key(&chat)]});
        let batch = answer(service.post("/batch/chat", &batch)).await;
        assert_eq!(batch.status, StatusCode::OK);
        let item = &batch.body["results"][0];
        assert_eq!((&item["error_code"], &item["error"]), (&json!(code), &json!(detail)), "{chat}");
        assert_eq!(item["retryable"], retryable, "{chat}");
    }
    service.until_idle().await;
}

#[tokio::test]
async fn a_refusal_has_the_time_to_retry() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let retry_after = async |marker: &str| {
        let chat = with_unique_key(&json!({"prompt": format!("[[simulate:{marker}]]")}));
        let refused = answer(service.post("/chat", &chat)).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap()
    };
    // 12.345 s, rounded up to whole seconds.
    assert_eq!(retry_after("quota=minute").await, 13);
    assert_eq!(retry_after("quota=tokens").await, 13);
    // Midnight in California, whatever Gemini says. The longest day has 25 hours.
    let day = retry_after("quota=day").await;
    assert!((1..=25 * 3600).contains(&day) && day != 13, "{day}");
    // Gemini gives no delay.
    assert_eq!(retry_after("status=429").await, 1);
}

#[tokio::test]
async fn a_permanent_error_is_not_retried() {
    let service = Service::start().await;
    for Failing { chat, status, .. } in permanent_errors() {
        service.simulator.reset();
        let failed = answer(service.post("/chat", &with_unique_key(&chat))).await;
        assert_eq!(failed.status.as_u16(), status, "{chat}");
        assert_eq!(service.simulator.stats().calls, 1, "{chat}");
    }
}

#[tokio::test]
async fn a_transient_error_is_retried() {
    let service = Service::start().await;
    // Their prompts differ, so that each fails once.
    let once = transient_errors().into_iter().enumerate().map(|(n, Failing { chat, .. })| {
        let marker = chat["prompt"].as_str().unwrap().replace("]]", ",fail_times=1]]");
        format!("{n} {marker}")
    });
    let prompts: Vec<String> = once.collect();
    let answers = join_all(prompts.iter().map(|prompt| service.chat(prompt))).await;
    for ((n, prompt), answer) in prompts.iter().enumerate().zip(answers) {
        let expected = format!("Simulated answer to: {n} Hello");
        assert_eq!(answer.body["response"], expected, "{prompt}: {answer:?}");
    }
    let mut calls: Vec<_> =
        service.simulator.journal().into_iter().map(|call| call.prompt_text).collect();
    calls.sort();
    let mut twice: Vec<_> = prompts.iter().chain(&prompts).cloned().collect();
    twice.sort();
    assert_eq!(calls, twice);
    let retries = "gemini_gateway_retries_total{kind=\"chat\",reason=\"rate_limited\"}";
    assert_eq!(service.metric(retries).await, 1.0);
}

#[tokio::test]
async fn a_call_that_fails_twice_succeeds_the_third_time() {
    let service = Service::start().await;
    let chat = service.chat("retries [[simulate:fail_times=2]]").await;
    assert_eq!(chat.status, StatusCode::OK);
    assert_eq!(chat.body["response"], "Simulated answer to: retries");
    let journal = service.simulator.journal();
    let statuses: Vec<_> = journal.iter().map(|call| call.status).collect();
    assert_eq!(statuses, [Some(503), Some(503), Some(200)]);
    assert!(
        journal.iter().all(|call| call.body == journal[0].body),
        "every attempt sends the same body"
    );
}

#[tokio::test]
async fn a_call_is_sent_at_most_as_often_as_set() {
    for max_attempts in [1, 2, 3] {
        let service =
            Service::with(Options::default(), |config| config.max_attempts = max_attempts).await;
        let failed = service.chat("[[simulate:status=503]]").await;
        assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
        assert_eq!(failed.body["code"], "upstream_unavailable");
        assert_eq!(service.simulator.stats().calls, max_attempts as u64);
    }
}

#[tokio::test]
async fn a_retry_waits_as_long_as_gemini_says() {
    let options =
        Options { requests_per_minute: Some(1), minute_seconds: 3.0, ..Options::default() };
    let service = Service::with(options, |config| {
        config.quota_plan.minute = Duration::from_secs(3);
    })
    .await;
    let (one, other) = tokio::join!(service.chat("one"), service.chat("other"));
    assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
    let journal = service.simulator.journal();
    let statuses: Vec<_> = journal.iter().map(|call| call.status).collect();
    assert_eq!(statuses, [Some(200), Some(429), Some(200)]);
    assert!(journal[2].arrived_at - journal[0].arrived_at >= Duration::from_secs(3));
}

/// In this service's first version a call held its slot while it waited to retry.
#[tokio::test]
async fn a_call_that_waits_for_its_retry_holds_no_slot() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 1).await;
    service.register("one", 1).await;
    let named = |model: &str, prompt: &str| {
        let chat = json!({"prompt": prompt, "model": model, "external_semaphore_id": "one"});
        service.post("/chat", &chat)
    };
    let waiting = tokio::spawn(answer(named("gemini-a", "[[simulate:quota=minute]]")));
    until("it was refused", || !service.simulator.stats().refused_429.is_empty()).await;
    service.until("it waits", |limiter| limiter.in_flight == 0 && limiter.waiting == 1).await;

    assert_eq!(answer(named("gemini-b", "meanwhile")).await.status, StatusCode::OK);
    assert!(!waiting.is_finished(), "its next attempt is twelve seconds away");
    waiting.abort();
    service.until_idle().await;
    assert_eq!(service.simulator.stats().calls, 2);
}

#[tokio::test]
async fn an_item_that_waits_for_its_retry_does_not_delay_other_models() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 1).await;
    let batch = json!({"requests": [
        {"prompt": "[[simulate:quota=minute]]"},
        {"prompt": "a", "model": "gemini-a"},
        {"prompt": "b", "model": "gemini-b"},
    ]});
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    until("the others are done", || service.simulator.stats().answered == 2).await;
    service.until("it waits", |limiter| limiter.in_flight == 0 && limiter.waiting == 1).await;
    assert!(!batch.is_finished());
    batch.abort();
}

#[tokio::test]
async fn a_wait_past_the_deadline_is_refused_at_once() {
    let limit = Duration::from_secs(10);
    let service = Service::with(Options::default(), |config| config.request_timeout = limit);
    let service = service.await;
    let asked = Instant::now();
    let refused = service.chat("[[simulate:quota=minute]]").await;
    assert!(asked.elapsed() < limit, "it waited for {:?}", asked.elapsed());
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.body["code"], "rate_limited");
    assert_eq!(refused.headers["retry-after"], "13");
    assert_eq!(service.simulator.stats().calls, 1);
}

/// Gemini may still be working on the call and may charge for it: a second attempt would be charged
/// too.
#[tokio::test]
async fn an_attempt_that_times_out_is_not_retried() {
    let service = Service::with(Options::default(), |config| {
        config.upstream_timeout = Duration::from_millis(200);
    })
    .await;
    let given_up = service.chat(slow(60_000)).await;
    assert_eq!(given_up.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(given_up.body["code"], "upstream_timeout");
    service.until_idle().await;
    until("the upstream call is cancelled", || service.simulator.stats().cancelled == 1).await;
    assert_eq!(service.simulator.stats().calls, 1);

    let batch = json!({"requests": [{"prompt": slow(60_000)}]});
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.body["results"][0]["error_code"], "upstream_timeout");
    assert_eq!(batch.body["results"][0]["retryable"], true);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_a_connection_error() {
    let closed_port = closed_port();
    let service = Service::with(Options::default(), |config| {
        config.base_url = format!("http://127.0.0.1:{closed_port}");
        config.max_attempts = 2;
    })
    .await;
    let failed = service.chat("Hello").await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
    let detail = "cannot connect to Gemini: the connection was refused";
    assert_eq!(failed.body, json!({"detail": detail, "code": "upstream_connection"}));
    service.until_idle().await;
    let retries = "gemini_gateway_retries_total{kind=\"chat\",reason=\"upstream_connection\"}";
    assert_eq!(service.metric(retries).await, 1.0);
}
