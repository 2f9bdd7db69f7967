//! How much memory the real program uses for streams and uploads.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use futures_util::stream::{self, Stream};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::http2::connect;
use crate::process::{Process, Start};
use crate::support::{SERVER_KEY, TEST_TIMEOUT, listen, until};

const STREAM: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

/// Allowance for idle connections, thread stacks and the allocator.
const SLACK_KIB: u64 = 16 * 1024;

fn start(upstream: SocketAddr) -> Start {
    Start::with_arguments(&["serve"])
        .set("GEMINI_BASE_URL", &format!("http://{upstream}"))
        .set("GEMINI_API_KEY", SERVER_KEY)
}

async fn service(upstream: SocketAddr, limit: usize) -> Process {
    start(upstream).set("GEMINI_CONCURRENCY_LIMIT", &limit.to_string()).run().await
}

/// Adds one to a counter until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Endless events: one at once, then one a second.
fn endless(counted: Counted) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold((counted, false), async |(counted, began)| {
        if began {
            sleep(Duration::from_secs(1)).await;
        }
        Some((Ok(Bytes::from_static(b"data: {\"candidates\":[]}\r\n\r\n")), (counted, true)))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_free_every_slot_when_half_of_the_clients_disconnect() {
    const STREAMS: usize = 1000;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    let upstream = event_stream(move || endless(Counted::new(&count)));
    let service = service(listen(upstream, &stop).await, STREAMS).await;
    service.health().await;
    let before = service.memory_kib("VmRSS");

    let client = reqwest::Client::new();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let request = client.post(service.url(STREAM)).header("content-type", "application/json");
        let request = request.body(json!({"contents": []}).to_string());
        let mut response = request.send().await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        streams.push(response);
    }
    service.until_in_flight(STREAMS).await;
    let each = (service.memory_kib("VmRSS") - before) as f64 / STREAMS as f64;
    println!("{STREAMS} streams open at once: {each:.1} KiB of memory each");

    for left in [STREAMS / 2, 0] {
        let disconnected = Instant::now();
        streams.truncate(left);
        service.until_in_flight(left).await;
        let free = disconnected.elapsed();
        until("the upstream saw the disconnects", || open.load(Ordering::Relaxed) == left).await;
        let seen = disconnected.elapsed();
        println!(
            "all but {left} disconnected: slots free after {free:?}, seen upstream after {seen:?}"
        );
    }
    let status = &service.health().await["concurrency_status"];
    assert_eq!(
        (&status["current_available_slots"], &status["waiting"]),
        (&json!(STREAMS), &json!(0))
    );
}

/// Endless events, as fast as they are read. Their bytes are counted.
fn flood(sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> {
    let piece = Bytes::from(format!("data: {}\n\n", "x".repeat(64 * 1024)));
    stream::iter(std::iter::repeat_with(move || {
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(piece.clone())
    }))
}

/// A router that answers everything with a stream of events.
fn event_stream<S>(events: impl Fn() -> S + Clone + Send + Sync + 'static) -> Router
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    Router::new().fallback(move || {
        let body = Body::from_stream(events());
        async move { ([("content-type", "text/event-stream")], body) }
    })
}

/// A service over an upstream that sends events as fast as they are read.
struct Flood {
    service: Process,
    sent: Arc<AtomicU64>,
    /// The service's memory before the first stream.
    idle_kib: u64,
    _stop: DropGuard,
}

impl Flood {
    async fn start() -> Self {
        let stop = CancellationToken::new();
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let upstream = event_stream(move || flood(Arc::clone(&count)));
        let service = service(listen(upstream, &stop).await, 1).await;
        service.health().await;
        let idle_kib = service.memory_kib("VmRSS");
        Self { service, sent, idle_kib, _stop: stop.drop_guard() }
    }

    /// Waits until the upstream sends nothing more, and returns how many bytes it has sent.
    async fn until_stalled(&self) -> u64 {
        let wait = async {
            let (mut last, mut unchanged) = (0, 0);
            while unchanged < 25 {
                sleep(Duration::from_millis(20)).await;
                let now = self.sent.load(Ordering::Relaxed);
                unchanged = if now == last { unchanged + 1 } else { 0 };
                last = now;
            }
            last
        };
        tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("the upstream never stops sending")
    }

    /// Checks that the upstream waits for the client, which has read this many bytes, and that
    /// the service does not buffer the difference.
    async fn assert_held_back(&self, read: u64) {
        let sent = self.until_stalled().await;
        assert!(sent - read < 64 << 20, "{sent} bytes were sent, {read} read");
        let grown = self.service.memory_kib("VmHWM").saturating_sub(self.idle_kib);
        println!("{} MiB sent, {} MiB read: {grown} KiB more memory", sent >> 20, read >> 20);
        assert!(grown < SLACK_KIB, "{grown} KiB");
    }
}

/// Requests a stream over a new connection.
async fn request_stream(service: &Process) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "host: localhost\r\ncontent-type: application/json\r\ncontent-length: 2";
    let request = format!("POST {STREAM} HTTP/1.1\r\n{head}\r\n\r\n{{}}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_upstream_and_memory_does_not_grow() {
    let flood = Flood::start().await;
    let mut reader = request_stream(&flood.service).await;
    let mut read = 0;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..3 {
        flood.assert_held_back(read).await;
        // The upstream continues as soon as the client reads.
        for _ in 0..100 {
            reader.read_exact(&mut piece).await.unwrap();
            read += piece.len() as u64;
        }
    }
    drop(reader);
    flood.service.until_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_over_http2_slows_the_upstream_too() {
    let flood = Flood::start().await;
    let (mut client, _connection) = connect(flood.service.address).await;
    let request = http::Request::post(format!("http://localhost{STREAM}"));
    let request = request.header("content-type", "application/json").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data("{}".into(), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    let mut read = 0;
    for more in [32 << 20, 32 << 20, 0] {
        flood.assert_held_back(read).await;
        let goal = read + more;
        while read < goal {
            let piece = answer.data().await.unwrap().unwrap().len();
            answer.flow_control().release_capacity(piece).unwrap();
            read += piece as u64;
        }
    }
    // This resets the stream.
    drop((answer, body));
    flood.service.until_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_disconnected_and_holds_no_slot() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let upstream = listen(event_stream(|| flood(Arc::default())), &stop).await;
    let service = start(upstream).set("CLIENT_TIMEOUT_SECONDS", "2").run().await;
    let mut reader = request_stream(&service).await;
    reader.read_exact(&mut [0; 1024]).await.unwrap();
    service.until_in_flight(0).await;
}

/// Counts the bytes of a body without keeping them.
async fn count(request: Request) -> axum::Json<Value> {
    let mut body = request.into_body();
    let mut bytes = 0_u64;
    while let Some(frame) = body.frame().await {
        bytes += frame.expect("a whole body").into_data().map_or(0, |data| data.len() as u64);
    }
    axum::Json(json!({"bytes": bytes}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_a_gigabyte_passes_in_constant_memory() {
    const SIZE: u64 = 1 << 30;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let upstream = Router::new().fallback(count).layer(DefaultBodyLimit::disable());
    let service = service(listen(upstream, &stop).await, 1).await;
    service.health().await;
    let before = service.memory_kib("VmRSS");
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let body = stream::iter((0..SIZE >> 20).map(move |_| io::Result::Ok(piece.clone())));
    let request = reqwest::Client::new().post(service.url("/upload/v1beta/files"));
    let response = request.body(reqwest::Body::wrap_stream(body)).send().await.unwrap();
    let counted: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(counted["bytes"], SIZE);
    let grown = service.memory_kib("VmHWM") - before;
    println!(
        "an upload of 1 GiB: {grown} KiB more memory, {} KiB in total",
        service.memory_kib("VmHWM")
    );
    assert!(grown < SLACK_KIB, "{grown} KiB");
}
