//! Prompts and answers as attributes of spans, if a variable says so.
//!
//! Source: OpenTelemetry semantic conventions for generative AI 0.1.0, the JSON schemas of input messages,
//! output messages and system instructions.

use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};

use super::attributes::{INPUT_MESSAGES, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS};
use crate::gemini::Answer;

/// How much of the text of a request or an answer is kept, in bytes. Spans wait in memory.
const MAX_TEXT: usize = 16 * 1024;

/// How much more is searched for secrets, in bytes, since half of a secret would not be recognized as one.
const MARGIN: usize = 4 * 1024;

/// The text of a `generateContent` body.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    contents: Vec<Content>,
    system_instruction: Option<Content>,
}

#[derive(Deserialize)]
struct Content {
    role: Option<String>,
    #[serde(default)]
    parts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: Option<String>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    parts: Vec<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<String>,
}

#[derive(Serialize)]
struct Part {
    r#type: &'static str,
    content: String,
}

/// Takes texts over, as far as there is room.
struct Texts<F> {
    /// How many bytes may still be kept.
    room: usize,
    /// Overwrites secrets in a text.
    clean: F,
}

impl<F: Fn(String) -> String> Texts<F> {
    fn new(clean: F) -> Self {
        Self { room: MAX_TEXT, clean }
    }

    fn part(&mut self, text: &str) -> Part {
        let searched = text.floor_char_boundary(self.room + MARGIN);
        let mut content = (self.clean)(text[..searched].to_owned());
        content.truncate(content.floor_char_boundary(self.room));
        self.room -= content.len();
        Part { r#type: "text", content }
    }

    fn parts(&mut self, content: &Content) -> Vec<Part> {
        let texts = content.parts.iter().filter_map(|part| part.text.as_deref());
        texts.map(|text| self.part(text)).collect()
    }
}

/// The prompt in a body of the gateway's own endpoints. `clean` overwrites secrets in a text.
pub(super) fn asked(body: &[u8], clean: impl Fn(String) -> String) -> Vec<KeyValue> {
    let Ok(body) = serde_json::from_slice::<Body>(body) else { return Vec::new() };
    let mut texts = Texts::new(clean);
    let instructions = body.system_instruction.as_ref().map(|content| texts.parts(content));
    let mut messages = Vec::with_capacity(body.contents.len());
    for content in &body.contents {
        let is_model = content.role.as_deref() == Some("model");
        let role = if is_model { "assistant" } else { "user" };
        messages.push(Message { role, parts: texts.parts(content), finish_reason: None });
    }
    let instructions = instructions.map(|parts| KeyValue::new(SYSTEM_INSTRUCTIONS, json(&parts)));
    let messages = KeyValue::new(INPUT_MESSAGES, json(&messages));
    instructions.into_iter().chain([messages]).collect()
}

/// An answer.
pub(super) fn answered(answer: &Answer, clean: impl Fn(String) -> String) -> KeyValue {
    let finish_reason = Some(answer.finish_reason.to_ascii_lowercase());
    let parts = vec![Texts::new(clean).part(&answer.text)];
    let message = Message { role: "assistant", parts, finish_reason };
    KeyValue::new(OUTPUT_MESSAGES, json(&[message]))
}

fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("texts can be written")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::gemini::{GenerateContent, Usage};

    fn texts(attributes: &[KeyValue]) -> Vec<(String, Value)> {
        let value = |text: &str| serde_json::from_str(text).expect("JSON");
        let pairs = attributes.iter();
        pairs.map(|pair| (pair.key.to_string(), value(&pair.value.as_str()))).collect()
    }

    #[test]
    fn a_prompt_has_its_messages_and_its_instructions_in_the_form_of_the_conventions() {
        let body = GenerateContent::ask("Why \"blue\"?").instructed("Be brief.");
        let body = body.continued("Light.", "More, key-7!").to_json();
        let attributes = asked(&body, |text| text.replace("key-7", "*****"));
        let part = |text: &str| json!({"type": "text", "content": text});
        let message = |role: &str, text: &str| json!({"role": role, "parts": [part(text)]});
        assert_eq!(
            texts(&attributes),
            [
                (SYSTEM_INSTRUCTIONS.to_owned(), json!([part("Be brief.")])),
                (
                    INPUT_MESSAGES.to_owned(),
                    json!([
                        message("user", "Why \"blue\"?"),
                        message("assistant", "Light."),
                        message("user", "More, *****!"),
                    ])
                ),
            ]
        );
    }

    #[test]
    fn a_secret_is_overwritten_even_where_a_text_is_cut() {
        let secret = "key-\"7\"";
        let text = format!("{}{secret}", "x".repeat(MAX_TEXT - 3));
        let clean = |text: String| text.replace(secret, "*******");
        let body = GenerateContent::ask(&text).to_json();
        let answer = Answer {
            text,
            finish_reason: "STOP".to_owned(),
            usage: Usage::default(),
            model_version: None,
            continuation: None,
        };
        for attributes in [asked(&body, clean), vec![answered(&answer, clean)]] {
            let [(_, messages)] = &*texts(&attributes) else { panic!("{attributes:?}") };
            let text = messages[0]["parts"][0]["content"].as_str().unwrap();
            assert!(text.len() == MAX_TEXT && text.ends_with("x***"), "{}", &text[MAX_TEXT - 9..]);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let body = GenerateContent::ask(&"\u{e9}".repeat(MAX_TEXT)).instructed("x").to_json();
        let attributes = asked(&body, |text| text);
        let [_, (_, messages)] = &*texts(&attributes) else { panic!("{attributes:?}") };
        let text = messages[0]["parts"][0]["content"].as_str().unwrap();
        assert_eq!(text.len(), MAX_TEXT - 2, "one byte is the instruction's");
        let answer = Answer {
            text: "a".repeat(2 * MAX_TEXT),
            finish_reason: "STOP".to_owned(),
            usage: Usage::default(),
            model_version: None,
            continuation: None,
        };
        let attribute = answered(&answer, |text| text);
        let [(_, messages)] = &*texts(&[attribute]) else { unreachable!() };
        assert_eq!(messages[0]["finish_reason"], "stop");
        assert_eq!(messages[0]["parts"][0]["content"].as_str().unwrap().len(), MAX_TEXT);
    }
}
