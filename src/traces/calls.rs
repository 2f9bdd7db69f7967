//! The spans of calls: each wait for admission, each attempt, and each wait before a retry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::Span;

use super::attributes::*;
use super::{Tracing, content, propagation};
use crate::dispatch::{Call, CallEvent, CallKind, CallObserver, EndedAttempt, SentAttempt};
use crate::gemini::{Answer, TraceContext, Usage};
use crate::metrics::TraceId;

/// The name of Gemini's API in the conventions.
const GEMINI: &str = "gcp.gemini";

/// Makes the spans of the calls of a request or of an item.
#[derive(Debug)]
pub(super) struct CallSpans {
    tracing: Arc<Tracing>,
    /// The position of the request or the item.
    parent: Context,
    state: Mutex<State>,
    /// The span of the item, which ends with this.
    item: Option<Span>,
}

#[derive(Debug, Default)]
struct State {
    /// A wait: for admission, or before a retry.
    wait: Option<Span>,
    attempt: Option<Attempt>,
    /// The error that the latest call ended with.
    error: Option<&'static str>,
}

/// An attempt that has not ended.
#[derive(Debug)]
struct Attempt {
    span: Span,
    sent: Instant,
    streams: bool,
    /// The status of the answer, and after how long it began.
    accepted: Option<(StatusCode, Duration)>,
    /// Whether the text of its answer is kept.
    keeps_content: bool,
}

impl CallSpans {
    /// Makes the spans of a request, below its position.
    pub fn of_request(tracing: Arc<Tracing>, request: SpanContext) -> Self {
        let parent = Context::new().with_remote_span_context(request);
        Self { tracing, parent, state: Mutex::default(), item: None }
    }

    /// Makes the spans of an item, below its span, which ends when this is dropped.
    pub fn of_item(tracing: Arc<Tracing>, item: Span) -> Self {
        let mut spans = Self::of_request(tracing, item.span_context().clone());
        spans.item = Some(item);
        spans
    }

    fn is_sampled(&self) -> bool {
        self.parent.span().span_context().is_sampled()
    }

    fn start(&self, span: SpanBuilder) -> Span {
        self.tracing.tracer.build_with_context(span, &self.parent)
    }

    fn wait(&self, name: &'static str, attributes: Vec<KeyValue>) -> Span {
        self.start(SpanBuilder::from_name(name).with_attributes(attributes))
    }

    fn attempt(&self, sent: &SentAttempt<'_>) -> Attempt {
        let SentAttempt { call, attempt, streams, body } = *sent;
        let (operation, model) = (operation(call.kind()), self.model(call));
        let mut attributes = vec![
            KeyValue::new(OPERATION, operation),
            KeyValue::new(PROVIDER, GEMINI),
            KeyValue::new(SERVER_ADDRESS, self.tracing.upstream.0.clone()),
            KeyValue::new(SERVER_PORT, i64::from(self.tracing.upstream.1)),
            KeyValue::new(KIND, call.kind().label()),
            KeyValue::new(REQUEST_MODEL, model.clone()),
            KeyValue::new(TIER, call.tier().name()),
        ];
        if streams {
            attributes.push(KeyValue::new(REQUEST_STREAM, true));
        }
        if attempt > 1 {
            attributes.push(KeyValue::new(RESEND_COUNT, count(attempt - 1)));
        }
        if is_json(call.kind()) {
            attributes.push(KeyValue::new(OUTPUT_TYPE, "json"));
        }
        let keeps_content = self.tracing.captures_content && is_own(call.kind());
        if let Some(body) = body.filter(|_| keeps_content) {
            attributes.extend(content::asked(body, |text| self.tracing.clean(text)));
        }
        let name = format!("{operation} {model}");
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        let span = self.start(span.with_attributes(attributes));
        Attempt { span, sent: Instant::now(), streams, accepted: None, keeps_content }
    }

    /// The model of a call. Callers choose it, so it may be anything, even a key.
    fn model(&self, call: &Call) -> String {
        self.tracing.clean(call.model().to_string())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallObserver for CallSpans {
    fn observe(&self, event: &CallEvent<'_>) {
        if !self.is_sampled() {
            return;
        }
        let mut state = self.lock();
        match *event {
            CallEvent::Enqueued(call) => {
                let tier = KeyValue::new(TIER, call.tier().name());
                let model = KeyValue::new(REQUEST_MODEL, self.model(call));
                let attributes = vec![KeyValue::new(KIND, call.kind().label()), model, tier];
                state.wait = Some(self.wait("queue", attributes));
            }
            CallEvent::Admitted { held_by, .. } => {
                let wait = state.wait.take();
                if let (Some(mut wait), Some(held_by)) = (wait, held_by) {
                    wait.set_attribute(KeyValue::new(HELD_BY, held_by.name()));
                }
            }
            CallEvent::Refused(error) => {
                state.error = Some(error.code());
                if let Some(mut wait) = state.wait.take() {
                    fail(&mut wait, error.code());
                }
            }
            CallEvent::Sent(ref sent) => state.attempt = Some(self.attempt(sent)),
            CallEvent::Accepted { status } => {
                if let Some(attempt) = &mut state.attempt {
                    attempt.accepted = Some((status, attempt.sent.elapsed()));
                }
            }
            CallEvent::Ended(ended) => {
                state.error = error_of(ended.outcome);
                if let Some(attempt) = state.attempt.take() {
                    attempt.ended(ended, &self.tracing);
                }
            }
            CallEvent::RetryAt(_) => state.wait = Some(self.wait("backoff", Vec::new())),
        }
    }

    fn trace_context(&self) -> Option<Box<TraceContext>> {
        if !self.tracing.propagates {
            return None;
        }
        let state = self.lock();
        let written = match &state.attempt {
            Some(attempt) => propagation::written(attempt.span.span_context()),
            None => propagation::written(self.parent.span().span_context()),
        };
        written.map(Box::new)
    }

    fn trace_id(&self) -> Option<TraceId> {
        let span = self.parent.span();
        let position = span.span_context();
        position.is_sampled().then(|| TraceId(position.trace_id().to_bytes()))
    }

    fn item(&self, index: u64) -> Option<Arc<dyn CallObserver>> {
        let tracing = Arc::clone(&self.tracing);
        if !self.is_sampled() {
            let request = self.parent.span().span_context().clone();
            return Some(Arc::new(Self::of_request(tracing, request)));
        }
        let item = self.wait("batch item", vec![KeyValue::new(ITEM_INDEX, number(index))]);
        Some(Arc::new(Self::of_item(tracing, item)))
    }
}

impl Drop for CallSpans {
    /// What has not ended is given up: its client hung up, or its batch was cancelled.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.wait = None;
        if let Some(mut attempt) = state.attempt.take() {
            attempt.outcome("cancelled", None);
        }
        if let (Some(item), Some(error)) = (&mut self.item, state.error) {
            fail(item, error);
        }
    }
}

impl Attempt {
    /// Notes how the attempt ended. Each attribute is set once: setting it again would send it twice.
    fn outcome(&mut self, outcome: &'static str, status: Option<StatusCode>) {
        let accepted = self.accepted.map(|(status, _)| status);
        let status = status.or(accepted).map(|status| i64::from(status.as_u16()));
        let first = self.accepted.filter(|_| self.streams).map(|(_, first)| first.as_secs_f64());
        self.span.set_attribute(KeyValue::new(OUTCOME, outcome));
        let status = status.map(|status| KeyValue::new(STATUS, status));
        let first = first.map(|seconds| KeyValue::new(FIRST_CHUNK, seconds));
        self.span.set_attributes(status.into_iter().chain(first));
    }

    fn ended(mut self, ended: &EndedAttempt<'_>, tracing: &Tracing) {
        let EndedAttempt { outcome, status, answered_by, usage, answer } = *ended;
        self.outcome(outcome, status);
        let span = &mut self.span;
        if let Some(model) = answered_by {
            span.set_attribute(KeyValue::new(RESPONSE_MODEL, tracing.clean(model.to_string())));
        }
        span.set_attributes(usage_of(usage));
        if let Some(answer) = answer {
            span.set_attribute(KeyValue::new(FINISH_REASONS, finish_reasons(answer)));
            if self.keeps_content {
                span.set_attribute(content::answered(answer, |text| tracing.clean(text)));
            }
        }
        if let Some(error) = error_of(outcome) {
            fail(span, error);
        }
    }
}

/// The error that an attempt with this outcome ended with. A client that hangs up is none. Source:
/// OpenTelemetry semantic conventions 1.44.0, "HTTP spans", status.
fn error_of(outcome: &'static str) -> Option<&'static str> {
    (!matches!(outcome, "success" | "cancelled")).then_some(outcome)
}

/// Marks a span as failed. Messages of errors are left out, since they may quote a request.
pub(super) fn fail(span: &mut Span, error: &'static str) {
    span.set_attribute(KeyValue::new(ERROR_TYPE, error));
    span.set_status(Status::error(""));
}

fn finish_reasons(answer: &Answer) -> Value {
    let reason = StringValue::from(answer.finish_reason.to_ascii_lowercase());
    Value::Array(Array::String(vec![reason]))
}

/// The tokens of an attempt and what they cost, if Gemini reports any.
fn usage_of(usage: Usage) -> impl Iterator<Item = KeyValue> {
    let charged = usage.charged();
    let counts = [
        (INPUT_TOKENS, charged.input),
        (OUTPUT_TOKENS, charged.output),
        (CACHED_TOKENS, usage.cached_tokens),
        (THINKING_TOKENS, usage.thinking_tokens),
    ];
    let counts = counts.into_iter().filter(|(_, tokens)| *tokens > 0);
    let counts = counts.map(|(name, tokens)| KeyValue::new(name, number(tokens)));
    let cost = usage.is_known().then(|| KeyValue::new(COST, usage.cost.dollars()));
    counts.chain(cost)
}

pub(super) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The name of the conventions for what a call asks for; else its own.
fn operation(kind: CallKind) -> &'static str {
    match kind {
        CallKind::Chat
        | CallKind::StructuredOutput
        | CallKind::CinematicStoryDesign
        | CallKind::GenerateContent
        | CallKind::StreamGenerateContent
        | CallKind::Interaction => "generate_content",
        CallKind::OpenAiChat => "chat",
        CallKind::EmbedContent | CallKind::OpenAiEmbeddings => "embeddings",
        kind => kind.label(),
    }
}

/// Whether the gateway's own endpoints make such calls.
fn is_own(kind: CallKind) -> bool {
    kind == CallKind::Chat || is_json(kind)
}

fn is_json(kind: CallKind) -> bool {
    matches!(kind, CallKind::StructuredOutput | CallKind::CinematicStoryDesign)
}
