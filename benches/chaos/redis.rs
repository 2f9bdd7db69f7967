//! The Redis that the replicas share.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::clock::{Clock, tidy_up};
use crate::record::Record;

/// A redis-server, which saves its data where it is ended with SIGTERM.
pub struct Redis {
    pub port: u16,
    pub clock: Clock,
    folder: PathBuf,
    process: Mutex<Option<Child>>,
    record: Arc<Record>,
}

impl Redis {
    pub fn new(port: u16, folder: PathBuf, clock: Clock, record: &Arc<Record>) -> Arc<Self> {
        std::fs::create_dir_all(&folder).expect("a folder");
        let process = Mutex::default();
        Arc::new(Self { port, clock, folder, process, record: Arc::clone(record) })
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            // It never saves by itself, but when it is ended.
            .args(["--save", "86400 1000000000", "--rdbcompression", "no"])
            .args(["--logfile", "redis.log"])
            .envs(self.clock.variables(true))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the package redis-server has to be installed");
        *self.process.lock().await = Some(child);
        let began = Instant::now();
        while self.say("PING").await.is_none_or(|answer| !answer.starts_with("+PONG")) {
            assert!(began.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Says something to it, and gives the first part of its answer.
    pub async fn say(&self, command: &str) -> Option<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
            stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
            let mut answer = [0; 256];
            let read = stream.read(&mut answer).await.ok()?;
            Some(String::from_utf8_lossy(&answer[..read]).into_owned())
        };
        timeout(Duration::from_secs(2), exchange).await.ok()?
    }

    /// Ends it. After SIGTERM it has saved its data.
    pub async fn stop(&self, signal: Signal) {
        let Some(mut child) = self.process.lock().await.take() else { return };
        let id = child.id();
        send(id, signal);
        if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
            _ = child.kill().await;
        }
        id.into_iter().for_each(tidy_up);
        self.search();
    }

    /// Forgets what it saved.
    pub fn wipe(&self) {
        _ = std::fs::remove_file(self.folder.join("dump.rdb"));
    }

    /// Stops it for a while.
    pub async fn pause(&self, time: Duration) {
        let id = self.process.lock().await.as_ref().and_then(Child::id);
        send(id, Signal::STOP);
        sleep(time).await;
        send(id, Signal::CONT);
    }

    /// Searches what it has saved and logged for keys.
    fn search(&self) {
        for file in ["dump.rdb", "redis.log"] {
            let text = std::fs::read(self.folder.join(file)).unwrap_or_default();
            self.record.search(&format!("Redis, {file}"), &text);
        }
    }
}

fn send(process: Option<u32>, signal: Signal) {
    if let Some(pid) = process.and_then(|id| Pid::from_raw(id.cast_signed())) {
        _ = kill_process(pid, signal);
    }
}
