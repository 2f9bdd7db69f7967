//! The network: accept connections, and on shutdown let those that are at work finish.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long accepting rests after it failed. Running out of file descriptors is the usual reason,
/// and only time helps: a loop without a rest would take a whole core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a health check waits, and how much of an answer it reads, in bytes.
const HEALTH_PATIENCE: Duration = Duration::from_secs(3);
const MAX_HEALTH_ANSWER: u64 = 64 * 1024;

/// How patient the server is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a client takes to send its headers, to go on reading, or between two requests of a
    /// connection.
    pub client: Duration,
    /// How long work in flight may take to finish after the shutdown.
    pub grace: Duration,
}

/// A runtime that serves connections, and what it serves them with.
///
/// A connection stays with its worker. Where each worker is one thread, whatever a request wakes,
/// locks or frees is on the same processor; with threads that share their work, a request changes
/// between them several times.
#[derive(Debug, Clone)]
pub struct Worker {
    runtime: Handle,
    router: Router,
}

impl Worker {
    /// A worker on a thread of its own, for as long as the process runs.
    ///
    /// # Errors
    /// Where the system has no thread or no event queue left.
    pub fn start(router: Router) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Self { runtime: runtime.handle().clone(), router };
        let thread = std::thread::Builder::new().name("worker".to_owned());
        thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(worker)
    }

    /// A worker on the runtime that this is called on.
    pub fn here(router: Router) -> Self {
        Self { runtime: Handle::current(), router }
    }
}

/// Serves until `shutdown` is cancelled, each worker in its turn a connection; then accepts nothing more, closes idle connections, and
/// returns when the others are done or the grace period is over, whichever is first.
pub async fn serve(
    listener: TcpListener,
    workers: Vec<Worker>,
    patience: Patience,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let abandon = CancellationToken::new();
    let mut workers = workers.iter().cycle();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let Some(Worker { runtime, router }) = workers.next() else { return };
                let connection = connection(stream, router.clone(), patience, shutdown.clone());
                let abandon = abandon.clone();
                let connection = async move { abandon.run_until_cancelled(connection).await };
                connections.spawn_on(connection, runtime);
            }
            Err(error) => rest(&error).await,
        }
    }
    drop(listener);
    connections.close();
    if timeout(patience.grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "the grace period is over; cutting off");
        abandon.cancel();
        connections.wait().await;
    }
}

async fn rest(error: &io::Error) {
    // The other side gave up before it was accepted: nothing is wrong here.
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tracing::error!(%error, "a connection could not be accepted");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// One connection, from its first request to its last.
async fn connection(
    stream: TcpStream,
    router: Router,
    patience: Patience,
    shutdown: CancellationToken,
) {
    // It was accepted elsewhere; from here on this runtime hears of it.
    let here = stream.into_std().and_then(TcpStream::from_std);
    let stream = match here.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection could not be served"),
    };
    let service =
        service_fn(|request: hyper::Request<_>| router.clone().oneshot(request.map(Body::new)));
    // A client that hangs up ends the connection, which drops the handler at work for it.
    // One who reads no more would hold for ever what the answer holds.
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(patience.client));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.client)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Whether a service at the address answers `GET /` with success.
///
/// # Errors
/// What it did instead.
pub async fn answers(address: SocketAddr) -> Result<(), io::Error> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(MAX_HEALTH_ANSWER).read_to_end(&mut answer).await?;
        let healthy = answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200");
        healthy.then_some(()).ok_or_else(|| io::Error::other("it does not answer with 200"))
    };
    timeout(HEALTH_PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
