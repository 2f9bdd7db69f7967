//! A Redis for tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{RedisSettings, SharedStore};

/// A redis-server of its own, on a free port, until it is dropped.
pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its address").port();
        drop(free);
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed: install the package redis-server");
        let server = Self { process, port, _folder: folder };
        let client = redis::Client::open(server.url()).expect("a URL");
        while client.get_multiplexed_async_connection().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection of the test's own.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("it answers")
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// A store in it. The server counts as one that has been up for long.
    pub(crate) async fn store(&self, limit: usize) -> Arc<SharedStore> {
        self.store_with_lease(limit, Duration::from_secs(30)).await
    }

    /// The same, with a tenure of its own.
    pub(crate) async fn store_with_lease(
        &self,
        limit: usize,
        tenure: Duration,
    ) -> Arc<SharedStore> {
        let mut connection = self.connection().await;
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("its info");
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("its run");
        let known = redis::cmd("SET").arg("{test}:run").arg(run.trim()).to_owned();
        known.exec_async(&mut connection).await.expect("a key is set");
        let settings =
            RedisSettings { url: self.url().into(), prefix: "test".to_owned(), lease: tenure };
        SharedStore::connect(&settings, limit).await.expect("it answers")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It has ended already, or does so now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
