//! A stand-in for Gemini, with quotas that count and errors worded like the recorded ones.
//!
//! It answers `generateContent`, `streamGenerateContent`, `countTokens`, `embedContent`,
//! `batchEmbedContents` and the list of models, and takes files, under `/v1` and `/v1beta`; to
//! OpenAI's clients it answers chat completions, embeddings and models under `/v1beta/openai`. To
//! `TEXT` it answers `Simulated answer to: TEXT`, or JSON that fits the schema when the request has
//! one; the same request is always answered the same. What it refuses, how fast it is and how often
//! it fails is set by [`Options`]. A single call is made to fail by a marker in its prompt, such as
//! `[[simulate:status=503]]`, `[[simulate:finish=SAFETY]]` or `[[simulate:fail_times=2]]`: the table
//! of all is at the top of `script.rs`.
//!
//! Text is counted as one token for every four bytes and one for every East Asian character.
//! Every key is a project of its own, with its own quotas for each model. `GET
//! /_simulator/stats` shows [`Stats`], `POST /_simulator/reset` starts them afresh.
//!
//! | file | what is in it |
//! |---|---|
//! | `routes` | the routes, and the calls in Gemini's own shape |
//! | `openai` | the calls of OpenAI's clients |
//! | `files` | uploads, and the files that they become |
//! | `exchange` | one call: what is to be answered to it, and when |
//! | `target` | which model a call is for, and with which key it comes |
//! | `transmission` | how an answer reaches the client |
//! | `request`, `json`, `repeated`, `tokens` | the bodies clients send, and what they cost |
//! | `completion`, `embeddings` | what is asked and answered in chat completions and in embeddings |
//! | `schema` | which schemas are taken |
//! | `script` | the markers |
//! | `quota`, `meter` | the quotas, and the ways of counting them |
//! | `instance`, `pattern` | a value that fits a schema |
//! | `answer`, `refusal` | the bodies clients get |
//! | `stats` | what was seen |

mod answer;
mod completion;
mod embeddings;
mod exchange;
mod files;
mod instance;
mod json;
mod meter;
mod openai;
mod options;
mod pattern;
mod quota;
mod refusal;
mod repeated;
mod request;
mod routes;
mod schema;
mod script;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod tokens;
mod transmission;

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use fastrand::Rng;
use http::StatusCode;

use files::Files;
pub use options::{Counting, Options};
use quota::Quotas;
pub use schema::refused_schema;
use stats::Ledger;
pub use stats::{JournalEntry, Stats};

/// A stand-in for Gemini. Clones share everything.
#[derive(Clone)]
pub struct Simulator(Arc<Shared>);

struct Shared {
    options: Options,
    quotas: Quotas,
    ledger: Arc<Ledger>,
    files: Files,
    /// `usize::MAX` when unlimited.
    capacity: AtomicUsize,
    /// In milliseconds.
    latency_ms: AtomicU64,
    responses: AtomicU64,
    random: Mutex<Rng>,
    /// How often a call with a `fail_times` marker came, by hash.
    attempts: Mutex<HashMap<u64, u32>>,
}

impl Simulator {
    /// A simulator that behaves as told.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Shared {
            quotas: Quotas::new(&options),
            ledger: Arc::default(),
            files: Files::default(),
            capacity: AtomicUsize::new(options.capacity.unwrap_or(usize::MAX)),
            latency_ms: AtomicU64::new(options.latency_ms),
            responses: AtomicU64::new(0),
            random: Mutex::new(Rng::with_seed(options.seed)),
            attempts: Mutex::default(),
            options,
        }))
    }

    /// Its routes.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }

    /// What it has seen since the start or the last reset.
    pub fn stats(&self) -> Stats {
        self.0.ledger.stats()
    }

    /// The generating calls in the order of their arrival; empty unless [`Options::journal`].
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.0.ledger.journal()
    }

    /// Forgets what it has seen: stats, journal and the calls counted for `fail_times`. What is
    /// used of the quotas stays used, and files stay.
    pub fn reset(&self) {
        self.0.ledger.reset();
        self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Changes [`Options::capacity`] for the calls to come.
    pub fn set_capacity(&self, capacity: Option<usize>) {
        self.0.capacity.store(capacity.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Changes [`Options::latency_ms`] for the calls to come.
    pub fn set_latency_ms(&self, latency_ms: u64) {
        self.0.latency_ms.store(latency_ms, Ordering::Relaxed);
    }

    fn options(&self) -> &Options {
        &self.0.options
    }

    fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.0.ledger
    }

    fn files(&self) -> &Files {
        &self.0.files
    }

    fn capacity(&self) -> usize {
        self.0.capacity.load(Ordering::Relaxed)
    }

    fn next_response_id(&self) -> String {
        format!("simulated-{}", self.0.responses.fetch_add(1, Ordering::Relaxed))
    }

    /// Counts one more call of those with the same hash, and says how many there were.
    fn count_attempt(&self, hash: u64) -> u32 {
        let mut attempts = self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = attempts.entry(hash).or_default();
        *attempt += 1;
        *attempt
    }

    fn median_latency(&self) -> Duration {
        Duration::from_millis(self.0.latency_ms.load(Ordering::Relaxed))
    }

    /// The latency of a call and perhaps the status it fails with, at random. Takes the lock only
    /// when something is left to chance.
    fn draw(&self) -> (Duration, Option<StatusCode>) {
        let Options { latency_sigma, error_rate_503, error_rate_500, error_rate_429, .. } =
            self.0.options;
        let median = self.median_latency();
        let rates = [
            (StatusCode::SERVICE_UNAVAILABLE, error_rate_503),
            (StatusCode::INTERNAL_SERVER_ERROR, error_rate_500),
            (StatusCode::TOO_MANY_REQUESTS, error_rate_429),
        ];
        if latency_sigma == 0.0 && rates.iter().all(|(_, rate)| *rate == 0.0) {
            return (median, None);
        }
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        let latency = median.mul_f64((latency_sigma * standard_normal(&mut random)).exp());
        let mut chance = random.f64();
        let failure = rates.into_iter().find(|(_, rate)| {
            chance -= rate;
            chance < 0.0
        });
        (latency, failure.map(|(status, _)| status))
    }
}

/// A draw from the standard normal distribution, by the Box–Muller transform.
fn standard_normal(random: &mut Rng) -> f64 {
    let (radius, angle) = (1.0 - random.f64(), random.f64());
    (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
}
