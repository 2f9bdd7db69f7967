//! Finds the token usage in a passing answer.

use memchr::memchr3;

use super::json::Braces;
use super::{Surface, Usage};

/// The longest usage object that is read from a passing answer, in bytes. Recorded ones have a few
/// hundred.
const MAX_OBJECT: usize = 64 * 1024;

/// Finds the usage in an answer while its bytes pass, in a single object, a list or events, wherever the
/// bytes are cut. It keeps only the usage object itself. The last one counts: Gemini reports running
/// totals.
///
/// On Gemini's surface, decisions and voices report their usage as interactions do, in `usage`.
///
/// Only a field at the top level of the answer counts. A deeper one is not Gemini's: the arguments of a
/// function call are written by the model and may contain whatever the caller asks for.
///
/// Inside a string, a quoted field name has escaped quotes. So the name between plain quotes, followed by
/// a colon, is a field.
#[derive(Debug)]
pub struct UsageScanner {
    surface: Surface,
    state: Scan,
    /// How many objects are open.
    depth: usize,
    usage: Option<Usage>,
}

/// The scanner's position in an answer.
#[derive(Debug)]
enum Scan {
    /// Outside of strings.
    Outside,
    /// In a string. `matched` bytes of the field name have arrived, as long as it may be the name.
    Text { matched: Option<usize>, escaped: bool },
    /// After the field name, before its value.
    Colon(Format),
    /// In the usage object.
    Object { format: Format, text: Vec<u8>, braces: Braces },
}

/// The format of a usage object.
#[derive(Debug, Clone, Copy)]
enum Format {
    Gemini,
    Interactions,
    OpenAi,
}

/// The names of the field. One begins like the other, so that both are matched at once.
const METADATA: &[u8] = b"usageMetadata";
const USAGE: &[u8] = b"usage";

impl UsageScanner {
    /// A scanner for the answers of a surface.
    pub fn new(surface: Surface) -> Self {
        Self { surface, state: Scan::Outside, depth: 0, usage: None }
    }

    /// The last usage so far.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Reads the next bytes.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        let key = match self.surface {
            Surface::Gemini => METADATA,
            Surface::Interactions | Surface::OpenAi => USAGE,
        };
        while let [byte, rest @ ..] = bytes {
            match &mut self.state {
                // Strings that cannot be the field name are skipped.
                Scan::Text { matched: None, escaped: false } => {
                    let Some(end) = memchr3(b'"', b'\\', b'\n', bytes) else { return };
                    self.state = match bytes[end] {
                        b'\\' => Scan::Text { matched: None, escaped: true },
                        b'"' => Scan::Outside,
                        _ => self.restart(),
                    };
                    bytes = &bytes[end + 1..];
                    continue;
                }
                Scan::Text { matched: None, escaped } => *escaped = false,
                Scan::Text { matched: Some(matched), .. } if key.get(*matched) == Some(byte) => {
                    *matched += 1;
                }
                Scan::Text { matched: Some(matched), .. } if *byte == b'"' => {
                    let format = self.surface.format(&key[..*matched]);
                    let format = format.filter(|_| self.depth == 1);
                    self.state = format.map_or(Scan::Outside, Scan::Colon);
                }
                Scan::Text { .. } if *byte == b'\n' => self.state = self.restart(),
                Scan::Text { matched, escaped } => {
                    (*matched, *escaped) = (None, *byte == b'\\');
                }
                Scan::Colon(_) if *byte == b':' || byte.is_ascii_whitespace() => {}
                Scan::Colon(format) if *byte == b'{' => {
                    let (format, text) = (*format, vec![b'{']);
                    self.state = Scan::Object { format, text, braces: Braces::open() };
                }
                Scan::Outside | Scan::Colon(_) => self.state = self.outside(*byte),
                Scan::Object { format, text, braces } => {
                    text.push(*byte);
                    if braces.closes(*byte) {
                        self.usage = format.usage(text).or(self.usage);
                        self.state = Scan::Outside;
                    } else if text.len() > MAX_OBJECT {
                        self.depth += braces.depth;
                        self.state = match braces.in_string {
                            true => Scan::Text { matched: None, escaped: braces.escaped },
                            false => Scan::Outside,
                        };
                    }
                }
            }
            bytes = rest;
        }
    }

    /// Reads a byte outside of strings.
    fn outside(&mut self, byte: u8) -> Scan {
        match byte {
            b'"' => return Scan::Text { matched: Some(0), escaped: false },
            b'{' => self.depth += 1,
            b'}' => self.depth = self.depth.saturating_sub(1),
            // The event field `data`. No keyword of JSON contains this letter.
            b'd' => self.depth = 0,
            _ => {}
        }
        Scan::Outside
    }

    /// Resets after a line break inside a string, which JSON does not allow: the input is not JSON,
    /// and what follows may be.
    fn restart(&mut self) -> Scan {
        self.depth = 0;
        Scan::Outside
    }
}

impl Surface {
    /// The format of the usage in a field of this name.
    fn format(self, name: &[u8]) -> Option<Format> {
        match (self, name) {
            (Self::Gemini, METADATA) => Some(Format::Gemini),
            (Self::Gemini, USAGE) => Some(Format::Interactions),
            (Self::OpenAi, USAGE) => Some(Format::OpenAi),
            _ => None,
        }
    }
}

impl Format {
    fn usage(self, object: &[u8]) -> Option<Usage> {
        match self {
            Self::Gemini => Usage::of_gemini(object),
            Self::Interactions => Usage::of_interactions(object),
            Self::OpenAi => Usage::of_openai(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::MOST_TOKENS;
    use super::*;

    #[test]
    fn counts_are_limited() {
        let answer = format!(r#"{{"usageMetadata":{{"promptTokenCount":{}}}}}"#, u64::MAX);
        let usage = scanned(Surface::Gemini, &answer).unwrap();
        assert_eq!(usage.prompt_tokens, MOST_TOKENS);
    }

    #[test]
    fn a_count_is_read_in_every_notation() {
        for (written, tokens) in [
            ("12", 12),
            ("\"12\"", 12),
            ("12.0", 12),
            ("\"12.9\"", 12),
            ("1.2e1", 12),
            ("1e300", MOST_TOKENS),
            ("1e999", MOST_TOKENS),
            ("\"Infinity\"", MOST_TOKENS),
            ("-5", 0),
            ("\"-5\"", 0),
            ("\"NaN\"", 0),
            ("\"\"", 0),
            ("null", 0),
            ("true", 0),
            ("{\"a\":[\"}\"]}", 0),
            ("[12]", 0),
        ] {
            let answer = format!(
                r#"{{"usageMetadata":{{"promptTokenCount":{written},"totalTokenCount":1}}}}"#
            );
            let expected = Usage { prompt_tokens: tokens, total_tokens: 1, ..Usage::default() };
            assert_eq!(scanned(Surface::Gemini, &answer), Some(expected), "{written}");
            let openai = format!(
                r#"{{"usage":{{"prompt_tokens_details":{{"cached_tokens":{written}}},
                    "prompt_tokens":{written},"total_tokens":1}}}}"#
            );
            let expected = Usage { cached_tokens: tokens, ..expected };
            assert_eq!(scanned(Surface::OpenAi, &openai), Some(expected), "{written}");
        }
        let details = r#"{"usage":{"prompt_tokens":"7","prompt_tokens_details":"none"}}"#;
        assert_eq!(scanned(Surface::OpenAi, details).unwrap().prompt_tokens, 7);
    }

    /// The usage in an answer, which is the same wherever the answer is cut in two.
    fn scanned(surface: Surface, answer: &str) -> Option<Usage> {
        let mut at_once = UsageScanner::new(surface);
        at_once.scan(answer.as_bytes());
        for cut in 0..=answer.len() {
            let (one, other) = answer.as_bytes().split_at(cut);
            let mut scanner = UsageScanner::new(surface);
            scanner.scan(one);
            scanner.scan(other);
            assert_eq!(scanner.usage(), at_once.usage(), "cut at {cut}");
        }
        at_once.usage()
    }

    #[test]
    fn the_last_usage_object_counts() {
        let events = concat!(
            r#"data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"#,
            r#""usageMetadata":{"promptTokenCount":5,"totalTokenCount":6}}"#,
            "\r\n\r\n",
            r#"data: {"usageMetadata" : {"promptTokenCount":5,"candidatesTokenCount":2,"#,
            r#""promptTokensDetails":[{"modality":"}\"{","tokenCount":5}],"totalTokenCount":7}}"#,
            "\r\n\r\n",
        );
        let usage =
            Usage { prompt_tokens: 5, output_tokens: 2, total_tokens: 7, ..Usage::default() };
        assert_eq!(scanned(Surface::Gemini, events), Some(usage));
        let openai = r#"{"choices":[{"message":{"content":"\"usage\":{"}}],"usage":
            {"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#;
        assert_eq!(scanned(Surface::OpenAi, openai), Some(usage));
    }

    #[test]
    fn usage_in_the_format_of_interactions_is_read() {
        let decision = r#"{"answers":{"a":{"usage":{"total_input_tokens":9}}},"usage":
            {"total_input_tokens":5,"total_output_tokens":2,"total_thought_tokens":3,
            "total_cached_tokens":4,"total_tokens":10}}"#;
        let usage = Usage {
            prompt_tokens: 5,
            output_tokens: 2,
            thinking_tokens: 3,
            total_tokens: 10,
            cached_tokens: 4,
            ..Usage::default()
        };
        assert_eq!(scanned(Surface::Gemini, decision), Some(usage));
        assert_eq!(scanned(Surface::OpenAi, decision).map(|usage| usage.prompt_tokens), Some(0));
        assert_eq!(scanned(Surface::Gemini, r#"{"usages":{"total_input_tokens":5}}"#), None);
    }

    #[test]
    fn text_that_looks_like_usage_is_skipped() {
        for answer in [
            r#"{"text":"\"usageMetadata\":{\"promptTokenCount\":9}"}"#,
            r#"{"text":"usageMetadata","promptTokenCount":9}"#,
            r#"{"usageMetadata":null,"x":{"promptTokenCount":9}}"#,
            r#"{"usageMetadata":{"promptTokenCount":"nine"}}"#,
            r#"{"usageMetadata":{"promptTokenCount":9"#,
        ] {
            assert_eq!(scanned(Surface::Gemini, answer), None, "{answer}");
        }
        assert_eq!(scanned(Surface::OpenAi, r#"{"usage":null}"#), None);
    }

    #[test]
    fn only_usage_at_the_top_level_counts() {
        // A caller can make the model call a function with any arguments.
        let call = r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":
            {"usageMetadata":{"promptTokenCount":4000000000}}}}]}}]"#;
        for start in [call.to_owned(), format!("data: {call}"), format!("[{call}")] {
            assert_eq!(scanned(Surface::Gemini, &start), None, "{start}");
            let whole = format!(r#"{start},"usageMetadata":{{"promptTokenCount":5}}}}"#);
            assert_eq!(scanned(Surface::Gemini, &whole).unwrap().prompt_tokens, 5, "{whole}");
            let first = format!(r#"[{{"usageMetadata":{{"promptTokenCount":5}}}},{start}}}]"#);
            assert_eq!(scanned(Surface::Gemini, &first).unwrap().prompt_tokens, 5, "{first}");
        }
    }

    #[test]
    fn usage_is_found_after_bytes_that_are_not_json() {
        let account = r#"{"usageMetadata":{"promptTokenCount":5}}"#;
        for before in ["data: {\"a\":{\n\n", "data: {\"a\n\n", ": \"\n\n", "data: {\"a\\\n\n"] {
            let stream = format!("{before}data: {account}\n\n");
            assert_eq!(scanned(Surface::Gemini, &stream).unwrap().prompt_tokens, 5, "{stream}");
        }
        let long = format!(r#"{{"usageMetadata":{{"a":{{"b":"{}"}}}}}}"#, "}".repeat(MAX_OBJECT));
        let mut scanner = UsageScanner::new(Surface::Gemini);
        scanner.scan(format!("[{long},{account}]").as_bytes());
        assert_eq!(scanner.usage().unwrap().prompt_tokens, 5);
    }
}
