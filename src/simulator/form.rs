//! The form in which a call wants its response.

use serde_json::Value;

use super::completion::{CompletionForm, chat_completion};
use super::embeddings::{Embeddings, EmbeddingsCall};
use super::interactions::form::InteractionForm;
use super::refusal::{Envelope, ErrorResponse};
use super::request::GenerateContentRequest;
use super::response::SimulatedResponse;
use super::transmission::Framing;

/// The form in which a call wants its response.
pub(super) enum Form {
    /// As `generateContent` answers.
    Content(Framing),
    /// As OpenAI's chat completions.
    Completion(CompletionForm),
    /// As vectors instead of text.
    Embeddings(Embeddings),
    /// As the Interactions API answers.
    Interaction(InteractionForm),
    /// As one of the smaller calls answers: the function writes the body from that of the request
    /// and the response of the model.
    Other { envelope: Envelope, encode: fn(&Value, &SimulatedResponse<'_>) -> Value },
}

/// What was read from a body.
pub(super) struct SimulatedRequest<'a> {
    pub form: Form,
    /// In Gemini's shape.
    pub content: Result<GenerateContentRequest<'a>, ErrorResponse>,
}

impl<'a> SimulatedRequest<'a> {
    /// A request to `generateContent`.
    pub fn content(body: &'a [u8], framing: Framing) -> Self {
        Self { form: Form::Content(framing), content: GenerateContentRequest::parse(body) }
    }

    /// A request for embeddings.
    pub fn embeddings((embeddings, content): EmbeddingsCall<'a>) -> Self {
        Self { form: Form::Embeddings(embeddings), content }
    }

    /// A chat completion, with the model that it names.
    pub fn completion(body: &'a [u8]) -> (std::borrow::Cow<'a, str>, Self) {
        let (model, form, content) = chat_completion(body);
        (model, Self { form: Form::Completion(form), content })
    }
}

impl Form {
    /// How refusals are written.
    pub fn envelope(&self) -> Envelope {
        match self {
            Self::Content(_) => Envelope::Native,
            Self::Completion(_) => Envelope::List,
            Self::Embeddings(embeddings) if embeddings.is_openai() => Envelope::List,
            Self::Embeddings(_) => Envelope::Native,
            Self::Interaction(_) => Envelope::Interactions,
            Self::Other { envelope, .. } => *envelope,
        }
    }

    /// Whether the response is streamed.
    pub fn is_stream(&self) -> bool {
        !matches!(self.framing(), Framing::Whole)
    }

    /// As how many requests the call counts: each text to embed is one.
    pub fn requests(&self) -> u64 {
        match self {
            Self::Embeddings(embeddings) => embeddings.len().max(1) as u64,
            _ => 1,
        }
    }

    /// How the response is framed.
    pub fn framing(&self) -> Framing {
        match self {
            Self::Content(framing) => *framing,
            Self::Completion(CompletionForm { stream: true, .. }) => Framing::OpenAiEvents,
            Self::Interaction(form) if form.stream => Framing::NamedEvents,
            Self::Completion(_)
            | Self::Embeddings(_)
            | Self::Interaction(_)
            | Self::Other { .. } => Framing::Whole,
        }
    }
}
