//! Lines of OpenAI's and Gemini's batch files, and results in their words.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{JobService, accepted, faults};
use crate::support::answer;

fn openai(id: &str, prompt: &str) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "gemini-3.8-flash", "messages": [{"role": "user", "content": prompt}]}})
}

fn gemini(key: &str, prompt: &str) -> Value {
    json!({"key": key, "request": {"contents": [{"parts": [{"text": prompt}]}]}})
}

fn text(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn lines_of_openais_batch_files_are_answered_as_openai_does() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let embed = json!({"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {
        "model": "gemini-embedding-001", "input": ["a", "b"]}});
    let items = [openai("a", "Hello"), openai("b", "[[simulate:status=400]]"), embed];
    let id = accepted(answer(service.upload("", text(&items))).await);
    let results = service.all_results(&id).await;
    assert_eq!(results.len(), 3);
    for (n, (result, custom_id)) in results.iter().zip(["a", "b", "c"]).enumerate() {
        assert_eq!((&result["index"], &result["custom_id"]), (&json!(n), &json!(custom_id)));
        assert!(result["id"].as_str().unwrap().starts_with("batch_req_"), "{result}");
        assert_eq!(result["error"], Value::Null);
        assert!(result["response"]["request_id"].is_string());
    }
    let chat = answer(service.post("/v1/chat/completions", &openai("a", "Hello")["body"])).await;
    let mut expected = chat.body.clone();
    let mut body = results[0]["response"]["body"].clone();
    for field in ["id", "created"] {
        (expected[field], body[field]) = (Value::Null, Value::Null);
    }
    assert_eq!((&results[0]["response"]["status_code"], body), (&json!(200), expected));
    assert_eq!(results[1]["response"]["status_code"], 400);
    assert_eq!(results[1]["response"]["body"]["error"]["code"], "invalid_request");
    assert_eq!(results[2]["response"]["body"]["data"].as_array().unwrap().len(), 2);
    let job = service.job(&id).await;
    assert_eq!(
        (&job["kind"], &job["succeeded"], &job["failed"]),
        (&json!("openai"), &json!(2), &json!(1))
    );
    assert!(job["input_tokens"].as_u64().unwrap() > 0 && job["cost_usd"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn lines_of_geminis_batch_files_are_answered_as_gemini_does() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    let named = json!({"key": "c", "request": {"model": "models/gemini-3.5-flash-lite",
        "contents": [{"parts": [{"text": "Hi"}]}], "generation_config": {"temperature": 0.7}}});
    let embed = json!({"key": "d", "model": "gemini-embedding-001",
        "request": {"content": {"parts": [{"text": "Hi"}]}}});
    let items = [gemini("a", "Hello"), gemini("b", "[[simulate:status=400]]"), named, embed];
    let request = service.http.post(service.url("/jobs?model=gemini-3.8-flash")).body(text(&items));
    let id = accepted(answer(request.header("content-type", "application/jsonl")).await);
    let results = service.all_results(&id).await;
    let answered =
        |n: usize| &results[n]["response"]["candidates"][0]["content"]["parts"][0]["text"];
    assert_eq!(
        (&results[0]["key"], answered(0)),
        (&json!("a"), &json!("Simulated answer to: Hello"))
    );
    let error = &results[1]["error"];
    assert_eq!(
        (&results[1]["key"], &error["code"], &error["status"]),
        (&json!("b"), &json!(400), &json!("INVALID_ARGUMENT"))
    );
    assert!(error["message"].is_string());
    assert_eq!(results[2]["response"]["modelVersion"], "gemini-3.5-flash-lite");
    assert!(results[3]["response"]["embedding"]["values"].is_array(), "{}", results[3]);
    let indices: Vec<_> = results.iter().map(|result| &result["index"]).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let job = service.job(&id).await;
    assert_eq!(
        (&job["kind"], &job["succeeded"], &job["failed"]),
        (&json!("gemini"), &json!(3), &json!(1))
    );
    assert_eq!(job["failures"]["invalid_request"]["example"], 1);
}

#[tokio::test]
async fn shared_fields_and_the_jobs_model_are_added_to_the_request() {
    let service = JobService::start().await;
    let job = |shared: Value| json!({"job": {"model": "gemini-shared", "service_tier": "flex", "shared": shared}});
    let line = json!({"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": []}});
    let shared = job(json!({"messages": [], "n": 1}));
    accepted(answer(service.upload("", text(&[shared, line]))).await);
    let shared = job(json!({"systemInstruction": {"parts": [{"text": "Be brief."}]}}));
    let id = accepted(answer(service.upload("", text(&[shared, gemini("a", "Hello")]))).await);
    let results = service.all_results(&id).await;
    assert_eq!(results[0]["response"]["usageMetadata"]["serviceTier"], "flex", "{results:?}");
    let calls = service.simulator.journal();
    let call = calls.iter().find(|call| call.prompt_text.contains("Hello")).unwrap();
    assert_eq!(call.model, "gemini-shared");
}

#[tokio::test]
async fn lines_that_gemini_could_not_answer_are_refused() {
    let service = JobService::without_engine(|_| {}).await;
    let with = |field: &str, value: Value| {
        let mut line = openai("a", "Hello");
        *line.pointer_mut(field).unwrap() = value;
        line
    };
    let mut streamed = openai("a", "Hello");
    streamed["body"]["stream"] = json!(true);
    let mut keyed = openai("a", "Hello");
    keyed["body"]["credentials"] = json!({"gemini_api_key": "x"});
    let mut typo = openai("a", "Hello");
    typo["methods"] = json!("POST");
    let mut no_model = openai("a", "Hello");
    no_model["body"].as_object_mut().unwrap().remove("model");
    for (line, place) in [
        (with("/method", json!("GET")), r#"["body","line",1,"method"]"#),
        (with("/url", json!("/v1/responses")), r#"["body","line",1,"url"]"#),
        (with("/url", json!("https://api.openai.com/v1/embeddings")), r#"["body","line",1,"url"]"#),
        (with("/body", json!([])), r#"["body","line",1,"body"]"#),
        (with("/body/model", json!("a/b/c")), r#"["body","line",1,"body","model"]"#),
        (with("/custom_id", json!(7)), r#"["body","line",1,"custom_id"]"#),
        (streamed, r#"["body","line",1,"body","stream"]"#),
        (keyed, r#"["body","line",1,"body","credentials"]"#),
        (typo, r#"["body","line",1,"methods"]"#),
        (no_model, r#"["body","line",1,"body","model"]"#),
    ] {
        let refused = answer(service.upload("openai", text(&[line]))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(faults(&refused)[0].0, place, "{refused:?}");
    }
    for (line, place) in [
        (gemini("a", "Hello"), r#"["body","line",1,"request","model"]"#),
        (json!({"key": 7, "request": {}}), r#"["body","line",1,"key"]"#),
        (json!({"key": "a", "request": 7}), r#"["body","line",1,"request"]"#),
        (
            json!({"key": "a", "model": "m", "request": {}}),
            r#"["body","line",1,"request","contents"]"#,
        ),
        (
            json!({"key": "a", "request": {"model": 7, "contents": []}}),
            r#"["body","line",1,"request","model"]"#,
        ),
    ] {
        let refused = answer(service.upload("gemini", text(&[line]))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(faults(&refused)[0].0, place, "{refused:?}");
    }
    assert_eq!(service.list().await, [Value::Null; 0]);
}
