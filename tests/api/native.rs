//! Gemini's own surface: what is relayed unchanged, who pays, and what passes the limiter.

use std::time::Duration;

use gemini_concurrent_generation::simulator::Options;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::plan;
use crate::recording::Recording;
use crate::support::{ADMIN_KEY, Answer, SERVER_KEY, Service, answer, contents, slow};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";

/// A request on Gemini's surface with the caller's own key.
fn with_own_key(service: &Service, path: &str, prompt: &str) -> RequestBuilder {
    service.post(path, &contents(prompt)).header("x-goog-api-key", "callers-key")
}

/// The status, error status and message of an answer in Google's error format.
fn error(answer: &Answer) -> (u16, &str, &str) {
    let error = &answer.body["error"];
    assert_eq!(error["code"], answer.status.as_u16(), "{}", answer.body);
    let reason = error["details"][0]["reason"].as_str().unwrap_or_default();
    (answer.status.as_u16(), error["status"].as_str().unwrap(), reason)
}

#[tokio::test]
async fn requests_and_answers_are_relayed_unchanged() {
    let body = "{\r\n \"candidates\": [ {\"content\": {\"parts\": [{\"text\": \"é\"}]}} ] }";
    let recording = Recording::play(203, "application/json; v=1", vec![body.into()]).await;
    let service = Service::over(&format!("{}/some/prefix", recording.base_url)).await;
    let asked = "{ \"contents\" :[{\"parts\":[{\"text\":\"ü\"}]}], \"novelty\": null}";
    for version in ["v1", "v1beta", "v1alpha"] {
        let path = format!(
            "/{version}/models/m:generateContent?key=callers-key&a=%2F&b&k%65y=callers-key"
        );
        let request = service.post(&path, &Value::Null).body(asked);
        let request = request.header("x-goog-api-client", "sdk/1").header("te", "trailers");
        let request = request.header("connection", "x-mine").header("x-mine", "1");
        let response = request.header("accept-encoding", "gzip").send().await.unwrap();
        assert_eq!(response.status(), 203);
        let headers = response.headers();
        assert_eq!(headers["content-type"], "application/json; v=1");
        assert_eq!(headers["x-recorded"], "yes");
        for dropped in ["x-hop", "alt-svc", "transfer-encoding"] {
            assert!(!headers.contains_key(dropped), "{dropped}");
        }
        assert_eq!(response.text().await.unwrap(), body);

        let sent = recording.requests().pop().unwrap();
        let (head, sent_body) = sent.split_once("\r\n\r\n").unwrap();
        let line = format!("POST /some/prefix/{version}/models/m:generateContent?a=%2F&b HTTP/1.1");
        assert_eq!(head.lines().next(), Some(&*line));
        assert_eq!(sent_body, asked);
        let head = head.to_lowercase();
        for line in
            ["x-goog-api-key: callers-key", "x-goog-api-client: sdk/1", "accept-encoding: identity"]
        {
            assert!(head.lines().any(|sent| sent == line), "{head}");
        }
        for dropped in ["\nte:", "\nx-mine:", "\nauthorization:", "gzip"] {
            assert!(!head.contains(dropped), "{head}");
        }
    }
}

#[tokio::test]
async fn the_credential_is_found_in_three_tiers() {
    let service = Service::start().await;
    let bearer = |key: &str| ("authorization", format!("Bearer {key}"));
    let google = |key: &str| ("x-goog-api-key", key.to_owned());
    let admin = |key: &str| ("admin-api-key", key.to_owned());
    for (headers, query, payer) in [
        (vec![admin(ADMIN_KEY), google("callers-key")], "", SERVER_KEY),
        (vec![google(ADMIN_KEY)], "", SERVER_KEY),
        (vec![bearer(ADMIN_KEY)], "", SERVER_KEY),
        (vec![google("callers-key")], "?key=the-admin-key", SERVER_KEY),
        (vec![google("callers-key")], "", "callers-key"),
        (vec![bearer("callers-key")], "", "callers-key"),
        (vec![], "?key=callers-key", "callers-key"),
        (vec![admin("wrong"), google("callers-key")], "", "callers-key"),
        (vec![google(" ")], "?key=", SERVER_KEY),
        (vec![], "", SERVER_KEY),
    ] {
        service.simulator.reset();
        let request = service.post(&format!("{GENERATE}{query}"), &contents("Hello"));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        assert_eq!(answer(request).await.status, 200, "{headers:?}");
        assert_eq!(service.simulator.journal()[0].api_key, payer, "{headers:?} {query}");
    }
}

#[tokio::test]
async fn the_services_errors_use_googles_error_format() {
    let without_fallback = Service::with(Options::default(), |config| {
        config.environment_fallback = false;
        config.max_body_bytes = 1000;
        config.max_queued_requests = 0;
        config.concurrency_limit = 1;
    })
    .await;
    let service = &without_fallback;
    let refused = answer(service.post(GENERATE, &contents("Hello"))).await;
    assert_eq!(error(&refused), (401, "UNAUTHENTICATED", "UNAUTHENTICATED"));
    let refused =
        answer(service.post(GENERATE, &contents("x")).header("x-goog-api-key", "a b")).await;
    assert_eq!(error(&refused).0, 401);
    // An unreadable key is not the same as no key.
    let service_that_pays = Service::start().await;
    let odd = service_that_pays.post(GENERATE, &contents("x")).header("x-goog-api-key", "é");
    assert_eq!(error(&answer(odd).await).0, 401);
    let refused = answer(with_own_key(service, GENERATE, &"x".repeat(1000))).await;
    assert_eq!(error(&refused), (413, "INVALID_ARGUMENT", "BODY_TOO_LARGE"));
    let named =
        with_own_key(service, GENERATE, "Hello").header("X-External-Semaphore-Id", "no-such");
    assert_eq!(error(&answer(named).await), (404, "NOT_FOUND", "SEMAPHORE_NOT_FOUND"));
    // Sent as raw bytes: a client would resolve the dots.
    for path in
        ["/v1beta/models/../x", "/v1beta/models/%2e%2E/x:generateContent", "/v1/models/a b:predict"]
    {
        let path = path.replace(' ', "%20");
        let request = format!("POST {path}?key=callers-key HTTP/1.0\r\n\r\n");
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 400") && answer.contains("INVALID_PATH"), "{answer}");
    }
    let held = tokio::spawn(with_own_key(service, GENERATE, &slow(60_000)).send());
    service.until("one is in flight", |limiter| limiter.in_flight == 1).await;
    let refused = answer(with_own_key(service, GENERATE, "Hello")).await;
    assert_eq!(error(&refused), (503, "UNAVAILABLE", "QUEUE_FULL"));
    assert!(refused.headers.contains_key("retry-after"));
    held.abort();
    service.until_idle().await;

    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:rpd=1", "");
    })
    .await;
    assert_eq!(answer(with_own_key(&service, GENERATE, "Hello")).await.status, 200);
    let refused = answer(with_own_key(&service, GENERATE, "Hello")).await;
    assert_eq!(error(&refused), (429, "RESOURCE_EXHAUSTED", "DAILY_QUOTA_EXHAUSTED"));
    let retry = &refused.body["error"]["details"][1];
    assert_eq!(retry["@type"], "type.googleapis.com/google.rpc.RetryInfo");
    let seconds = retry["retryDelay"].as_str().unwrap().strip_suffix('s').unwrap();
    assert!(seconds.parse::<f64>().unwrap() > 0.0, "{retry}");
    assert_eq!(service.simulator.stats().calls, 1);
}

#[tokio::test]
async fn geminis_errors_are_relayed_without_the_key() {
    let body = format!(
        "{{\n  \"error\": {{\"code\": 403, \"message\": \"Consumer 'api_key:{SERVER_KEY}' is \
         suspended.\", \"status\": \"PERMISSION_DENIED\"}}\n}}\n"
    );
    let recording = Recording::play(403, "application/json", vec![body.clone().into()]).await;
    let service = Service::over(&recording.base_url).await;
    let response = service.post(GENERATE, &contents("Hello")).send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-recorded"]),
        (403, &"yes".parse().unwrap())
    );
    assert_eq!(response.text().await.unwrap(), body.replace(SERVER_KEY, "**************"));

    let service = Service::start().await;
    let refused = answer(with_own_key(&service, GENERATE, "[[simulate:status=400]]")).await;
    assert_eq!(error(&refused).1, "INVALID_ARGUMENT");
    assert_eq!(service.simulator.stats().calls, 1, "it is sent once");
    service.until_idle().await;
}

#[tokio::test]
async fn a_transient_error_is_retried_until_part_of_the_answer_was_relayed() {
    let service = Service::start().await;
    for (marker, attempts) in
        [("fail_times=2", 3), ("fail_times=1,close", 2), ("fail_times=1,truncate_body", 2)]
    {
        service.simulator.reset();
        let answer =
            answer(with_own_key(&service, GENERATE, &format!("[[simulate:{marker}]]Hi"))).await;
        assert_eq!(answer.status, 200, "{marker}: {}", answer.body);
        assert_eq!(service.simulator.stats().calls, attempts, "{marker}");
    }
    service.simulator.reset();
    let failed = answer(with_own_key(&service, GENERATE, "[[simulate:close]]")).await;
    assert_eq!(error(&failed), (502, "UNAVAILABLE", "UPSTREAM_CONNECTION"));
    assert_eq!(service.simulator.stats().calls, 2, "Gemini may have run it");
    service.until_idle().await;
}

#[tokio::test]
async fn generating_calls_pass_the_limiter_however_their_path_is_encoded() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 1).await;
    assert_eq!(service.register("jobs", 1).await.status, 201);
    let held = tokio::spawn(answer(with_own_key(&service, GENERATE, &slow(60_000))));
    service.until("one is in flight", |limiter| limiter.in_flight == 1).await;
    let mut requests = Vec::new();
    for path in [
        "/v1/models/m:generateContent",
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        "/v1beta/models/m:countTokens",
        "/v1beta/models/m:embedContent",
        "/v1beta/models/m:batchEmbedContents",
        "/v1beta/models/m:predictLongRunning",
        "/v1beta/models/m:batchGenerateContent",
        "/v1beta/models/m:inventedTomorrow",
        "/v1beta/interactions",
        "/v1/interactions/",
        "//v1beta//models/m:generateContent",
        "/v1//chat/completions",
        "/v1beta/tunedModels/m:generateContent",
        "/v1beta/models/m%3AgenerateContent",
        "/v1beta/models/%6D:generate%43ontent/",
        "/v1beta/openai/chat/completions",
        "/v1beta/%6fpenai/chat/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
    ] {
        let mut body = contents("Hello");
        body["model"] = "m".into();
        let request = service.post(path, &body).header("x-external-semaphore-id", "jobs");
        requests.push(tokio::spawn(request.send()));
        service.until(path, |limiter| limiter.waiting == requests.len()).await;
    }
    // A call that generates nothing does not wait in the queue.
    let listed = answer(service.get("/v1beta/models")).await;
    assert_eq!(listed.status, 200);
    assert_eq!(service.gateway.limiter.occupancy().in_flight, 1);
    requests.iter().for_each(|request| request.abort());
    held.abort();
    service.until_idle().await;
}

#[tokio::test]
async fn count_tokens_calls_do_not_use_the_quota_of_generation() {
    let service =
        Service::with(Options::default(), |config| config.quota_plan = plan("*:rpd=1", "")).await;
    for _ in 0..3 {
        let path = "/v1beta/models/gemini-3.5-flash-lite:countTokens";
        let counted = answer(with_own_key(&service, path, "How many are these?")).await;
        assert_eq!(counted.status, 200);
        assert!(counted.body["totalTokens"].as_u64() > Some(0), "{}", counted.body);
    }
    assert_eq!(answer(with_own_key(&service, GENERATE, "Hello")).await.status, 200);
    assert_eq!(answer(with_own_key(&service, GENERATE, "Hello")).await.status, 429);
}

#[tokio::test]
async fn a_call_is_charged_at_its_reported_cost() {
    let service = Service::with(Options::default(), |config| {
        config.quota_plan = plan("*:tpm=1000", "");
    })
    .await;
    let spent = async || {
        let limits = service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY);
        answer(limits).await.body["limits"][0]["input_tokens_per_minute"]["used"].clone()
    };
    let path = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent?alt=sse";
    // The estimate is one token for every four bytes. The simulator counts one for each of these.
    let stream = with_own_key(&service, path, &"日本".repeat(50)).send().await.unwrap();
    assert!(stream.text().await.unwrap().contains("usageMetadata"));
    let cost = service.simulator.stats().admitted_input_tokens;
    assert_eq!(spent().await, cost);
    let metric = "gemini_gateway_tokens_total{model=\"gemini-3.5-flash-lite\",type=\"prompt\"}";
    assert_eq!(service.metric(metric).await, cost as f64);
    let calls = "gemini_gateway_calls_total{kind=\"stream_generate_content\",\
                 model=\"gemini-3.5-flash-lite\",outcome=\"success\"}";
    assert_eq!(service.metric(calls).await, 1.0);
}

#[tokio::test]
async fn calls_that_generate_nothing_are_relayed_with_method_and_body() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let client = reqwest::Client::new();
    for (method, path, body) in [
        (Method::GET, "/v1beta/files?pageSize=2", ""),
        (Method::DELETE, "/v1beta/cachedContents/a", ""),
        (Method::PATCH, "/v1beta/cachedContents/a?updateMask=ttl", "{\"ttl\":\"60s\"}"),
        (Method::POST, "/v1beta/batches/a:cancel", ""),
        (Method::POST, "/upload/v1beta/files?uploadType=media", "some bytes"),
        (Method::GET, "/download/v1beta/files/a:download?alt=media", ""),
    ] {
        let request = client.request(method.clone(), service.url(path)).body(body);
        let response = request.header("x-goog-api-key", "callers-key").send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.text().await.unwrap()),
            (200, "{}".into())
        );
        let sent = recording.requests().pop().unwrap();
        assert!(sent.starts_with(&format!("{method} {path} HTTP/1.1\r\n")), "{sent}");
        assert!(sent.contains("x-goog-api-key: callers-key"), "{sent}");
        assert!(sent.ends_with(&format!("\r\n\r\n{body}")), "{sent}");
    }
    assert_eq!(service.metric("gemini_gateway_queue_wait_seconds_count").await, 0.0);
}

#[tokio::test]
async fn an_attempt_and_an_idle_stream_time_out() {
    let service = Service::with(Options::default(), |config| {
        config.upstream_timeout = Duration::from_millis(100);
    })
    .await;
    let failed = answer(with_own_key(&service, GENERATE, &slow(60_000))).await;
    assert_eq!(error(&failed), (504, "DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"));
    service.until_idle().await;
}
