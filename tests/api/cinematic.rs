//! Stories: what Gemini is sent, and that the result is consistent.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Answer, Service, answer};
use crate::upstream::{Upstream, cost};

const PATH: &str = "/cinematic-story-design";

const FIELDS: [&str; 15] = [
    "illustration_style",
    "story_title",
    "youtube_video_title",
    "youtube_video_description",
    "youtube_video_hashtags",
    "cover_image_description",
    "narrator_name",
    "narrator_gender",
    "narrator_voice_id",
    "cover_image_characters",
    "character_list",
    "chapter_list",
    "scene_list",
    "scene_audio_language",
    "tweet",
];

const SCENE_FIELDS: [&str; 7] = [
    "scene_number",
    "scene_name",
    "scene_image_description",
    "scene_major_character",
    "scene_other_characters",
    "scene_audio_script",
    "is_intentional_repetition",
];

/// A consistent story.
fn story() -> Value {
    let scene = |number: u64, major: &str, others: &[&str]| {
        json!({
            "scene_number": number,
            "scene_name": format!("Scene {number}"),
            "scene_image_description": "A lighthouse in the rain, seen from the sea.",
            "scene_major_character": major,
            "scene_other_characters": others,
            "scene_audio_script": "The storm knocked, and Mira opened.",
            "is_intentional_repetition": "no",
        })
    };
    let character = |number: u64, name: &str| {
        json!({
            "character_number": number,
            "character_name": name,
            "character_image_description": "Ten years old, in a yellow raincoat.",
        })
    };
    json!({
        "illustration_style": "Watercolour in blues and greys.",
        "story_title": "The Storm's Friend",
        "youtube_video_title": "She Opened the Limiter to a Storm",
        "youtube_video_description": "A girl, a lighthouse and a storm that wants in.",
        "youtube_video_hashtags": "#lighthouse #storm",
        "cover_image_description": "Mira at the lamp, the storm at the window.",
        "narrator_name": "Old Tom",
        "narrator_gender": "male",
        "narrator_voice_id": "voice-amber",
        "cover_image_characters": ["Mira"],
        "character_list": [character(1, "Mira"), character(2, "The Storm")],
        "chapter_list": [
            {"chapter_number": 1, "chapter_name": "The knock", "chapter_scene_list": [1, 2]},
            {"chapter_number": 2, "chapter_name": "The calm", "chapter_scene_list": [3]},
        ],
        "scene_list": [
            scene(1, "Mira", &[]),
            scene(2, "The Storm", &["Mira"]),
            // A scene without characters.
            scene(3, "", &[]),
        ],
        "scene_audio_language": "en",
        "tweet": "A storm knocked. Somebody opened.",
    })
}

/// The story with the value at one JSON Pointer changed.
fn story_with(pointer: &str, value: Value) -> Value {
    let mut story = story();
    *story.pointer_mut(pointer).unwrap() = value;
    story
}

fn question() -> Value {
    json!({"user_content": "A lighthouse.", "system_prompt": "Design a story in three scenes."})
}

fn question_with_voices(voices: Value) -> Value {
    let mut question = question();
    question["voice_id_list"] = voices;
    question
}

/// The service's answer when the upstream returns these stories.
async fn answer_for(upstream: &Upstream, question: &Value) -> Answer {
    answer(Service::over(&upstream.base_url).await.post(PATH, question)).await
}

/// The schema that is sent upstream with a request.
async fn sent_schema(question: &Value) -> Value {
    let service = Service::start().await;
    let answered = answer(service.post(PATH, question)).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    let config = &service.simulator.journal()[0].body["generationConfig"];
    assert_eq!(config["responseMimeType"], "application/json");
    config["responseSchema"].clone()
}

/// The prompt of the second call, which explains what was wrong with the first answer.
fn correction(upstream: &Upstream) -> String {
    let asked = upstream.requests();
    assert_eq!(asked.len(), 2);
    asked[1]["contents"][2]["parts"][0]["text"].as_str().unwrap().to_owned()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_schema_has_every_field_in_order_and_requires_them_all() {
    let schema = sent_schema(&question()).await;
    let scene = &schema["properties"]["scene_list"]["items"];
    for (object, fields) in [(&schema, &FIELDS[..]), (scene, &SCENE_FIELDS[..])] {
        assert_eq!(keys(&object["properties"]), fields);
        assert_eq!(object["propertyOrdering"], json!(fields));
        assert_eq!(object["required"], json!(fields));
    }
    let enums = [
        (&schema["properties"]["narrator_gender"], json!(["male", "female", "neutral"])),
        (&scene["properties"]["is_intentional_repetition"], json!(["yes", "no"])),
    ];
    for (field, values) in enums {
        assert_eq!(field["enum"], values);
    }
    let voice = &schema["properties"]["narrator_voice_id"];
    assert_eq!(voice.get("enum"), None);
    insta::assert_json_snapshot!("story_schema", schema);
}

#[tokio::test]
async fn the_narrators_voice_is_one_of_the_list() {
    let schema = sent_schema(&question_with_voices(json!(["amber", "basil", "amber"]))).await;
    let voice = &schema["properties"]["narrator_voice_id"];
    assert_eq!(voice["enum"], json!(["amber", "basil"]), "each voice once");

    let schema = sent_schema(&question_with_voices(json!([]))).await;
    assert_eq!(schema["properties"]["narrator_voice_id"].get("enum"), None);
}

#[tokio::test]
async fn a_consistent_story_is_returned_unchanged() {
    let upstream = Upstream::answering([story()]).await;
    let answered = answer_for(&upstream, &question_with_voices(json!(["voice-amber", "b"]))).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    assert_eq!(answered.body["data"], story());
    assert_eq!(keys(&answered.body["data"]), FIELDS);
    assert_eq!(keys(&answered.body["data"]["scene_list"][0]), SCENE_FIELDS);
    assert_eq!(
        keys(&answered.body),
        ["success", "data", "message", "model", "model_version", "finish_reason", "usage"]
    );
    assert_eq!(answered.body["message"], "Successfully generated structured output");
    assert_eq!(upstream.requests().len(), 1);
}

/// The fields are in the schema's order, whatever order the model used.
#[tokio::test]
async fn the_data_is_in_the_storys_order() {
    let backwards: serde_json::Map<String, Value> =
        story().as_object().unwrap().clone().into_iter().rev().collect();
    let upstream = Upstream::answering([Value::Object(backwards)]).await;
    let answered = answer_for(&upstream, &question()).await;
    assert_eq!(keys(&answered.body["data"]), FIELDS);
}

#[tokio::test]
async fn a_broken_reference_is_repaired_once() {
    for (broken, complaint) in [
        (
            story_with("/chapter_list/1/chapter_scene_list", json!([3, 9])),
            "chapter 2 names scene 9, which scene_list lacks",
        ),
        (
            story_with("/scene_list/1/scene_major_character", json!("The storm")),
            "scene 2 names \"The storm\", whom character_list lacks",
        ),
        (
            story_with("/scene_list/0/scene_other_characters", json!(["Tom"])),
            "scene 1 names \"Tom\", whom character_list lacks",
        ),
        (
            story_with("/cover_image_characters", json!(["Mira", "Old Tom"])),
            "the cover names \"Old Tom\", whom character_list lacks",
        ),
        (
            story_with("/scene_list/2/scene_number", json!(1)),
            "scene_list has more than one scene_number 1",
        ),
        (
            story_with("/character_list/1/character_name", json!("Mira")),
            "character_list has more than one character_name \"Mira\"",
        ),
    ] {
        let upstream = Upstream::answering([broken, story()]).await;
        let answered = answer_for(&upstream, &question()).await;
        assert_eq!(answered.status, StatusCode::OK, "{complaint}: {answered:?}");
        assert_eq!(answered.body["data"], story(), "{complaint}");
        assert_eq!(answered.body.get("warnings"), None, "{complaint}");
        assert_eq!(answered.body["usage"]["prompt_tokens"], cost(1)[0] + cost(2)[0], "{complaint}");
        let correction = correction(&upstream);
        assert!(correction.contains(complaint), "{complaint}: {correction}");
    }
}

#[tokio::test]
async fn a_reference_that_is_still_broken_is_a_warning() {
    let lost = story_with("/chapter_list/1/chapter_scene_list", json!([9]));
    let still_lost = story_with("/chapter_list/1/chapter_scene_list", json!([8]));
    let upstream = Upstream::answering([lost, still_lost.clone()]).await;
    let answered = answer_for(&upstream, &question()).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    assert_eq!(answered.body["success"], true);
    assert_eq!(answered.body["data"], still_lost);
    let warnings = json!(["chapter 2 names scene 8, which scene_list lacks"]);
    assert_eq!(answered.body["warnings"], warnings);
    assert_eq!(answered.body["usage"]["prompt_tokens"], cost(1)[0] + cost(2)[0]);
    assert_eq!(upstream.requests().len(), 2, "one repair and no third call");
}

/// A story with a broken reference is better than no story.
#[tokio::test]
async fn a_repair_that_fails_leaves_the_first_story_with_its_warnings() {
    let lost = story_with("/cover_image_characters", json!(["Nobody"]));
    let upstream = Upstream::answering([lost.to_string(), "I would rather not.".to_owned()]).await;
    let answered = answer_for(&upstream, &question()).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    assert_eq!(answered.body["data"], lost);
    let warnings = json!(["the cover names \"Nobody\", whom character_list lacks"]);
    assert_eq!(answered.body["warnings"], warnings);
    assert_eq!(answered.body["usage"]["prompt_tokens"], cost(1)[0] + cost(2)[0]);
}

#[tokio::test]
async fn a_voice_that_is_not_in_the_list_is_repaired_or_fails() {
    let wrong = story_with("/narrator_voice_id", json!("voice-unheard"));
    let question = question_with_voices(json!(["voice-amber", "voice-basil"]));

    let upstream = Upstream::answering([wrong.clone(), story()]).await;
    let answered = answer_for(&upstream, &question).await;
    assert_eq!(answered.body["data"]["narrator_voice_id"], "voice-amber", "{answered:?}");
    let correction = correction(&upstream);
    assert!(correction.contains("at /narrator_voice_id:"), "{correction}");

    let upstream = Upstream::answering([wrong.clone(), wrong]).await;
    let failed = answer_for(&upstream, &question).await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
    assert_eq!(failed.body["code"], "schema_violation");
    let detail = failed.body["detail"].as_str().unwrap();
    assert!(detail.contains("at /narrator_voice_id:"), "{detail}");
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn every_field_of_a_request_is_validated() {
    let mut without_tweet = story();
    without_tweet.as_object_mut().unwrap().remove("tweet");
    let mut with_more = story();
    with_more["sequel"] = json!("The Storm's Return");
    for wrong in [
        without_tweet,
        with_more,
        story_with("/narrator_gender", json!("other")),
        story_with("/scene_list/0/is_intentional_repetition", json!(false)),
        story_with("/scene_list/0/scene_number", json!("1")),
        story_with("/youtube_video_hashtags", json!(["#storm"])),
    ] {
        let upstream = Upstream::answering([&wrong, &wrong]).await;
        let failed = answer_for(&upstream, &question()).await;
        assert_eq!(failed.body["code"], "schema_violation", "{wrong}");
    }
}

#[tokio::test]
async fn a_blank_voice_is_refused_with_its_location() {
    let service = Service::start().await;
    let question = question_with_voices(json!(["voice-amber", "  "]));
    let refused = answer(service.post(PATH, &question)).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.body["detail"][0]["loc"], json!(["body", "voice_id_list", 1]));

    let batch = json!({"requests": [question]});
    let refused = answer(service.post("/batch/cinematic-story-design", &batch)).await;
    let loc = json!(["body", "requests", 0, "voice_id_list", 1]);
    assert_eq!(refused.body["detail"][0]["loc"], loc);
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn each_story_of_a_batch_is_restricted_to_its_own_voices() {
    let service = Service::start().await;
    let requests: Vec<Value> =
        (0..4).map(|n| question_with_voices(json!([format!("voice-{n}")]))).collect();
    let batch = json!({"requests": requests});
    let answered = answer(service.post("/batch/cinematic-story-design", &batch)).await;
    assert_eq!(answered.body["successful_requests"], 4, "{answered:?}");
    for (index, result) in answered.body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["data"]["narrator_voice_id"], format!("voice-{index}"));
        assert_eq!(result["index"], index);
    }
}
