//! `POST /cinematic-story-design` and `POST /batch/cinematic-story-design`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::batch::{BatchRequest, BatchResponse, answer_batch};
use super::error::ApiError;
use super::generation_request::{GenerationKind, GenerationRequest};
use super::incoming::Incoming;
use super::jobs::{IdempotencyKey, JobStatus};
use super::openapi::{BatchErrors, ExternalSemaphore, GenerationErrors, Prefer};
use super::single::generate;
use super::structured::MESSAGE;
use crate::gateway::Gateway;
use crate::gemini::{Model, Usage};
use crate::generation::cinematic::{CheckedStory, CinematicStory, Story};
use crate::generation::{
    Defaults, Generated, InvalidField, ModelOptions, SchemaGeneration, SchemaPrompt, Schemas,
};
use crate::jobs::JobKind;

/// A prompt for a story.
pub(super) type StoryRequest = GenerationRequest<StoryFields>;

/// A prompt for a story.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = StoryRequest, example = json!({
    "user_content": "A lighthouse keeper's daughter befriends a storm.",
    "system_prompt": "Design a story for children in five scenes.",
    "voice_id_list": ["voice-amber", "voice-basil"]
}))]
pub(super) struct StoryFields {
    /// What the story is made from. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    user_content: String,
    /// How the model is to tell the story. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    system_prompt: String,
    /// The voices from which the narrator's is chosen. An empty list counts as absent.
    #[schema(value_type = Option<Vec<VoiceId>>)]
    voice_id_list: Option<Vec<String>>,
}

/// The identifier of a voice. Not blank.
#[derive(ToSchema)]
#[schema(min_length = 1, pattern = r"\S")]
#[expect(dead_code, reason = "only its documentation is used")]
struct VoiceId(String);

/// A story that matches its schema.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoryResponse {
    /// Always true.
    success: bool,
    /// The story.
    data: Story,
    /// `Successfully generated structured output`.
    #[schema(value_type = String)]
    message: &'static str,
    /// References to scenes and characters that the story does not have, after one attempt to correct
    /// them; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// The model that answered; null if Gemini does not say.
    #[schema(value_type = Option<String>)]
    model_version: Option<Model>,
    /// Gemini's `finishReason`: `STOP`, or another one if the story is complete nevertheless.
    finish_reason: String,
    /// The tokens that were spent, including those of a second call that corrected the first.
    usage: Usage,
}

impl GenerationKind for StoryFields {
    const JOB_KIND: JobKind = JobKind::CinematicStoryDesign;
    type Generation = SchemaGeneration<CinematicStory>;
    type Response = StoryResponse;

    fn add_schema(&self, schemas: &mut Schemas) {
        schemas.add_story_for(self.voice_id_list.as_deref().unwrap_or_default());
    }

    fn generation(
        self,
        options: ModelOptions,
        schemas: &Schemas,
        defaults: &Defaults,
    ) -> Result<Self::Generation, Vec<InvalidField>> {
        let Self { user_content, system_prompt, voice_id_list } = self;
        let prompt = SchemaPrompt { user_content, system_prompt, options };
        let voices = voice_id_list.unwrap_or_default();
        SchemaGeneration::story(prompt, &voices, schemas, defaults)
    }
}

impl From<Generated<CheckedStory>> for StoryResponse {
    fn from(generated: Generated<CheckedStory>) -> Self {
        let Generated { value: CheckedStory { story: data, warnings }, .. } = generated;
        let Generated { model, model_version, finish_reason, usage, .. } = generated;
        let (success, message) = (true, MESSAGE);
        Self { success, data, message, warnings, model, model_version, finish_reason, usage }
    }
}

/// Get a story for the screen, with characters, chapters and scenes.
#[utoipa::path(
    post,
    path = "/cinematic-story-design",
    tag = "generation",
    request_body = StoryRequest,
    responses((status = OK, description = "The story", body = StoryResponse), GenerationErrors),
    params(ExternalSemaphore),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn cinematic(
    State(gateway): State<Gateway>,
    incoming: Incoming<StoryRequest>,
) -> Result<Json<StoryResponse>, ApiError> {
    generate(&gateway, incoming).await
}

/// Get stories for many prompts, in their order.
#[utoipa::path(
    post,
    path = "/batch/cinematic-story-design",
    tag = "generation",
    request_body(
        content = BatchRequest<StoryRequest>,
        example = json!({"requests": [
            {
                "user_content": "A lighthouse keeper's daughter befriends a storm.",
                "system_prompt": "Design a story for children in five scenes.",
                "voice_id_list": ["voice-amber", "voice-basil"]
            },
            {
                "user_content": "A clockmaker repairs the night.",
                "system_prompt": "Design a story for children in five scenes."
            }
        ]})
    ),
    responses(
        (status = OK, description = "A result for each request, in the order of the requests; with \
                                     `Accept: application/x-ndjson` a line for each as soon as it \
                                     is there, and a last one with the totals", content(
            (BatchResponse<StoryResponse> = "application/json"),
            (String = "application/x-ndjson")
        )),
        (status = ACCEPTED, description = "With `Prefer: respond-async`: the batch as a job",
            body = JobStatus),
        BatchErrors
    ),
    params(ExternalSemaphore, Prefer, IdempotencyKey),
    security((), ("AdminKey" = []), ("GoogleApiKey" = []), ("BearerToken" = []))
)]
pub(super) async fn batch_cinematic(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, ApiError> {
    answer_batch::<StoryFields>(&gateway, request).await
}
