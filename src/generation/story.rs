//! A story for the screen. The type is the source of the schema that Gemini gets, and of the check.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

/// A story with its characters, chapters and scenes, ready to be illustrated and read aloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Story {
    /// The one visual style of every image: medium, palette, light and era, in a sentence that can
    /// be put in front of any image description.
    pub illustration_style: String,
    /// The story's own title, as on a book cover.
    pub story_title: String,
    /// A title for the video that makes people click without promising what the story does not
    /// hold; at most 100 characters.
    pub youtube_video_title: String,
    /// The text under the video: what it is about in two or three sentences, without giving the
    /// end away.
    pub youtube_video_description: String,
    /// Hashtags for the video in one line, each with #, separated by spaces.
    pub youtube_video_hashtags: String,
    /// What the cover image shows, complete in itself: subject, setting, composition, mood. No
    /// text in the image.
    pub cover_image_description: String,
    /// The narrator's name, as in the credits.
    pub narrator_name: String,
    /// The gender of the narrator's voice.
    pub narrator_gender: Gender,
    /// The identifier of the voice that suits the narrator best.
    pub narrator_voice_id: String,
    /// Who is on the cover: names as in character_list, to the letter.
    pub cover_image_characters: Vec<String>,
    /// Everybody who appears, each once.
    pub character_list: Vec<Character>,
    /// The chapters in the order of telling.
    pub chapter_list: Vec<Chapter>,
    /// All scenes of all chapters in the order of telling.
    pub scene_list: Vec<Scene>,
    /// The language of the audio scripts, as a BCP 47 tag such as en or pt-BR.
    pub scene_audio_language: String,
    /// A post that announces the story, at most 280 characters.
    pub tweet: String,
}

/// The gender of a voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Gender {
    Male,
    Female,
    Neutral,
}

/// Somebody who appears in the story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Character {
    /// Counts the characters from 1.
    pub character_number: i64,
    /// The name by which all lists refer to the character; no two are the same.
    pub character_name: String,
    /// What the character looks like, complete enough to be drawn the same way in every image:
    /// age, build, face, hair, clothes, what sets them apart.
    pub character_image_description: String,
}

/// A part of the story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chapter {
    /// Counts the chapters from 1.
    pub chapter_number: i64,
    /// The chapter's title.
    pub chapter_name: String,
    /// The chapter's scenes by scene_number, in the order of telling.
    pub chapter_scene_list: Vec<i64>,
}

/// One image with the words that are spoken over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Counts the scenes from 1 through the whole story.
    pub scene_number: i64,
    /// What the scene is called.
    pub scene_name: String,
    /// What the image shows, complete in itself: who does what, where, in which light and from
    /// where it is seen. No text in the image.
    pub scene_image_description: String,
    /// Whom the scene is about: a name as in character_list, to the letter; empty where nobody
    /// is seen.
    pub scene_major_character: String,
    /// Who else is seen: names as in character_list, to the letter.
    pub scene_other_characters: Vec<String>,
    /// What the narrator says over the image, word for word, with no directions.
    pub scene_audio_script: String,
    /// yes where the scene repeats an earlier one on purpose, else no.
    pub is_intentional_repetition: YesOrNo,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum YesOrNo {
    Yes,
    No,
}

impl Story {
    /// The JSON Schema of stories, derived from the type. The narrator's voice is one of `voices`, if there
    /// are any.
    pub fn json_schema(voices: &[String]) -> Value {
        let mut definitions = Vec::new();
        <Self as ToSchema>::schemas(&mut definitions);
        let definitions: Map<String, Value> =
            definitions.into_iter().map(|(name, schema)| (name, to_json(&schema))).collect();
        let mut schema = to_json(&<Self as PartialSchema>::schema());
        schema["$defs"] = Value::Object(definitions);
        // OpenAPI and JSON Schema keep definitions in different places. The line breaks of descriptions are
        // those of the source code.
        let text = schema.to_string().replace("#/components/schemas/", "#/$defs/");
        let text = text.replace("\\n", " ");
        let mut schema: Value =
            serde_json::from_str(&text).expect("the replacements keep it valid JSON");
        if !voices.is_empty() {
            schema["properties"]["narrator_voice_id"]["enum"] = json!(voices);
        }
        schema
    }

    /// Every reference between parts of the story whose target does not exist or is ambiguous.
    pub fn broken_references(&self) -> Vec<String> {
        let scenes: HashSet<i64> = self.scene_list.iter().map(|scene| scene.scene_number).collect();
        let characters: HashSet<&str> =
            self.character_list.iter().map(|character| &*character.character_name).collect();

        let mut broken = Vec::new();
        for number in repeated(self.scene_list.iter().map(|scene| scene.scene_number)) {
            broken.push(format!("scene_list has more than one scene_number {number}"));
        }
        for name in repeated(self.character_list.iter().map(|one| &*one.character_name)) {
            broken.push(format!("character_list has more than one character_name {name:?}"));
        }
        for chapter in &self.chapter_list {
            for number in
                chapter.chapter_scene_list.iter().filter(|number| !scenes.contains(number))
            {
                let chapter = chapter.chapter_number;
                broken.push(format!(
                    "chapter {chapter} names scene {number}, which scene_list lacks"
                ));
            }
        }
        for (place, name) in self.named_characters() {
            if !characters.contains(name) {
                broken.push(format!("{place} names {name:?}, whom character_list lacks"));
            }
        }
        broken
    }

    /// Every character that is named outside the list of characters, and where.
    fn named_characters(&self) -> impl Iterator<Item = (String, &str)> {
        let cover =
            self.cover_image_characters.iter().map(|name| ("the cover".to_owned(), &**name));
        let scenes = self.scene_list.iter().flat_map(|scene| {
            let major = Some(&*scene.scene_major_character).filter(|name| !name.is_empty());
            let others = scene.scene_other_characters.iter().map(|name| &**name);
            let place = format!("scene {}", scene.scene_number);
            major.into_iter().chain(others).map(move |name| (place.clone(), name))
        });
        cover.chain(scenes)
    }
}

fn to_json(schema: &impl Serialize) -> Value {
    serde_json::to_value(schema).expect("a schema can be written as JSON")
}

/// The items that occur more than once, each once, in the order of their second occurrence.
fn repeated<T: Copy + Eq + Hash>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = HashMap::new();
    items
        .filter(|item| {
            let count = seen.entry(*item).or_insert(0);
            *count += 1;
            *count == 2
        })
        .collect()
}
