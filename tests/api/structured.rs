//! Structured output: how a schema is sent to Gemini, and that a successful answer always fits it.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Answer, Service, answer};
use crate::upstream::{Upstream, cost};

const PATH: &str = "/structured-output";

fn question(json_schema: Value) -> Value {
    json!({
        "user_content": "Anna is 31 and lives in Lisbon.",
        "system_prompt": "Extract the person.",
        "json_schema": json_schema,
    })
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

async fn send(service: &Service, json_schema: Value) -> Answer {
    answer(service.post(PATH, &question(json_schema))).await
}

/// The `generationConfig` of the only call.
fn sent_config(service: &Service) -> Value {
    let journal = service.simulator.journal();
    assert_eq!(journal.len(), 1);
    journal[0].body["generationConfig"].clone()
}

#[tokio::test]
async fn a_schema_is_sent_in_geminis_dialect_and_in_the_callers_order() {
    let service = Service::start().await;
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "surname": {"type": "string"},
            "age": {"$ref": "#/$defs/Age"},
            "nick": {"type": ["string", "null"]},
        },
        "required": ["age", "surname"],
        "$defs": {"Age": {"type": "integer", "minimum": 0}},
    });
    let answered = send(&service, schema.clone()).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    assert!(jsonschema::is_valid(&schema, &answered.body["data"]), "{answered:?}");
    assert_eq!(answered.body["success"], true);
    assert_eq!(answered.body["message"], "Successfully generated structured output");
    assert_eq!(answered.body["model"], "gemini-3.8-flash");

    let journal = service.simulator.journal();
    let expected = json!({
        "contents": [{"role": "user", "parts": [{"text": "Anna is 31 and lives in Lisbon."}]}],
        "systemInstruction": {"parts": [{"text": "Extract the person."}]},
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseSchema": {
                "type": "OBJECT",
                "properties": {
                    "surname": {"type": "STRING"},
                    "age": {"type": "INTEGER", "minimum": 0},
                    "nick": {"type": "STRING", "nullable": true},
                },
                "required": ["surname", "age"],
                "propertyOrdering": ["surname", "age", "nick"],
            },
        },
    });
    assert_eq!(journal[0].body, expected);
    let keys: Vec<_> = answered.body["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["surname", "age", "nick"]);
}

#[tokio::test]
async fn a_schema_that_geminis_dialect_cannot_express_is_sent_as_json_schema() {
    let recursion = json!({
        "type": "object",
        "properties": {
            "value": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["value"],
    });
    let tuple = json!({
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "minItems": 2,
        "maxItems": 2,
    });
    let map = json!({"type": "object", "additionalProperties": {"type": "integer"}});
    for (schema, keyword) in
        [(recursion, "$ref"), (tuple, "prefixItems"), (map, "additionalProperties")]
    {
        let service = Service::start().await;
        let answered = send(&service, schema.clone()).await;
        assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
        assert!(jsonschema::is_valid(&schema, &answered.body["data"]), "{answered:?}");
        let config = sent_config(&service);
        assert_eq!(config["responseMimeType"], "application/json");
        assert_eq!(config.get("responseSchema"), None, "{config}");
        let sent = config["responseJsonSchema"].to_string();
        assert!(sent.contains(&format!("{keyword:?}")), "{sent}");
    }
}

#[tokio::test]
async fn the_services_own_config_keys_win_and_all_others_are_passed_on() {
    let service = Service::start().await;
    let mut body = question(person());
    body["generation_config"] = json!({
        "temperature": 0.125,
        "responseMimeType": "text/plain",
        "response_mime_type": "text/plain",
        "responseSchema": {"type": "STRING"},
        "response_schema": {"type": "STRING"},
        "responseJsonSchema": {"type": "string"},
        "response_json_schema": {"type": "string"},
        "thinkingConfig": {"thinkingBudget": 128, "includeThoughts": false},
        "seed": 7,
    });
    let answered = answer(service.post(PATH, &body)).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");

    let mut config = sent_config(&service);
    let schema = config["responseSchema"].take();
    assert_eq!(schema["propertyOrdering"], json!(["name", "age"]));
    let expected = json!({
        "temperature": 0.125,
        "thinkingConfig": {"thinkingBudget": 128, "includeThoughts": false},
        "seed": 7,
        "responseMimeType": "application/json",
        "responseSchema": null,
    });
    assert_eq!(config, expected);
}

#[tokio::test]
async fn a_mismatched_answer_is_requested_again_with_the_reason() {
    let wrong = r#"{"name": "Anna", "age": "thirty-one"}"#;
    let upstream = Upstream::answering([wrong, r#"{"name": "Anna", "age": 31}"#]).await;
    let service = Service::over(&upstream.base_url).await;
    let answered = send(&service, person()).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    assert_eq!(answered.body["data"], json!({"name": "Anna", "age": 31}));
    let [prompt, output, thinking] = [0, 1, 2].map(|kind| cost(1)[kind] + cost(2)[kind]);
    let usage = json!({
        "prompt_tokens": prompt,
        "output_tokens": output,
        "thinking_tokens": thinking,
        "total_tokens": prompt + output + thinking,
    });
    assert_eq!(answered.body["usage"], usage, "the usage of both calls");

    let [first, second]: [Value; 2] = upstream.requests().try_into().unwrap();
    assert_eq!(first["generationConfig"], second["generationConfig"]);
    assert_eq!(first["systemInstruction"], second["systemInstruction"]);
    let contents = second["contents"].as_array().unwrap();
    let roles: Vec<_> = contents.iter().map(|content| &content["role"]).collect();
    assert_eq!(roles, ["user", "model", "user"]);
    assert_eq!(contents[0], first["contents"][0]);
    assert_eq!(contents[1]["parts"], json!([{"text": wrong}]));
    let correction = contents[2]["parts"][0]["text"].as_str().unwrap();
    assert!(correction.contains("at /age:") && correction.contains("integer"), "{correction}");
    assert_eq!(service.metric("gemini_gateway_calls_total{kind=\"structured_output\",model=\"gemini-3.8-flash\",outcome=\"success\"}").await, 2.0);
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_requested_again() {
    let upstream =
        Upstream::answering(["Certainly! Anna is 31.", r#"{"name":"Anna","age":31}"#]).await;
    let answered = send(&Service::over(&upstream.base_url).await, person()).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    let second = &upstream.requests()[1]["contents"][2]["parts"][0]["text"];
    assert!(second.as_str().unwrap().contains("it is not JSON"), "{second}");
}

#[tokio::test]
async fn a_second_mismatch_fails_and_names_the_mismatch() {
    let wrong = [r#"{"name": "Anna"}"#, r#"{"name": "Anna", "age": -3}"#];
    let upstream = Upstream::answering(wrong).await;
    let service = Service::over(&upstream.base_url).await;
    let failed = send(&service, person()).await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
    assert_eq!(failed.body["code"], "schema_violation");
    let detail = failed.body["detail"].as_str().unwrap();
    assert!(detail.contains("at /age:") && detail.contains("minimum"), "{detail}");
    assert_eq!(upstream.requests().len(), 2, "one repair and no third call");
    service.until_idle().await;
}

/// The schema that Gemini gets allows more than the caller's. Answers are checked against the
/// caller's.
#[tokio::test]
async fn an_answer_is_checked_against_the_callers_own_schema() {
    let schema = json!({
        "type": "object",
        "properties": {"even": {"type": "integer", "multipleOf": 2}},
        "required": ["even"],
    });
    let upstream = Upstream::answering([r#"{"even": 3}"#, r#"{"even": 4}"#]).await;
    let answered = send(&Service::over(&upstream.base_url).await, schema).await;
    assert_eq!(answered.body["data"], json!({"even": 4}), "{answered:?}");
}

#[tokio::test]
async fn an_answer_cut_off_at_the_token_limit_is_not_requested_again() {
    let upstream = Upstream::truncated(r#"{"name": "An"#).await;
    let failed = send(&Service::over(&upstream.base_url).await, person()).await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
    assert_eq!(failed.body["code"], "truncated_answer");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn an_unfinished_answer_is_reported_as_unfinished() {
    let service = Service::start().await;
    let send = async |content: &str| {
        let mut body = question(json!({"type": ["object", "number"], "required": ["a"]}));
        body["user_content"] = json!(content);
        answer(service.post(PATH, &body)).await
    };
    for (content, expected) in [
        (r#"[[simulate:finish=CONTINUATION,text={"a":1}]]"#, "to continue"),
        (r#"[[simulate:finish=MAX_TOKENS,text={"a":1}]]"#, "limit on output tokens"),
        // A number cut in half is still a number.
        ("[[simulate:finish=MAX_TOKENS,text=1234]]", "limit on output tokens"),
    ] {
        let sent = service.simulator.stats().calls;
        let failed = send(content).await;
        assert_eq!(failed.status, StatusCode::BAD_GATEWAY, "{failed:?}");
        assert_eq!(failed.body["code"], "truncated_answer", "{content}");
        assert!(failed.body["detail"].as_str().unwrap().contains(expected), "{failed:?}");
        assert_eq!(service.simulator.stats().calls, sent + 1, "a second call would be cut off too");
    }
    let whole = send(r#"[[simulate:finish=OTHER,text={"a":1}]]"#).await;
    assert_eq!(whole.body["finish_reason"], "OTHER", "{whole:?}");
    assert_eq!(send("[[simulate:text={\"a\":1}]]").await.body["finish_reason"], "STOP");
    // The answer is requested once more, and the reason is given.
    let broken = send(r#"[[simulate:finish=MALFORMED_RESPONSE,text={"a":]]"#).await;
    assert!(
        broken.body["data"].to_string().contains("finishReason MALFORMED_RESPONSE"),
        "{broken:?}"
    );
}

#[tokio::test]
async fn json_in_a_code_fence_or_in_prose_needs_no_second_call() {
    let json = r#"{ "name": "Anna" , "age":31}"#;
    for text in [
        format!("```json\n{json}\n```"),
        format!("Here is the person:\n\n```\n{json}\n```\n"),
        format!("{json}\n\nLet me know if you need more."),
    ] {
        let upstream = Upstream::answering([&text]).await;
        let service = Service::over(&upstream.base_url).await;
        let response = service.post(PATH, &question(person())).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{text}");
        let body = response.text().await.unwrap();
        assert!(body.contains(&format!("\"data\":{json},")), "{body}");
        assert_eq!(upstream.requests().len(), 1, "{text}");
    }
    let two = format!("{json} or {json}");
    let upstream = Upstream::answering([&*two, json]).await;
    assert_eq!(
        send(&Service::over(&upstream.base_url).await, person()).await.status,
        StatusCode::OK
    );
    assert_eq!(upstream.requests().len(), 2, "which of them is meant is unclear");
    let half = r#"{"name": "\ud83d", "age": 31}"#;
    let upstream = Upstream::answering([half]).await;
    let answered = send(&Service::over(&upstream.base_url).await, person()).await;
    assert_eq!(answered.body["data"], json!({"name": "\u{FFFD}", "age": 31}), "{answered:?}");
}

#[tokio::test]
async fn the_data_is_exactly_what_the_model_wrote() {
    let text = r#"{ "z": 1.10, "a": 12345678901234567890123, "m": 1e2,  "b": "\u00e9" }"#;
    let schema = json!({"type": "object", "additionalProperties": true});
    let upstream = Upstream::answering([text]).await;
    let service = Service::over(&upstream.base_url).await;
    let response = service.post(PATH, &question(schema.clone())).send().await.unwrap();
    let body = response.text().await.unwrap();
    assert!(body.contains(&format!("\"data\":{text}")), "{body}");

    let upstream = Upstream::answering([text]).await;
    let batch = json!({"requests": [question(schema)]});
    let response = Service::over(&upstream.base_url)
        .await
        .post("/batch/structured-output", &batch)
        .send()
        .await;
    let body = response.unwrap().text().await.unwrap();
    assert!(body.contains(&format!("\"data\":{text}")), "{body}");
}

#[tokio::test]
async fn an_invalid_schema_is_refused_with_its_location() {
    let service = Service::start().await;
    let age = |age: Value| json!({"type": "object", "properties": {"age": age}});
    for (schema, loc) in [
        (age(json!({"type": "int"})), json!(["json_schema", "properties", "age", "type"])),
        (age(json!({"minimum": "0"})), json!(["json_schema", "properties", "age", "minimum"])),
        (age(json!({"pattern": "("})), json!(["json_schema", "properties", "age", "pattern"])),
        (age(json!({"$ref": "#/$defs/Age"})), json!(["json_schema", "properties", "age", "$ref"])),
        (json!({"required": "age"}), json!(["json_schema", "required"])),
        (json!("object"), json!(["json_schema"])),
        (json!([]), json!(["json_schema"])),
        (json!(false), json!(["json_schema"])),
    ] {
        let in_body = |path: &[Value]| [&[json!("body")], path].concat();
        let loc = loc.as_array().unwrap();
        let refused = send(&service, schema.clone()).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{schema}");
        assert_eq!(refused.body["code"], "validation_error");
        assert_eq!(refused.body["detail"][0]["type"], "json_schema");
        assert_eq!(refused.body["detail"][0]["loc"], json!(in_body(loc)), "{schema}");

        let batch = json!({"requests": [question(person()), question(schema.clone())]});
        let refused = answer(service.post("/batch/structured-output", &batch)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{schema}");
        let loc = in_body(&[&[json!("requests"), json!(1)], &loc[..]].concat());
        assert_eq!(refused.body["detail"][0]["loc"], json!(loc), "{schema}");
    }
    let pointed = send(&service, age(json!({"type": "int"}))).await.body;
    let message = pointed["detail"][0]["msg"].as_str().unwrap();
    assert!(message.contains("#/properties/age/type"), "{message}");
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn a_remote_reference_is_refused_and_never_fetched() {
    let service = Service::start().await;
    let remote = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/person.json", remote.local_addr().unwrap());
    for schema in [
        json!({"$ref": url}),
        json!({"type": "object", "properties": {"a": {"$ref": format!("{url}#/$defs/A")}}}),
        json!({"$schema": url, "type": "object"}),
        json!({"$id": url, "type": "object", "properties": {"a": {"$ref": "other.json"}}}),
    ] {
        let refused = send(&service, schema.clone()).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{schema}");
        assert_eq!(refused.body["detail"][0]["loc"][1], "json_schema");
    }
    // A fetch would have connected before the answer and would wait to be accepted.
    let no_connection = std::future::poll_fn(|context| match remote.poll_accept(context) {
        std::task::Poll::Ready(_) => std::task::Poll::Ready(false),
        std::task::Poll::Pending => std::task::Poll::Ready(true),
    });
    assert!(no_connection.await, "the schema was fetched");
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn one_mismatch_in_a_batch_fails_only_its_item() {
    let service = Service::start().await;
    let unmeetable = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "not": {"required": ["name"]},
    });
    let batch = json!({"requests": [question(person()), question(unmeetable), question(person())]});
    let answered = answer(service.post("/batch/structured-output", &batch)).await;
    assert_eq!(answered.status, StatusCode::OK, "{answered:?}");
    let results = answered.body["results"].as_array().unwrap();
    let successes: Vec<_> = results.iter().map(|result| &result["success"]).collect();
    assert_eq!(successes, [true, false, true]);
    assert_eq!(results[1]["error_code"], "schema_violation");
    assert_eq!(results[1]["retryable"], true);
    assert_eq!((&results[1]["index"], &results[2]["index"]), (&json!(1), &json!(2)));
    assert_eq!(answered.body["failed_requests"], 1);
    assert_eq!(service.simulator.stats().calls, 4, "two for the mismatch");
}
