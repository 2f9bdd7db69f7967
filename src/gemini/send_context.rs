//! What belongs to one attempt at a call, and not to the call itself.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::SendCheck;

/// The headers of W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// See [`TRACEPARENT`].
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What belongs to one attempt at a call.
#[derive(Clone, Default)]
pub struct SendContext {
    /// A check whether the call may still be written.
    pub check: Option<SendCheck>,
    /// The trace that the attempt is part of. Boxed, because few calls are traced.
    pub trace: Option<Box<TraceContext>>,
}

/// The position of a request in a trace, as the headers of W3C Trace Context have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The header `traceparent`.
    pub parent: HeaderValue,
    /// The header `tracestate`, if there is one.
    pub state: Option<HeaderValue>,
}

impl TraceContext {
    /// Sets both headers, in place of those that a request has.
    pub fn insert_into(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.parent.clone());
        match &self.state {
            Some(state) => drop(headers.insert(TRACESTATE, state.clone())),
            None => drop(headers.remove(TRACESTATE)),
        }
    }
}

impl SendContext {
    /// A context with this check alone.
    pub fn checked(check: Option<SendCheck>) -> Self {
        Self { check, trace: None }
    }
}

impl fmt::Debug for SendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendContext").field("trace", &self.trace).finish_non_exhaustive()
    }
}
