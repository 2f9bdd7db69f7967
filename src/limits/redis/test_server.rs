//! A Redis for tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{RedisSettings, SharedStore};

/// A redis-server on a free port that is stopped on drop.
pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it accepts connections.
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

    /// A connection for the test itself.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("it answers")
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// A store in the server, which is marked as known so that permits are granted at once.
    pub(crate) async fn store(&self, limit: usize) -> Arc<SharedStore> {
        self.store_with_lease(limit, Duration::from_secs(30)).await
    }

    /// The same with a replica lease of this length.
    pub(crate) async fn store_with_lease(&self, limit: usize, lease: Duration) -> Arc<SharedStore> {
        let mut connection = self.connection().await;
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("its info");
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("its run");
        let known = redis::cmd("SET").arg("{test}:run").arg(run.trim()).to_owned();
        known.exec_async(&mut connection).await.expect("a key is set");
        let settings = RedisSettings { url: self.url().into(), prefix: "test".to_owned(), lease };
        SharedStore::connect(&settings, limit).await.expect("it answers")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
