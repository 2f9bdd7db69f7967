//! The real program, as a process of its own, with nothing of this one's surroundings.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use reqwest::RequestBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::support::{PATIENCE, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gemini-concurrent-generation");

/// How the program is started: unless told otherwise, over a simulator of its own, on a free port
/// of the loopback address, in an empty folder.
pub struct Start {
    arguments: Vec<&'static str>,
    variables: Vec<(String, OsString)>,
    folder: TempDir,
    most_files: Option<usize>,
}

/// The program at work. It is killed when it is dropped.
pub struct Process {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    _folder: TempDir,
}

impl Start {
    pub fn simulated() -> Self {
        Self::with_arguments(&["serve", "--simulate"])
    }

    pub fn with_arguments(arguments: &[&'static str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let start =
            Self { arguments: arguments.to_vec(), variables: Vec::new(), folder, most_files: None };
        start.set("HOST", "127.0.0.1").set("PORT", "0")
    }

    /// Sets an environment variable.
    pub fn set(self, name: &str, value: &str) -> Self {
        self.set_bytes(name, value.as_bytes())
    }

    /// Sets an environment variable to what need not be text.
    pub fn set_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.variables.push((name.to_owned(), OsStr::from_bytes(value).to_owned()));
        self
    }

    /// Removes the variable that a start sets of itself.
    pub fn unset(mut self, name: &str) -> Self {
        self.variables.retain(|(variable, _)| variable != name);
        self
    }

    /// Puts a `.env` into the folder.
    pub fn dotenv(self, text: &str) -> Self {
        std::fs::write(self.folder.path().join(".env"), text).expect("a file");
        self
    }

    /// Lets the program have no more than so many files and connections open at once.
    pub fn most_files(self, most_files: usize) -> Self {
        Self { most_files: Some(most_files), ..self }
    }

    fn command(&self) -> Command {
        let mut command = match self.most_files {
            None => Command::new(PROGRAM),
            Some(most) => {
                let mut shell = Command::new("/bin/sh");
                let script = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                shell.args(["-c", &script, PROGRAM]);
                shell
            }
        };
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub async fn output(self) -> Output {
        let output = timeout(PATIENCE, self.command().output()).await;
        output.expect("it did not end").expect("it did not start")
    }

    /// Starts it and waits until it listens.
    pub async fn run(self) -> Process {
        let mut child = self.command().spawn().expect("it did not start");
        let log = Arc::new(Mutex::new(String::new()));
        tokio::spawn(keep(child.stderr.take().expect("its log"), Arc::clone(&log)));
        until("it listens", || listening(&log.lock().unwrap()).is_some()).await;
        let address = listening(&log.lock().unwrap()).expect("its address");
        Process { address, child, log, _folder: self.folder }
    }
}

/// Keeps what a process logs.
async fn keep(stderr: ChildStderr, log: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        writeln!(log.lock().unwrap(), "{line}").expect("a string takes everything");
    }
}

/// The address in the line that says so.
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

    pub fn get(&self, path: &str) -> RequestBuilder {
        client().get(self.url(path))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = client().post(self.url(path)).header("content-type", "application/json");
        request.body(body.to_string())
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged something.
    pub async fn until_logged(&self, text: &str) {
        until(text, || self.log.lock().unwrap().contains(text)).await;
    }

    /// Asks it to stop.
    pub async fn terminate(&self) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("/bin/sh").args(["-c", "kill -TERM \"$0\"", &id]).status().await;
        assert!(sent.expect("a shell").success());
    }

    /// Waits for its end; gives the code it ended with, and the log.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it did not end");
        let code = status.expect("its status").code();
        (code, self.log())
    }
}

/// A client that opens a connection for each request and keeps none.
fn client() -> reqwest::Client {
    // The first choice of a process stands, and every one is this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0);
    builder.build().expect("a client")
}
