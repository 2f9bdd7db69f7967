//! The dashboard in a real browser. The expectations are in `tests/clients/dashboard.test.cjs`.

use std::process::Stdio;
use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::metrics::Sampler;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clients::{SCRIPTS, installed};
use crate::jobs::JobService;
use crate::limits::plan;
use crate::support::{ADMIN_KEY, admin, answer, slow};

/// How long the whole test may take. A browser is slow on a busy machine.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(600);

/// An account with quotas, of which much is used.
fn busy(config: &mut Config) {
    config.concurrency_limit = 20;
    config.quota_plan = plan("*:rpm=100000,tpm=100000000,rpd=1000000", "");
    config.max_attempts = 2;
}

/// Sends chats until it is dropped, some of which fail.
fn load(service: &JobService) -> JoinSet<()> {
    let mut senders = JoinSet::new();
    for sender in 0..3 {
        let (http, url) = (service.http.clone(), service.url("/chat"));
        senders.spawn(async move {
            for number in 0_u32.. {
                let prompt = match (number + sender) % 10 {
                    0 => "[[simulate:status=400]]".to_owned(),
                    1 => "[[simulate:status=503]]".to_owned(),
                    _ => slow(100),
                };
                let chat = http.post(&url).header("content-type", "application/json");
                let _ = chat.body(json!({"prompt": prompt}).to_string()).send().await;
            }
        });
    }
    senders
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_every_page_and_does_every_action() {
    let service = JobService::with(busy).await;
    service.register("images", 5).await;
    let lease = json!({"holder": "render-7", "permits": 2, "ttl_seconds": 3600});
    answer(admin(service.post("/_admin/semaphores/images/leases", &lease))).await;
    // It lasts longer than the test, and some of its items fail.
    let prompts = (0..200_000).map(|item| match item % 5 {
        0 => "[[simulate:status=400]]".to_owned(),
        _ => slow(200),
    });
    let job = service.chats(prompts).await;
    let load = load(&service);
    let history = &service.gateway.history;
    // An account is shown after the first sample in which Gemini has answered.
    while history.accounts().is_empty() {
        history.sample().await;
    }
    let _sampler = Sampler::start(history);

    let modules = installed("node/node_modules");
    let home = TempDir::new().expect("a folder");
    let mut node = Command::new("node");
    node.args(["--test", "--test-concurrency=1", "dashboard.test.cjs"])
        .current_dir(SCRIPTS)
        .env_clear()
        .envs(
            ["PATH", "CHROMIUM", "PICTURES"]
                .into_iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("HOME", home.path())
        .env("NODE_PATH", modules)
        .env("SERVICE_URL", service.url(""))
        .env("ADMIN_KEY", ADMIN_KEY)
        .env("JOB_ID", &job)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(BROWSER_TIMEOUT, node.output()).await;
    let output = output.expect("it did not end in time").expect("it could not be started");
    drop(load);
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
