//! A receiver of OTLP over HTTP, and an upstream that records the trace context of calls.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use flate2::read::GzDecoder;
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::simulator::{Options, Simulator};
use gemini_concurrent_generation::traces::{Collector, SpanQueue, TraceSampler, TraceSettings};
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Service, listen, until};

/// A receiver that keeps what it is sent.
pub struct Receiver {
    pub url: String,
    kept: Arc<Kept>,
    _stop: DropGuard,
}

/// What a receiver was sent.
pub struct Kept {
    bodies: Mutex<Vec<Bytes>>,
    headers: Mutex<Vec<HeaderMap>>,
    /// What it answers with.
    status: Mutex<StatusCode>,
    /// How many requests it answers.
    answers: Semaphore,
}

/// A span as it was received.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    pub kind: i32,
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub attributes: BTreeMap<String, Value>,
    pub failed: bool,
    pub events: Vec<String>,
    /// The spans that it is linked to.
    pub links: Vec<String>,
    pub start: u64,
    pub end: u64,
    /// Attributes of the service.
    pub resource: BTreeMap<String, Value>,
}

pub const INTERNAL: i32 = 1;
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;

impl Receiver {
    pub async fn start() -> Self {
        Self::with(Semaphore::MAX_PERMITS).await
    }

    /// A receiver that answers so many requests and then none.
    pub async fn with(answers: usize) -> Self {
        let stop = CancellationToken::new();
        let kept = Arc::new(Kept {
            bodies: Mutex::default(),
            headers: Mutex::default(),
            status: Mutex::new(StatusCode::OK),
            answers: Semaphore::new(answers),
        });
        let router = Router::new().route("/v1/traces", post(receive));
        let address = listen(router.with_state(Arc::clone(&kept)), &stop).await;
        Self { url: format!("http://{address}"), kept, _stop: stop.drop_guard() }
    }

    /// Answers with this status from now on.
    pub fn answer_with(&self, status: StatusCode) {
        *self.kept.status.lock().unwrap() = status;
    }

    /// Answers so many further requests.
    pub fn answer_more(&self, requests: usize) {
        self.kept.answers.add_permits(requests);
    }

    /// Settings that send every trace here at once.
    pub fn settings(&self) -> TraceSettings {
        settings(&self.url)
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> usize {
        self.kept.headers.lock().unwrap().len()
    }

    pub fn headers(&self) -> Vec<HeaderMap> {
        self.kept.headers.lock().unwrap().clone()
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let bodies = self.kept.bodies.lock().unwrap();
        let requests = bodies.iter().map(|body| {
            ExportTraceServiceRequest::decode(body.clone()).expect("a request of OTLP")
        });
        requests.flat_map(spans_of).collect()
    }

    /// Everything that arrived, as text.
    pub fn text(&self) -> String {
        let bodies = self.kept.bodies.lock().unwrap();
        String::from_utf8_lossy(&bodies.concat()).into_owned()
    }

    /// Waits for so many spans of this name, and gives them in the order of their start.
    pub async fn until(&self, name: &str, count: usize) -> Vec<Span> {
        let named = || {
            let mut spans = self.spans();
            spans.retain(|span| span.name == name);
            spans.sort_by_key(|span| span.start);
            spans
        };
        until(&format!("{count} spans of {name}"), || named().len() >= count).await;
        let spans = named();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// The children of a span, in the order of their start.
    pub fn children(&self, parent: &Span) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.parent == parent.id);
        spans.sort_by_key(|span| span.start);
        for span in &spans {
            assert_eq!(span.trace, parent.trace, "{span:?}");
            assert!(parent.start <= span.start && span.end <= parent.end, "{span:?} in {parent:?}");
        }
        spans
    }

    /// A service whose traces come here.
    pub async fn service(&self) -> Service {
        self.service_with(|_| {}).await
    }

    /// The same, with some settings changed.
    pub async fn service_with(&self, change: impl FnOnce(&mut Config)) -> Service {
        let settings = self.settings();
        Service::with(Options::default(), |config| {
            config.traces = Some(settings);
            change(config);
        })
        .await
    }
}

/// Settings that send every trace to a receiver at once.
pub fn settings(url: &str) -> TraceSettings {
    let collector = Collector {
        url: format!("{url}/v1/traces").parse().expect("a URL"),
        headers: Vec::new(),
        timeout: Duration::from_secs(10),
        compresses: false,
        authorities: Default::default(),
        proxy: None,
    };
    TraceSettings {
        collector,
        resource: vec![("service.name".to_owned(), "tested".to_owned())],
        sampler: TraceSampler::default(),
        propagates: true,
        captures_content: false,
        queue: SpanQueue { delay: Duration::from_millis(10), ..SpanQueue::default() },
    }
}

async fn receive(State(kept): State<Arc<Kept>>, headers: HeaderMap, body: Bytes) -> Response {
    let is_packed = headers.get("content-encoding").is_some_and(|coding| coding == "gzip");
    kept.headers.lock().unwrap().push(headers);
    kept.answers.acquire().await.expect("it is open").forget();
    let status = *kept.status.lock().unwrap();
    if status.is_success() {
        kept.bodies.lock().unwrap().push(if is_packed { unpacked(&body) } else { body });
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    (status, [("content-type", "application/x-protobuf")], answer).into_response()
}

fn unpacked(body: &[u8]) -> Bytes {
    let mut unpacked = Vec::new();
    GzDecoder::new(body).read_to_end(&mut unpacked).expect("gzip");
    unpacked.into()
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.expect("attributes of the service");
        let resource = values(resource.attributes);
        for of_scope in of_resource.scope_spans {
            spans.extend(of_scope.spans.into_iter().map(|span| read(span, resource.clone())));
        }
    }
    spans
}

fn read(span: Sent, resource: BTreeMap<String, Value>) -> Span {
    Span {
        name: span.name,
        kind: span.kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        attributes: values(span.attributes),
        failed: span.status.is_some_and(|status| status.code == 2),
        events: span.events.into_iter().map(|event| event.name).collect(),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        resource,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn values(attributes: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let count = attributes.len();
    let values: BTreeMap<_, _> =
        attributes.into_iter().map(|pair| (pair.key, value(pair.value))).collect();
    assert_eq!(values.len(), count, "each attribute is sent once: {values:?}");
    values
}

fn value(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::ArrayValue(array)) => {
            array.values.into_iter().map(|one| self::value(Some(one))).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// `traceparent` and `tracestate` of calls.
type Contexts = Arc<Mutex<Vec<[Option<String>; 2]>>>;

/// A simulator that records the trace context of each call.
pub struct Traced {
    pub base_url: String,
    contexts: Contexts,
    _stop: DropGuard,
}

impl Traced {
    pub async fn start() -> Self {
        let stop = CancellationToken::new();
        let contexts = Contexts::default();
        let router = Simulator::new(Options::default()).router();
        let router = router.layer(from_fn_with_state(Arc::clone(&contexts), record));
        let base_url = format!("http://{}", listen(router, &stop).await);
        Self { base_url, contexts, _stop: stop.drop_guard() }
    }

    /// `traceparent` and `tracestate` of the calls so far.
    pub fn contexts(&self) -> Vec<[Option<String>; 2]> {
        self.contexts.lock().unwrap().clone()
    }
}

async fn record(State(contexts): State<Contexts>, request: Request, next: Next) -> Response {
    let header = |name| Some(request.headers().get(name)?.to_str().unwrap().to_owned());
    contexts.lock().unwrap().push(["traceparent", "tracestate"].map(header));
    next.run(request).await
}
