//! Stories for the screen.

use std::collections::HashSet;

use serde_json::Value;

pub use super::story::{Chapter, Character, Gender, Scene, Story, YesOrNo};
use super::{Defaults, InvalidField, SchemaGeneration, SchemaKind, SchemaPrompt, Schemas};
use crate::dispatch::CallKind;
use crate::gemini::Answer;

/// The field with the voices.
const VOICES: &str = "voice_id_list";

/// The kind of generation that returns a story.
#[derive(Debug)]
pub enum CinematicStory {}

/// A story that matches its schema.
#[derive(Debug)]
pub struct CheckedStory {
    /// The story.
    pub story: Story,
    /// Its references to scenes and characters that do not exist, after one attempt to correct them.
    pub warnings: Vec<String>,
}

impl SchemaKind for CinematicStory {
    const KIND: CallKind = CallKind::CinematicStoryDesign;
    type Value = CheckedStory;

    /// JSON Schema is a little wider than the type: for JSON Schema, `1.0` is an integer.
    fn value(_: &mut Answer, value: Value, _: Option<String>) -> Result<CheckedStory, Vec<String>> {
        let story: Story =
            serde_json::from_value(value).map_err(|error| vec![error.to_string()])?;
        let warnings = story.broken_references();
        Ok(CheckedStory { story, warnings })
    }

    fn flaws(story: &CheckedStory) -> Vec<String> {
        story.warnings.clone()
    }
}

impl SchemaGeneration<CinematicStory> {
    /// Checks a prompt whose schema, for these voices, is among the compiled ones.
    ///
    /// # Errors
    /// Every field that cannot be used.
    pub fn story(
        prompt: SchemaPrompt,
        voice_id_list: &[String],
        schemas: &Schemas,
        defaults: &Defaults,
    ) -> Result<Self, Vec<InvalidField>> {
        let voices = voices(voice_id_list);
        let schema = voices.and_then(|voices| schemas.story(VOICES, &voices));
        Self::check(prompt, schema, defaults)
    }
}

impl Schemas {
    /// Adds the schema of stories with one of these voices. Invalid voices are skipped here, because
    /// [`SchemaGeneration::story`] reports them.
    pub fn add_story_for(&mut self, voice_id_list: &[String]) {
        if let Ok(voices) = voices(voice_id_list) {
            self.add_story(voices);
        }
    }
}

/// The voices without repetitions, which an `enum` of JSON Schema must not have.
fn voices(list: &[String]) -> Result<Vec<String>, InvalidField> {
    if let Some(index) = list.iter().position(|voice| voice.trim().is_empty()) {
        let blank = InvalidField::blank(VOICES);
        return Err(InvalidField { path: [blank.path, vec![index.into()]].concat(), ..blank });
    }
    let mut seen = HashSet::new();
    Ok(list.iter().filter(|voice| seen.insert(*voice)).cloned().collect())
}
