//! An answer that comes piece by piece.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::answer::{
    Answer, Content, FINISH_REASON_UNSPECIFIED, PromptFeedback, Response, Word, blocked,
    is_blocked, model, not_text, without_text,
};
use super::client::MAX_ANSWER;
use super::error::{Error, bounded};
use super::events::Event;
use super::json::{self, take_half};
use super::model::Model;
use super::redact::{Masker, Secrets};
use super::usage::Usage;

/// An answer of which piece after piece comes.
#[derive(Debug, Default)]
pub struct Growing {
    secrets: Secrets,
    masker: Masker,
    text: String,
    /// The first half of a surrogate pair, with which the text so far ends.
    half: Vec<u8>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
    usage: Usage,
    model_version: Option<Model>,
    /// Whether anything of it has come.
    has_begun: bool,
    /// How many lines were not Gemini's.
    strays: u64,
}

impl Growing {
    /// An answer without keys in it: also where one is cut, and its parts stand in two pieces.
    pub fn without(secrets: Secrets) -> Self {
        Self { masker: secrets.masker(), secrets, ..Self::default() }
    }

    /// Reads the next thing that a stream says, and returns its text; what of it may be the beginning
    /// of a key, or is half a character, comes with the next one.
    ///
    /// # Errors
    /// An [`Error`] where the answer ends here: it was blocked, Gemini broke down, or what came is
    /// not Gemini's. A line that is none of Gemini's is counted, and so is an object that says nothing
    /// of an answer, such as a proxy's ping: whether it does harm shows at the end.
    pub fn push(&mut self, event: &Event) -> Result<String, Error> {
        let read = match event {
            Event::Data(data) if &**data == b"[DONE]" => Ok(String::new()),
            Event::Data(data) => match Response::read(data, |response| self.read(response)) {
                Err(_) if says_nothing(data) => {
                    self.strays += 1;
                    Ok(String::new())
                }
                read => read,
            },
            Event::Stray(_) => {
                self.strays += 1;
                Ok(String::new())
            }
            Event::TooLong => Err(Error::too_long()),
        };
        read.map_err(|error| self.charge(error))
    }

    /// How many lines came that are neither events nor JSON.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    fn read(&mut self, response: Response<'_>) -> Result<String, Error> {
        self.has_begun = true;
        // Gemini adds up from piece to piece.
        self.usage = response.usage().unwrap_or(self.usage);
        self.model_version = self.model_version.take().or_else(|| model(response.model_version));
        let Some(candidate) = response.candidates.and_then(|all| all.into_iter().next()) else {
            let feedback = response.prompt_feedback.filter(PromptFeedback::is_reason);
            return feedback.map_or(Ok(String::new()), |feedback| Err(feedback.into_error()));
        };
        if let Some(Word(reason)) = candidate.finish_reason.filter(is_given) {
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

    /// A piece with the half of a character that was kept of the one before, and without the half
    /// that it ends with.
    fn whole_characters(&mut self, piece: Vec<u8>) -> Result<String, Error> {
        let mut piece = if self.half.is_empty() {
            piece
        } else {
            [std::mem::take(&mut self.half), piece].concat()
        };
        self.half = take_half(&mut piece);
        json::text(piece).ok_or_else(not_text)
    }

    /// The text that was held back, once the last piece has come.
    pub fn rest(&mut self) -> String {
        let half = json::text(std::mem::take(&mut self.half)).unwrap_or_default();
        let rest = [self.masker.push(half.into()), self.masker.finish()].concat();
        self.add(rest.into())
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
        let Some(reason) = self.finish_reason.as_deref() else {
            return Err(self.charge(Error::without_end(self.strays)));
        };
        if self.text.is_empty() {
            let error = without_text(reason, self.finish_message.as_deref());
            return Err(self.charge(error));
        }
        let finish_reason = bounded(reason).into_owned();
        let Self { text, usage, model_version, .. } = self;
        Ok(Answer { text, finish_reason, usage, model_version }.masked(&self.secrets))
    }

    fn charge(&self, error: Error) -> Error {
        Error { usage: self.usage, accepted_model: self.has_begun, ..error.masked(&self.secrets) }
    }
}

/// Whether a finish reason is one: some servers write a value that stands for none into every piece.
fn is_given(reason: &Word<'_>) -> bool {
    !matches!(&*reason.0, "" | "0" | FINISH_REASON_UNSPECIFIED)
}

/// Whether something is an object of JSON that says nothing of an answer, nor of an error.
fn says_nothing(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Telling {
        candidates: Option<IgnoredAny>,
        prompt_feedback: Option<IgnoredAny>,
        error: Option<IgnoredAny>,
        code: Option<IgnoredAny>,
    }

    let is_object = data.starts_with(b"{");
    is_object
        && serde_json::from_slice(data).is_ok_and(|telling: Telling| {
            let Telling { candidates, prompt_feedback, error, code } = telling;
            [candidates, prompt_feedback, error, code].iter().all(Option::is_none)
        })
}

#[cfg(test)]
mod tests {
    use super::super::ErrorKind;
    use super::*;

    /// The pieces of a stream that says these texts, and ends for this reason.
    fn pieces(texts: &[&str], reason: &str) -> Vec<Event> {
        let texts = texts.iter().map(|text| {
            format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}}}}]}}"#)
        });
        let end = format!(r#"{{"candidates":[{{"finishReason":{reason}}}]}}"#);
        texts.chain([end]).map(|piece| Event::Data(piece.into())).collect()
    }

    fn read(events: &[Event]) -> (String, Result<Answer, Error>) {
        let mut growing = Growing::default();
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
    fn halves_of_a_character_are_joined_over_two_pieces() {
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
    fn an_answer_that_gemini_did_not_end_is_none() {
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
    fn a_line_that_is_not_geminis_spoils_only_what_does_not_end() {
        let stray = Event::Stray("upstream connect error".into());
        let mut whole = pieces(&["text"], r#""STOP""#);
        whole.insert(1, stray.clone());
        assert_eq!(read(&whole).1.unwrap().text, "text");
        let error = read(&whole[..2]).1.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Malformed);
        assert_eq!(read(&[stray]).1.unwrap_err().kind, ErrorKind::Malformed);
    }

    #[test]
    fn an_object_that_says_nothing_of_the_answer_spoils_only_what_does_not_end() {
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
    fn a_reason_can_be_any_whole_number() {
        assert_eq!(read(&pieces(&["text"], "-1")).1.unwrap().finish_reason, "-1");
    }

    #[test]
    fn an_error_among_the_pieces_is_that_error() {
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
