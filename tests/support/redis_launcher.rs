//! Starts a redis-server as a child process. The unit tests, the integration tests and the chaos
//! benchmark include this file.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a server that keeps its files in a folder, and waits until it answers. `configure` adds
/// options and environment variables. The server is killed when the child is dropped.
pub async fn launch(port: u16, folder: &Path, configure: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    configure(&mut command);
    let mut server = command.spawn().expect("the package redis-server must be installed");
    let started = Instant::now();
    while !is_ready(port).await {
        let status = server.try_wait().expect("a child process");
        assert!(status.is_none(), "redis-server ended: {status:?}");
        assert!(started.elapsed() < START_TIMEOUT, "redis-server does not answer");
        sleep(Duration::from_millis(5)).await;
    }
    server
}

async fn is_ready(port: u16) -> bool {
    let reply = execute(port, "PING").await.unwrap_or_default();
    // A server with a password is ready when it asks for it.
    reply.starts_with("+PONG") || reply.starts_with("-NOAUTH")
}

/// Sends an inline command and returns the first bytes of the reply.
pub async fn execute(port: u16, command: &str) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut reply = [0; 256];
        let read = stream.read(&mut reply).await?;
        Ok(String::from_utf8_lossy(&reply[..read]).into_owned())
    };
    timeout(REPLY_TIMEOUT, exchange).await?
}

/// A free port. The port 10,000 above it, which a cluster node uses too, is a valid one.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        if port < 55_000 {
            return port;
        }
    }
}

/// Makes a server count as long-running for the replicas with a prefix. They grant nothing for
/// some time after a start of Redis, since it may have lost who holds what.
pub async fn mark_as_long_running(url: &str, prefix: &str) {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
    let info: String =
        redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("its info");
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("its run id");
    let set = redis::cmd("SET").arg(format!("{{{prefix}}}:run")).arg(run.trim()).to_owned();
    set.exec_async(&mut connection).await.expect("the key is set");
}
