//! What Gemini answered, and what it cost.

use std::{
    borrow::Cow,
    fmt,
    ops::{Add, AddAssign},
};

use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::error::{Error, ErrorKind, bounded};

/// What stands for a reason that Gemini did not give.
const FINISH_REASON_UNSPECIFIED: &str = "FINISH_REASON_UNSPECIFIED";
const BLOCK_REASON_UNSPECIFIED: &str = "BLOCK_REASON_UNSPECIFIED";

/// An answer with text in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// All the text of the first candidate, its thoughts left out.
    pub text: String,
    /// Why it ends there, in Gemini's words: `STOP`, `MAX_TOKENS`, and any that are yet to be
    /// thought of. `FINISH_REASON_UNSPECIFIED` where Gemini gave none.
    pub finish_reason: String,
    /// The tokens it took.
    pub usage: Usage,
}

/// The tokens of an exchange; 0 for what Gemini did not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The prompt's, `promptTokenCount`.
    pub prompt_tokens: u64,
    /// The answer's without its thoughts, `candidatesTokenCount`.
    pub output_tokens: u64,
    /// The thoughts', `thoughtsTokenCount`.
    pub thinking_tokens: u64,
    /// Of all kinds, `totalTokenCount`; tool prompts count here and nowhere above.
    pub total_tokens: u64,
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            output_tokens: self.output_tokens + other.output_tokens,
            thinking_tokens: self.thinking_tokens + other.thinking_tokens,
            total_tokens: self.total_tokens + other.total_tokens,
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

impl Answer {
    /// Reads what came back from `generateContent`.
    ///
    /// # Errors
    ///
    /// An [`Error`] of any kind but [`ErrorKind::Connection`]: for every status other than
    /// success, and for a success that was blocked, has no text or is not Gemini's.
    pub fn read(status: StatusCode, body: &[u8]) -> Result<Answer, Error> {
        if !status.is_success() {
            return Err(Error::read(status, body));
        }
        match serde_json::from_slice::<Response<'_>>(body) {
            Ok(response) if response.is_one() => response.into_answer(),
            _ => Err(Error::read_despite_success(body)),
        }
    }
}

/// The parts of a `GenerateContentResponse` that are read. Text is borrowed from the body where
/// nothing in it is escaped, and everything else is passed over unread.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    #[serde(borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    prompt_feedback: Option<PromptFeedback<'a>>,
    usage_metadata: Option<UsageMetadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow)]
    content: Option<Content<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Word<'a>>,
    #[serde(borrow)]
    finish_message: Option<Word<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    parts: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Word<'a>>,
    thought: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback<'a> {
    #[serde(borrow)]
    block_reason: Option<Word<'a>>,
    #[serde(borrow)]
    block_reason_message: Option<Word<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsageMetadata {
    prompt_token_count: Option<u64>,
    candidates_token_count: Option<u64>,
    thoughts_token_count: Option<u64>,
    total_token_count: Option<u64>,
}

impl<'a> Response<'a> {
    /// Whether this is Gemini's answer at all: every field may be absent, but not all of them.
    fn is_one(&self) -> bool {
        self.candidates.is_some() || self.prompt_feedback.is_some() || self.usage_metadata.is_some()
    }

    fn into_answer(self) -> Result<Answer, Error> {
        let usage = self.usage_metadata.map(Usage::from).unwrap_or_default();
        let result = match self.candidates.and_then(|all| all.into_iter().next()) {
            Some(first) => first.into_answer(usage),
            None => Err(self.prompt_feedback.unwrap_or_default().into_error()),
        };
        result.map_err(|error| Error { usage, accepted_model: true, ..error })
    }
}

impl Candidate<'_> {
    fn into_answer(self, usage: Usage) -> Result<Answer, Error> {
        let reason = self.finish_reason.map_or(FINISH_REASON_UNSPECIFIED.into(), |word| word.0);
        if is_blocked(&reason) {
            let message = format!("Gemini blocked its answer: {}", bounded(&reason));
            return Err(Error::new(ErrorKind::ContentBlocked { reason: reason.into() }, message));
        }
        let text = self.content.map(Content::into_text).unwrap_or_default();
        if !text.is_empty() {
            return Ok(Answer { text, finish_reason: reason.into_owned(), usage });
        }
        if reason == "MAX_TOKENS" {
            let message = "Gemini reached the limit of output tokens before it wrote any text";
            return Err(Error::new(ErrorKind::Truncated, message));
        }
        let why = self.finish_message.map_or(reason, |message| message.0);
        let message = format!("Gemini's answer has no text: {}", bounded(&why));
        Err(Error::new(ErrorKind::Empty, message))
    }
}

/// Whether a finish reason says that the answer was withheld, even where part of it was let out.
fn is_blocked(finish_reason: &str) -> bool {
    matches!(
        finish_reason,
        "SAFETY"
            | "RECITATION"
            | "LANGUAGE"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION"
    )
}

impl Content<'_> {
    fn into_text(self) -> String {
        let parts = self.parts.unwrap_or_default().into_iter();
        let mut texts =
            parts.filter(|part| part.thought != Some(true)).filter_map(|part| part.text);
        // Nearly always there is one part, and its text can be had without copying it again.
        let mut text = texts.next().map(|first| first.0.into_owned()).unwrap_or_default();
        text.extend(texts.map(|more| more.0));
        text
    }
}

impl PromptFeedback<'_> {
    /// Why there is no candidate.
    fn into_error(self) -> Error {
        if self.block_reason.is_none() && self.block_reason_message.is_none() {
            return Error::new(ErrorKind::Empty, "Gemini's answer has no candidate");
        }
        let reason = self.block_reason.map_or(BLOCK_REASON_UNSPECIFIED.into(), |word| word.0);
        let why = self.block_reason_message.map_or(reason.clone(), |message| message.0);
        let message = format!("Gemini blocked the prompt: {}", bounded(&why));
        Error::new(ErrorKind::ContentBlocked { reason: reason.into_owned() }, message)
    }
}

impl From<UsageMetadata> for Usage {
    fn from(counts: UsageMetadata) -> Usage {
        Usage {
            prompt_tokens: counts.prompt_token_count.unwrap_or(0),
            output_tokens: counts.candidates_token_count.unwrap_or(0),
            thinking_tokens: counts.thoughts_token_count.unwrap_or(0),
            total_tokens: counts.total_token_count.unwrap_or(0),
        }
    }
}

/// A string, borrowed where that is possible, or the number that proto JSON writes for a value of
/// an enumeration whose name the server does not know.
struct Word<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Word<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Word<'de>, E> {
                Ok(Word(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Word<'de>, E> {
                Ok(Word(text.to_owned().into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Word<'de>, E> {
                Ok(Word(number.to_string().into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
