//! HTTP around a body: its size and type, paths and methods, headers and request ids.

use futures_util::stream;
use gemini_concurrent_generation::simulator::Options;
use reqwest::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ADMIN_KEY, Answer, Service, answer, kinds};

/// A service that accepts bodies of 100,000 bytes, more than any buffer on the way holds.
async fn small() -> Service {
    Service::with(Options::default(), |config| config.max_body_bytes = 100_000).await
}

fn chat_of(bytes: usize) -> String {
    let empty = json!({"prompt": ""}).to_string().len();
    json!({"prompt": "x".repeat(bytes - empty)}).to_string()
}

/// A chat with this raw body.
fn raw(service: &Service, body: impl Into<Body>) -> RequestBuilder {
    service.post("/chat", &Value::Null).body(body)
}

fn assert_too_large(refused: &Answer) {
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.body["code"], "body_too_large");
    assert!(refused.body["detail"].as_str().unwrap().contains("100000 bytes"), "{refused:?}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let service = small().await;
    assert_too_large(&answer(raw(&service, chat_of(100_001))).await);
    // Without a Content-Length the size is known only after reading.
    let chunks: Vec<_> = chat_of(100_001).into_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
    let chunked = stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
    let chunked = raw(&service, Body::wrap_stream(chunked));
    assert_too_large(&answer(chunked).await);
    assert_eq!(service.simulator.stats().calls, 0);
    assert_eq!(answer(raw(&service, chat_of(100_000))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_content_length_that_is_too_large_is_refused_at_once() {
    let service = small().await;
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head = "POST /chat HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
                content-length: 100001\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(r#""code":"body_too_large""#), "{answer}");
    assert_eq!(service.simulator.stats().calls, 0);
}

#[tokio::test]
async fn a_body_with_another_content_type_is_refused() {
    let service = Service::start().await;
    let typed = |path: &str, content_type: Option<&'static [u8]>| {
        let value = content_type.map(|value| HeaderValue::from_bytes(value).unwrap());
        let headers: HeaderMap = value.map(|value| (CONTENT_TYPE, value)).into_iter().collect();
        let request = reqwest::Client::new().post(service.url(path)).headers(headers);
        answer(request.body(r#"{"prompt": "x"}"#))
    };
    for (path, _) in kinds() {
        for path in [path, &format!("/batch{path}")] {
            for content_type in [
                None,
                Some(&b""[..]),
                Some(b"text/plain"),
                Some(b"text/json"),
                Some(b"application/x-www-form-urlencoded"),
                Some(b"multipart/form-data; boundary=x"),
                Some(b"application/jsonp"),
                Some(b"application/json\xff"),
            ] {
                let refused = typed(path, content_type).await;
                assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type:?}");
                assert_eq!(refused.body["code"], "unsupported_media_type");
                assert!(refused.body["detail"].is_string());
            }
        }
    }
    assert_eq!(service.simulator.stats().calls, 0);
    for content_type in [
        &b"application/json"[..],
        b"application/json; charset=utf-8",
        b"Application/JSON;charset=UTF-8",
        b"application/vnd.example+json",
    ] {
        assert_eq!(typed("/chat", Some(content_type)).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_unknown_path_is_404() {
    let service = Service::start().await;
    for path in
        ["/nowhere", "/chat/", "/CHAT", "/batch", "/batch/", "/_admin", "/_admin/semaphores/", "//"]
    {
        for method in [Method::GET, Method::POST] {
            let request = reqwest::Client::new().request(method, service.url(path));
            let refused = answer(request).await;
            assert_eq!(refused.status, StatusCode::NOT_FOUND, "{path}");
            assert_eq!(refused.body, json!({"detail": "Not Found", "code": "not_found"}));
            assert!(refused.headers.contains_key("x-request-id"));
        }
    }
}

#[tokio::test]
async fn an_unsupported_method_is_405_and_lists_the_allowed_ones() {
    let service = Service::start().await;
    for (method, path, allowed) in [
        (Method::GET, "/chat", "POST"),
        (Method::PUT, "/chat", "POST"),
        (Method::DELETE, "/batch/chat", "POST"),
        (Method::GET, "/structured-output", "POST"),
        (Method::PATCH, "/batch/cinematic-story-design", "POST"),
        (Method::POST, "/", "GET,HEAD"),
        (Method::POST, "/metrics", "GET,HEAD"),
        (Method::PUT, "/_admin/semaphores", "GET,HEAD,POST"),
        (Method::GET, "/_admin/semaphores/x", "DELETE"),
        (Method::POST, "/openapi.json", "GET,HEAD"),
    ] {
        let request = reqwest::Client::new().request(method, service.url(path));
        let refused = answer(request.header("Admin-API-Key", ADMIN_KEY)).await;
        assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let body = json!({"detail": "Method Not Allowed", "code": "method_not_allowed"});
        assert_eq!(refused.body, body, "{path}");
        let mut methods: Vec<_> = refused.headers[ALLOW].to_str().unwrap().split(',').collect();
        methods.sort_unstable();
        assert_eq!(methods.join(","), allowed, "{path}");
    }
}

#[tokio::test]
async fn a_key_header_that_is_not_text_is_refused() {
    let service =
        Service::with(Options::default(), |config| config.environment_fallback = false).await;
    let odd = || HeaderValue::from_bytes(b"the-admin-key\xff").unwrap();
    let chat = service.post("/chat", &json!({"prompt": "x"})).header("Admin-API-Key", odd());
    assert_eq!(answer(chat).await.status, StatusCode::UNAUTHORIZED);
    let admin = service.get("/_admin/semaphores").header("Admin-API-Key", odd());
    assert_eq!(answer(admin).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(service.simulator.stats().calls, 0);
}

/// The id in the answer to a request that was sent with this id.
async fn request_id(service: &Service, given: Option<&[u8]>) -> String {
    let given = given.map(|id| HeaderValue::from_bytes(id).unwrap());
    let request = given.into_iter().fold(service.get("/"), |r, id| r.header("X-Request-Id", id));
    let answer = answer(request).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
    answer.headers["x-request-id"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_answer_carries_its_requests_id() {
    let service = Service::start().await;
    let longest = "x".repeat(128);
    for id in ["a", "7f3c-4b", "trace:1/span=2", &longest] {
        assert_eq!(request_id(&service, Some(id.as_bytes())).await, id);
    }
    let refused = service.post("/chat", &json!({})).header("X-Request-Id", "of-a-refused-one");
    assert_eq!(answer(refused).await.headers["x-request-id"], "of-a-refused-one");
}

#[tokio::test]
async fn a_request_without_an_id_or_with_an_odd_one_gets_a_new_one() {
    let service = Service::start().await;
    let too_long = "x".repeat(129);
    let odd =
        [None, Some(&b""[..]), Some(b"two words"), Some(b"\xc3\xa9"), Some(too_long.as_bytes())];
    let mut ids = Vec::new();
    for given in odd {
        let id = request_id(&service, given).await;
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), odd.len(), "each id is unique");
}
