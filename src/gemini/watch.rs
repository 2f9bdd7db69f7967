//! How a stream ends that passes by.

use http::{HeaderMap, header::CONTENT_TYPE};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::error::Error;
use super::events::{Event, Events};

/// The longest event that is looked into, in bytes. Events with text in them are shorter, and so is
/// every recorded error; those with images are not.
const MAX_EVENT: usize = 64 * 1024;

/// Tells from the bytes of a stream that passes by whether it is an answer: Gemini's own, OpenAI's or
/// that of Interactions. It keeps 64 KiB at most, and changes nothing.
#[derive(Debug)]
pub struct Watch {
    events: Events,
    /// Whether something has come of which it is known how it ends.
    has_begun: bool,
    /// Whether that end has come.
    has_ended: bool,
    /// Whether anything has come, and whether some of it was not looked into.
    has_events: bool,
    has_unread: bool,
    strays: u64,
    /// The first error that came.
    error: Option<Error>,
}

/// What is looked at in an event, of all three shapes.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Piece<'a> {
    #[serde(borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    prompt_feedback: Option<PromptFeedback>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, rename = "event_type")]
    event_type: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback {
    block_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

/// The events of an interaction that are not its last one, of those whose names begin with
/// `interaction.`. Source: Google's Python SDK 3.6.1, and recorded streams.
const UNFINISHED: [&str; 5] = [
    "interaction.created",
    "interaction.start",
    "interaction.status_update",
    "interaction.in_progress",
    "interaction.queued",
];

impl Default for Watch {
    fn default() -> Self {
        Self {
            events: Events::within(MAX_EVENT),
            has_begun: false,
            has_ended: false,
            has_events: false,
            has_unread: false,
            strays: 0,
            error: None,
        }
    }
}

impl Watch {
    /// Watches an answer with these headers; `None` where it is no stream whose end can be told.
    /// `streams` says that a stream was asked for, so that JSON is a list of its events.
    pub fn of(headers: &HeaderMap, streams: bool) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE)?.as_bytes();
        let is_events = content_type.starts_with(b"text/event-stream");
        let is_list = streams && content_type.starts_with(b"application/json");
        (is_events || is_list).then(Self::default)
    }

    /// Reads the next bytes.
    pub fn scan(&mut self, bytes: &[u8]) {
        // An error is the end, whatever follows it.
        if self.error.is_none() {
            self.events.extend(bytes);
            self.read();
        }
    }

    /// The error that has come.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// How many lines came that are neither events nor JSON.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// What the stream was, now that its last byte has come.
    ///
    /// # Errors
    /// The error that came in it, or one that says that it was cut off. A stream of which nobody knows
    /// here how it should end is taken for whole.
    pub fn end(&mut self) -> Result<(), &Error> {
        self.events.end();
        self.read();
        let is_whole = if self.strays > 0 {
            self.has_ended || self.has_unread
        } else {
            self.has_ended || self.has_unread || (self.has_events && !self.has_begun)
        };
        if self.error.is_none() && !is_whole {
            self.error = Some(Error::without_end(self.strays));
        }
        self.error.as_ref().map_or(Ok(()), Err)
    }

    fn read(&mut self) {
        while let Some(event) = self.events.pop() {
            match event {
                Event::Data(data) => self.read_data(&data),
                Event::Stray(_) => self.strays += 1,
                Event::TooLong => self.has_unread = true,
            }
            if self.error.is_some() {
                return;
            }
        }
    }

    fn read_data(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.has_ended = true;
            return;
        }
        // OpenAI's surface writes an error as a list of one.
        let list = data.strip_prefix(b"[").and_then(|list| list.trim_ascii().strip_suffix(b"]"));
        let Ok(piece) = serde_json::from_slice::<Piece<'_>>(list.unwrap_or(data)) else {
            let is_json = serde_json::from_slice::<IgnoredAny>(data).is_ok();
            self.has_events |= is_json;
            self.strays += u64::from(!is_json);
            return;
        };
        self.has_events = true;
        if piece.error.is_some() {
            self.error = Some(Error::read_despite_success(data));
            return;
        }
        let candidates = piece.candidates.unwrap_or_default();
        let choices = piece.choices.unwrap_or_default();
        let event = piece.event_type.map_or("", |event| event.get().trim_matches('"'));
        let is_blocked = piece.prompt_feedback.is_some_and(|told| told.block_reason.is_some());
        self.has_begun |= !candidates.is_empty()
            || !choices.is_empty()
            || ["interaction.", "step."].iter().any(|kind| event.starts_with(kind));
        self.has_ended |= is_blocked
            || candidates.iter().any(|candidate| is_reason(candidate.finish_reason))
            || choices.iter().any(|choice| is_reason(choice.finish_reason))
            || (event.starts_with("interaction.") && !UNFINISHED.contains(&event));
    }
}

/// Whether a finish reason is one: some servers write a value that stands for none into every piece.
fn is_reason(written: Option<&RawValue>) -> bool {
    let none = ["\"\"", "0", "\"FINISH_REASON_UNSPECIFIED\""];
    written.is_some_and(|reason| !none.contains(&reason.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: &str = r#"{"candidates":[{"content":{"parts":[{"text":"\ud83d"}]}}]}"#;
    const LAST: &str = r#"{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{}}"#;
    const ERROR: &str = r#"{"error":{"code":503,"message":"\ud83d","status":"UNAVAILABLE"}}"#;
    const CHUNK: &str = r#"{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}"#;

    /// The code of the error that a stream ends with, however it is cut in two.
    fn end(stream: &str) -> Option<&'static str> {
        let ends = (0..=stream.len()).map(|cut| {
            let (one, other) = stream.as_bytes().split_at(cut);
            let mut watch = Watch::default();
            watch.scan(one);
            watch.scan(other);
            watch.end().err().map(|error| error.kind.code())
        });
        let ends: Vec<_> = ends.collect();
        assert!(ends.windows(2).all(|two| two[0] == two[1]), "{stream:?}: {ends:?}");
        ends[0]
    }

    fn events(data: &[&str]) -> String {
        data.iter().map(|data| format!("data: {data}\r\n\r\n")).collect()
    }

    #[test]
    fn a_stream_is_whole_that_says_why_it_ends() {
        let last = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
        let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#;
        let begun = r#"{"event_type":"interaction.created"}"#;
        let completed = r#"{"event_type":"interaction.completed"}"#;
        for stream in [
            events(&[PIECE, LAST]),
            events(&[PIECE, r#"{"candidates":[{"finishReason":19}]}"#]),
            format!("[{PIECE}\r\n,\r\n{LAST}]\n"),
            events(&[blocked]),
            events(&[CHUNK, last]),
            events(&[CHUNK, "[DONE]"]),
            events(&[begun, r#"{"event_type":"step.delta"}"#, completed]),
            events(&[begun, "[DONE]"]),
            format!(": ping\n\n{}", events(&[PIECE, LAST])),
            format!("a proxy's line\n{}", events(&[PIECE, LAST])),
            events(&["1", "{\"answer\":{}}"]),
        ] {
            assert_eq!(end(&stream), None, "{stream}");
        }
    }

    #[test]
    fn a_stream_is_cut_off_that_does_not() {
        for stream in [
            events(&[PIECE]),
            events(&[PIECE, r#"{"candidates":[{"finishReason":"FINISH_REASON_UNSPECIFIED"}]}"#]),
            format!("[{PIECE}"),
            events(&[CHUNK]),
            events(&[r#"{"event_type":"interaction.created"}"#]),
            String::new(),
            ": ping\n\n".to_owned(),
        ] {
            assert_eq!(end(&stream), Some("upstream_connection"), "{stream}");
        }
        for stream in [
            format!("{}upstream connect error", events(&[PIECE])),
            format!("{}data: {{\"cand", events(&[PIECE])),
            "Bad gateway".to_owned(),
            format!("{}\nBad gateway\n", events(&["1"])),
        ] {
            assert_eq!(end(&stream), Some("malformed_answer"), "{stream}");
        }
    }

    #[test]
    fn an_error_in_a_stream_is_that_error() {
        let pretty = ERROR.replace('{', "{\n  ").replace(',', ",\n  ");
        for error in [
            format!("data: {ERROR}\n\n"),
            format!("data: [{ERROR}]\n\n"),
            format!("event: error\r\ndata: {ERROR}\r\n\r\n"),
            format!("{ERROR}\n"),
            format!("[{pretty}\r\n]"),
            pretty.replace('\n', "\r\n"),
            format!("a proxy says: {pretty}"),
            events(&[r#"{"event_type":"error","error":{"code":"service_unavailable"}}"#]),
        ] {
            for before in ["", &events(&[PIECE]), &events(&[PIECE, LAST]), "\u{feff}"] {
                let stream = format!("{before}{error}");
                assert_eq!(end(&stream), Some("upstream_unavailable"), "{stream}");
            }
            let stream = format!("[{PIECE}\r\n,\r\n{error}");
            assert_eq!(end(&stream), Some("upstream_unavailable"), "{stream}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_looked_into_is_believed() {
        let mut watch = Watch::default();
        watch.scan(&events(&[PIECE]).into_bytes());
        watch.scan(b"data: {\"candidates\":[\"");
        for _ in 0..1000 {
            watch.scan(&[b'x'; 1000]);
        }
        assert!(watch.end().is_ok());
    }
}
