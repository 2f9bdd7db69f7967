//! What Gemini answered, and what it cost.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Deserializer, de};

use super::client::MAX_ANSWER;
use super::error::{Error, ErrorKind, bounded};
use super::forward::Surface;
use super::model::Model;
use super::redact::{Masker, Secrets};
use super::usage::{Usage, UsageMetadata};

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
        match serde_json::from_slice::<Response<'_>>(body) {
            Ok(response) if response.is_one() => response.into_answer(),
            _ => Err(Error::read_despite_success(body)),
        }
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
struct Response<'a> {
    #[serde(borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    prompt_feedback: Option<PromptFeedback<'a>>,
    usage_metadata: Option<UsageMetadata>,
    #[serde(borrow)]
    model_version: Option<Word<'a>>,
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

impl<'a> Response<'a> {
    /// Whether this is Gemini's answer at all: every field may be absent, but not all of them.
    fn is_one(&self) -> bool {
        self.candidates.is_some() || self.prompt_feedback.is_some() || self.usage_metadata.is_some()
    }

    fn into_answer(self) -> Result<Answer, Error> {
        let usage = self.usage_metadata.map(Usage::from).unwrap_or_default();
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
        if !text.is_empty() {
            let finish_reason = bounded(&reason).into_owned();
            return Ok(Answer { text, finish_reason, usage, model_version });
        }
        Err(without_text(&reason, self.finish_message.map(|message| message.0).as_deref()))
    }
}

/// The model that an answer names. It is free text from the network: what is no name is none.
fn model(version: Option<Word<'_>>) -> Option<Model> {
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

fn blocked(reason: &str) -> Error {
    let message = format!("Gemini blocked its answer: {}", bounded(reason));
    Error::new(ErrorKind::ContentBlocked { reason: bounded(reason).into_owned() }, message)
}

fn without_text(reason: &str, message: Option<&str>) -> Error {
    if reason == "MAX_TOKENS" {
        let message = "Gemini reached the limit of output tokens before it wrote any text";
        return Error::new(ErrorKind::Truncated, message);
    }
    let message = format!("Gemini's answer has no text: {}", bounded(message.unwrap_or(reason)));
    Error::new(ErrorKind::Empty, message)
}

/// An answer of which piece after piece comes.
#[derive(Debug, Default)]
pub struct Growing {
    secrets: Secrets,
    masker: Masker,
    text: String,
    finish_reason: Option<String>,
    finish_message: Option<String>,
    usage: Usage,
    model_version: Option<Model>,
}

impl Growing {
    /// An answer without keys in it: also where one is cut, and its parts stand in two pieces.
    pub fn without(secrets: Secrets) -> Self {
        Self { masker: secrets.masker(), secrets, ..Self::default() }
    }

    /// Reads the next piece, which one event of a stream brings, and returns its text; what of it
    /// may be the beginning of a key comes with the next one.
    ///
    /// # Errors
    /// An [`Error`] where the answer ends here: it was blocked, Gemini broke down, or what came is
    /// not Gemini's.
    pub fn push(&mut self, event: &[u8]) -> Result<String, Error> {
        let read = match serde_json::from_slice::<Response<'_>>(event) {
            Ok(response) if response.is_one() => self.read(response),
            _ => Err(Error::read_despite_success(event)),
        };
        read.map_err(|error| self.charge(error))
    }

    fn read(&mut self, response: Response<'_>) -> Result<String, Error> {
        // Gemini adds up from piece to piece.
        self.usage = response.usage_metadata.map_or(self.usage, Usage::from);
        self.model_version = self.model_version.take().or_else(|| model(response.model_version));
        let Some(candidate) = response.candidates.and_then(|all| all.into_iter().next()) else {
            let feedback = response.prompt_feedback.filter(PromptFeedback::is_reason);
            return feedback.map_or(Ok(String::new()), |feedback| Err(feedback.into_error()));
        };
        if let Some(Word(reason)) = candidate.finish_reason {
            if is_blocked(&reason) {
                return Err(blocked(&reason));
            }
            self.finish_reason = Some(reason.into_owned());
        }
        self.finish_message = candidate.finish_message.map(|message| message.0.into_owned());
        let text = candidate.content.map(Content::into_text).unwrap_or_default();
        if self.text.len().saturating_add(text.len()) > MAX_ANSWER {
            return Err(Error::too_long());
        }
        let text = self.masker.push(text.into());
        Ok(self.add(text))
    }

    /// The text that was held back, once the last piece has come.
    pub fn rest(&mut self) -> String {
        let rest = self.masker.finish();
        self.add(rest)
    }

    fn add(&mut self, text: Bytes) -> String {
        let text = String::from_utf8(text.into()).expect("keys are ASCII, and so are their parts");
        self.text.push_str(&text);
        text
    }

    /// The whole answer, once its last piece has come and [`Growing::rest`] was taken.
    ///
    /// # Errors
    /// An [`Error`] where there is no text in it, or where Gemini never said that it is the end: half
    /// an answer is none.
    pub fn finish(self) -> Result<Answer, Error> {
        let reason = self.finish_reason.as_deref().unwrap_or(FINISH_REASON_UNSPECIFIED);
        if self.finish_reason.is_none() && !self.text.is_empty() {
            let message = "Gemini's answer ended without a finish reason: it was cut off";
            return Err(self.charge(Error::new(ErrorKind::BrokenOff, message)));
        }
        if self.text.is_empty() {
            let error = without_text(reason, self.finish_message.as_deref());
            return Err(self.charge(error));
        }
        let finish_reason = bounded(reason).into_owned();
        let Self { text, usage, model_version, .. } = self;
        Ok(Answer { text, finish_reason, usage, model_version }.masked(&self.secrets))
    }

    fn charge(&self, error: Error) -> Error {
        Error { usage: self.usage, accepted_model: true, ..error.masked(&self.secrets) }
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
    fn is_reason(&self) -> bool {
        self.block_reason.is_some() || self.block_reason_message.is_some()
    }

    /// Why there is no candidate.
    fn into_error(self) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Answer, Error> {
        Answer::read(StatusCode::OK, body.as_bytes())
    }

    /// Reads an answer whose first candidate is `{"content": content, "finishReason": reason}`.
    fn read_candidate(content: &str, reason: &str) -> Result<Answer, Error> {
        read(&format!(
            r#"{{"candidates":[{{"content":{content},"finishReason":{reason}}}],
                 "usageMetadata":{{"promptTokenCount":7,"totalTokenCount":7}}}}"#
        ))
    }

    #[test]
    fn text_is_every_part_that_is_no_thought() {
        let content = r#"{"parts":[{"text":"hmm","thought":true},{"text":"A\n"},{"thought":null,
            "text":"ß\ud83d\ude00"},{"text":null},{"functionCall":{"name":"f"}},{"text":"c"}]}"#;
        let answer = read_candidate(content, r#""STOP""#).unwrap();
        assert_eq!(answer.text, "A\nß😀c");
        assert_eq!(answer.finish_reason, "STOP");
    }

    #[test]
    fn a_finish_reason_nobody_has_heard_of_is_passed_on() {
        let content = r#"{"parts":[{"text":"Hi"}]}"#;
        for (reason, expected) in [
            (r#""BRAND_NEW""#, "BRAND_NEW"),
            ("19", "19"),
            ("null", "FINISH_REASON_UNSPECIFIED"),
            (r#""MAX_TOKENS""#, "MAX_TOKENS"),
            (r#""OTHER""#, "OTHER"),
        ] {
            assert_eq!(read_candidate(content, reason).unwrap().finish_reason, expected);
        }
    }

    #[test]
    fn a_blocked_answer_is_none_even_where_part_of_it_was_let_out() {
        for content in ["{}", "null", r#"{"parts":[{"text":"In 5, 4,"}]}"#] {
            let error = read_candidate(content, r#""SAFETY""#).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ContentBlocked { reason: "SAFETY".to_owned() });
            assert_eq!((error.usage.prompt_tokens, error.accepted_model), (7, true));
        }
    }

    #[test]
    fn an_answer_without_text_is_told_from_one_that_was_cut_short() {
        let only_thoughts = r#"{"parts":[{"text":"hmm","thought":true}]}"#;
        for content in ["{}", "null", r#"{"parts":null}"#, r#"{"parts":[]}"#, only_thoughts] {
            let kind = |reason| read_candidate(content, reason).unwrap_err().kind;
            assert_eq!(kind(r#""MAX_TOKENS""#), ErrorKind::Truncated);
            assert_eq!(kind(r#""STOP""#), ErrorKind::Empty);
            assert_eq!(kind("null"), ErrorKind::Empty);
        }
    }

    #[test]
    fn the_model_that_answered_is_read_where_it_is_one() {
        for (version, expected) in [
            (r#""gemini-3.5-flash-lite""#, Some("gemini-3.5-flash-lite")),
            (r#""models/gemini-3.8-flash""#, Some("gemini-3.8-flash")),
            (r#""no model: ../x""#, None),
            (r#""""#, None),
            ("null", None),
        ] {
            let body = format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"text":"Hi"}}]}},"finishReason":"STOP"}}],
                    "modelVersion":{version}}}"#
            );
            let answer = read(&body).unwrap();
            assert_eq!(answer.model_version.as_ref().map(Model::as_str), expected, "{version}");
            let read = model_version(body.as_bytes(), Surface::Gemini);
            assert_eq!(read, answer.model_version, "{version}");
            let mut growing = Growing::default();
            growing.push(body.as_bytes()).unwrap();
            assert_eq!(growing.finish().unwrap().model_version, answer.model_version);
        }
        assert_eq!(model_version(b"{\"modelVersion\":{}}", Surface::Gemini), None);
        let openai =
            br#"{"object":"chat.completion","model":"gemini-real","modelVersion":"other"}"#;
        let named = model_version(openai, Surface::OpenAi);
        assert_eq!(named.as_ref().map(Model::as_str), Some("gemini-real"));
        assert_eq!(model_version(br#"{"model":"gemini-asked"}"#, Surface::Gemini), None);
    }

    #[test]
    fn nulls_are_absences() {
        let nulls = r#"{"candidates":null,"promptFeedback":null,"usageMetadata":null}"#;
        assert_eq!(read(nulls).unwrap_err().kind, ErrorKind::Malformed);
        let usage = r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}],"promptFeedback":null,
            "usageMetadata":{"promptTokenCount":null,"candidatesTokenCount":2,"novelty":{}}}"#;
        let answer = read(usage).unwrap();
        assert_eq!(answer.usage, Usage { output_tokens: 2, ..Usage::default() });
    }

    #[test]
    fn what_does_not_come_from_gemini_is_malformed() {
        for body in
            ["", "<html>Sign in</html>", "{}", "[]", "null", "7", "{\"candidates\":[", "{} {}"]
        {
            let error = read(body).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Malformed, "{body}");
            assert!(!error.accepted_model && !error.is_passing(), "{body}");
        }
        let not_text = b"{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\xff\"}]}}]}";
        let error = Answer::read(StatusCode::OK, not_text).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Malformed);
    }

    #[test]
    fn an_answer_with_no_candidate_says_why_if_it_can() {
        let error = read(r#"{"promptFeedback":{"blockReason":"OTHER"}}"#).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ContentBlocked { reason: "OTHER".to_owned() });
        let error = read(r#"{"usageMetadata":{"promptTokenCount":3}}"#).unwrap_err();
        assert_eq!((error.kind, error.usage.prompt_tokens), (ErrorKind::Empty, 3));
    }

    #[test]
    fn an_error_that_comes_with_success_is_that_error() {
        for body in [
            r#"{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}"#,
            r#"[{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}]"#,
        ] {
            let error = read(body).unwrap_err();
            assert_eq!((error.kind, &*error.message), (ErrorKind::Overloaded(None), "overloaded"));
            assert!(!error.accepted_model);
        }
    }
}
