//! JSON in what a model wrote: all of it, as it should be, or the one value that is in it.

use std::borrow::Cow;

use memchr::memchr2;
use serde_json::Value;

use crate::gemini::{Nesting, without_lone_surrogates};
use crate::schema::{Stopped, Work};

/// The fence that models put around code.
const FENCE: &str = "```";

/// The JSON that was found.
#[derive(Debug)]
pub(super) struct Fit<'a> {
    pub value: Value,
    /// As the model wrote it, but for halves of surrogate pairs, which are U+FFFD.
    pub json: Cow<'a, str>,
}

/// Reads a text that should be JSON. Where it is not, and exactly one value of JSON is in it, in a
/// code fence or with words around it, that value is meant: to ask again would cost as much once more.
/// What looks like a second value, or like one that is not at its end, leaves it open which is meant.
///
/// Each byte is looked at a fixed number of times.
///
/// # Errors
/// Why the text is not JSON, with [`Stopped`] around it where the work is not enough to know.
pub(super) fn read<'a>(
    text: &'a str,
    work: &Work,
) -> Result<Result<Fit<'a>, serde_json::Error>, Stopped> {
    let error = match parse(text) {
        Ok(fit) => return Ok(Ok(fit)),
        Err(error) => error,
    };
    work.spend(text.len())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
    let found = fenced(text).and_then(|json| parse(json).ok());
    Ok(found.or_else(|| parse(only_value(text)?).ok()).ok_or(error))
}

fn parse(json: &str) -> Result<Fit<'_>, serde_json::Error> {
    let error = match serde_json::from_str(json) {
        Ok(value) => return Ok(Fit { value, json: json.into() }),
        Err(error) => error,
    };
    let Some(repaired) = without_lone_surrogates(json.as_bytes()) else { return Err(error) };
    let repaired = String::from_utf8(repaired).expect("ASCII was replaced by ASCII");
    serde_json::from_str(&repaired).map(|value| Fit { value, json: repaired.into() })
}

/// What stands in a code fence that holds all of a text.
fn fenced(text: &str) -> Option<&str> {
    let inner = text.strip_prefix(FENCE)?.strip_suffix(FENCE)?;
    let (language, inner) = inner.split_once('\n')?;
    let is_word = language.trim().chars().all(|letter| letter.is_ascii_alphanumeric());
    is_word.then_some(inner.trim())
}

/// The only object or list in a text. Brackets that hold no JSON are words, such as `[sic]`, unless
/// they could be meant for it: with a quote or further brackets in them.
fn only_value(text: &str) -> Option<&str> {
    let (mut only, mut rest) = (None, text);
    while let Some(start) = memchr2(b'{', b'[', rest.as_bytes()) {
        let end = start + Nesting::default().close(&rest.as_bytes()[start..])?;
        let candidate = &rest[start..end];
        if is_json(candidate) {
            if only.replace(candidate).is_some() {
                return None;
            }
        } else if candidate[1..].contains(['"', '{', '[']) {
            return None;
        }
        rest = &rest[end..];
    }
    only
}

/// Whether a text is JSON, whatever halves of surrogate pairs are in it.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn found(text: &str) -> Option<String> {
        let found = read(text, &Work::brief()).expect("little work").ok()?;
        assert_eq!(serde_json::from_str::<Value>(&found.json).unwrap(), found.value, "{text}");
        Some(found.json.into_owned())
    }

    #[test]
    fn json_is_what_the_model_wrote() {
        for text in [r#"{ "a" : 1.10 }"#, "7", r#""```""#, " null\n"] {
            assert_eq!(found(text).as_deref(), Some(text));
        }
        assert_eq!(found(r#"{"a":"\ud83d"}"#).as_deref(), Some(r#"{"a":"\ufffd"}"#));
    }

    #[test]
    fn the_one_value_in_a_text_is_found() {
        let json = r#"{ "a" : "}```{ \" [" , "b": [1] }"#;
        for text in [
            format!("```json\n{json}\n```"),
            format!("```JSON\r\n{json}\r\n```\n"),
            format!("```\n{json}```"),
            format!("\u{feff}{json}"),
            format!("Here it is:\n\n```json\n{json}\n```\n\nAnything else?"),
            format!("{json}\n\nThis is what you asked for [sic], {{name}}."),
            format!("Certainly! {json}"),
            format!("```json\n{json}"),
        ] {
            assert_eq!(found(&text).as_deref(), Some(json), "{text}");
        }
        assert_eq!(found("```json\n\"a text\"\n```").as_deref(), Some("\"a text\""));
        assert_eq!(found("```\n42\n```").as_deref(), Some("42"));
        assert_eq!(found("```json\n[\"\\ud83d\"]\n```").as_deref(), Some("[\"\\ufffd\"]"));
    }

    #[test]
    fn what_is_not_one_value_is_none() {
        for text in [
            "",
            "Certainly! Anna is 31.",
            r#"{"a":1} {"a":2}"#,
            "```json\n{\"a\":1}\n```\nor\n```json\n{\"a\":2}\n```",
            r#"As said in [1], {"a":1}"#,
            r#"[{"a":1},{"a":"#,
            r#"{"a":{"b":1},}"#,
            r#"{"a":1,} or {"b":2}"#,
            r#"{"a":1} and {unfinished"#,
            "```json\n1\n2\n```",
            "```",
            "``````",
            "```json```",
            "\"a\" or so",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }

    #[test]
    fn no_text_takes_long() {
        for piece in ["[", "[{", "{\"", "[1] ", "{x} ", "[\"]\"", "```json\n", "\\ud83d", "{}}"] {
            let text = piece.repeat((4 << 20) / piece.len());
            let _ = read(&text, &Work::until(CancellationToken::new())).expect("enough work");
        }
    }
}
