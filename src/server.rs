//! The HTTP server: accepts connections, and drains them at shutdown.

mod connection;
mod connections;
mod exchange;
mod files;
mod http2;
mod shutdown;
mod state;
mod stream;
mod timer;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use connection::connection;
use connections::{Acceptor, ConnectionGuard};

pub use files::{affordable_connections, raise_limit};
pub use shutdown::Shutdown;

/// How long connections that are cut off may take to end.
const CUT_OFF_TIME: Duration = Duration::from_secs(1);

/// The timeout of a health check, and the most bytes of the answer that it reads.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_HEALTH_ANSWER: u64 = 64 * 1024;

/// Limits on clients.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// How long a client may take to send its headers, or to continue reading.
    pub client_timeout: Duration,
    /// How long an idle connection is kept open between two requests.
    pub keep_alive: Duration,
    /// How long work in flight may take to finish after shutdown begins.
    pub grace: Duration,
    /// The most connections that are open at once.
    pub max_connections: usize,
}

impl ServerLimits {
    /// The limits from the settings.
    pub fn of(config: &Config) -> Self {
        Self {
            client_timeout: config.client_timeout,
            keep_alive: config.keep_alive,
            grace: config.shutdown_grace,
            max_connections: config.max_connections,
        }
    }
}

/// A runtime that serves connections with a router.
///
/// A connection stays with its worker. If each worker is one thread, everything that a request wakes,
/// locks or frees is on the same processor. On a runtime that shares work between threads, a request
/// moves between processors several times.
#[derive(Debug, Clone)]
pub struct Worker {
    runtime: Handle,
    router: Router,
}

impl Worker {
    /// Starts a worker on its own thread, for the life of the process.
    ///
    /// # Errors
    /// If the system cannot create a thread or an event queue.
    pub fn start(router: Router) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Self { runtime: runtime.handle().clone(), router };
        let thread = std::thread::Builder::new().name("worker".to_owned());
        thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(worker)
    }

    /// A worker on the current runtime.
    pub fn here(router: Router) -> Self {
        Self { runtime: Handle::current(), router }
    }
}

/// Serves until the shutdown begins, distributing connections to the workers in turn. Then accepts
/// nothing more, closes idle connections, and returns when the others are done or the grace period is
/// over.
///
/// No client loses a request that it has begun to send: connections that it believes to be established
/// are accepted, and new ones have a moment for their first request. On Linux, a client whose
/// connection is not accepted any more learns that before it can send anything.
pub async fn serve(
    listener: TcpListener,
    workers: Vec<Worker>,
    limits: ServerLimits,
    shutdown: impl Into<Shutdown>,
) {
    let shutdown = shutdown.into();
    let tasks = TaskTracker::new();
    let abandon = CancellationToken::new();
    let mut acceptor = Acceptor::new(listener, limits.max_connections);
    let mut workers = workers.iter().cycle();
    let mut start = |(socket, open): (TcpStream, ConnectionGuard)| {
        let Some(Worker { runtime, router }) = workers.next() else { return };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        let abandon = abandon.clone();
        let connection = async move {
            let connection = connection(socket, router, limits, shutdown, &open);
            let session = abandon.run_until_cancelled(connection).await.flatten();
            if let Some(session) = session {
                // It ends in its own protocol.
                session(abandon).await;
            }
        };
        tasks.spawn_on(connection, runtime);
    };
    while let Some(accepted) = shutdown.begins.run_until_cancelled(acceptor.accept()).await {
        start(accepted);
    }
    let mut last = acceptor.into_last();
    while let Some(accepted) = last.accept().await {
        start(accepted);
    }
    drop(last);
    tasks.close();
    let in_time = tokio::select! {
        () = tasks.wait() => true,
        () = sleep(limits.grace) => false,
        () = shutdown.ends_now.cancelled() => false,
    };
    if !in_time {
        tracing::warn!(connections = tasks.len(), "the grace period is over: closing connections");
        abandon.cancel();
        // A task that never yields cannot be cut off.
        let _ = timeout(CUT_OFF_TIME, tasks.wait()).await;
    }
}

/// Whether a gateway at this address answers `GET` of a path with 200.
///
/// # Errors
/// What happened instead.
pub async fn answers(address: SocketAddr, path: &str) -> Result<(), io::Error> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_HEALTH_ANSWER).read_to_end(&mut answer).await?;
        let healthy = answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200");
        healthy.then_some(()).ok_or_else(|| io::Error::other("it does not answer with 200"))
    };
    timeout(HEALTH_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
