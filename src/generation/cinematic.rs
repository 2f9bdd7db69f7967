//! Stories for the screen.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::question::{Fault, SchemaPrompt, SchemaQuestion};
pub use super::story::{Chapter, Character, Gender, Scene, Story, YesOrNo};
use super::structured::MESSAGE;
use super::{
    Credentials, Generation, InvalidField, Misfit, Preparation, Request, Schemas, Terms, Unusable,
};
use crate::dispatch::CallKind;
use crate::gemini::{Answer, InputFeatures, Model, Usage};
use crate::schema::Work;

/// Asks the model for a story.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "user_content": "A lighthouse keeper's daughter befriends a storm.",
    "system_prompt": "Design a story for children in five scenes.",
    "voice_id_list": ["voice-amber", "voice-basil"]
}))]
pub struct StoryRequest {
    /// What the story is made from. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    user_content: String,
    /// How the model is to tell it. Not blank.
    #[schema(min_length = 1, pattern = r"\S")]
    system_prompt: String,
    /// The voices there are; the narrator's is one of them. Empty counts as absent.
    #[schema(value_type = Option<Vec<VoiceId>>)]
    voice_id_list: Option<Vec<String>>,
    /// Such as `gemini-3.8-flash` or `tunedModels/x`; else the server's default.
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
    /// Gemini's `generationConfig`, as given; the schema and the MIME type are the service's.
    #[schema(value_type = Option<Object>)]
    generation_config: Option<Map<String, Value>>,
}

/// The identifier of a voice. Not blank.
#[derive(ToSchema)]
#[schema(min_length = 1, pattern = r"\S")]
#[expect(dead_code, reason = "only its documentation is used")]
struct VoiceId(String);

/// The story that the model told. It fits its schema.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoryResponse {
    /// Always true.
    success: bool,
    /// The story.
    data: Story,
    /// `Successfully generated structured output`.
    #[schema(value_type = String)]
    message: &'static str,
    /// References of the story that still lead nowhere after it was asked for once more; absent
    /// where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
    /// Why the model stopped, in Gemini's words; `STOP`, unless what it wrote is complete all the same.
    finish_reason: String,
    /// What it cost, a second call for a story that did not fit included.
    usage: Usage,
}

/// A story, checked and ready to be asked for.
#[derive(Debug)]
pub struct Cinematic(SchemaQuestion);

impl Request for StoryRequest {
    fn take_terms(&mut self) -> Terms {
        let credentials = self.credentials.take();
        Terms { credentials, external_semaphore_id: self.external_semaphore_id.take() }
    }

    fn add_schema(&self, schemas: &mut Schemas) {
        if let Ok(voices) = self.voices() {
            schemas.add_story(voices);
        }
    }
}

impl Generation for Cinematic {
    const KIND: CallKind = CallKind::CinematicStoryDesign;
    type Request = StoryRequest;
    type Output = StoryResponse;

    fn prepare(
        request: StoryRequest,
        preparation: &Preparation<'_>,
    ) -> Result<Self, Vec<InvalidField>> {
        let voices = request.voices();
        let schema = voices.and_then(|voices| preparation.schemas.story(VOICES, &voices));
        SchemaPrompt {
            user_content: request.user_content,
            system_prompt: request.system_prompt,
            model: request.model,
            cache: request.cached_content,
            config: request.generation_config,
        }
        .prepare(schema, &preparation.defaults.structured_model)
        .map(Self)
    }

    fn model(&self) -> &Model {
        self.0.model()
    }

    fn ask(&self) -> Bytes {
        self.0.ask()
    }

    fn input(&self) -> InputFeatures {
        self.0.input()
    }

    fn read(&self, answer: Answer, work: &Work) -> Result<StoryResponse, Unusable<StoryResponse>> {
        let data = match self.0.check(&answer, work).and_then(|fit| story(fit.value)) {
            Ok(story) => story,
            Err(fault) => return Err(fault.of(answer)),
        };
        let warnings = data.broken_references();
        let (model, usage) = (self.0.model().clone(), answer.usage);
        let (message, violations) = (MESSAGE, warnings.clone());
        let finish_reason = answer.finish_reason;
        let output =
            StoryResponse { success: true, data, message, warnings, model, finish_reason, usage };
        if violations.is_empty() {
            return Ok(output);
        }
        let fallback = Some(output);
        Err(Unusable::Misfit(Misfit { text: answer.text, violations, usage, fallback }))
    }

    fn ask_again(&self, misfit: &Misfit<StoryResponse>) -> Bytes {
        self.0.ask_again(&misfit.text, &misfit.violations)
    }

    fn charge(output: &mut StoryResponse, usage: Usage) {
        output.usage += usage;
    }
}

/// The story in a value that fits its schema. JSON Schema is a little wider than the type: to it,
/// `1.0` is a whole number.
fn story(value: Value) -> Result<Story, Fault> {
    serde_json::from_value(value).map_err(|error| Fault::Violations(vec![error.to_string()]))
}

impl StoryRequest {
    /// The voices, each once: an enumeration of JSON Schema has no repetitions.
    fn voices(&self) -> Result<Vec<String>, InvalidField> {
        let list = self.voice_id_list.as_deref().unwrap_or_default();
        if let Some(index) = list.iter().position(|voice| voice.trim().is_empty()) {
            let blank = InvalidField::blank(VOICES);
            return Err(InvalidField { path: [blank.path, vec![index.into()]].concat(), ..blank });
        }
        let mut seen = HashSet::new();
        Ok(list.iter().filter(|voice| seen.insert(*voice)).cloned().collect())
    }
}

/// The field with the voices.
const VOICES: &str = "voice_id_list";
