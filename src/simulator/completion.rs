//! Chat completions: reading the requests of OpenAI's clients and writing their responses.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::json::parse;
use super::refusal::ErrorResponse;
use super::request::{Content, GenerateContentRequest, GenerationConfig, Part, Text};
use super::response::{Candidate, Content as Presented, PromptOutcome, SimulatedResponse, pieces};
use super::tokens::{Count, tokens};

/// Body of `chat/completions`, as far as it affects the answer.
#[derive(Deserialize)]
struct ChatCompletionRequest<'a> {
    #[serde(borrow)]
    model: Text<'a>,
    #[serde(borrow, default)]
    messages: Vec<Message<'a>>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    #[serde(borrow)]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Text<'a>,
    #[serde(borrow)]
    content: Option<MessageContent<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MessageContent<'a> {
    Text(#[serde(borrow)] Text<'a>),
    Parts(#[serde(borrow)] Vec<MessagePart<'a>>),
}

#[derive(Deserialize)]
struct MessagePart<'a> {
    /// Absent in a picture or another file.
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct ResponseFormat<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow)]
    json_schema: Option<JsonSchemaFormat<'a>>,
}

#[derive(Deserialize)]
struct JsonSchemaFormat<'a> {
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// How a chat completion is to be sent.
#[derive(Clone, Copy, Default)]
pub(super) struct CompletionForm {
    pub stream: bool,
    /// Whether the last chunk of a stream has the usage.
    pub include_usage: bool,
}

/// A request by OpenAI's client: the model, the form of the response and the request in Gemini's
/// shape.
pub(super) type CompletionRequest<'a> =
    (Cow<'a, str>, CompletionForm, Result<GenerateContentRequest<'a>, ErrorResponse>);

/// Reads the body of `chat/completions`.
pub(super) fn chat_completion(body: &[u8]) -> CompletionRequest<'_> {
    match parse::<ChatCompletionRequest<'_>>(body) {
        Ok(mut request) => {
            let model = std::mem::take(&mut request.model.0);
            (model, request.form(), request.into_generation())
        }
        Err(refusal) => (Cow::default(), CompletionForm::default(), Err(refusal)),
    }
}

impl<'a> ChatCompletionRequest<'a> {
    fn form(&self) -> CompletionForm {
        let include_usage = self.stream_options.as_ref().is_some_and(|o| o.include_usage);
        CompletionForm { stream: self.stream == Some(true), include_usage }
    }

    /// The request in Gemini's shape, unless Gemini refuses it.
    fn into_generation(self) -> Result<GenerateContentRequest<'a>, ErrorResponse> {
        let (mut instructions, mut contents) = (Vec::new(), Vec::new());
        for Message { role, content } in self.messages {
            let parts = parts(content);
            match &*role.0 {
                "system" | "developer" => instructions.extend(parts),
                "assistant" => contents.push(Content::new("model", parts)),
                _ => contents.push(Content::new("user", parts)),
            }
        }
        let mut config = GenerationConfig::default();
        config.max_output_tokens = self.max_completion_tokens.or(self.max_tokens);
        if let Some(format) = self.response_format {
            format.set(&mut config);
        }
        let mut request = GenerateContentRequest::of_contents(contents);
        request.generation_config = Some(config);
        request.tools = self.tools;
        request.service_tier = self.service_tier;
        request.system_instruction =
            (!instructions.is_empty()).then(|| Content::new("user", instructions));
        request.checked()
    }
}

impl<'a> ResponseFormat<'a> {
    fn set(self, config: &mut GenerationConfig<'a>) {
        if matches!(&*self.r#type.0, "json_object" | "json_schema") {
            config.response_mime_type = Some(Text(Cow::Borrowed("application/json")));
            config.response_json_schema = self.json_schema.and_then(|format| format.schema);
        }
    }
}

/// At least one part: a message of the model that only calls functions has no content.
fn parts(content: Option<MessageContent<'_>>) -> Vec<Part<'_>> {
    match content {
        None => vec![Part::of_text(Text(Cow::Borrowed("")))],
        Some(MessageContent::Text(text)) => vec![Part::of_text(text)],
        Some(MessageContent::Parts(parts)) => parts
            .into_iter()
            .map(|part| part.text.map_or_else(Part::of_file, Part::of_text))
            .collect(),
    }
}

/// The response in one body.
pub(super) fn completion(answer: &SimulatedResponse<'_>) -> Bytes {
    let (message, cost) = match &answer.outcome {
        PromptOutcome::Candidate(Candidate { content: Presented::Parts { .. }, text, .. }) => {
            (Some(json!({"role": "assistant", "content": text})), tokens(text))
        }
        PromptOutcome::Candidate(Candidate { content: Presented::WithoutParts, .. }) => {
            (Some(json!({"role": "assistant"})), 0)
        }
        PromptOutcome::Candidate(Candidate { content: Presented::Missing, .. })
        | PromptOutcome::Blocked(_) => (None, 0),
    };
    let mut choice = json!({"index": 0, "finish_reason": finish_reason(&answer.outcome)});
    if let Some(message) = message {
        choice["message"] = message;
    }
    let mut body = envelope(answer, "chat.completion", choice);
    body["usage"] = usage(answer, cost);
    body.to_string().into()
}

/// The response in at most so many chunks. The last one has the finish reason and, if requested,
/// the usage.
pub(super) fn completion_chunks(
    answer: &SimulatedResponse<'_>,
    count: usize,
    include_usage: bool,
) -> Vec<Bytes> {
    let texts = match &answer.outcome {
        PromptOutcome::Candidate(Candidate { content: Presented::Parts { .. }, text, .. }) => {
            pieces(text, count)
        }
        _ => vec![""],
    };
    let mut sent = Count::default();
    let chunk = |(index, text): (usize, &&str)| {
        sent.add(text);
        let mut choice = json!({"index": 0, "delta": {"role": "assistant", "content": text}});
        let is_last = index + 1 == texts.len();
        if is_last {
            choice["finish_reason"] = finish_reason(&answer.outcome).into();
        }
        let mut body = envelope(answer, "chat.completion.chunk", choice);
        if is_last && include_usage {
            body["usage"] = usage(answer, sent.tokens());
        }
        Bytes::from(body.to_string())
    };
    texts.iter().enumerate().map(chunk).collect()
}

fn envelope(answer: &SimulatedResponse<'_>, object: &str, choice: Value) -> Value {
    json!({
        "id": answer.response_id,
        "object": object,
        "created": Timestamp::now().as_second(),
        "model": answer.model,
        "choices": [choice],
    })
}

/// Thoughts count in the total only, as recorded.
fn usage(answer: &SimulatedResponse<'_>, completion_tokens: u64) -> Value {
    let thoughts = answer.thoughts().unwrap_or_default();
    json!({
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": answer.prompt_tokens + completion_tokens + thoughts,
    })
}

/// The finish reason in OpenAI's terms. Withheld content has a reason such as `content_filter:
/// SAFETY`. `None` where the response does not say.
fn finish_reason(outcome: &PromptOutcome<'_>) -> Option<String> {
    let reason = match outcome {
        PromptOutcome::Candidate(candidate) => candidate.finish_reason?,
        PromptOutcome::Blocked(reason) => reason,
    };
    Some(match (reason, outcome) {
        ("STOP", PromptOutcome::Candidate(_)) => "stop".to_owned(),
        ("MAX_TOKENS", PromptOutcome::Candidate(_)) => "length".to_owned(),
        _ => format!("content_filter: {reason}"),
    })
}
