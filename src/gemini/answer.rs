//! What Gemini answered, and what it cost.

use std::{borrow::Cow, fmt};

use http::StatusCode;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::error::{Error, ErrorKind, bounded};
use super::forward::Surface;
use super::json::{self, BOM, without_lone_surrogates};
use super::model::Model;
use super::redact::Secrets;
use super::usage::Usage;

/// What stands for a reason that Gemini did not give.
pub(super) const FINISH_REASON_UNSPECIFIED: &str = "FINISH_REASON_UNSPECIFIED";
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
    /// The model that gave it, as Gemini says: another than was asked where that is an alias or is
    /// routed. Source: `modelVersion` in recorded answers.
    pub model_version: Option<Model>,
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
        let body = body.strip_prefix(BOM).unwrap_or(body);
        Response::read(body, |response| response.into_answer())
    }

    /// Whether the text ends before its end, because Gemini stopped at a limit: that of the output
    /// tokens, or of what it writes in one go. Source: `finishReason` in Google's Python SDK 3.6.1.
    pub fn is_cut_off(&self) -> bool {
        is_cut_off(&self.finish_reason)
    }

    /// The same without keys in it.
    pub(super) fn masked(self, secrets: &Secrets) -> Answer {
        let text = secrets.mask_text(self.text);
        Answer { text, finish_reason: secrets.mask_text(self.finish_reason), ..self }
    }
}

/// The parts of a `GenerateContentResponse` that are read. Text is borrowed from the body where
/// nothing in it is escaped, and everything else is passed over unread.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'a> {
    #[serde(borrow)]
    pub(super) candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    pub(super) prompt_feedback: Option<PromptFeedback<'a>>,
    /// Read on its own, so that nothing odd in it costs the answer.
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) model_version: Option<Word<'a>>,
    /// What makes it no answer, whatever else is in it.
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Candidate<'a> {
    #[serde(borrow)]
    pub(super) content: Option<Content<'a>>,
    #[serde(borrow)]
    pub(super) finish_reason: Option<Word<'a>>,
    #[serde(borrow)]
    pub(super) finish_message: Option<Word<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Content<'a> {
    #[serde(borrow)]
    parts: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    thought: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PromptFeedback<'a> {
    #[serde(borrow)]
    block_reason: Option<Word<'a>>,
    #[serde(borrow)]
    block_reason_message: Option<Word<'a>>,
}

impl Response<'_> {
    /// Reads a body that came with success, once more where a text in it has half a surrogate pair:
    /// what was paid for is not thrown away for one character.
    ///
    /// # Errors
    /// An [`Error`] of `then`, or for a body that is not an answer.
    pub(super) fn read<T>(
        body: &[u8],
        then: impl FnOnce(Response<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let parsed = |body| serde_json::from_slice::<Response<'_>>(body);
        let repaired = match parsed(body) {
            Ok(response) if response.is_one() => return then(response),
            Ok(_) => None,
            Err(_) => without_lone_surrogates(body),
        };
        match repaired.as_deref().map(parsed) {
            Some(Ok(response)) if response.is_one() => then(response),
            _ => Err(Error::read_despite_success(body)),
        }
    }

    /// Whether this is Gemini's answer at all: every field may be absent, but not all of them.
    fn is_one(&self) -> bool {
        let has_any = self.candidates.is_some()
            || self.prompt_feedback.is_some()
            || self.usage_metadata.is_some();
        has_any && self.error.is_none()
    }

    /// What it says that the exchange has cost so far.
    pub(super) fn usage(&self) -> Option<Usage> {
        Usage::of_gemini(self.usage_metadata?.get().as_bytes())
    }

    fn into_answer(self) -> Result<Answer, Error> {
        let usage = self.usage().unwrap_or_default();
        let result = match self.candidates.and_then(|all| all.into_iter().next()) {
            Some(first) => first.into_answer(usage, model(self.model_version)),
            None => Err(self.prompt_feedback.unwrap_or_default().into_error()),
        };
        result.map_err(|error| Error { usage, accepted_model: true, ..error })
    }
}

impl Candidate<'_> {
    fn into_answer(self, usage: Usage, model_version: Option<Model>) -> Result<Answer, Error> {
        let reason = self.finish_reason.map_or(FINISH_REASON_UNSPECIFIED.into(), |word| word.0);
        if is_blocked(&reason) {
            return Err(blocked(&reason));
        }
        let text = self.content.map(Content::into_text).unwrap_or_default();
        let text = json::text(text).ok_or_else(not_text)?;
        if !text.is_empty() {
            let finish_reason = bounded(&reason).into_owned();
            return Ok(Answer { text, finish_reason, usage, model_version });
        }
        Err(without_text(&reason, self.finish_message.map(|message| message.0).as_deref()))
    }
}

/// The error for a text that is not UTF-8.
pub(super) fn not_text() -> Error {
    Error::new(ErrorKind::Malformed, "the text of the answer is not UTF-8")
}

/// The model that an answer names. It is free text from the network: what is no name is none.
pub(super) fn model(version: Option<Word<'_>>) -> Option<Model> {
    Model::parse(&version?.0).ok()
}

/// The model that an answer names, of which nothing else is read: as `modelVersion`, and on OpenAI's
/// surface as `model`.
pub(super) fn model_version(answer: &[u8], surface: Surface) -> Option<Model> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned<'a> {
        #[serde(borrow)]
        model_version: Option<Word<'a>>,
        #[serde(borrow)]
        model: Option<Word<'a>>,
    }

    let Versioned { model_version, model: openai } = serde_json::from_slice(answer).ok()?;
    model(match surface {
        Surface::Gemini => model_version,
        Surface::OpenAi => openai,
    })
}

pub(super) fn blocked(reason: &str) -> Error {
    let message = format!("Gemini blocked its answer: {}", bounded(reason));
    Error::new(ErrorKind::ContentBlocked { reason: bounded(reason).into_owned() }, message)
}

/// The error for an answer that has no text, by the reason that Gemini gives.
pub(super) fn without_text(reason: &str, message: Option<&str>) -> Error {
    let (kind, message) = match reason {
        "MAX_TOKENS" => {
            let message = "Gemini reached the limit of output tokens before it wrote any text";
            return Error::new(ErrorKind::Truncated, message);
        }
        "CONTINUATION" => {
            let message = "Gemini stopped before it wrote any text, to be asked to continue: \
                           CONTINUATION";
            return Error::new(ErrorKind::Truncated, message);
        }
        "PUP_LIMITED_DISABLED" => (ErrorKind::PermissionDenied, message),
        _ => (ErrorKind::Empty, message),
    };
    let message = match message {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    };
    Error::new(kind, format!("Gemini's answer has no text: {}", bounded(&message)))
}

/// Whether a finish reason says that more would follow.
fn is_cut_off(finish_reason: &str) -> bool {
    matches!(finish_reason, "MAX_TOKENS" | "CONTINUATION")
}

/// Whether a finish reason says that the answer was withheld, even where part of it was let out.
pub(super) fn is_blocked(finish_reason: &str) -> bool {
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
            | "MODEL_ARMOR"
    )
}

impl Content<'_> {
    /// All its text but the thoughts, as [`json::text`] reads it.
    pub(super) fn into_text(self) -> Vec<u8> {
        let parts = self.parts.unwrap_or_default().into_iter();
        let mut texts =
            parts.filter(|part| part.thought != Some(true)).filter_map(|part| part.text);
        // Nearly always there is one part, and its text can be had without copying it again.
        let mut text = texts.next().map(|first| first.0.into_owned()).unwrap_or_default();
        texts.for_each(|more| text.extend_from_slice(&more.0));
        text
    }
}

impl PromptFeedback<'_> {
    pub(super) fn is_reason(&self) -> bool {
        self.block_reason.is_some() || self.block_reason_message.is_some()
    }

    /// Why there is no candidate.
    pub(super) fn into_error(self) -> Error {
        if !self.is_reason() {
            return Error::new(ErrorKind::Empty, "Gemini's answer has no candidate");
        }
        let reason = self.block_reason.map_or(BLOCK_REASON_UNSPECIFIED.into(), |word| word.0);
        let why = self.block_reason_message.map_or(reason.clone(), |message| message.0);
        let message = format!("Gemini blocked the prompt: {}", bounded(&why));
        Error::new(ErrorKind::ContentBlocked { reason: bounded(&reason).into_owned() }, message)
    }
}

/// A string, borrowed where that is possible, or the number that proto JSON writes for a value of
/// an enumeration whose name the server does not know.
pub(super) struct Word<'a>(pub(super) Cow<'a, str>);

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

            fn visit_i64<E>(self, number: i64) -> Result<Word<'de>, E> {
                Ok(Word(number.to_string().into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A text, read as bytes: halves of surrogate pairs come through, which may meet their other half in
/// the next text.
struct Text<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E>(self, text: &'de [u8]) -> Result<Text<'de>, E> {
                Ok(Text(text.into()))
            }

            fn visit_bytes<E>(self, text: &[u8]) -> Result<Text<'de>, E> {
                Ok(Text(text.to_owned().into()))
            }
        }

        deserializer.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests;
