//! Every form in which a job can be sent.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{JobService, accepted, chats, faults};
use crate::support::{ADMIN_KEY, answer, kinds};

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(text, 3).unwrap()
}

fn prompts(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("question {n}"))
}

/// A form with some fields and a file.
fn form(fields: &[(&str, &str)], file: &[u8]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend([head.as_bytes(), value.as_bytes(), b"\r\n"].concat());
    }
    let head = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n";
    body.extend([head.as_bytes(), file, b"\r\n--x--\r\n"].concat());
    ("multipart/form-data; boundary=x".to_owned(), body)
}

#[tokio::test]
async fn every_form_of_a_body_becomes_the_same_job() {
    let service = JobService::start().await;
    let text = chats(prompts(300));
    let (form_type, whole_form) = form(&[("job_name", "named")], text.as_bytes());
    let (_, zipped_file) = form(&[], &gzip(text.as_bytes()));
    let (_, zstd_file) = form(&[], &zstd(text.as_bytes()));
    let requests: Vec<Value> = prompts(300).map(|prompt| json!({"prompt": prompt})).collect();
    let list = serde_json::to_string_pretty(&json!({"requests": requests})).unwrap();
    let spaced = format!("\u{feff}\r\n{}\n\n", text.replace('\n', " \r\n\n"));
    let with_options = format!("{}\n{text}", json!({"job": {"job_name": "named"}}));
    for (content_type, encoding, body) in [
        ("application/x-ndjson", "", text.clone().into_bytes()),
        ("application/jsonl; charset=utf-8", "", text.clone().into_bytes()),
        ("application/x-ndjson", "gzip", gzip(text.as_bytes())),
        ("application/x-ndjson", "zstd", zstd(text.as_bytes())),
        ("application/x-ndjson", "", spaced.into_bytes()),
        ("application/x-ndjson", "", text.trim_end().to_owned().into_bytes()),
        ("application/x-ndjson", "", with_options.into_bytes()),
        (&*form_type, "", whole_form.clone()),
        (&*form_type, "gzip", gzip(&whole_form)),
        (&*form_type, "", zipped_file),
        (&*form_type, "", zstd_file),
        ("application/json", "", list.clone().into_bytes()),
        ("application/json", "gzip", gzip(list.as_bytes())),
    ] {
        let request = service.http.post(service.url("/jobs?kind=chat")).body(body);
        let request = request.header("content-type", content_type);
        let request = match encoding {
            "" => request,
            encoding => request.header("content-encoding", encoding),
        };
        let id = accepted(answer(request).await);
        let results = service.all_results(&id).await;
        assert_eq!(results.len(), 300, "{content_type} {encoding}");
        for (n, result) in results.iter().enumerate() {
            assert_eq!(result["index"], n);
            assert_eq!(result["response"], format!("Simulated answer to: question {n}"));
        }
        let job = service.job(&id).await;
        assert_eq!((&job["status"], &job["succeeded"]), (&json!("completed"), &json!(300)));
    }
}

#[tokio::test]
async fn a_result_is_that_of_a_batch() {
    let service = JobService::start().await;
    for (path, body) in kinds() {
        let batch = json!({"requests": [body]});
        let batch = answer(service.post(&format!("/batch{path}"), &batch)).await.body;
        let kind = path.trim_start_matches('/');
        let id = accepted(answer(service.upload(kind, body.to_string())).await);
        assert_eq!(service.all_results(&id).await, batch["results"].as_array().unwrap()[..]);
    }
}

#[tokio::test]
async fn ids_come_back_and_may_occur_twice() {
    let service = JobService::start().await;
    let line = json!({"prompt": "a", "custom_id": "é", "id": "2"}).to_string();
    let id = accepted(answer(service.upload("chat", format!("{line}\n{line}"))).await);
    let results = service.all_results(&id).await;
    let ids: Vec<_> = results.iter().map(|result| (&result["custom_id"], &result["id"])).collect();
    assert_eq!(ids, [(&json!("é"), &json!("2")); 2]);
}

#[tokio::test]
async fn options_come_from_the_query_headers_fields_and_the_first_line() {
    let service = JobService::without_engine(|_| {}).await;
    service.register("images", 1).await;
    let text = chats(prompts(1));
    let named = |options: Value, text: &str| format!("{}\n{text}", json!({"job": options}));
    let with_query = service.http.post(service.url("/jobs?kind=chat&job_name=a+b&model=gemini-x"));
    let with_query = with_query.header("content-type", "application/jsonl").body(text.clone());
    let with_line =
        service.upload("openai", named(json!({"kind": "chat", "job_name": "a b"}), &text));
    let (form_type, body) = form(&[("kind", "chat"), ("job_name", "a b")], text.as_bytes());
    let with_fields = service.http.post(service.url("/jobs")).body(body);
    let with_fields = with_fields.header("content-type", form_type);
    let list = json!({"kind": "chat", "job_name": "a b", "requests": [{"prompt": "x"}]});
    let with_list = service.post("/jobs", &list);
    for request in [with_query, with_line, with_fields, with_list] {
        let begun = answer(request.header("X-External-Semaphore-Id", "images")).await;
        assert_eq!(begun.body["job_name"], "a b", "{begun:?}");
        assert_eq!(begun.body["kind"], "chat");
        assert_eq!((&begun.body["status"], &begun.body["total"]), (&json!("queued"), &json!(1)));
    }
    for (options, place) in [
        (json!({"kind": "chats"}), r#"["body","line",1,"job","kind"]"#),
        (json!({"job_nam": "x"}), r#"["body","line",1,"job","job_nam"]"#),
        (json!({"job_name": ""}), r#"["body","job_name"]"#),
        (json!({"model": "a/b/c"}), r#"["body","model"]"#),
        (json!({"service_tier": "gold"}), r#"["body","service_tier"]"#),
        (json!({"webhook_url": "ftp://example.com"}), r#"["body","webhook_url"]"#),
        (json!({"webhook_url": "https://a:b@example.com"}), r#"["body","webhook_url"]"#),
        (json!({"shared": {"credentials": {}}}), r#"["body","shared","credentials"]"#),
        (json!({"flex_fallback_seconds": 5}), r#"["body","flex_fallback_seconds"]"#),
    ] {
        let refused = answer(service.upload("chat", named(options.clone(), &text))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{options}");
        assert_eq!(faults(&refused)[0].0, place, "{refused:?}");
    }
    for query in
        ["?kind=chats", "?kind=chat&x=1", "?kind=chat&kind=chat", "", "?flex_fallback_seconds=x"]
    {
        let request = service.http.post(service.url(&format!("/jobs{query}")));
        let request = request.header("content-type", "application/x-ndjson").body(text.clone());
        let refused = answer(request).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
        assert!(faults(&refused)[0].0.starts_with("[\"query\","), "{refused:?}");
    }
    assert_eq!(service.list().await.len(), 4);
}

#[tokio::test]
async fn shared_fields_are_added_to_items_that_lack_them() {
    let service = JobService::start().await;
    let schema =
        json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let job = json!({"job": {"kind": "structured-output", "model": "gemini-shared", "shared": {
        "system_prompt": "Count.", "json_schema": schema}}});
    let own = json!({"user_content": "two", "system_prompt": "Own.", "model": "gemini-own"});
    let text = format!("{job}\n{}\n{own}\n", json!({"user_content": "one"}));
    let id = accepted(answer(service.upload("", text)).await);
    let results = service.all_results(&id).await;
    assert!(results.iter().all(|result| result["data"]["n"].is_i64()), "{results:?}");
    let models: Vec<_> = results.iter().map(|result| &result["model"]).collect();
    assert_eq!(models, ["gemini-shared", "gemini-own"]);
    let calls = service.simulator.journal();
    let asked = |text: &str| calls.iter().filter(|call| call.prompt_text.contains(text)).count();
    assert_eq!((asked("one"), asked("two")), (1, 1));
}

#[tokio::test]
async fn items_use_the_semaphore_and_the_tier_of_their_job() {
    let service = JobService::with(|config| config.max_attempts = 1).await;
    service.register("images", 1).await;
    let options = json!({"job": {"external_semaphore_id": "images", "service_tier": "flex"}});
    let text = format!("{options}\n{}", chats(["a [[simulate:latency_ms=60000]]".to_owned()]));
    accepted(answer(service.upload("chat", text)).await);
    service.until("one runs", |limiter| limiter.in_flight == 1).await;
    let in_use = service.gateway.limiter.store().named().into_iter();
    let in_use: Vec<_> = in_use.map(|(_, semaphore)| semaphore.usage().in_use).collect();
    assert_eq!(in_use, [1]);
}

#[tokio::test]
async fn bad_lines_are_listed_and_nothing_is_stored() {
    let service = JobService::without_engine(|_| {}).await;
    let good = json!({"prompt": "a"}).to_string();
    let text = [
        &*good,
        "",
        r#"{"prompt": ""}"#,
        "{\"prompt\": \"a\"",
        r#"{"prompt": "a", "promt": "b"}"#,
        r#"{"prompt": "a", "credentials": {"gemini_api_key": "x"}}"#,
        r#"{"prompt": "a", "stream": true}"#,
        r#"{"prompt": "a", "custom_id": ""}"#,
        "[1]",
        &good,
        r#"{"prompt": "a", "service_tier": "gold", "generation_config": {"candidateCount": 2}}"#,
    ];
    let refused = answer(service.upload("chat", text.join("\n"))).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.body["code"], "validation_error");
    let expected = [
        (r#"["body","line",3,"prompt"]"#, "string_blank"),
        (r#"["body","line",4]"#, "json_invalid"),
        (r#"["body","line",5,"promt"]"#, "extra_forbidden"),
        (r#"["body","line",6,"credentials"]"#, "extra_forbidden"),
        (r#"["body","line",7,"stream"]"#, "value_error"),
        (r#"["body","line",8,"custom_id"]"#, "string_length"),
        (r#"["body","line",9]"#, "object_type"),
        (r#"["body","line",11,"generation_config","candidateCount"]"#, "less_than_equal"),
        (r#"["body","line",11,"service_tier"]"#, "literal_error"),
    ];
    let found = faults(&refused);
    for (place, kind) in expected {
        assert!(found.contains(&(place.to_owned(), kind.to_owned())), "{place}: {found:?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:?}");
    let message = refused.body["detail"][1]["msg"].as_str().unwrap();
    assert!(
        message.starts_with("The line is not JSON") && !message.contains("line 1"),
        "{message}"
    );

    let many: String =
        (0..1000).map(|n| format!("{}\n{{}}\n", json!({"prompt": n.to_string()}))).collect();
    let refused = answer(service.upload("chat", many)).await;
    let places: Vec<_> = faults(&refused).into_iter().map(|(place, _)| place).collect();
    let expected: Vec<_> =
        (1..=100).map(|n| format!("[\"body\",\"line\",{},\"prompt\"]", 2 * n)).collect();
    assert_eq!(places, expected);
    assert_eq!(service.list().await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_bad_item_of_a_list_is_named_by_its_index() {
    let service = JobService::without_engine(|_| {}).await;
    let list =
        json!({"kind": "chat", "requests": [{"prompt": "a"}, {"prompt": 7}, {"prompt": "b"}]});
    let refused = answer(service.post("/jobs", &list)).await;
    let expected = (r#"["body","requests",1,"prompt"]"#.to_owned(), "string_type".to_owned());
    assert_eq!(faults(&refused), [expected]);
}

#[tokio::test]
async fn a_job_without_items_or_of_an_unknown_type_is_refused() {
    let service = JobService::without_engine(|_| {}).await;
    for empty in ["", "\n\n", "\u{feff}\r\n", "{\"job\": {\"kind\": \"chat\"}}\n"] {
        let refused = answer(service.upload("chat", empty)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{empty:?}");
        assert_eq!(faults(&refused), [("[\"body\"]".to_owned(), "too_short".to_owned())]);
    }
    let list = answer(service.post("/jobs?kind=chat", &json!({"requests": []}))).await;
    assert_eq!(list.status, StatusCode::UNPROCESSABLE_ENTITY);
    for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let request = service.http.post(service.url("/jobs?kind=chat")).body("{\"prompt\": \"a\"}");
        let refused = answer(request.header("content-type", content_type)).await;
        assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_refused() {
    let service = JobService::without_engine(|_| {}).await;
    let text = chats(prompts(300));
    for whole in [gzip(text.as_bytes()), zstd(text.as_bytes())] {
        let (content_type, body) = form(&[("kind", "chat")], &whole[..whole.len() - 4]);
        let request = service.http.post(service.url("/jobs")).body(body);
        let refused = answer(request.header("content-type", content_type)).await;
        assert_eq!(refused.body["code"], "body_not_decoded", "{refused:?}");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.starts_with("The file begins like one in "), "{detail}");
    }
}

#[tokio::test]
async fn options_that_are_too_long_are_refused() {
    let service = JobService::without_engine(|_| {}).await;
    let shared = json!({"system_prompt": "x".repeat(4 << 20)});
    let line = json!({"job": {"kind": "chat", "shared": shared}});
    let refused = answer(service.upload("chat", format!("{line}\n{}", chats(prompts(1))))).await;
    assert_eq!(
        faults(&refused),
        [(r#"["body","line",1,"job"]"#.to_owned(), "too_long".to_owned())]
    );
    let list = json!({"kind": "chat", "shared": shared, "requests": [{"prompt": "a"}]});
    let refused = answer(service.post("/jobs", &list)).await;
    assert_eq!(faults(&refused), [(r#"["body","shared"]"#.to_owned(), "too_long".to_owned())]);
    let (content_type, body) = form(&[("kind", "chat"), ("shared", &shared.to_string())], b"{}");
    let request = service.http.post(service.url("/jobs")).body(body);
    let refused = answer(request.header("content-type", content_type)).await;
    assert_eq!(faults(&refused), [(r#"["body","shared"]"#.to_owned(), "too_long".to_owned())]);
}

#[tokio::test]
async fn limits_of_a_job_are_enforced() {
    let service = JobService::without_engine(|config| {
        config.job_max_items = 3;
        config.job_max_bytes = 200;
    })
    .await;
    accepted(answer(service.upload("chat", chats(prompts(3)))).await);
    let refused = answer(service.upload("chat", chats(prompts(4)))).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("body_too_large"))
    );
    assert!(refused.body["detail"].as_str().unwrap().contains("JOB_MAX_ITEMS"), "{refused:?}");
    let refused = answer(service.upload("chat", chats(["x".repeat(300)]))).await;
    assert!(refused.body["detail"].as_str().unwrap().contains("JOB_MAX_BYTES"), "{refused:?}");
    assert_eq!(service.list().await.len(), 1);
}

#[tokio::test]
async fn an_unknown_semaphore_and_the_admin_key_refuse_the_job() {
    let service = JobService::without_engine(|config| {
        config.admin_api_key = Some(gemini_concurrent_generation::config::AdminKey::new(
            "an-admin-key-of-many-letters",
        ));
    })
    .await;
    let line = json!({"prompt": "a", "external_semaphore_id": "lost"}).to_string();
    let refused = answer(service.upload("chat", format!("{}{line}", chats(prompts(2))))).await;
    assert_eq!(refused.body["code"], "semaphore_not_found");
    let secret = chats(["my key is an-admin-key-of-many-letters".to_owned()]);
    for text in [
        format!("{}{secret}", chats(prompts(2))),
        format!(
            "{}\n{}",
            json!({"job": {"job_name": "an-admin-key-of-many-letters"}}),
            chats(prompts(1))
        ),
        json!({"prompt": "a", "custom_id": "an-admin-key-of-many-letters"}).to_string(),
    ] {
        let refused = answer(service.upload("chat", text)).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
    }
    assert_ne!(ADMIN_KEY, "an-admin-key-of-many-letters");
}

#[tokio::test]
async fn the_same_idempotency_key_and_content_is_the_same_job() {
    let service = JobService::start().await;
    let send = |key: &str, text: String| {
        answer(service.upload("chat", text).header("Idempotency-Key", key))
    };
    let id = accepted(send("one", chats(prompts(200))).await);
    let again = send("one", chats(prompts(200))).await;
    assert_eq!((again.status, &again.body["job_id"]), (StatusCode::OK, &json!(id)));
    assert_eq!(again.headers["location"], format!("/jobs/{id}"));
    for text in
        [chats(prompts(199)), chats(prompts(201)), chats(prompts(200)).replacen("199", "198", 1)]
    {
        let other = send("one", text).await;
        assert_eq!(
            (other.status, &other.body["code"]),
            (StatusCode::CONFLICT, &json!("idempotency_conflict"))
        );
    }
    let named = format!("{}\n{}", json!({"job": {"job_name": "x"}}), chats(prompts(200)));
    assert_eq!(send("one", named).await.status, StatusCode::CONFLICT);
    assert_ne!(accepted(send("two", chats(prompts(200))).await), id);
    assert_eq!(service.list().await.len(), 2);
    for key in ["", "a b", &"x".repeat(257)] {
        let refused = send(key, chats(prompts(1))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{key}");
        assert_eq!(faults(&refused)[0].0, r#"["header","Idempotency-Key"]"#);
    }
}
