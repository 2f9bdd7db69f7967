//! The body of a request for an interaction.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::simulator::refusal::ErrorResponse;
use crate::simulator::repeated::OneOrMany;
use crate::simulator::request::{Content, GenerateContentRequest, GenerationConfig, Part, Text};

/// Body of `POST /interactions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "fields that do not affect the answer are declared so that they are accepted"
)]
pub(super) struct InteractionRequest<'a> {
    #[serde(borrow)]
    pub model: Option<Text<'a>>,
    #[serde(borrow)]
    pub agent: Option<Text<'a>>,
    pub input: Option<Value>,
    #[serde(borrow)]
    pub previous_interaction_id: Option<Text<'a>>,
    pub store: Option<bool>,
    pub background: Option<bool>,
    pub stream: Option<bool>,
    #[serde(borrow)]
    system_instruction: Option<Text<'a>>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    generation_config: Option<InteractionConfig>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    pub continuation_token: Option<Text<'a>>,
    safety_settings: Option<IgnoredAny>,
    labels: Option<IgnoredAny>,
    environment: Option<IgnoredAny>,
    webhook_config: Option<IgnoredAny>,
    agent_config: Option<IgnoredAny>,
    response_mime_type: Option<IgnoredAny>,
    response_modalities: Option<IgnoredAny>,
    cached_content: Option<IgnoredAny>,
}

/// `generation_config`, as far as it affects the answer.
#[derive(Deserialize)]
struct InteractionConfig {
    max_output_tokens: Option<u64>,
}

/// One of the objects in `response_format`.
#[derive(Deserialize)]
struct ResponseFormat<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    mime_type: Option<Text<'a>>,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

impl<'a> InteractionRequest<'a> {
    /// Whether an agent is named instead of a model.
    pub fn is_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// The model or the agent, without `models/`.
    ///
    /// # Errors
    ///
    /// Refuses a request that names neither or both.
    pub fn name(&self) -> Result<&str, ErrorResponse> {
        match (&self.model, &self.agent) {
            (Some(name), None) | (None, Some(name)) => {
                Ok(name.0.strip_prefix("models/").unwrap_or(&name.0))
            }
            (None, None) => {
                Err(ErrorResponse::invalid_argument("Either model or agent is required."))
            }
            (Some(_), Some(_)) => {
                Err(ErrorResponse::invalid_argument("Only one of model and agent can be set."))
            }
        }
    }

    /// The request in Gemini's shape. A request that continues an answer without repeating the
    /// input is given the prompt that it continues.
    ///
    /// # Errors
    ///
    /// Refuses a request without input.
    pub fn into_content(
        self,
        continued: Option<String>,
    ) -> Result<GenerateContentRequest<'a>, ErrorResponse> {
        let input = self.input.or(continued.map(Value::String));
        let input = input.ok_or_else(|| ErrorResponse::invalid_argument("input is required."))?;
        let mut config = GenerationConfig::default();
        config.max_output_tokens =
            self.generation_config.and_then(|config| config.max_output_tokens);
        if let Some(format) = self.response_format {
            set_response_format(&mut config, format)?;
        }
        let mut request = GenerateContentRequest::of_contents(contents(&input));
        request.generation_config = Some(config);
        request.tools = self.tools;
        request.service_tier = self.service_tier;
        request.continuation_token = self.continuation_token;
        request.system_instruction = self
            .system_instruction
            .map(|instruction| Content::new("user", vec![Part::of_text(instruction)]));
        request.checked()
    }
}

/// Requests JSON if the format is `{"type": "text", "mime_type": "application/json", "schema"}`, alone
/// or in a list, or a schema by itself.
fn set_response_format<'a>(
    config: &mut GenerationConfig<'a>,
    raw: &'a RawValue,
) -> Result<(), ErrorResponse> {
    let formats: OneOrMany<ResponseFormat<'a>> = serde_json::from_str(raw.get())
        .map_err(|error| ErrorResponse::invalid_argument(format!("response_format: {error}")))?;
    let is_lone = matches!(formats, OneOrMany::One(_));
    for format in formats.into_vec() {
        let kind = format.r#type.as_ref().map(|kind| &*kind.0);
        let is_json = format.mime_type.is_some_and(|mime| mime.0 == "application/json");
        let is_media = matches!(kind, Some("text" | "audio" | "image" | "video"));
        if is_json || format.schema.is_some() {
            config.response_mime_type = Some(Text(Cow::Borrowed("application/json")));
            config.response_json_schema = format.schema;
        } else if is_lone && !is_media {
            config.response_mime_type = Some(Text(Cow::Borrowed("application/json")));
            config.response_json_schema = Some(raw);
        }
    }
    Ok(())
}

/// The input as contents. It is a string, a content, a list of contents or a list of steps.
pub(in crate::simulator) fn contents(input: &Value) -> Vec<Content<'static>> {
    let Value::Array(items) = input else { return contents(&Value::Array(vec![input.clone()])) };
    let mut contents = Vec::new();
    let mut loose = Vec::new();
    for item in items {
        let parts = || parts(&item["content"]);
        match item["type"].as_str() {
            Some("user_input") => contents.push(Content::new("user", parts())),
            Some("model_output") => contents.push(Content::new("model", parts())),
            Some("thought") => {}
            Some("function_call") => {
                contents.push(Content::new("model", vec![text_part(item.to_string())]));
            }
            _ => loose.push(part(item)),
        }
    }
    if !loose.is_empty() {
        contents.push(Content::new("user", loose));
    }
    contents
}

fn parts(content: &Value) -> Vec<Part<'static>> {
    match content {
        Value::Array(items) if !items.is_empty() => items.iter().map(part).collect(),
        content => vec![part(content)],
    }
}

fn part(content: &Value) -> Part<'static> {
    match (content, content["type"].as_str()) {
        (Value::String(text), _) => text_part(text.clone()),
        (_, Some("image" | "audio" | "video" | "document")) => Part::of_file(),
        (_, Some("text")) => text_part(content["text"].as_str().unwrap_or_default().to_owned()),
        (content, _) => text_part(content.to_string()),
    }
}

fn text_part(text: String) -> Part<'static> {
    Part::of_text(Text(Cow::Owned(text)))
}
