//! Finds the state of an interaction in a passing answer.

use std::mem;

use memchr::memchr3;

use super::Usage;
use super::interaction::{is_settled, status_of_event};
use super::json::Braces;

/// The longest usage object that is read, in bytes. Recorded ones have a few hundred.
const MAX_OBJECT: usize = 64 * 1024;

/// The longest ID, status or event type that is read, in bytes.
const MAX_TEXT: usize = 1024;

/// The longest name of a field that is read.
const MAX_NAME: usize = "interaction_id".len();

/// Finds ID, status and usage of an interaction while its answer passes, as one object or as events,
/// wherever the bytes are cut. It keeps only what it looks for. The last usage counts: Gemini reports
/// running totals.
///
/// Only fields of the answer or event itself, of its `interaction` and of its `metadata` count. A
/// deeper one may be written by the model, such as the arguments of a function call.
#[derive(Debug, Default)]
pub struct InteractionScanner {
    state: Scan,
    /// How many objects and lists are open.
    depth: usize,
    /// The object at depth 2 that is open, if its fields count.
    parent: Option<Parent>,
    /// The field whose value comes next, if it counts.
    field: Option<Field>,
    /// Whether the next string is the name of a field.
    expects_name: bool,
    /// The name, text or object that is being read.
    text: Vec<u8>,
    /// What the open object says so far.
    object: Seen,
    id: Option<String>,
    status: Option<String>,
    usage: Option<Usage>,
}

/// The scanner's position in an answer.
#[derive(Debug, Default)]
enum Scan {
    /// Outside of strings.
    #[default]
    Outside,
    /// In a string that does not count.
    Skipped { escaped: bool },
    /// In the name of a field.
    Name,
    /// In a string that counts.
    Text { escaped: bool },
    /// In a usage object.
    Object(Braces),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    Interaction,
    Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Status,
    EventType,
    Usage,
    Object(Parent),
}

/// What an object says.
#[derive(Debug, Default)]
struct Seen {
    id: Option<String>,
    status: Option<String>,
    event_type: Option<String>,
    usage: Option<Usage>,
}

impl Field {
    fn of(parent: Option<Parent>, name: &[u8]) -> Option<Self> {
        match (parent, name) {
            (None | Some(Parent::Interaction), b"id") | (None, b"interaction_id") => Some(Self::Id),
            (None | Some(Parent::Interaction), b"status") => Some(Self::Status),
            (None | Some(Parent::Interaction), b"usage")
            | (Some(Parent::Metadata), b"total_usage") => Some(Self::Usage),
            (None, b"event_type") => Some(Self::EventType),
            (None, b"interaction") => Some(Self::Object(Parent::Interaction)),
            (None, b"metadata") => Some(Self::Object(Parent::Metadata)),
            _ => None,
        }
    }
}

impl InteractionScanner {
    /// The interaction's ID.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Its last status so far.
    pub fn status(&self) -> Option<&str> {
        self.status.as_deref()
    }

    /// Its last usage so far.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Whether the interaction has come to its end.
    pub fn is_settled(&self) -> bool {
        self.status().is_some_and(is_settled)
    }

    /// Reads the next bytes.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            match &mut self.state {
                Scan::Skipped { escaped: false } => {
                    let Some(end) = memchr3(b'"', b'\\', b'\n', bytes) else { return };
                    match bytes[end] {
                        b'\\' => self.state = Scan::Skipped { escaped: true },
                        b'"' => self.state = Scan::Outside,
                        _ => self.restart(),
                    }
                    bytes = &bytes[end + 1..];
                    continue;
                }
                Scan::Skipped { escaped } => *escaped = false,
                // JSON has no line break in a string: what came is something else.
                Scan::Name | Scan::Text { .. } if *byte == b'\n' => self.restart(),
                Scan::Name if *byte == b'"' => {
                    self.field = Field::of(self.parent, &self.text);
                    self.state = Scan::Outside;
                }
                Scan::Name if *byte == b'\\' => self.skip_text(true),
                Scan::Name => self.push(*byte, MAX_NAME),
                Scan::Text { escaped: false } if *byte == b'"' => self.read_text(),
                Scan::Text { escaped } => {
                    *escaped = !*escaped && *byte == b'\\';
                    self.push(*byte, MAX_TEXT);
                }
                Scan::Object(_) => self.scan_object(*byte),
                Scan::Outside => self.scan_outside(*byte),
            }
            bytes = rest;
        }
    }

    fn scan_outside(&mut self, byte: u8) {
        match byte {
            b'"' => self.open_text(),
            b'{' | b'[' => self.open(byte == b'{'),
            b'}' | b']' => self.close(),
            b',' => self.expects_name = true,
            b':' => self.expects_name = false,
            // The event field `data`. No keyword of JSON contains this letter.
            b'd' => self.restart(),
            _ => {}
        }
    }

    /// Whether the fields of the innermost open object count.
    fn is_read(&self) -> bool {
        self.depth == 1 || (self.depth == 2 && self.parent.is_some())
    }

    fn open_text(&mut self) {
        self.text.clear();
        self.state = match self.field {
            _ if !self.is_read() => Scan::Skipped { escaped: false },
            _ if self.expects_name => Scan::Name,
            Some(Field::Id | Field::Status | Field::EventType) => Scan::Text { escaped: false },
            _ => Scan::Skipped { escaped: false },
        };
    }

    fn open(&mut self, is_object: bool) {
        let field = self.field.take().filter(|_| is_object && self.is_read());
        if field == Some(Field::Usage) {
            self.text.clear();
            self.text.push(b'{');
            self.state = Scan::Object(Braces::open());
            return;
        }
        if self.depth == 0 {
            self.object = Seen::default();
        }
        if let Some(Field::Object(parent)) = field {
            self.parent = Some(parent);
        }
        self.depth += 1;
        self.expects_name = true;
    }

    fn close(&mut self) {
        self.field = None;
        self.depth = self.depth.saturating_sub(1);
        if self.depth <= 1 {
            self.parent = None;
        }
        if self.depth == 0 {
            self.read_object();
        }
    }

    /// Adds a byte to the text. One that becomes too long does not count.
    fn push(&mut self, byte: u8, most: usize) {
        if self.text.len() < most {
            self.text.push(byte);
        } else {
            let escaped = matches!(self.state, Scan::Text { escaped: true });
            self.skip_text(escaped);
        }
    }

    fn skip_text(&mut self, escaped: bool) {
        self.field = None;
        self.state = Scan::Skipped { escaped };
    }

    fn read_text(&mut self) {
        let written = [b"\"", &*self.text, b"\""].concat();
        if let Ok(text) = serde_json::from_slice::<String>(&written) {
            match self.field {
                Some(Field::Id) => self.object.id = Some(text),
                Some(Field::Status) => self.object.status = Some(text),
                Some(Field::EventType) => self.object.event_type = Some(text),
                _ => {}
            }
        }
        self.field = None;
        self.state = Scan::Outside;
    }

    fn scan_object(&mut self, byte: u8) {
        let Scan::Object(braces) = &mut self.state else { return };
        self.text.push(byte);
        if braces.closes(byte) {
            self.object.usage = Usage::of_interactions(&self.text).or(self.object.usage);
            self.state = Scan::Outside;
        } else if self.text.len() > MAX_OBJECT {
            let Braces { depth, in_string, escaped } = *braces;
            self.depth += depth;
            self.parent = None;
            self.state = if in_string { Scan::Skipped { escaped } } else { Scan::Outside };
        }
    }

    /// An answer or event is over. Only events about the interaction itself have its status.
    fn read_object(&mut self) {
        let Seen { id, status, event_type, usage } = mem::take(&mut self.object);
        self.usage = usage.or(self.usage);
        let event = event_type.as_deref();
        if event.is_none_or(|event| event.starts_with("interaction.")) {
            let named = event.and_then(status_of_event).map(str::to_owned);
            self.id = id.or(self.id.take());
            self.status = status.or(named).or(self.status.take());
        }
    }

    /// What came is not JSON, and what follows may be.
    fn restart(&mut self) {
        self.state = Scan::Outside;
        (self.depth, self.parent, self.field) = (0, None, None);
        self.object = Seen::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ID, status, and input and output tokens in an answer, which are the same wherever the answer
    /// is cut in two.
    fn scanned(answer: &str) -> (Option<String>, Option<String>, Option<(u64, u64)>) {
        let all: Vec<_> = (0..=answer.len())
            .map(|cut| {
                let (one, other) = answer.as_bytes().split_at(cut);
                let mut scanner = InteractionScanner::default();
                scanner.scan(one);
                scanner.scan(other);
                let usage = scanner.usage().map(|usage| (usage.prompt_tokens, usage.output_tokens));
                (scanner.id, scanner.status, usage)
            })
            .collect();
        assert!(all.windows(2).all(|two| two[0] == two[1]), "{answer}: {all:?}");
        all[0].clone()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    const USAGE: &str = r#"{"total_input_tokens":5,"total_output_tokens":2,"x":[{"tokens":9}]}"#;

    #[test]
    fn a_whole_answer_is_read() {
        let steps = r#""steps":[{"id":"a","status":"done","usage":{"total_input_tokens":9}}]"#;
        for answer in [
            format!(r#"{{"id":"v1_a","status":"completed",{steps},"usage":{USAGE}}}"#),
            format!(r#"{{ "usage" : {USAGE}, {steps}, "status":"compl\u0065ted" ,"id": "v1_a" }}"#),
        ] {
            assert_eq!(scanned(&answer), (some("v1_a"), some("completed"), Some((5, 2))));
        }
        let created = r#"{"id":"v1_a","status":"in_progress","agent":"x","steps":[]}"#;
        assert_eq!(scanned(created), (some("v1_a"), some("in_progress"), None));
        assert_eq!(scanned("[]"), (None, None, None));
        assert_eq!(scanned("{\"id\": nonsense"), (None, None, None));
    }

    #[test]
    fn a_stream_is_read_event_by_event() {
        let event = |kind: &str, fields: &str| {
            format!("event: {kind}\ndata: {{{fields},\"event_type\":\"{kind}\"}}\n\n")
        };
        let created =
            event("interaction.created", r#""interaction":{"id":"v1_a","status":"queued"}"#);
        assert_eq!(scanned(&created), (some("v1_a"), some("queued"), None));
        let update =
            event("interaction.status_update", r#""interaction_id":"v1_a","status":"in_progress""#);
        let delta = event(
            "step.delta",
            r#""index":0,"delta":{"text":"\"status\":\"failed\""},"status":"failed","id":"x","metadata":{"total_usage":{"total_input_tokens":3}}"#,
        );
        let stop = event("step.stop", &format!(r#""index":0,"usage":{USAGE}"#));
        let stream = format!("{created}{update}{delta}");
        assert_eq!(scanned(&stream), (some("v1_a"), some("in_progress"), Some((3, 0))));
        let stream = format!("{stream}{stop}");
        assert_eq!(scanned(&stream), (some("v1_a"), some("in_progress"), Some((5, 2))));
        let completed = event(
            "interaction.completed",
            r#""interaction":{"id":"v1_a","status":"requires_action","usage":{"total_input_tokens":7}}"#,
        );
        let stream = format!("{stream}{completed}event: done\ndata: [DONE]\n\n");
        assert_eq!(scanned(&stream), (some("v1_a"), some("requires_action"), Some((7, 0))));
    }

    #[test]
    fn an_event_that_ends_an_interaction_stands_for_its_status() {
        for (kind, status) in [
            ("interaction.completed", some("completed")),
            ("interaction.complete", some("completed")),
            ("interaction.canceled", some("cancelled")),
            ("interaction.failed", some("failed")),
            ("interaction.created", None),
            ("interaction.in_progress", None),
            ("step.stop", None),
        ] {
            let stream = format!("data: {{\"event_type\":\"{kind}\"}}\n\n");
            assert_eq!(scanned(&stream).1, status, "{kind}");
        }
    }

    #[test]
    fn what_the_model_writes_does_not_count() {
        let arguments = r#"{"id":"x","status":"completed","usage":{"total_input_tokens":9}}"#;
        for answer in [
            format!(r#"{{"id":"a","status":"in_progress","steps":[{arguments}]}}"#),
            format!(r#"{{"id":"a","interaction":[{arguments}],"status":"in_progress"}}"#),
            format!(r#"{{"id":"a","interaction":{{"x":{arguments}}},"status":"in_progress"}}"#),
            format!(r#"{{"id":"a","status":"in_progress","x":{}}}"#, serde_json::json!(arguments)),
        ] {
            assert_eq!(scanned(&answer), (some("a"), some("in_progress"), None), "{answer}");
        }
    }

    #[test]
    fn what_is_not_json_is_skipped_and_what_is_too_long_is_not_kept() {
        let answer = r#"{"id":"a","status":"completed"}"#;
        for before in ["data: {\"a\":{\n\n", "data: {\"a\n\n", ": \"\n\n", "data: {\"id\":\"\n\n"] {
            let stream = format!("{before}data: {answer}\n\n");
            assert_eq!(scanned(&stream).1, some("completed"), "{stream}");
        }
        let long = "x\\\"".repeat(MAX_OBJECT);
        let answer = format!(
            r#"{{"usage":{{"x":"{long}"}},"id":"{long}","{long}":1,"status":"completed"}}"#
        );
        let mut scanner = InteractionScanner::default();
        for piece in answer.as_bytes().chunks(1000) {
            scanner.scan(piece);
            assert!(scanner.text.len() <= MAX_OBJECT + 1);
        }
        assert_eq!((scanner.id(), scanner.status()), (None, Some("completed")));
        assert!(scanner.is_settled() && scanner.usage().is_none());
    }
}
