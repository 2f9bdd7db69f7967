//! The span of a request that a client sends.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Version};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;

use super::attributes::*;
use super::calls::CallSpans;
use super::{Tracing, propagation};
use crate::dispatch::CallObserver;
use crate::gemini::TraceContext;

/// How much of a path and of a user agent is kept, in bytes.
const MAX_PATH: usize = 1024;
const MAX_USER_AGENT: usize = 256;

/// The methods of the conventions.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
    Method::CONNECT,
    Method::TRACE,
];

/// The span of a request. It ends when this is dropped, with the answer's last byte.
#[derive(Debug)]
pub struct RequestSpan {
    tracing: Arc<Tracing>,
    span: Span,
    /// How the answer has ended, if it has.
    end: Option<End>,
    status: Option<StatusCode>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

impl RequestSpan {
    pub(super) fn start<B>(
        tracing: &Arc<Tracing>,
        request: &Request<B>,
        route: Option<&str>,
        id: &str,
    ) -> Self {
        let tracing = Arc::clone(tracing);
        let mut parent = Context::new();
        if tracing.propagates
            && let Some(claimed) =
                propagation::claimed(request.headers(), |state| tracing.is_clean(state))
        {
            parent = parent.with_remote_span_context(claimed);
        }
        let method = Some(request.method()).filter(|method| METHODS.contains(method));
        let method_name = method.map_or("_OTHER", Method::as_str);
        let name = match (method, route) {
            (None, _) => "HTTP".to_owned(),
            (Some(method), None) => method.to_string(),
            (Some(method), Some(route)) => format!("{method} {route}"),
        };
        let path = bounded(tracing.clean(request.uri().path().to_owned()), MAX_PATH);
        let mut attributes = vec![
            KeyValue::new(METHOD, method_name.to_owned()),
            KeyValue::new(PATH, path),
            KeyValue::new(SCHEME, "http"),
            KeyValue::new(REQUEST_ID, tracing.clean(id.to_owned())),
        ];
        attributes.extend(route.map(|route| KeyValue::new(ROUTE, route.to_owned())));
        attributes.extend(
            version(request.version()).map(|version| KeyValue::new(PROTOCOL_VERSION, version)),
        );
        if let Some(agent) = text(request.headers(), &http::header::USER_AGENT) {
            let agent = bounded(tracing.clean(agent.to_owned()), MAX_USER_AGENT);
            attributes.push(KeyValue::new(USER_AGENT, agent));
        }
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let span = tracing.tracer.build_with_context(span.with_attributes(attributes), &parent);
        Self { tracing, span, end: None, status: None }
    }

    /// An observer that makes the spans of the request's calls.
    pub fn observer(&self) -> Arc<dyn CallObserver> {
        let span_context = self.span.span_context().clone();
        Arc::new(CallSpans::of_request(Arc::clone(&self.tracing), span_context))
    }

    /// The position that calls to Gemini carry which have no span of their own; `None` if calls carry none.
    pub fn trace_context(&self) -> Option<TraceContext> {
        let written = || propagation::written(self.span.span_context());
        self.tracing.propagates.then(written).flatten()
    }

    /// Whether the request is among those that are traced.
    pub fn is_sampled(&self) -> bool {
        self.span.span_context().is_sampled()
    }

    /// The id of its trace, in hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.span.span_context().trace_id().to_string()
    }

    /// The answer has this status.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The last byte of the answer is on its way.
    pub fn is_whole(&mut self) {
        self.end.get_or_insert(End::Whole);
    }

    /// The answer broke off because of an error.
    pub fn is_broken(&mut self) {
        self.end.get_or_insert(End::Broken);
    }
}

impl Drop for RequestSpan {
    /// An answer that has not ended then was given up by its client.
    fn drop(&mut self) {
        let span = &mut self.span;
        if let Some(status) = self.status {
            span.set_attribute(KeyValue::new(STATUS, i64::from(status.as_u16())));
        }
        let failed = self.status.filter(StatusCode::is_server_error);
        let error = match (failed, self.end) {
            (Some(status), _) => Some(status.as_str().to_owned()),
            (None, Some(End::Broken)) => Some("broken_off".to_owned()),
            (None, Some(End::Whole)) => None,
            (None, None) => return span.add_event("the client hung up", Vec::new()),
        };
        if let Some(error) = error {
            span.set_attribute(KeyValue::new(ERROR_TYPE, error));
            span.set_status(Status::error(""));
        }
    }
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The start of a text without secrets. Half of a secret would not be recognized as one.
fn bounded(mut clean: String, most: usize) -> String {
    clean.truncate(clean.floor_char_boundary(most));
    clean
}
