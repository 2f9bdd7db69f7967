//! What streams and uploads take of memory, of the real program.

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
use tokio_util::sync::CancellationToken;

use crate::http2::connect;
use crate::process::{Process, Start};
use crate::replicas::health;
use crate::support::{TEST_TIMEOUT, listen, until};

const STREAM: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

/// What an idle connection, a thread's stack or the allocator may take beside what is looked for.
const SLACK_KIB: u64 = 16 * 1024;

async fn service(upstream: SocketAddr, limit: usize) -> Process {
    let start = Start::with_arguments(&["serve"])
        .set("GEMINI_BASE_URL", &format!("http://{upstream}"))
        .set("GEMINI_API_KEY", "the-server-key")
        .set("GEMINI_CONCURRENCY_LIMIT", &limit.to_string());
    start.run().await
}

async fn until_in_flight(service: &Process, calls: usize) {
    let wait = async {
        while health(service).await["concurrency_status"]["in_flight"] != calls {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait)
        .await
        .unwrap_or_else(|_| panic!("never {calls} in flight"));
}

/// One more while it is there.
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

/// Events without end, one at once and then one a second.
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
    let upstream = Router::new().fallback(move || async move {
        ([("content-type", "text/event-stream")], Body::from_stream(endless(Counted::new(&count))))
    });
    let service = service(listen(upstream, &stop).await, STREAMS).await;
    health(&service).await;
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
    until_in_flight(&service, STREAMS).await;
    let each = (service.memory_kib("VmRSS") - before) as f64 / STREAMS as f64;
    println!("{STREAMS} streams open at once: {each:.1} KiB of memory each");

    for left in [STREAMS / 2, 0] {
        let hung_up = Instant::now();
        streams.truncate(left);
        until_in_flight(&service, left).await;
        let free = hung_up.elapsed();
        until("the upstream has seen it", || open.load(Ordering::Relaxed) == left).await;
        let seen = hung_up.elapsed();
        println!("all but {left} hung up on: slots free after {free:?}, seen after {seen:?}");
    }
    let status = &health(&service).await["concurrency_status"];
    assert_eq!(
        (&status["current_available_slots"], &status["waiting"]),
        (&json!(STREAMS), &json!(0))
    );
}

/// Pieces without end, as fast as they are taken; their bytes are counted.
fn flood(sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> {
    let piece = Bytes::from(format!("data: {}\n\n", "x".repeat(64 * 1024)));
    stream::iter(std::iter::repeat_with(move || {
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(piece.clone())
    }))
}

/// Waits until nothing more is sent, and says how much was.
async fn until_stuck(sent: &AtomicU64) -> u64 {
    let wait = async {
        let (mut last, mut unchanged) = (0, 0);
        while unchanged < 25 {
            sleep(Duration::from_millis(20)).await;
            let now = sent.load(Ordering::Relaxed);
            unchanged = if now == last { unchanged + 1 } else { 0 };
            last = now;
        }
        last
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("it is sent on and on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_upstream_and_memory_does_not_grow() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let upstream = Router::new().fallback(move || async move {
        ([("content-type", "text/event-stream")], Body::from_stream(flood(count)))
    });
    let service = service(listen(upstream, &stop).await, 1).await;
    health(&service).await;
    let before = service.memory_kib("VmRSS");

    let mut reader = TcpStream::connect(service.address).await.unwrap();
    let request = format!(
        "POST {STREAM} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    reader.write_all(request.as_bytes()).await.unwrap();
    let mut read = 0;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..3 {
        let stuck = until_stuck(&sent).await;
        assert!(stuck - read < 64 << 20, "{stuck} bytes were sent, {read} read");
        let grown = service.memory_kib("VmHWM").saturating_sub(before);
        println!("{} MiB sent, {} MiB read: {grown} KiB more memory", stuck >> 20, read >> 20);
        assert!(grown < SLACK_KIB, "{grown} KiB");
        // It goes on as soon as it is read on.
        for _ in 0..100 {
            reader.read_exact(&mut piece).await.unwrap();
            read += piece.len() as u64;
        }
    }
    drop(reader);
    until_in_flight(&service, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_over_http2_slows_the_upstream_too() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let upstream = Router::new().fallback(move || async move {
        ([("content-type", "text/event-stream")], Body::from_stream(flood(count)))
    });
    let service = service(listen(upstream, &stop).await, 1).await;
    health(&service).await;
    let before = service.memory_kib("VmRSS");

    let (mut client, _connection) = connect(service.address).await;
    let request = http::Request::post(format!("http://localhost{STREAM}"));
    let request = request.header("content-type", "application/json").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data("{}".into(), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    let mut read = 0;
    for more in [32 << 20, 32 << 20, 0] {
        let stuck = until_stuck(&sent).await;
        assert!(stuck - read < 64 << 20, "{stuck} bytes were sent, {read} read");
        let grown = service.memory_kib("VmHWM").saturating_sub(before);
        println!("{} MiB sent, {} MiB read: {grown} KiB more memory", stuck >> 20, read >> 20);
        assert!(grown < SLACK_KIB, "{grown} KiB");
        let goal = read + more;
        while read < goal {
            let piece = answer.data().await.unwrap().unwrap().len();
            answer.flow_control().release_capacity(piece).unwrap();
            read += piece as u64;
        }
    }
    // The stream is reset.
    drop((answer, body));
    until_in_flight(&service, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_disconnected_and_holds_no_slot() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let upstream = Router::new().fallback(move || async move {
        ([("content-type", "text/event-stream")], Body::from_stream(flood(Arc::default())))
    });
    let upstream = listen(upstream, &stop).await;
    let service = Start::with_arguments(&["serve"])
        .set("GEMINI_BASE_URL", &format!("http://{upstream}"))
        .set("GEMINI_API_KEY", "the-server-key")
        .set("CLIENT_TIMEOUT_SECONDS", "2")
        .run()
        .await;
    let mut reader = TcpStream::connect(service.address).await.unwrap();
    let request = format!(
        "POST {STREAM} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    reader.write_all(request.as_bytes()).await.unwrap();
    reader.read_exact(&mut [0; 1024]).await.unwrap();
    until_in_flight(&service, 0).await;
}

/// Counts the bytes of a body and keeps none.
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
    health(&service).await;
    let before = service.memory_kib("VmRSS");
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let body = stream::iter((0..SIZE >> 20).map(move |_| io::Result::Ok(piece.clone())));
    let request = reqwest::Client::new().post(service.url("/upload/v1beta/files"));
    let response = request.body(reqwest::Body::wrap_stream(body)).send().await.unwrap();
    let counted: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(counted["bytes"], SIZE);
    let grown = service.memory_kib("VmHWM") - before;
    println!("an upload of 1 GiB: {grown} KiB more memory, {} in all", service.memory_kib("VmHWM"));
    assert!(grown < SLACK_KIB, "{grown} KiB");
}
