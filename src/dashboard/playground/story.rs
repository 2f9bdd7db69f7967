//! A story, shown as one: cover, characters, chapters, and the scenes in order with their script.

use std::collections::{HashMap, HashSet};

use maud::{Markup, html};

use crate::dashboard::format;
use crate::generation::cinematic::{Chapter, CheckedStory, Gender, Scene, Story, YesOrNo};

/// How many scenes, chapters and characters are shown.
const MOST_SHOWN: usize = 500;

fn text(text: &str) -> Markup {
    html! { bdi { (format::long(text)) } }
}

/// Shows a story.
pub(super) fn story(checked: &CheckedStory) -> Markup {
    let CheckedStory { story, warnings } = checked;
    html! {
        article.story {
            (cover(story))
            @if !warnings.is_empty() {
                div.alert role="note" {
                    p { "The story refers to what it does not have:" }
                    ul { @for warning in warnings { li { (text(warning)) } } }
                }
            }
            (characters(story))
            @for (chapter, scenes) in chapters(story) {
                section.chapter {
                    h3 {
                        @match chapter {
                            Some(chapter) => {
                                "Chapter " (chapter.chapter_number) ": " (text(&chapter.chapter_name))
                            }
                            None => "Scenes without a chapter",
                        }
                    }
                    ol.scenes { @for one in scenes { (scene(one, language(story))) } }
                }
            }
            (publication(story))
        }
    }
}

fn cover(story: &Story) -> Markup {
    let gender = match story.narrator_gender {
        Gender::Male => "male",
        Gender::Female => "female",
        Gender::Neutral => "neutral",
    };
    html! {
        header.cover {
            p.label { "Cover" }
            h2 { (text(&story.story_title)) }
            p { (text(&story.cover_image_description)) }
            @if !story.cover_image_characters.is_empty() {
                p.note { "With " (text(&story.cover_image_characters.join(", "))) }
            }
            p.note {
                "Told by " (text(&story.narrator_name)) " (" (gender) " voice "
                code { (text(&story.narrator_voice_id)) } ") in "
                code { (text(&story.scene_audio_language)) }
            }
            p.note { "Style: " (text(&story.illustration_style)) }
        }
    }
}

fn characters(story: &Story) -> Markup {
    html! {
        section {
            h3 { "Characters" }
            ul.characters {
                @for character in story.character_list.iter().take(MOST_SHOWN) {
                    li {
                        strong { (text(&character.character_name)) }
                        p { (text(&character.character_image_description)) }
                    }
                }
            }
        }
    }
}

/// The chapters with their scenes, and the scenes that belong to none. Each scene is shown once, however
/// often chapters name it.
fn chapters(story: &Story) -> Vec<(Option<&Chapter>, Vec<&Scene>)> {
    let by_number: HashMap<i64, &Scene> =
        story.scene_list.iter().map(|scene| (scene.scene_number, scene)).collect();
    let mut shown = HashSet::new();
    let mut left = MOST_SHOWN;
    let mut chapters = Vec::new();
    for chapter in story.chapter_list.iter().take(MOST_SHOWN) {
        let scenes = chapter.chapter_scene_list.iter();
        let scenes = scenes.filter_map(|number| by_number.get(number).copied());
        let scenes = scenes.filter(|scene| shown.insert(scene.scene_number));
        let scenes: Vec<_> = scenes.take(left).collect();
        left -= scenes.len();
        chapters.push((Some(chapter), scenes));
    }
    let others = story.scene_list.iter().filter(|scene| !shown.contains(&scene.scene_number));
    let others: Vec<_> = others.take(left).collect();
    if !others.is_empty() {
        chapters.push((None, others));
    }
    chapters
}

/// The language of the script, if it is written as one.
fn language(story: &Story) -> Option<&str> {
    let language = &*story.scene_audio_language;
    let is_part = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let first = language.split('-').next().unwrap_or_default();
    let is_tag = (2..=3).contains(&first.len()) && language.split('-').all(is_part);
    (is_tag && language.len() <= 35).then_some(language)
}

fn scene(scene: &Scene, language: Option<&str>) -> Markup {
    let major = Some(&scene.scene_major_character).filter(|name| !name.is_empty());
    let names = major.into_iter().chain(&scene.scene_other_characters).cloned();
    let names = names.collect::<Vec<_>>().join(", ");
    html! {
        li.scene {
            p.row {
                strong { (scene.scene_number) ". " (text(&scene.scene_name)) }
                @if scene.is_intentional_repetition == YesOrNo::Yes { span.chip.idle { "repetition" } }
            }
            blockquote lang=[language] { (text(&scene.scene_audio_script)) }
            p.note { (text(&scene.scene_image_description)) }
            @if !names.is_empty() { p.note { "With " (text(&names)) } }
        }
    }
}

fn publication(story: &Story) -> Markup {
    html! {
        section {
            h3 { "Publication" }
            dl.facts {
                div { dt { "Video" } dd { (text(&story.youtube_video_title)) } }
                div { dt { "Description" } dd { (text(&story.youtube_video_description)) } }
                div { dt { "Hashtags" } dd { (text(&story.youtube_video_hashtags)) } }
                div { dt { "Post" } dd { (text(&story.tweet)) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scene_of(number: i64) -> serde_json::Value {
        json!({
            "scene_number": number, "scene_name": format!("Scene {number}"),
            "scene_image_description": "A <b>storm</b>", "scene_major_character": "Ada",
            "scene_other_characters": ["Bo"], "scene_audio_script": "Once\nupon",
            "is_intentional_repetition": "no"
        })
    }

    #[test]
    fn scenes_are_shown_once_in_the_order_of_the_chapters_and_none_is_lost() {
        let story: Story = serde_json::from_value(json!({
            "illustration_style": "", "story_title": "<script>", "youtube_video_title": "",
            "youtube_video_description": "", "youtube_video_hashtags": "",
            "cover_image_description": "", "narrator_name": "", "narrator_gender": "neutral",
            "narrator_voice_id": "", "cover_image_characters": [], "character_list": [],
            "chapter_list": [
                {"chapter_number": 1, "chapter_name": "One", "chapter_scene_list": [3, 1, 9]},
                {"chapter_number": 2, "chapter_name": "Two", "chapter_scene_list": vec![3; 900]},
            ],
            "scene_list": [scene_of(1), scene_of(2), scene_of(3)],
            "scene_audio_language": "en", "tweet": ""
        }))
        .unwrap();
        let numbers: Vec<Vec<i64>> = chapters(&story)
            .iter()
            .map(|(_, scenes)| scenes.iter().map(|scene| scene.scene_number).collect())
            .collect();
        assert_eq!(numbers, [vec![3, 1], vec![], vec![2]]);
        let html =
            super::story(&CheckedStory { story, warnings: vec!["<i>".into()] }).into_string();
        assert!(!html.contains("<script>") && !html.contains("<b>") && !html.contains("<i>"));
        assert!(html.contains("Scenes without a chapter") && html.contains("Once\nupon"));
    }
}
