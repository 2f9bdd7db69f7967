//! OpenTelemetry traces over OTLP: a span for each request, each wait for admission, each attempt at a call
//! to Gemini, each item of a batch or a job, and each run of a job.
//!
//! Spans are made from what [`dispatch`](crate::dispatch) tells of calls, and not from log events: so they
//! cost nothing while they are off, and have nothing that a log line might add. Prompts, answers and keys
//! are in no span, unless a variable asks for the content of the gateway's own endpoints.
//!
//! | file | what is in it |
//! |---|---|
//! | `settings` | how traces are made and where they go |
//! | `requests` | the span of a request |
//! | `calls` | the spans of calls and items |
//! | `jobs` | the spans of jobs |
//! | `content` | prompts and answers as attributes |
//! | `attributes` | the names of attributes |
//! | `propagation` | W3C Trace Context |
//! | `exporter` | from the end of a span to the receiver |
//! | `collector` | the HTTP client of the exporter |
//! | `trouble` | what is counted and logged when spans cannot be exported |

mod attributes;
mod calls;
mod collector;
mod content;
mod exporter;
mod jobs;
mod propagation;
mod requests;
mod settings;
mod trouble;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::gemini::{Secrets, redact};
use crate::jobs::JobObserver;
use crate::metrics::Metrics;

use jobs::JobSpans;

pub use requests::RequestSpan;
pub use settings::{Collector, SpanQueue, TraceSampler, TraceSettings};

/// How long the last spans may take to be exported at the end.
pub const FLUSH_TIME: Duration = Duration::from_secs(3);

/// The paths of health checks and of metrics, which are asked for all the time and are not traced.
const UNTRACED: [&str; 4] = ["/", "/livez", "/readyz", "/metrics"];

/// The dashboard. Its open pages are kept up to date all the time, so only what asks Gemini is traced.
const DASHBOARD: &str = "/dashboard";
const PLAYGROUND: &str = "/dashboard/playground";

/// Makes traces, or none if they are off. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Tracing>>);

/// What makes spans.
struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// The host and the port of Gemini.
    upstream: (String, u16),
    propagates: bool,
    captures_content: bool,
    /// Keys that are overwritten in all texts.
    secrets: Secrets,
}

impl Traces {
    /// Starts to make traces. `upstream` is the host and the port of Gemini. `secrets` are overwritten in all
    /// texts. If they cannot be exported at all, the log says so, and there are none.
    pub fn start(
        settings: &TraceSettings,
        upstream: (String, u16),
        secrets: Secrets,
        metrics: Arc<Metrics>,
    ) -> Self {
        let provider = match exporter::start(settings, metrics) {
            Ok(provider) => provider,
            Err(error) => {
                tracing::error!(%error, "there are no traces");
                return Self(None);
            }
        };
        let collector = settings.collector.url.authority().map(|authority| authority.as_str());
        tracing::info!(collector, "requests are traced");
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        let TraceSettings { propagates, captures_content, .. } = *settings;
        let tracing = Tracing { provider, tracer, upstream, propagates, captures_content, secrets };
        Self(Some(Arc::new(tracing)))
    }

    /// Whether there are any.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Starts the span of a request with this route and this id; `None` if it gets none.
    pub fn request<B>(
        &self,
        request: &Request<B>,
        route: Option<&str>,
        id: &str,
    ) -> Option<RequestSpan> {
        let is_traced = is_traced(request.method(), request.uri().path());
        let tracing = self.0.as_ref().filter(|_| is_traced)?;
        Some(RequestSpan::start(tracing, request, route, id))
    }

    /// An observer that makes the spans of jobs.
    pub fn job_observer(&self) -> Option<Arc<dyn JobObserver>> {
        let tracing = self.0.as_ref()?;
        Some(Arc::new(JobSpans(Arc::clone(tracing))))
    }

    /// Exports the spans that have ended, in at most [`FLUSH_TIME`]. There are no further spans.
    pub async fn stop(&self) {
        let Some(tracing) = &self.0 else { return };
        let provider = tracing.provider.clone();
        let stopped =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIME));
        if let Ok(Err(error)) = stopped.await {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

impl Tracing {
    /// Whether a text contains no secret.
    fn is_clean(&self, text: &str) -> bool {
        self.secrets.can_pass(text.as_bytes()) || self.clean(text.to_owned()) == text
    }

    /// A text with secrets overwritten.
    fn clean(&self, text: String) -> String {
        if self.secrets.can_pass(text.as_bytes()) {
            return text;
        }
        let masked = self.secrets.mask(Bytes::from(text));
        match redact(&masked) {
            Cow::Borrowed(clean) => String::from_utf8_lossy(clean).into_owned(),
            Cow::Owned(clean) => String::from_utf8_lossy(&clean).into_owned(),
        }
    }
}

/// Whether requests for a path are traced.
fn is_traced(method: &Method, path: &str) -> bool {
    match path.strip_prefix(DASHBOARD) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            path == PLAYGROUND && method == Method::POST
        }
        _ => !UNTRACED.contains(&path),
    }
}

impl Drop for Tracing {
    /// Ends the exporter's thread. Not here, since it waits for the last export.
    fn drop(&mut self) {
        let provider = self.provider.clone();
        let _ =
            std::thread::Builder::new().spawn(move || provider.shutdown_with_timeout(FLUSH_TIME));
    }
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tracing(…)")
    }
}
