//! Serves routers in this process. Several benchmarks include this file.

use std::net::SocketAddr;
use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::server::{ServerLimits, Worker, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves on a free port until the token is cancelled.
pub async fn listen(workers: Vec<Worker>, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let client_timeout = Duration::from_secs(600);
    let limits = ServerLimits {
        client_timeout,
        grace: Duration::ZERO,
        ..ServerLimits::of(&Config::default())
    };
    tokio::spawn(serve(listener, workers, limits, stop.clone()));
    address
}
