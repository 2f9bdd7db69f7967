//! The body of a `generateContent` call.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use super::InputFeatures;

/// The body of a `generateContent` call. Source: Gemini API reference, `models.generateContent`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerateContent<'a> {
    contents: Vec<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<SystemInstruction<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_config: Option<&'a Map<String, Value>>,
}

#[derive(Debug, Serialize)]
struct Content<'a> {
    role: &'static str,
    parts: Vec<Part<'a>>,
}

#[derive(Debug, Serialize)]
struct SystemInstruction<'a> {
    parts: [Part<'a>; 1],
}

#[derive(Debug, Serialize)]
struct Part<'a> {
    text: &'a str,
}

impl<'a> GenerateContent<'a> {
    /// A request with one prompt.
    pub fn ask(prompt: &'a str) -> Self {
        let contents = vec![Content { role: "user", parts: vec![Part { text: prompt }] }];
        let (system_instruction, cached_content, generation_config) = (None, None, None);
        Self { contents, system_instruction, cached_content, generation_config }
    }

    /// Sets the system instruction, unless it is blank.
    pub fn instructed(mut self, instruction: &'a str) -> Self {
        let given = !instruction.trim().is_empty();
        self.system_instruction =
            given.then_some(SystemInstruction { parts: [Part { text: instruction }] });
        self
    }

    /// Sets the cached content that precedes the prompt. Cached content has its own system
    /// instruction, and Gemini rejects a second one, so the instruction becomes the first part of the
    /// prompt instead. Source: the error message "CachedContent can not be used with GenerateContent
    /// request setting system_instruction, tools or tool_config".
    pub fn cached(mut self, cache: Option<&'a str>) -> Self {
        self.cached_content = cache;
        if cache.is_some()
            && let Some(SystemInstruction { parts: [instruction] }) = self.system_instruction.take()
            && let Some(asked) = self.contents.first_mut()
        {
            asked.parts.insert(0, instruction);
        }
        self
    }

    /// Sets `generationConfig`, unchanged.
    pub fn configured(mut self, config: Option<&'a Map<String, Value>>) -> Self {
        self.generation_config = config;
        self
    }

    /// Adds the model's answer to the last prompt, and the next prompt.
    pub fn continued(mut self, answer: &'a str, prompt: &'a str) -> Self {
        self.contents.push(Content { role: "model", parts: vec![Part { text: answer }] });
        self.contents.push(Content { role: "user", parts: vec![Part { text: prompt }] });
        self
    }

    /// The features of its text, for the token estimate.
    pub fn text(&self) -> InputFeatures {
        let instruction = self.system_instruction.iter().flat_map(|given| &given.parts);
        let parts = self.contents.iter().flat_map(|content| &content.parts);
        let text: InputFeatures =
            parts.chain(instruction).map(|part| InputFeatures::of(part.text)).sum();
        InputFeatures { has_unseen: self.cached_content.is_some(), ..text }
    }

    /// The body as it is sent.
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and JSON values can be written").into()
    }
}
