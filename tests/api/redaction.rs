//! Keys in answers of Gemini never leave the service.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::stream::iter;
use gemini_concurrent_generation::gemini::ApiKey;
use http::{HeaderMap, Uri};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Service, answer, listen};

/// A key in Google's format.
const KEY: &str = "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY";
/// Another one, not used for any call.
const OTHER: &str = "AIzaSyB-1xSrke72PouQMnMX-a7eZSW0jkFMBWY";
const MASK: &str = "***************************************";
const GENERATE: &str = "/v1beta/models/m:generateContent";
const STREAM: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

/// A service with the key, over an upstream with one handler.
async fn service_over(
    answer: impl Fn(&HeaderMap) -> Response + Send + Sync + 'static,
) -> (Service, DropGuard) {
    let stop = CancellationToken::new();
    let answer = Arc::new(answer);
    let router = Router::new().fallback(async move |_: Uri, headers: HeaderMap| answer(&headers));
    let base_url = format!("http://{}", listen(router, &stop).await);
    let service = Service::over_with(&base_url, |config| {
        config.max_attempts = 1;
        // Without quotas, so that no call waits.
        config.request_timeout = Duration::from_secs(30);
        config.set_gemini_api_key(ApiKey::new(KEY).unwrap());
    });
    (service.await, stop.drop_guard())
}

fn respond(status: u16, content_type: &str, body: impl Into<Body>) -> Response {
    let response = Response::builder().status(status).header("content-type", content_type);
    response.body(body.into()).unwrap()
}

/// A body whose pieces are sent separately.
fn pieces(pieces: impl IntoIterator<Item = String>) -> Body {
    let pieces: Vec<_> = pieces.into_iter().map(Ok::<_, std::io::Error>).collect();
    Body::from_stream(iter(pieces))
}

fn suspended(key: &str) -> Value {
    let message = format!("Permission denied: Consumer 'api_key:{key}' has been suspended.");
    json!({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": message}})
}

fn event(data: &Value) -> String {
    format!("data: {data}\r\n\r\n")
}

async fn text(request: RequestBuilder) -> (u16, HeaderMap, String) {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned())
}

#[tokio::test]
async fn no_error_of_a_streamed_chat_shows_the_key() {
    let hello = json!({"candidates": [{"content": {"parts": [{"text": "Hello"}]}}]});
    let blocked = json!({"promptFeedback": {"blockReason": format!("OTHER {KEY}")}});
    let explained = json!({"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": KEY}});
    let finished = json!({"candidates": [{
        "content": {"parts": [{"text": "!"}]}, "finishReason": format!("NEW_{KEY}")
    }]});
    let withheld = json!({"candidates": [{
        "finishReason": "OTHER", "finishMessage": format!("said {OTHER} {KEY}")
    }]});
    for events in [
        vec![hello.clone(), suspended(KEY)],
        vec![suspended(KEY)],
        vec![suspended(OTHER)],
        vec![blocked],
        vec![explained],
        vec![hello, finished],
        vec![withheld],
    ] {
        let stream = events.iter().map(event).collect::<String>();
        let whole = stream.clone();
        let (service, _stop) =
            service_over(move |_| respond(200, "text/event-stream", whole.clone())).await;
        let chat = json!({"prompt": "Hi", "stream": true});
        let (_, _, shown) = text(service.post("/chat", &chat)).await;
        assert!(shown.contains("***") && !shown.contains("AIza"), "{shown}");
        service.until_idle().await;

        let letters: Vec<_> = stream.chars().map(String::from).collect();
        let (service, _stop) =
            service_over(move |_| respond(200, "text/event-stream", pieces(letters.clone()))).await;
        let (_, _, passed) = text(service.post(STREAM, &json!({}))).await;
        // A stream that begins with an error is a refusal, from which every key is redacted.
        let mut expected = stream.replace(KEY, MASK);
        if events[0].get("error").is_some() {
            expected = expected.replace(OTHER, MASK);
        }
        assert_eq!(passed, expected, "split into single characters");
        service.until_idle().await;
    }
}

#[tokio::test]
async fn no_chat_answer_shows_the_key_however_it_is_split_or_escaped() {
    let part = |text: &str| json!({"candidates": [{"content": {"parts": [{"text": text}]}}]});
    let (half, rest) = KEY.split_at(20);
    let mut parts = [part("It is "), part(half), part(&format!("{rest}, A")), part("IzaSy")];
    parts[3]["candidates"][0]["finishReason"] = "STOP".into();
    let stream: String = parts.iter().map(event).collect();
    let (service, _stop) =
        service_over(move |_| respond(200, "text/event-stream", stream.clone())).await;
    let (_, _, shown) = text(service.post("/chat", &json!({"prompt": "Hi", "stream": true}))).await;
    let events = shown.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    let expected = format!("It is {MASK}, AIzaSy");
    assert_eq!((&*deltas, &events.last().unwrap()["response"]), (&*expected, &json!(expected)));

    let escaped: String = KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let whole = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{half}"}},{{"text":"{rest} {escaped}"}}]}}}}]}}"#
    );
    let (service, _stop) =
        service_over(move |_| respond(200, "application/json", whole.clone())).await;
    assert_eq!(
        service.chat("Hi").await.body["response"],
        format!("{MASK} {}", "*".repeat(escaped.len()))
    );
}

/// The stream as relayed, when it arrives one character at a time.
async fn relayed(content_type: &'static str, stream: String) -> String {
    let letters: Vec<_> = stream.chars().map(String::from).collect();
    let (service, _stop) =
        service_over(move |_| respond(200, content_type, pieces(letters.clone()))).await;
    let (_, _, passed) = text(service.post(STREAM, &json!({}))).await;
    service.until_idle().await;
    passed
}

#[tokio::test]
async fn a_key_split_over_two_events_of_a_relayed_stream_is_redacted() {
    let part = |text: &str| json!({"candidates": [{"content": {"parts": [{"text": text}]}}]});
    let delta = |text: &str| json!({"choices": [{"delta": {"content": text}}]});
    let (first, second) = KEY.split_at(11);
    let encoded = "QUl6YVN5RC05dFNya2U3MlBvdVFNbk1YLWE3ZVpTVzBqa0ZNQldZ";
    for stream in [
        event(&part(first)) + &event(&part(second)),
        event(&delta(&format!("it is {first}"))) + &event(&delta(&format!("{second}."))),
        event(&part(first)) + &event(&json!({"usageMetadata": {}})) + &event(&part(second)),
        event(&part(&encoded[..13])) + &event(&part(&encoded[13..])),
    ] {
        let passed = relayed("text/event-stream", stream.clone()).await;
        for piece in [first, second, &encoded[..13], &encoded[13..51]] {
            assert!(!passed.contains(piece), "{passed}");
        }
        assert_eq!(passed.len(), stream.len());
    }
    let innocent = event(&part(first)) + &event(&part("and more")) + &event(&part(second));
    let passed = relayed("text/event-stream", innocent.replace(second, &second[1..])).await;
    assert_eq!(passed, innocent.replace(second, &second[1..]));
}

#[tokio::test]
async fn errors_in_a_relayed_stream_are_redacted_and_answers_are_not() {
    let part = json!({"candidates": [{"content": {"parts": [{"text": OTHER}]}}]});
    let stream = event(&part) + &event(&suspended(OTHER));
    let passed = relayed("text/event-stream", stream).await;
    assert_eq!(passed, event(&part) + &event(&suspended(MASK)));
    let list = |error: &Value| format!("[{part},\r\n{error:#}]");
    let passed = relayed("application/json", list(&suspended(OTHER))).await;
    assert_eq!(passed, list(&suspended(MASK)));
}

#[tokio::test]
async fn no_relayed_refusal_shows_a_key() {
    let html = format!("<html>{KEY} {OTHER} \u{e9}</html>");
    let latin = [html.as_bytes(), b"\xff\xe9"].concat();
    let array = json!([suspended(KEY)]).to_string();
    for (status, content_type, body) in [
        (403, "application/json", suspended(KEY).to_string().into_bytes()),
        (429, "text/html; charset=iso-8859-1", latin),
        (200, "application/json", array.into_bytes()),
        (206, "application/octet-stream", KEY.as_bytes().to_vec()),
    ] {
        for path in [GENERATE, STREAM, "/v1beta/models", "/v1beta/openai/chat/completions"] {
            let body = body.clone();
            let (service, _stop) =
                service_over(move |_| respond(status, content_type, body.clone())).await;
            let request = match path {
                "/v1beta/models" => service.get(path),
                _ => service.post(path, &json!({"model": "m"})),
            };
            let (_, _, shown) = text(request).await;
            assert!(!shown.contains(KEY), "{path}: {shown}");
            assert!(status < 400 || !shown.contains(OTHER), "{path}: {shown}");
        }
    }
}

#[tokio::test]
async fn an_unrequested_content_encoding_is_refused() {
    for status in [200, 403] {
        let (service, _stop) = service_over(move |asked| {
            assert_eq!(asked["accept-encoding"], "identity");
            let mut response = respond(status, "application/json", "encoded");
            response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
            response
        })
        .await;
        let list = service.get("/v1beta/models").header("accept-encoding", "gzip");
        let generate = service.post(GENERATE, &json!({})).header("accept-encoding", "br");
        for request in [list, generate] {
            let refused = answer(request).await;
            let reason = &refused.body["error"]["details"][0]["reason"];
            assert_eq!((refused.status.as_u16(), reason), (502, &json!("MALFORMED_ANSWER")));
        }
        assert_eq!(service.chat("Hi").await.status, if status == 200 { 502 } else { 403 });
        let (found, _, _) = text(service.get("/download/v1beta/files/x:download")).await;
        assert_eq!(found, if status == 200 { 200 } else { 502 }, "a file may be stored encoded");
    }
}

#[tokio::test]
async fn no_header_and_no_reason_phrase_shows_a_key() {
    for status in [200, 403] {
        let (service, _stop) = service_over(move |_| {
            let mut response = respond(status, "application/json", "{}");
            let headers = response.headers_mut();
            headers.insert("location", format!("https://x/?key={KEY}").parse().unwrap());
            headers.insert("x-debug", format!("{KEY},{OTHER}").parse().unwrap());
            let phrase = format!("Consumer {KEY} is suspended").into_bytes();
            let phrase = hyper::ext::ReasonPhrase::try_from(phrase).unwrap();
            response.extensions_mut().insert(phrase);
            response
        })
        .await;
        for (method, path) in [("GET", "/v1beta/models"), ("POST", GENERATE)] {
            let shown = raw(&service, method, path).await;
            assert!(shown.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}");
            assert!(shown.contains("***") && !shown.contains("AIza"), "{shown}");
        }
    }
}

/// The raw answer, status line included.
async fn raw(service: &Service, method: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(service.address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: 2\r\n\
         content-type: application/json\r\n\r\n{{}}",
        service.address
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_servers_key_is_redacted_from_calls_that_callers_pay_for() {
    let (service, _stop) =
        service_over(|_| respond(200, "application/json", format!("{{\"models\":\"{KEY}\"}}")))
            .await;
    let list = service.get("/v1beta/models").header("x-goog-api-key", "callers-key");
    let (_, headers, shown) = text(list).await;
    assert_eq!(shown, format!("{{\"models\":\"{MASK}\"}}"));
    assert_eq!(headers["content-length"], shown.len().to_string());
}

#[tokio::test]
async fn an_excessive_retry_delay_is_capped_by_its_quotas_window() {
    const MINUTE: Option<&str> = Some("GenerateRequestsPerMinutePerProjectPerModel");
    const DAY: Option<&str> = Some("GenerateRequestsPerDayPerProjectPerModel");
    let exhausted = "Resource has been exhausted (e.g. check quota).";
    for (delay, quota, message, longest) in [
        ("9223372036854775807s", MINUTE, "no", 601),
        ("9223372036854775807s", DAY, "no", 90_001),
        ("9223372036854775807s", None, exhausted, 3_600),
        // Only Gemini knows which quota this is, and so how long the wait may be.
        ("9223372036854775807s", None, "no", 90_001),
        ("3153600000s", MINUTE, "no", 601),
    ] {
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay
        })];
        details.extend(quota.map(|id| {
            json!({
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": id, "quotaValue": "18446744073709551615"}]
            })
        }));
        let body = json!({"error": {
            "code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": details
        }});
        let (service, _stop) =
            service_over(move |_| respond(429, "application/json", body.to_string())).await;
        for _ in 0..2 {
            let refused = service.chat("Hi").await;
            assert_eq!(refused.status, 429, "{}", refused.body);
            let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!(wait <= longest, "{quota:?}, {message}: {wait} s");
        }
        service.until_idle().await;
    }
}
