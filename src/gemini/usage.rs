//! What an exchange cost, as Gemini counts it.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Surface;

/// The longest account of the tokens that is read out of an answer passing by, in bytes. Recorded
/// ones have a few hundred.
const MAX_OBJECT: usize = 64 * 1024;

/// The most tokens that are believed of a count. No exchange is anywhere near it, and sums of it stay
/// numbers.
const MOST_TOKENS: u64 = 1 << 32;

/// The tokens of an exchange; 0 for what Gemini did not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// The prompt's, `promptTokenCount`.
    pub prompt_tokens: u64,
    /// The answer's without its thoughts, `candidatesTokenCount`.
    pub output_tokens: u64,
    /// The thoughts', `thoughtsTokenCount`.
    pub thinking_tokens: u64,
    /// Of all kinds, `totalTokenCount`; tool prompts count here and nowhere above.
    pub total_tokens: u64,
    /// Those of the prompt that were cached, `cachedContentTokenCount`.
    #[serde(skip)]
    #[schema(ignore)]
    pub cached_tokens: u64,
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            thinking_tokens: self.thinking_tokens.saturating_add(other.thinking_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

/// The account of the tokens in Gemini's own answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageMetadata {
    prompt_token_count: Option<u64>,
    candidates_token_count: Option<u64>,
    thoughts_token_count: Option<u64>,
    total_token_count: Option<u64>,
    cached_content_token_count: Option<u64>,
}

/// The account of the tokens in answers of OpenAI's shape.
#[derive(Deserialize)]
struct OpenAiUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Default, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

fn believed(count: Option<u64>) -> u64 {
    count.unwrap_or(0).min(MOST_TOKENS)
}

impl From<UsageMetadata> for Usage {
    fn from(counts: UsageMetadata) -> Usage {
        Usage {
            prompt_tokens: believed(counts.prompt_token_count),
            output_tokens: believed(counts.candidates_token_count),
            thinking_tokens: believed(counts.thoughts_token_count),
            total_tokens: believed(counts.total_token_count),
            cached_tokens: believed(counts.cached_content_token_count),
        }
    }
}

impl From<OpenAiUsage> for Usage {
    fn from(counts: OpenAiUsage) -> Usage {
        Usage {
            prompt_tokens: believed(counts.prompt_tokens),
            output_tokens: believed(counts.completion_tokens),
            thinking_tokens: 0,
            total_tokens: believed(counts.total_tokens),
            cached_tokens: believed(counts.prompt_tokens_details.and_then(|of| of.cached_tokens)),
        }
    }
}

/// Finds what an answer cost while its bytes pass by, whether it is one object, a list or events,
/// and wherever it is cut. It keeps nothing but the account itself, of which the last one counts:
/// Gemini adds up from chunk to chunk.
///
/// The quote that ends a key is escaped in any text that quotes it, so what looks like the key and
/// is followed by a colon is one.
#[derive(Debug)]
pub struct UsageScanner {
    surface: Surface,
    state: Scan,
    usage: Option<Usage>,
}

/// Where in an answer a scanner is.
#[derive(Debug)]
enum Scan {
    /// So many bytes of the key have come.
    Key(usize),
    /// The whole key has come, and not yet what it stands for.
    Colon,
    /// In the object that it stands for.
    Object { text: Vec<u8>, depth: usize, in_string: bool, escaped: bool },
}

impl UsageScanner {
    /// A scanner for the answers of a surface.
    pub fn new(surface: Surface) -> Self {
        Self { surface, state: Scan::Key(0), usage: None }
    }

    /// The last account that has passed.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Reads the next bytes.
    pub fn scan(&mut self, mut bytes: &[u8]) {
        let key: &[u8] = match self.surface {
            Surface::Gemini => b"\"usageMetadata\"",
            Surface::OpenAi => b"\"usage\"",
        };
        while let [byte, rest @ ..] = bytes {
            match &mut self.state {
                Scan::Key(0) => {
                    let Some(quote) = bytes.iter().position(|byte| *byte == b'"') else { return };
                    self.state = Scan::Key(1);
                    bytes = &bytes[quote + 1..];
                    continue;
                }
                Scan::Key(matched) if *byte == key[*matched] => {
                    *matched += 1;
                    if *matched == key.len() {
                        self.state = Scan::Colon;
                    }
                }
                // A quote that is not the key's last may be its first.
                Scan::Key(matched) => *matched = usize::from(*byte == b'"'),
                Scan::Colon if *byte == b':' || byte.is_ascii_whitespace() => {}
                Scan::Colon if *byte == b'{' => {
                    let text = vec![b'{'];
                    self.state = Scan::Object { text, depth: 1, in_string: false, escaped: false };
                }
                Scan::Colon => self.state = Scan::Key(usize::from(*byte == b'"')),
                Scan::Object { text, depth, in_string, escaped } => {
                    text.push(*byte);
                    match byte {
                        _ if *escaped => *escaped = false,
                        b'\\' => *escaped = true,
                        b'"' => *in_string = !*in_string,
                        b'{' if !*in_string => *depth += 1,
                        b'}' if !*in_string => *depth -= 1,
                        _ => {}
                    }
                    if *depth == 0 {
                        self.usage = self.surface.usage(text).or(self.usage);
                    }
                    if *depth == 0 || text.len() > MAX_OBJECT {
                        self.state = Scan::Key(0);
                    }
                }
            }
            bytes = rest;
        }
    }
}

impl Surface {
    fn usage(self, object: &[u8]) -> Option<Usage> {
        match self {
            Self::Gemini => serde_json::from_slice::<UsageMetadata>(object).ok().map(Usage::from),
            Self::OpenAi => serde_json::from_slice::<OpenAiUsage>(object).ok().map(Usage::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_adds_up() {
        let one = Usage {
            prompt_tokens: 1,
            output_tokens: 2,
            thinking_tokens: 3,
            total_tokens: 6,
            ..Usage::default()
        };
        let mut sum = Usage::default();
        sum += one;
        sum += one;
        assert_eq!(
            sum,
            Usage {
                prompt_tokens: 2,
                output_tokens: 4,
                thinking_tokens: 6,
                total_tokens: 12,
                ..Usage::default()
            }
        );
    }

    #[test]
    fn no_count_is_believed_that_cannot_be_one() {
        let answer = format!(r#"{{"usageMetadata":{{"promptTokenCount":{}}}}}"#, u64::MAX);
        let usage = scanned(Surface::Gemini, &answer).unwrap();
        assert_eq!(usage.prompt_tokens, MOST_TOKENS);
    }

    /// What is found in an answer, however it is cut in two.
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
    fn the_last_account_counts_whatever_is_around_it() {
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
    fn what_only_looks_like_one_is_passed_over() {
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
}
