//! Chats: a prompt and the model's reply, at once or as a stream.

mod stream;

use bytes::Bytes;

use super::{Defaults, Generated, Generation, InvalidField, Mismatch, ModelOptions, ReadError};
use crate::dispatch::CallKind;
use crate::gemini::{Answer, InputFeatures, Model};
use crate::schema::Work;

pub use stream::{ChatEvent, ChatStream};

/// What a caller asks, not yet checked.
#[derive(Debug)]
pub struct ChatPrompt {
    /// The prompt. Not blank.
    pub prompt: String,
    /// The system instruction, if there is one.
    pub system_prompt: Option<String>,
    /// How the model is to reply.
    pub options: ModelOptions,
}

/// A chat, checked and ready to be sent.
#[derive(Debug)]
pub struct Chat {
    model: Model,
    body: Bytes,
    input: InputFeatures,
}

impl Chat {
    /// Checks a prompt.
    ///
    /// # Errors
    /// Every field that cannot be used.
    pub fn new(prompt: &ChatPrompt, defaults: &Defaults) -> Result<Self, Vec<InvalidField>> {
        let ChatPrompt { prompt, system_prompt, options } = prompt;
        let mut errors = InvalidField::blanks(&[("prompt", prompt)]);
        let model = options.check(&defaults.chat_model, &mut errors);
        let (Some(model), []) = (model, &*errors) else { return Err(errors) };
        let content = options
            .content(prompt, system_prompt.as_deref().unwrap_or_default())
            .configured(options.generation_config.as_ref());
        Ok(Self { model, body: content.to_json(), input: content.text() })
    }

    fn reply(&self, answer: Answer) -> Generated<String> {
        let Answer { text, finish_reason, usage, .. } = answer;
        Generated { value: text, model: self.model.clone(), finish_reason, usage }
    }
}

impl Generation for Chat {
    const KIND: CallKind = CallKind::Chat;
    type Value = String;

    fn model(&self) -> &Model {
        &self.model
    }

    fn body(&self) -> Bytes {
        self.body.clone()
    }

    fn input(&self) -> InputFeatures {
        self.input
    }

    /// Any text is a valid reply.
    fn read(&self, answer: Answer, _: &Work) -> Result<Generated<String>, ReadError<Self>> {
        Ok(self.reply(answer))
    }

    fn correction(&self, _: &Mismatch<String>) -> Bytes {
        self.body()
    }
}
