//! How traces are made and where they go.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use opentelemetry_sdk::trace::Sampler;

use crate::connect::{Authorities, Proxy};

/// How traces are made and where they go. `Debug` shows no header, since one may hold a secret.
#[derive(Clone)]
pub struct TraceSettings {
    /// Where spans are sent.
    pub collector: Collector,
    /// The name and the other attributes of this service, in their order.
    pub resource: Vec<(String, String)>,
    /// Which requests are traced.
    pub sampler: TraceSampler,
    /// Whether `traceparent` and `tracestate` are read from requests and passed on to Gemini.
    pub propagates: bool,
    /// Whether spans have the prompts and the answers of the gateway's own endpoints.
    pub captures_content: bool,
    /// How spans wait for their export.
    pub queue: SpanQueue,
}

/// A receiver of OTLP over HTTP.
#[derive(Clone)]
pub struct Collector {
    /// The URL to which spans are posted.
    pub url: Uri,
    /// Headers of each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one export may take.
    pub timeout: Duration,
    /// Whether bodies are compressed with gzip.
    pub compresses: bool,
    /// The certificate authorities that are trusted in addition to the system's.
    pub authorities: Authorities,
    /// The proxy to the receiver, if there is one.
    pub proxy: Option<Proxy>,
}

/// Which requests are traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceSampler {
    /// The fraction of requests, 0 to 1.
    pub ratio: f64,
    /// Whether the decision of a caller that sends `traceparent` holds instead.
    pub follows_caller: bool,
}

/// How spans wait for their export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanQueue {
    /// The most spans that wait. Further ones are dropped.
    pub length: usize,
    /// The most spans in one export; at most `length`.
    pub batch: usize,
    /// How long spans wait at most until the next export begins.
    pub delay: Duration,
}

impl TraceSampler {
    /// The same for OpenTelemetry's library.
    pub(super) fn sampler(self) -> Sampler {
        let own = match self.ratio {
            0.0 => Sampler::AlwaysOff,
            1.0 => Sampler::AlwaysOn,
            ratio => Sampler::TraceIdRatioBased(ratio),
        };
        if self.follows_caller { Sampler::ParentBased(Box::new(own)) } else { own }
    }
}

impl Default for TraceSampler {
    /// All requests, unless their callers decide.
    fn default() -> Self {
        Self { ratio: 1.0, follows_caller: true }
    }
}

impl Default for SpanQueue {
    /// The values of OpenTelemetry's specification.
    fn default() -> Self {
        Self { length: 2048, batch: 512, delay: Duration::from_secs(5) }
    }
}

impl fmt::Debug for TraceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceSettings")
            .field("collector", &self.collector)
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("url", &self.url).finish_non_exhaustive()
    }
}
