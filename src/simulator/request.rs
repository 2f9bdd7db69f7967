//! Reading requests.
//!
//! Text is borrowed from the body. Fields that do not affect the answer are declared too, because
//! Gemini refuses unknown fields.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::json::parse;
use super::refusal::ErrorResponse;
use super::repeated::{OneOrMany, many};
use super::tier::ServiceTier;
use super::tokens::tokens;

/// The largest input, in tokens. Source: Gemini API docs, models.
const MAX_INPUT_TOKENS: u64 = 1_048_576;

/// The tokens of a file: those of a small image. Source: Gemini API docs, tokens.
const TOKENS_PER_FILE: u64 = 258;

/// Body of `generateContent` and `streamGenerateContent`, in camelCase or snake_case. Other
/// generating calls are converted to it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "fields that do not affect the answer are declared so that they are accepted"
)]
pub(super) struct GenerateContentRequest<'a> {
    #[serde(borrow)]
    contents: Option<OneOrMany<Content<'a>>>,
    #[serde(borrow, alias = "system_instruction")]
    pub system_instruction: Option<Content<'a>>,
    #[serde(borrow, alias = "generation_config")]
    pub generation_config: Option<GenerationConfig<'a>>,
    #[serde(borrow)]
    pub tools: Option<&'a RawValue>,
    #[serde(alias = "tool_config")]
    tool_config: Option<IgnoredAny>,
    #[serde(alias = "safety_settings")]
    safety_settings: Option<IgnoredAny>,
    #[serde(alias = "cached_content")]
    cached_content: Option<IgnoredAny>,
    #[serde(borrow, alias = "service_tier")]
    pub service_tier: Option<Text<'a>>,
    /// Continues an answer that ended with `CONTINUATION`.
    #[serde(borrow, alias = "continuation_token")]
    pub continuation_token: Option<Text<'a>>,
    model: Option<IgnoredAny>,
}

/// Body of `countTokens`: either the contents or a whole request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CountTokensRequest<'a> {
    #[serde(borrow)]
    contents: Option<OneOrMany<Content<'a>>>,
    #[serde(borrow, alias = "generate_content_request")]
    generate_content_request: Option<GenerateContentRequest<'a>>,
}

/// One message, or one text to embed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    parts: Option<OneOrMany<Part<'a>>>,
}

/// A part of a content.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "fields that do not affect the answer are declared so that they are accepted"
)]
pub(super) struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(alias = "inline_data")]
    inline_data: Option<IgnoredAny>,
    #[serde(alias = "file_data")]
    file_data: Option<IgnoredAny>,
    #[serde(borrow, alias = "function_call")]
    function_call: Option<&'a RawValue>,
    #[serde(borrow, alias = "function_response")]
    function_response: Option<&'a RawValue>,
    thought: Option<IgnoredAny>,
    #[serde(alias = "thought_signature")]
    thought_signature: Option<IgnoredAny>,
    #[serde(alias = "executable_code")]
    executable_code: Option<IgnoredAny>,
    #[serde(alias = "code_execution_result")]
    code_execution_result: Option<IgnoredAny>,
    #[serde(alias = "tool_call")]
    tool_call: Option<IgnoredAny>,
    #[serde(alias = "tool_response")]
    tool_response: Option<IgnoredAny>,
    #[serde(alias = "video_metadata")]
    video_metadata: Option<IgnoredAny>,
    #[serde(alias = "media_resolution")]
    media_resolution: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "fields that do not affect the answer are declared so that they are accepted"
)]
pub(super) struct GenerationConfig<'a> {
    #[serde(borrow, alias = "response_mime_type")]
    pub response_mime_type: Option<Text<'a>>,
    /// A schema in Gemini's own dialect.
    #[serde(borrow, alias = "response_schema")]
    pub response_schema: Option<&'a RawValue>,
    /// A JSON Schema.
    #[serde(borrow, alias = "response_json_schema", alias = "_responseJsonSchema")]
    pub response_json_schema: Option<&'a RawValue>,
    #[serde(alias = "max_output_tokens")]
    pub max_output_tokens: Option<u64>,
    #[serde(alias = "candidate_count")]
    candidate_count: Option<IgnoredAny>,
    #[serde(alias = "stop_sequences")]
    stop_sequences: Option<IgnoredAny>,
    temperature: Option<f64>,
    #[serde(alias = "top_p")]
    top_p: Option<f64>,
    #[serde(alias = "top_k")]
    top_k: Option<f64>,
    seed: Option<i64>,
    #[serde(alias = "presence_penalty")]
    presence_penalty: Option<f64>,
    #[serde(alias = "frequency_penalty")]
    frequency_penalty: Option<f64>,
    #[serde(alias = "response_logprobs")]
    response_logprobs: Option<bool>,
    logprobs: Option<i64>,
    #[serde(alias = "response_modalities")]
    response_modalities: Option<IgnoredAny>,
    #[serde(alias = "thinking_config")]
    thinking_config: Option<IgnoredAny>,
    #[serde(alias = "media_resolution")]
    media_resolution: Option<IgnoredAny>,
    #[serde(alias = "speech_config")]
    speech_config: Option<IgnoredAny>,
    #[serde(alias = "image_config")]
    image_config: Option<IgnoredAny>,
}

/// A string that is borrowed unless it has escapes. Serde does not borrow a `Cow` inside an
/// `Option`, hence the wrapper.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl<'a> GenerateContentRequest<'a> {
    /// Reads a body and refuses what Gemini refuses, except for the schemas.
    pub fn parse(body: &'a [u8]) -> Result<Self, ErrorResponse> {
        parse::<Self>(body)?.checked()
    }

    /// A request with only these contents.
    pub fn of_contents(contents: Vec<Content<'a>>) -> Self {
        Self { contents: Some(OneOrMany::Many(contents)), ..Self::default() }
    }

    /// The request, unless Gemini refuses its contents.
    pub fn checked(self) -> Result<Self, ErrorResponse> {
        self.check_contents()?;
        if self.input_tokens() > MAX_INPUT_TOKENS {
            return Err(ErrorResponse::invalid_argument(format!(
                "The input token count exceeds the maximum number of tokens allowed \
                 ({MAX_INPUT_TOKENS})."
            )));
        }
        Ok(self)
    }

    fn check_contents(&self) -> Result<(), ErrorResponse> {
        let contents = many(&self.contents);
        if contents.is_empty() {
            return Err(ErrorResponse::rules(&[
                "GenerateContentRequest.contents: contents is not specified".to_owned(),
            ]));
        }
        let without_parts = contents.iter().position(|content| many(&content.parts).is_empty());
        match without_parts {
            None => Ok(()),
            Some(index) => Err(ErrorResponse::rules(&[format!(
                "GenerateContentRequest.contents[{index}].parts: contents.parts must not be empty."
            )])),
        }
    }

    /// The text of the last content that is not the model's.
    pub fn prompt(&self) -> Cow<'_, str> {
        let of_model = |content: &&Content<'_>| content.role.as_ref().is_some_and(Text::is_model);
        let last = many(&self.contents).iter().rfind(|content| !of_model(content));
        last.map_or(Cow::Borrowed(""), Content::text)
    }

    /// The text of every content.
    pub fn texts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        many(&self.contents).iter().map(Content::text)
    }

    /// The tier that was requested.
    pub fn tier(&self) -> Result<ServiceTier, ErrorResponse> {
        let Some(Text(name)) = &self.service_tier else { return Ok(ServiceTier::Standard) };
        ServiceTier::parse(name).ok_or_else(|| {
            ErrorResponse::invalid_argument(format!("Invalid value at 'service_tier', \"{name}\""))
        })
    }

    /// The input tokens; at least one.
    pub fn input_tokens(&self) -> u64 {
        let contents = many(&self.contents).iter().chain(&self.system_instruction);
        let of_contents: u64 = contents.map(Content::tokens).sum();
        of_contents.max(1) + self.tools.map_or(0, |tools| tokens(tools.get()))
    }

    /// Whether JSON is requested.
    pub fn wants_json(&self) -> bool {
        self.mime_type() == Some("application/json")
    }

    /// Whether a value of the schema's `enum` is requested, without JSON quotes.
    pub fn wants_enum(&self) -> bool {
        self.mime_type() == Some("text/x.enum")
    }

    fn mime_type(&self) -> Option<&str> {
        self.generation_config.as_ref()?.response_mime_type.as_ref().map(|text| &*text.0)
    }

    /// The `generationConfig`, if any.
    pub fn generation_config(&self) -> Option<&GenerationConfig<'a>> {
        self.generation_config.as_ref()
    }
}

/// Counts the tokens of a `countTokens` body.
pub(super) fn count_tokens(body: &[u8]) -> Result<u64, ErrorResponse> {
    let request: CountTokensRequest<'_> = parse(body)?;
    match (&request.generate_content_request, many(&request.contents)) {
        (Some(request), _) => Ok(request.input_tokens()),
        (None, []) => Err(ErrorResponse::rules(&[
            "CountTokensRequest.contents: contents is not specified".to_owned(),
        ])),
        (None, contents) => Ok(contents.iter().map(Content::tokens).sum()),
    }
}

impl<'a> Content<'a> {
    /// A content with these parts.
    pub fn new(role: &'a str, parts: Vec<Part<'a>>) -> Self {
        let role = Some(Text(Cow::Borrowed(role)));
        Self { role, parts: Some(OneOrMany::Many(parts)) }
    }

    /// The joined texts of its parts.
    fn text(&self) -> Cow<'_, str> {
        let mut texts = many(&self.parts).iter().filter_map(|part| part.text.as_ref());
        match (texts.next(), texts.next()) {
            (None, _) => Cow::Borrowed(""),
            (Some(only), None) => Cow::Borrowed(&only.0),
            (Some(first), Some(second)) => {
                let rest = texts.map(|text| text.0.as_ref());
                Cow::Owned([&*first.0, &*second.0].into_iter().chain(rest).collect())
            }
        }
    }

    /// The tokens of the content.
    fn tokens(&self) -> u64 {
        many(&self.parts).iter().map(Part::tokens).sum()
    }
}

impl<'a> Part<'a> {
    /// A text part.
    pub fn of_text(text: Text<'a>) -> Self {
        Self { text: Some(text), ..Self::default() }
    }

    /// A file part.
    pub fn of_file() -> Self {
        Self { inline_data: Some(IgnoredAny), ..Self::default() }
    }

    fn tokens(&self) -> u64 {
        let text = self.text.as_ref().map_or(0, |text| tokens(&text.0));
        let raw = [self.function_call, self.function_response];
        let calls: u64 = raw.into_iter().flatten().map(|value| tokens(value.get())).sum();
        let files = self.inline_data.iter().len() + self.file_data.iter().len();
        text + calls + files as u64 * TOKENS_PER_FILE
    }
}

impl Text<'_> {
    fn is_model(&self) -> bool {
        self.0 == "model"
    }
}
