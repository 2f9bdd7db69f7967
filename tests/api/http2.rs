//! HTTP/2 with prior knowledge: what holds for an HTTP/1 connection holds for each stream.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use gemini_concurrent_generation::simulator::Options;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, Request, Version};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::Start;
use crate::support::{ADMIN_KEY, Service, TEST_TIMEOUT, answer, slow};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";

/// What a client sends before its first request: the preface and its settings.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn client() -> Client {
    Client::builder().http2_prior_knowledge().timeout(TEST_TIMEOUT).build().unwrap()
}

fn post(client: &Client, service: &Service, path: &str, body: &Value) -> RequestBuilder {
    client.post(service.url(path)).header("content-type", "application/json").body(body.to_string())
}

/// Opens a connection, with a task that drives it until aborted.
pub async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client, tokio::spawn(async move { drop(connection.await) }))
}

/// Sends a chat with this authority.
async fn chat(
    client: &mut SendRequest<Bytes>,
    host: &str,
    body: &Value,
) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://{host}/chat"));
    let request = request.header("content-type", "application/json").body(()).unwrap();
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request, false).unwrap();
    stream.send_data(body.to_string().into(), true).unwrap();
    (response, stream)
}

async fn status(response: ResponseFuture) -> u16 {
    timeout(TEST_TIMEOUT, response).await.unwrap().unwrap().status().as_u16()
}

#[tokio::test]
async fn every_surface_is_served() {
    let (service, client) = (Service::start().await, client());
    let contents = json!({"contents": [{"parts": [{"text": "x"}]}]});
    let messages = json!([{"role": "user", "content": "x"}]);
    let completion = json!({"model": "gemini-3.5-flash-lite", "messages": messages});
    let items: Vec<_> = (0..20).map(|n| json!({"prompt": n.to_string()})).collect();
    for (path, body) in [
        ("/chat", json!({"prompt": "x"})),
        ("/batch/chat", json!({"requests": items})),
        (GENERATE, contents),
        ("/v1/chat/completions", completion),
    ] {
        let response = post(&client, &service, path, &body).send().await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        for name in ["connection", "keep-alive", "transfer-encoding"] {
            assert!(!response.headers().contains_key(name), "{path}: {name}");
        }
        let text = response.text().await.unwrap();
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{path}: {text}");
    }
    let whole = answer(client.get(service.url("/"))).await;
    let length = whole.headers["content-length"].clone();
    let head = answer(client.head(service.url("/"))).await;
    assert_eq!((head.status, &head.headers["content-length"]), (StatusCode::OK, &length));
    assert_eq!(answer(client.get(service.url("/nowhere"))).await.status, 404);
    assert_eq!(answer(client.get(service.url("/chat"))).await.status, 405);
}

#[tokio::test]
async fn an_answer_is_streamed_event_by_event() {
    let (service, client) = (Service::start().await, client());
    let body = json!({"prompt": "[[simulate:chunks=4]]a long answer in pieces", "stream": true});
    let response = post(&client, &service, "/chat", &body).send().await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    assert!(text.matches("data:").count() > 4, "{text}");
    service.until_idle().await;
}

#[tokio::test]
async fn a_large_body_is_accepted_and_one_over_the_limit_is_refused() {
    let client = client();
    let service = Service::with(Options::default(), |config| config.max_body_bytes = 1 << 20).await;
    let chat = |bytes: usize| json!({"prompt": format!("x{}", " ".repeat(bytes))});
    assert_eq!(answer(post(&client, &service, "/chat", &chat(1_000_000))).await.status, 200);
    for _ in 0..3 {
        let refused = answer(post(&client, &service, "/chat", &chat(8 << 20))).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (413.try_into().unwrap(), &json!("body_too_large"))
        );
        assert!(!refused.headers.contains_key("connection"));
    }
    assert_eq!(answer(post(&client, &service, "/chat", &chat(1))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_connection_share_the_global_limit() {
    let options = Options { latency_ms: 5, ..Options::default() };
    let service = Service::with(options, |config| config.concurrency_limit = 7).await;
    let client = client();
    let chats = join_all(
        (0..300)
            .map(|n| answer(post(&client, &service, "/chat", &json!({"prompt": n.to_string()})))),
    )
    .await;
    assert!(chats.iter().all(|chat| chat.status == StatusCode::OK));
    let stats = service.simulator.stats();
    assert_eq!((stats.calls, stats.highest_in_flight), (300, 7));
    service.until_idle().await;
}

#[tokio::test]
async fn resetting_a_stream_cancels_only_its_call() {
    let service = Service::start().await;
    let (mut client, _connection) = connect(service.address).await;
    let whole = json!({"prompt": slow(300_000)});
    let streamed = json!({
        "prompt": "[[simulate:chunks=4,stall_after=1]]a long answer", "stream": true
    });
    for (body, cancelled) in [(whole, 1), (streamed, 2)] {
        let beside = chat(&mut client, "localhost", &json!({"prompt": slow(300)})).await;
        let (response, mut stream) = chat(&mut client, "localhost", &body).await;
        service.until("both are in flight", |limiter| limiter.in_flight == 2).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(status(beside.0).await, 200);
        service.until_idle().await;
        assert_eq!(service.simulator.stats().cancelled, cancelled);
    }
}

#[tokio::test]
async fn closing_a_connection_cancels_all_its_calls() {
    let service = Service::start().await;
    let (mut client, connection) = connect(service.address).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(chat(&mut client, "localhost", &json!({"prompt": slow(300_000)})).await);
    }
    service.until("all are in flight", |limiter| limiter.in_flight == 5).await;
    connection.abort();
    service.until_idle().await;
    let simulator = &service.simulator;
    crate::support::until("the simulator saw it", || simulator.stats().cancelled == 5).await;
}

#[tokio::test]
async fn the_authority_is_used_as_the_host() {
    let service = Service::start().await;
    let (mut client, _connection) = connect(service.address).await;
    for (host, expected) in [
        ("localhost:5004", 200),
        ("[::1]", 200),
        ("evil.example", 401),
        ("localhost:x@evil.example", 400),
    ] {
        let (response, _) = chat(&mut client, host, &json!({"prompt": "x"})).await;
        assert_eq!(status(response).await, expected, "{host}");
    }
    for (host, expected) in [("localhost", 200), ("LOCALHOST", 200), ("evil.example", 400)] {
        let request = Request::get("http://localhost/").header("host", host).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(status(response).await, expected, "{host}");
    }
}

#[tokio::test]
async fn unsupported_methods_are_refused() {
    let service = Service::start().await;
    let (mut client, _connection) = connect(service.address).await;
    for (method, url) in [(Method::TRACE, "http://localhost/"), (Method::CONNECT, "localhost:80")] {
        let request = Request::builder().method(method).uri(url).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(status(response).await, 405, "{url}");
    }
    assert!(!client.is_extended_connect_protocol_enabled());
}

#[tokio::test]
async fn each_stream_counts_as_a_connection() {
    let process = Start::simulated().set("MAX_CONNECTIONS", "3").run().await;
    let (mut client, _connection) = connect(process.address).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(chat(&mut client, "localhost", &json!({"prompt": slow(300_000)})).await);
    }
    let (refused, _) = chat(&mut client, "localhost", &json!({"prompt": "x"})).await;
    let refused = timeout(TEST_TIMEOUT, refused).await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
    for (_, mut stream) in held.drain(1..) {
        stream.send_reset(Reason::CANCEL);
    }
    // Their slots are free a moment later.
    let answered = async {
        while chat(&mut client, "localhost", &json!({"prompt": "x"})).await.0.await.is_err() {}
    };
    timeout(TEST_TIMEOUT, answered).await.expect("no slot became free");
}

#[tokio::test]
async fn a_short_unread_body_resets_nothing() {
    let service = Service::start().await;
    let (mut client, _connection) = connect(service.address).await;
    let request = Request::post("http://localhost/nowhere").body(()).unwrap();
    let (response, mut stream) = client.send_request(request, false).unwrap();
    stream.send_data("{".into(), false).unwrap();
    stream.send_data("}".into(), true).unwrap();
    let response = timeout(TEST_TIMEOUT, response).await.unwrap().unwrap();
    assert_eq!(response.status(), 404);
    let mut body = response.into_body();
    while let Some(piece) = body.data().await {
        let length = piece.expect("it is not reset").len();
        body.flow_control().release_capacity(length).unwrap();
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_only_that_stream() {
    let process = Start::simulated().set("CLIENT_TIMEOUT_SECONDS", "1").run().await;
    let (mut client, _connection) = connect(process.address).await;
    // The document is larger than the window, which the client does not extend.
    let get = || Request::get("http://localhost/openapi.json").body(()).unwrap();
    let (response, _) = client.send_request(get(), true).unwrap();
    let mut unread = timeout(TEST_TIMEOUT, response).await.unwrap().unwrap().into_body();
    let ended = async {
        loop {
            match unread.data().await.expect("it is reset") {
                Ok(_) => {}
                Err(error) => return error.reason(),
            }
        }
    };
    assert_eq!(timeout(TEST_TIMEOUT, ended).await.unwrap(), Some(Reason::CANCEL));
    drop(unread);
    let (response, _) = client.send_request(get(), true).unwrap();
    assert_eq!(status(response).await, 200);
}

#[tokio::test]
async fn calls_in_flight_finish_after_sigterm() {
    let process = Start::simulated().run().await;
    let (mut client, connection) = connect(process.address).await;
    let mut idle = TcpStream::connect(process.address).await.unwrap();
    idle.write_all(OPENING).await.unwrap();
    let (response, _stream) = chat(&mut client, "localhost", &json!({"prompt": slow(700)})).await;
    let in_flight = async {
        while answer(process.get("/")).await.body["concurrency_status"]["in_flight"] != 1 {}
    };
    timeout(TEST_TIMEOUT, in_flight).await.expect("it is in flight");
    process.terminate().await;
    assert_eq!(status(response).await, 200);
    timeout(TEST_TIMEOUT, connection).await.expect("it is closed").unwrap();
    // A connection without requests does not delay the shutdown for long.
    let (code, log) =
        timeout(Duration::from_secs(10), process.end()).await.expect("it did not end in time");
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("the grace period is over"), "{log}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_despite_pings() {
    let process = Start::simulated().set("KEEP_ALIVE_SECONDS", "0.5").run().await;
    let stream = TcpStream::connect(process.address).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let closed = tokio::spawn(connection);
    let request = Request::get("http://localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(status(response).await, 200);
    let closes = async { while pings.ping(h2::Ping::opaque()).await.is_ok() {} };
    timeout(TEST_TIMEOUT, closes).await.expect("it is closed");
    timeout(TEST_TIMEOUT, closed).await.unwrap().unwrap().expect("in order");
}

#[tokio::test]
async fn an_h2c_upgrade_is_ignored() {
    let service = Service::start().await;
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n\
                   GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(TEST_TIMEOUT, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 404 "), "{text}");
}

#[tokio::test]
async fn keys_are_read_as_over_http1() {
    let (service, client) = (Service::start().await, client());
    let semaphores = client.get(service.url("/_admin/semaphores"));
    assert_eq!(answer(semaphores.try_clone().unwrap()).await.status, 401);
    assert_eq!(answer(semaphores.header("Admin-API-Key", ADMIN_KEY)).await.status, 200);
    let foreign = post(&client, &service, "/chat", &json!({"prompt": "x"}));
    let foreign = answer(foreign.header("origin", "https://evil.example")).await;
    assert_eq!(foreign.status, 401);
}

#[tokio::test]
async fn a_key_in_a_malformed_path_is_not_logged() {
    let process = Start::simulated().set("RUST_LOG", "trace").run().await;
    let mut stream = TcpStream::connect(process.address).await.unwrap();
    let path = b"/chat?key=plain secret";
    let mut bytes = OPENING.to_vec();
    bytes.extend([0, 0, 4 + path.len() as u8, 1, 5, 0, 0, 0, 1]);
    // `GET`, scheme `http`, and the raw path.
    bytes.extend([0x82, 0x86, 0x04, path.len() as u8]);
    bytes.extend(path);
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answered = Vec::new();
    drop(timeout(TEST_TIMEOUT, stream.read_to_end(&mut answered)).await.expect("it is closed"));
    process.terminate().await;
    let (_, log) = process.end().await;
    assert!(log.contains("h2::") && !log.contains("plain secret"), "{log}");
}

/// The service survives random frames after a valid preface.
#[tokio::test]
async fn garbage_closes_only_its_connection() {
    let service = Service::start().await;
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bytes = OPENING.to_vec();
        for _ in 0..random.usize(1..20) {
            let length = random.usize(0..64);
            // One byte of the length, then type, flags and stream.
            let stream = random.u8(0..8);
            bytes.extend([0, 0, length as u8, random.u8(0..12), random.u8(..), 0, 0, 0, stream]);
            bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
        }
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answered = Vec::new();
        let read = timeout(TEST_TIMEOUT, stream.read_to_end(&mut answered)).await;
        drop(read.expect("it is closed"));
    }
    assert_eq!(service.chat("x").await.status, 200);
    service.until_idle().await;
}

/// A client that resets each stream at once, and one that sends headers without end, are cut off.
#[tokio::test]
async fn a_flood_closes_its_connection() {
    let service = Service::start().await;
    // `GET /` of localhost, from the static table.
    let headers =
        [0x82, 0x84, 0x86, 0x41, 0x09, b'l', b'o', b'c', b'a', b'l', b'h', b'o', b's', b't'];
    let mut resets = OPENING.to_vec();
    for stream in (1..20_000_u32).step_by(2) {
        let [_, _, _, length] = (headers.len() as u32).to_be_bytes();
        resets.extend([0, 0, length, 1, 5]);
        resets.extend(stream.to_be_bytes());
        resets.extend(headers);
        resets.extend([0, 0, 4, 3, 0]);
        resets.extend(stream.to_be_bytes());
        resets.extend(8_u32.to_be_bytes());
    }
    let mut continuations = OPENING.to_vec();
    continuations.extend([0, 0, 14, 1, 1, 0, 0, 0, 1]);
    continuations.extend(headers);
    for _ in 0..100_000 {
        continuations.extend([0, 0, 0, 9, 0, 0, 0, 0, 1]);
    }
    for flood in [resets, continuations] {
        let (mut read, mut write) = TcpStream::connect(service.address).await.unwrap().into_split();
        let writes = tokio::spawn(async move { (write.write_all(&flood).await, write) });
        let mut answered = Vec::new();
        let ended = timeout(TEST_TIMEOUT, read.read_to_end(&mut answered)).await;
        drop(ended.expect("it is cut off"));
        drop(writes.await);
    }
    assert_eq!(service.chat("x").await.status, 200);
}
