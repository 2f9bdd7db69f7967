//! Clients that people use, each in its own process, with the service in place of Google or OpenAI.
//! The expectations are in the scripts in `tests/clients`.

use std::path::Path;
use std::process::Stdio;

use gemini_concurrent_generation::simulator::JournalEntry;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::jobs::JobService;
use crate::proxies::Certificates;
use crate::support::{ADMIN_KEY, SERVER_KEY, Service, TEST_TIMEOUT};

/// Where `tests/run` installs the clients.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients");
pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

const OWN_KEY: &str = "callers-key";
const BAD_KEY: &str = "invalid-key";

/// A service that refuses instead of waiting, requires a key, and runs jobs.
async fn service() -> JobService {
    JobService::with(|config| {
        config.max_attempts = 1;
        config.environment_fallback = false;
    })
    .await
}

/// The path of an installed file.
pub fn installed(path: &str) -> String {
    let path = format!("{INSTALLED}/{path}");
    assert!(Path::new(&path).exists(), "run tests/run once: it installs them ({path})");
    path
}

/// Runs a client, with only `PATH` of this process's environment. Fails if it fails. Returns its
/// standard output.
async fn run(client: &mut Command, home: &TempDir, variables: &[(&str, &str)]) -> String {
    client
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", home.path())
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(TEST_TIMEOUT, client.output()).await;
    let output = output.expect("it did not end in time").expect("it could not be started");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// Runs a test script and checks the calls that arrived at Gemini.
async fn test(client: &mut Command, variables: &[(&str, &str)]) {
    let service = service().await;
    let calls = calls_of(client, &service, &service.url(""), variables).await;
    let with = |key: &str| calls.iter().filter(|call| call.api_key == key).count();
    assert_eq!((with(SERVER_KEY), with(BAD_KEY)), (1, 1), "{calls:?}");
    assert_eq!(with(OWN_KEY), calls.len() - 2, "{calls:?}");
}

/// Runs a test script of live sessions and checks those that arrived at Gemini, where a bad key is
/// refused before.
async fn test_live(client: &mut Command, tls: bool, variables: &[(&str, &str)]) {
    let (service, certificates) = (service().await, Certificates::new());
    let url = match tls {
        true => format!(
            "https://localhost:{}",
            certificates.terminate_tls(service.address).await.port()
        ),
        false => service.url(""),
    };
    let authority = certificates.path("ca.pem");
    let variables = [variables, &[("SSL_CERT_FILE", &*authority)]].concat();
    let calls = calls_of(client, &service, &url, &variables).await;
    let with = |key: &str| calls.iter().filter(|call| call.api_key == key).count();
    assert_eq!(with(SERVER_KEY), 1, "{calls:?}");
    assert_eq!(with(OWN_KEY), calls.len() - 1, "{calls:?}");
}

/// Runs a test script with the service at a URL. Returns the calls that arrived at Gemini.
async fn calls_of(
    client: &mut Command,
    service: &Service,
    url: &str,
    variables: &[(&str, &str)],
) -> Vec<JournalEntry> {
    let keys = [("OWN_KEY", OWN_KEY), ("ADMIN_KEY", ADMIN_KEY), ("BAD_KEY", BAD_KEY)];
    let variables = [&[("SERVICE_URL", url)], &keys[..], variables].concat();
    run(client.current_dir(SCRIPTS), &TempDir::new().expect("a folder"), &variables).await;
    settled(service).await
}

/// The calls that arrived at Gemini, once each has ended.
async fn settled(service: &Service) -> Vec<JournalEntry> {
    service.until_idle().await;
    let stats = service.simulator.stats();
    assert_eq!((stats.in_flight, stats.cancelled), (0, 0), "{stats:?}");
    service.simulator.journal()
}

#[tokio::test(flavor = "multi_thread")]
async fn google_genai_for_python_works() {
    let mut python = Command::new(installed("python/bin/python"));
    test(python.args(["-B", "-m", "unittest", "test_google_genai"]), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_sessions_of_google_genai_for_python_work() {
    let mut python = Command::new(installed("python/bin/python"));
    python.args(["-B", "-m", "unittest", "test_google_genai_live"]);
    test_live(&mut python, true, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_for_python_works() {
    let mut python = Command::new(installed("python/bin/python"));
    test(python.args(["-B", "-m", "unittest", "test_openai"]), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interactions_of_google_genai_for_python_work() {
    let mut python = Command::new(installed("python/bin/python"));
    test(python.args(["-B", "-m", "unittest", "test_interactions"]), &[]).await;
}

/// Its models' types make pydantic warn.
#[tokio::test(flavor = "multi_thread")]
async fn interactions_of_litellm_work() {
    let mut python = Command::new(installed("python/bin/python"));
    test(python.args(["-B", "-W", "ignore", "-m", "unittest", "test_litellm"]), &[]).await;
}

/// Runs a Node test script.
async fn test_of_node(script: &str, variables: &[(&str, &str)]) {
    let modules = installed("node/node_modules");
    let variables = [&[("NODE_PATH", &*modules)], variables].concat();
    test(Command::new("node").args(["--test", script]), &variables).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn google_genai_for_node_works() {
    test_of_node("google_genai.test.cjs", &[]).await;
}

/// The package asks for Node 22 and works with Node 20 too.
#[tokio::test(flavor = "multi_thread")]
async fn live_sessions_of_google_genai_for_node_work() {
    let modules = installed("node/node_modules");
    for package in ["@google/genai", "@google/genai-3"] {
        let mut node = Command::new("node");
        node.args(["--test", "google_genai_live.test.cjs"]);
        test_live(&mut node, false, &[("NODE_PATH", &modules), ("GENAI", package)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn google_genai_3_for_node_works() {
    test_of_node("google_genai.test.cjs", &[("GENAI", "@google/genai-3")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interactions_of_google_genai_for_node_work() {
    test_of_node("interactions.test.cjs", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interactions_of_google_genai_3_for_node_work() {
    test_of_node("interactions.test.cjs", &[("GENAI", "@google/genai-3")]).await;
}

/// The package asks for Node 22 and works with Node 20 too.
#[tokio::test(flavor = "multi_thread")]
async fn openai_for_node_works() {
    test_of_node("openai.test.cjs", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gemini_cli_works() {
    let (service, home) = (service().await, TempDir::new().expect("a folder"));
    let settings = home.path().join(".gemini");
    std::fs::create_dir(&settings).expect("a folder");
    // Without this setting, a base URL makes the client take the key for that of a server type that
    // it does not know. Usage statistics would go to Google.
    let text = json!({
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": false},
        "general": {"enableAutoUpdate": false, "enableAutoUpdateNotification": false},
    });
    std::fs::write(settings.join("settings.json"), text.to_string()).expect("a file");
    let variables = [
        ("GEMINI_API_KEY", OWN_KEY),
        ("GOOGLE_GEMINI_BASE_URL", &*service.url("")),
        ("GEMINI_CLI_TRUST_WORKSPACE", "true"),
        // Otherwise the client restarts itself, and that process would outlive a failed test.
        ("GEMINI_CLI_NO_RELAUNCH", "true"),
    ];
    let mut gemini = Command::new(installed("node/node_modules/.bin/gemini"));
    gemini.args(["--prompt", "What is two and two?"]).current_dir(home.path());
    let stdout = run(&mut gemini, &home, &variables).await;
    // The prompt begins with what the client knows about the folder.
    assert!(stdout.starts_with("Simulated answer to: "), "{stdout}");
    assert!(stdout.trim_end().ends_with("What is two and two?"), "{stdout}");

    // The client first asks a small model how hard the task is.
    let calls = settled(&service).await;
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls.iter().all(|call| call.api_key == OWN_KEY), "{calls:?}");
}
