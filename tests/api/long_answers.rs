//! Answers that Gemini gives over several calls: they are continued, joined and bounded.

use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Service, answer};
use crate::upstream::{Upstream, cost};

/// A text whose pieces differ, with characters of one to four bytes.
const TEXT: &str = "Ein Bär, drei 日本 und 😀😀 — \"quoted\",\n\ttwice \\ over.  End";

/// A prompt that is answered with [`TEXT`], in so many calls.
fn in_hops(hops: usize) -> String {
    format!("[[simulate:hops={hops},text={TEXT}]]")
}

/// A service with one slot, which no call may hold while it waits for the next one.
async fn service_with(change: impl FnOnce(&mut Config)) -> Service {
    Service::with(Options::default(), |config| {
        config.concurrency_limit = 1;
        config.request_timeout = Duration::from_secs(30);
        change(config);
    })
    .await
}

/// The events of a streamed chat.
async fn events(service: &Service, prompt: &str) -> Vec<Value> {
    let chat = service.post("/chat", &json!({"prompt": prompt, "stream": true}));
    let text = chat.send().await.unwrap().text().await.unwrap();
    let events = text.split_terminator("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

/// How many calls have come to the simulator.
fn calls(service: &Service) -> usize {
    service.simulator.journal().len()
}

#[tokio::test]
async fn an_answer_in_three_parts_is_joined_byte_for_byte() {
    let service = service_with(|_| {}).await;
    let alone = service.chat(in_hops(1)).await.body;
    let whole = service.chat(in_hops(3)).await.body;
    assert_eq!(whole["response"], TEXT);
    assert_eq!((&whole["finish_reason"], &whole["truncated"]), (&json!("STOP"), &json!(false)));
    assert_eq!(calls(&service), 4, "one call, then three");
    let prompt_tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt_tokens(&whole), 3 * prompt_tokens(&alone), "each call reads the input");
    let journal = service.simulator.journal();
    let tokens: Vec<_> = journal.iter().map(|call| &call.body["continuationToken"]).collect();
    assert!(tokens[1].is_null() && tokens[2].is_string() && tokens[3] != tokens[2], "{tokens:?}");
    let of = |call: usize| {
        (&journal[call].api_key, &journal[call].model, &journal[call].body["contents"])
    };
    assert!(of(1) == of(2) && of(2) == of(3), "the same request for the same account");
    service.until_idle().await;
    let requests = service.only_account().await["requests_per_minute"]["used"].clone();
    assert_eq!(requests, 4, "each call is counted");
}

#[tokio::test]
async fn a_streamed_chat_goes_on_over_its_parts() {
    let service = service_with(|_| {}).await;
    let events = events(&service, &in_hops(3)).await;
    let (done, deltas) = events.split_last().unwrap();
    let text: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, TEXT);
    assert_eq!(done["response"], TEXT);
    assert_eq!((&done["finish_reason"], &done["truncated"]), (&json!("STOP"), &json!(false)));
    assert_eq!(calls(&service), 3);
    let alone = service.chat(in_hops(1)).await.body;
    let prompt_tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt_tokens(done), 3 * prompt_tokens(&alone));
    service.until_idle().await;
}

#[tokio::test]
async fn structured_output_is_read_only_when_it_is_whole() {
    let service = service_with(|_| {}).await;
    let json = r#"{"name": "Zoë", "list": [1, 2, 3]}"#;
    let request = json!({
        "user_content": format!("[[simulate:hops=4,text={json}]]"),
        "system_prompt": "Extract.",
        "json_schema": {"type": "object"},
    });
    let whole = answer(service.post("/structured-output", &request)).await;
    assert_eq!(whole.body["data"], serde_json::from_str::<Value>(json).unwrap(), "{whole:?}");
    assert_eq!(whole.body["finish_reason"], "STOP");
    assert_eq!(calls(&service), 4);
}

#[tokio::test]
async fn items_of_a_batch_are_continued() {
    let service = service_with(|_| {}).await;
    let requests = json!([{"prompt": in_hops(3)}, {"prompt": "Hello"}, {"prompt": in_hops(2)}]);
    let batch = answer(service.post("/batch/chat", &json!({"requests": requests}))).await.body;
    assert_eq!(batch["successful_requests"], 3, "{batch}");
    for index in [0, 2] {
        assert_eq!(batch["results"][index]["response"], TEXT);
    }
    assert_eq!(calls(&service), 6);
}

#[tokio::test]
async fn the_number_of_continuations_is_bounded() {
    let service = service_with(|config| config.max_continuations = 2).await;
    let cut_off = service.chat(in_hops(9)).await;
    assert_eq!(cut_off.status, StatusCode::OK);
    assert_eq!(cut_off.body["finish_reason"], "CONTINUATION");
    assert_eq!(cut_off.body["truncated"], true);
    let text = cut_off.body["response"].as_str().unwrap();
    assert!(TEXT.starts_with(text) && text.len() < TEXT.len(), "{text}");
    assert_eq!(calls(&service), 3);

    let events = events(&service, &in_hops(9)).await;
    let done = events.last().unwrap();
    assert_eq!((&done["response"], &done["truncated"]), (&json!(text), &json!(true)));
    assert_eq!(calls(&service), 6);

    let request = json!({
        "user_content": r#"[[simulate:hops=9,text={"name": "Anna", "age": 31}]]"#,
        "system_prompt": "Extract.",
        "json_schema": {"type": "object"},
    });
    let failed = answer(service.post("/structured-output", &request)).await;
    assert_eq!(failed.body["code"], "truncated_answer", "{failed:?}");
    assert_eq!(calls(&service), 9);
    service.until_idle().await;
}

#[tokio::test]
async fn a_part_without_text_is_one_of_the_answer() {
    for (texts, whole) in
        [(["", "A ", "text"], "A text"), (["A ", "", "text"], "A text"), (["A", "", ""], "A")]
    {
        let upstream = Upstream::in_parts(&texts, "STOP").await;
        let service = Service::over(&upstream.base_url).await;
        let answered = service.chat("Hello").await;
        assert_eq!(answered.body["response"], whole, "{texts:?}: {answered:?}");
        let usage = [1, 2, 3].map(cost).into_iter().fold([0; 3], |sum, of_call| {
            [sum[0] + of_call[0], sum[1] + of_call[1], sum[2] + of_call[2]]
        });
        let names = ["prompt_tokens", "output_tokens", "thinking_tokens"];
        assert_eq!(names.map(|name| answered.body["usage"][name].as_u64().unwrap()), usage);
    }
}

#[tokio::test]
async fn a_later_part_may_end_for_another_reason() {
    let upstream = Upstream::in_parts(&["A text ", "that"], "MAX_TOKENS").await;
    let answered = Service::over(&upstream.base_url).await.chat("Hello").await.body;
    assert_eq!(answered["response"], "A text that");
    assert_eq!(
        (&answered["finish_reason"], &answered["truncated"]),
        (&json!("MAX_TOKENS"), &json!(true))
    );

    let upstream = Upstream::in_parts(&["A text ", "that"], "SAFETY").await;
    let blocked = Service::over(&upstream.base_url).await.chat("Hello").await;
    assert_eq!(blocked.body["code"], "content_blocked", "{blocked:?}");
}

#[tokio::test]
async fn a_part_that_fails_does_not_lose_a_chat_that_has_begun() {
    let upstream = Upstream::unfinished("The first half").await;
    let answered = Service::over(&upstream.base_url).await.chat("Hello").await.body;
    assert_eq!(answered["response"], "The first half", "{answered}");
    assert_eq!(
        (&answered["finish_reason"], &answered["truncated"]),
        (&json!("CONTINUATION"), &json!(true))
    );
    assert_eq!(upstream.requests().len(), 2);
    assert_eq!(upstream.requests()[1]["continuationToken"], "more");
}

#[tokio::test]
async fn structured_output_that_cannot_be_continued_fails_as_the_call_for_its_next_part() {
    let upstream = Upstream::unfinished(r#"{"name": "#).await;
    let service = Service::over(&upstream.base_url).await;
    let request =
        json!({"user_content": "Anna", "system_prompt": "Who?", "json_schema": {"type": "object"}});
    let failed = answer(service.post("/structured-output", &request)).await;
    assert_eq!(failed.body["code"], "invalid_request", "{failed:?}");
}
