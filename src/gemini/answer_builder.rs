//! Builds an answer from the events of a stream.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::answer::{
    Answer, Content, FINISH_REASON_UNSPECIFIED, PromptFeedback, Response, StringOrNumber, blocked,
    is_blocked, model, not_text, without_text,
};
use super::client::MAX_ANSWER;
use super::continuation::ContinuationToken;
use super::error::{Error, bounded};
use super::events::Event;
use super::json::{self, take_half};
use super::model::Model;
use super::redact::{Masker, Secrets};
use super::usage::Usage;

/// An answer built from the events of a stream.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    secrets: Secrets,
    masker: Masker,
    text: String,
    /// The first half of a surrogate pair at the end of the text so far.
    half: Vec<u8>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
    continuation: Option<ContinuationToken>,
    /// The usage of the part that is read now.
    usage: Usage,
    /// The usage of the parts before.
    earlier_usage: Usage,
    model_version: Option<Model>,
    /// Whether any part of the answer has arrived.
    has_begun: bool,
    /// How many lines were not in Gemini's format.
    unrecognized: u64,
}

impl AnswerBuilder {
    /// An empty answer. Keys are overwritten in its text, also if they are split over two events.
    pub fn masking(secrets: Secrets) -> Self {
        Self { masker: secrets.masker(), secrets, ..Self::default() }
    }

    /// Reads the next event and returns its text. Text that may be the start of a key, and half a
    /// character, are returned with the next event.
    ///
    /// # Errors
    /// An [`Error`] if the answer ends here: it was blocked, Gemini failed, or the event is not in
    /// Gemini's format. Unrecognized lines, and objects that belong neither to an answer nor to an
    /// error, such as a proxy's ping, are only counted: they matter if the end is missing.
    pub fn push(&mut self, event: &Event) -> Result<String, Error> {
        let read = match event {
            Event::Data(data) if &**data == b"[DONE]" => Ok(String::new()),
            Event::Data(data) => match Response::read(data, |response| self.read(response)) {
                Err(_) if is_irrelevant(data) => {
                    self.unrecognized += 1;
                    Ok(String::new())
                }
                read => read,
            },
            Event::Unrecognized(_) => {
                self.unrecognized += 1;
                Ok(String::new())
            }
            Event::TooLong => Err(Error::too_long()),
        };
        read.map_err(|error| self.charge(error))
    }

    /// How many events belong neither to an answer nor to an error.
    pub fn unrecognized(&self) -> u64 {
        self.unrecognized
    }

    fn read(&mut self, response: Response<'_>) -> Result<String, Error> {
        self.has_begun = true;
        // Gemini reports running totals.
        self.usage = response.usage().unwrap_or(self.usage);
        self.model_version = self.model_version.take().or_else(|| model(response.model_version));
        let Some(mut candidate) = response.candidates.and_then(|all| all.into_iter().next()) else {
            let feedback = response.prompt_feedback.filter(PromptFeedback::is_reason);
            return feedback.map_or(Ok(String::new()), |feedback| Err(feedback.into_error()));
        };
        self.continuation = candidate.continuation().or(self.continuation.take());
        if let Some(StringOrNumber(reason)) = candidate.finish_reason.filter(is_given) {
            if is_blocked(&reason) {
                return Err(blocked(&reason));
            }
            self.finish_reason = Some(reason.into_owned());
        }
        self.finish_message = candidate.finish_message.map(|message| message.0.into_owned());
        let text = candidate.content.map(Content::into_text).unwrap_or_default();
        let text = self.whole_characters(text)?;
        if self.text.len().saturating_add(text.len()) > MAX_ANSWER {
            return Err(Error::too_long());
        }
        let text = self.masker.push(text.into());
        Ok(self.add(text))
    }

    /// Puts the half character kept from the last event before a piece of text, and keeps the half
    /// character at its end.
    fn whole_characters(&mut self, piece: Vec<u8>) -> Result<String, Error> {
        let mut piece = if self.half.is_empty() {
            piece
        } else {
            [std::mem::take(&mut self.half), piece].concat()
        };
        self.half = take_half(&mut piece);
        json::text(piece).ok_or_else(not_text)
    }

    /// What continues the answer, where Gemini stopped before its end and offers that.
    pub fn continuation(&self) -> Option<&ContinuationToken> {
        self.continuation.as_ref()
    }

    /// The usage of the part whose events have been read is this one, which says what it costs.
    pub fn charge_part(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// The next events are those of the next part, which continues the answer.
    pub fn start_next_part(&mut self) {
        (self.continuation, self.finish_reason, self.finish_message) = (None, None, None);
        self.earlier_usage += std::mem::take(&mut self.usage);
    }

    /// The text held back so far. Call it after the last event.
    pub fn rest(&mut self) -> String {
        let half = json::text(std::mem::take(&mut self.half)).unwrap_or_default();
        let rest = [self.masker.push(half.into()), self.masker.finish()].concat();
        self.add(rest.into())
    }

    fn add(&mut self, text: Bytes) -> String {
        let text = String::from_utf8(text.into()).expect("only whole ASCII parts are held back");
        self.text.push_str(&text);
        text
    }

    /// The whole answer. Call it after the last event and [`AnswerBuilder::rest`].
    ///
    /// # Errors
    /// An [`Error`] if there is no text, or no finish reason: an incomplete answer is never
    /// returned.
    pub fn finish(self) -> Result<Answer, Error> {
        let Some(reason) = self.finish_reason.as_deref() else {
            return Err(self.charge(Error::unfinished(self.unrecognized)));
        };
        if self.text.is_empty() {
            let error = without_text(reason, self.finish_message.as_deref());
            return Err(self.charge(error));
        }
        let finish_reason = bounded(reason).into_owned();
        let usage = self.usage();
        let Self { text, model_version, continuation, .. } = self;
        let answer = Answer { text, finish_reason, usage, model_version, continuation };
        Ok(answer.masked(&self.secrets))
    }

    /// The usage of the parts before the one that is read now.
    pub fn earlier_usage(&self) -> Usage {
        self.earlier_usage
    }

    fn usage(&self) -> Usage {
        self.earlier_usage + self.usage
    }

    fn charge(&self, error: Error) -> Error {
        let (usage, accepted_model) = (Box::new(self.usage()), self.has_begun);
        Error { usage, accepted_model, ..error.masked(&self.secrets) }
    }
}

/// Whether a finish reason is set: some servers write an empty value into every event.
fn is_given(reason: &StringOrNumber<'_>) -> bool {
    !matches!(&*reason.0, "" | "0" | FINISH_REASON_UNSPECIFIED)
}

/// Whether data is a JSON object that belongs neither to an answer nor to an error.
fn is_irrelevant(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields {
        candidates: Option<IgnoredAny>,
        prompt_feedback: Option<IgnoredAny>,
        error: Option<IgnoredAny>,
        code: Option<IgnoredAny>,
    }

    let is_object = data.starts_with(b"{");
    is_object
        && serde_json::from_slice(data).is_ok_and(|fields: Fields| {
            let Fields { candidates, prompt_feedback, error, code } = fields;
            [candidates, prompt_feedback, error, code].iter().all(Option::is_none)
        })
}

#[cfg(test)]
mod tests {
    use super::super::ErrorKind;
    use super::*;

    /// The events of a stream with these texts and this finish reason.
    fn pieces(texts: &[&str], reason: &str) -> Vec<Event> {
        let texts = texts.iter().map(|text| {
            format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}}}}]}}"#)
        });
        let end = format!(r#"{{"candidates":[{{"finishReason":{reason}}}]}}"#);
        texts.chain([end]).map(|piece| Event::Data(piece.into())).collect()
    }

    fn read(events: &[Event]) -> (String, Result<Answer, Error>) {
        let mut growing = AnswerBuilder::default();
        let mut text = String::new();
        for event in events {
            match growing.push(event) {
                Ok(delta) => text += &delta,
                Err(error) => return (text, Err(error)),
            }
        }
        text += &growing.rest();
        (text, growing.finish())
    }

    #[test]
    fn halves_of_a_character_are_joined_across_events() {
        for (texts, expected) in [
            (vec![r"a \ud83d", r"\ude00 b"], "a 😀 b"),
            (vec![r"\ud83d", "", r"\ude00"], "😀"),
            (vec![r"a\ud83d", "b", r"\ude00"], "a\u{FFFD}b\u{FFFD}"),
            (vec![r"a\ud83d"], "a\u{FFFD}"),
            (vec![r"\ud83d\ud83d", r"\ude00\ude00"], "\u{FFFD}😀\u{FFFD}"),
        ] {
            let (text, answer) = read(&pieces(&texts, r#""STOP""#));
            assert_eq!(text, expected, "{texts:?}");
            assert_eq!(answer.unwrap().text, expected, "{texts:?}");
        }
    }

    #[test]
    fn an_answer_without_a_finish_reason_is_an_error() {
        for reason in ["null", "0", r#""""#, r#""FINISH_REASON_UNSPECIFIED""#] {
            for texts in [vec!["half"], vec![]] {
                let error = read(&pieces(&texts, reason)).1.unwrap_err();
                assert_eq!(error.kind, ErrorKind::BrokenOff, "{reason}");
                assert!(error.accepted_model);
            }
        }
        assert!(!read(&[]).1.unwrap_err().accepted_model);
    }

    #[test]
    fn an_unrecognized_line_matters_only_if_the_end_is_missing() {
        let unrecognized = Event::Unrecognized("upstream connect error".into());
        let mut whole = pieces(&["text"], r#""STOP""#);
        whole.insert(1, unrecognized.clone());
        assert_eq!(read(&whole).1.unwrap().text, "text");
        let error = read(&whole[..2]).1.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Malformed);
        assert_eq!(read(&[unrecognized]).1.unwrap_err().kind, ErrorKind::Malformed);
    }

    #[test]
    fn an_irrelevant_object_matters_only_if_the_end_is_missing() {
        for nothing in ["[DONE]", "{}", r#"{"type": "ping"}"#, r#"{"responseId":"a","error":null}"#]
        {
            let nothing = Event::Data(nothing.into());
            for at in 0..3 {
                let mut whole = pieces(&["text"], r#""STOP""#);
                whole.insert(at, nothing.clone());
                assert_eq!(read(&whole).1.unwrap().text, "text", "{nothing:?} at {at}");
            }
            read(&[nothing]).1.unwrap_err();
        }
        for fault in [r#"{"error":"busy"}"#, r#"{"code":503}"#, "busy", r#"["busy"]"#, "{"] {
            let mut whole = pieces(&["text"], r#""STOP""#);
            whole.insert(1, Event::Data(fault.into()));
            assert_eq!(read(&whole).1.unwrap_err().kind, ErrorKind::Malformed, "{fault}");
        }
    }

    #[test]
    fn a_finish_reason_may_be_any_whole_number() {
        assert_eq!(read(&pieces(&["text"], "-1")).1.unwrap().finish_reason, "-1");
    }

    #[test]
    fn an_error_between_events_is_that_error() {
        for error in [
            r#"{"error":{"code":503,"message":"busy"}}"#,
            r#"{"candidates":[],"error":{"code":503,"message":"busy"}}"#,
            "{\n\"error\": {\n\"status\": \"UNAVAILABLE\", \"message\": \"busy\"}}",
        ] {
            let mut events = pieces(&["half"], r#""STOP""#);
            events.insert(1, Event::Data(error.into()));
            let error = read(&events).1.unwrap_err();
            assert_eq!((error.kind, &*error.message), (ErrorKind::Overloaded(None), "busy"));
        }
    }
}
