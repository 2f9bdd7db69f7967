//! Interactions: what a request says of the run it starts, and what an answer says of its state.
//!
//! Source: Gemini API reference, Interactions, and the types in Google's Python SDK 3.6.1.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::fields::{RepeatedField, fields, value};

/// The longest ID that is remembered, in bytes. Gemini's have fewer than 200.
const MAX_ID: usize = 1024;

/// The characters of an ID that are escaped in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a request for an interaction says beside its input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InteractionRequest {
    /// The interaction that it continues, which Gemini reads again.
    pub previous: Option<String>,
    /// Whether it runs on at Gemini after its answer.
    pub in_background: bool,
}

impl InteractionRequest {
    /// Reads a request body. One that is not a JSON object says nothing: Gemini rejects it.
    ///
    /// # Errors
    /// [`RepeatedField`]: it is uncertain what Gemini takes.
    pub fn read(body: &[u8]) -> Result<Self, RepeatedField> {
        let [previous, background] = fields(body, [&["previous_interaction_id"], &["background"]])?;
        let in_background = value(background).unwrap_or(false);
        Ok(Self { previous: value(previous), in_background })
    }
}

/// Where an interaction is at Gemini.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InteractionPath {
    /// The API version: `v1`, `v1beta` or `v1alpha`.
    pub version: String,
    /// The interaction's ID; `None` for the collection, where interactions are created.
    pub id: Option<String>,
}

impl InteractionPath {
    /// Reads `/{version}/interactions`, and any path below it.
    pub fn of(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix('/')?.split('/').map(decoded);
        let version = segments.next()??;
        if segments.next()?? != "interactions" {
            return None;
        }
        let id = match segments.next() {
            Some(id) => Some(id?).filter(|id| !id.is_empty()),
            None => None,
        };
        Some(Self { version, id })
    }

    /// The path of the interaction with this ID, in the same API version. `None` for an ID that
    /// cannot be Gemini's.
    pub fn with_id(&self, id: &str) -> Option<Uri> {
        let is_id = (1..=MAX_ID).contains(&id.len()) && id != "." && id != "..";
        let path = || {
            let version = utf8_percent_encode(&self.version, ESCAPED);
            let id = utf8_percent_encode(id, ESCAPED);
            format!("/{version}/interactions/{id}").parse().ok()
        };
        is_id.then(path).flatten()
    }
}

fn decoded(segment: &str) -> Option<String> {
    percent_decode_str(segment).decode_utf8().ok().map(Cow::into_owned)
}

/// Whether an interaction with this status has come to its end. Gemini's set of statuses is open:
/// one that is not known counts as running.
pub(super) fn is_settled(status: &str) -> bool {
    matches!(
        status,
        "completed"
            | "failed"
            | "cancelled"
            | "incomplete"
            | "budget_exceeded"
            | "requires_action"
            | "requires_continuation"
    )
}

/// The status that an event's type stands for. Events that end an interaction are named after its
/// status. `None` if the interaction goes on.
pub(super) fn status_of_event(kind: &str) -> Option<&str> {
    match kind.strip_prefix("interaction.")? {
        "complete" => Some("completed"),
        "canceled" => Some("cancelled"),
        status => is_settled(status).then_some(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_continues_and_whether_it_runs_in_the_background() {
        let read = |body: &str| {
            let request = InteractionRequest::read(body.as_bytes()).unwrap();
            (request.previous, request.in_background)
        };
        let body = r#"{"input":"x","background":true,"previous_interaction_id":"v1_\u0061"}"#;
        assert_eq!(read(body), (Some("v1_a".to_owned()), true));
        for body in [
            r#"{"background":"true","previous_interaction_id":7}"#,
            r#"{"background":false,"previous_interaction_id":null}"#,
            r#"{"input":{"background":true}}"#,
            "[]",
            "",
        ] {
            assert_eq!(read(body), (None, false), "{body}");
        }
        let twice = br#"{"background":false,"background":true}"#;
        assert_eq!(InteractionRequest::read(twice), Err(RepeatedField("background")));
    }

    #[test]
    fn a_path_names_an_interaction() {
        let of = |path: &str| InteractionPath::of(path).map(|path| (path.version, path.id));
        let some = |id: Option<&str>| Some(("v1beta".to_owned(), id.map(str::to_owned)));
        assert_eq!(of("/v1beta/interactions"), some(None));
        assert_eq!(of("/v1beta/interactions/"), some(None));
        assert_eq!(of("/v1beta/interactions/v1_a"), some(Some("v1_a")));
        assert_eq!(of("/v1beta/%69nteractions/a%2Fb/cancel"), some(Some("a/b")));
        assert_eq!(of("/v1beta/models/interactions"), None);
        let create = InteractionPath::of("/v1/interactions").unwrap();
        assert_eq!(create.with_id("a/b ?").unwrap(), "/v1/interactions/a%2Fb%20%3F");
        for id in ["", "..", &"a".repeat(MAX_ID + 1)] {
            assert_eq!(create.with_id(id), None, "{id}");
        }
    }
}
