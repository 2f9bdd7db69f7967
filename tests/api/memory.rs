//! The memory budget for buffered request bodies.

use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Start;
use crate::support::{ADMIN_KEY, Service, answer, slow, until};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";

async fn with_memory(bytes: usize) -> Service {
    Service::with(Options::default(), |config| config.body_memory_bytes = Some(bytes)).await
}

fn chat(prompt: &str, bytes: usize) -> Value {
    json!({"prompt": format!("{prompt}{}", "x".repeat(bytes))})
}

fn native(prompt: &str, bytes: usize) -> Value {
    json!({"contents": [{"parts": [{"text": format!("{prompt}{}", "x".repeat(bytes))}]}]})
}

/// Opens a connection and sends this many bytes of an announced body.
async fn send_unfinished_body(
    service: &Service,
    path: &str,
    announced: usize,
    sent: usize,
) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {announced}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; sent]).await.unwrap();
    stream
}

async fn until_used(service: &Service, bytes: usize) {
    until("the memory is in use", || service.gateway.bodies.used() == bytes).await;
}

#[tokio::test]
async fn bodies_past_the_memory_budget_are_refused() {
    let service = with_memory(1_000_000).await;
    for path in ["/chat", "/batch/chat", GENERATE] {
        let held = send_unfinished_body(&service, path, 800_000, 700_000).await;
        until_used(&service, 700_000).await;
        let refused = answer(service.post("/chat", &chat("", 300_000))).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.body["code"], "server_busy");
        assert_eq!(refused.headers["retry-after"], "1");
        let refused = answer(service.post(GENERATE, &native("", 300_000))).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.body["error"]["status"], "UNAVAILABLE");
        assert_eq!(refused.body["error"]["details"][0]["reason"], "SERVER_BUSY");
        // Other requests do not wait for the large ones.
        assert_eq!(service.chat("small").await.status, StatusCode::OK);
        drop(held);
        until_used(&service, 0).await;
        assert_eq!(answer(service.post("/chat", &chat("", 300_000))).await.status, StatusCode::OK);
        until_used(&service, 0).await;
    }
}

#[tokio::test]
async fn a_body_counts_against_the_budget_until_its_call_is_settled() {
    let service = with_memory(10_000_000).await;
    let slow = slow(300_000);
    let mut streamed = chat("[[simulate:chunks=4,stall_after=1]]", 300_000);
    streamed["stream"] = true.into();
    for (path, body) in [
        ("/chat", chat(&slow, 300_000)),
        ("/chat", streamed),
        ("/batch/chat", json!({"requests": [chat(&slow, 300_000), chat(&slow, 1)]})),
        (GENERATE, native(&slow, 300_000)),
    ] {
        let call = tokio::spawn(service.post(path, &body).send());
        service.until("the call is in flight", |limiter| limiter.in_flight > 0).await;
        let used = service.gateway.bodies.used();
        assert!((300_000..600_000).contains(&used), "{path}: {used}");
        call.abort();
        drop(call.await);
        service.until_idle().await;
        until_used(&service, 0).await;
    }
}

#[tokio::test]
async fn an_announced_body_uses_no_budget_before_it_arrives() {
    let service = with_memory(100_000_000).await;
    let _held = send_unfinished_body(&service, "/chat", 60_000_000, 1_000).await;
    until_used(&service, 1_000).await;
}

#[tokio::test]
async fn a_body_larger_than_the_budget_is_too_large() {
    let service = with_memory(100_000).await;
    let refused = answer(service.post("/chat", &chat("", 90_000))).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.body["detail"].as_str().unwrap().contains("87500 bytes"), "{refused:?}");
}

/// A value of two bytes takes dozens of bytes once it is parsed.
#[tokio::test]
async fn parsed_values_count_against_the_budget() {
    let service = with_memory(10_000_000).await;
    let mut dense = chat("", 1);
    dense["generation_config"] = json!({"x": vec![json!([]); 100_000]});
    let refused = answer(service.post("/chat", &dense)).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{refused:?}");
    assert_eq!(refused.body["code"], "body_too_large", "{refused:?}");
    dense["generation_config"] = json!({"x": vec![json!([]); 30_000]});
    let held = send_unfinished_body(&service, "/chat", 8_000_000, 5_000_000).await;
    until_used(&service, 5_000_000).await;
    let refused = answer(service.post("/chat", &dense)).await;
    assert_eq!(refused.body["code"], "server_busy", "{refused:?}");
    drop(held);
    until_used(&service, 0).await;
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn without_a_server_key_an_administrator_is_refused_before_the_body() {
    let service = Service::with(Options::default(), |config| config.gemini_api_key = None).await;
    for path in ["/chat", "/batch/structured-output"] {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Admin-API-Key: {ADMIN_KEY}\r\nContent-Length: 1000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("server_key_missing"), "{answer}");
    }
}

#[tokio::test]
async fn unfinished_bodies_without_a_key_do_not_exhaust_the_budget() {
    let process = Start::simulated().set("BODY_MEMORY_BYTES", "33554432").run().await;
    let before = process.memory_kib("VmRSS");
    let mut held = Vec::new();
    for _ in 0..24 {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        let head = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Content-Length: 8388609\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..8 {
            stream.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        }
        held.push(stream);
    }
    let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::OK);
    let grown = process.memory_kib("VmHWM") - before;
    assert!(grown < 96 * 1024, "{grown} KiB for a budget of 32 MiB");
}
