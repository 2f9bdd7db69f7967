//! The real program as a child process with a clean environment.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::support::{TEST_TIMEOUT, answer, until};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_gemini-concurrent-generation");

/// How the program is started: by default over its own simulator, on a free port of the loopback
/// address, in an empty folder.
pub struct Start {
    program: &'static str,
    arguments: Vec<String>,
    variables: Vec<(String, OsString)>,
    folder: Arc<TempDir>,
    /// Where it is started, below the folder.
    subfolder: String,
    /// Shell commands that run before the shell becomes the program.
    before: Option<String>,
}

/// The running program. It is killed when dropped.
pub struct Process {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    /// Reads the log to its end.
    kept: Option<JoinHandle<()>>,
    _folder: Arc<TempDir>,
}

impl Start {
    pub fn simulated() -> Self {
        Self::with_arguments(&["serve", "--simulate"])
    }

    pub fn with_arguments(arguments: &[&str]) -> Self {
        Self::program(PROGRAM, arguments)
    }

    /// A script that bash runs, and that stops at the first command that fails.
    pub fn shell(script: &str) -> Self {
        let start = Self::program("/bin/bash", &["-eu", "-c", script]);
        start.set("PATH", &std::env::var("PATH").expect("a PATH"))
    }

    fn program(program: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let folder = Arc::new(TempDir::new().expect("a folder"));
        let (variables, subfolder) = (Vec::new(), String::new());
        let start = Self { program, arguments, variables, folder, subfolder, before: None };
        start.set("HOST", "127.0.0.1").set("PORT", "0")
    }

    /// Sets an environment variable.
    pub fn set(self, name: &str, value: &str) -> Self {
        self.set_bytes(name, value.as_bytes())
    }

    /// Sets an environment variable to a value that need not be text.
    pub fn set_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.variables.push((name.to_owned(), OsStr::from_bytes(value).to_owned()));
        self
    }

    /// Removes a variable that a start sets by default.
    pub fn unset(mut self, name: &str) -> Self {
        self.variables.retain(|(variable, _)| variable != name);
        self
    }

    /// Writes a `.env` file into the folder.
    pub fn dotenv(self, text: &str) -> Self {
        std::fs::write(self.folder.path().join(".env"), text).expect("a file");
        self
    }

    /// Starts it in a new folder below its own.
    pub fn in_subfolder(mut self, name: &str) -> Self {
        std::fs::create_dir(self.folder.path().join(name)).expect("a folder");
        self.subfolder = name.to_owned();
        self
    }

    /// Starts it in another folder than an empty one of its own.
    pub fn inside(self, folder: &Arc<TempDir>) -> Self {
        Self { folder: Arc::clone(folder), ..self }
    }

    /// Limits how many files and connections the program may have open at once.
    pub fn file_limit(self, file_limit: usize) -> Self {
        self.before(&format!("ulimit -n {file_limit}"))
    }

    /// Sets the program's initial (soft) limit of open files, which it may raise.
    pub fn initial_file_limit(self, files: usize) -> Self {
        self.before(&format!("ulimit -S -n {files}"))
    }

    /// Starts the program with a signal ignored, as `nohup` does.
    pub fn ignoring(self, signal: &str) -> Self {
        self.before(&format!("trap '' {signal}"))
    }

    /// Runs shell commands before the program starts, in its folder.
    pub fn before(self, commands: &str) -> Self {
        Self { before: Some(commands.to_owned()), ..self }
    }

    /// Starts a program that does not listen, and leaves it running until it is dropped. Its input,
    /// output and errors are pipes.
    pub fn spawn(&self) -> Child {
        self.command().stdin(Stdio::piped()).spawn().expect("it could not be started")
    }

    fn command(&self) -> Command {
        let mut command = match &self.before {
            None => Command::new(self.program),
            Some(before) => {
                let mut shell = Command::new("/bin/sh");
                let script = format!("{before}; exec \"$0\" \"$@\"");
                shell.args(["-c", &script, self.program]);
                shell
            }
        };
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path().join(&self.subfolder))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub async fn output(self) -> Output {
        let output = timeout(TEST_TIMEOUT, self.command().output()).await;
        output.expect("it did not end in time").expect("it could not be started")
    }

    /// Starts it and waits until it listens.
    pub async fn run(self) -> Process {
        let mut child = self.command().spawn().expect("it could not be started");
        let log = Arc::new(Mutex::new(String::new()));
        let kept = tokio::spawn(keep(child.stderr.take().expect("its log"), Arc::clone(&log)));
        until("it listens", || listening(&log.lock().unwrap()).is_some()).await;
        let address = listening(&log.lock().unwrap()).expect("its address");
        Process { address, child, log, kept: Some(kept), _folder: self.folder }
    }

    /// Starts it, waits until it listens, and then stops reading its log. The log stays open as
    /// long as the second value is kept.
    pub async fn run_unread(self) -> (Process, Lines<BufReader<ChildStderr>>) {
        let mut child = self.command().spawn().expect("it could not be started");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let ready = async {
            loop {
                let line = lines.next_line().await.expect("its log").expect("it has not ended");
                if let Some(address) = listening(&line) {
                    return address;
                }
            }
        };
        let address = timeout(TEST_TIMEOUT, ready).await.expect("it listens");
        let log = Arc::default();
        let process = Process { address, child, log, kept: None, _folder: self.folder };
        (process, lines)
    }
}

/// Collects what a process logs.
async fn keep(stderr: ChildStderr, log: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        writeln!(log.lock().unwrap(), "{line}").expect("writing to a string cannot fail");
    }
}

/// The address in the log line that reports it.
fn listening(log: &str) -> Option<SocketAddr> {
    log.lines().find_map(|line| {
        if let Ok(line) = serde_json::from_str::<Value>(line) {
            let ready = line["message"] == "ready";
            return ready.then(|| line["address"].as_str()?.parse().ok()).flatten();
        }
        let (_, fields) = line
            .split_once("ready address=")
            .or_else(|| line.split_once("simulating Gemini address="))?;
        fields.split(' ').next()?.parse().ok()
    })
}

impl Process {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        client().request(method, self.url(path))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        client().get(self.url(path))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = client().post(self.url(path)).header("content-type", "application/json");
        request.body(body.to_string())
    }

    /// What it reports at `GET /`.
    pub async fn health(&self) -> Value {
        answer(self.get("/")).await.body
    }

    /// Waits until this many calls are in flight.
    pub async fn until_in_flight(&self, calls: usize) {
        let wait = async {
            while self.health().await["concurrency_status"]["in_flight"] != calls {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let arrived = timeout(TEST_TIMEOUT, wait).await;
        arrived.unwrap_or_else(|_| panic!("{calls} calls were never in flight"));
    }

    /// Its memory in KiB: `VmRSS`, resident now, or `VmHWM`, the highest so far.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let process = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// The soft and hard limits of its open files.
    pub fn file_limits(&self) -> [String; 2] {
        let process = self.child.id().expect("it runs");
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("Linux");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let mut numbers = line.expect("the limit").split_whitespace().map(ToOwned::to_owned);
        [(); 2].map(|()| numbers.next().expect("a number"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until this text is in the log.
    pub async fn until_logged(&self, text: &str) {
        until(text, || self.log.lock().unwrap().contains(text)).await;
    }

    /// Sends SIGTERM.
    pub async fn terminate(&self) {
        kill(&self.child, "TERM").await;
    }

    /// Sends a signal.
    pub async fn signal(&self, signal: &str) {
        kill(&self.child, signal).await;
    }

    /// Kills it.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Waits until it ends. Returns its exit code and the log.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let status =
            timeout(TEST_TIMEOUT, self.child.wait()).await.expect("it did not end in time");
        let code = status.expect("its status").code();
        if let Some(kept) = self.kept.take() {
            timeout(TEST_TIMEOUT, kept).await.expect("its log is still open").expect("it is read");
        }
        (code, self.log())
    }
}

/// Sends a signal to a process.
pub async fn kill(child: &Child, signal: &str) {
    let id = child.id().expect("it runs").to_string();
    let script = "kill -s \"$0\" \"$1\"";
    let sent = Command::new("/bin/sh").args(["-c", script, signal, &id]).status().await;
    assert!(sent.expect("a shell").success());
}

/// A client that opens a connection for each request and keeps none.
fn client() -> reqwest::Client {
    // The first default provider that is installed stays, and every caller installs this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().timeout(TEST_TIMEOUT).pool_max_idle_per_host(0);
    builder.build().expect("a client")
}
