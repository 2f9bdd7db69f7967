//! Relayed calls on both surfaces: who pays, what is counted, and which headers are dropped in
//! either direction.

use std::time::Duration;

use gemini_concurrent_generation::config::FallbackScope;
use gemini_concurrent_generation::simulator::Options;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::limits::plan;
use crate::recording::Recording;
use crate::support::{ADMIN_KEY, Service, answer, contents};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
const STREAM: &str = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent?alt=sse";

/// The answer to raw bytes, read until the service closes the connection.
async fn raw(service: &Service, request: &str) -> String {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let _ = tokio::time::timeout(crate::support::TEST_TIMEOUT, read).await.expect("an answer");
    answer
}

#[tokio::test]
async fn a_call_is_counted_for_the_model_in_its_body_or_its_resource() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    for (path, body) in [
        ("/v1beta/interactions", json!({"model": "gemini-a", "input": "x"})),
        ("/v1/interactions", json!({"agent": "agent-b", "input": "x"})),
        ("/v1beta/interactions", json!({"model": "projects/p/models/gemini-c"})),
        ("/v1beta/decisions", json!({"model": "models/gemini-d"})),
        ("/v1beta/interactions", json!({"input": "x"})),
        ("/v1beta/triggers/t/executions", json!({})),
        ("/v1beta/models/gemini-e:batchGenerateContent", json!({"batch": {}})),
    ] {
        let request = service.post(path, &body).header("x-goog-api-key", "callers-key");
        assert_eq!(answer(request).await.status, 200, "{path}");
    }
    let doubled = service.post("/v1beta/interactions", &Value::Null);
    let doubled = doubled.body(r#"{"model":"gemini-a","model":"gemini-f"}"#);
    assert_eq!(answer(doubled).await.status, 400);
    let limits = service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY);
    let limits = answer(limits).await.body;
    let counted: Vec<_> =
        limits["limits"].as_array().unwrap().iter().map(|entry| &entry["model"]).collect();
    assert_eq!(
        counted,
        [
            "agent-b",
            "gemini-a",
            "gemini-c",
            "gemini-d",
            "gemini-e:batchGenerateContent",
            "interactions",
            "triggers"
        ]
    );
}

#[tokio::test]
async fn only_post_requests_are_charged() {
    let service =
        Service::with(Options::default(), |config| config.quota_plan = plan("*:rpd=1", "")).await;
    let client = reqwest::Client::new();
    for method in [Method::OPTIONS, Method::HEAD, Method::GET, Method::DELETE] {
        let _ = client.request(method, service.url(GENERATE)).send().await.unwrap();
    }
    for method in ["TRACE", "FOO", "get"] {
        for path in [GENERATE, "/chat", "/", "/docs/", "/v1/chat/completions", "/nowhere"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let refused = client.request(method, service.url(path)).send().await.unwrap();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    let connect = raw(&service, "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n");
    assert!(connect.await.starts_with("HTTP/1.1 405 "));
    assert_eq!(service.simulator.stats().calls, 0);
    assert_eq!(answer(service.post(GENERATE, &contents("x"))).await.status, 200);
    assert_eq!(answer(service.post(GENERATE, &contents("x"))).await.status, 429);
}

#[tokio::test]
async fn a_request_is_sent_with_one_host_header() {
    let service = Service::start().await;
    let get = async |headers: &str| {
        raw(&service, &format!("GET / HTTP/1.1\r\n{headers}connection: close\r\n\r\n")).await
    };
    assert!(get("host: a\r\n").await.starts_with("HTTP/1.1 200 "));
    for headers in ["", "host: a\r\nhost: b\r\n", "host: a\r\nHost: a\r\n"] {
        let refused = get(headers).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
        assert!(refused.contains("invalid_host"), "{refused}");
    }
    let old = raw(&service, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");
}

#[tokio::test]
async fn a_request_is_authenticated_before_its_body_is_read() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    for path in [GENERATE, "/v1/chat/completions", "/upload/v1beta/files"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: 1000000\r\nconnection: close\r\n\r\n{{"
        );
        let refused = raw(&service, &head).await;
        assert!(refused.starts_with("HTTP/1.1 401 "), "{path}: {refused}");
    }
}

#[tokio::test]
async fn headers_that_identify_the_client_are_not_relayed() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let dropped = [
        ("cookie", "session=1"),
        ("referer", "http://intranet/"),
        ("origin", "http://intranet"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "intranet"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("via", "1.1 proxy"),
        ("x-http-method-override", "POST"),
        ("x-http-method", "POST"),
        ("x-method-override", "POST"),
        ("x-serverless-authorization", "Bearer e"),
        ("x-goog-iap-jwt-assertion", "e"),
        ("x-goog-authenticated-user-email", "accounts.google.com:a@b.example"),
        ("x-api-key", "e"),
        ("api-key", "e"),
        ("sec-fetch-site", "same-origin"),
    ];
    let query = "?%24httpMethod=POST&a=b&$httpHeaders=x:y&callback=f&$ct=text/plain";
    for (key, keeps_project) in [("callers-key", true), (ADMIN_KEY, false)] {
        for (method, path) in [(Method::GET, "/v1beta/files"), (Method::POST, GENERATE)] {
            let url = service.url(&format!("{path}{query}"));
            let request = reqwest::Client::new().request(method, url).body("{}");
            let request = dropped.iter().fold(request, |r, (name, value)| r.header(*name, *value));
            let request = request.header("x-goog-user-project", "p").header("x-kept", "1");
            assert_eq!(answer(request.header("x-goog-api-key", key)).await.status, 200);
            let sent = recording.requests().pop().unwrap().to_lowercase();
            for (name, _) in dropped {
                assert!(!sent.contains(&format!("\n{name}:")), "{name}: {sent}");
            }
            assert!(sent.contains(&format!("{} http/1.1", format!("{path}?a=b").to_lowercase())));
            assert!(sent.contains("\nx-kept: 1\r\n"), "{sent}");
            assert_eq!(sent.contains("\nx-goog-user-project: p\r\n"), keeps_project, "{sent}");
        }
    }
}

#[tokio::test]
async fn the_admin_key_is_not_relayed() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let headers = [
        ("x-other", ADMIN_KEY.to_owned()),
        ("x-other", format!("Token {ADMIN_KEY}")),
        ("x-other", format!("a=b; session={ADMIN_KEY}")),
        ("x-goog-api-client", ADMIN_KEY.to_owned()),
    ];
    let queries = ["Key=", "Access_token=", "token=%20", "a=b&%6bEy=", ""];
    for path in [GENERATE, "/v1/chat/completions", "/upload/v1beta/files", "/v1beta/files"] {
        for (name, value) in &headers {
            for key in ["callers-key", ADMIN_KEY] {
                let request = service.post(path, &contents("x")).header(*name, value);
                let refused = answer(request.header("x-goog-api-key", key)).await;
                assert_eq!(refused.status, 401, "{path} {name}: {value}");
            }
        }
        for query in queries {
            let request = service.post(&format!("{path}?{query}{ADMIN_KEY}"), &contents("x"));
            assert_eq!(answer(request).await.status, 401, "{path}?{query}");
        }
    }
    let in_path = service.get(&format!("/v1beta/files/{ADMIN_KEY}"));
    assert_eq!(answer(in_path).await.status, 401);
    assert_eq!(recording.requests().len(), 0);
    // Headers that are not relayed may contain it.
    let cookie = service.post(GENERATE, &contents("x")).header("cookie", ADMIN_KEY);
    assert_eq!(answer(cookie).await.status, 200);
    assert!(!recording.requests().pop().unwrap().contains(ADMIN_KEY));
}

#[tokio::test]
async fn the_fallback_key_can_be_restricted_to_generation() {
    let service = Service::with(Options::default(), |config| {
        config.fallback_scope = FallbackScope::Generation;
    })
    .await;
    let (post, client) = (|path: &str| service.post(path, &contents("x")), reqwest::Client::new());
    for request in [
        service.get("/v1beta/files"),
        service.get("/v1beta/cachedContents"),
        client.delete(service.url("/v1beta/files/f")),
        post("/v1beta/cachedContents"),
        post("/upload/v1beta/files"),
        post("/v1beta/models/gemini-3.5-flash-lite:batchGenerateContent"),
        post("/v1beta/auth_tokens"),
    ] {
        assert_eq!(answer(request).await.status, 401);
    }
    for request in [
        post(GENERATE),
        post("/v1beta/models/gemini-3.5-flash-lite:countTokens"),
        service.post("/chat", &json!({"prompt": "x"})),
        service.get("/v1beta/models"),
        service.get("/v1beta/files").header("Admin-API-Key", ADMIN_KEY),
    ] {
        assert_eq!(answer(request).await.status, 200);
    }
    let open = Service::start().await;
    assert_eq!(answer(open.get("/v1beta/files")).await.status, 200);
    assert_eq!(answer(open.post("/v1beta/auth_tokens", &json!({}))).await.status, 401);
}

#[tokio::test]
async fn an_upload_that_gemini_does_not_answer_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", silent.local_addr().unwrap());
    let service = Service::with(Options::default(), |config| {
        config.base_url = base_url;
        config.upstream_timeout = Duration::from_millis(100);
    })
    .await;
    // More than any buffer on the way holds, so that it is never accepted completely.
    for body in ["x".to_owned(), "x".repeat(64 << 20)] {
        let upload = service.post("/upload/v1beta/files", &Value::Null).body(body);
        let late = answer(upload).await;
        assert_eq!(late.status, 504, "{late:?}");
        assert_eq!(late.body["error"]["details"][0]["reason"], "UPSTREAM_TIMEOUT");
    }
}

#[tokio::test]
async fn a_client_that_stalls_during_an_upload_gets_a_client_error() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        config.client_timeout = Duration::from_millis(100);
    })
    .await;
    let head = "POST /upload/v1beta/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\
                connection: close\r\n\r\nx";
    let stalled = raw(&service, head).await;
    assert!(stalled.starts_with("HTTP/1.1 408 "), "{stalled}");
    assert!(stalled.contains("CLIENT_TIMEOUT"), "{stalled}");
}

#[tokio::test]
async fn an_answer_with_ambiguous_length_is_relayed_with_one_length() {
    let answered = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\
                    transfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                    7\r\n{\"a\":1}\r\n0\r\n\r\n";
    let recording = Recording::write(vec![answered.into()]).await;
    let service = Service::over(&recording.base_url).await;
    for request in [
        format!("POST {GENERATE} HTTP/1.1\r\ncontent-type: application/json\r\n"),
        format!("POST {STREAM} HTTP/1.1\r\ncontent-type: application/json\r\n"),
        "GET /v1beta/files HTTP/1.1\r\n".to_owned(),
    ] {
        let request = format!(
            "{request}host: localhost\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
        );
        let answer = raw(&service, &request).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200 ") && answer.contains("{\"a\":1}"), "{answer}");
        let is_framed = |name: &str| answer.contains(&format!("\r\n{name}: "));
        assert!(is_framed("content-length") != is_framed("transfer-encoding"), "{answer}");
        assert!(!answer.contains("content-length: 3"), "{answer}");
    }
}

#[tokio::test]
async fn an_invalid_http_response_is_a_malformed_answer() {
    for status in [204, 205, 301, 302, 304, 308, 600, 999] {
        let recording = Recording::write(vec![
            format!(
                "HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\
                 connection: close\r\n\r\n"
            )
            .into_bytes(),
        ])
        .await;
        let service = Service::over(&recording.base_url).await;
        for path in [GENERATE, STREAM] {
            let malformed = answer(service.post(path, &contents("x"))).await;
            assert_eq!(malformed.status, 502, "{status} {path}");
            let reason = &malformed.body["error"]["details"][0]["reason"];
            assert_eq!(reason, "MALFORMED_ANSWER", "{status} {path}");
            assert!(!malformed.headers.contains_key("location"));
        }
        for streams in [false, true] {
            let chat = service.post("/chat", &json!({"prompt": "x", "stream": streams}));
            let malformed = answer(chat).await;
            assert_eq!(
                (malformed.status.as_u16(), &malformed.body["code"]),
                (502, &"malformed_answer".into())
            );
        }
    }
}

#[tokio::test]
async fn a_redirect_is_relayed_only_for_uploads() {
    let answered = "HTTP/1.1 308 X\r\nrange: bytes=0-9\r\ncontent-length: 0\r\n\r\n";
    let recording = Recording::write(vec![answered.into()]).await;
    let service = Service::over(&recording.base_url).await;
    let upload = answer(service.post("/upload/v1beta/files", &json!({}))).await;
    assert_eq!(
        (upload.status.as_u16(), &upload.headers["range"]),
        (308, &"bytes=0-9".parse().unwrap())
    );
    assert_eq!(answer(service.get("/v1beta/files")).await.status, 502);
}

#[tokio::test]
async fn usage_is_added_to_a_field_mask() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::over(&recording.base_url).await;
    let post = async |path: String| {
        let request = reqwest::Client::new().post(service.url(&path)).body("{}");
        answer(request.header("x-goog-api-key", "callers-key")).await.status
    };
    assert_eq!(post(format!("{GENERATE}?fields=candidates")).await, 200);
    let sent = recording.requests().pop().unwrap();
    assert!(sent.contains("?fields=candidates,usageMetadata,"), "{sent}");
    assert_eq!(post(format!("{GENERATE}?%24alt=proto")).await, 400);
    assert_eq!(post("/v1beta/files?fields=files".to_owned()).await, 200);
    let sent = recording.requests().pop().unwrap();
    assert!(sent.contains("?fields=files HTTP/1.1"), "{sent}");
}
