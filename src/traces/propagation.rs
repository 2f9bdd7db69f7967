//! W3C Trace Context: taken from a request, and written into calls to Gemini.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::gemini::{TRACEPARENT, TRACESTATE, TraceContext};

/// The longest headers that are taken, in bytes. A `traceparent` of a later version may be longer than one
/// of the first. Source: W3C Trace Context, sections 3.2.4 and 3.3.1.5.
const MAX_PARENT: usize = 128;
const MAX_STATE: usize = 512;

/// The position in a trace that a request claims. A `tracestate` that is invalid or too long, or that
/// `is_clean` refuses, is left out.
pub(super) fn claimed(headers: &HeaderMap, is_clean: impl Fn(&str) -> bool) -> Option<SpanContext> {
    let (trace, span, flags) = parent(only(headers, &TRACEPARENT)?)?;
    let state = joined(headers, &TRACESTATE);
    let state = state.filter(|state| state.len() <= MAX_STATE && is_clean(state));
    let state = state.and_then(|state| TraceState::from_str(&state).ok()).unwrap_or_default();
    let position = SpanContext::new(trace, span, flags, true, state);
    position.is_valid().then_some(position)
}

/// Reads a `traceparent`. OpenTelemetry's library would accept ids of fewer digits.
fn parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let [version, trace, span, flags] =
        text.splitn(5, '-').take(4).collect::<Vec<_>>().try_into().ok()?;
    let is_longer = text.len() > "00-".len() + 32 + "-".len() + 16 + "-00".len();
    let is_known = version != "ff" && text.len() <= MAX_PARENT && !(version == "00" && is_longer);
    let is_hex = |text: &str, digits| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_valid = is_known && is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16);
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| is_valid && is_hex(flags, 2))?;
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags))
}

/// The value of a header that occurs once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first)
}

/// The values of a header that may be split. Source: RFC 9110, section 5.3.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Option<Vec<_>> =
        headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.join(","))
}

/// A position in a trace as headers.
pub(super) fn written(span: &SpanContext) -> Option<TraceContext> {
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
    let state = Some(span.trace_state().header()).filter(|state| !state.is_empty());
    let state = state.and_then(|state| HeaderValue::try_from(state).ok());
    Some(TraceContext { parent: HeaderValue::try_from(parent).ok()?, state })
        .filter(|_| span.is_valid())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    /// What is passed on of headers.
    fn passed_on(pairs: &[(HeaderName, &str)]) -> Option<(String, Option<String>)> {
        let claimed = claimed(&headers(pairs), |state| !state.contains("secret"))?;
        let written = written(&claimed)?;
        let text = |value: HeaderValue| value.to_str().unwrap().to_owned();
        Some((text(written.parent), written.state.map(text)))
    }

    #[test]
    fn a_valid_context_is_taken_with_its_state() {
        assert_eq!(passed_on(&[(TRACEPARENT, PARENT)]), Some((PARENT.to_owned(), None)));
        let states = [(TRACEPARENT, PARENT), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")];
        assert_eq!(passed_on(&states).unwrap().1.as_deref(), Some("a=1,b=2"));
        let later = format!("{}-more", PARENT.replacen("00", "01", 1));
        assert_eq!(passed_on(&[(TRACEPARENT, &later)]), Some((PARENT.to_owned(), None)));
    }

    #[test]
    fn an_invalid_context_is_ignored() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let long = format!("{PARENT}-{}", "a".repeat(100));
        let upper = PARENT.to_ascii_uppercase();
        let (invalid, more) = (PARENT.replacen("00", "ff", 1), format!("{PARENT}-0"));
        for parent in ["", "x", "00-abc-def-01", zeros, &more, &long, &upper, &invalid, "00-\u{e9}"]
        {
            assert_eq!(passed_on(&[(TRACEPARENT, parent)]), None, "{parent}");
        }
        assert_eq!(passed_on(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]), None, "twice");
        assert_eq!(passed_on(&[(TRACESTATE, "a=1")]), None, "a state alone");
    }

    #[test]
    fn a_state_that_is_invalid_too_long_or_secret_is_left_out() {
        let long = format!("a={}", "x".repeat(511));
        for state in ["", "no pair", &long, "a=a-secret", "a=\u{e9}"] {
            let passed = passed_on(&[(TRACEPARENT, PARENT), (TRACESTATE, state)]);
            assert_eq!(passed, Some((PARENT.to_owned(), None)), "{state}");
        }
    }
}
