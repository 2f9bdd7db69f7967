//! A whole service over a simulator, both in this process, each on its own port.

use std::net::SocketAddr;
use std::time::Duration;

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::{AdminKey, Config};
use gemini_concurrent_generation::dashboard::Dashboard;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::ApiKey;
use gemini_concurrent_generation::limits::Occupancy;
use gemini_concurrent_generation::server::{ServerLimits, Worker, serve};
use gemini_concurrent_generation::simulator::{Options, Simulator};
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const ADMIN_KEY: &str = "the-admin-key";
pub const SERVER_KEY: &str = "the-server-key";

/// How long anything in a test may take before the test fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A service that runs until it is dropped.
pub struct Service {
    pub simulator: Simulator,
    pub gateway: Gateway,
    pub address: SocketAddr,
    pub http: reqwest::Client,
    _stop: DropGuard,
    /// The folder of its jobs.
    _data: TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Service {
    /// A service with the settings of a typical installation.
    pub async fn start() -> Self {
        Self::with(Options::default(), |_| {}).await
    }

    /// A service over a simulator with these options, with some settings changed.
    pub async fn with(options: Options, change: impl FnOnce(&mut Config)) -> Self {
        let stop = CancellationToken::new();
        let simulator = Simulator::new(Options { journal: true, ..options });
        let upstream = listen(simulator.router(), &stop).await;
        let data = TempDir::new().expect("a folder");
        let mut config = Config {
            base_url: format!("http://{upstream}"),
            admin_api_key: Some(AdminKey::new(ADMIN_KEY)),
            ..Config::default()
        };
        config.set_gemini_api_key(ApiKey::new(SERVER_KEY).expect("a key"));
        config.job_store.folder = data.path().join("data");
        change(&mut config);
        let gateway = Gateway::new(config, true).expect("the simulator has a base URL");
        let pages = Dashboard::new(stop.clone()).routes(gateway.clone());
        let address = listen(api::router_with(gateway.clone(), pages), &stop).await;
        let http = reqwest::Client::builder().timeout(TEST_TIMEOUT).build().expect("a client");
        Self { simulator, gateway, address, http, _stop: stop.drop_guard(), _data: data }
    }

    /// A service over another upstream than the simulator.
    pub async fn over(base_url: &str) -> Self {
        Self::over_with(base_url, |_| {}).await
    }

    /// The same, with some settings changed.
    pub async fn over_with(base_url: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(Options::default(), |config| {
            config.base_url = base_url.to_owned();
            change(config);
        })
        .await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path))
    }

    pub fn head(&self, path: &str) -> RequestBuilder {
        self.http.head(self.url(path))
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.http.delete(self.url(path)).header("Admin-API-Key", ADMIN_KEY)
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.http.post(self.url(path)).header("content-type", "application/json");
        request.body(body.to_string())
    }

    /// Sends a chat with the server's key.
    pub async fn chat(&self, prompt: impl Into<String>) -> Answer {
        answer(self.post("/chat", &json!({"prompt": prompt.into()}))).await
    }

    /// Creates a semaphore or changes its limit.
    pub async fn register(&self, id: &str, limit: u64) -> Answer {
        let body = json!({"semaphore_id": id, "limit": limit});
        answer(admin(self.post("/_admin/semaphores", &body))).await
    }

    /// What `GET /_admin/limits` shows.
    pub async fn limits(&self) -> Value {
        answer(admin(self.get("/_admin/limits"))).await.body
    }

    /// The limits of the only account and model in use.
    pub async fn only_account(&self) -> Value {
        let limits = self.limits().await;
        assert_eq!(limits["count"], 1, "{limits}");
        limits["limits"][0].clone()
    }

    /// The value of a series at `GET /metrics`, labels included; 0 if it is missing.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until the limiter's occupancy meets a condition.
    pub async fn until(&self, what: &str, is: impl Fn(Occupancy) -> bool) {
        until(what, || is(self.gateway.limiter.occupancy())).await;
    }

    /// Waits until nothing is in flight or waiting and every slot is free.
    pub async fn until_idle(&self) {
        self.until("every slot is free", |limiter| {
            limiter.in_flight == 0 && limiter.waiting == 0 && limiter.available == limiter.limit
        })
        .await;
    }
}

/// A request of the administrator's.
pub fn admin(request: RequestBuilder) -> RequestBuilder {
    request.header("Admin-API-Key", ADMIN_KEY)
}

/// The body of a request on Gemini's surface.
pub fn contents(prompt: &str) -> Value {
    json!({"contents": [{"parts": [{"text": prompt}]}]})
}

/// A port on which nothing listens.
pub fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A prompt whose answer takes this long.
pub fn slow(latency_ms: u64) -> String {
    format!("[[simulate:latency_ms={latency_ms}]]")
}

/// Sends a request and reads the answer to its end.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("a whole answer");
    let body =
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
    Answer { status, headers, body }
}

/// Waits until a condition holds. Fails after `TEST_TIMEOUT`.
pub async fn until(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timed out: {what}"));
}

/// Serves a router on a free port until the token is cancelled.
pub async fn listen(router: axum::Router, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let limits = ServerLimits { grace: Duration::ZERO, ..ServerLimits::of(&Config::default()) };
    tokio::spawn(serve(listener, vec![Worker::here(router)], limits, stop.clone()));
    address
}

/// The generation endpoints, each with a valid body. `/batch` before the path makes it a batch.
pub fn kinds() -> [(&'static str, Value); 3] {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    [
        ("/chat", json!({"prompt": "Hello"})),
        (
            "/structured-output",
            json!({"user_content": "Anna", "system_prompt": "Who?", "json_schema": schema}),
        ),
        ("/cinematic-story-design", json!({"user_content": "A storm", "system_prompt": "Tell"})),
    ]
}
