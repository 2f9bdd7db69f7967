//! The metrics of `GET /metrics`. The number of label values is bounded: neither callers nor the upstream
//! can create any number of series. No key, prompt or answer is a label.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
    prometheus_text,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::gemini::{Model, Usage};
use crate::limits::{Limiter, SemaphoreUsage};
use crate::prices::NanoDollars;
use crate::telemetry;

/// The most models with their own label. Further models are counted as `other`.
const MAX_MODELS: usize = 256;

/// The counters and histograms of calls.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    cost: Family<CostLabels, Counter<f64, AtomicU64>>,
    queue_wait: Histogram,
    background_runs: Gauge,
    upstream_latency: Family<KindLabel, Histogram, fn() -> Histogram>,
    jobs: Family<StateLabel, Gauge>,
    job_items: Family<OutcomeLabel, Counter>,
    spans: Family<OutcomeLabel, Counter>,
    known_models: RwLock<HashSet<Model>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    kind: &'static str,
    model: ModelLabel,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    model: ModelLabel,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CostLabels {
    model: ModelLabel,
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// A model that Gemini has accepted. `None` stands for all other names, which callers can invent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ModelLabel(Option<Model>);

impl EncodeLabelValue for ModelLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        self.0.as_ref().map_or("other", Model::as_str).encode(encoder)
    }
}

/// Buckets from 1 ms to about 10 minutes, each 2.5 times the previous one.
fn seconds_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.5, 15))
}

impl Metrics {
    /// The metrics of a gateway, including the state of its limiter.
    pub fn new(limiter: Arc<Limiter>) -> Self {
        let mut registry = Registry::with_prefix("gemini_gateway");
        let calls = Family::default();
        let retries = Family::default();
        let tokens = Family::default();
        let cost = Family::<CostLabels, Counter<f64, AtomicU64>>::default();
        let queue_wait = seconds_histogram();
        let background_runs = Gauge::default();
        let upstream_latency =
            Family::<KindLabel, Histogram, fn() -> Histogram>::new_with_constructor(
                seconds_histogram,
            );
        registry.register(
            "calls",
            "Calls sent to Gemini, including retries, by outcome",
            calls.clone(),
        );
        registry.register("retries", "Calls sent again, by the error before", retries.clone());
        registry.register("tokens", "Tokens reported by Gemini", tokens.clone());
        registry.register(
            "cost_usd",
            "US dollars that calls cost at the known prices",
            cost.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time that calls waited for admission",
            Unit::Seconds,
            queue_wait.clone(),
        );
        registry.register_with_unit(
            "upstream_latency",
            "Time from sending a call to the end of its answer",
            Unit::Seconds,
            upstream_latency.clone(),
        );
        registry.register(
            "background_runs",
            "Interactions in the background that hold their slots",
            background_runs.clone(),
        );
        let jobs = Family::default();
        let job_items = Family::default();
        registry.register("jobs", "Jobs that have not ended, by state", jobs.clone());
        registry.register(
            "job_items",
            "Items of jobs whose results this process has recorded, or that it sent again",
            job_items.clone(),
        );
        let spans = Family::default();
        registry.register("spans", "Spans of traces, by what became of them", spans.clone());
        registry.register_collector(Box::new(LimiterCollector(limiter)));
        registry.register_collector(Box::new(LogCollector));
        Self {
            registry,
            calls,
            retries,
            tokens,
            cost,
            queue_wait,
            background_runs,
            upstream_latency,
            jobs,
            job_items,
            spans,
            known_models: RwLock::default(),
        }
    }

    /// All metrics in Prometheus's text format 0.0.4.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts an admitted call and its time in the queue.
    pub fn admitted(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    /// Counts a run in the background until the value is dropped.
    pub fn background_run(&self) -> CountedRun {
        self.background_runs.inc();
        CountedRun(self.background_runs.clone())
    }

    /// Counts a retry after an error with this code.
    pub fn retried(&self, kind: &'static str, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { kind, reason }).inc();
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
        let model = self.label(call.model, call.accepted);
        let FinishedCall { kind, outcome, took, usage, .. } = call;
        self.upstream_latency.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
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
    }

    /// Counts what a call cost, by the model that answered and its tier.
    fn charged(&self, call: &FinishedCall<'_>) {
        let Usage { cost, service_tier, .. } = call.usage;
        if cost == NanoDollars::default() {
            return;
        }
        let model = self.label(call.answered_by.unwrap_or(call.model), call.accepted);
        let labels = CostLabels { model, tier: service_tier.unwrap_or_default().name() };
        self.cost.get_or_create(&labels).inc_by(cost.dollars());
    }

    fn label(&self, model: &Model, accepted: bool) -> ModelLabel {
        let known = self.known_models.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(model) {
            return ModelLabel(Some(model.clone()));
        }
        drop(known);
        if !accepted {
            return ModelLabel(None);
        }
        let mut known = self.known_models.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_MODELS {
            return ModelLabel(None);
        }
        known.insert(model.clone());
        ModelLabel(Some(model.clone()))
    }
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
    /// The time from sending the call to the end of its answer.
    pub took: Duration,
    /// The tokens used.
    pub usage: Usage,
}

/// Reads the limiter's state at each scrape, so that no counts are kept twice.
#[derive(Debug)]
struct LimiterCollector(Arc<Limiter>);

impl Collector for LimiterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let limiter = self.0.occupancy();
        for (name, help, value) in [
            ("in_flight", "Calls in flight", limiter.in_flight),
            ("waiting", "Requests waiting for admission; a batch counts as one", limiter.waiting),
            ("limit", "The most calls in flight at once", limiter.limit),
        ] {
            let gauge = gauge(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let named = self.0.store().named();
        for (name, help, read) in NAMED_GAUGES {
            let kind = gauge(0).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (id, semaphore) in &named {
                let labels = [("semaphore", id.as_str())];
                gauge(read(semaphore.usage())).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Reads the number of dropped log lines at each scrape.
#[derive(Debug)]
struct LogCollector;

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let dropped = ConstCounter::new(telemetry::dropped_lines());
        let help = "Log lines dropped because they could not be written fast enough";
        let kind = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("log_lines_dropped", help, None, kind)?)
    }
}

type ReadSemaphore = fn(SemaphoreUsage) -> usize;

const NAMED_GAUGES: [(&str, &str, ReadSemaphore); 3] = [
    ("semaphore_in_use", "Permits of a named semaphore in use", |usage| usage.in_use),
    ("semaphore_waiting", "Calls and leases waiting for a named semaphore", |usage| usage.waiting),
    ("semaphore_limit", "Permits of a named semaphore", |usage| usage.limit),
];

fn gauge(value: usize) -> ConstGauge<u64> {
    ConstGauge::new(value as u64)
}
