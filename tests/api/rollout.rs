//! A rolling restart of replicas behind nginx.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::nginx::Nginx;
use crate::process::{Process, Start};
use crate::redis_server::free_port;
use crate::replicas::Backends;
use crate::sharing::backends;
use crate::support::{TEST_TIMEOUT, answer, until};

const REPLICAS: usize = 3;

/// How long nginx keeps idle connections, and how long a replica goes on serving after SIGTERM.
const KEEP_ALIVE_SECONDS: u64 = 1;
const DELAY_SECONDS: u64 = 2;

/// What clients send, and what came of it.
struct Load {
    nginx: SocketAddr,
    next: AtomicUsize,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// How a client sends its requests.
#[derive(Clone, Copy)]
enum Client {
    Chat,
    Stream,
    Batch,
    Get,
}

impl Load {
    /// A prompt that no other request has. Its answer takes up to 150 ms.
    fn prompt(&self) -> (String, String) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("request-{number}-of-the-load");
        (format!("[[simulate:latency_ms={}]] {name}", number * 7 % 150), name)
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Sends one request after the other, over one connection if nginx keeps it.
    async fn work(self: Arc<Self>, client: Client, stop: CancellationToken) {
        let http = reqwest::Client::builder().timeout(TEST_TIMEOUT).build().expect("a client");
        while !stop.is_cancelled() {
            match self.send(&http, client).await {
                Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
                Err(failure) => self.failures.lock().unwrap().push(failure),
            }
        }
    }

    async fn send(&self, http: &reqwest::Client, client: Client) -> Result<(), String> {
        let url = |path: &str| format!("http://{}{path}", self.nginx);
        let prompts: Vec<_> = match client {
            Client::Batch => (0..5).map(|_| self.prompt()).collect(),
            _ => vec![self.prompt()],
        };
        let prompt = &prompts[0].0;
        let request = match client {
            Client::Chat => http.post(url("/chat")).body(json!({"prompt": prompt}).to_string()),
            Client::Stream => {
                http.post(url("/chat")).body(json!({"prompt": prompt, "stream": true}).to_string())
            }
            Client::Batch => {
                let requests = prompts.iter().map(|(prompt, _)| json!({"prompt": prompt}));
                let body = json!({"requests": requests.collect::<Vec<_>>()});
                http.post(url("/batch/chat")).body(body.to_string())
            }
            Client::Get => http.get(url("/v1beta/models")),
        };
        let request = request.header("content-type", "application/json");
        let response = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| format!("{status}: {error:?}"))?;
        let is_right = match client {
            Client::Get => text.contains("gemini"),
            Client::Stream => {
                let last = text.rsplit("data: ").next().unwrap_or_default();
                last.contains("\"finish_reason\":\"STOP\"") && is_answer_to(last, &prompts)
            }
            Client::Chat | Client::Batch => is_answer_to(&text, &prompts),
        };
        if status.is_success() && is_right { Ok(()) } else { Err(format!("{status}: {text}")) }
    }
}

/// Whether each prompt is answered once, in order, and no other is.
fn is_answer_to(text: &str, prompts: &[(String, String)]) -> bool {
    let named = text.split("request-").skip(1).filter_map(|rest| {
        Some(format!("request-{}-of-the-load", rest.split_once("-of-the-load")?.0))
    });
    named.eq(prompts.iter().map(|(_, name)| name.clone()))
}

fn replica(backends: &Backends, port: u16) -> Start {
    let start = backends.replica(20).unset("PORT").set("PORT", &port.to_string());
    start.set("SHUTDOWN_DELAY_SECONDS", &DELAY_SECONDS.to_string())
}

/// Waits until a replica has sent calls to Gemini.
async fn until_used(replica: &Process) {
    let used = async {
        loop {
            let metrics = replica.get("/metrics").send().await.unwrap().text().await.unwrap();
            if metrics.contains("gemini_gateway_calls_total{") {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, used).await.expect("nginx never uses it");
}

/// How often each prompt reached Gemini.
fn calls(backends: &Backends) -> HashMap<String, usize> {
    let mut calls = HashMap::new();
    for call in backends.simulator.journal() {
        *calls.entry(call.prompt_text).or_default() += 1;
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_nginx_loses_and_doubles_no_request() {
    let backends = backends().await;
    let ports: Vec<_> = (0..REPLICAS).map(|_| free_port()).collect();
    let mut replicas = Vec::new();
    for port in &ports {
        replicas.push(replica(&backends, *port).run().await);
    }
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
    let nginx = Nginx::start(&addresses, KEEP_ALIVE_SECONDS).await;
    let load = Arc::new(Load {
        nginx: nginx.address,
        next: 0.into(),
        answered: 0.into(),
        failures: Mutex::default(),
    });
    let (clients, stop) = (TaskTracker::new(), CancellationToken::new());
    let mix =
        [Client::Chat, Client::Chat, Client::Chat, Client::Stream, Client::Batch, Client::Get];
    for client in mix.into_iter().cycle().take(3 * mix.len()) {
        clients.spawn(Arc::clone(&load).work(client, stop.clone()));
    }
    for replica in &replicas {
        until_used(replica).await;
    }

    for (at, port) in ports.iter().enumerate() {
        let old = replicas.remove(at);
        old.terminate().await;
        old.until_logged("shutting down").await;
        let ready = answer(old.get("/readyz")).await;
        assert_eq!(
            (ready.status.as_u16(), &ready.body["reasons"]),
            (503, &json!(["shutting_down"]))
        );
        let (code, log) = old.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("the grace period is over"), "{log}");
        // Replicas are restarted one after the other: the next one waits until this one is in use.
        let new = replica(&backends, *port).run().await;
        assert_eq!(answer(new.get("/readyz")).await.status.as_u16(), 200);
        until_used(&new).await;
        replicas.insert(at, new);
    }

    let enough = load.answered() + 100;
    until("all replicas are in use again", || load.answered() >= enough).await;
    stop.cancel();
    clients.close();
    timeout(TEST_TIMEOUT, clients.wait()).await.expect("the last answers");
    let failures = load.failures.lock().unwrap().clone();
    let (answered, calls) = (load.answered(), calls(&backends));
    println!("{answered} requests answered, {} calls", calls.len());
    assert!(failures.is_empty(), "{} of {answered} are lost: {:#?}", failures.len(), failures);
    let doubled: Vec<_> = calls.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
}
