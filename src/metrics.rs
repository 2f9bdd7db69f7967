//! The metrics of `GET /metrics`, and the history that the dashboard shows. The number of label values is
//! bounded: neither callers nor the upstream can create any number of series. No key, prompt or answer is a
//! label.
//!
//! | file | what is in it |
//! |---|---|
//! | `labels` | the labels, and which names get one of their own |
//! | `collectors`, `process` | metrics that are read at each scrape |
//! | `totals`, `distribution` | what was counted since the process began, for the history |
//! | `failures` | the calls that failed last |
//! | `replicas` | the reports of the replicas to each other |
//! | `history` | the last hour and the last day, summed over all replicas |
//! | `sampler` | the task that takes samples for the history |
//! | `trace_id` | the identity of a trace, for exemplars |

mod collectors;
mod distribution;
mod failures;
mod history;
mod labels;
mod process;
mod replicas;
mod sampler;
mod totals;
mod trace_id;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::gemini::{Model, Usage};
use crate::limits::Limiter;
use crate::pacific::SystemClock;
use crate::prices::NanoDollars;
use collectors::{HistoryCollector, LimiterCollector, LogCollector};
use labels::{
    CallLabels, CostLabels, KindLabel, KnownNames, OutcomeLabel, ReasonLabels, RefusalLabels,
    StateLabel, TokenLabels,
};
use process::ProcessCollector;
use totals::Totals;

pub use distribution::Distribution;
pub use failures::{Failure, Failures, MAX_FAILURES};
pub use history::{
    AccountPoint, AccountSeries, AccountState, Concurrency, History, MAX_ACCOUNTS, Now,
    PauseReason, Paused, PayerState, Point, Series, Spent, Window,
};
pub use replicas::{Replica, Scope};
pub use sampler::Sampler;
pub use totals::{Calls, Counts, OutcomeClass};
pub use trace_id::TraceId;

/// A histogram of seconds, whose observations may name a trace.
type Seconds = HistogramWithExemplars<TraceId>;

/// The counters and histograms of calls.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    not_admitted: Family<ReasonLabels, Counter>,
    retries: Family<ReasonLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    cost: Family<CostLabels, Counter<f64, AtomicU64>>,
    queue_wait: Seconds,
    background_runs: Gauge,
    upstream_latency: Family<KindLabel, Seconds, fn() -> Seconds>,
    jobs: Family<StateLabel, Gauge>,
    job_items: Family<OutcomeLabel, Counter>,
    spans: Family<OutcomeLabel, Counter>,
    known_names: Arc<KnownNames>,
    totals: Arc<Totals>,
    failures: Arc<Failures>,
    history: Arc<History>,
}

/// Buckets from 1 ms to about 10 minutes, each 2.5 times the previous one.
fn seconds_histogram() -> Seconds {
    HistogramWithExemplars::new(exponential_buckets(0.001, 2.5, 15))
}

/// A text format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0, the only text format with exemplars.
    OpenMetrics,
}

impl Format {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Metrics {
    /// The metrics of a gateway, including the state of its limiter.
    pub fn new(limiter: Arc<Limiter>) -> Self {
        let (totals, failures) = (Arc::<Totals>::default(), Arc::<Failures>::default());
        let clock = Arc::new(SystemClock);
        let history =
            History::new(Arc::clone(&limiter), Arc::clone(&totals), Arc::clone(&failures), clock);
        let history = Arc::new(history);
        let upstream_latency: Family<_, _, fn() -> Seconds> =
            Family::new_with_constructor(seconds_histogram as fn() -> Seconds);
        let mut metrics = Self {
            registry: Registry::default(),
            calls: Family::default(),
            refusals: Family::default(),
            not_admitted: Family::default(),
            retries: Family::default(),
            tokens: Family::default(),
            cost: Family::default(),
            queue_wait: seconds_histogram(),
            background_runs: Gauge::default(),
            upstream_latency,
            jobs: Family::default(),
            job_items: Family::default(),
            spans: Family::default(),
            known_names: Arc::default(),
            totals,
            failures,
            history,
        };
        metrics.register(limiter);
        metrics
    }

    fn register(&mut self, limiter: Arc<Limiter>) {
        let history = HistoryCollector {
            history: Arc::clone(&self.history),
            known_names: Arc::clone(&self.known_names),
        };
        self.registry.register_collector(Box::new(ProcessCollector));
        let registry = self.registry.sub_registry_with_prefix("gemini_gateway");
        registry.register(
            "calls",
            "Calls sent to Gemini, including retries, by outcome",
            self.calls.clone(),
        );
        registry.register(
            "refusals",
            "Calls that Gemini refused for a quota, for lack of funds or for load",
            self.refusals.clone(),
        );
        registry.register(
            "not_admitted",
            "Calls that were not sent, by the error that their callers got",
            self.not_admitted.clone(),
        );
        let help = "Calls sent again, by the error before";
        registry.register("retries", help, self.retries.clone());
        registry.register("tokens", "Tokens reported by Gemini", self.tokens.clone());
        let help = "US dollars that calls cost at the known prices";
        registry.register("cost_usd", help, self.cost.clone());
        registry.register_with_unit(
            "queue_wait",
            "Time that calls waited for admission",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        registry.register_with_unit(
            "upstream_latency",
            "Time from sending a call to the end of its answer",
            Unit::Seconds,
            self.upstream_latency.clone(),
        );
        registry.register(
            "background_runs",
            "Interactions in the background that hold their slots",
            self.background_runs.clone(),
        );
        let help = "Jobs that have not ended, by state";
        registry.register("jobs", help, self.jobs.clone());
        registry.register(
            "job_items",
            "Items of jobs whose results this process has recorded, or that it sent again",
            self.job_items.clone(),
        );
        registry.register("spans", "Spans of traces, by what became of them", self.spans.clone());
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "1, with the version of this program", build);
        registry.register_collector(Box::new(LimiterCollector(limiter)));
        registry.register_collector(Box::new(history));
        registry.register_collector(Box::new(LogCollector));
    }

    /// The last hour and the last day, of which a [`Sampler`] takes the samples.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        match format {
            Format::Text => prometheus_text::encode(&mut encoded, &self.registry)?,
            Format::OpenMetrics => text::encode(&mut encoded, &self.registry)?,
        }
        Ok(encoded)
    }

    /// Counts an admitted call and its time in the queue. The trace is the call's, if it is sampled.
    pub fn admitted(&self, waited: Duration, trace: Option<TraceId>) {
        observe(&self.queue_wait, waited, trace);
        self.totals.admitted(waited);
    }

    /// Counts a call that was not admitted, by the code of the error.
    pub fn not_admitted(&self, kind: &'static str, reason: &'static str) {
        self.not_admitted.get_or_create(&ReasonLabels { kind, reason }).inc();
        self.totals.not_admitted();
    }

    /// Counts a run in the background until the value is dropped.
    pub fn background_run(&self) -> CountedRun {
        self.background_runs.inc();
        CountedRun(self.background_runs.clone())
    }

    /// Counts a retry after an error with this code.
    pub fn retried(&self, kind: &'static str, reason: &'static str) {
        self.retries.get_or_create(&ReasonLabels { kind, reason }).inc();
        self.totals.retried();
    }

    /// Keeps a call that failed, for the list of the last ones.
    pub fn failed(&self, failure: Failure) {
        self.failures.note(failure);
    }

    /// Notes how many jobs there are in each state.
    pub fn jobs(&self, states: impl IntoIterator<Item = (&'static str, usize)>) {
        for (state, jobs) in states {
            let jobs = i64::try_from(jobs).unwrap_or(i64::MAX);
            self.jobs.get_or_create(&StateLabel { state }).set(jobs);
        }
    }

    /// Counts an item of a job: `succeeded` or `failed` once its result is recorded, or `repeated`.
    pub fn job_item(&self, outcome: &'static str) {
        self.job_items.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts spans: `exported`, `export_failed`, or `queue_full` if they were dropped at once.
    pub fn spans(&self, outcome: &'static str, spans: usize) {
        self.spans.get_or_create(&OutcomeLabel { outcome }).inc_by(spans as u64);
    }

    /// Counts a finished call.
    pub fn finished(&self, call: FinishedCall<'_>) {
        self.charged(&call);
        self.refused(&call);
        let model = self.known_names.model(call.model, call.accepted);
        let FinishedCall { kind, outcome, class, took, usage, trace, .. } = call;
        observe(&self.upstream_latency.get_or_create(&KindLabel { kind }), took, trace);
        self.calls.get_or_create(&CallLabels { kind, model: model.clone(), outcome }).inc();
        for (r#type, count) in [
            ("prompt", usage.prompt_tokens),
            ("output", usage.output_tokens),
            ("thinking", usage.thinking_tokens),
        ] {
            if count > 0 {
                let labels = TokenLabels { model: model.clone(), r#type };
                self.tokens.get_or_create(&labels).inc_by(count);
            }
        }
        let output = usage.output_tokens.saturating_add(usage.thinking_tokens);
        self.totals.finished(class, took, usage.prompt_tokens, output);
    }

    /// Counts a call that Gemini refused for a quota, for lack of funds or for load.
    fn refused(&self, call: &FinishedCall<'_>) {
        let Some(Refusal { payer, reason }) = &call.refusal else { return };
        let payer = self.known_names.payer(payer);
        let model = self.known_names.model(call.model, call.accepted);
        self.refusals.get_or_create(&RefusalLabels { payer, model, reason }).inc();
    }

    /// Counts what a call cost, by the model that answered and its tier.
    fn charged(&self, call: &FinishedCall<'_>) {
        let Usage { cost, service_tier, .. } = call.usage;
        if cost == NanoDollars::default() {
            return;
        }
        let model = self.known_names.model(call.answered_by.unwrap_or(call.model), call.accepted);
        let labels = CostLabels { model, tier: service_tier.unwrap_or_default().name() };
        self.cost.get_or_create(&labels).inc_by(cost.dollars());
        self.totals.charged(cost);
    }
}

fn observe(histogram: &Seconds, duration: Duration, trace: Option<TraceId>) {
    let at = trace.map(|_| SystemTime::now());
    histogram.observe(duration.as_secs_f64(), trace, at);
}

/// A run in the background that is counted. Dropping it ends the count.
#[derive(Debug)]
pub struct CountedRun(Gauge);

impl Drop for CountedRun {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The result of one call to Gemini.
#[derive(Debug)]
pub struct FinishedCall<'a> {
    /// The kind of call: `chat`, `structured_output`, …
    pub kind: &'static str,
    /// The requested model.
    pub model: &'a Model,
    /// The model that answered, where Gemini names it.
    pub answered_by: Option<&'a Model>,
    /// Whether Gemini knows the model.
    pub accepted: bool,
    /// `success`, or the code of the error.
    pub outcome: &'static str,
    /// The class of the outcome.
    pub class: OutcomeClass,
    /// Why Gemini refused it, if it did so for a quota, for lack of funds or for load.
    pub refusal: Option<Refusal>,
    /// The time from sending the call to the end of its answer.
    pub took: Duration,
    /// The tokens used.
    pub usage: Usage,
    /// The call's trace, if it is sampled.
    pub trace: Option<TraceId>,
}

/// Why Gemini refused a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The key's label, or the first 8 hex digits of its SHA-256.
    pub payer: String,
    /// `per_minute`, `per_day`, `no_quota`, `spend`, `other_quota`, `unfunded` or `load`.
    pub reason: &'static str,
}
