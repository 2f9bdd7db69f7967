//! Extracts JSON from what a model wrote: the whole text, or the one JSON value in it.

use std::borrow::Cow;

use memchr::memchr2;
use serde_json::Value;

use crate::gemini::{Nesting, without_lone_surrogates};
use crate::schema::{Stopped, Work};

/// The code fence of Markdown, which models put around JSON.
const FENCE: &str = "```";

/// The JSON in a text.
#[derive(Debug)]
pub(super) struct Json<'a> {
    pub value: Value,
    /// As the model wrote it, except that lone surrogates are replaced by U+FFFD.
    pub text: Cow<'a, str>,
}

/// Reads a text that should be JSON. If it is not, but contains exactly one JSON value, in a code fence
/// or with words around it, that value is used, which saves a second call. A text that seems to contain
/// a second value, or an incomplete one, is ambiguous and not used.
///
/// The time is linear in the length of the text.
///
/// # Errors
/// [`Stopped`] if the work runs out; inside of that, why the text is not JSON.
pub(super) fn read<'a>(
    text: &'a str,
    work: &Work,
) -> Result<Result<Json<'a>, serde_json::Error>, Stopped> {
    let error = match parse(text) {
        Ok(fit) => return Ok(Ok(fit)),
        Err(error) => error,
    };
    work.spend(text.len())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
    let found = fenced(text).and_then(|json| parse(json).ok());
    Ok(found.or_else(|| parse(only_value(text)?).ok()).ok_or(error))
}

fn parse(json: &str) -> Result<Json<'_>, serde_json::Error> {
    let error = match serde_json::from_str(json) {
        Ok(value) => return Ok(Json { value, text: json.into() }),
        Err(error) => error,
    };
    let Some(repaired) = without_lone_surrogates(json.as_bytes()) else { return Err(error) };
    let repaired = String::from_utf8(repaired).expect("ASCII was replaced by ASCII");
    serde_json::from_str(&repaired).map(|value| Json { value, text: repaired.into() })
}

/// The content of the code fence that encloses a text.
fn fenced(text: &str) -> Option<&str> {
    let inner = text.strip_prefix(FENCE)?.strip_suffix(FENCE)?;
    let (language, inner) = inner.split_once('\n')?;
    let is_word = language.trim().chars().all(|letter| letter.is_ascii_alphanumeric());
    is_word.then_some(inner.trim())
}

/// The only object or list in a text. Brackets without JSON in them, such as `[sic]`, are skipped, unless
/// they contain a quote or more brackets and so may be meant as JSON.
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

/// Whether a text is JSON. Lone surrogates are accepted.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn extracted(text: &str) -> Option<String> {
        let json = read(text, &Work::brief()).expect("little work").ok()?;
        assert_eq!(serde_json::from_str::<Value>(&json.text).unwrap(), json.value, "{text}");
        Some(json.text.into_owned())
    }

    #[test]
    fn a_text_that_is_json_is_used_as_written() {
        for text in [r#"{ "a" : 1.10 }"#, "7", r#""```""#, " null\n"] {
            assert_eq!(extracted(text).as_deref(), Some(text));
        }
        assert_eq!(extracted(r#"{"a":"\ud83d"}"#).as_deref(), Some(r#"{"a":"\ufffd"}"#));
    }

    #[test]
    fn the_only_json_value_in_a_text_is_extracted() {
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
            assert_eq!(extracted(&text).as_deref(), Some(json), "{text}");
        }
        assert_eq!(extracted("```json\n\"a text\"\n```").as_deref(), Some("\"a text\""));
        assert_eq!(extracted("```\n42\n```").as_deref(), Some("42"));
        assert_eq!(extracted("```json\n[\"\\ud83d\"]\n```").as_deref(), Some("[\"\\ufffd\"]"));
    }

    #[test]
    fn nothing_is_extracted_from_a_text_without_exactly_one_json_value() {
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
            assert_eq!(extracted(text), None, "{text}");
        }
    }

    #[test]
    fn no_text_takes_more_than_linear_time() {
        for piece in ["[", "[{", "{\"", "[1] ", "{x} ", "[\"]\"", "```json\n", "\\ud83d", "{}}"] {
            let text = piece.repeat((4 << 20) / piece.len());
            let _ = read(&text, &Work::until(CancellationToken::new())).expect("unlimited work");
        }
    }
}
