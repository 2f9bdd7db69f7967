//! Chats: a text for a text.

mod stream;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Credentials, Generation, InvalidField, Misfit, Preparation, Request, Terms, Unusable};
use crate::dispatch::CallKind;
use crate::gemini::{Answer, GenerateContent, InputFeatures, Model, Usage};
use crate::schema::Work;

pub use stream::{ChatEvent, ChatStream};

/// Asks the model for a text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "prompt": "Why is the sky blue?",
    "system_prompt": "Answer in one sentence."
}))]
pub struct ChatRequest {
    /// What is asked. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    prompt: String,
    /// What the model keeps to throughout.
    #[schema(default = "")]
    system_prompt: Option<String>,
    /// Such as `gemini-3.5-flash-lite` or `tunedModels/x`; else the server's default.
    #[schema(pattern = "^(models/)?(tunedModels/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    model: Option<String>,
    /// The caller's own key.
    credentials: Option<Credentials>,
    /// A registered semaphore to hold in addition to the global limit.
    external_semaphore_id: Option<String>,
    /// Cached content that stands in front of what is asked, by its name: `cachedContents/abc`. It
    /// belongs to the key that made it and to the model it was made for. Gemini takes no system
    /// instruction beside it: `system_prompt` becomes the first part of what is asked.
    #[schema(pattern = "^cachedContents/[A-Za-z0-9_-]{1,128}$")]
    cached_content: Option<String>,
    /// Gemini's `generationConfig`, as given: `maxOutputTokens`, `thinkingConfig`, …
    #[schema(value_type = Option<Object>)]
    generation_config: Option<Map<String, Value>>,
    /// Whether the text comes piece by piece, as server-sent events. Not in a batch.
    #[schema(default = false)]
    stream: Option<bool>,
}

/// The text that the model gave.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatResponse {
    /// Always true.
    success: bool,
    /// The text.
    response: String,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// Why the model stopped, in Gemini's words: `STOP`, `MAX_TOKENS`, … With any but `STOP` the text
    /// may not be complete.
    finish_reason: String,
    /// What it cost.
    usage: Usage,
}

/// A chat, checked and ready to be sent.
#[derive(Debug)]
pub struct Chat {
    model: Model,
    body: Bytes,
    input: InputFeatures,
}

impl ChatRequest {
    /// Takes out whether the text is to come piece by piece.
    pub fn take_stream(&mut self) -> bool {
        self.stream.take().unwrap_or_default()
    }
}

impl Request for ChatRequest {
    fn take_terms(&mut self) -> Terms {
        let credentials = self.credentials.take();
        Terms { credentials, external_semaphore_id: self.external_semaphore_id.take() }
    }
}

impl Chat {
    fn response(&self, answer: Answer) -> ChatResponse {
        let Answer { text, finish_reason, usage, .. } = answer;
        let model = self.model.clone();
        ChatResponse { success: true, response: text, model, finish_reason, usage }
    }
}

impl Generation for Chat {
    const KIND: CallKind = CallKind::Chat;
    type Request = ChatRequest;
    type Output = ChatResponse;

    fn prepare(
        request: ChatRequest,
        preparation: &Preparation<'_>,
    ) -> Result<Self, Vec<InvalidField>> {
        let mut faults = InvalidField::blanks(&[("prompt", &request.prompt)]);
        let model = Preparation::model(
            request.model.as_deref(),
            &preparation.defaults.chat_model,
            &mut faults,
        );
        if request.stream == Some(true) {
            let message = "Only a chat of its own can be streamed";
            faults.push(InvalidField::new("stream", "value_error", message));
        }
        faults.extend(InvalidField::several_candidates(request.generation_config.as_ref()));
        faults.extend(InvalidField::cache(request.cached_content.as_deref()));
        let (Some(model), []) = (model, &*faults) else { return Err(faults) };
        let question = GenerateContent::ask(&request.prompt)
            .instructed(request.system_prompt.as_deref().unwrap_or_default())
            .cached(request.cached_content.as_deref())
            .configured(request.generation_config.as_ref());
        Ok(Self { model, body: question.to_json(), input: question.text() })
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn ask(&self) -> Bytes {
        self.body.clone()
    }

    fn input(&self) -> InputFeatures {
        self.input
    }

    /// Any text is what was asked for, so no chat is ever unusable.
    fn read(&self, answer: Answer, _: &Work) -> Result<ChatResponse, Unusable<ChatResponse>> {
        Ok(self.response(answer))
    }

    fn ask_again(&self, _: &Misfit<ChatResponse>) -> Bytes {
        self.ask()
    }

    fn charge(output: &mut ChatResponse, usage: Usage) {
        output.usage += usage;
    }
}
