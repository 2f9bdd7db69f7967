//! The Redis that the replicas share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::clock::{Clock, tidy_up};
use crate::record::Record;

#[expect(dead_code, reason = "the replicas here wait until Redis counts as long-running")]
#[path = "../../tests/support/redis_launcher.rs"]
mod launcher;

pub use launcher::free_port;

/// The redis-server, which saves its data when it is ended with SIGTERM.
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

    /// Starts it and waits until it answers.
    pub async fn start(&self) {
        let server = launcher::launch(self.port, &self.folder, |command| {
            // It saves only when it is stopped.
            command.args(["--save", "86400 1000000000", "--rdbcompression", "no"]);
            command.args(["--logfile", "redis.log"]).envs(self.clock.variables(true));
        });
        *self.process.lock().await = Some(server.await);
    }

    /// Runs a command.
    pub async fn execute(&self, command: &str) {
        // Redis may be stopped; the next start does not depend on the reply.
        _ = launcher::execute(self.port, command).await;
    }

    /// Ends it. On SIGTERM it saves its data first.
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

    /// Deletes its saved data.
    pub fn wipe(&self) {
        _ = std::fs::remove_file(self.folder.join("dump.rdb"));
    }

    /// Stops it for some time.
    pub async fn pause(&self, time: Duration) {
        let id = self.process.lock().await.as_ref().and_then(Child::id);
        send(id, Signal::STOP);
        sleep(time).await;
        send(id, Signal::CONT);
    }

    /// Searches its saved data and its log for keys.
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
