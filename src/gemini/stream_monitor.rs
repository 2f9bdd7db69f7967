//! Checks how a passing stream ends.

use std::borrow::Cow;

use http::{HeaderMap, header::CONTENT_TYPE};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::error::Error;
use super::events::{Event, Events};
use super::interaction::is_settled;

/// The longest event that is parsed, in bytes. Events with text are shorter, and so is every recorded
/// error; events with images may be longer.
const MAX_EVENT: usize = 64 * 1024;

/// Checks from the passing bytes whether a stream is a complete answer: of Gemini's own API, OpenAI's or
/// Interactions. It keeps at most 64 KiB and changes nothing.
#[derive(Debug)]
pub struct StreamMonitor {
    events: Events,
    /// Whether an event of a known format has arrived.
    has_begun: bool,
    /// Whether the end of that format has arrived.
    has_ended: bool,
    /// Whether any event has arrived, and whether one was too long to parse.
    has_events: bool,
    has_unread: bool,
    /// Whether it is the stream of an interaction.
    is_interaction: bool,
    unrecognized: u64,
    /// The first error in the stream.
    error: Option<Error>,
}

/// The fields of an event in all three formats.
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
    #[serde(borrow)]
    interaction: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

/// The interaction that an event is about.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Interaction<'a> {
    #[serde(borrow)]
    status: Option<&'a RawValue>,
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

/// The events that start with `interaction.` and do not end an interaction. Source: Google's Python SDK
/// 3.6.1, and recorded streams.
const UNFINISHED: [&str; 5] = [
    "interaction.created",
    "interaction.start",
    "interaction.status_update",
    "interaction.in_progress",
    "interaction.queued",
];

impl Default for StreamMonitor {
    fn default() -> Self {
        Self {
            events: Events::within(MAX_EVENT),
            has_begun: false,
            has_ended: false,
            has_events: false,
            has_unread: false,
            is_interaction: false,
            unrecognized: 0,
            error: None,
        }
    }
}

impl StreamMonitor {
    /// A monitor for an answer with these headers; `None` if it is not a stream. `streams` says that a
    /// stream was requested, so that JSON is a list of events.
    pub fn of(headers: &HeaderMap, streams: bool) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE)?.as_bytes();
        let is_events = content_type.starts_with(b"text/event-stream");
        let is_list = streams && content_type.starts_with(b"application/json");
        (is_events || is_list).then(Self::default)
    }

    /// Reads the next bytes.
    pub fn scan(&mut self, bytes: &[u8]) {
        // An error is the end, whatever follows.
        if self.error.is_none() {
            self.events.extend(bytes);
            self.read();
        }
    }

    /// The error in the stream so far.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// How many lines were neither events nor JSON.
    pub fn unrecognized(&self) -> u64 {
        self.unrecognized
    }

    /// The result of the stream. Call it after the last byte.
    ///
    /// # Errors
    /// The error in the stream, or one that says that it was cut off. A stream in an unknown format
    /// counts as complete.
    pub fn end(&mut self) -> Result<(), &Error> {
        self.events.end();
        self.read();
        let is_whole = if self.unrecognized > 0 {
            self.has_ended || self.has_unread
        } else {
            self.has_ended || self.has_unread || (self.has_events && !self.has_begun)
        };
        if self.error.is_none() && !is_whole {
            self.error = Some(Error::unfinished(self.unrecognized));
        }
        self.error.as_ref().map_or(Ok(()), Err)
    }

    fn read(&mut self) {
        while let Some(event) = self.events.pop() {
            match event {
                Event::Data(data) => self.read_data(&data),
                Event::Unrecognized(_) => self.unrecognized += 1,
                Event::TooLong => self.has_unread = true,
            }
            if self.error.is_some() {
                return;
            }
        }
    }

    fn read_data(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            // It ends the stream of an interaction too, whose status says how that ended.
            self.has_ended |= !self.is_interaction;
            return;
        }
        // OpenAI's surface writes an error as a list with one item.
        let list = data.strip_prefix(b"[").and_then(|list| list.trim_ascii().strip_suffix(b"]"));
        let Ok(piece) = serde_json::from_slice::<Piece<'_>>(list.unwrap_or(data)) else {
            let is_json = serde_json::from_slice::<IgnoredAny>(data).is_ok();
            self.has_events |= is_json;
            self.unrecognized += u64::from(!is_json);
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
        let is_blocked = piece.prompt_feedback.is_some_and(|it| it.block_reason.is_some());
        self.is_interaction |= ["interaction.", "step."].iter().any(|kind| event.starts_with(kind));
        self.has_begun |= !candidates.is_empty() || !choices.is_empty() || self.is_interaction;
        self.has_ended |= is_blocked
            || candidates.iter().any(|candidate| is_reason(candidate.finish_reason))
            || choices.iter().any(|choice| is_reason(choice.finish_reason))
            || (event.starts_with("interaction.")
                && !UNFINISHED.contains(&event)
                && !piece.interaction.is_some_and(is_running));
    }
}

/// Whether an interaction has a status that is not its last.
fn is_running(interaction: &RawValue) -> bool {
    let interaction: Interaction<'_> = serde_json::from_str(interaction.get()).unwrap_or_default();
    let status = interaction.status.and_then(|status| serde_json::from_str(status.get()).ok());
    status.is_some_and(|status: Cow<'_, str>| !is_settled(&status))
}

/// Whether a finish reason is set: some servers write an empty value into every event.
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

    /// The code of the error that a stream ends with, which is the same wherever the stream is cut in two.
    fn end(stream: &str) -> Option<&'static str> {
        let ends = (0..=stream.len()).map(|cut| {
            let (one, other) = stream.as_bytes().split_at(cut);
            let mut watch = StreamMonitor::default();
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
    fn a_stream_with_a_finish_reason_is_complete() {
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
            events(&[begun, r#"{"event_type":"interaction.x","interaction":{"status":"failed"}}"#]),
            format!(": ping\n\n{}", events(&[PIECE, LAST])),
            format!("a proxy's line\n{}", events(&[PIECE, LAST])),
            events(&["1", "{\"answer\":{}}"]),
        ] {
            assert_eq!(end(&stream), None, "{stream}");
        }
    }

    #[test]
    fn a_stream_without_a_finish_reason_is_cut_off() {
        let begun = r#"{"event_type":"interaction.created"}"#;
        for stream in [
            events(&[PIECE]),
            events(&[PIECE, r#"{"candidates":[{"finishReason":"FINISH_REASON_UNSPECIFIED"}]}"#]),
            format!("[{PIECE}"),
            events(&[CHUNK]),
            events(&[begun]),
            events(&[begun, "[DONE]"]),
            events(&[r#"{"event_type":"step.stop","index":0}"#, "[DONE]"]),
            events(&[
                r#"{"event_type":"interaction.completed","interaction":{"status":"queued"}}"#,
            ]),
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
    fn a_stream_with_an_unparsed_event_counts_as_complete() {
        let mut watch = StreamMonitor::default();
        watch.scan(&events(&[PIECE]).into_bytes());
        watch.scan(b"data: {\"candidates\":[\"");
        for _ in 0..1000 {
            watch.scan(&[b'x'; 1000]);
        }
        assert!(watch.end().is_ok());
    }
}
