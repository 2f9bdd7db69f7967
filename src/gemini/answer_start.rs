//! Recognizes from the start of an answer whether it is an error with a success status.

use super::json::{BOM, Nesting};

/// What the start of an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerStart<'a> {
    /// Too little has arrived.
    Unknown,
    /// It is not an error.
    Answer,
    /// Its first data starts like an error's envelope.
    Error {
        /// The data, as far as it has arrived.
        data: &'a [u8],
        /// Whether the event that contains the data is complete, or the whole JSON outside of
        /// events.
        is_over: bool,
    },
}

/// The field names of an event. Source: HTML standard, "Server-sent events".
const FIELDS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];

/// How an error starts, without white space: in Gemini's API, and in Interactions.
const ERRORS: [&[u8]; 2] = [b"{\"error\":", b"{\"event_type\":\"error\""];

impl<'a> AnswerStart<'a> {
    /// Reads the start of an answer: events, JSON, or anything else.
    pub fn of(bytes: &'a [u8]) -> Self {
        if bytes.len() < BOM.len() && BOM.starts_with(bytes) {
            return Self::Unknown;
        }
        let mut rest = without_mark(bytes);
        if matches!(rest.first(), Some(b'{' | b'[')) {
            return match Self::of_json(rest, false) {
                Self::Error { data, .. } => match Nesting::default().close(data) {
                    Some(end) => Self::Error { data: &data[..end], is_over: true },
                    None => Self::Error { data, is_over: false },
                },
                start => start,
            };
        }
        loop {
            let is_field = FIELDS.iter().any(|field| rest.starts_with(field));
            if !is_field && !FIELDS.iter().any(|field| field.starts_with(rest)) {
                return Self::Answer;
            }
            let end = rest.iter().position(|byte| *byte == b'\n');
            let line = &rest[..end.unwrap_or(rest.len())];
            match (line.strip_prefix(b"data:"), end) {
                // An empty line of data.
                (Some(data), Some(end)) if data.trim_ascii().is_empty() => {
                    rest = rest[end..].trim_ascii_start();
                }
                (Some(data), Some(end)) => {
                    return match Self::of_json(data.trim_ascii(), has_empty_line(&rest[end..])) {
                        // The data may continue on the next line.
                        Self::Unknown => Self::of_lines(rest),
                        start => start,
                    };
                }
                (Some(data), None) => return Self::of_json(data.trim_ascii_start(), false),
                (None, Some(end)) => rest = rest[end..].trim_ascii_start(),
                (None, None) => return Self::Unknown,
            }
        }
    }

    /// Reads an event with several lines of data.
    fn of_lines(event: &'a [u8]) -> Self {
        let lines = event.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let lines = lines.take_while(|line| !line.is_empty());
        let data: Vec<&[u8]> = lines.filter_map(|line| line.strip_prefix(b"data:")).collect();
        let is_over = has_empty_line(event);
        match AnswerStart::of_json(&data.concat(), is_over) {
            AnswerStart::Error { .. } => Self::Error { data: event, is_over },
            AnswerStart::Unknown if !is_over => Self::Unknown,
            AnswerStart::Unknown | AnswerStart::Answer => Self::Answer,
        }
    }

    fn of_json(data: &'a [u8], is_over: bool) -> Self {
        let longest = ERRORS[1].len();
        let written = data.iter().filter(|byte| !byte.is_ascii_whitespace());
        let start: Vec<u8> = written.copied().take(longest + 1).collect();
        // A stream without events is a list, and so is an error on OpenAI's surface.
        let start = start.strip_prefix(b"[").unwrap_or(&start);
        if ERRORS.iter().any(|error| start.starts_with(error)) {
            Self::Error { data, is_over }
        } else if ERRORS.iter().any(|error| error.starts_with(start)) {
            Self::Unknown
        } else {
            Self::Answer
        }
    }
}

/// The bytes without a byte order mark and white space at the start.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes).trim_ascii_start()
}

/// The data of the first event, or all of an answer that is JSON; `None` until the event has arrived
/// completely.
pub(super) fn first_data(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = without_mark(bytes);
    if matches!(rest.first(), Some(b'{' | b'[')) {
        return Some(rest);
    }
    loop {
        let (line, after) = rest.split_at(rest.iter().position(|byte| *byte == b'\n')?);
        if let Some(data) = line.strip_prefix(b"data:") {
            return Some(data.trim_ascii());
        }
        rest = &after[1..];
    }
}

/// Whether one of the lines after the first is empty.
fn has_empty_line(lines: &[u8]) -> bool {
    lines.windows(2).any(|two| two == b"\n\n") || lines.windows(3).any(|three| three == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_recognized_wherever_the_bytes_are_cut() {
        let error = r#"{ "error" : {"code":503}}"#;
        for (answer, is_over) in [
            (error.to_owned(), true),
            (format!("\r\n{error}"), true),
            (format!("[{error}\n]"), true),
            (error.replace(',', "\r\n,") + "\r\n", true),
            (format!("\u{feff}{error}"), true),
            (format!("\u{feff}data: {error}\n\n"), true),
            (format!("data: {error}\r\n\r\n"), true),
            (format!("data:\n\ndata: {error}\n\n"), true),
            ("data: {\r\ndata:   \"error\": {\r\ndata:   }\r\ndata: }\r\n\r\n".to_owned(), true),
            (format!(": hello\nevent: error\r\ndata:[{error}]\n\n"), true),
            (r#"data: {"event_type":"error","error":{}}"#.to_owned() + "\n\n", true),
        ] {
            let bytes = answer.as_bytes();
            assert!(
                matches!(AnswerStart::of(bytes), AnswerStart::Error { is_over: over, .. } if over == is_over)
            );
            for cut in 0..bytes.trim_ascii_end().len() {
                assert_ne!(
                    AnswerStart::of(&bytes[..cut]),
                    AnswerStart::Answer,
                    "{answer:?} at {cut}"
                );
                let over = matches!(
                    AnswerStart::of(&bytes[..cut]),
                    AnswerStart::Error { is_over: true, .. }
                );
                assert!(!over, "{answer:?} at {cut}");
            }
        }
    }

    #[test]
    fn an_answer_is_recognized_as_soon_as_it_cannot_be_an_error() {
        for answer in [
            "data: {\"c",
            "data: 1",
            "data: {\n\n",
            "data: {\ndata: \"candidates\"",
            "[{\"c",
            "[]",
            "{\"errors\"",
            "<html>",
            "text",
            "data: {\"event_type\":\"i",
            "{}",
        ] {
            assert_eq!(AnswerStart::of(answer.as_bytes()), AnswerStart::Answer, "{answer:?}");
        }
        for unknown in [
            "",
            "data:\n",
            "data: {\n",
            " ",
            "d",
            "data: ",
            "data: {",
            "[ {",
            ": comment",
            "event: x\n",
            "[",
        ] {
            assert_eq!(AnswerStart::of(unknown.as_bytes()), AnswerStart::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn the_first_data_is_that_of_the_first_event() {
        for (answer, data) in [
            (": hi\r\ndata: {\"a\":1}\r\n\r\ndata: 2\n\n", Some("{\"a\":1}")),
            ("data: {\"a\"", None),
            (" {\"a\":1}", Some("{\"a\":1}")),
            ("", None),
        ] {
            assert_eq!(first_data(answer.as_bytes()), data.map(str::as_bytes), "{answer:?}");
        }
    }
}
