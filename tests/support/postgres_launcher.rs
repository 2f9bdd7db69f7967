//! Starts a PostgreSQL server as a child process, on a free port. The unit tests and the integration tests
//! include this file.
//!
//! The server refuses to run as root, so root starts it as the user `postgres`, whom the package makes.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::sleep;
use tokio_postgres::NoTls;

/// How long a server may take until it answers, or until it has ended.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Settings for many short-lived servers. What a killed server wrote is still in the memory of the
/// system, so nothing needs to be synced.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "shared_buffers=16MB",
    "max_connections=40",
    "autovacuum_naptime=5s",
];

/// A PostgreSQL server, until it is dropped.
pub struct Postgres {
    process: Child,
    port: u16,
    folder: TempDir,
    /// Settings of this server.
    settings: Vec<String>,
}

impl Postgres {
    /// Starts a server with an empty database and waits until it answers.
    pub async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        Self::start_in(folder, Vec::new()).await
    }

    /// The same with TLS, with a certificate and its key from PEM files. Connections without TLS are
    /// accepted too.
    pub async fn start_with_tls(certificate: &str, key: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut settings = vec!["ssl=on".to_owned()];
        for (setting, from) in [("ssl_cert_file", certificate), ("ssl_key_file", key)] {
            let file = folder.path().join(setting);
            fs::copy(from, &file).expect("a file");
            // The server refuses a key that others may read.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its owner");
            give_to_postgres(&file);
            settings.push(format!("{setting}={}", file.display()));
        }
        Self::start_in(folder, settings).await
    }

    async fn start_in(folder: TempDir, settings: Vec<String>) -> Self {
        let data = folder.path().join("data");
        copy(&template(), &data);
        // The folder itself is made for its owner only, who is root where root runs the tests.
        give_to_postgres(folder.path());
        let port = free_port();
        Self { process: launch(&data, port, &settings).await, port, folder, settings }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Runs a statement.
    pub async fn execute(&self, statement: &str) -> u64 {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), NoTls).await.expect("it answers");
        let connection = tokio::spawn(connection);
        let rows = client.execute(statement, &[]).await.expect("a valid statement");
        connection.abort();
        rows
    }

    /// Reads a number.
    pub async fn number(&self, query: &str) -> i64 {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), NoTls).await.expect("it answers");
        let connection = tokio::spawn(connection);
        let row = client.query_one(query, &[]).await.expect("a valid query");
        connection.abort();
        row.get(0)
    }

    /// Sends a signal to the server's first process.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Sends a signal to all processes of the server.
    pub fn signal_all(&self, signal: Signal) {
        let parent = self.pid();
        let children = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
        let children = fs::read_to_string(children).expect("a list of processes");
        self.signal(signal);
        for child in children.split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).expect("a process id");
            // It may just have ended.
            let _ = kill_process(child, signal);
        }
    }

    fn pid(&self) -> Pid {
        let id = self.process.id().expect("it runs");
        Pid::from_raw(id.cast_signed()).expect("a process id")
    }

    /// Stops the server at once, as a crash does.
    pub async fn stop(&mut self) {
        self.signal(Signal::QUIT);
        self.process.wait().await.expect("a child process");
    }

    /// Starts it again on the same port, with the same data.
    pub async fn start_again(&mut self) {
        let data = self.folder.path().join("data");
        self.process = launch(&data, self.port, &self.settings).await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.id().is_none() {
            return;
        }
        // A server that is killed leaves shared memory behind.
        self.signal_all(Signal::CONT);
        self.signal(Signal::QUIT);
        let started = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && started.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn launch(data: &Path, port: u16, settings: &[String]) -> Child {
    let mut command = as_postgres("postgres");
    command.arg("-D").arg(data).args(["-p", &port.to_string(), "-k", ""]);
    for setting in SETTINGS.iter().copied().chain(settings.iter().map(String::as_str)) {
        command.args(["-c", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let mut server = command.kill_on_drop(true).spawn().expect("PostgreSQL must be installed");
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let started = Instant::now();
    while tokio_postgres::connect(&url, NoTls).await.is_err() {
        let status = server.try_wait().expect("a child process");
        assert!(status.is_none(), "PostgreSQL ended: {status:?}");
        assert!(started.elapsed() < TIMEOUT, "PostgreSQL does not answer");
        sleep(Duration::from_millis(5)).await;
    }
    server
}

/// The data of a new server, made once and copied for each: making it takes a second.
fn template() -> PathBuf {
    let programs = programs();
    let version = programs.parent().and_then(Path::file_name).expect("a version");
    let name = format!(
        "gemini-concurrent-generation-postgres-{}-{}",
        version.to_string_lossy(),
        getuid().as_raw()
    );
    let template = std::env::temp_dir().join(name);
    if template.is_dir() {
        return template;
    }
    // Other tests may make it too. The first wins.
    let new = TempDir::new().expect("a folder");
    give_to_postgres(new.path());
    let data = new.path().join("data");
    let mut initdb = as_postgres("initdb");
    initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
    initdb.args(["--no-sync", "--no-locale"]);
    let output = initdb.output().expect("PostgreSQL must be installed");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "initdb failed: {log}");
    drop(fs::rename(&data, &template));
    template
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success(), "the data of a new server are copied");
}

fn give_to_postgres(folder: &Path) {
    if getuid().is_root() {
        let given = Command::new("chown").arg("postgres").arg(folder).status().expect("chown");
        assert!(given.success(), "the user postgres must exist: install PostgreSQL");
    }
}

/// A program of PostgreSQL, run by a user for whom it runs.
fn as_postgres(program: &str) -> Command {
    let program = programs().join(program);
    if !getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    // The folder of the tests may be closed to that user.
    command.current_dir("/");
    command
}

/// The folder of the server's programs, which Debian does not add to the path: the newest version.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin"));
    let newest = versions.filter(|programs| programs.join("postgres").exists()).max();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).find(|programs| programs.join("initdb").exists());
    newest.or(in_path).expect("the package postgresql must be installed")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
