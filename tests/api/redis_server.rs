//! A redis-server as a child process.

use redis::Client;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::timeout;

use crate::process::kill;
use crate::support::TEST_TIMEOUT;

#[path = "../support/redis_launcher.rs"]
mod launcher;

pub use launcher::free_port;

/// A redis-server on a free port, until it is dropped.
pub struct RedisServer {
    process: Option<Child>,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// A server that loses everything when it stops.
    pub async fn start() -> Self {
        Self::with(&["--save", ""]).await
    }

    /// A server with these options.
    pub async fn with(options: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { process: None, port: free_port(), folder, options };
        server.restart().await;
        server
    }

    /// Starts it again after it was stopped, and waits until it answers.
    pub async fn restart(&mut self) {
        let launched = launcher::launch(self.port, self.folder.path(), |command| {
            command.args(&self.options);
        });
        self.process = Some(launched.await);
    }

    /// Stops it with SIGTERM.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill(&process, "TERM").await;
        timeout(TEST_TIMEOUT, process.wait())
            .await
            .expect("it did not end in time")
            .expect("its status");
    }

    /// Sends it a signal.
    pub async fn signal(&self, signal: &str) {
        kill(self.process.as_ref().expect("it runs"), signal).await;
    }

    async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("it answers")
    }

    pub async fn execute(&self, command: &redis::Cmd) {
        command.exec_async(&mut self.connection().await).await.expect("the command succeeds");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many requests wait for the global limit of a prefix.
    pub async fn waiting(&self, prefix: &str) -> usize {
        let count = redis::cmd("ZCARD").arg(format!("{{{prefix}}}:queue:0")).to_owned();
        count.query_async(&mut self.connection().await).await.expect("a count")
    }

    /// Makes it count as long-running for the replicas with a prefix.
    pub async fn mark_as_long_running(&self, prefix: &str) {
        launcher::mark_as_long_running(&self.url(), prefix).await;
    }
}
