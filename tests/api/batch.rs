//! Batches: complete, in order, each answer with its question, each failure alone.

use std::time::Duration;

use fastrand::Rng;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Service, answer, kinds, slow};

async fn limited(concurrency_limit: usize) -> Service {
    Service::with(Options::default(), |config| config.concurrency_limit = concurrency_limit).await
}

fn chats(prompts: impl IntoIterator<Item = String>) -> Value {
    let requests = prompts.into_iter().map(|prompt| json!({"prompt": prompt}));
    json!({"requests": requests.collect::<Vec<Value>>()})
}

#[tokio::test]
async fn results_are_in_order_when_later_items_finish_first() {
    const ITEMS: usize = 20;
    let service = limited(ITEMS).await;
    let prompt = |n: usize| format!("question {n} {}", slow((ITEMS - n) as u64 * 50));
    let batch = answer(service.post("/batch/chat", &chats((0..ITEMS).map(prompt)))).await;

    for (n, result) in batch.body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["index"], n);
        assert_eq!(result["response"], format!("Simulated answer to: question {n}"));
    }
    assert_eq!(batch.body["total_requests"], ITEMS);
    assert_eq!(batch.body["successful_requests"], ITEMS);
    assert_eq!(batch.body["failed_requests"], 0);
}

#[tokio::test]
async fn a_batch_result_equals_a_single_answer_plus_its_index() {
    let service = Service::start().await;
    for (path, body) in kinds() {
        let mut single = answer(service.post(path, &body)).await.body;
        single["index"] = json!(0);
        let batch = json!({"requests": [body]});
        let batch = answer(service.post(&format!("/batch{path}"), &batch)).await.body;
        let usage = single["usage"].clone();
        let counts = json!({
            "results": [single], "total_requests": 1, "successful_requests": 1,
            "failed_requests": 0, "usage": usage,
        });
        assert_eq!(batch, counts, "{path}");
    }
}

#[tokio::test]
async fn an_items_ids_are_returned_with_its_result() {
    let service = Service::start().await;
    for (path, body) in kinds() {
        let named = |id: &Value| {
            let mut item = body.clone();
            item.as_object_mut().unwrap().extend(id.as_object().unwrap().clone());
            item
        };
        // Several items may have the same id, in any characters. The index tells them apart.
        let ids = [
            json!({"custom_id": "row-1"}),
            json!({"custom_id": "row-1", "id": "é".repeat(256)}),
            json!({}),
            json!({"custom_id": null}),
        ];
        let requests: Vec<Value> = ids.iter().map(named).collect();
        let batch = service.post(&format!("/batch{path}"), &json!({"requests": requests}));
        let batch = answer(batch).await;
        assert_eq!(batch.body["successful_requests"], 4, "{path}: {batch:?}");
        for (place, result) in batch.body["results"].as_array().unwrap().iter().enumerate() {
            let sent = |name: &str| ids[place].get(name).filter(|id| !id.is_null());
            assert_eq!(result["index"], place);
            assert_eq!(result.get("custom_id"), sent("custom_id"));
            assert_eq!(result.get("id"), sent("id"));
        }
        let single = service.post(path, &named(&json!({"custom_id": "row-1"})));
        assert_eq!(answer(single).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let blocked = json!({"requests": [{"id": "a", "prompt": "[[simulate:blocked=SAFETY]]"}]});
    let blocked = answer(service.post("/batch/chat", &blocked)).await;
    assert_eq!(blocked.body["results"][0]["id"], "a");
}

#[tokio::test]
async fn an_invalid_item_id_is_reported_with_its_location() {
    let service = Service::start().await;
    let long = "x".repeat(257);
    for (id, kind) in [
        (json!(7), "string_type"),
        (json!({}), "string_type"),
        (json!(""), "string_length"),
        (json!(long), "string_length"),
    ] {
        for field in ["custom_id", "id"] {
            let batch = json!({"requests": [{"prompt": "a"}, {"prompt": "b", field: id}]});
            let refused = answer(service.post("/batch/chat", &batch)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
            let detail = &refused.body["detail"][0];
            assert_eq!(detail["type"], kind, "{refused:?}");
            assert_eq!(detail["loc"], json!(["body", "requests", 1, field]));
        }
    }
    let twice = r#"{"requests": [{"prompt": "a", "id": "1", "id": "2"}]}"#;
    let twice = answer(service.post("/batch/chat", &Value::Null).body(twice)).await;
    assert_eq!(twice.body["detail"][0]["type"], "duplicate", "{twice:?}");
    let unknown = json!({"requests": [{"prompt": "a", "custom-id": "1"}]});
    let unknown = answer(service.post("/batch/chat", &unknown)).await;
    assert_eq!(unknown.body["detail"][0]["loc"], json!(["body", "requests", 0, "custom-id"]));
    assert_eq!(service.simulator.journal().len(), 0);
}

#[tokio::test]
async fn a_failed_item_reports_its_error_and_affects_no_other() {
    let service = Service::with(Options::default(), |config| config.max_attempts = 1).await;
    let batch = json!({"requests": [
        {"prompt": "a"},
        {"prompt": "[[simulate:blocked=SAFETY]]"},
        {"prompt": "[[simulate:status=503]]", "model": "models/gemini-other"},
        {"prompt": "b"},
    ]});
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.status, StatusCode::OK);
    let results = &batch.body["results"];
    assert_eq!(results[0]["response"], "Simulated answer to: a");
    let blocked = json!({
        "success": false,
        "error": "Gemini blocked the prompt: SAFETY",
        "error_code": "content_blocked",
        "retryable": false,
        "model": "gemini-3.5-flash-lite",
        "index": 1,
    });
    assert_eq!(results[1], blocked);
    let overloaded = json!({
        "success": false,
        "error": "The model is overloaded. Please try again later.",
        "error_code": "upstream_unavailable",
        "retryable": true,
        "model": "gemini-other",
        "index": 2,
    });
    assert_eq!(results[2], overloaded);
    assert_eq!(results[3]["response"], "Simulated answer to: b");
    let counts = ["total_requests", "successful_requests", "failed_requests"];
    assert_eq!(counts.map(|count| batch.body[count].clone()), [4, 2, 2].map(Value::from));
}

#[tokio::test]
async fn a_batch_in_which_every_item_fails_is_answered_with_200() {
    let service = Service::start().await;
    let batch = chats((0..30).map(|n| format!("{n} [[simulate:status=400]]")));
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.status, StatusCode::OK);
    for (n, result) in batch.body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&result["index"], &result["success"]), (&json!(n), &json!(false)));
    }
    let counts = ["total_requests", "successful_requests", "failed_requests"];
    assert_eq!(counts.map(|count| batch.body[count].clone()), [30, 0, 30].map(Value::from));
}

#[tokio::test]
async fn an_empty_batch_succeeds_with_zero_counts() {
    let service = Service::start().await;
    for (path, _) in kinds() {
        let batch = service.post(&format!("/batch{path}"), &json!({"requests": []}));
        let batch = answer(batch).await;
        assert_eq!(batch.status, StatusCode::OK, "{path}");
        let zeros = json!({
            "results": [], "total_requests": 0, "successful_requests": 0, "failed_requests": 0,
            "usage": {
                "prompt_tokens": 0, "output_tokens": 0, "thinking_tokens": 0, "total_tokens": 0,
                "cached_tokens": 0, "tool_tokens": 0, "service_tier": null, "cost_usd": 0.0,
            },
        });
        assert_eq!(batch.body, zeros, "{path}");
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

/// Item fates: a prompt marker, and the error code that it leads to, if any.
const FATES: [(&str, Option<&str>); 10] = [
    ("", None),
    ("parts=3", None),
    ("thought", None),
    ("fail_times=1", None),
    ("status=400", Some("invalid_request")),
    ("status=403", Some("permission_denied")),
    ("blocked=PROHIBITED_CONTENT", Some("content_blocked")),
    ("finish=RECITATION", Some("content_blocked")),
    ("empty", Some("empty_answer")),
    ("html=200", Some("malformed_answer")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_items_are_answered_completely_and_in_order() {
    let service = limited(100).await;
    let mut random = Rng::with_seed(20_260_101);
    let mut item = |n: usize| {
        // Most items succeed.
        let (marker, code) = if random.u8(..) < 192 { FATES[0] } else { FATES[random.usize(..10)] };
        let comma = if marker.is_empty() { "" } else { "," };
        let latency = random.u8(..20);
        (format!("item {n} [[simulate:latency_ms={latency}{comma}{marker}]]"), code)
    };
    let items: Vec<_> = (0..2000).map(&mut item).collect();
    let batch = chats(items.iter().map(|(prompt, _)| prompt.clone()));
    let batch = answer(service.post("/batch/chat", &batch)).await;

    let results = batch.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 2000);
    for (n, ((prompt, code), result)) in items.iter().zip(results).enumerate() {
        assert_eq!(result["index"], n);
        match code {
            None => assert_eq!(result["response"], format!("Simulated answer to: item {n}")),
            Some(code) => assert_eq!(result["error_code"], *code, "{prompt}"),
        }
    }
    let failed = items.iter().filter(|(_, code)| code.is_some()).count();
    assert!(failed > 100, "with this seed only {failed} fail");
    assert_eq!(batch.body["failed_requests"], failed);
    assert_eq!(batch.body["successful_requests"], 2000 - failed);
    let repeated = items.iter().filter(|(prompt, _)| prompt.contains("fail_times")).count();
    let stats = service.simulator.stats();
    assert_eq!(stats.calls, (2000 + repeated) as u64, "no item is sent twice needlessly");
    assert!(stats.highest_in_flight <= 100);
    service.until_idle().await;
}

#[tokio::test]
async fn each_item_is_sent_to_its_own_model() {
    let service = Service::start().await;
    let models = ["gemini-a", "models/gemini-b", "tunedModels/mine", "gemini-a", "gemini-unknown"];
    let requests: Vec<Value> =
        models.iter().map(|model| json!({"prompt": *model, "model": model})).collect();
    let batch = answer(service.post("/batch/chat", &json!({"requests": requests}))).await;
    let named = batch.body["results"].as_array().unwrap().iter().map(|result| &result["model"]);
    let expected = ["gemini-a", "gemini-b", "tunedModels/mine", "gemini-a", "gemini-unknown"];
    assert_eq!(named.collect::<Vec<_>>(), expected);
    assert_eq!(batch.body["results"][4]["error_code"], "model_not_found");
    for call in service.simulator.journal() {
        // The simulator ignores the prefix before a model's name.
        assert_eq!(call.model, call.prompt_text.rsplit('/').next().unwrap());
    }
}

#[tokio::test]
async fn an_unknown_semaphore_refuses_the_batch_and_is_named() {
    let service = Service::start().await;
    service.register("known", 5).await;
    for (path, body) in kinds() {
        let mut lost = body.clone();
        lost["external_semaphore_id"] = json!("lost");
        for batch in [
            json!({"requests": [], "external_semaphore_id": "lost"}),
            json!({"requests": [body], "external_semaphore_id": "lost"}),
            json!({"requests": [body, lost]}),
            json!({"requests": [body, lost], "external_semaphore_id": "known"}),
        ] {
            let refused = answer(service.post(&format!("/batch{path}"), &batch)).await;
            assert_eq!(refused.status, StatusCode::NOT_FOUND, "{path} {batch}");
            assert_eq!(refused.body["code"], "semaphore_not_found");
            assert!(refused.body["detail"].as_str().unwrap().contains("\"lost\""), "{refused:?}");
        }
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn an_items_semaphore_overrides_the_batchs() {
    let service = Service::start().await;
    service.register("one", 1).await;
    service.register("three", 3).await;
    let own = json!({"prompt": slow(60_000), "external_semaphore_id": "three"});
    let batch = json!({
        "requests": [own, own, {"prompt": slow(60_000)}, {"prompt": "waits"}],
        "external_semaphore_id": "one",
    });
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    service.until("three run", |limiter| limiter.in_flight == 3 && limiter.waiting == 1).await;
    let in_use = service.gateway.limiter.store().named().into_iter();
    let in_use = in_use.map(|(id, semaphore)| (id.to_string(), semaphore.usage().in_use));
    assert_eq!(in_use.collect::<Vec<_>>(), [("one".to_owned(), 1), ("three".to_owned(), 2)]);
    batch.abort();
    service.until_idle().await;
}

#[tokio::test]
async fn deleting_a_semaphore_fails_waiting_items_and_lets_running_ones_finish() {
    let service = Service::start().await;
    service.register("two", 2).await;
    let long = || format!("runs {}", slow(2_000));
    let mut batch = chats([long(), long(), "waits".into(), "waits".into(), "waits".into()]);
    batch["external_semaphore_id"] = json!("two");
    // The items of a batch may use different semaphores.
    service.register("other", 1).await;
    batch["requests"][3]["external_semaphore_id"] = json!("other");
    let batch = answer(service.post("/batch/chat", &batch));
    let delete = async {
        service.until("two run", |limiter| limiter.in_flight == 2 && limiter.waiting == 1).await;
        answer(service.delete("/_admin/semaphores/two")).await
    };
    let (batch, deleted) = tokio::join!(batch, delete);

    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(batch.status, StatusCode::OK);
    let results = batch.body["results"].as_array().unwrap();
    let codes: Vec<&Value> = results.iter().map(|result| &result["error_code"]).collect();
    let deleted = json!("semaphore_deleted");
    assert_eq!(codes, [&Value::Null, &Value::Null, &deleted, &Value::Null, &deleted]);
    assert_eq!(results[0]["response"], "Simulated answer to: runs");
    assert_eq!(results[3]["response"], "Simulated answer to: waits");
    assert_eq!(batch.body["failed_requests"], 2);
    assert_eq!(service.simulator.stats().calls, 3);
    service.until_idle().await;
}

#[tokio::test]
async fn items_that_share_a_schema_each_get_their_own_answer() {
    let service = Service::start().await;
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    });
    let person = |n: usize| json!({"name": format!("person {n}"), "age": n});
    let requests = (0..50).map(|n| {
        let content = format!("[[simulate:latency_ms={},text={}]]", (50 - n) % 7, person(n));
        json!({"user_content": content, "system_prompt": "Who?", "json_schema": schema})
    });
    let batch = json!({"requests": requests.collect::<Vec<_>>()});
    let batch = answer(service.post("/batch/structured-output", &batch)).await;
    assert_eq!(batch.body["successful_requests"], 50);
    for (n, result) in batch.body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&result["index"], &result["data"]), (&json!(n), &person(n)));
    }
    assert_eq!(service.simulator.stats().calls, 50);
}

#[tokio::test]
async fn an_items_timeout_starts_at_the_head_of_the_queue() {
    let service = Service::with(Options::default(), |config| {
        config.concurrency_limit = 1;
        config.request_timeout = Duration::from_millis(1_500);
    })
    .await;
    let batch = chats((0..25).map(|n| format!("{n} {}", slow(100))));
    let batch = answer(service.post("/batch/chat", &batch)).await;
    // The last five items finish two seconds after the batch began. They would time out if their
    // time had started with the batch. On a machine that stalls, one of them may be late after all.
    let last = &batch.body["results"].as_array().unwrap()[20..];
    assert!(last.iter().any(|result| result["success"] == true), "{last:?}");
}
