//! `with-permit` runs commands while holding a lease, from one real program to another.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::timeout;

use crate::process::{Process, Start, kill};
use crate::support::{ADMIN_KEY, TEST_TIMEOUT, admin, answer, until};

const LEASES: &str = "/_admin/semaphores/jobs/leases";

/// A service with the semaphore `jobs`, and a file to which commands write.
struct Site {
    service: Process,
    folder: TempDir,
}

async fn serve() -> Process {
    Start::simulated().set("ADMIN_API_KEY", ADMIN_KEY).run().await
}

impl Site {
    async fn with_limit(limit: usize) -> Self {
        let site = Self { service: serve().await, folder: TempDir::new().expect("a folder") };
        site.register(limit).await;
        site
    }

    async fn register(&self, limit: usize) {
        let semaphore = json!({"semaphore_id": "jobs", "limit": limit});
        let registered = answer(admin(self.service.post("/_admin/semaphores", &semaphore))).await;
        assert!(registered.status.is_success());
    }

    /// The program with the service's address and the file's path in `$LOG`.
    fn program(&self, arguments: &[&'static str]) -> Start {
        Start::with_arguments(arguments)
            .unset("PORT")
            .set("PORT", &self.service.address.port().to_string())
            .set("ADMIN_API_KEY", ADMIN_KEY)
            .set("LOG", self.file().to_str().expect("a path in UTF-8"))
    }

    /// A shell script that runs with a permit.
    fn script(&self, script: &'static str) -> Start {
        self.script_with(&[], script)
    }

    /// The same, with options before the semaphore's name.
    fn script_with(&self, options: &[&'static str], script: &'static str) -> Start {
        let command = ["jobs", "--", "/bin/sh", "-c", script];
        self.program(&[&["with-permit"], options, &command].concat())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the commands have written so far.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until_written(&self, line: &str) {
        until(line, || self.lines().iter().any(|written| written == line)).await;
    }

    async fn leases(&self) -> Vec<Value> {
        let listed = answer(admin(self.service.get(LEASES))).await.body;
        listed["leases"].as_array().expect("a list").clone()
    }

    async fn until_waiting(&self, count: usize) {
        let waiting = async {
            loop {
                let listed = answer(admin(self.service.get("/_admin/semaphores"))).await.body;
                if listed["semaphores"][0]["waiting"] == count {
                    return;
                }
            }
        };
        timeout(TEST_TIMEOUT, waiting).await.expect("not enough are waiting");
    }
}

async fn end(child: Child) -> Output {
    let output =
        timeout(TEST_TIMEOUT, child.wait_with_output()).await.expect("it did not end in time");
    output.expect("its output")
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The jobs that run according to the log, and the highest number that ran at once.
fn running(lines: &[String]) -> (HashSet<String>, usize) {
    let (mut now, mut most) = (HashSet::new(), 0);
    for line in lines {
        let (what, job) = line.split_once(' ').expect("two words");
        match what {
            "start" => assert!(now.insert(job.to_owned()), "{line}"),
            _ => assert!(now.remove(job), "{line}"),
        }
        most = most.max(now.len());
    }
    (now, most)
}

/// Each job logs its start, runs until its input ends, and logs its end.
#[tokio::test]
async fn ten_concurrent_jobs_never_exceed_the_limit() {
    let site = Site::with_limit(3).await;
    let script = "echo start $JOB >> $LOG; read line; echo end $JOB >> $LOG; exit $JOB";
    let programs = [(); 10].map(|()| site.script(script));
    let mut jobs: Vec<_> = programs
        .into_iter()
        .enumerate()
        .map(|(job, program)| {
            let program = program.set("JOB", &job.to_string());
            (Some(program.spawn()), program)
        })
        .collect();
    site.until_waiting(7).await;
    until("three run", || running(&site.lines()).0.len() == 3).await;
    for ended in 1..=10 {
        let (now, _) = running(&site.lines());
        let job: usize = now.iter().next().expect("one runs").parse().unwrap();
        let mut child = jobs[job].0.take().expect("it still runs");
        drop(child.stdin.take());
        assert_eq!(end(child).await.status.code(), Some(i32::try_from(job).unwrap()));
        let expected = (10 - ended).min(3);
        until("the next runs", || running(&site.lines()).0.len() == expected).await;
    }
    let lines = site.lines();
    assert_eq!((lines.len(), running(&lines).1), (20, 3), "{lines:?}");
    assert_eq!(site.leases().await, [] as [Value; 0]);
}

#[tokio::test]
async fn the_command_gets_its_lease_and_its_callers_environment() {
    let site = Site::with_limit(5).await;
    let arguments = [
        "with-permit",
        "--permits",
        "2",
        "--ttl",
        "90.5",
        "--holder",
        "me",
        "jobs",
        "--",
        "/bin/sh",
        "-c",
        "echo $PERMIT_LEASE_ID $PERMIT_FENCING_TOKEN; env >&2; echo ready >> $LOG; read line; \
         echo \"$line, $0 $1\"",
        "-x",
        "--permits",
    ];
    let program = site
        .program(&arguments)
        .unset("ADMIN_API_KEY")
        .dotenv("ADMIN_API_KEY=the-admin-key\nGEMINI_API_KEY=the-secret\n");
    let mut child = program.spawn();
    site.until_written("ready").await;
    let leases = site.leases().await;
    assert_eq!(
        (leases.len(), &leases[0]["holder"], &leases[0]["permits"]),
        (1, &json!("me"), &json!(2))
    );
    let mut input = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, b"typed in\n").await.unwrap();
    let output = end(child).await;
    assert_eq!(output.status.code(), Some(0));
    let token = &leases[0]["fencing_token"];
    let id = leases[0]["lease_id"].as_str().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text, format!("{id} {token}\ntyped in, -x --permits\n"));
    let environment = errors(&output);
    assert!(environment.contains("LOG="), "{environment}");
    assert!(!environment.contains("API_KEY"), "the command gets nothing from .env");
    assert_eq!(site.leases().await, [] as [Value; 0]);
}

#[tokio::test]
async fn its_exit_status_is_the_commands() {
    let site = Site::with_limit(1).await;
    for (script, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -KILL $$", 128 + 9),
        ("kill -TERM $$", 128 + 15),
    ] {
        let output = site.script(script).output().await;
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    for (command, code) in [("/no/such/command", 127), ("/etc", 126)] {
        let output = site.program(&["with-permit", "jobs", "--", command]).output().await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(errors(&output).contains(command), "{output:?}");
    }
    assert_eq!(site.leases().await, [] as [Value; 0]);
}

#[tokio::test]
async fn signals_are_forwarded_and_the_lease_is_released_when_the_command_ends() {
    let site = Site::with_limit(1).await;
    for (signal, code) in [("INT", 42), ("TERM", 43), ("HUP", 44)] {
        std::fs::write(site.file(), "").unwrap();
        let program = site.script(
            "trap 'echo signalled >> $LOG; read line; exit 42' INT; \
             trap 'echo signalled >> $LOG; read line; exit 43' TERM; \
             trap 'echo signalled >> $LOG; read line; exit 44' HUP; \
             echo ready >> $LOG; while :; do sleep 0.01; done",
        );
        let mut child = program.spawn();
        site.until_written("ready").await;
        kill(&child, signal).await;
        site.until_written("signalled").await;
        assert_eq!(site.leases().await.len(), 1, "the command has not ended");
        drop(child.stdin.take());
        assert_eq!(end(child).await.status.code(), Some(code), "{signal}");
        assert_eq!(site.leases().await, [] as [Value; 0]);
    }
}

#[tokio::test]
async fn the_command_ignores_the_signals_that_its_caller_ignores() {
    let site = Site::with_limit(1).await;
    let program = site.script("echo ready >> $LOG; read line; kill -s HUP $$; echo unharmed");
    let mut child = program.ignoring("HUP").spawn();
    site.until_written("ready").await;
    kill(&child, "HUP").await;
    drop(child.stdin.take());
    let output = end(child).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "unharmed\n");
}

#[tokio::test]
async fn a_signal_during_the_wait_ends_it_and_leaves_the_queue() {
    let site = Site::with_limit(1).await;
    let body = json!({"holder": "outside", "ttl_seconds": 600});
    let lease = answer(admin(site.service.post(LEASES, &body))).await.body;
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let program = site.script("echo ran >> $LOG");
        let child = program.spawn();
        site.until_waiting(1).await;
        kill(&child, signal).await;
        assert_eq!(end(child).await.status.code(), Some(code));
        site.until_waiting(0).await;
    }
    assert_eq!(site.leases().await, [lease]);
    assert!(site.lines().is_empty());
}

#[tokio::test]
async fn a_renewed_lease_outlives_its_ttl() {
    let site = Site::with_limit(1).await;
    let program = site.script_with(&["--ttl", "1"], "echo ready >> $LOG; read line; exit 0");
    let mut child = program.spawn();
    site.until_written("ready").await;
    // Another request waits for longer than the ttl and gets nothing.
    let body = json!({"holder": "other", "ttl_seconds": 60, "wait_seconds": 2.5});
    let other = answer(admin(site.service.post(LEASES, &body))).await;
    assert_eq!(other.body["code"], "lease_unavailable");
    drop(child.stdin.take());
    assert_eq!(end(child).await.status.code(), Some(0));
}

#[tokio::test]
async fn the_command_is_stopped_when_its_lease_is_lost() {
    let site = Site::with_limit(1).await;
    let program = site.script_with(
        &["--ttl", "1"],
        "trap 'echo stopped >> $LOG; exit 3' TERM; echo ready >> $LOG; \
         while :; do sleep 0.01; done",
    );
    let child = program.spawn();
    site.until_written("ready").await;
    let id = site.leases().await[0]["lease_id"].as_str().unwrap().to_owned();
    let path = format!("{LEASES}/{id}");
    answer(admin(site.service.request(Method::DELETE, &path))).await;
    let output = end(child).await;
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let text = errors(&output);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("the lease was lost") && text.contains(&id), "{text}");
    site.until_written("stopped").await;

    // The service is unavailable for longer than the lease lives.
    std::fs::write(site.file(), "").unwrap();
    let child = program.spawn();
    site.until_written("ready").await;
    site.service.terminate().await;
    let output = end(child).await;
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(errors(&output).contains("could not be renewed in time"), "{output:?}");
    assert_eq!(site.lines(), ["ready", "stopped"]);
}

#[tokio::test]
async fn an_error_before_the_command_starts_is_one_line_and_an_exit_status() {
    let site = Site::with_limit(2).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = "echo ran >> $LOG";
    let other = site.program(&["with-permit", "lost", "--", "/bin/sh", "-c", run]);
    let many = site.script_with(&["--permits", "3"], run);
    let url = site.script_with(&["--url", "ftp://x"], run);
    let unreachable = site.script(run).unset("PORT").set("PORT", &free.port().to_string());
    let wrong_key = site.script(run).unset("ADMIN_API_KEY").set("ADMIN_API_KEY", "wrong");
    let no_key = site.script(run).unset("ADMIN_API_KEY");
    let setting = site.script(run).set("GEMINI_TIER", "gold");
    for (program, code, expected) in [
        (other, 69, "no semaphore \"lost\""),
        (many, 69, "limit of 2"),
        (url, 69, "http://"),
        (unreachable, 69, "cannot be reached"),
        (wrong_key, 77, "Admin-API-Key"),
        (no_key, 77, "ADMIN_API_KEY"),
        (setting, 78, "GEMINI_TIER"),
    ] {
        let output = program.output().await;
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with("gemini-concurrent-generation: ") && text.contains(expected),
            "{text}"
        );
    }
    for arguments in [
        &["with-permit", "jobs"][..],
        &["with-permit", "jobs", "--"],
        &["with-permit", "--ttl", "0.5", "jobs", "--", "true"],
        &["with-permit", "--ttl", "NaN", "jobs", "--", "true"],
        &["with-permit", "--permits", "0", "jobs", "--", "true"],
        &["with-permit", "--holder", "", "jobs", "--", "true"],
        &["with-permit", "a/b", "--", "true"],
    ] {
        let output = site.program(arguments).output().await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    assert!(site.lines().is_empty());
    assert_eq!(site.leases().await, [] as [Value; 0]);
}

/// The service ends while a command waits, and restarts. The wait continues there.
#[tokio::test]
async fn a_waiting_client_reconnects_when_the_connection_breaks() {
    let Site { service, folder } = Site::with_limit(1).await;
    let body = json!({"holder": "outside", "ttl_seconds": 600});
    answer(admin(service.post(LEASES, &body))).await;
    let site = Site { service, folder };
    let child = site.script("echo ran >> $LOG; exit 5").spawn();
    site.until_waiting(1).await;
    let port = site.service.address.port().to_string();
    let Site { service, folder } = site;
    service.kill().await;
    let restarted =
        Start::simulated().unset("PORT").set("PORT", &port).set("ADMIN_API_KEY", ADMIN_KEY);
    let site = Site { service: restarted.run().await, folder };
    site.register(1).await;
    assert_eq!(end(child).await.status.code(), Some(5));
    assert_eq!(site.lines(), ["ran"]);
}
