use serde_json::json;

use super::*;

fn refusal(body: &str) -> String {
    let refusal = GenerateContentRequest::parse(body.as_bytes()).err().expect("refused");
    let body: serde_json::Value = serde_json::from_slice(refusal.body()).expect("JSON");
    body["error"]["message"].as_str().expect("a message").to_owned()
}

#[test]
fn the_prompt_is_the_last_text_that_is_not_the_models() {
    let body = json!({"contents": [
        {"role": "user", "parts": [{"text": "first"}]},
        {"role": "user", "parts": [{"text": "one, "}, {"inline_data": {}}, {"text": "two, "},
            {"text": "three"}]},
        {"role": "model", "parts": [{"text": "mine"}]},
    ]})
    .to_string();
    let request = GenerateContentRequest::parse(body.as_bytes()).expect("valid");
    assert_eq!(request.prompt(), "one, two, three");
}

#[test]
fn a_plain_prompt_is_borrowed_from_the_body() {
    let body = br#"{"contents": [{"parts": [{"text": "plain"}]}]}"#;
    let request = GenerateContentRequest::parse(body).expect("valid");
    let Some(OneOrMany::Many(contents)) = &request.contents else { panic!("a list") };
    let part = &many(&contents[0].parts)[0];
    assert!(matches!(part.text, Some(Text(Cow::Borrowed("plain")))));
}

#[test]
fn both_spellings_nulls_and_single_objects_are_accepted() {
    let body = json!({
        "contents": {"parts": {"text": "hello"}},
        "system_instruction": {"parts": {"text": "Be terse."}},
        "generationConfig": {"max_output_tokens": 5, "responseMimeType": null},
        "tools": null,
    })
    .to_string();
    let request = GenerateContentRequest::parse(body.as_bytes()).expect("valid");
    assert_eq!(request.prompt(), "hello");
    assert_eq!(request.generation_config().and_then(|c| c.max_output_tokens), Some(5));
    assert_eq!(request.input_tokens(), 2 + 3);
}

#[test]
fn an_unknown_name_is_refused_with_its_position() {
    let unknown = |name: &str, place: &str| {
        format!("Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field.")
    };
    assert_eq!(refusal(r#"{"response_schema": {}}"#), unknown("response_schema", ""));
    assert_eq!(
        refusal(r#"{"generationConfig": {"responseFormat": {}}}"#),
        unknown("responseFormat", " at 'generation_config'")
    );
    assert_eq!(
        refusal(r#"{"contents": [{"parts": [{"text": "a"}, {"txt": "b"}]}]}"#),
        unknown("txt", " at 'contents[0].parts[1]'")
    );
}

#[test]
fn missing_contents_and_parts_are_refused() {
    for body in ["{}", r#"{"contents": []}"#, r#"{"contents": null}"#] {
        assert_eq!(refusal(body), "* GenerateContentRequest.contents: contents is not specified\n");
    }
    assert_eq!(
        refusal(r#"{"contents": [{"parts": []}]}"#),
        "* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.\n"
    );
}

#[test]
fn a_body_that_is_not_json_is_refused() {
    assert!(refusal("{\"contents\"").starts_with("Invalid JSON payload received."));
    assert!(refusal("").starts_with("Invalid JSON payload received."));
}

#[test]
fn count_tokens_accepts_contents_or_a_whole_request() {
    let contents = br#"{"contents": [{"parts": [{"text": "12345"}]}]}"#;
    assert_eq!(count_tokens(contents).ok(), Some(2));
    let whole = br#"{"generateContentRequest": {"model": "models/gemini-a",
        "contents": [{"parts": [{"text": "12345"}]}]}}"#;
    assert_eq!(count_tokens(whole).ok(), Some(2));
    assert!(count_tokens(b"{}").is_err());
}
