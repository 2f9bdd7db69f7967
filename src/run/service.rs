//! The jobs of a gateway, as its clients see them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::upload::{Measure, Upload, kind_name};
use crate::client::{ClientError, GatewayClient};

/// How long an answer may take that is not a job's results.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an upload may stand still, and its answer take after its end. The upload is counted in pieces
/// of 256 KiB.
const UPLOAD_SILENCE: Duration = Duration::from_secs(120);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The jobs of a gateway.
#[derive(Debug, Clone)]
pub struct JobService {
    client: GatewayClient,
}

/// A job, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JobStatus {
    /// Its id.
    pub job_id: String,
    /// Its name.
    #[serde(default)]
    pub job_name: Option<String>,
    /// The kind of its items.
    #[serde(default)]
    pub kind: String,
    /// Where it is in its life.
    pub status: Status,
    /// Why it is paused.
    #[serde(default)]
    pub reason: Option<String>,
    /// How many items it has.
    pub total: u64,
    /// Items that were answered.
    #[serde(default)]
    pub succeeded: u64,
    /// Items that failed.
    #[serde(default)]
    pub failed: u64,
    /// Items in flight.
    #[serde(default)]
    pub running: u64,
    /// Tokens of all prompts.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens of all answers.
    #[serde(default)]
    pub output_tokens: u64,
    /// What all calls cost, in US dollars.
    #[serde(default)]
    pub cost_usd: f64,
    /// Results per second.
    #[serde(default)]
    pub items_per_second: f64,
    /// When it will be done, in seconds from now.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// Failed items by error code.
    #[serde(default)]
    pub failures: BTreeMap<String, Failures>,
    /// When it came.
    #[serde(default)]
    pub created_at: Option<String>,
}

/// The failed items of a job with one error code.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Failures {
    /// How many there are.
    pub count: u64,
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No item was sent yet.
    Queued,
    /// Items are being sent.
    Running,
    /// Nothing is sent until it is resumed.
    Paused,
    /// Each item has its result.
    Completed,
    /// Items without a result get none.
    Cancelled,
}

/// A change that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send nothing more until it is resumed.
    Pause,
    /// Go on.
    Resume,
    /// Send nothing more.
    Cancel,
    /// Ask failed items again that may succeed.
    Retry,
    /// Ask all failed items again.
    RetryAll,
}

impl Action {
    /// The name of the change in the path.
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Retry | Self::RetryAll => "retry",
        }
    }

    /// The body of the request.
    fn body(self) -> Option<Value> {
        match self {
            Self::Retry => Some(json!({"which": "retryable"})),
            Self::RetryAll => Some(json!({"which": "all"})),
            Self::Pause | Self::Resume | Self::Cancel => None,
        }
    }
}

impl JobStatus {
    /// Items with a result.
    pub fn done(&self) -> u64 {
        self.succeeded + self.failed
    }

    /// Whether nothing more is sent.
    pub fn has_ended(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Cancelled)
    }
}

impl JobService {
    /// The jobs of the gateway that a client reaches.
    pub fn new(client: GatewayClient) -> Self {
        Self { client }
    }

    /// Sends a job. Sent again with the same idempotency key, it is the same job. Returns it, and whether
    /// the service had it already.
    ///
    /// # Errors
    /// [`ClientError`]; then the service has no new job, or does not say so.
    pub async fn submit(
        &self,
        upload: &Arc<Upload>,
        measure: &Measure,
        idempotency_key: &str,
        mut sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<(JobStatus, bool), ClientError> {
        let moved = Arc::new(Mutex::new(Instant::now()));
        let moves = Arc::clone(&moved);
        let sent = move |bytes| {
            *moves.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            sent(bytes);
        };
        let path = format!("/jobs?kind={}", kind_name(upload.kind()));
        let body = upload.body(measure.digest.clone(), sent);
        let mut request = self.client.request(Method::POST, &path, body);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        let key = HeaderValue::from_str(idempotency_key).expect("hexadecimal digits");
        headers.insert(IDEMPOTENCY_KEY, key);
        // However long it takes, as long as it goes on.
        let mut exchange = pin!(self.client.exchange_with_status(request, Duration::MAX));
        let (code, answer) = loop {
            let ends = *moved.lock().unwrap_or_else(PoisonError::into_inner) + UPLOAD_SILENCE;
            if ends <= Instant::now() {
                return Err(self.silent(UPLOAD_SILENCE));
            }
            tokio::select! {
                answered = &mut exchange => break answered?,
                () = sleep_until(ends) => {}
            }
        };
        Ok((status(answer)?, code == StatusCode::OK))
    }

    /// Whether the gateway is in this process, so that its jobs stop with it.
    pub fn is_here(&self) -> bool {
        self.client.url().is_none()
    }

    /// The error for a service from which nothing came for this long.
    pub fn silent(&self, time: Duration) -> ClientError {
        self.client.silent(time)
    }

    /// A job.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job(&self, id: &str) -> Result<JobStatus, ClientError> {
        status(self.value(Method::GET, &format!("/jobs/{id}")).await?)
    }

    /// Changes a job. Returns it as it is then.
    ///
    /// # Errors
    /// [`ClientError`]; also if the change does not apply.
    pub async fn act(&self, id: &str, action: Action) -> Result<JobStatus, ClientError> {
        status(self.change(id, action).await?)
    }

    /// What the service answers to a change of a job.
    ///
    /// # Errors
    /// [`ClientError`], as for [`act`](Self::act).
    pub async fn change(&self, id: &str, action: Action) -> Result<Value, ClientError> {
        let path = format!("/jobs/{id}/{}", action.name());
        let request = match action.body() {
            Some(body) => self.client.json_request(Method::POST, &path, &body),
            None => self.client.request(Method::POST, &path, Body::empty()),
        };
        self.client.exchange(request, ANSWER_TIMEOUT).await
    }

    /// What the service answers to a request without a body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn value(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        let request = self.client.request(method, path, Body::empty());
        self.client.exchange(request, ANSWER_TIMEOUT).await
    }

    /// The results of a job, as a body that is not read yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn results(&self, id: &str, query: &str) -> Result<Body, ClientError> {
        let path = format!("/jobs/{id}/results?{query}");
        let request = self.client.request(Method::GET, &path, Body::empty());
        Ok(self.client.send(request).await?.into_body())
    }
}

fn status(answer: Value) -> Result<JobStatus, ClientError> {
    let unknown = |error| ClientError::Broken(format!("the answer is not a job: {error}"));
    serde_json::from_value(answer).map_err(unknown)
}
