//! Streams: relayed byte for byte, without delay, and only while the client reads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gemini_concurrent_generation::gemini::{AnswerBuilder, Events};
use gemini_concurrent_generation::simulator::Options;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::corpus::{Exchange, corpus};
use crate::recording::Recording;
use crate::support::{Service, answer, listen};

const STREAM: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

async fn service_over(base_url: &str) -> Service {
    Service::over_with(base_url, |config| {
        config.concurrency_limit = 1;
        config.stream_idle_timeout = Duration::from_secs(30);
    })
    .await
}

/// Ways to split a stream: not at all, into bytes, and inside a line ending or a character.
fn cuts(bytes: &[u8]) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let at = |is: fn(u8) -> bool| {
        let mut pieces = vec![Vec::new()];
        for byte in bytes {
            pieces.last_mut().unwrap().push(*byte);
            if is(*byte) {
                pieces.push(Vec::new());
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    };
    vec![
        ("whole", vec![bytes.to_vec()]),
        ("by bytes", bytes.chunks(1).map(<[u8]>::to_vec).collect()),
        ("amid CR LF", at(|byte| byte == b'\r')),
        ("amid characters", at(|byte| byte >= 0xC0)),
    ]
}

#[tokio::test]
async fn a_stream_that_ends_without_a_finish_reason_is_a_failure() {
    let half = br#"data: {"candidates":[{"content":{"parts":[{"text":"first half"}]}}]}"#;
    let pieces = vec![[&half[..], b"\r\n\r\n"].concat()];
    let recording = Recording::play(200, "text/event-stream", pieces).await;
    let service = service_over(&recording.base_url).await;
    let chat = service.post("/chat", &json!({"prompt": "Hello", "stream": true}));
    let text = chat.send().await.unwrap().text().await.unwrap();
    let events: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    assert_eq!(events[0], json!({"delta": "first half"}));
    assert_eq!(events[1]["success"], false, "{text}");
    assert_eq!(events[1]["error_code"], "upstream_connection", "{text}");
    assert_eq!(events.len(), 2, "{text}");
}

#[tokio::test]
async fn recorded_streams_pass_byte_for_byte_however_they_are_split() {
    let streams = corpus().into_iter().filter(|exchange| exchange.class() == "stream-sse");
    let streams: Vec<Exchange> = streams.filter(|stream| stream.status.is_success()).collect();
    let mut bytes = 0;
    for Exchange { name, bytes: stream, .. } in &streams {
        for (how, pieces) in cuts(stream) {
            let recording = Recording::play(200, "text/event-stream", pieces).await;
            let service = service_over(&recording.base_url).await;
            let response = service.post(STREAM, &json!({"contents": []})).send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            assert!(response.bytes().await.unwrap() == stream[..], "{name}, {how}");
            service.until_idle().await;
        }
        bytes += stream.len();
    }
    println!("{} recorded streams of {bytes} bytes in all, each cut in 4 ways", streams.len());
    assert!(!streams.is_empty());
}

#[tokio::test]
async fn recorded_streams_are_read_event_by_event() {
    let mut answers = 0;
    for Exchange { name, bytes, .. } in
        corpus().iter().filter(|stream| stream.class() == "stream-sse")
    {
        let text = String::from_utf8_lossy(bytes);
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        let pieces: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
        let expected: String = pieces.iter().map(text_of).collect();
        let mut events = Events::default();
        events.extend(bytes);
        events.end();
        let mut answer = AnswerBuilder::default();
        let mut read = String::new();
        let mut ended = false;
        while let Some(event) = events.pop() {
            match answer.push(&event) {
                Ok(delta) => read += &delta,
                Err(_) => ended = true,
            }
        }
        if ended {
            assert!(expected.starts_with(&read), "{name}");
            continue;
        }
        assert_eq!(read, expected, "{name}");
        if let Ok(answer) = answer.finish() {
            answers += 1;
            let last = |field: &str| {
                let of = |piece: &Value| piece["usageMetadata"][field].as_u64();
                pieces
                    .iter()
                    .rev()
                    .find_map(|piece| piece.get("usageMetadata").map(|_| of(piece).unwrap_or(0)))
            };
            assert_eq!(answer.usage.prompt_tokens, last("promptTokenCount").unwrap_or(0), "{name}");
            assert_eq!(answer.usage.total_tokens, last("totalTokenCount").unwrap_or(0), "{name}");
        }
    }
    println!("{answers} recorded streams hold an answer");
    assert!(answers > 20, "{answers}");
}

/// The text of one event: the parts of the first candidate that have text and are not thoughts.
fn text_of(piece: &Value) -> String {
    let parts = piece["candidates"][0]["content"]["parts"].as_array();
    let texts = parts.into_iter().flatten().filter(|part| part["thought"] != true);
    texts.filter_map(|part| part["text"].as_str()).collect()
}

/// An upstream whose response body comes from a channel.
async fn upstream_from_channel(
    stop: &CancellationToken,
) -> (String, mpsc::Sender<std::io::Result<String>>) {
    let (sender, receiver) = mpsc::channel(1);
    let body = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    let body = Arc::new(Mutex::new(Some(Body::from_stream(body))));
    let router = Router::new().fallback(move || async move {
        let body = body.lock().unwrap().take().expect("it is asked once");
        ([("content-type", "text/event-stream")], body)
    });
    (format!("http://{}", listen(router, stop).await), sender)
}

async fn next_piece(response: &mut Response) -> String {
    String::from_utf8(response.chunk().await.unwrap().expect("more").to_vec()).unwrap()
}

#[tokio::test]
async fn each_event_is_passed_on_at_once_and_the_slot_is_held_until_the_last() {
    let stop = CancellationToken::new();
    let (base_url, upstream) = upstream_from_channel(&stop).await;
    let service = service_over(&base_url).await;
    upstream.send(Ok("data: 1\r\n\r\n".into())).await.unwrap();
    let mut response = service.post(STREAM, &json!({})).send().await.unwrap();
    assert_eq!(next_piece(&mut response).await, "data: 1\r\n\r\n");
    for n in 2..5 {
        upstream.send(Ok(format!("data: {n}\r\n\r\n"))).await.unwrap();
        assert_eq!(next_piece(&mut response).await, format!("data: {n}\r\n\r\n"));
        assert_eq!(service.gateway.limiter.occupancy().in_flight, 1);
    }
    drop(upstream);
    assert_eq!(response.chunk().await.unwrap(), None);
    service.until_idle().await;
}

#[tokio::test]
async fn a_client_that_disconnects_cancels_the_stream_and_frees_the_slot() {
    let stop = CancellationToken::new();
    let (base_url, upstream) = upstream_from_channel(&stop).await;
    let service = service_over(&base_url).await;
    let first = r#"data: {"usageMetadata":{"promptTokenCount":9}}"#;
    upstream.send(Ok(first.into())).await.unwrap();
    let mut response = service.post(STREAM, &json!({})).send().await.unwrap();
    next_piece(&mut response).await;
    drop(response);
    service.until_idle().await;
    upstream.closed().await;
    let calls = "gemini_gateway_calls_total{kind=\"stream_generate_content\",model=\"m\",\
                 outcome=\"cancelled\"}";
    assert_eq!(service.metric(calls).await, 1.0);
    let tokens = "gemini_gateway_tokens_total{model=\"m\",type=\"prompt\"}";
    assert_eq!(service.metric(tokens).await, 9.0, "Gemini's last reported count");
}

#[tokio::test]
async fn a_stream_that_breaks_or_stalls_upstream_is_aborted() {
    for breaks in [true, false] {
        let stop = CancellationToken::new();
        let (base_url, upstream) = upstream_from_channel(&stop).await;
        let service = Service::with(Options::default(), |config| {
            config.base_url = base_url;
            // A broken stream must not count as a stalled one, even on a busy machine.
            config.stream_idle_timeout = Duration::from_millis(if breaks { 60_000 } else { 100 });
        })
        .await;
        upstream.send(Ok("data: 1\r\n\r\n".into())).await.unwrap();
        let mut response = service.post(STREAM, &json!({})).send().await.unwrap();
        next_piece(&mut response).await;
        if breaks {
            upstream.send(Err(std::io::Error::other("broken"))).await.unwrap();
        }
        assert!(
            response.chunk().await.is_err(),
            "a regular end would mean that the answer is complete"
        );
        service.until_idle().await;
        let outcome = if breaks { "upstream_connection" } else { "upstream_timeout" };
        let calls = format!(
            "gemini_gateway_calls_total{{kind=\"stream_generate_content\",model=\"m\",\
             outcome=\"{outcome}\"}}"
        );
        assert_eq!(service.metric(&calls).await, 1.0);
        if !breaks {
            upstream.closed().await;
        }
    }
}

/// The events of a stream, as JSON.
async fn events(response: Response) -> Vec<Value> {
    let text = response.text().await.unwrap();
    assert!(text.ends_with("\n\n"), "{text}");
    let events = text.trim_end().split("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

#[tokio::test]
async fn a_streamed_chat_sends_each_delta_and_the_full_text_at_the_end() {
    let service = Service::start().await;
    let asked = json!({"prompt": "Why is the sky blue, and the sea?", "stream": true});
    let response = service.post("/chat", &asked).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = events(response).await;
    let last = events.pop().unwrap();
    assert!(events.len() > 1, "{events:?}");
    let text: String = events.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, "Simulated answer to: Why is the sky blue, and the sea?");
    let whole = service.chat("Why is the sky blue, and the sea?").await.body;
    assert_eq!(last, whole, "it equals the answer of an unstreamed chat");
    assert_eq!(last["response"], text);
    service.until_idle().await;
}

#[tokio::test]
async fn a_streamed_chat_that_fails_before_its_first_text_gets_an_error_response() {
    let service = Service::start().await;
    for (marker, status, code) in [
        ("status=400", 400, "invalid_request"),
        ("blocked=SAFETY", 400, "content_blocked"),
        ("finish=SAFETY", 400, "content_blocked"),
        ("empty", 502, "empty_answer"),
    ] {
        let asked = json!({"prompt": format!("[[simulate:{marker}]]"), "stream": true});
        let failed = answer(service.post("/chat", &asked)).await;
        assert_eq!(
            (failed.status.as_u16(), &failed.body["code"]),
            (status, &json!(code)),
            "{marker}"
        );
    }
    let asked = json!({"prompt": "[[simulate:fail_times=2]]Hi", "stream": true});
    let response = service.post("/chat", &asked).send().await.unwrap();
    assert_eq!(events(response).await.last().unwrap()["success"], true);
    let batch = json!({"requests": [{"prompt": "Hi"}, {"prompt": "Hi", "stream": true}]});
    let refused = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(refused.body["detail"][0]["loc"], json!(["body", "requests", 1, "stream"]));
    service.until_idle().await;
}

#[tokio::test]
async fn a_streamed_chat_that_fails_midway_reports_it_in_the_last_event() {
    let text = |text: &str| json!({"candidates": [{"content": {"parts": [{"text": text}]}}]});
    let blocked = json!({"candidates": [{"finishReason": "SAFETY"}]});
    let broken = json!({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}});
    for (end, code, retryable) in [
        (Some(blocked), "content_blocked", false),
        (Some(broken), "upstream_unavailable", true),
        (None, "upstream_connection", true),
    ] {
        let stop = CancellationToken::new();
        let (base_url, upstream) = upstream_from_channel(&stop).await;
        let service = service_over(&base_url).await;
        upstream.send(Ok(format!("data: {}\r\n\r\n", text("Once")))).await.unwrap();
        let asked = json!({"prompt": "Tell", "stream": true});
        let response = service.post("/chat", &asked).send().await.unwrap();
        let end = end.map(|end| format!("data: {end}\r\n\r\n"));
        upstream.send(end.ok_or_else(|| std::io::Error::other("broken"))).await.unwrap();
        drop(upstream);
        let events = events(response).await;
        assert_eq!(events[0], json!({"delta": "Once"}));
        let [_, last] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&last["success"], &last["error_code"]), (&json!(false), &json!(code)));
        assert_eq!(
            (&last["retryable"], &last["model"]),
            (&json!(retryable), &json!("gemini-3.5-flash-lite"))
        );
        service.until_idle().await;
    }
}
