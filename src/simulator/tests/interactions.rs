//! The Interactions API.

use std::time::Duration;

use http::Method;

use super::*;

const INTERACTIONS: &str = "/v1beta/interactions";

fn interaction(input: impl Into<Value>) -> Value {
    json!({"model": "gemini-3.5-flash-lite", "input": input.into()})
}

fn in_background(input: &str) -> Value {
    let mut body = interaction(input);
    body["background"] = json!(true);
    body
}

async fn create(simulator: &Simulator, body: &Value) -> (u16, Value) {
    json_of(post(simulator, INTERACTIONS, body).await).await
}

async fn read(simulator: &Simulator, id: &str, query: &str) -> (u16, Value) {
    let path = format!("{INTERACTIONS}/{id}{query}");
    json_of(send(simulator, Method::GET, &path).await).await
}

fn id_of(interaction: &Value) -> &str {
    interaction["id"].as_str().expect("an ID")
}

/// The names and the data of the events of a stream, which ends with `done`.
async fn named_events(response: Response) -> Vec<(String, Value)> {
    let mut events = events_of(response, "\n\n").await;
    assert_eq!(events.pop().as_deref(), Some("event: done\ndata: [DONE]"));
    let read = |event: &String| {
        let (name, data) = event.split_once("\ndata: ").expect("a name and data");
        let name = name.strip_prefix("event: ").expect("a name");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["event_type"], name);
        (name.to_owned(), data)
    };
    events.iter().map(read).collect()
}

#[tokio::test]
async fn an_interaction_is_answered_in_its_own_shape() {
    let simulator = simulator();
    for version in ["v1", "v1beta", "v1alpha"] {
        let path = format!("/{version}/interactions");
        let response = post(&simulator, &path, &interaction("What is new?")).await;
        assert_eq!(response.headers()["x-gemini-service-tier"], "standard");
        let (status, mut answer) = json_of(response).await;
        assert_eq!(status, 200);
        assert!(id_of(&answer).starts_with("v1_"));
        for field in ["id", "created", "updated"] {
            answer[field].take();
        }
        assert_eq!(
            answer,
            json!({
                "id": null,
                "status": "completed",
                "usage": {
                    "total_tokens": 12,
                    "total_input_tokens": 3,
                    "input_tokens_by_modality": [{"modality": "text", "tokens": 3}],
                    "total_cached_tokens": 0,
                    "total_output_tokens": 9,
                    "total_tool_use_tokens": 0,
                    "total_thought_tokens": 0,
                },
                "created": null,
                "updated": null,
                "service_tier": "standard",
                "steps": [{
                    "content": [
                        {"text": "Simulated answer to: What is new?", "type": "text"},
                    ],
                    "type": "model_output",
                }],
                "object": "interaction",
                "model": "gemini-3.5-flash-lite",
            })
        );
    }
    assert_eq!((simulator.stats().calls, simulator.stats().answered), (3, 3));
}

#[tokio::test]
async fn an_interaction_takes_every_form_of_input() {
    let simulator = simulator();
    let text = |text: &str| json!({"type": "text", "text": text});
    for input in [
        json!("Hello"),
        text("Hello"),
        json!([text("He"), {"type": "image", "data": "AAAA"}, text("llo")]),
        json!([
            {"type": "user_input", "content": "first"},
            {"type": "thought", "signature": "x"},
            {"type": "model_output", "content": [text("an answer")]},
            {"type": "user_input", "content": [text("Hello")]},
        ]),
    ] {
        let (_, answer) = create(&simulator, &interaction(input.clone())).await;
        let output = &answer["steps"][0]["content"][0]["text"];
        assert_eq!(output, "Simulated answer to: Hello", "{input}");
    }
}

#[tokio::test]
async fn an_interaction_can_be_structured() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"]});
    let format = json!({"type": "text", "mime_type": "application/json", "schema": schema});
    for format in [format.clone(), json!([format]), schema.clone()] {
        let mut body = interaction("a");
        body["response_format"] = format;
        let (_, answer) = create(&simulator(), &body).await;
        let text = answer["steps"][0]["content"][0]["text"].as_str().expect("a text");
        let value = serde_json::from_str(text).expect("JSON");
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
    }
}

#[tokio::test]
async fn a_streamed_interaction_names_its_events_and_is_done() {
    let mut body = interaction("of interest");
    body["model"] = json!("gemini-3.8-flash");
    body["stream"] = json!(true);
    let events = named_events(post(&simulator(), INTERACTIONS, &body).await).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "interaction.created",
            "interaction.status_update",
            "step.start",
            "step.delta",
            "step.stop",
            "step.start",
            "step.delta",
            "step.delta",
            "step.delta",
            "step.delta",
            "step.stop",
            "interaction.completed",
        ]
    );
    let text: String = events.iter().filter_map(|(_, e)| e["delta"]["text"].as_str()).collect();
    assert_eq!(text, "Simulated answer to: of interest");
    let (_, completed) = events.last().expect("events");
    assert_eq!(completed["interaction"]["status"], "completed");
    assert_eq!(completed["interaction"]["usage"]["total_thought_tokens"], 128);
    assert_eq!(completed["interaction"].get("steps"), None);
    assert!(events.iter().all(|(_, event)| event.get("event_id").is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_background_interaction_is_in_flight_while_it_runs() {
    let simulator = Simulator::new(Options { latency_ms: 10_000, ..Options::default() });
    let (status, created) = create(&simulator, &in_background("a")).await;
    assert_eq!((status, &created["status"]), (200, &json!("queued")));
    assert_eq!((created.get("usage"), &created["steps"]), (None, &json!([])));
    let id = id_of(&created);
    assert_eq!((simulator.stats().in_flight, simulator.stats().background_runs), (1, 1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(read(&simulator, id, "").await.1["status"], "in_progress");
    assert_eq!(simulator.stats().in_flight, 1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (_, ended) = read(&simulator, id, "?include_input=true").await;
    assert_eq!((&ended["status"], &ended["input"]), (&json!("completed"), &json!("a")));
    assert_eq!(ended["usage"]["total_input_tokens"], 1);
    let stats = simulator.stats();
    assert_eq!((stats.in_flight, stats.background_runs, stats.answered), (0, 0, 1));
    assert_eq!(stats.highest_in_flight, 1);
    assert_eq!(stats.calls, 1, "reading is not a generating call");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_interaction_ends_at_once_without_usage() {
    let simulator = Simulator::new(Options { latency_ms: 10_000, ..Options::default() });
    let (_, created) = create(&simulator, &in_background("a")).await;
    let path = format!("{INTERACTIONS}/{}/cancel", id_of(&created));
    let (status, cancelled) = json_of(send(&simulator, Method::POST, &path).await).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    assert_eq!(cancelled.get("usage"), None);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((simulator.stats().in_flight, simulator.stats().cancelled), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_stream_of_a_background_interaction_resumes_after_an_event() {
    let simulator = Simulator::new(Options { latency_ms: 10_000, ..Options::default() });
    let mut body = in_background("of interest");
    body["stream"] = json!(true);
    let start = tokio::time::Instant::now();
    let events = named_events(post(&simulator, INTERACTIONS, &body).await).await;
    assert_eq!(start.elapsed().as_secs(), 10);
    let ids: Vec<&str> = events.iter().filter_map(|(_, e)| e["event_id"].as_str()).collect();
    assert_eq!((ids.len(), ids[0]), (events.len(), "evt_1"));
    let id = id_of(&events[0].1["interaction"]);
    let path = format!("{INTERACTIONS}/{id}?stream=true&last_event_id=evt_3");
    let rest = named_events(send(&simulator, Method::GET, &path).await).await;
    assert_eq!(rest, events[3..]);
}

#[tokio::test]
async fn a_deleted_interaction_is_not_found() {
    let simulator = simulator();
    let (_, created) = create(&simulator, &interaction("a")).await;
    let id = id_of(&created);
    assert_eq!(read(&simulator, id, "?stream=false").await.1, created);
    let path = format!("{INTERACTIONS}/{id}");
    let (status, deleted) = json_of(send(&simulator, Method::DELETE, &path).await).await;
    assert_eq!((status, deleted), (200, json!({})));
    let (status, refusal) = read(&simulator, id, "").await;
    assert_eq!((status, &refusal["error"]["code"]), (404, &json!("not_found")));
    let elsewhere = Request::get(path).header("x-goog-api-key", "another key");
    let request = elsewhere.body(Body::empty()).expect("a valid request");
    assert_eq!(call(&simulator, request).await.status(), 404);
}

#[tokio::test]
async fn the_history_counts_for_the_quota_and_is_not_reported() {
    let simulator = simulator();
    let (_, first) = create(&simulator, &interaction("12345678")).await;
    let history = first["usage"]["total_tokens"].as_u64().expect("a number");
    let mut second = interaction("1234");
    second["previous_interaction_id"] = first["id"].clone();
    let (_, answer) = create(&simulator, &second).await;
    assert_eq!(answer["previous_interaction_id"], first["id"]);
    assert_eq!(answer["usage"]["total_input_tokens"], 1);
    assert_eq!(simulator.stats().admitted_input_tokens, 2 + 1 + history);
}

#[tokio::test]
async fn the_quota_of_a_model_is_shared_with_generate_content() {
    let options = Options { requests_per_minute: Some(1), ..Options::default() };
    let simulator = Simulator::new(options);
    assert_eq!(ask(&simulator, "a").await.0, 200);
    let (status, refusal) = create(&simulator, &interaction("a")).await;
    assert_eq!(status, 429);
    assert_eq!(refusal["error"]["code"], "rate_limit_exceeded");
    assert!(message_of(&refusal).contains("Please retry in "));
    assert_eq!(refusal["error"].as_object().map(serde_json::Map::len), Some(2));
}

#[tokio::test]
async fn a_long_answer_continues_from_the_interaction_before() {
    let simulator = simulator();
    for store in [true, false] {
        let mut body = interaction("[[simulate:hops=3,text=A text in three pieces.]]");
        body["store"] = json!(store);
        let (mut text, mut statuses) = (String::new(), Vec::new());
        for _ in 0..3 {
            let (_, answer) = create(&simulator, &body).await;
            text += answer["steps"][0]["content"][0]["text"].as_str().expect("a text");
            statuses.push(answer["status"].clone());
            body["continuation_token"] = answer["continuation_token"].clone();
            if store {
                body["previous_interaction_id"] = answer["id"].clone();
                body["input"].take();
            }
        }
        assert_eq!(text, "A text in three pieces.");
        assert_eq!(statuses, ["requires_continuation", "requires_continuation", "completed"]);
    }
}

#[tokio::test]
async fn interactions_end_for_every_reason() {
    let simulator = simulator();
    for (setting, status, error) in [
        ("finish=MAX_TOKENS", "incomplete", None),
        ("finish=SAFETY", "failed", Some("safety")),
        ("finish=MALFORMED_FUNCTION_CALL", "failed", Some("malformed_function_call")),
        ("blocked=PROHIBITED_CONTENT", "failed", Some("prohibited_content")),
        ("ends_as=requires_action", "requires_action", None),
        ("ends_as=budget_exceeded,no_usage", "budget_exceeded", None),
    ] {
        let input = format!("[[simulate:{setting}]]a");
        let (_, answer) = create(&simulator, &interaction(input)).await;
        assert_eq!(answer["status"], status, "{setting}");
        assert_eq!(answer["errors"][0]["code"].as_str(), error, "{setting}");
        assert_eq!(answer.get("usage").is_none(), setting.ends_with("no_usage"), "{setting}");
    }
}

#[tokio::test]
async fn interactions_are_refused_in_their_own_envelope() {
    let simulator = simulator();
    let with = |name: &str, value: Value| {
        let mut body = interaction("a");
        body[name] = value;
        body
    };
    let marked = |setting: &str| interaction(format!("[[simulate:{setting}]]"));
    for (body, status, code) in [
        (with("model", json!("gemini-unknown")), 404, "model_not_found"),
        (with("model", Value::Null), 400, "invalid_request"),
        (with("top_k", json!(1)), 400, "parameter_unknown"),
        (with("input", Value::Null), 400, "invalid_request"),
        (with("previous_interaction_id", json!("v1_none")), 404, "not_found"),
        (with("service_tier", json!("fast")), 400, "invalid_request"),
        (marked("status=503"), 503, "service_unavailable"),
        (marked("status=402"), 402, "payment_required"),
        (marked("status=500"), 500, "api_error"),
        (marked("quota=day"), 429, "quota_exceeded"),
        (marked("status=429"), 429, "too_many_requests"),
    ] {
        let (got, refusal) = create(&simulator, &body).await;
        assert_eq!((got, &refusal["error"]["code"]), (status, &json!(code)), "{body}");
        assert!(!message_of(&refusal).is_empty());
    }
    let bad_key = post_with_key(&simulator, INTERACTIONS, &interaction("a"), "invalid").await;
    let (status, refusal) = json_of(bad_key).await;
    assert_eq!((status, &refusal["error"]["code"]), (401, &json!("authentication")));
}

#[tokio::test(start_paused = true)]
async fn a_run_cannot_be_continued_before_it_ends() {
    let simulator = Simulator::new(Options { latency_ms: 1_000, ..Options::default() });
    let (_, created) = create(&simulator, &in_background("a")).await;
    let mut next = interaction("b");
    next["previous_interaction_id"] = created["id"].clone();
    let (status, refusal) = create(&simulator, &next).await;
    assert_eq!((status, &refusal["error"]["code"]), (400, &json!("failed_precondition")));
    let mut unstored = in_background("a");
    unstored["store"] = json!(false);
    assert_eq!(create(&simulator, &unstored).await.0, 400);
}

#[tokio::test]
async fn a_stream_can_fail_and_polls_can_be_refused() {
    let simulator = simulator();
    let mut body = interaction("[[simulate:fail_after=3,status=503]]");
    body["stream"] = json!(true);
    let response = post(&simulator, INTERACTIONS, &body).await;
    let events = events_of(response, "\n\n").await;
    let error = events[3].strip_prefix("event: error\ndata: ").expect("an error event");
    let error: Value = serde_json::from_str(error).expect("JSON");
    assert_eq!((events.len(), &error["error"]["code"]), (4, &json!("service_unavailable")));

    let (_, created) = create(&simulator, &in_background("[[simulate:poll_status=400]]a")).await;
    let (status, refusal) = read(&simulator, id_of(&created), "").await;
    assert_eq!((status, &refusal["error"]["code"]), (400, &json!("invalid_request")));
    assert!(message_of(&refusal).starts_with("Multiple authentication credentials"));
}

#[tokio::test]
async fn an_agent_is_named_instead_of_a_model() {
    let body = json!({"agent": "deep-research-preview-04-2026", "input": "a"});
    let (status, answer) = create(&simulator(), &body).await;
    assert_eq!((status, &answer["agent"]), (200, &json!("deep-research-preview-04-2026")));
    assert_eq!(answer.get("model"), None);
}
