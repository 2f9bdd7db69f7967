//! Invalid bodies are refused, with the location of every fault, before anything is sent.

use gemini_concurrent_generation::simulator::Options;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{ADMIN_KEY, Answer, Service, answer, kinds};

/// The depth of a body that is meant to exhaust the stack.
const DEEP: usize = 100_000;

/// A request with this raw body.
fn raw(service: &Service, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    service.post(path, &Value::Null).body(body)
}

/// The kind and the location of every fault in an answer.
fn faults(answer: &Answer) -> Vec<(&str, &Value)> {
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
    assert_eq!(answer.body["code"], "validation_error");
    let faults = answer.body["detail"].as_array().expect("a list of faults");
    let fault = |fault: &Value| {
        assert_eq!(fault.as_object().unwrap().len(), 3, "type, loc and msg: {fault}");
        assert!(!fault["msg"].as_str().unwrap().is_empty(), "{fault}");
    };
    faults.iter().for_each(fault);
    faults.iter().map(|fault| (fault["type"].as_str().unwrap(), &fault["loc"])).collect()
}

/// Asserts that a request fails with one fault, of this kind and at this location below `body`.
async fn assert_fault(request: RequestBuilder, kind: &str, place: Value) {
    let refused = answer(request).await;
    let mut loc = vec![json!("body")];
    loc.extend(place.as_array().unwrap().iter().cloned());
    assert_eq!(faults(&refused), [(kind, &Value::Array(loc))], "{}", refused.body);
}

fn assert_nothing_was_sent(service: &Service) {
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let service = Service::start().await;
    let bodies: [Vec<u8>; 12] = [
        b"".into(),
        b" \n".into(),
        b"{".into(),
        b"nonsense".into(),
        b"{'prompt': 'x'}".into(),
        br#"{"prompt": "x""#.into(),
        br#"{"prompt": "x"}}"#.into(),
        br#"{"prompt": "x"} {"prompt": "y"}"#.into(),
        br#"{"prompt": NaN}"#.into(),
        br#"{"prompt": 'x'}"#.into(),
        b"{\"prompt\": \"a\nb\"}".into(),
        b"\xff\xfe".into(),
    ];
    for (path, _) in kinds() {
        for path in [path, &format!("/batch{path}")] {
            for body in &bodies {
                assert_fault(raw(&service, path, body.clone()), "json_invalid", json!([])).await;
            }
        }
    }
    assert_nothing_was_sent(&service);
}

/// JSON that cannot be parsed, with the expected message and location.
#[tokio::test]
async fn an_unreadable_string_or_number_is_reported_with_its_location() {
    let service = Service::start().await;
    let (half, utf_8) = ("one half of a surrogate pair", "not UTF-8");
    for (path, body, kind, place, expected) in [
        ("/chat", &b"{\"prompt\": \"\xff\"}"[..], "string_unicode", json!(["prompt"]), utf_8),
        ("/chat", br#"{"prompt": "\ud800"}"#, "string_unicode", json!(["prompt"]), half),
        (
            "/batch/chat",
            b"{\"requests\": [{\"prompt\": \"fine\"},\n {\"prompt\": \"from a PDF: \\ud835\"}]}",
            "string_unicode",
            json!(["requests", 1, "prompt"]),
            "(line 2, column 32)",
        ),
        (
            "/chat",
            br#"{"prompt": "a", "generation_config": {"temperature": 1e999}}"#,
            "number_out_of_range",
            json!(["generation_config", "temperature"]),
            "too large",
        ),
        (
            "/structured-output",
            br#"{"user_content": "\udc00 a", "system_prompt": "b", "json_schema": {}}"#,
            "string_unicode",
            json!(["user_content"]),
            half,
        ),
    ] {
        let refused = answer(raw(&service, path, body)).await;
        let mut loc = vec![json!("body")];
        loc.extend(place.as_array().unwrap().iter().cloned());
        assert_eq!(faults(&refused), [(kind, &Value::Array(loc))], "{}", refused.body);
        let message = refused.body["detail"][0]["msg"].as_str().unwrap();
        assert!(message.contains(expected) && message.contains("line "), "{message}");
    }
    assert_nothing_was_sent(&service);
}

#[tokio::test]
async fn more_than_one_candidate_is_refused() {
    let service = Service::start().await;
    for (path, body) in kinds() {
        let mut accepted = body.clone();
        accepted["generation_config"] = json!({"candidateCount": 1});
        assert_eq!(answer(service.post(path, &accepted)).await.status, StatusCode::OK, "{path}");
        let sent = service.simulator.stats().calls;
        for (name, count) in [
            ("candidateCount", json!(2)),
            ("candidate_count", json!("3")),
            ("candidateCount", json!(2.0)),
        ] {
            let mut several = body.clone();
            several["generation_config"] = json!({name: count});
            let place = ["generation_config", name];
            assert_fault(service.post(path, &several), "less_than_equal", json!(place)).await;
            let batch = json!({"requests": [body.clone(), several]});
            let place = json!(["requests", 1, "generation_config", name]);
            let path = format!("/batch{path}");
            assert_fault(service.post(&path, &batch), "less_than_equal", place).await;
        }
        assert_eq!(service.simulator.stats().calls, sent);
    }
}

/// Paths that take JSON.
const JSON_PATHS: [&str; 20] = [
    "/chat",
    "/structured-output",
    "/cinematic-story-design",
    "/batch/chat",
    "/batch/structured-output",
    "/batch/cinematic-story-design",
    "/_admin/semaphores",
    "/_admin/semaphores/s/leases",
    "/v1beta/models/m:generateContent",
    "/v1/models/m:streamGenerateContent?alt=sse",
    "/v1beta/models/m:countTokens",
    "/v1beta/models/m:embedContent",
    "/v1beta/models/m:batchEmbedContents",
    "/v1beta/models/m:predict",
    "/v1beta/models/m:predictLongRunning",
    "/v1beta/tunedModels/m:generateContent",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1beta/openai/chat/completions",
    "/v1beta/openai/images/generations",
];

/// Fields with parsers of their own, and one without.
const FIELDS: [&str; 24] = [
    "data",
    "mimeType",
    "mime_type",
    "bytesBase64Encoded",
    "fileUri",
    "file_uri",
    "gcsUri",
    "thoughtSignature",
    "thought_signature",
    "tools",
    "responseSchema",
    "responseJsonSchema",
    "response_format",
    "functionCall",
    "functionResponse",
    "requests",
    "input",
    "prompt",
    "generation_config",
    "json_schema",
    "voice_id_list",
    "credentials",
    "holder",
    "x",
];

fn admin(service: &Service, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    raw(service, path, body).header("admin-api-key", ADMIN_KEY)
}

#[tokio::test]
async fn a_deeply_nested_body_is_refused() {
    let service = Service::start().await;
    service.register("s", 1).await;
    for path in JSON_PATHS {
        // Gemini's and OpenAI's surfaces share a parser; this service's own endpoints share another
        // one.
        let reads_all = matches!(path, "/chat" | "/v1beta/models/m:generateContent");
        for field in &FIELDS[..if reads_all { FIELDS.len() } else { 2 }] {
            let open = format!("{{\"{field}\":");
            // The rest of the body is valid for the endpoint.
            let body = format!(
                r#"{{"model":"m","prompt":"x","{field}":{}1{}}}"#,
                open.repeat(DEEP),
                "}".repeat(DEEP)
            );
            let refused = answer(admin(&service, path, body)).await;
            let status = refused.status.as_u16();
            assert_eq!(status, if path.starts_with("/v1") { 400 } else { 422 }, "{path} {field}");
            let body = refused.body.to_string();
            assert!(body.contains("nested more than 127 levels"), "{path} {field}: {body}");
            assert!(body.len() < 1000, "{path} {field}");
        }
        let open = "[".repeat(DEEP);
        for body in [open.clone(), format!("{open}{}", "]".repeat(DEEP))] {
            let refused = answer(admin(&service, path, body)).await;
            assert!(refused.status.is_client_error(), "{path}: {refused:?}");
        }
    }
    assert_nothing_was_sent(&service);
    assert_eq!(service.chat("still there").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_may_have_127_levels() {
    let service = Service::start().await;
    for (levels, taken) in [(127, true), (128, false)] {
        let config = format!(r#"{}1{}"#, "[".repeat(levels - 2), "]".repeat(levels - 2));
        let body = format!(r#"{{"prompt": "x", "generation_config": {{"a": {config}}}}}"#);
        let refused = answer(raw(&service, "/chat", body)).await;
        assert_eq!(
            refused.body.to_string().contains("127 levels"),
            !taken,
            "{levels}: {refused:?}"
        );
        let body = format!(r#"{{"contents": [], "[{{": "\\\"[[", "x": {{"data": {config}}}}}"#);
        let refused = answer(raw(&service, "/v1beta/models/m:generateContent", body)).await;
        assert_eq!(
            refused.body.to_string().contains("127 levels"),
            !taken,
            "{levels}: {refused:?}"
        );
    }
}

/// A body of one of the kinds with one field replaced.
fn changed(kind: usize, field: &str, value: Value) -> (&'static str, Value) {
    let (path, mut body) = kinds()[kind].clone();
    body[field] = value;
    (path, body)
}

#[tokio::test]
async fn an_invalid_field_is_reported_with_its_location() {
    let service = Service::start().await;
    let all_fields = json!(["Hello", null, null, null, null, null]);
    for body in [json!(null), json!([]), all_fields, json!("Hello"), json!(5), json!(true)] {
        for (path, _) in kinds() {
            assert_fault(service.post(path, &body), "object_type", json!([])).await;
            let batch = format!("/batch{path}");
            assert_fault(service.post(&batch, &body), "object_type", json!([])).await;
        }
    }
    let chat = |field, value| changed(0, field, value);
    let structured = |field, value| changed(1, field, value);
    let story = |field, value| changed(2, field, value);
    for ((path, body), kind, place) in [
        (("/chat", json!({})), "missing", json!(["prompt"])),
        (chat("prompt", json!(null)), "string_type", json!(["prompt"])),
        (chat("prompt", json!(5)), "string_type", json!(["prompt"])),
        (chat("prompt", json!(1.5)), "string_type", json!(["prompt"])),
        (chat("prompt", json!(true)), "string_type", json!(["prompt"])),
        (chat("prompt", json!(["x"])), "string_type", json!(["prompt"])),
        (chat("prompt", json!({"x": 1})), "string_type", json!(["prompt"])),
        (chat("prompt", json!("")), "string_blank", json!(["prompt"])),
        (chat("prompt", json!(" \n\t\u{a0}")), "string_blank", json!(["prompt"])),
        (chat("promt", json!("y")), "extra_forbidden", json!(["promt"])),
        (chat("user_content", json!("y")), "extra_forbidden", json!(["user_content"])),
        (chat("system_prompt", json!(5)), "string_type", json!(["system_prompt"])),
        (chat("model", json!(5)), "string_type", json!(["model"])),
        (chat("generation_config", json!("hot")), "object_type", json!(["generation_config"])),
        (chat("generation_config", json!([])), "object_type", json!(["generation_config"])),
        (chat("external_semaphore_id", json!(5)), "string_type", json!(["external_semaphore_id"])),
        (chat("credentials", json!("key")), "object_type", json!(["credentials"])),
        (
            chat("credentials", json!({"gemini_api_key": 5})),
            "string_type",
            json!(["credentials", "gemini_api_key"]),
        ),
        (
            chat("credentials", json!({"other_api_key": "x"})),
            "extra_forbidden",
            json!(["credentials", "other_api_key"]),
        ),
        (("/structured-output", json!({"user_content": "x"})), "missing", json!(["system_prompt"])),
        (
            ("/structured-output", json!({"user_content": "x", "system_prompt": "y"})),
            "missing",
            json!(["json_schema"]),
        ),
        (structured("system_prompt", json!(null)), "string_type", json!(["system_prompt"])),
        (structured("user_content", json!(" ")), "string_blank", json!(["user_content"])),
        (structured("system_prompt", json!("")), "string_blank", json!(["system_prompt"])),
        (structured("prompt", json!("x")), "extra_forbidden", json!(["prompt"])),
        (story("user_content", json!("")), "string_blank", json!(["user_content"])),
        (story("voice_id_list", json!("x")), "list_type", json!(["voice_id_list"])),
        (story("voice_id_list", json!(["x", 5])), "string_type", json!(["voice_id_list", 1])),
        (story("json_schema", json!({})), "extra_forbidden", json!(["json_schema"])),
    ] {
        assert_fault(service.post(path, &body), kind, place).await;
    }
    let twice = raw(&service, "/chat", r#"{"prompt": "x", "prompt": "y"}"#);
    assert_fault(twice, "duplicate", json!(["prompt"])).await;
    assert_nothing_was_sent(&service);
}

#[tokio::test]
async fn null_counts_as_absent_for_optional_fields() {
    let service = Service::start().await;
    let nothing = json!({
        "model": null, "credentials": null, "external_semaphore_id": null,
        "generation_config": null,
    });
    for (path, mut body) in kinds() {
        let fields = body.as_object_mut().unwrap();
        fields.extend(nothing.as_object().unwrap().clone());
        if path == "/chat" {
            fields.insert("system_prompt".into(), Value::Null);
        }
        let taken = answer(service.post(path, &body)).await;
        assert_eq!(taken.status, StatusCode::OK, "{path}: {taken:?}");
        let batch = json!({"requests": [body], "credentials": null, "external_semaphore_id": null});
        let taken = answer(service.post(&format!("/batch{path}"), &batch)).await;
        assert_eq!(taken.body["successful_requests"], 1, "{path}: {taken:?}");
    }
}

#[tokio::test]
async fn an_invalid_item_refuses_the_batch_and_is_located() {
    let service = Service::start().await;
    let good = json!({"prompt": "x"});
    let fourth = |item: Value| json!({"requests": [good, good, good, item, good]});
    for (body, kind, place) in [
        (json!({}), "missing", json!(["requests"])),
        (json!({"requests": null}), "list_type", json!(["requests"])),
        (json!({"requests": good}), "list_type", json!(["requests"])),
        (json!({"requests": [], "model": "x"}), "extra_forbidden", json!(["model"])),
        (json!({"requests": [], "credentials": 5}), "object_type", json!(["credentials"])),
        (fourth(json!(null)), "object_type", json!(["requests", 3])),
        (fourth(json!("x")), "object_type", json!(["requests", 3])),
        (fourth(json!(["x", null, null, null, null, null])), "object_type", json!(["requests", 3])),
        (fourth(json!({})), "missing", json!(["requests", 3, "prompt"])),
        (fourth(json!({"prompt": 5})), "string_type", json!(["requests", 3, "prompt"])),
        (fourth(json!({"prompt": null})), "string_type", json!(["requests", 3, "prompt"])),
        (fourth(json!({"prompt": " "})), "string_blank", json!(["requests", 3, "prompt"])),
        (
            fourth(json!({"prompt": "x", "promt": "y"})),
            "extra_forbidden",
            json!(["requests", 3, "promt"]),
        ),
        (
            fourth(json!({"prompt": "x", "model": "../x"})),
            "model_name",
            json!(["requests", 3, "model"]),
        ),
        (
            fourth(json!({"prompt": "x", "credentials": {"gemini_api_key": 5}})),
            "string_type",
            json!(["requests", 3, "credentials", "gemini_api_key"]),
        ),
    ] {
        assert_fault(service.post("/batch/chat", &body), kind, place).await;
    }
    let good = &kinds()[1].1;
    let (path, bad) = changed(1, "json_schema", json!({"type": "text"}));
    let batch = json!({"requests": [good, bad]});
    let refused = answer(service.post(&format!("/batch{path}"), &batch)).await;
    let place = faults(&refused)[0].1.as_array().unwrap();
    let item = [json!("body"), json!("requests"), json!(1), json!("json_schema")];
    assert!(place.starts_with(&item), "{place:?}");
    assert_nothing_was_sent(&service);
}

#[tokio::test]
async fn several_invalid_fields_are_reported_together() {
    let service = Service::start().await;
    let batch = json!({"requests": [
        {"prompt": "x"}, {"prompt": " "}, {"prompt": "x"}, {"prompt": "", "model": "a/b"},
    ]});
    let refused = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(
        faults(&refused),
        [
            ("string_blank", &json!(["body", "requests", 1, "prompt"])),
            ("string_blank", &json!(["body", "requests", 3, "prompt"])),
            ("model_name", &json!(["body", "requests", 3, "model"])),
        ]
    );
    let blank = json!({
        "user_content": "", "system_prompt": " ", "model": "?", "json_schema": {"type": "text"},
    });
    let refused = answer(service.post("/structured-output", &blank)).await;
    let faults = faults(&refused);
    assert_eq!(
        faults[..3],
        [
            ("string_blank", &json!(["body", "user_content"])),
            ("string_blank", &json!(["body", "system_prompt"])),
            ("model_name", &json!(["body", "model"])),
        ]
    );
    assert_eq!((faults[3].0, &faults[3].1[1]), ("json_schema", &json!("json_schema")));
    assert_nothing_was_sent(&service);
}

#[tokio::test]
async fn a_batch_longer_than_the_limit_is_refused() {
    let service = Service::with(Options::default(), |config| config.max_batch_size = 3).await;
    for (path, body) in kinds() {
        let path = format!("/batch{path}");
        let batch = |items: usize| json!({"requests": vec![&body; items]});
        assert_fault(service.post(&path, &batch(4)), "too_long", json!(["requests"])).await;
        assert_nothing_was_sent(&service);
        assert_eq!(answer(service.post(&path, &batch(3))).await.body["successful_requests"], 3);
        service.simulator.reset();
    }
}

#[tokio::test]
async fn a_models_prefix_is_optional_and_its_name_is_sent_unchanged() {
    let service = Service::start().await;
    let longest = format!("gemini-{}", "x".repeat(128 - "gemini-".len()));
    for (given, named) in [
        ("gemini-3.5-flash-lite", "gemini-3.5-flash-lite"),
        ("models/gemini-3.5-flash-lite", "gemini-3.5-flash-lite"),
        ("gemini-3_preview.06-05", "gemini-3_preview.06-05"),
        ("tunedModels/My_model.1", "tunedModels/My_model.1"),
        ("tunedModels/0", "tunedModels/0"),
        (&longest, &*longest),
        (&format!("models/{longest}"), &longest),
    ] {
        let chat = answer(service.post("/chat", &json!({"prompt": "x", "model": given}))).await;
        assert_eq!(chat.status, StatusCode::OK, "{given}: {chat:?}");
        assert_eq!(chat.body["model"], named);
        let asked = service.simulator.journal().pop().unwrap().model;
        assert_eq!(asked, named.rsplit('/').next().unwrap());
    }
}

#[tokio::test]
async fn a_model_name_that_would_change_the_url_is_refused() {
    let service = Service::start().await;
    let too_long = format!("gemini-{}", "x".repeat(129 - "gemini-".len()));
    for model in [
        "",
        " ",
        ".",
        "..",
        ".hidden",
        "-gemini",
        "_gemini",
        "../gemini",
        "../../v1/files",
        "gemini/../../x",
        "gemini/x",
        "/gemini",
        "gemini/",
        "models/",
        "models/models/gemini",
        "models/../gemini",
        "tunedModels/",
        "tunedModels/..",
        "tunedModels/a/b",
        "tunedmodels/a",
        "gemini?key=x",
        "gemini#x",
        "gemini:generateContent",
        "gemini%2e%2e",
        "gemini\\x",
        "gemini x",
        " gemini",
        "gemini\n",
        "gemini\u{0}",
        "gémini",
        "ｇemini",
        "gemini\u{202e}",
        "http://example.com/",
        &too_long,
        &format!("tunedModels/{}", "x".repeat(129)),
    ] {
        for (path, mut body) in kinds() {
            body["model"] = json!(model);
            assert_fault(service.post(path, &body), "model_name", json!(["model"])).await;
            let batch = service.post(&format!("/batch{path}"), &json!({"requests": [body]}));
            assert_fault(batch, "model_name", json!(["requests", 0, "model"])).await;
        }
    }
    assert_nothing_was_sent(&service);
}
