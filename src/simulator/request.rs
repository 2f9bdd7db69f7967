//! The requests a client sends, read as far as the simulator needs them.
//!
//! Text is borrowed from the body. Fields that play no part in an answer are named all the same,
//! because Gemini refuses the ones it does not know.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::json::parse;
use super::refusal::Refusal;
use super::repeated::{OneOrMany, many};
use super::tier::Tier;
use super::tokens::tokens;

/// The largest input, in tokens, of today's models.
const MAX_INPUT_TOKENS: u64 = 1_048_576;

/// What a picture or another file costs, in tokens: Google's documented price of a small picture.
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

/// One message, or what is to be embedded.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    parts: Option<OneOrMany<Part<'a>>>,
}

/// A piece of a content.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "fields without a part in the answer are named to be accepted")]
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
#[expect(dead_code, reason = "fields without a part in the answer are named to be accepted")]
pub(super) struct GenerationConfig<'a> {
    #[serde(borrow, alias = "response_mime_type")]
    pub response_mime_type: Option<Text<'a>>,
    /// In Gemini's own dialect.
    #[serde(borrow, alias = "response_schema")]
    pub response_schema: Option<&'a RawValue>,
    /// In JSON Schema.
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

/// A string that is borrowed unless it holds escapes. Serde borrows a `Cow` only when it is not
/// inside an `Option`, hence the wrapper.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl<'a> GenerateContentRequest<'a> {
    /// Reads a body and refuses what Gemini refuses, except for the schemas.
    pub fn parse(body: &'a [u8]) -> Result<Self, Refusal> {
        parse::<Self>(body)?.checked()
    }

    /// A request of these contents and nothing else.
    pub fn of_contents(contents: Vec<Content<'a>>) -> Self {
        Self { contents: Some(OneOrMany::Many(contents)), ..Self::default() }
    }

    /// The request, unless Gemini refuses its contents.
    pub fn checked(self) -> Result<Self, Refusal> {
        self.check_contents()?;
        if self.input_tokens() > MAX_INPUT_TOKENS {
            return Err(Refusal::invalid_argument(format!(
                "The input token count exceeds the maximum number of tokens allowed \
                 ({MAX_INPUT_TOKENS})."
            )));
        }
        Ok(self)
    }

    fn check_contents(&self) -> Result<(), Refusal> {
        let contents = many(&self.contents);
        if contents.is_empty() {
            return Err(Refusal::rules(&[
                "GenerateContentRequest.contents: contents is not specified".to_owned(),
            ]));
        }
        let without_parts = contents.iter().position(|content| many(&content.parts).is_empty());
        match without_parts {
            None => Ok(()),
            Some(index) => Err(Refusal::rules(&[format!(
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
    pub fn tier(&self) -> Result<Tier, Refusal> {
        self.service_tier.as_ref().map_or(Ok(Tier::Standard), |tier| Tier::parse(&tier.0))
    }

    /// The input tokens; at least one.
    pub fn input_tokens(&self) -> u64 {
        let contents = many(&self.contents).iter().chain(&self.system_instruction);
        let of_contents: u64 = contents.map(Content::tokens).sum();
        of_contents.max(1) + self.tools.map_or(0, |tools| tokens(tools.get()))
    }

    /// Whether the answer is to be JSON.
    pub fn wants_json(&self) -> bool {
        self.mime_type() == Some("application/json")
    }

    /// Whether the answer is to be one of the schema's `enum` without the quotes of JSON.
    pub fn wants_enum(&self) -> bool {
        self.mime_type() == Some("text/x.enum")
    }

    fn mime_type(&self) -> Option<&str> {
        self.generation_config.as_ref()?.response_mime_type.as_ref().map(|text| &*text.0)
    }

    /// The `generationConfig`, when there is one.
    pub fn generation_config(&self) -> Option<&GenerationConfig<'a>> {
        self.generation_config.as_ref()
    }
}

/// What the body of a `countTokens` call costs, in tokens.
pub(super) fn count_tokens(body: &[u8]) -> Result<u64, Refusal> {
    let request: CountTokensRequest<'_> = parse(body)?;
    match (&request.generate_content_request, many(&request.contents)) {
        (Some(request), _) => Ok(request.input_tokens()),
        (None, []) => Err(Refusal::rules(&[
            "CountTokensRequest.contents: contents is not specified".to_owned(),
        ])),
        (None, contents) => Ok(contents.iter().map(Content::tokens).sum()),
    }
}

impl<'a> Content<'a> {
    /// A content of these parts.
    pub fn new(role: &'a str, parts: Vec<Part<'a>>) -> Self {
        let role = Some(Text(Cow::Borrowed(role)));
        Self { role, parts: Some(OneOrMany::Many(parts)) }
    }

    /// The texts of its parts as one.
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

    /// What it costs, in tokens.
    fn tokens(&self) -> u64 {
        many(&self.parts).iter().map(Part::tokens).sum()
    }
}

impl<'a> Part<'a> {
    /// A part that is a text.
    pub fn of_text(text: Text<'a>) -> Self {
        Self { text: Some(text), ..Self::default() }
    }

    /// A part that is a picture or another file.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(body: &str) -> String {
        let refusal = GenerateContentRequest::parse(body.as_bytes()).err().expect("refused");
        let body: serde_json::Value = serde_json::from_slice(refusal.body()).expect("JSON");
        body["error"]["message"].as_str().expect("a message").to_owned()
    }

    #[test]
    fn the_prompt_is_the_last_text_that_is_not_the_models() {
        let body = json!({"contents": [
            {"role": "user", "parts": [{"text": "first"}]},
            {"role": "user", "parts": [{"text": "one, "}, {"inline_data": {}}, {"text": "two, "},
                {"text": "three"}]},
            {"role": "model", "parts": [{"text": "mine"}]},
        ]})
        .to_string();
        let request = GenerateContentRequest::parse(body.as_bytes()).expect("valid");
        assert_eq!(request.prompt(), "one, two, three");
    }

    #[test]
    fn a_plain_prompt_is_borrowed_from_the_body() {
        let body = br#"{"contents": [{"parts": [{"text": "plain"}]}]}"#;
        let request = GenerateContentRequest::parse(body).expect("valid");
        let Some(OneOrMany::Many(contents)) = &request.contents else { panic!("a list") };
        let part = &many(&contents[0].parts)[0];
        assert!(matches!(part.text, Some(Text(Cow::Borrowed("plain")))));
    }

    #[test]
    fn both_spellings_nulls_and_lone_objects_are_taken() {
        let body = json!({
            "contents": {"parts": {"text": "hello"}},
            "system_instruction": {"parts": {"text": "Be terse."}},
            "generationConfig": {"max_output_tokens": 5, "responseMimeType": null},
            "tools": null,
        })
        .to_string();
        let request = GenerateContentRequest::parse(body.as_bytes()).expect("valid");
        assert_eq!(request.prompt(), "hello");
        assert_eq!(request.generation_config().and_then(|c| c.max_output_tokens), Some(5));
        assert_eq!(request.input_tokens(), 2 + 3);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_place() {
        let unknown = |name: &str, place: &str| {
            format!(
                "Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."
            )
        };
        assert_eq!(refusal(r#"{"response_schema": {}}"#), unknown("response_schema", ""));
        assert_eq!(
            refusal(r#"{"generationConfig": {"responseFormat": {}}}"#),
            unknown("responseFormat", " at 'generation_config'")
        );
        assert_eq!(
            refusal(r#"{"contents": [{"parts": [{"text": "a"}, {"txt": "b"}]}]}"#),
            unknown("txt", " at 'contents[0].parts[1]'")
        );
    }

    #[test]
    fn missing_contents_and_parts_are_refused() {
        for body in ["{}", r#"{"contents": []}"#, r#"{"contents": null}"#] {
            assert_eq!(
                refusal(body),
                "* GenerateContentRequest.contents: contents is not specified\n"
            );
        }
        assert_eq!(
            refusal(r#"{"contents": [{"parts": []}]}"#),
            "* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.\n"
        );
    }

    #[test]
    fn a_body_that_is_no_json_is_refused() {
        assert!(refusal("{\"contents\"").starts_with("Invalid JSON payload received."));
        assert!(refusal("").starts_with("Invalid JSON payload received."));
    }

    #[test]
    fn count_tokens_takes_contents_or_a_whole_request() {
        let contents = br#"{"contents": [{"parts": [{"text": "12345"}]}]}"#;
        assert_eq!(count_tokens(contents).ok(), Some(2));
        let whole = br#"{"generateContentRequest": {"model": "models/gemini-a",
            "contents": [{"parts": [{"text": "12345"}]}]}}"#;
        assert_eq!(count_tokens(whole).ok(), Some(2));
        assert!(count_tokens(b"{}").is_err());
    }
}
