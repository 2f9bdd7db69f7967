//! Authentication: which key pays for a request, and that no caller pays for another.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use gemini_concurrent_generation::gemini::ApiKey;
use gemini_concurrent_generation::simulator::Options;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{ADMIN_KEY, Answer, SERVER_KEY, Service, answer, kinds};

/// The detail of a 401 on endpoints that spend a key.
const UNAUTHENTICATED: &str =
    "Authentication failed. Provide 'Admin-API-Key' in headers or complete credentials in payload.";

/// Every endpoint that spends a key, with a valid body.
fn endpoints() -> Vec<(String, Value)> {
    let one_and_many = |(path, body): (&str, Value)| {
        let many = json!({"requests": [body]});
        [(path.to_owned(), body), (format!("/batch{path}"), many)]
    };
    kinds().into_iter().flat_map(one_and_many).collect()
}

/// Sends a request with this `Admin-API-Key`, if any, and this `gemini_api_key` in the payload.
async fn send(
    service: &Service,
    (path, mut body): (String, Value),
    admin: Option<&str>,
    own: &Value,
) -> Answer {
    body["credentials"] = json!({"gemini_api_key": own});
    let request = service.post(&path, &body);
    answer(admin.into_iter().fold(request, |r, key| r.header("Admin-API-Key", key))).await
}

/// The keys that calls have used since the last call of this function.
fn keys_used(service: &Service) -> BTreeSet<String> {
    let keys = service.simulator.journal().into_iter().map(|entry| entry.api_key).collect();
    service.simulator.reset();
    keys
}

#[tokio::test]
async fn the_first_matching_tier_pays() {
    let service = Service::start().await;
    for (admin, own, payer) in [
        (Some(ADMIN_KEY), json!("own-key"), SERVER_KEY),
        (Some(ADMIN_KEY), Value::Null, SERVER_KEY),
        (Some("wrong"), json!("own-key"), "own-key"),
        (Some(""), json!("own-key"), "own-key"),
        (None, json!("own-key"), "own-key"),
        (None, json!(" own-key\n"), "own-key"),
        (Some("wrong"), Value::Null, SERVER_KEY),
        (None, json!(""), SERVER_KEY),
        (None, json!(" \t\n"), SERVER_KEY),
        (None, Value::Null, SERVER_KEY),
    ] {
        for endpoint in endpoints() {
            let case = format!("{} {admin:?} {own}", endpoint.0);
            let paid = send(&service, endpoint, admin, &own).await;
            assert_eq!(paid.status, StatusCode::OK, "{case}: {paid:?}");
            assert_eq!(keys_used(&service), BTreeSet::from([payer.to_owned()]), "{case}");
        }
    }
}

#[tokio::test]
async fn without_the_fallback_a_request_without_a_key_is_refused() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    for admin in [None, Some("wrong"), Some("")] {
        for own in [Value::Null, json!(""), json!("  ")] {
            for endpoint in endpoints() {
                let refused = send(&service, endpoint, admin, &own).await;
                assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
                let body = json!({"detail": UNAUTHENTICATED, "code": "unauthenticated"});
                assert_eq!(refused.body, body);
            }
        }
    }
    assert_eq!(service.simulator.stats().calls, 0);

    let chat = || ("/chat".to_owned(), json!({"prompt": "Hello"}));
    let admin = send(&service, chat(), Some(ADMIN_KEY), &Value::Null).await;
    assert_eq!(admin.status, StatusCode::OK);
    assert_eq!(keys_used(&service), BTreeSet::from([SERVER_KEY.to_owned()]));
    let own = send(&service, chat(), None, &json!("own-key")).await;
    assert_eq!(own.status, StatusCode::OK);
    assert_eq!(keys_used(&service), BTreeSet::from(["own-key".to_owned()]));
}

#[tokio::test]
async fn without_a_server_key_the_admin_key_spends_nothing() {
    let service = Service::with(Options::default(), |config| config.gemini_api_key = None).await;
    for endpoint in endpoints() {
        let refused = send(&service, endpoint.clone(), None, &Value::Null).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(refused.body["detail"], UNAUTHENTICATED);
        // A key in the payload changes nothing: the administrator asked for the server's key.
        for own in [Value::Null, json!("own-key")] {
            let refused = send(&service, endpoint.clone(), Some(ADMIN_KEY), &own).await;
            assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(refused.body["code"], "server_key_missing");
        }
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn an_unset_admin_key_matches_nothing() {
    let service = Service::with(Options::default(), |config| {
        config.admin_api_key = None;
        config.environment_fallback = false;
    })
    .await;
    for admin in [None, Some(""), Some(ADMIN_KEY), Some(SERVER_KEY)] {
        let chat = ("/chat".to_owned(), json!({"prompt": "Hello"}));
        let refused = send(&service, chat, admin, &Value::Null).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{admin:?}");
        let list = service.get("/_admin/semaphores");
        let list = admin.into_iter().fold(list, |r, key| r.header("Admin-API-Key", key));
        assert_eq!(answer(list).await.status, StatusCode::UNAUTHORIZED, "{admin:?}");
    }
    assert_eq!(service.register("any", 1).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn a_wrong_admin_key_is_refused_on_admin_endpoints() {
    let service = Service::start().await;
    service.register("kept", 1).await;
    for admin in ["wrong", "", "the-admin-ke", "the-admin-keyy", "THE-ADMIN-KEY", SERVER_KEY] {
        for (method, path) in [
            (Method::GET, "/_admin/semaphores"),
            (Method::POST, "/_admin/semaphores"),
            (Method::DELETE, "/_admin/semaphores/kept"),
        ] {
            let request = reqwest::Client::new().request(method, service.url(path));
            let refused = answer(request.header("Admin-API-Key", admin)).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{admin:?} {path}");
            assert_eq!(refused.body["code"], "unauthenticated");
        }
    }
    let list = service.get("/_admin/semaphores").header("Admin-API-Key", ADMIN_KEY);
    assert_eq!(answer(list).await.body["count"], 1);
}

/// A user's key. The user's number also appears in each of the user's prompts.
fn key_of(user: &str) -> String {
    format!("key-of-user-{user}")
}

/// In this service's first version the key was process-wide: users paid with each other's keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_concurrent_users_each_pay_with_their_own_key() {
    let options = Options { latency_ms: 3, latency_sigma: 0.5, ..Options::default() };
    let service = Service::with(options, |_| {}).await;
    let users = join_all((0..200).map(|user| {
        let credentials = json!({"gemini_api_key": key_of(&user.to_string())});
        let prompts: Vec<Value> =
            (0..5).map(|n| json!({"prompt": format!("user {user} asks {n}")})).collect();
        let request = if user % 2 == 0 {
            let body = json!({"prompt": prompts[0]["prompt"], "credentials": credentials});
            service.post("/chat", &body)
        } else {
            let body = json!({"requests": prompts, "credentials": credentials});
            service.post("/batch/chat", &body)
        };
        answer(request)
    }))
    .await;

    for (user, answer) in users.iter().enumerate() {
        let batch = answer.body["results"].as_array();
        let answers = batch.cloned().unwrap_or_else(|| vec![answer.body.clone()]);
        for (n, answer) in answers.iter().enumerate() {
            let expected = format!("Simulated answer to: user {user} asks {n}");
            assert_eq!(answer["response"], expected, "{answer}");
        }
    }
    let journal = service.simulator.journal();
    assert_eq!(journal.len(), 100 + 100 * 5);
    for call in journal {
        let user = call.prompt_text.split(' ').nth(1).unwrap();
        assert_eq!(call.api_key, key_of(user), "{}", call.prompt_text);
    }
}

#[tokio::test]
async fn a_key_in_a_header_pays_if_the_body_has_none() {
    let service = Service::start().await;
    for (header, key) in [
        ("x-goog-api-key", "key-of-the-header"),
        ("authorization", "Bearer key-of-the-header"),
        ("authorization", "bearer   key-of-the-header"),
    ] {
        for (path, mut body) in endpoints() {
            let sent = answer(service.post(&path, &body).header(header, key)).await;
            assert_eq!(sent.status, StatusCode::OK, "{path}: {sent:?}");
            assert_eq!(keys_used(&service), BTreeSet::from(["key-of-the-header".to_owned()]));
            body["credentials"] = json!({"gemini_api_key": "key-of-the-body"});
            answer(service.post(&path, &body).header(header, key)).await;
            assert_eq!(keys_used(&service), BTreeSet::from(["key-of-the-body".to_owned()]));
        }
    }
    let request = service.post("/chat", &json!({"prompt": "x"})).header("x-goog-api-key", "a b");
    assert_eq!(answer(request).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(keys_used(&service), BTreeSet::new());
}

#[tokio::test]
async fn the_admin_key_selects_the_servers_key_in_every_header_and_parameter() {
    let service = Service::start().await;
    let chat = json!({"prompt": "x"});
    let generate = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
    let contents = json!({"contents": [{"parts": [{"text": "x"}]}]});
    let own = |key: &str| json!({"prompt": "x", "credentials": {"gemini_api_key": key}});
    for request in [
        service.post("/chat", &own(ADMIN_KEY)),
        service.post("/chat", &own(&format!(" {ADMIN_KEY}\n"))),
        service.post("/batch/chat", &json!({"requests": [own(ADMIN_KEY)]})),
        service.post("/chat", &chat).header("x-goog-api-key", ADMIN_KEY),
        service.post("/chat", &chat).header("authorization", format!("Bearer  {ADMIN_KEY}")),
        service.post(generate, &contents).header("authorization", format!("Bearer\t{ADMIN_KEY}")),
        service.post(&format!("{generate}?key={ADMIN_KEY}%20"), &contents),
        service.post(&format!("{generate}?key={ADMIN_KEY}+"), &contents),
        service.post(&format!("{generate}?key=other&key={ADMIN_KEY}"), &contents),
    ] {
        let sent = answer(request).await;
        assert_eq!(sent.status, StatusCode::OK, "{sent:?}");
        assert_eq!(keys_used(&service), BTreeSet::from([SERVER_KEY.to_owned()]));
    }
}

#[tokio::test]
async fn a_key_or_model_that_contains_the_admin_key_is_refused() {
    let service = Service::start().await;
    let generate = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
    let contents = json!({"contents": [{"parts": [{"text": "x"}]}]});
    let chat = json!({"prompt": "x"});
    let with_key = |key: &str| json!({"prompt": "x", "credentials": {"gemini_api_key": key}});
    let with_model = json!({"prompt": "x", "model": ADMIN_KEY});
    let completion = json!({"model": ADMIN_KEY, "messages": []});
    for request in [
        service.post(generate, &contents).header("x-goog-api-key", format!("{ADMIN_KEY},other")),
        service.post(generate, &contents).bearer_auth(format!("\"{ADMIN_KEY}\"")),
        service.post(&format!("{generate}?key=key={ADMIN_KEY}"), &contents),
        service.post(generate, &contents).header("user-agent", format!("curl/{ADMIN_KEY}")),
        service.post(&format!("{generate}?a=b/{ADMIN_KEY}"), &contents),
        service.post("/chat", &chat).bearer_auth(format!("{ADMIN_KEY},")),
        service.post("/chat", &with_model),
        service.post("/batch/chat", &json!({"requests": [chat, with_model]})),
        service.post("/v1/chat/completions", &completion),
    ] {
        let refused = answer(request).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
    }
    for key in [format!("{ADMIN_KEY};"), format!("key={ADMIN_KEY}")] {
        let refused = answer(service.post("/chat", &with_key(&key))).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn an_items_credentials_override_the_batchs() {
    let service = Service::start().await;
    let requests = json!([
        {"prompt": "own", "credentials": {"gemini_api_key": "key-of-the-item"}},
        {"prompt": "none"},
        {"prompt": "blank", "credentials": {"gemini_api_key": " "}},
        {"prompt": "empty", "credentials": {}},
        {"prompt": "another", "credentials": {"gemini_api_key": "key-of-another"}},
    ]);
    let paid_with = async |batch: Value, admin: &str| {
        let request = service.post("/batch/chat", &batch).header("Admin-API-Key", admin);
        let batch = answer(request).await;
        assert_eq!(batch.body["successful_requests"], 5, "{batch:?}");
        let journal = service.simulator.journal();
        service.simulator.reset();
        ["own", "none", "blank", "empty", "another"].map(|prompt| {
            journal.iter().find(|call| call.prompt_text == prompt).unwrap().api_key.clone()
        })
    };
    let batch = "key-of-the-batch";
    let with_key =
        json!({"requests": requests, "credentials": {"gemini_api_key": "key-of-the-batch"}});
    let without = json!({"requests": requests});
    assert_eq!(
        paid_with(with_key.clone(), "wrong").await,
        ["key-of-the-item", batch, batch, batch, "key-of-another"]
    );
    assert_eq!(
        paid_with(without, "wrong").await,
        ["key-of-the-item", SERVER_KEY, SERVER_KEY, SERVER_KEY, "key-of-another"]
    );
    assert_eq!(paid_with(with_key, ADMIN_KEY).await, [SERVER_KEY; 5]);
}

#[tokio::test]
async fn a_batch_with_one_unauthenticated_item_sends_nothing() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    let own = json!({"gemini_api_key": "own-key"});
    let batch = json!({"requests": [
        {"prompt": "a", "credentials": own}, {"prompt": "b"}, {"prompt": "c", "credentials": own},
    ]});
    let refused = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.body["detail"], UNAUTHENTICATED);
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn an_empty_batch_requires_authentication() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    for (path, _) in kinds() {
        let batch = || (format!("/batch{path}"), json!({"requests": []}));
        let refused = send(&service, batch(), None, &Value::Null).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
        let own = send(&service, batch(), None, &json!("own-key")).await;
        assert_eq!(own.status, StatusCode::OK, "{path}");
        let admin = send(&service, batch(), Some(ADMIN_KEY), &Value::Null).await;
        assert_eq!(admin.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn an_invalid_key_is_refused_with_its_location() {
    let service = Service::start().await;
    let unusable = ["two words", "schlüssel", "line\nbreak", "nul\u{0}"];
    for key in unusable {
        let credentials = json!({"gemini_api_key": key});
        let own = json!({"prompt": "Hello", "credentials": credentials});
        let good = json!({"prompt": "Hello"});
        for (path, body, place) in [
            ("/chat", own.clone(), json!(["body", "credentials", "gemini_api_key"])),
            (
                "/batch/chat",
                json!({"requests": [good], "credentials": credentials}),
                json!(["body", "credentials", "gemini_api_key"]),
            ),
            (
                "/batch/chat",
                json!({"requests": [], "credentials": credentials}),
                json!(["body", "credentials", "gemini_api_key"]),
            ),
            (
                "/batch/chat",
                json!({"requests": [good, good, own]}),
                json!(["body", "requests", 2, "credentials", "gemini_api_key"]),
            ),
        ] {
            let refused = answer(service.post(path, &body)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
            assert_eq!(refused.body["detail"][0]["type"], "api_key");
            assert_eq!(refused.body["detail"][0]["loc"], place, "{body}");
        }
    }
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn an_error_body_contains_no_key() {
    const SECRET: &str = "a-secret-of-the-caller";
    const REVOKED: &str = "a-secret-that-was-revoked";
    let options = Options { bad_keys: vec![REVOKED.to_owned()], ..Options::default() };
    let service =
        Service::with(options, |config| config.gemini_api_key = ApiKey::new(REVOKED).ok()).await;
    let chat = |credentials: Value| {
        service.post("/chat", &json!({"prompt": "Hello", "credentials": credentials}))
    };
    // Gemini's error message repeats the marker, and so the key.
    let repeated = json!({
        "prompt": format!("[[simulate:{SECRET}]]"), "credentials": {"gemini_api_key": SECRET},
    });
    let unfinished =
        format!(r#"{{"prompt": "Hello", "credentials": {{"gemini_api_key": "{SECRET}"#);
    let other_field = json!({"gemini_api_key": SECRET, "model": SECRET});
    for (request, status, code) in [
        (chat(json!({"gemini_api_key": REVOKED})), 401, "invalid_api_key"),
        (chat(Value::Null), 401, "invalid_api_key"),
        (service.post("/chat", &repeated), 400, "invalid_request"),
        (chat(json!({"gemini_api_key": format!("{SECRET} {REVOKED}")})), 422, "validation_error"),
        (chat(json!({"gemini_api_key": [SECRET]})), 422, "validation_error"),
        (chat(json!(SECRET)), 422, "validation_error"),
        (chat(other_field), 422, "validation_error"),
        (chat(Value::Null).body(unfinished), 422, "validation_error"),
        (service.get("/_admin/semaphores").header("Admin-API-Key", SECRET), 401, "unauthenticated"),
    ] {
        let refused = answer(request).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert_eq!(refused.body["code"], code, "{refused:?}");
        let body = refused.body.to_string();
        assert!(!body.contains(SECRET) && !body.contains(REVOKED), "{body}");
    }

    let batch = json!({"requests": [repeated, {"prompt": "Hello"}]});
    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.body["failed_requests"], 2);
    let body = batch.body.to_string();
    assert!(!body.contains(SECRET) && !body.contains(REVOKED), "{body}");
}
