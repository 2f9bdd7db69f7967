//! Streams that fail: each gets the right outcome, on every surface, for the client, the limits and
//! the metrics.

use gemini_concurrent_generation::gemini::StreamMonitor;
use gemini_concurrent_generation::simulator::Options;
use http::{HeaderMap, HeaderValue};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::corpus::{Exchange, corpus, later_corpus};
use crate::recording::Recording;
use crate::support::{Answer, Service, answer};

const SSE: &str = "/v1beta/models/gemini-m:streamGenerateContent?alt=sse";
const LIST: &str = "/v1beta/models/gemini-m:streamGenerateContent";
const OPENAI: &str = "/v1/chat/completions";

const HALF: &str =
    r#"{"candidates":[{"content":{"parts":[{"text":"first half"}],"role":"model"},"index":0}]}"#;
const PRETTY: &str = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"The model is \
    overloaded. Please try again later.\",\n    \"status\": \"UNAVAILABLE\"\n  }\n}\n";

/// A streaming request's body for a path.
fn streamed(path: &str, prompt: &str) -> Value {
    match path {
        OPENAI => json!({
            "model": "gemini-m", "stream": true, "messages": [{"role": "user", "content": prompt}]
        }),
        "/chat" => json!({"prompt": prompt, "stream": true, "model": "gemini-m"}),
        _ => json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}]}),
    }
}

fn kind(path: &str) -> &'static str {
    match path {
        OPENAI => "openai_chat",
        "/chat" => "chat",
        _ => "stream_generate_content",
    }
}

async fn calls(service: &Service, path: &str, outcome: &str) -> f64 {
    let kind = kind(path);
    let labels = format!("kind=\"{kind}\",model=\"gemini-m\",outcome=\"{outcome}\"");
    service.metric(&format!("gemini_gateway_calls_total{{{labels}}}")).await
}

/// The events of a chat whose upstream answers with these pieces.
async fn chat(pieces: &[&str]) -> (Vec<Value>, Service) {
    let pieces = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
    let recording = Recording::play(200, "text/event-stream", pieces).await;
    let service = Service::over(&recording.base_url).await;
    let response = service.post("/chat", &streamed("/chat", "x")).send().await.unwrap();
    let text = response.text().await.unwrap();
    let events = text.split_terminator("\n\n");
    let json = |event: &str| {
        let event = event.strip_prefix("data: ").unwrap_or(event);
        serde_json::from_str(event).unwrap_or_else(|_| panic!("{text}"))
    };
    (events.map(json).collect(), service)
}

fn event(data: &str) -> String {
    format!("data: {data}\r\n\r\n")
}

#[tokio::test]
async fn a_midstream_error_is_the_last_event_of_a_chat() {
    let line =
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    for error in [
        PRETTY.to_owned(),
        PRETTY.replace('\n', "\r\n"),
        line.to_owned(),
        format!("[{line}]\n"),
        event(line),
        event(&format!("[{line}]")),
        format!("event: error\n{}", event(line)),
        format!(": ping\n\nupstream says {line}\n"),
    ] {
        let (events, service) = chat(&[&event(HALF), &error]).await;
        let [half, failed] = &events[..] else { panic!("{error}: {events:?}") };
        assert_eq!(*half, json!({"delta": "first half"}), "{error}");
        assert_eq!(failed["success"], false, "{error}");
        assert_eq!(failed["error_code"], "upstream_unavailable", "{error}");
        assert!(
            failed["error"].as_str().unwrap().starts_with("The model is overloaded"),
            "{error}"
        );
        assert_eq!(calls(&service, "/chat", "upstream_unavailable").await, 1.0, "{error}");
        service.until_idle().await;
    }
}

#[tokio::test]
async fn a_chat_that_ends_in_foreign_text_is_malformed_unless_it_was_complete() {
    let last =
        event(r#"{"candidates":[{"content":{"parts":[{"text":"!"}]},"finishReason":"STOP"}]}"#);
    let (events, service) = chat(&[&event(HALF), "upstream connect error\n"]).await;
    assert_eq!(events[1]["error_code"], "malformed_answer", "{events:?}");
    assert_eq!(calls(&service, "/chat", "malformed_answer").await, 1.0);
    let (events, service) = chat(&[&event(HALF), "a proxy's line\n\n", &last]).await;
    assert_eq!(events[2]["response"], "first half!", "{events:?}");
    assert_eq!(calls(&service, "/chat", "success").await, 1.0);
    // Before any text, the status reports the error.
    let (events, _) = chat(&["upstream connect error\n"]).await;
    assert_eq!(events[0]["code"], "malformed_answer", "{events:?}");
}

#[tokio::test]
async fn a_finished_stream_holds_no_slot_for_a_slow_reader() {
    let text = "x".repeat(1000);
    let piece = event(&HALF.replace("first half", &text)).repeat(100).into_bytes();
    let last =
        event(r#"{"candidates":[{"content":{"parts":[{"text":"!"}]},"finishReason":"STOP"}]}"#);
    let mut pieces = vec![piece; 30];
    pieces.push(last.into_bytes());
    let recording = Recording::play(200, "text/event-stream", pieces).await;
    let service = Service::over(&recording.base_url).await;
    for path in ["/chat", SSE] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = socket.connect(service.address).await.unwrap();
        let body = streamed(path, "x").to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes()).await.unwrap();
        client.readable().await.unwrap();
        service.until_idle().await;
        assert_eq!(calls(&service, path, "success").await, 1.0, "{path}");
        // What was read ahead is relayed completely.
        let mut read = 0;
        let mut end = Vec::new();
        while !end.ends_with(b"0\r\n\r\n") {
            let mut piece = vec![0; 64 * 1024];
            let more = client.read(&mut piece).await.unwrap();
            assert!(more > 0, "it ended after {read} bytes");
            read += more;
            end.extend_from_slice(&piece[..more]);
            end.drain(..end.len().saturating_sub(2048));
        }
        assert!(read > 3_000_000, "{read}");
        assert!(String::from_utf8_lossy(&end).contains("STOP"), "{path}");
    }
}

#[tokio::test]
async fn a_chat_ignores_what_proxies_add_to_the_stream() {
    let last =
        event(r#"{"candidates":[{"content":{"parts":[{"text":"!"}]},"finishReason":"STOP"}]}"#);
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let (events, service) = chat(&[ping, &event(HALF), ping, &last, &event("[DONE]")]).await;
    assert_eq!(events.last().unwrap()["response"], "first half!", "{events:?}");
    assert_eq!(calls(&service, "/chat", "success").await, 1.0);
    let (events, _) = chat(&[&event(HALF), ping, &event("[DONE]")]).await;
    assert_eq!(events.last().unwrap()["success"], false, "{events:?}");
}

#[tokio::test]
async fn surrogate_halves_in_two_events_are_joined() {
    let piece = |text: &str, more: &str| {
        event(&format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}}{more}}}]}}"#
        ))
    };
    let stop = r#","finishReason":"STOP""#;
    let (events, _) = chat(&[&piece(r"a \ud83d", ""), &piece(r"\ude00 b \ud83d", stop)]).await;
    assert_eq!(events.last().unwrap()["response"], "a 😀 b \u{FFFD}", "{events:?}");
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, "a 😀 b \u{FFFD}");
}

#[tokio::test]
async fn a_chat_with_a_lone_surrogate_is_kept() {
    let body = r#"{"candidates":[{"content":{"parts":[{"text":"bad \ud83d end"}]},"finishReason":"STOP"}],
        "usageMetadata":{"promptTokenCount":"5","candidatesTokenCount":2.0,"totalTokenCount":7}}"#;
    let recording = Recording::play(200, "application/json", vec![body.into()]).await;
    let service = Service::over(&recording.base_url).await;
    let answered = service.chat("x").await;
    assert_eq!(answered.body["response"], "bad \u{FFFD} end", "{answered:?}");
    assert_eq!(answered.body["usage"]["prompt_tokens"], 5);
    assert_eq!(recording.requests().len(), 1);
    // On Gemini's own surface it is relayed unchanged, and its usage is read nevertheless.
    let path = "/v1beta/models/gemini-m:generateContent";
    let response = service.post(path, &streamed(path, "x")).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), body);
    let tokens = "gemini_gateway_tokens_total{model=\"gemini-m\",type=\"prompt\"}";
    assert_eq!(service.metric(tokens).await, 5.0);
}

#[tokio::test]
async fn a_chat_blocked_midway_counts_as_blocked() {
    let blocked = event(r#"{"candidates":[{"finishReason":"SAFETY"}]}"#);
    for pieces in [vec![&*event(HALF), &*blocked], vec![&*(event(HALF) + &blocked)]] {
        let (events, service) = chat(&pieces).await;
        assert_eq!(events.last().unwrap()["error_code"], "content_blocked", "{events:?}");
        assert_eq!(calls(&service, "/chat", "content_blocked").await, 1.0);
        assert_eq!(calls(&service, "/chat", "cancelled").await, 0.0);
    }
}

#[tokio::test]
async fn a_transient_error_in_the_first_event_is_retried_on_every_surface() {
    for path in ["/chat", SSE, LIST, OPENAI] {
        let service = Service::start().await;
        let prompt = "[[simulate:fail_after=0,fail_times=1]]Hello";
        let response = service.post(path, &streamed(path, prompt)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let text = response.text().await.unwrap();
        assert!(!text.contains("error"), "{path}: {text}");
        let labels = format!("kind=\"{}\",reason=\"upstream_unavailable\"", kind(path));
        let retries = format!("gemini_gateway_retries_total{{{labels}}}");
        assert_eq!(service.metric(&retries).await, 1.0, "{path}");
        assert_eq!(calls(&service, path, "success").await, 1.0, "{path}");
        service.until_idle().await;
    }
}

#[tokio::test]
async fn a_multiline_error_in_the_first_event_is_reported_as_that_error() {
    let lines = PRETTY.trim_end().replace('\n', "\ndata: ");
    for answer in [format!("data: {lines}\n\n"), format!("data:\n\n: hi\ndata: {lines}\r\n\r\n")] {
        let pieces = vec![answer.clone().into_bytes()];
        let recording = Recording::play(200, "text/event-stream", pieces).await;
        let service = Service::with(Options::default(), |config| {
            config.base_url.clone_from(&recording.base_url);
            config.max_attempts = 1;
        })
        .await;
        for path in ["/chat", SSE, OPENAI] {
            let response = service.post(path, &streamed(path, "x")).send().await.unwrap();
            // On Gemini's own surface the error is relayed unchanged.
            let is_passed_on = path == SSE && response.status() == StatusCode::OK;
            assert!(is_passed_on || response.status().is_server_error(), "{path}: {answer}");
            service.until_idle().await;
            // Gemini has not accepted the model yet, so it has no metric series of its own.
            let labels = format!("kind=\"{}\",model=\"other\"", kind(path));
            let name =
                format!("gemini_gateway_calls_total{{{labels},outcome=\"upstream_unavailable\"}}");
            assert_eq!(service.metric(&name).await, 1.0, "{path}");
        }
    }
}

#[tokio::test]
async fn a_midstream_error_settles_as_that_error_on_every_surface() {
    for path in ["/chat", SSE, LIST, OPENAI] {
        let service = Service::start().await;
        let overloaded = streamed(path, "[[simulate:fail_after=2]]Hello");
        let text = service.post(path, &overloaded).send().await.unwrap().text().await.unwrap();
        assert!(text.contains("overloaded"), "{path}: {text}");
        service.until_idle().await;
        assert_eq!(calls(&service, path, "upstream_unavailable").await, 1.0, "{path}");
        assert_eq!(service.only_account().await["concurrency"]["limit"], 12, "{path}");

        let service = Service::start().await;
        let refused = streamed(path, "[[simulate:fail_after=1,quota=minute]]Hello");
        let text = service.post(path, &refused).send().await.unwrap().text().await.unwrap();
        assert!(text.contains("exceeded your current quota"), "{path}: {text}");
        service.until_idle().await;
        assert_eq!(calls(&service, path, "rate_limited").await, 1.0, "{path}");
        let account = service.only_account().await;
        let found = &account["requests_per_minute"];
        assert_eq!((&found["limit"], &found["source"]), (&json!(10), &json!("gemini")), "{path}");
        assert!(account["paused_for_seconds"].as_f64().unwrap() > 1.0, "{path}: {account}");
    }
}

#[tokio::test]
async fn a_relayed_stream_is_unchanged_and_counted_by_its_outcome() {
    let chunk = r#"{"choices":[{"delta":{"content":"a"},"index":0}]}"#;
    let list = format!("[{HALF}\r\n");
    let odd_list = format!("{list},\r\n{PRETTY}]\n");
    for (path, content_type, stream, outcome) in [
        (SSE, "text/event-stream", event(HALF), "upstream_connection"),
        (SSE, "text/event-stream", event(HALF) + "a proxy's words", "malformed_answer"),
        (SSE, "text/event-stream", event(HALF) + PRETTY, "upstream_unavailable"),
        (LIST, "application/json", list, "upstream_connection"),
        (LIST, "application/json", odd_list, "upstream_unavailable"),
        (OPENAI, "text/event-stream", event(chunk), "upstream_connection"),
        (OPENAI, "text/event-stream", event(chunk) + &event("[DONE]"), "success"),
        (
            OPENAI,
            "text/event-stream",
            event(chunk) + &event(r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]"#),
            "rate_limited",
        ),
        (SSE, "application/x-protobuf", "\u{1}\u{2}data: ".to_owned(), "success"),
    ] {
        let pieces = stream.as_bytes().chunks(7).map(<[u8]>::to_vec).collect();
        let recording = Recording::play(200, content_type, pieces).await;
        let service = Service::over(&recording.base_url).await;
        let response = service.post(path, &streamed(path, "x")).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), stream);
        service.until_idle().await;
        assert_eq!(calls(&service, path, outcome).await, 1.0, "{stream}");
    }
}

#[tokio::test]
async fn a_finish_reason_that_leaves_the_text_incomplete_is_reported() {
    let service = Service::start().await;
    for reason in ["MAX_TOKENS", "CONTINUATION", "MALFORMED_RESPONSE", "BRAND_NEW"] {
        let prompt = format!("[[simulate:finish={reason},text=half a text]]");
        let answered = service.chat(&*prompt).await;
        assert_eq!(answered.body["finish_reason"], reason, "{answered:?}");
        let batch = json!({"requests": [{"prompt": prompt}]});
        let batch = answer(service.post("/batch/chat", &batch)).await;
        assert_eq!(batch.body["results"][0]["finish_reason"], reason, "{batch:?}");
        let streamed = service.post("/chat", &streamed("/chat", &prompt)).send().await.unwrap();
        let text = streamed.text().await.unwrap();
        assert!(text.contains(&format!("\"finish_reason\":\"{reason}\"")), "{text}");
    }
    for (prompt, status, code) in [
        ("[[simulate:finish=CONTINUATION,empty]]", 502, "truncated_answer"),
        ("[[simulate:finish=MALFORMED_RESPONSE]]", 502, "empty_answer"),
        ("[[simulate:finish=MODEL_ARMOR,text=half]]", 400, "content_blocked"),
        ("[[simulate:finish=PUP_LIMITED_DISABLED]]", 403, "permission_denied"),
    ] {
        let Answer { status: answered, body, .. } = service.chat(prompt).await;
        assert_eq!((answered.as_u16(), &body["code"]), (status, &json!(code)), "{prompt}: {body}");
    }
    let unfinished = service.post("/chat", &streamed("/chat", "[[simulate:unfinished]]"));
    let text = unfinished.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("\"error_code\":\"upstream_connection\""), "{text}");
}

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn recorded_streams_end_with_the_recorded_outcome() {
    let later = later_corpus().into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let later = later.map(|entry| entry.unwrap().path());
    let later = later.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let later = later.map(|path| Exchange::read(&path));
    let mut counts = [0, 0];
    for stream in corpus().into_iter().chain(later) {
        let text = String::from_utf8_lossy(&stream.bytes);
        let is_stream = text.starts_with("data:") || text.starts_with("event:");
        if !stream.status.is_success() || !is_stream {
            continue;
        }
        let event_stream = HeaderValue::from_static("text/event-stream");
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, event_stream)]);
        let mut watch = StreamMonitor::of(&headers, true).unwrap();
        stream.bytes.chunks(100).for_each(|piece| watch.scan(piece));
        let ends = ["\"finishReason\"", "\"blockReason\"", "[DONE]", "\"interaction.completed\""];
        // The recording does not tell how its text should end.
        let is_other = stream.name.contains("failure-invalid-json");
        let is_whole =
            is_other || ends.iter().any(|end| text.contains(end)) && !text.contains("\"error\": {");
        let ended = watch.end();
        assert_eq!(ended.is_ok(), is_whole, "{}: {ended:?}", stream.name);
        counts[usize::from(is_whole)] += 1;
    }
    println!("{} recorded streams are whole, {} are not", counts[1], counts[0]);
    assert!(counts[1] > 60 && counts[0] > 1, "{counts:?}");
}
