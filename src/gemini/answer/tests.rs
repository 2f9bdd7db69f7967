use super::super::Event;
use super::super::answer_builder::AnswerBuilder;
use super::*;

fn read(body: &str) -> Result<Answer, Error> {
    Answer::read(StatusCode::OK, body.as_bytes())
}

/// Reads an answer whose first candidate is `{"content": content, "finishReason": reason}`.
fn read_candidate(content: &str, reason: &str) -> Result<Answer, Error> {
    read(&format!(
        r#"{{"candidates":[{{"content":{content},"finishReason":{reason}}}],
             "usageMetadata":{{"promptTokenCount":7,"totalTokenCount":7}}}}"#
    ))
}

#[test]
fn the_text_is_that_of_all_parts_except_thoughts() {
    let content = r#"{"parts":[{"text":"hmm","thought":true},{"text":"A\n"},{"thought":null,
        "text":"ß\ud83d\ude00"},{"text":null},{"functionCall":{"name":"f"}},{"text":"c"}]}"#;
    let answer = read_candidate(content, r#""STOP""#).unwrap();
    assert_eq!(answer.text, "A\nß😀c");
    assert_eq!(answer.finish_reason, "STOP");
}

#[test]
fn an_unknown_finish_reason_is_passed_on() {
    let content = r#"{"parts":[{"text":"Hi"}]}"#;
    for (reason, expected) in [
        (r#""BRAND_NEW""#, "BRAND_NEW"),
        ("19", "19"),
        ("null", "FINISH_REASON_UNSPECIFIED"),
        (r#""MAX_TOKENS""#, "MAX_TOKENS"),
        (r#""OTHER""#, "OTHER"),
    ] {
        assert_eq!(read_candidate(content, reason).unwrap().finish_reason, expected);
    }
}

#[test]
fn a_blocked_answer_is_an_error_even_if_part_of_it_was_sent() {
    for content in ["{}", "null", r#"{"parts":[{"text":"In 5, 4,"}]}"#] {
        let error = read_candidate(content, r#""SAFETY""#).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ContentBlocked { reason: "SAFETY".to_owned() });
        assert_eq!((error.usage.prompt_tokens, error.accepted_model), (7, true));
    }
}

#[test]
fn an_answer_without_text_is_distinguished_from_a_truncated_one() {
    let only_thoughts = r#"{"parts":[{"text":"hmm","thought":true}]}"#;
    for content in ["{}", "null", r#"{"parts":null}"#, r#"{"parts":[]}"#, only_thoughts] {
        let kind = |reason| read_candidate(content, reason).unwrap_err().kind;
        assert_eq!(kind(r#""MAX_TOKENS""#), ErrorKind::Truncated);
        assert_eq!(kind(r#""STOP""#), ErrorKind::Empty);
        assert_eq!(kind("null"), ErrorKind::Empty);
    }
}

#[test]
fn a_valid_model_version_is_read() {
    for (version, expected) in [
        (r#""gemini-3.5-flash-lite""#, Some("gemini-3.5-flash-lite")),
        (r#""models/gemini-3.8-flash""#, Some("gemini-3.8-flash")),
        (r#""no model: ../x""#, None),
        (r#""""#, None),
        ("null", None),
    ] {
        let body = format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"Hi"}}]}},"finishReason":"STOP"}}],
                "modelVersion":{version}}}"#
        );
        let answer = read(&body).unwrap();
        assert_eq!(answer.model_version.as_ref().map(Model::as_str), expected, "{version}");
        let read = model_version(body.as_bytes(), Surface::Gemini);
        assert_eq!(read, answer.model_version, "{version}");
        let mut growing = AnswerBuilder::default();
        growing.push(&Event::Data(body.clone().into())).unwrap();
        assert_eq!(growing.finish().unwrap().model_version, answer.model_version);
    }
    assert_eq!(model_version(b"{\"modelVersion\":{}}", Surface::Gemini), None);
    let openai = br#"{"object":"chat.completion","model":"gemini-real","modelVersion":"other"}"#;
    let named = model_version(openai, Surface::OpenAi);
    assert_eq!(named.as_ref().map(Model::as_str), Some("gemini-real"));
    for answer in [
        r#"{"id":"v1_a","model":"gemini-real"}"#,
        r#"{"interaction":{"model":"gemini-real"},"event_type":"interaction.created"}"#,
    ] {
        let named = model_version(answer.as_bytes(), Surface::Interactions);
        assert_eq!(named.as_ref().map(Model::as_str), Some("gemini-real"));
    }
    assert_eq!(model_version(br#"{"model":"gemini-asked"}"#, Surface::Gemini), None);
}

#[test]
fn half_a_surrogate_pair_costs_one_character_and_not_the_answer() {
    for (content, text) in [
        (r#"{"parts":[{"text":"bad \ud83d end"}]}"#, "bad \u{FFFD} end"),
        (r#"{"parts":[{"text":"\ude00\ud83d"},{"text":"\ude00!"}]}"#, "\u{FFFD}😀!"),
        (r#"{"parts":[{"text":"a\ud83d","x":"\ud83d"}],"role":"\ud83d"}"#, "a\u{FFFD}"),
    ] {
        let answer = read_candidate(content, r#""STOP""#).unwrap();
        assert_eq!((&*answer.text, answer.usage.prompt_tokens), (text, 7));
    }
    let content = r#"{"parts":[{"text":"a\ud83d"}]}"#;
    let answer = read_candidate(content, r#""ODD\ud83d""#).unwrap();
    assert_eq!((&*answer.text, &*answer.finish_reason), ("a\u{FFFD}", "ODD\u{FFFD}"));
    let error = read(r#"{"error":{"code":503,"message":"busy \ud83d"}}"#).unwrap_err();
    assert_eq!((error.kind, &*error.message), (ErrorKind::Overloaded(None), "busy \u{FFFD}"));
}

#[test]
fn unexpected_usage_metadata_does_not_fail_the_answer() {
    for usage in [r#"{"promptTokenCount":"7"}"#, r#"{"promptTokenCount":7.0,"x":1e999}"#, "5", "[]"]
    {
        let body = format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"Hi"}}]}},"finishReason":"STOP"}}],
                "usageMetadata":{usage}}}"#
        );
        let expected = if usage.starts_with('{') { 7 } else { 0 };
        assert_eq!(read(&body).unwrap().usage.prompt_tokens, expected, "{usage}");
    }
}

#[test]
fn an_answer_without_text_gives_the_reason() {
    for (reason, code) in [
        ("MAX_TOKENS", "truncated_answer"),
        ("CONTINUATION", "truncated_answer"),
        ("MALFORMED_RESPONSE", "empty_answer"),
        ("MISSING_THOUGHT_SIGNATURE", "empty_answer"),
        ("TOO_MANY_TOOL_CALLS", "empty_answer"),
        ("UNEXPECTED_TOOL_CALL", "empty_answer"),
        ("NO_IMAGE", "empty_answer"),
        ("IMAGE_OTHER", "empty_answer"),
        ("IMAGE_RECITATION", "content_blocked"),
        ("IMAGE_PROHIBITED_CONTENT", "content_blocked"),
        ("ESCALATION", "empty_answer"),
        ("BRAND_NEW", "empty_answer"),
        ("PUP_LIMITED_DISABLED", "permission_denied"),
        ("MODEL_ARMOR", "content_blocked"),
    ] {
        let error = read_candidate("{}", &format!("{reason:?}")).unwrap_err();
        assert_eq!(error.kind.code(), code, "{reason}");
        let gives_reason = error.message.contains(reason) || reason == "MAX_TOKENS";
        assert!(gives_reason, "{}", error.message);
    }
}

#[test]
fn null_fields_count_as_absent() {
    let nulls = r#"{"candidates":null,"promptFeedback":null,"usageMetadata":null}"#;
    assert_eq!(read(nulls).unwrap_err().kind, ErrorKind::Malformed);
    let usage = r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}],"promptFeedback":null,
        "usageMetadata":{"promptTokenCount":null,"candidatesTokenCount":2,"novelty":{}}}"#;
    let answer = read(usage).unwrap();
    assert_eq!(answer.usage, Usage { output_tokens: 2, ..Usage::default() });
}

#[test]
fn a_body_that_is_not_from_gemini_is_malformed() {
    for body in ["", "<html>Sign in</html>", "{}", "[]", "null", "7", "{\"candidates\":[", "{} {}"]
    {
        let error = read(body).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Malformed, "{body}");
        assert!(!error.accepted_model && !error.is_transient(), "{body}");
    }
    let not_text = b"{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\xff\"}]}}]}";
    let error = Answer::read(StatusCode::OK, not_text).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Malformed);
}

#[test]
fn an_answer_without_a_candidate_gives_the_block_reason() {
    let error = read(r#"{"promptFeedback":{"blockReason":"OTHER"}}"#).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContentBlocked { reason: "OTHER".to_owned() });
    let error = read(r#"{"usageMetadata":{"promptTokenCount":3}}"#).unwrap_err();
    assert_eq!((error.kind, error.usage.prompt_tokens), (ErrorKind::Empty, 3));
}

#[test]
fn an_error_with_a_success_status_is_read_as_that_error() {
    for body in [
        r#"{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}"#,
        r#"[{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}]"#,
    ] {
        let error = read(body).unwrap_err();
        assert_eq!((error.kind, &*error.message), (ErrorKind::Overloaded(None), "overloaded"));
        assert!(!error.accepted_model);
    }
}
