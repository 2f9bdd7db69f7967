//! Chats: a text for a text.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Credentials, Generation, InvalidField, Misfit, Preparation, Request, Terms, Unusable};
use crate::gemini::{Answer, GenerateContent, Model, TextFeatures, Usage};

/// Asks the model for a text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "prompt": "Why is the sky blue?",
    "system_prompt": "Answer in one sentence."
}))]
pub struct ChatRequest {
    /// What is asked. Not blank.
    prompt: String,
    /// What the model keeps to throughout.
    #[schema(default = "")]
    system_prompt: Option<String>,
    /// Such as `gemini-2.5-flash` or `tunedModels/x`; else the server's default.
    model: Option<String>,
    /// The caller's own key.
    credentials: Option<Credentials>,
    /// A registered semaphore to hold in addition to the global limit.
    external_semaphore_id: Option<String>,
    /// Gemini's `generationConfig`, as given: `temperature`, `maxOutputTokens`, `thinkingConfig`, …
    #[schema(value_type = Option<Object>)]
    generation_config: Option<Map<String, Value>>,
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
    /// Why the model stopped, in Gemini's words: `STOP`, `MAX_TOKENS`, …
    finish_reason: String,
    /// What it cost.
    usage: Usage,
}

/// A chat, checked and ready to be sent.
#[derive(Debug)]
pub struct Chat {
    model: Model,
    body: Bytes,
    input: TextFeatures,
}

impl Request for ChatRequest {
    fn take_terms(&mut self) -> Terms {
        let credentials = self.credentials.take();
        Terms { credentials, external_semaphore_id: self.external_semaphore_id.take() }
    }
}

impl Generation for Chat {
    const KIND: &'static str = "chat";
    type Request = ChatRequest;
    type Output = ChatResponse;

    fn prepare(
        request: ChatRequest,
        preparation: &mut Preparation<'_>,
    ) -> Result<Self, Vec<InvalidField>> {
        let mut faults = InvalidField::blanks(&[("prompt", &request.prompt)]);
        let model = Preparation::model(
            request.model.as_deref(),
            &preparation.defaults.chat_model,
            &mut faults,
        );
        let (Some(model), []) = (model, &*faults) else { return Err(faults) };
        let question = GenerateContent::ask(&request.prompt)
            .instructed(request.system_prompt.as_deref().unwrap_or_default())
            .configured(request.generation_config.as_ref());
        Ok(Self { model, body: question.to_json(), input: question.text() })
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn ask(&self) -> Bytes {
        self.body.clone()
    }

    fn input(&self) -> TextFeatures {
        self.input
    }

    /// Any text is what was asked for, so no chat is ever unusable.
    fn read(&self, answer: Answer) -> Result<ChatResponse, Unusable<ChatResponse>> {
        let Answer { text, finish_reason, usage } = answer;
        let model = self.model.clone();
        Ok(ChatResponse { success: true, response: text, model, finish_reason, usage })
    }

    fn ask_again(&self, _: &Misfit<ChatResponse>) -> Bytes {
        self.ask()
    }

    fn charge(output: &mut ChatResponse, usage: Usage) {
        output.usage += usage;
    }
}
