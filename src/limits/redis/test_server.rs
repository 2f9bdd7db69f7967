//! A Redis server for unit tests.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;

use super::{RedisSettings, SharedStore};

#[path = "../../../tests/support/redis_launcher.rs"]
mod launcher;

const PREFIX: &str = "test";

/// A redis-server on a free port, until it is dropped.
pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub(crate) async fn start() -> Self {
        let (port, folder) = (launcher::free_port(), TempDir::new().expect("a folder"));
        let process = launcher::launch(port, folder.path(), |command| {
            command.args(["--save", ""]);
        });
        Self { process: process.await, port, _folder: folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A new connection to it.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("it answers")
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.id().expect("it runs");
        let process = Pid::from_raw(id.cast_signed()).expect("a process id");
        kill_process(process, signal).expect("it runs");
    }

    /// A store in it. The server counts as long-running.
    pub(crate) async fn store(&self, limit: usize) -> Arc<SharedStore> {
        self.store_with_lease(limit, Duration::from_secs(30)).await
    }

    /// The same, with another replica lease.
    pub(crate) async fn store_with_lease(&self, limit: usize, lease: Duration) -> Arc<SharedStore> {
        launcher::mark_as_long_running(&self.url(), PREFIX).await;
        let settings = RedisSettings { url: self.url().into(), prefix: PREFIX.to_owned(), lease };
        SharedStore::connect(&settings, limit).await.expect("it answers")
    }
}
