//! A Redis, as a process of its own.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use redis::Client;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::process::kill;
use crate::support::TEST_TIMEOUT;

/// A redis-server on a free port, until it is dropped.
pub struct RedisServer {
    process: Option<Child>,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// One that forgets everything when it stops.
    pub async fn start() -> Self {
        Self::with(&["--save", ""]).await
    }

    /// One with options of its own.
    pub async fn with(options: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { process: None, port: free_port(), folder, options };
        server.start_again().await;
        server
    }

    /// Starts it again after it was stopped, and waits until it answers.
    pub async fn start_again(&mut self) {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(&self.options)
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.process = Some(process.expect("the package redis-server has to be installed"));
        let client = Client::open(self.url()).expect("a URL");
        let answers = async {
            while client.get_multiplexed_async_connection().await.is_err_and(|error| {
                // Who asks for a password is there.
                !error.to_string().contains("NOAUTH")
            }) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TEST_TIMEOUT, answers).await.expect("redis-server does not answer");
    }

    /// Stops it as an operator does.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill(&process, "TERM").await;
        timeout(TEST_TIMEOUT, process.wait()).await.expect("it did not end").expect("its status");
    }

    /// Sends it a signal.
    pub async fn signal(&self, signal: &str) {
        kill(self.process.as_ref().expect("it runs"), signal).await;
    }

    /// Says something to it.
    pub async fn say(&self, command: &redis::Cmd) {
        let client = Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        command.exec_async(&mut connection).await.expect("it does so");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many wait for the global slot of a prefix.
    pub async fn waiting(&self, prefix: &str) -> usize {
        let client = Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        let count = redis::cmd("ZCARD").arg(format!("{{{prefix}}}:queue:0")).to_owned();
        count.query_async(&mut connection).await.expect("a count")
    }

    /// Makes a prefix's limits those of a Redis that has been up for long: after a start, nothing
    /// is granted at first, since it may have forgotten who holds what.
    pub async fn season(&self, prefix: &str) {
        let client = Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("its info");
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("its run");
        let set = redis::cmd("SET").arg(format!("{{{prefix}}}:run")).arg(run.trim()).to_owned();
        set.exec_async(&mut connection).await.expect("a key is set");
    }
}

/// A free port that leaves room for a node's second one, 10,000 higher.
pub fn free_port() -> u16 {
    loop {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its address").port();
        if port < 55_000 {
            return port;
        }
    }
}
