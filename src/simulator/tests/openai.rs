//! The surface for OpenAI's clients.

use super::*;

const COMPLETIONS: &str = "/v1beta/openai/chat/completions";

fn completion_of(text: &str) -> Value {
    json!({"model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": text}]})
}

async fn complete(simulator: &Simulator, body: &Value) -> (u16, Value) {
    json_of(post_as_openai(simulator, COMPLETIONS, body).await).await
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let simulator = Simulator::new(Options { journal: true, ..Options::default() });
    let body = json!({
        "model": "models/gemini-3.5-flash-lite",
        "messages": [
            {"role": "developer", "content": "Be terse."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "user", "content": [
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "data:,"}},
                {"type": "text", "text": "new?"},
            ]},
        ],
        "temperature": 0.5,
    });
    let (status, mut answer) = complete(&simulator, &body).await;
    assert_eq!(status, 200);
    assert!(answer["created"].take().is_i64());
    assert_eq!(
        answer,
        json!({
            "id": "simulated-0",
            "object": "chat.completion",
            "created": null,
            "model": "gemini-3.5-flash-lite",
            "choices": [{
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant", "content": "Simulated answer to: What is new?",
                },
            }],
            "usage": {"prompt_tokens": 266, "completion_tokens": 9, "total_tokens": 275},
        })
    );
    let stats = simulator.stats();
    assert_eq!((stats.calls, stats.answered, stats.admitted_input_tokens), (1, 1, 266));
    assert_eq!(stats.by_model["gemini-3.5-flash-lite"], 1);
    let entry = simulator.journal().remove(0);
    assert_eq!((entry.prompt_text.as_str(), entry.status), ("What is new?", Some(200)));
    assert_eq!((entry.api_key.as_str(), entry.body), ("key", body));
}

#[tokio::test]
async fn a_completion_ends_for_openais_reasons() {
    let simulator = simulator();
    let choice = async |body: &Value| complete(&simulator, body).await.1["choices"][0].take();
    let mut short = completion_of("a long question");
    short["max_completion_tokens"] = json!(3);
    let cut = choice(&short).await;
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["message"]["content"], "Simulated an");
    for setting in ["finish=SAFETY", "blocked=SAFETY"] {
        let withheld = choice(&completion_of(&format!("[[simulate:{setting}]]"))).await;
        assert_eq!(withheld, json!({"index": 0, "finish_reason": "content_filter: SAFETY"}));
    }
}

#[tokio::test]
async fn a_completion_fits_its_schema() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let mut body = completion_of("a");
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (_, answer) = complete(&simulator(), &body).await;
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    let value = serde_json::from_str(text).expect("JSON");
    assert!(jsonschema::is_valid(&schema, &value), "{value}");
}

#[tokio::test]
async fn a_streamed_completion_adds_up_and_is_done() {
    let streamed = async |options: Value| {
        let mut body = completion_of("of interest");
        body["stream"] = json!(true);
        body["stream_options"] = options;
        let response = post_as_openai(&simulator(), COMPLETIONS, &body).await;
        let mut events = events_of(response, "\n\n").await;
        assert_eq!(events.pop().as_deref(), Some("data: [DONE]"));
        let chunks = events.iter().map(|event| {
            let data = event.strip_prefix("data: ").expect("data");
            serde_json::from_str::<Value>(data).expect("JSON")
        });
        chunks.collect::<Vec<_>>()
    };
    let chunks = streamed(json!({"include_usage": true})).await;
    let text: String = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().expect("a text"))
        .collect();
    assert_eq!(text, "Simulated answer to: of interest");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    let (last, others) = chunks.split_last().expect("chunks");
    assert_eq!((others.len(), &last["choices"][0]["finish_reason"]), (3, &json!("stop")));
    assert!(others.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11})
    );
    let without_usage = streamed(Value::Null).await;
    assert!(without_usage.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn openais_clients_are_refused_in_a_list() {
    let simulator = simulator();
    let mut unknown = completion_of("a");
    unknown["model"] = json!("gemini-unknown");
    for (body, code, name) in [
        (completion_of("[[simulate:status=503]]"), 503, "UNAVAILABLE"),
        (completion_of("[[simulate:quota=minute]]"), 429, "RESOURCE_EXHAUSTED"),
        (unknown, 404, "NOT_FOUND"),
        (json!({"model": "gemini-3.5-flash-lite"}), 400, "INVALID_ARGUMENT"),
        (json!([]), 400, "INVALID_ARGUMENT"),
    ] {
        let (status, refusal) = complete(&simulator, &body).await;
        assert_eq!(status, code, "{body}");
        assert_eq!(refusal.as_array().map(Vec::len), Some(1), "{refusal}");
        let error = &refusal[0]["error"];
        assert_eq!((&error["code"], &error["status"]), (&json!(code), &json!(name)));
    }
    assert_eq!(simulator.stats().calls, 5);

    let body = Body::from(completion_of("a").to_string());
    let keyless = Request::post(COMPLETIONS).body(body).expect("a valid request");
    let (status, refusal) = json_of(call(&simulator, keyless).await).await;
    assert_eq!(status, 400);
    assert_eq!(message_of(&refusal[0]), "Missing or invalid Authorization header.");
}

#[tokio::test]
async fn openais_clients_list_models() {
    let simulator = simulator();
    let (_, listed) = get(&simulator, "/v1beta/openai/models").await;
    assert_eq!(listed["object"], "list");
    let model =
        json!({"id": "models/gemini-3.5-flash-lite", "object": "model", "owned_by": "google"});
    assert_eq!(listed["data"][0], model);
    for name in
        ["gemini-3.5-flash-lite", "models/gemini-3.5-flash-lite", "models%2Fgemini-3.5-flash-lite"]
    {
        assert_eq!(get(&simulator, &format!("/v1beta/openai/models/{name}")).await.1, model);
    }
    let (status, refusal) = get(&simulator, "/v1beta/openai/models/gemini-unknown").await;
    assert_eq!((status, &refusal[0]["error"]["code"]), (404, &json!(404)));
}
