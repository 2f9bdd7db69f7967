//! Connections: disconnects, unread bodies, idle timeouts, and how many there may be.

use std::net::SocketAddr;
use std::time::Duration;

use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::process::{Process, Start};
use crate::support::{ADMIN_KEY, Service, TEST_TIMEOUT, answer, slow};

const JSON: &str = "Content-Type: application/json\r\n";

/// A request as bytes, with these headers.
fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// Reads a connection to its end, which must not be a reset.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let read = timeout(TEST_TIMEOUT, stream.read_to_string(&mut text)).await;
    read.expect("it is still open").expect("it was reset");
    text
}

/// Reads one answer that has a `Content-Length`.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = async {
        loop {
            text.push(stream.read_u8().await.expect("an answer"));
            if text.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let head = String::from_utf8(text.clone()).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r").next());
        let mut body = vec![0; length.expect("a length").parse().unwrap()];
        stream.read_exact(&mut body).await.expect("a whole answer");
        text.extend(body);
    };
    timeout(TEST_TIMEOUT, read).await.expect("an answer in time");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_disconnect_is_noticed_behind_unread_bytes() {
    let service = Service::start().await;
    let slow = slow(300_000);
    let chat = |body| request("POST", "/chat", JSON, &format!("{body}"));
    let whole = chat(json!({"prompt": slow}));
    let streamed = chat(json!({
        "prompt": "[[simulate:chunks=4,stall_after=1]]a long answer", "stream": true
    }));
    let native = json!({"contents": [{"parts": [{"text": slow}]}]}).to_string();
    let native =
        request("POST", "/v1beta/models/gemini-3.5-flash-lite:generateContent", JSON, &native);
    for call in [whole, streamed, native] {
        let pipelined = request("GET", "/", "", "").repeat(30_000);
        for rest in ["\r\n", &request("GET", "/", "", ""), &"x".repeat(1 << 20), &pipelined] {
            let mut stream = send(service.address, &call).await;
            service.until("the call is in flight", |limiter| limiter.in_flight == 1).await;
            // More unread bytes than this close the connection.
            let _ = stream.write_all(rest.as_bytes()).await;
            drop(stream);
            service.until_idle().await;
        }
    }
}

#[tokio::test]
async fn a_disconnect_in_the_queue_is_noticed_behind_unread_bytes() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 1).await;
    let chat = request("POST", "/chat", JSON, &json!({"prompt": slow(300_000)}).to_string());
    let first = send(service.address, &chat).await;
    service.until("the first is in flight", |limiter| limiter.in_flight == 1).await;
    let second = send(service.address, format!("{chat}\r\n")).await;
    service.until("the second waits", |limiter| limiter.waiting == 1).await;
    drop(second);
    service.until("it has left the queue", |limiter| limiter.waiting == 0).await;
    assert_eq!(service.gateway.limiter.occupancy().in_flight, 1);
    drop(first);
    service.until_idle().await;
    assert_eq!(service.simulator.stats().calls, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let service = Service::start().await;
    let chat =
        |prompt: &str| request("POST", "/chat", JSON, &json!({"prompt": prompt}).to_string());
    let requests = [
        chat("[[simulate:latency_ms=200]]one"),
        request("GET", "/nowhere", "", ""),
        chat("three"),
        request("GET", "/", "Connection: close\r\n", ""),
    ];
    let answers = read_to_end(&mut send(service.address, requests.concat()).await).await;
    let places = [" to: one", "not_found", " to: three", "healthy"]
        .map(|text| answers.find(text).unwrap_or_else(|| panic!("{text}: {answers}")));
    assert!(places.is_sorted(), "{answers}");
}

/// The upload's body is read by the connection to Gemini, not by the handler.
#[tokio::test]
async fn a_disconnect_after_an_upload_is_noticed() {
    let gemini = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", gemini.local_addr().unwrap());
    let service = Service::with(Options::default(), |config| config.base_url = base_url).await;
    let upload = request("POST", "/upload/v1beta/files", "", "some bytes");
    let mut stream = send(service.address, upload).await;
    let passed = async {
        let (mut passed, _) = gemini.accept().await.unwrap();
        let mut sent = Vec::new();
        while !sent.ends_with(b"some bytes") {
            sent.push(passed.read_u8().await.unwrap());
        }
        passed
    };
    let mut passed = timeout(TEST_TIMEOUT, passed).await.expect("it is relayed");
    let _ = stream.write_all(&vec![b'x'; 1 << 20]).await;
    drop(stream);
    let rest = timeout(TEST_TIMEOUT, passed.read(&mut [0])).await.expect("it is cancelled");
    assert!(rest.is_err() || rest.is_ok_and(|read| read == 0));
}

#[tokio::test]
async fn a_large_pipelined_request_is_answered() {
    let service = Service::start().await;
    let chat =
        |prompt: &str| request("POST", "/chat", JSON, &json!({"prompt": prompt}).to_string());
    let first = chat("[[simulate:latency_ms=200]]one");
    let second = chat(&format!("two{}", " ".repeat(28_000)));
    let mut stream = send(service.address, first + &second).await;
    for ending in [" to: one", " to: two"] {
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(ending), "{answer}");
    }
}

/// These clients send everything before they read.
#[tokio::test]
async fn an_answer_sent_before_the_body_was_read_arrives_and_closes_the_connection() {
    let service = Service::with(Options::default(), |config| config.max_body_bytes = 100_000).await;
    let body = "x".repeat(8 << 20);
    let admin = format!("{JSON}Admin-API-Key: wrong\r\n");
    for (method, path, headers, status) in [
        ("POST", "/chat", JSON, 413),
        ("POST", "/v1beta/models/gemini-3.5-flash-lite:generateContent", JSON, 413),
        ("POST", "/chat", "Content-Type: text/plain\r\n", 415),
        ("POST", "/_admin/semaphores", &admin, 401),
        ("POST", "/nowhere", JSON, 404),
        ("PUT", "/chat", JSON, 405),
        ("GET", "/", "", 200),
    ] {
        let request = request(method, path, headers, &body);
        let mut stream = send(service.address, request).await;
        let answer = read_to_end(&mut stream).await.to_ascii_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_short_unread_body_keeps_the_connection_open() {
    let service = Service::start().await;
    let admin = format!("Admin-API-Key: {ADMIN_KEY}\r\n");
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    for (method, path, status) in [
        ("POST", "/nowhere", 404),
        ("POST", "/chat", 415),
        ("DELETE", "/_admin/semaphores/none", 404),
        ("GET", "/", 200),
    ] {
        let request = request(method, path, &admin, "{\"unread\": true}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(!answer.to_ascii_lowercase().contains("connection: close"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_expects_continue_is_refused_before_its_body() {
    let service = Service::start().await;
    let head = "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    let answer = read_to_end(&mut send(service.address, head).await).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_malformed_request_gets_an_error_response() {
    let service = Service::start().await;
    let many = format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(48 << 10));
    for (request, status) in [("no request\r\n\r\n", 400), (&*many, 431)] {
        let answer = read_to_end(&mut send(service.address, request).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn the_idle_timeout_is_not_the_header_timeout() {
    let process = Start::simulated()
        .set("CLIENT_TIMEOUT_SECONDS", "0.5")
        .set("KEEP_ALIVE_SECONDS", "3600")
        .run()
        .await;
    let get = request("GET", "/", "", "");
    let mut stream = send(process.address, &get).await;
    read_answer(&mut stream).await;
    sleep(Duration::from_secs(2)).await;
    stream.write_all(get.as_bytes()).await.expect("it is closed");
    read_answer(&mut stream).await;
    // Once a request has begun, the header timeout applies.
    stream.write_all(&get.as_bytes()[..10]).await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_timeout() {
    let process = Start::simulated().set("KEEP_ALIVE_SECONDS", "0.2").run().await;
    let mut stream = send(process.address, request("GET", "/", "", "")).await;
    read_answer(&mut stream).await;
    assert_eq!(read_to_end(&mut stream).await, "");
}

/// Opens this many connections and sends part of a request on each.
async fn send_unfinished_headers(process: &Process, connections: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(
            send(process.address, "POST /chat HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await,
        );
    }
    streams
}

async fn chats(process: &Process) {
    let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::OK, "{chat:?}");
}

#[tokio::test]
async fn connections_with_unfinished_headers_give_way_to_new_ones() {
    let few_files = Start::simulated().file_limit(40);
    let few_connections = Start::simulated().set("MAX_CONNECTIONS", "8");
    for start in [few_files, few_connections] {
        let process = start.run().await;
        let held = send_unfinished_headers(&process, 100).await;
        for _ in 0..5 {
            chats(&process).await;
        }
        drop(held);
        process.until_logged("there is room again").await;
        chats(&process).await;
        // Logged once, and once more if a busy machine delays one of the two.
        let log = process.log();
        assert!(log.matches("no room for a new connection").count() < 10, "{log}");
    }
}

#[tokio::test]
async fn a_connection_with_a_pending_answer_is_not_closed_for_another() {
    let process = Start::simulated().set("MAX_CONNECTIONS", "4").run().await;
    let slow = process.post("/chat", &json!({"prompt": slow(1_500)}));
    let slow = tokio::spawn(answer(slow));
    let in_flight = async {
        while answer(process.get("/")).await.body["concurrency_status"]["in_flight"] != 1 {}
    };
    timeout(TEST_TIMEOUT, in_flight).await.expect("it is in flight");
    let _held = send_unfinished_headers(&process, 50).await;
    chats(&process).await;
    assert_eq!(slow.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn the_open_file_limit_is_raised() {
    let process = Start::simulated().initial_file_limit(64).run().await;
    let [soft, hard] = process.file_limits();
    assert!(soft == hard && soft != "64", "{soft} of {hard}");
}
