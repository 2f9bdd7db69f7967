//! Generations that the dashboard asks for, as the administrator. They are checked, admitted and answered
//! as those of any other request.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::auth::Caller;
use super::chat::ChatFields;
use super::cinematic::StoryFields;
use super::error::ApiError;
use super::generation_request::{GenerationKind, GenerationRequest};
use super::incoming::Incoming;
use super::json;
use super::single::{enqueue, failed};
use super::structured::StructuredFields;
use crate::dispatch::CallObserver;
use crate::gateway::Gateway;
use crate::generation::cinematic::CheckedStory;
use crate::generation::{self, Generated, Generation};
use crate::memory::Share;

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A reply to a prompt.
    Chat,
    /// JSON that matches a schema.
    Structured,
    /// A story.
    Story,
}

/// What was generated.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The reply to a prompt.
    Chat(Generated<String>),
    /// JSON that matches the schema.
    Structured(Generated<Box<RawValue>>),
    /// A story.
    Story(Box<Generated<CheckedStory>>),
}

/// Generates what a body asks for, in the form of the endpoint of its kind. The server's key pays.
///
/// # Errors
/// As for the endpoint.
pub(crate) async fn ask(
    asked: Asked,
    body: &[u8],
    observer: Arc<dyn CallObserver>,
    gateway: &Gateway,
) -> Result<Reply, ApiError> {
    match asked {
        Asked::Chat => generate::<ChatFields>(body, observer, gateway).await.map(Reply::Chat),
        Asked::Structured => {
            generate::<StructuredFields>(body, observer, gateway).await.map(Reply::Structured)
        }
        Asked::Story => {
            let story = generate::<StoryFields>(body, observer, gateway).await?;
            Ok(Reply::Story(Box::new(story)))
        }
    }
}

async fn generate<K: GenerationKind>(
    body: &[u8],
    observer: Arc<dyn CallObserver>,
    gateway: &Gateway,
) -> Result<Generated<<K::Generation as Generation>::Value>, ApiError> {
    let body: GenerationRequest<K> =
        json::parse(body).map_err(|field| ApiError::invalid(vec![field]))?;
    let (caller, observer) = (Caller::admin(), Some(observer));
    let incoming = Incoming { caller, semaphore: None, body, share: Share::default(), observer };
    let (generation, call) = Box::pin(enqueue(gateway, incoming)).await?;
    let generated =
        generation::generate(&gateway.dispatcher, &gateway.offload, &call, generation).await;
    generated.map_err(|error| failed(&call, error))
}
