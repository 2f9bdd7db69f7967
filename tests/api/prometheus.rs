//! A real Prometheus: it scrapes the real program under load, answers every expression of the Grafana
//! dashboard and of the alerts, and stores exemplars. Its tool checks the alerts.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use gemini_concurrent_generation::metrics::TraceId;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use regex::Regex;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::manual::{file, text};
use crate::process::{Process, Start};
use crate::redis_server::free_port;
use crate::support::{ADMIN_KEY, Service, TEST_TIMEOUT, admin, answer};

const RULES: &str = "deploy/prometheus/alerts.yaml";

/// A Prometheus on a free port, until it is dropped.
struct Prometheus {
    _process: Child,
    port: u16,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these addresses every second, with the alerts of the manual.
    async fn start(targets: &[String]) -> Self {
        let (folder, port) = (TempDir::new().expect("a folder"), free_port());
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [file(RULES)],
            "scrape_configs": [{
                "job_name": "gemini-gateway",
                "static_configs": [{"targets": targets}],
            }],
        });
        // JSON is YAML, too.
        let path = folder.path().join("prometheus.yaml");
        std::fs::write(&path, config.to_string()).expect("a file");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--enable-feature=exemplar-storage")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the package prometheus must be installed");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(TEST_TIMEOUT).build().expect("a client");
        let started = Self { _process: process, port, http, _folder: folder };
        let is_ready = async || {
            let url = format!("http://127.0.0.1:{}/-/ready", started.port);
            started.http.get(url).send().await.is_ok_and(|ready| ready.status().is_success())
        };
        until("Prometheus is ready", is_ready).await;
        started
    }

    /// What a path of its API gives.
    async fn get(&self, path: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The series that an expression gives now.
    async fn query(&self, expression: &str) -> Vec<Value> {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.get(&format!("query?query={encoded}")).await;
        data["result"].as_array().expect("a list").clone()
    }

    /// The names of all metrics that it has.
    async fn names(&self) -> BTreeSet<String> {
        let names = self.get("label/__name__/values").await;
        serde_json::from_value(names).expect("a list of names")
    }
}

/// Waits until a condition holds.
async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let wait = async {
        while !is().await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timed out: {what}"));
}

/// The expressions of the Grafana dashboard, as Grafana sends them.
fn dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions: Vec<_> = targets
        .map(|target| target["expr"].as_str().expect("an expression"))
        .map(|expression| {
            let filled = expression.replace("$payer", ".*").replace("$model", ".*");
            filled.replace("$__rate_interval", "4s")
        })
        .collect();
    assert!(expressions.len() > 40 && !expressions.concat().contains('$'), "{expressions:?}");
    expressions
}

/// The metrics that an expression names.
fn names(expression: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\b(?:gemini_gateway|process)_[a-z0-9_]+").unwrap();
    name.find_iter(expression).map(|found| found.as_str().to_owned()).collect()
}

/// Calls of every kind that the dashboard distinguishes, until it is dropped: answered ones, retries,
/// refusals, calls that are not admitted, batches and jobs.
fn load(service: &Arc<Process>) -> AbortOnDropHandle<()> {
    let service = Arc::clone(service);
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let item = json!({"prompt": "fine [[simulate:latency_ms=20]]"});
            let batch = json!({"requests": vec![item; 5]});
            answer(service.post("/batch/chat", &batch)).await;
            let fails_once = json!({"prompt": "[[simulate:status=500,fail_times=1]]"});
            answer(service.post("/chat", &fails_once)).await;
            // A key of its own, whose day is then used up.
            for prompt in ["fine", "[[simulate:quota=day]]"] {
                let credentials = json!({"gemini_api_key": "the-key-of-a-caller"});
                let body = json!({"prompt": prompt, "credentials": credentials});
                answer(service.post("/chat", &body)).await;
            }
            let job = service.request(Method::POST, "/jobs?kind=chat");
            let line = format!("{}\n", json!({"prompt": "fine"}));
            answer(job.header("content-type", "application/x-ndjson").body(line)).await;
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_has_data_for_every_panel_and_knows_every_metric_of_the_alerts() {
    let program = Start::simulated().set("ADMIN_API_KEY", ADMIN_KEY).set("GEMINI_TIER", "tier3");
    let program = Arc::new(program.run().await);
    let semaphore = json!({"semaphore_id": "images", "limit": 2});
    answer(admin(program.post("/_admin/semaphores", &semaphore))).await;
    let _load = load(&program);
    // The program records no traces here. This service names one.
    let service = Service::start().await;
    let trace = Some(TraceId([0xab; 16]));
    service.gateway.metrics.admitted(Duration::from_millis(20), trace);
    let targets = [program.address, service.address].map(|address| address.to_string());
    let prometheus = Prometheus::start(&targets).await;

    until("both are scraped", async || prometheus.query("up == 1").await.len() == targets.len())
        .await;
    for expression in dashboard() {
        until(&expression, async || !prometheus.query(&expression).await.is_empty()).await;
    }

    let known = prometheus.names().await;
    let rules = prometheus.get("rules").await;
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    assert!(rules.len() > 10, "{rules:?}");
    for rule in &rules {
        let expression = rule["query"].as_str().expect("an expression");
        let unknown: Vec<_> = names(expression).difference(&known).cloned().collect();
        assert_eq!(unknown, [""; 0], "{expression}");
        until(expression, async || {
            let rules = prometheus.get("rules").await;
            let rules = rules["groups"][0]["rules"].as_array().expect("rules");
            rules.iter().any(|again| again["name"] == rule["name"] && again["health"] == "ok")
        })
        .await;
    }

    let name = "gemini_gateway_queue_wait_seconds_bucket";
    let times = "start=0&end=9999999999";
    let exemplars =
        async || prometheus.get(&format!("query_exemplars?query={name}&{times}")).await.to_string();
    until("the exemplar is stored", async || {
        exemplars().await.contains(&format!("\"trace_id\":\"{}\"", "ab".repeat(16)))
    })
    .await;
}

/// Runs Prometheus's tool on a file.
async fn promtool(arguments: &[&str], path: &Path) {
    let output = Command::new("promtool").args(arguments).arg(path).output().await;
    let output = output.expect("the package prometheus must be installed");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {printed}{errors}", path.display());
}

#[tokio::test]
async fn the_alerts_fire_when_they_should_and_not_otherwise() {
    promtool(&["check", "config"], &file("deploy/prometheus/prometheus.yaml")).await;
    promtool(&["check", "rules"], &file(RULES)).await;
    promtool(&["test", "rules"], &file("deploy/prometheus/alerts_test.yaml")).await;
    // Every alert is tested.
    let tested = text("deploy/prometheus/alerts_test.yaml");
    let alerts = text(RULES);
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let untested: Vec<_> =
        alerts.filter(|alert| tested.matches(&format!("alertname: {alert}")).count() < 2).collect();
    assert_eq!(untested, [""; 0]);
}

#[tokio::test]
async fn the_metrics_pass_prometheus_own_lint() {
    let service = Service::start().await;
    service.chat("[[simulate:status=503,fail_times=1]]").await;
    service.gateway.history.sample().await;
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("metrics");
    std::fs::write(&path, metrics).expect("a file");
    let script = format!("promtool check metrics < {}", path.display());
    let output = Start::shell(&script).output().await;
    let problems = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{problems}");
}
