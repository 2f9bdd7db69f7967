//! Gemini's answers: their text, their finish reason and their token usage.

use std::{borrow::Cow, fmt};

use http::StatusCode;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::client::MAX_ANSWER;
use super::continuation::ContinuationToken;
use super::error::{Error, ErrorKind, bounded};
use super::json::{self, BOM, without_lone_surrogates};
use super::model::Model;
use super::redact::Secrets;
use super::surface::Surface;
use super::usage::Usage;

/// Used where Gemini gives no finish reason.
pub(super) const FINISH_REASON_UNSPECIFIED: &str = "FINISH_REASON_UNSPECIFIED";
/// The finish reason of an answer that another call continues. Source: Google's Python SDK 3.6.1.
pub(super) const CONTINUATION: &str = "CONTINUATION";
const BLOCK_REASON_UNSPECIFIED: &str = "BLOCK_REASON_UNSPECIFIED";

/// An answer that contains text, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text of the first candidate, without its thoughts. Empty only in a part of an answer: one
    /// that another call continues, or a later one.
    pub text: String,
    /// Why the answer ends, in Gemini's words: `STOP`, `MAX_TOKENS`, or a reason unknown here.
    /// `FINISH_REASON_UNSPECIFIED` where Gemini gave none.
    pub finish_reason: String,
    /// The tokens it used.
    pub usage: Usage,
    /// The model that answered, as Gemini reports it. It differs from the requested model if that is
    /// an alias or is routed elsewhere. Source: `modelVersion` in recorded answers.
    pub model_version: Option<Model>,
    /// What continues the answer, where Gemini stopped before its end and offers that.
    pub continuation: Option<ContinuationToken>,
}

/// Which part of an answer a call asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerPart {
    /// The first, and mostly the only one.
    #[default]
    First,
    /// A part that continues an earlier one. It may be without text.
    Later,
}

impl Answer {
    /// Reads the response to `generateContent`.
    ///
    /// # Errors
    ///
    /// An [`Error`] of any kind but [`ErrorKind::Connection`]: for a status other than success, and
    /// for an answer that is blocked, has no text or does not come from Gemini.
    pub fn read(status: StatusCode, body: &[u8]) -> Result<Answer, Error> {
        Self::read_part(status, body, AnswerPart::First)
    }

    /// Reads the response to `generateContent` that has this part of an answer.
    ///
    /// # Errors
    ///
    /// An [`Error`], as for [`Answer::read`].
    pub fn read_part(status: StatusCode, body: &[u8], part: AnswerPart) -> Result<Answer, Error> {
        if !status.is_success() {
            return Err(Error::read(status, body));
        }
        let body = body.strip_prefix(BOM).unwrap_or(body);
        Response::read(body, |response| response.into_answer(part))
    }

    /// Whether the text is cut off because Gemini stopped at a limit: the output token limit, or the
    /// limit on one turn. Source: `finishReason` in Google's Python SDK 3.6.1.
    pub fn is_cut_off(&self) -> bool {
        is_cut_off(&self.finish_reason)
    }

    /// Appends the next part: the texts are joined, and the usage is that of both.
    ///
    /// # Errors
    ///
    /// An [`Error`] if the text becomes longer than an answer may be.
    pub fn append(&mut self, next: Answer) -> Result<(), Error> {
        self.usage += next.usage;
        if self.text.len().saturating_add(next.text.len()) > MAX_ANSWER {
            let usage = Box::new(self.usage);
            return Err(Error { usage, accepted_model: true, ..Error::too_long() });
        }
        self.text.push_str(&next.text);
        self.finish_reason = next.finish_reason;
        self.model_version = next.model_version.or(self.model_version.take());
        self.continuation = next.continuation;
        Ok(())
    }

    /// The whole answer after its last part has been [appended](Answer::append), with the keys
    /// overwritten that were split over two parts.
    ///
    /// # Errors
    ///
    /// An [`Error`] if no part has text.
    pub fn joined(self, secrets: &Secrets) -> Result<Answer, Error> {
        if !self.text.is_empty() {
            return Ok(self.masked(secrets));
        }
        let error = without_text(&self.finish_reason, None);
        Err(Error { usage: Box::new(self.usage), accepted_model: true, ..error })
    }

    /// The same answer with keys overwritten.
    pub(super) fn masked(self, secrets: &Secrets) -> Answer {
        let text = secrets.mask_text(self.text);
        Answer { text, finish_reason: secrets.mask_text(self.finish_reason), ..self }
    }
}

/// The fields of a `GenerateContentResponse` that are read. Strings without escapes are borrowed
/// from the body; all other fields are skipped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'a> {
    #[serde(borrow)]
    pub(super) candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    pub(super) prompt_feedback: Option<PromptFeedback<'a>>,
    /// Parsed separately, so that an unexpected value in it does not fail the answer.
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) model_version: Option<StringOrNumber<'a>>,
    /// If present, this is an error and not an answer.
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Candidate<'a> {
    #[serde(borrow)]
    pub(super) content: Option<Content<'a>>,
    #[serde(borrow)]
    pub(super) finish_reason: Option<StringOrNumber<'a>>,
    #[serde(borrow)]
    pub(super) finish_message: Option<StringOrNumber<'a>>,
    #[serde(borrow)]
    continuation_token: Option<StringOrNumber<'a>>,
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
    block_reason: Option<StringOrNumber<'a>>,
    #[serde(borrow)]
    block_reason_message: Option<StringOrNumber<'a>>,
}

impl Response<'_> {
    /// Parses a body that was received with a success status. If a string in it contains half a surrogate
    /// pair, the body is repaired and parsed again, so that one broken character does not lose an
    /// answer that was paid for.
    ///
    /// # Errors
    /// The [`Error`] of `then`, or an error for a body that is not an answer.
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

    /// Whether this is an answer from Gemini: each field is optional, but one must be present.
    fn is_one(&self) -> bool {
        let has_any = self.candidates.is_some()
            || self.prompt_feedback.is_some()
            || self.usage_metadata.is_some();
        has_any && self.error.is_none()
    }

    /// The token usage so far, as Gemini reports it.
    pub(super) fn usage(&self) -> Option<Usage> {
        Usage::of_gemini(self.usage_metadata?.get().as_bytes())
    }

    fn into_answer(self, part: AnswerPart) -> Result<Answer, Error> {
        let usage = self.usage().unwrap_or_default();
        let result = match self.candidates.and_then(|all| all.into_iter().next()) {
            Some(first) => first.into_answer(part, usage, model(self.model_version)),
            None => Err(self.prompt_feedback.unwrap_or_default().into_error()),
        };
        result.map_err(|error| Error { usage: Box::new(usage), accepted_model: true, ..error })
    }
}

impl Candidate<'_> {
    /// What continues the answer. Only an answer that was stopped for that is continued.
    pub(super) fn continuation(&mut self) -> Option<ContinuationToken> {
        let token = self.continuation_token.take()?;
        let is_stopped = self.finish_reason.as_ref().is_some_and(|reason| reason.0 == CONTINUATION);
        is_stopped.then(|| ContinuationToken::new(&token.0)).flatten()
    }

    fn into_answer(
        mut self,
        part: AnswerPart,
        usage: Usage,
        model_version: Option<Model>,
    ) -> Result<Answer, Error> {
        let continuation = self.continuation();
        let reason = self.finish_reason.map_or(FINISH_REASON_UNSPECIFIED.into(), |reason| reason.0);
        if is_blocked(&reason) {
            return Err(blocked(&reason));
        }
        let text = self.content.map(Content::into_text).unwrap_or_default();
        let text = json::text(text).ok_or_else(not_text)?;
        if !text.is_empty() || continuation.is_some() || part == AnswerPart::Later {
            let finish_reason = bounded(&reason).into_owned();
            return Ok(Answer { text, finish_reason, usage, model_version, continuation });
        }
        Err(without_text(&reason, self.finish_message.map(|message| message.0).as_deref()))
    }
}

/// The error for text that is not UTF-8.
pub(super) fn not_text() -> Error {
    Error::new(ErrorKind::Malformed, "the text of the answer is not UTF-8")
}

/// The model that an answer names. The value comes from the network; an invalid name is ignored.
pub(super) fn model(version: Option<StringOrNumber<'_>>) -> Option<Model> {
    Model::parse(&version?.0).ok()
}

/// Reads only the model that an answer names: `modelVersion` on Gemini's surface, `model` on
/// OpenAI's and in interactions, where the first event has it in its `interaction`.
pub(super) fn model_version(answer: &[u8], surface: Surface) -> Option<Model> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned<'a> {
        #[serde(borrow)]
        model_version: Option<StringOrNumber<'a>>,
        #[serde(borrow)]
        model: Option<StringOrNumber<'a>>,
        #[serde(borrow)]
        interaction: Option<&'a RawValue>,
    }

    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Option<StringOrNumber<'a>>,
    }

    let Versioned { model_version, model: named, interaction } =
        serde_json::from_slice(answer).ok()?;
    match (surface, interaction) {
        (Surface::Interactions, Some(interaction)) if named.is_none() => {
            model(serde_json::from_str::<Named<'_>>(interaction.get()).ok()?.model)
        }
        (Surface::Interactions | Surface::OpenAi, _) => model(named),
        (Surface::Gemini, _) => model(model_version),
    }
}

pub(super) fn blocked(reason: &str) -> Error {
    let message = format!("Gemini blocked its answer: {}", bounded(reason));
    Error::new(ErrorKind::ContentBlocked { reason: bounded(reason).into_owned() }, message)
}

/// The error for an answer without text, by Gemini's finish reason.
pub(super) fn without_text(reason: &str, message: Option<&str>) -> Error {
    let (kind, message) = match reason {
        "MAX_TOKENS" => {
            let message = "Gemini reached the limit of output tokens before it wrote any text";
            return Error::new(ErrorKind::Truncated, message);
        }
        CONTINUATION => {
            let message = "Gemini stopped before it wrote any text and asks to be continued: \
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

/// Whether a finish reason means that more text would follow.
fn is_cut_off(finish_reason: &str) -> bool {
    matches!(finish_reason, "MAX_TOKENS" | CONTINUATION)
}

/// Whether a finish reason means that the answer was withheld, even if part of it was sent.
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
    /// The text without thoughts, as bytes for [`json::text`].
    pub(super) fn into_text(self) -> Vec<u8> {
        let parts = self.parts.unwrap_or_default().into_iter();
        let mut texts =
            parts.filter(|part| part.thought != Some(true)).filter_map(|part| part.text);
        // There is nearly always one part, whose text can be used without a copy.
        let mut text = texts.next().map(|first| first.0.into_owned()).unwrap_or_default();
        texts.for_each(|more| text.extend_from_slice(&more.0));
        text
    }
}

impl PromptFeedback<'_> {
    pub(super) fn is_reason(&self) -> bool {
        self.block_reason.is_some() || self.block_reason_message.is_some()
    }

    /// The error for an answer without a candidate.
    pub(super) fn into_error(self) -> Error {
        if !self.is_reason() {
            return Error::new(ErrorKind::Empty, "Gemini's answer has no candidate");
        }
        let reason = self.block_reason.map_or(BLOCK_REASON_UNSPECIFIED.into(), |reason| reason.0);
        let why = self.block_reason_message.map_or(reason.clone(), |message| message.0);
        let message = format!("Gemini blocked the prompt: {}", bounded(&why));
        Error::new(ErrorKind::ContentBlocked { reason: bounded(&reason).into_owned() }, message)
    }
}

/// A string, borrowed if possible, or the number that proto JSON writes for an enum value whose
/// name the server does not know.
pub(super) struct StringOrNumber<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for StringOrNumber<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = StringOrNumber<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<StringOrNumber<'de>, E> {
                Ok(StringOrNumber(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<StringOrNumber<'de>, E> {
                Ok(StringOrNumber(text.to_owned().into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<StringOrNumber<'de>, E> {
                Ok(StringOrNumber(number.to_string().into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<StringOrNumber<'de>, E> {
                Ok(StringOrNumber(number.to_string().into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A string read as bytes, so that half a surrogate pair is kept: its other half may be in the next
/// string.
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
