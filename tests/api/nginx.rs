//! nginx as a child process, with the configuration of `deploy/nginx`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use regex::Regex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::manual::text;
use crate::redis_server::free_port;
use crate::support::TEST_TIMEOUT;

/// nginx in front of replicas, until it is dropped.
pub struct Nginx {
    pub address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Drop for Nginx {
    /// Stops it with its worker processes, which would outlive a killed master.
    fn drop(&mut self) {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        // It may have ended by itself.
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
    }
}

impl Nginx {
    /// Starts nginx in front of these replicas, and waits until it listens. It keeps idle connections to
    /// them for this many seconds.
    pub async fn start(replicas: &[SocketAddr], keep_alive_seconds: u64) -> Self {
        let folder = TempDir::new().expect("a folder");
        let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
        let servers: Vec<_> =
            replicas.iter().map(|replica| format!("server {replica} max_fails=0;")).collect();
        let mut configuration = text("deploy/nginx/nginx.conf");
        for (what, by) in [
            // The names and the name server exist with Docker only.
            (r"(?s)server gateway-1:.*max_fails=0;", &*servers.join("\n")),
            (r"resolver [^;]*;", ""),
            (r"keepalive_timeout [^;]*;", &format!("keepalive_timeout {keep_alive_seconds}s;")),
            (r"listen [^;]*;", &format!("listen {address};")),
            (r"worker_rlimit_nofile [^;]*;", ""),
            (r"worker_connections [^;]*;", "worker_connections 512;"),
            (r"worker_processes [^;]*;", "worker_processes 2;"),
            (r"/tmp/", &path("")),
        ] {
            let pattern = Regex::new(what).expect("a pattern");
            assert!(pattern.is_match(&configuration), "{what} is not in the file");
            configuration = pattern.replace_all(&configuration, by).into_owned();
        }
        let file = path("nginx.conf");
        std::fs::write(&file, configuration).expect("a file");
        // It is not in the search path of every user.
        let program = ["/usr/sbin/nginx", "nginx"].into_iter().find(|it| Path::new(it).exists());
        let process = Command::new(program.unwrap_or("nginx"))
            .args(["-p", &path(""), "-e", "stderr", "-c", &file, "-g", "daemon off;"])
            .stdin(Stdio::null())
            .spawn()
            .expect("the package nginx must be installed");
        let mut nginx = Self { address, process, _folder: folder };
        timeout(TEST_TIMEOUT, nginx.until_listening()).await.expect("nginx does not listen");
        nginx
    }

    async fn until_listening(&mut self) {
        while TcpStream::connect(self.address).await.is_err() {
            let status = self.process.try_wait().expect("a child process");
            assert!(status.is_none(), "nginx ended: {status:?}");
            sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
