//! `config check`, and settings that a running process takes over on SIGHUP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::process::{Process, Start};
use crate::replicas::until_connected;
use crate::sharing::backends;
use crate::support::{TEST_TIMEOUT, answer, slow, until};

/// A process with a `.env` that changes.
struct Reloaded {
    process: Process,
    folder: Arc<TempDir>,
}

impl Reloaded {
    async fn start(dotenv: &str) -> Self {
        Self::with(Start::simulated(), dotenv).await
    }

    async fn with(start: Start, dotenv: &str) -> Self {
        let folder = Arc::new(TempDir::new().expect("a folder"));
        let process = start.inside(&folder).dotenv(dotenv).run().await;
        Self { process, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, dotenv: &str) {
        std::fs::write(self.path(".env"), dotenv).expect("a file");
    }

    /// Sends SIGHUP, and waits until this text is logged once more.
    async fn signal(&self, logged: &str) {
        let count = |process: &Process| process.log().matches(logged).count();
        let before = count(&self.process);
        self.process.signal("HUP").await;
        until(logged, || count(&self.process) > before).await;
    }

    /// Takes over a new `.env`.
    async fn reload(&self, dotenv: &str) {
        self.write(dotenv);
        self.signal("the settings are reloaded").await;
    }

    async fn concurrency(&self) -> Value {
        self.process.health().await["concurrency_status"].clone()
    }

    /// Waits until this many calls are in flight and this many requests wait.
    async fn until_busy(&self, in_flight: usize, waiting: usize) {
        let wait = async {
            loop {
                let now = self.concurrency().await;
                if now["in_flight"] == in_flight && now["waiting"] == waiting {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.expect("it was never that busy");
    }

    async fn chat(&self) -> (StatusCode, Value) {
        let chat = answer(self.process.post("/chat", &json!({"prompt": "Hello"}))).await;
        (chat.status, chat.body)
    }
}

#[tokio::test]
async fn a_new_concurrency_limit_starts_waiting_calls() {
    let service = Reloaded::start("GEMINI_CONCURRENCY_LIMIT=2\nMAX_QUEUED_REQUESTS=3").await;
    let body = json!({"prompt": slow(3_000_000)});
    let chats: Vec<_> =
        (0..5).map(|_| tokio::spawn(service.process.post("/chat", &body).send())).collect();
    service.until_busy(2, 3).await;
    let (status, refused) = service.chat().await;
    assert_eq!((status.as_u16(), &refused["code"]), (503, &json!("queue_full")));
    service.reload("GEMINI_CONCURRENCY_LIMIT=4\nMAX_QUEUED_REQUESTS=0").await;
    service.until_busy(4, 1).await;
    service.reload("GEMINI_CONCURRENCY_LIMIT=6").await;
    service.until_busy(5, 0).await;
    assert_eq!(service.chat().await.0, StatusCode::OK);
    service.reload("GEMINI_CONCURRENCY_LIMIT=1").await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 1);
    assert_eq!(service.concurrency().await["in_flight"], 5, "no call is taken away");
    chats.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn new_quotas_count_what_was_spent_before() {
    let service = Reloaded::start("GEMINI_LIMITS=*:rpd=1").await;
    assert_eq!(service.chat().await.0, StatusCode::OK);
    let (status, refused) = service.chat().await;
    assert_eq!((status.as_u16(), &refused["code"]), (429, &json!("daily_quota_exhausted")));
    service.reload("GEMINI_LIMITS=*:rpd=3").await;
    assert_eq!(service.chat().await.0, StatusCode::OK);
    service.reload("GEMINI_LIMITS=server@*:rpd=2").await;
    assert_eq!(service.chat().await.0.as_u16(), 429);
    service.reload("").await;
    assert_eq!(service.chat().await.0, StatusCode::OK);
}

#[tokio::test]
async fn references_within_the_file_have_their_new_values() {
    let dotenv = |limit: u32| format!("CALLS={limit}\nGEMINI_CONCURRENCY_LIMIT=${{CALLS}}");
    let service = Reloaded::start(&dotenv(2)).await;
    service.reload(&dotenv(4)).await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 4);
}

#[tokio::test]
async fn a_running_job_uses_a_new_concurrency_limit() {
    // More than a job has in its window with the first limit.
    const CALLS: usize = 300;
    let service = Reloaded::start("GEMINI_CONCURRENCY_LIMIT=2").await;
    let requests = vec![json!({"prompt": slow(3_000_000)}); 2 * CALLS];
    let job = json!({"kind": "chat", "requests": requests});
    let job = answer(service.process.post("/jobs", &job)).await;
    assert_eq!(job.status, StatusCode::ACCEPTED);
    service.process.until_in_flight(2).await;
    service.reload(&format!("GEMINI_CONCURRENCY_LIMIT={CALLS}")).await;
    service.process.until_in_flight(CALLS).await;
}

#[tokio::test]
async fn prices_and_the_log_filter_are_read_again() {
    let service = Reloaded::start("RUST_LOG=info").await;
    let cost = async |service: &Reloaded| service.chat().await.1["usage"]["cost_usd"].clone();
    let write = |service: &Reloaded, price: u32| {
        let model = format!("[models.\"gemini-3.5-flash-lite\"]\ninput = {price}\noutput = 0\n");
        std::fs::write(service.path("prices.toml"), format!("updated = 2027-01-01\n{model}"))
            .expect("a file");
    };
    let mut before = cost(&service).await;
    for price in [1000, 2000] {
        write(&service, price);
        service.reload("GEMINI_PRICES_FILE=prices.toml\nRUST_LOG=info").await;
        let after = cost(&service).await;
        assert!(after.as_f64() > before.as_f64(), "{before} {after}");
        before = after;
    }
    assert!(!service.process.log().contains("DEBUG"), "{}", service.process.log());
    service
        .reload("GEMINI_PRICES_FILE=prices.toml\nRUST_LOG=gemini_concurrent_generation=debug")
        .await;
    answer(service.process.get("/readyz")).await;
    service.process.until_logged("DEBUG").await;
}

#[tokio::test]
async fn one_invalid_setting_keeps_all_as_they_were() {
    let service = Reloaded::start("GEMINI_CONCURRENCY_LIMIT=2").await;
    for broken in [
        "GEMINI_CONCURRENCY_LIMIT=9\nRUST_LOG=loud=very\nMAX_BODY_BYTES=secret",
        "GEMINI_CONCURRENCY_LIMIT=9\nthe-secret",
    ] {
        service.write(broken);
        service.signal("all stay as they were").await;
        assert_eq!(service.concurrency().await["global_concurrency_limit"], 2);
    }
    std::fs::remove_file(service.path(".env")).unwrap();
    // Nobody would ever write into the pipe.
    let pipe = std::process::Command::new("mkfifo").arg(service.path(".env")).status();
    assert!(pipe.unwrap().success());
    service.signal("it is not a regular file").await;
    std::fs::remove_file(service.path(".env")).unwrap();
    service.signal("the file is missing").await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 2);
    let log = service.process.log();
    for name in ["setting=\"RUST_LOG\"", "setting=\"MAX_BODY_BYTES\"", "origin=.env, line 3"] {
        assert!(log.contains(name), "{log}");
    }
    assert!(!log.contains("secret"), "{log}");
    service.reload("GEMINI_CONCURRENCY_LIMIT=9").await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 9);
}

#[tokio::test]
async fn settings_that_take_a_restart_are_named_and_the_environment_precedes_the_file() {
    let start = Start::simulated().set("GEMINI_CONCURRENCY_LIMIT", "3");
    let service = Reloaded::with(start, "").await;
    service
        .reload("GEMINI_CONCURRENCY_LIMIT=9\nGEMINI_CHAT_MODEL=gemini-a\nMAX_QUEUED_REQUESTS=5")
        .await;
    service.process.until_logged("which takes a restart").await;
    let log = service.process.log();
    assert!(log.contains("settings=\"GEMINI_CHAT_MODEL\""), "{log}");
    assert!(log.contains("changed=\"MAX_QUEUED_REQUESTS\""), "{log}");
    let health = service.process.health().await;
    assert_eq!(health["concurrency_status"]["global_concurrency_limit"], 3);
    assert_eq!(health["default_models"]["chat"], "gemini-3.5-flash-lite");
}

#[tokio::test]
async fn a_new_concurrency_limit_of_one_replica_holds_for_all() {
    let backends = backends().await;
    let start = || backends.replica(2).unset("GEMINI_CONCURRENCY_LIMIT");
    let two = Reloaded::with(start(), "GEMINI_CONCURRENCY_LIMIT=9").await;
    let one = Reloaded::with(start(), "GEMINI_CONCURRENCY_LIMIT=2").await;
    let body = json!({"prompt": slow(3_000_000)});
    let chats: Vec<_> =
        (0..4).map(|_| tokio::spawn(two.process.post("/chat", &body).send())).collect();
    backends.until_in_flight(2).await;
    one.reload("GEMINI_CONCURRENCY_LIMIT=4").await;
    backends.until_in_flight(4).await;
    // Its limit has not changed, so it does not set it again.
    two.reload("GEMINI_CONCURRENCY_LIMIT=9\nRUST_LOG=debug").await;
    let body = json!({"prompt": "Hello"});
    let waits = tokio::spawn(one.process.post("/chat", &body).send());
    one.until_busy(4, 1).await;
    waits.abort();
    chats.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn settings_stay_as_they_were_while_redis_is_unavailable() {
    let mut backends = backends().await;
    let start = backends.replica(2).unset("GEMINI_CONCURRENCY_LIMIT");
    let service = Reloaded::with(start, "GEMINI_CONCURRENCY_LIMIT=2").await;
    backends.redis.stop().await;
    until_connected(&service.process, false).await;
    service.write("GEMINI_CONCURRENCY_LIMIT=5\nMAX_QUEUED_REQUESTS=0");
    service.signal("all stay as they were").await;
    backends.redis.restart().await;
    until_connected(&service.process, true).await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 2);
    service.reload("GEMINI_CONCURRENCY_LIMIT=5").await;
    assert_eq!(service.concurrency().await["global_concurrency_limit"], 5);
    assert!(service.process.log().contains("changed=\"GEMINI_CONCURRENCY_LIMIT\""));
}

#[tokio::test]
async fn a_replica_whose_port_is_in_use_does_not_change_the_limit_of_others() {
    let backends = backends().await;
    let replica = backends.replica(7).run().await;
    let port = replica.address.port().to_string();
    let other = backends.replica(2).unset("PORT").set("PORT", &port).output().await;
    let log = String::from_utf8(other.stderr).expect("a text");
    assert_eq!(other.status.code(), Some(1), "{log}");
    assert!(log.contains("cannot listen on"), "{log}");
    // Redis answers in the order of requests, so this comes after what the other one did.
    answer(replica.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(replica.health().await["concurrency_status"]["global_concurrency_limit"], 7);
}

async fn check(start: Start) -> (Option<i32>, String, String) {
    let output = start.output().await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("a text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn config_check() -> Start {
    Start::with_arguments(&["config", "check"])
}

#[tokio::test]
async fn config_check_prints_the_settings_that_hold_without_secrets() {
    let start = config_check()
        .set("GEMINI_API_KEY", "the-secret")
        .dotenv("GEMINI_TIER=tier3\nREDIS_URL=redis://:secret@host\nGEMINI_CONCURENCY_LIMIT=3\n");
    let (code, settings, errors) = check(start).await;
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(errors, "warning: .env sets GEMINI_CONCURENCY_LIMIT, which is no setting\n");
    for line in [
        "GEMINI_API_KEY=*** # environment",
        "REDIS_URL=*** # .env, line 2",
        "GEMINI_TIER=tier3 # .env, line 1",
        "GEMINI_CONCURRENCY_LIMIT=100 # default",
        "LOG_FORMAT=text # default",
    ] {
        assert!(settings.lines().any(|shown| shown == line), "{line}: {settings}");
    }
    assert!(!settings.contains("secret"), "{settings}");
}

#[tokio::test]
async fn config_check_reports_every_error() {
    let wrong = [("GEMINI_TIER", "gold"), ("LOG_FORMAT", "xml-secret"), ("RUST_LOG", "loud=very")];
    let start = wrong.iter().fold(config_check(), |start, (name, value)| start.set(name, value));
    let (code, settings, errors) =
        check(start.set_bytes("HOST", b"\xff").dotenv("\nMAX_BODY_BYTES=secret")).await;
    assert_eq!(code, Some(1));
    for name in ["HOST", "GEMINI_TIER", "MAX_BODY_BYTES", "LOG_FORMAT", "RUST_LOG"] {
        let reported = errors.lines().filter(|line| line.starts_with(&format!("{name}: ")));
        assert_eq!(reported.count(), 1, "{errors}");
        assert!(settings.contains(&format!("{name}= # invalid")), "{settings}");
    }
    for end in ["or more (.env, line 2)\n", "text or json (environment)\n"] {
        assert!(errors.contains(end), "{errors}");
    }
    assert!(errors.ends_with("gemini-concurrent-generation: 5 settings are invalid\n"), "{errors}");
    assert!(!(errors + &settings).contains("secret"));
    let (code, _, errors) = check(config_check().dotenv("the-secret")).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains(".env: line 1: expected NAME=value"), "{errors}");
    assert!(!errors.contains("secret"), "{errors}");
}
