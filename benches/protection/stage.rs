//! A simulator and a service over it, each on its own threads.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use gemini_concurrent_generation::api;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::gateway::Gateway;
use gemini_concurrent_generation::gemini::ApiKey;
use gemini_concurrent_generation::server::Worker;
use gemini_concurrent_generation::simulator::{Options, Simulator};

#[path = "../support/listen.rs"]
mod listen;

/// The path of interactions.
const INTERACTIONS: &str = "v1beta/interactions";

/// The path of all other calls, with and without the service.
const GENERATE: &str = "v1beta/models/gemini-3.5-flash-lite:generateContent";

/// What the service knows about the account.
#[derive(Clone)]
pub struct Protection {
    /// The most calls in flight.
    pub concurrency: usize,
    /// A value of `GEMINI_LIMITS`, such as `*:rpm=1000,tpm=2000000`; empty if the limits are
    /// unknown.
    pub limits: String,
    /// The length of a quota minute.
    pub minute: Duration,
}

/// A call that a client makes.
#[derive(Clone, Copy)]
pub enum Call {
    GenerateContent,
    Interaction,
    StreamedInteraction,
    /// An interaction in the background, which the client polls.
    PolledRun,
    /// The same, which the client never reads.
    ForgottenRun,
}

/// A simulator that runs until it is dropped.
pub struct Stage {
    pub simulator: Simulator,
    /// When the simulator's first minute began.
    pub started: Instant,
    upstream: String,
    http: reqwest::Client,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// A service over the simulator, as its clients see it. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    url: String,
    http: reqwest::Client,
    gateway: Gateway,
}

/// The simulator, as clients without the service see it. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    url: String,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Run {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct BatchAnswer {
    successful_requests: usize,
}

impl Stage {
    pub async fn start(options: Options) -> Self {
        let stop = CancellationToken::new();
        let started = Instant::now();
        let simulator = Simulator::new(options);
        let upstream = listen(|| simulator.router(), &stop).await;
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let _stop = stop.clone().drop_guard();
        Self { simulator, started, upstream: format!("http://{upstream}"), http, stop, _stop }
    }

    /// Starts a service that runs as long as the simulator.
    pub async fn service(&self, protection: &Protection) -> Service {
        let mut config = Config {
            base_url: self.upstream.clone(),
            concurrency_limit: protection.concurrency,
            ..Config::default()
        };
        protect(&mut config, protection);
        config.set_gemini_api_key(ApiKey::new("benchmark").expect("a key"));
        let gateway = Gateway::new(config, true).expect("the simulator has a base URL");
        let router = || api::router(gateway.with_own_connections());
        let address = listen(router, &self.stop).await;
        Service { url: format!("http://{address}"), http: self.http.clone(), gateway }
    }

    pub fn upstream(&self) -> Upstream {
        Upstream { url: format!("{}/{GENERATE}", self.upstream), http: self.http.clone() }
    }
}

/// Configures the account's limits, if they are known, and the length of a minute.
fn protect(config: &mut Config, protection: &Protection) {
    let limits = |name: &str| (name == "GEMINI_LIMITS").then(|| protection.limits.clone());
    let read = Config::read(limits).expect("valid limits");
    config.quota_plan = read.quota_plan;
    config.quota_plan.minute = protection.minute;
    // A second in a minute of 60.
    config.background_poll = Some(protection.minute / 60);
}

/// Serves on a free port until the token is cancelled, with one worker for each processor.
async fn listen(router: impl Fn() -> Router, stop: &CancellationToken) -> SocketAddr {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = |_| Worker::start(router()).expect("a thread");
    listen::listen((0..processors).map(worker).collect(), stop).await
}

impl Service {
    /// How many calls of the only account may run at once; `None` before the first.
    pub fn limit_in_force(&self) -> Option<usize> {
        let accounts = self.gateway.limiter.accounts().all();
        accounts.first().map(|account| account.concurrency().limit())
    }

    /// Sends a chat. Returns whether it was answered.
    pub async fn chat(&self, prompt: String) -> bool {
        let body = json!({"prompt": prompt}).to_string();
        let status = post(&self.http, &format!("{}/chat", self.url), body).await;
        status.is_some_and(|(status, _)| status == 200)
    }

    /// Sends a chat in the flex tier. Returns whether it was answered.
    pub async fn flex_chat(&self, prompt: &str, fallback: Option<Duration>) -> bool {
        let fallback = fallback.map(|after| after.as_secs_f64());
        let body =
            json!({"prompt": prompt, "service_tier": "flex", "flex_fallback_seconds": fallback});
        let status = post(&self.http, &format!("{}/chat", self.url), body.to_string()).await;
        status.is_some_and(|(status, _)| status == 200)
    }

    /// Makes a call. Returns whether it was answered; for a run in the background, whether it was
    /// created, or has ended if the client polls it.
    pub async fn call(&self, call: Call, prompt: &str, poll: Duration) -> bool {
        if matches!(call, Call::GenerateContent) {
            let upstream =
                Upstream { url: format!("{}/{GENERATE}", self.url), http: self.http.clone() };
            return upstream.generate(prompt).await == Some(200);
        }
        let mut body = json!({"model": "gemini-3.5-flash-lite", "input": prompt});
        body["stream"] = matches!(call, Call::StreamedInteraction).into();
        body["background"] = matches!(call, Call::PolledRun | Call::ForgottenRun).into();
        let path = format!("{}/{INTERACTIONS}", self.url);
        let Some((200, created)) = post(&self.http, &path, body.to_string()).await else {
            return false;
        };
        if !matches!(call, Call::PolledRun) {
            return true;
        }
        let Ok(mut run) = serde_json::from_slice::<Run>(&created) else { return false };
        while ["queued", "in_progress"].contains(&&*run.status) {
            sleep(poll).await;
            let request = self.http.get(format!("{path}/{}", run.id));
            let request = request.header("x-goog-api-key", "benchmark");
            let Ok(response) = request.send().await else { return false };
            let Ok(read) = response.bytes().await else { return false };
            let Ok(read) = serde_json::from_slice(&read) else { return false };
            run = read;
        }
        run.status == "completed"
    }

    /// Sends a batch. Returns how many of its chats were answered.
    pub async fn batch(&self, prompts: Vec<String>) -> usize {
        let requests: Vec<_> = prompts.iter().map(|prompt| json!({"prompt": prompt})).collect();
        let body = json!({"requests": requests}).to_string();
        let answer = post(&self.http, &format!("{}/batch/chat", self.url), body).await;
        let (_, body) = answer.expect("a batch is answered");
        serde_json::from_slice::<BatchAnswer>(&body).map_or(0, |answer| answer.successful_requests)
    }
}

impl Upstream {
    /// Sends one call. Returns its status; `None` if the connection broke.
    pub async fn generate(&self, prompt: &str) -> Option<u16> {
        let body = json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}]});
        Some(post(&self.http, &self.url, body.to_string()).await?.0)
    }
}

/// Sends a body and reads the answer to its end.
async fn post(http: &reqwest::Client, url: &str, body: String) -> Option<(u16, Vec<u8>)> {
    let request = http.post(url).header("content-type", "application/json");
    let request = request.header("x-goog-api-key", "benchmark").body(body);
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.bytes().await.ok()?.to_vec()))
}
