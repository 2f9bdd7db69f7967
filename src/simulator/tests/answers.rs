//! Responses, and how markers change them.

use http::header;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_prompt_is_answered_with_itself() {
    let (status, answer) = ask(&simulator(), "What is new?").await;
    assert_eq!(status, 200);
    assert_eq!(
        answer,
        json!({
            "candidates": [{
                "content": {
                    "parts": [{"text": "Simulated answer to: What is new?"}],
                    "role": "model",
                },
                "finishReason": "STOP",
                "index": 0,
            }],
            "usageMetadata": {
                "promptTokenCount": 3, "candidatesTokenCount": 9, "totalTokenCount": 12,
                "serviceTier": "standard",
            },
            "modelVersion": "gemini-3.5-flash-lite",
            "responseId": "simulated-0",
        })
    );
}

#[tokio::test]
async fn both_versions_tuned_models_and_thinking_models_answer() {
    let simulator = simulator();
    for (path, thinks) in [
        ("/v1/models/gemini-3.8-flash", true),
        ("/v1beta/models/gemini-4-pro", true),
        ("/v1beta/models/gemma-3", false),
        ("/v1beta/tunedModels/mine", false),
    ] {
        let path = format!("{path}:generateContent");
        let (status, answer) = json_of(post(&simulator, &path, &chat("a")).await).await;
        assert_eq!(status, 200, "{path}");
        let thoughts = &answer["usageMetadata"]["thoughtsTokenCount"];
        assert_eq!(thoughts.is_u64(), thinks, "{path}");
    }
}

#[tokio::test]
async fn an_answer_can_have_a_size() {
    let simulator = Simulator::new(Options { answer_bytes: Some(1024), ..Options::default() });
    let (_, answer) = ask(&simulator, "a").await;
    assert_eq!(text_of(&answer).len(), 1024);
    assert!(text_of(&answer).starts_with("Simulated answer to: a"));
}

#[tokio::test]
async fn an_answer_ends_at_the_most_output_tokens() {
    let mut request = chat("a long question");
    request["generationConfig"] = json!({"maxOutputTokens": 3});
    let (_, answer) = json_of(post(&simulator(), FLASH, &request).await).await;
    assert_eq!(text_of(&answer), "Simulated an");
    assert_eq!(answer["candidates"][0]["finishReason"], "MAX_TOKENS");
}

#[tokio::test]
async fn a_stream_adds_up_to_the_answer() {
    let response = post(&simulator(), &format!("{STREAM}?alt=sse"), &chat("of interest")).await;
    let events: Vec<Value> = events_of(response, "\r\n\r\n")
        .await
        .iter()
        .map(|event| serde_json::from_str(&event["data: ".len()..]).expect("JSON"))
        .collect();
    assert_eq!(events.len(), 4);
    let text: String = events.iter().map(text_of).collect();
    assert_eq!(text, "Simulated answer to: of interest");
    let reasons: Vec<&Value> = events.iter().map(|e| &e["candidates"][0]["finishReason"]).collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &Value::Null, &json!("STOP")]);
    let usage = |event: &Value| event["usageMetadata"]["candidatesTokenCount"].as_u64();
    assert_eq!(events.iter().map(usage).collect::<Vec<_>>(), [Some(2), Some(4), Some(6), Some(8)]);
}

#[tokio::test]
async fn a_stream_without_events_is_an_array() {
    let (status, chunks) = json_of(post(&simulator(), STREAM, &chat("a")).await).await;
    assert_eq!(status, 200);
    let text: String = chunks.as_array().expect("an array").iter().map(text_of).collect();
    assert_eq!(text, "Simulated answer to: a");
}

#[tokio::test]
async fn json_fits_the_schema_it_was_asked_for() {
    let json_schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name"],
        "additionalProperties": false,
    });
    let simulator = simulator();
    let request = structured("responseJsonSchema", &json_schema);
    let (_, answer) = json_of(post(&simulator, FLASH, &request).await).await;
    let value: Value = serde_json::from_str(text_of(&answer)).expect("JSON");
    assert!(jsonschema::is_valid(&json_schema, &value), "{value}");
    assert_eq!(value["name"], "Simulated name for: a question");

    let schema =
        json!({"type": "ARRAY", "items": {"type": "STRING", "enum": ["x"]}, "minItems": 1});
    let request = structured("response_schema", &schema);
    let (_, answer) = json_of(post(&simulator, FLASH, &request).await).await;
    assert_eq!(text_of(&answer), r#"["x","x"]"#);
}

#[tokio::test]
async fn scripts_refuse() {
    let simulator = simulator();
    for (setting, code, name) in [
        ("status=503", 503, "UNAVAILABLE"),
        ("status=429", 429, "RESOURCE_EXHAUSTED"),
        ("quota=minute", 429, "RESOURCE_EXHAUSTED"),
        ("fail_times=9", 503, "UNAVAILABLE"),
    ] {
        let (status, refusal) = ask(&simulator, &format!("[[simulate:{setting}]]")).await;
        assert_eq!((status, &refusal["error"]["status"]), (code, &json!(name)), "{setting}");
    }
    let response = post(&simulator, FLASH, &chat("[[simulate:html=502]]")).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=UTF-8");
    let refused = simulator.stats().refused_429;
    assert_eq!(refused["unspecified"], 1);
    assert_eq!(refused["GenerateRequestsPerMinutePerProjectPerModel"], 1);
}

#[tokio::test]
async fn scripts_shape_the_answer() {
    let simulator = simulator();
    let candidate = async |prompt: &str| ask(&simulator, prompt).await.1["candidates"][0].take();
    let safety = candidate("[[simulate:finish=SAFETY]]").await;
    assert_eq!(safety, json!({"content": {}, "finishReason": "SAFETY", "index": 0}));
    let empty = candidate("[[simulate:finish=MAX_TOKENS,empty]]").await;
    assert_eq!(empty["content"], json!({"role": "model"}));
    let cut = candidate("[[simulate:finish=MAX_TOKENS]]12345").await;
    assert_eq!(cut["content"]["parts"], json!([{"text": "Simulated ans"}]));
    let continued = candidate("[[simulate:finish=CONTINUATION]]12345").await;
    assert_eq!(continued["content"], cut["content"]);
    assert_eq!(continued["finishReason"], "CONTINUATION");
    assert!(continued["continuationToken"].is_string());
    let odd = candidate("[[simulate:finish=BRAND_NEW,text=a text]]").await;
    assert_eq!(odd["content"]["parts"], json!([{"text": "a text"}]));
    assert_eq!(candidate("[[simulate:unfinished]]").await.get("finishReason"), None);
    let exact = candidate("[[simulate:text={\"a\": [1, 2]}]]").await;
    assert_eq!(exact["content"]["parts"], json!([{"text": "{\"a\": [1, 2]}"}]));
    let parts = candidate("[[simulate:thought,parts=2,text=ab]]").await;
    let parts = parts["content"]["parts"].as_array().expect("parts");
    assert_eq!(parts[0]["thought"], true);
    assert_eq!(parts[1..], [json!({"text": "a"}), json!({"text": "b"})]);
    let invalid = candidate("[[simulate:invalid_json]]").await;
    let text = invalid["content"]["parts"][0]["text"].as_str().expect("a text");
    assert!(serde_json::from_str::<Value>(text).is_err());

    let (status, blocked) = ask(&simulator, "[[simulate:blocked=OTHER]]").await;
    assert_eq!(status, 200);
    assert_eq!(blocked["promptFeedback"], json!({"blockReason": "OTHER"}));
    assert!(blocked.get("candidates").is_none());
}

#[tokio::test]
async fn scripts_fail_amid_a_stream() {
    let simulator = simulator();
    let prompt = chat("[[simulate:fail_after=1,chunks=3]]Hello");
    let sse = bytes(post(&simulator, &format!("{STREAM}?alt=sse"), &prompt).await).await;
    let text = String::from_utf8(sse.to_vec()).expect("UTF-8");
    let (event, error) = text.split_once("\r\n\r\n").expect("one event");
    assert!(event.starts_with("data: {\"candidates\""), "{event}");
    let error: Value = serde_json::from_str(error).expect("JSON");
    assert_eq!(error["error"]["code"], 503);
    assert!(text.contains("{\r\n  \"error\": {\r\n    \"code\": 503"), "{text}");

    let prompt = chat("[[simulate:fail_after=2,quota=minute]]Hello");
    let (_, list) = json_of(post(&simulator, STREAM, &prompt).await).await;
    assert_eq!((&list[2]["error"]["code"], list.as_array().map(Vec::len)), (&json!(429), Some(3)));
    assert_eq!(simulator.stats().refused_503, 1);
}

#[tokio::test]
async fn an_answer_over_several_calls_adds_up_to_the_whole() {
    let simulator = simulator();
    let text = "One, two – drei, vier. \u{1F680} Done.";
    let prompt = format!("[[simulate:hops=3,text={text}]]");
    let mut request = chat(&prompt);
    let (mut joined, mut reasons) = (String::new(), Vec::new());
    for _ in 0..3 {
        let (status, answer) = json_of(post(&simulator, FLASH, &request).await).await;
        assert_eq!(status, 200);
        joined += text_of(&answer);
        let candidate = &answer["candidates"][0];
        reasons.push(candidate["finishReason"].clone());
        request["continuationToken"] = candidate["continuationToken"].clone();
    }
    assert_eq!(joined, text);
    assert_eq!(reasons, ["CONTINUATION", "CONTINUATION", "STOP"]);
    assert_eq!(request["continuationToken"], Value::Null);
}

#[tokio::test]
async fn an_answer_that_never_ends_gives_half_of_the_rest_each_time() {
    let simulator = simulator();
    let mut request = chat("[[simulate:finish=CONTINUATION,text=abcdefgh]]");
    let mut texts = Vec::new();
    for _ in 0..3 {
        let (_, answer) = json_of(post(&simulator, FLASH, &request).await).await;
        texts.push(text_of(&answer).to_owned());
        request["continuation_token"] = answer["candidates"][0]["continuationToken"].clone();
    }
    assert_eq!(texts, ["abcd", "ef", "g"]);
}

#[tokio::test]
async fn an_unknown_continuation_token_is_refused() {
    let simulator = simulator();
    for (prompt, token) in
        [("[[simulate:hops=2]]a", "AAAA"), ("a", "c2ltdWxhdGVkIGNvbnRpbnVhdGlvbiAx")]
    {
        let mut request = chat(prompt);
        request["continuationToken"] = json!(token);
        assert_eq!(post(&simulator, FLASH, &request).await.status(), 400, "{prompt}");
    }
}
