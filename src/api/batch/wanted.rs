//! How a batch is to be answered, by the headers of its request.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::api::jobs::IDEMPOTENCY_KEY;

/// Source: RFC 7240.
const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(super) const RESPOND_ASYNC: HeaderValue = HeaderValue::from_static("respond-async");

/// The types of lines of JSON.
const LINES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// How a batch is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    /// At once: the batch becomes a job.
    pub later: bool,
    /// Each result as a line, as soon as it is there.
    pub lines: bool,
    /// So that the request can be sent again. The batch becomes a job, too.
    pub again: bool,
}

impl Wanted {
    /// Reads the headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let list = |name: HeaderName| {
            let values = headers.get_all(name).into_iter();
            let values = values.filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).map(|value| value.trim().to_ascii_lowercase())
        };
        let first = |value: &String| value.split(';').next().unwrap_or_default().trim().to_owned();
        let is_refused = |value: &String| {
            let mut parameters = value.split(';').skip(1).map(|parameter| parameter.trim());
            parameters
                .any(|parameter| parameter.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
        };
        Self {
            later: list(PREFER).any(|value| first(&value) == "respond-async"),
            lines: list(ACCEPT)
                .any(|value| LINES.contains(&&*first(&value)) && !is_refused(&value)),
            again: headers.contains_key(IDEMPOTENCY_KEY),
        }
    }

    /// Whether the batch becomes a job.
    pub(super) fn is_stored(self) -> bool {
        self.later || self.again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_say_how_a_batch_is_answered() {
        let wanted = |headers: &[(HeaderName, &'static str)]| {
            let headers = headers.iter().cloned();
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            Wanted::of(&headers.collect())
        };
        let none = Wanted::default();
        for (headers, expected) in [
            (&[][..], none),
            (&[(PREFER, "respond-async")], Wanted { later: true, ..none }),
            (&[(PREFER, "wait=5, Respond-Async; x=1")], Wanted { later: true, ..none }),
            (&[(PREFER, "return=minimal")], none),
            (&[(ACCEPT, "application/x-ndjson")], Wanted { lines: true, ..none }),
            (&[(ACCEPT, "text/html, Application/JSONL;q=0.5")], Wanted { lines: true, ..none }),
            (&[(ACCEPT, "application/x-ndjson;q=0, */*")], none),
            (&[(ACCEPT, "*/*")], none),
            (&[(IDEMPOTENCY_KEY, "x")], Wanted { again: true, ..none }),
        ] {
            assert_eq!(wanted(headers), expected, "{headers:?}");
        }
    }
}
