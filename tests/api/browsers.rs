//! Browsers: a page of another origin cannot spend the server's key, and pages get CORS headers.

use gemini_concurrent_generation::config::{Config, CorsOrigins};
use gemini_concurrent_generation::simulator::Options;
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::json;

use crate::recording::Recording;
use crate::support::{ADMIN_KEY, Service, answer};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
const EVIL: &str = "https://evil.example";
const APP: &str = "https://app.example";

fn trusting(config: &mut Config) {
    config.cors_origins = CorsOrigins::These(vec![HeaderValue::from_static(APP)]);
}

/// Requests of every kind that could spend or read with the server's key.
fn requests(service: &Service) -> Vec<RequestBuilder> {
    let client = reqwest::Client::new();
    let contents = json!({"contents": [{"parts": [{"text": "x"}]}]});
    let completion =
        json!({"model": "gemini-3.5-flash-lite", "messages": [{"role": "user", "content": "x"}]});
    vec![
        service.post("/chat", &json!({"prompt": "x"})),
        service.post("/batch/chat", &json!({"requests": [{"prompt": "x"}]})),
        service.post(GENERATE, &contents),
        service.post("/v1/chat/completions", &completion),
        service.get("/v1beta/models"),
        service.get("/v1beta/files"),
        client.delete(service.url("/v1beta/files/f")),
        client.post(service.url("/upload/v1beta/files")).body("x"),
    ]
}

#[tokio::test]
async fn a_page_of_another_origin_cannot_spend_the_servers_key() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        trusting(config);
    })
    .await;
    for (name, value) in [
        ("origin", EVIL),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        for request in requests(&service) {
            assert_eq!(answer(request.header(name, value)).await.status, 401, "{name}: {value}");
        }
    }
    assert_eq!(recording.requests().len(), 0);
    // The caller's own key is accepted from any origin. The server's key is accepted from pages of
    // this service, from trusted origins and from clients that are not browsers.
    let own = format!("http://{}", service.address);
    for (name, value) in
        [("x-goog-api-key", "callers-key"), ("admin-api-key", ADMIN_KEY), ("x-none", "")]
    {
        let origin = if value.is_empty() { APP } else { EVIL };
        for request in requests(&service) {
            let sent = request.header(name, value).header("origin", origin).send().await.unwrap();
            assert_ne!(sent.status(), 401, "{name}");
        }
    }
    for (name, value) in [("origin", &*own), ("sec-fetch-site", "none"), ("x-none", "")] {
        for request in requests(&service) {
            let sent = request.header(name, value).send().await.unwrap();
            assert_ne!(sent.status(), 401, "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn on_a_loopback_address_the_servers_key_requires_a_loopback_host() {
    let service = Service::with(Options::default(), |config| {
        config.allowed_hosts = vec!["gateway.internal".to_owned()];
    })
    .await;
    let chat =
        |host: &'static str| service.post("/chat", &json!({"prompt": "x"})).header("host", host);
    for host in ["localhost", "127.0.0.1:5004", "[::1]", "gateway.internal:80"] {
        assert_eq!(answer(chat(host)).await.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1"] {
        assert_eq!(answer(chat(host)).await.status, 401, "{host}");
        let own = chat(host).header("x-goog-api-key", "callers-key");
        assert_eq!(answer(own).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_request_that_needs_no_preflight_cannot_spend_the_servers_key() {
    let service = Service::start().await;
    let contents = json!({"contents": [{"parts": [{"text": "x"}]}]}).to_string();
    let client = reqwest::Client::new();
    let typed = |kind: Option<&str>| {
        let request = client.post(service.url(GENERATE)).body(contents.clone());
        kind.into_iter().fold(request, |request, kind| request.header("content-type", kind))
    };
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let refused = answer(typed(kind)).await;
        assert_eq!(refused.status, 415, "{kind:?}");
        assert_eq!(refused.body["error"]["details"][0]["reason"], "UNSUPPORTED_MEDIA_TYPE");
        let own = answer(typed(kind).header("x-goog-api-key", "callers-key")).await;
        assert_eq!(own.status, 200, "{kind:?}");
    }
    assert_eq!(answer(typed(Some("application/json"))).await.status, 200);
    for path in ["/v1beta/cachedContents", "/v1beta/files:register", "/v1beta/batches/b:cancel"] {
        let simple = client.post(service.url(path)).body("{}").header("content-type", "text/plain");
        assert_eq!(answer(simple).await.status, 415, "{path}");
    }
}

async fn preflight(service: &Service, path: &str, origin: &str) -> Response {
    let request = reqwest::Client::new().request(Method::OPTIONS, service.url(path));
    let request = request.header("origin", origin).header("access-control-request-method", "POST");
    let request = request.header("access-control-request-headers", "content-type,x-goog-api-key");
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_preflight_is_answered_by_the_service_and_needs_no_key() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        config.environment_fallback = false;
        trusting(config);
    })
    .await;
    for path in [GENERATE, "/v1/chat/completions", "/chat", "/v1beta/files/f", "/nowhere"] {
        let allowed = preflight(&service, path, APP).await;
        assert_eq!(allowed.status(), 204, "{path}");
        let headers = allowed.headers();
        assert_eq!(headers["access-control-allow-origin"], APP);
        assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("DELETE"));
        let allowed = &headers["access-control-allow-headers"];
        assert_eq!(allowed, "content-type,x-goog-api-key");
        assert_eq!(headers["vary"], "origin");
        let refused = preflight(&service, path, EVIL).await;
        assert!(!refused.headers().contains_key("access-control-allow-origin"), "{path}");
    }
    let options = reqwest::Client::new().request(Method::OPTIONS, service.url(GENERATE));
    assert!(options.send().await.unwrap().headers().contains_key("allow"));
    assert_eq!(recording.requests().len(), 0);
    // Errors can be read too.
    let refused = service.post("/chat", &json!({"prompt": "x"})).header("origin", APP);
    let refused = answer(refused).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.headers["access-control-allow-origin"], APP);
    assert_eq!(refused.headers["access-control-expose-headers"], "*");
}

#[tokio::test]
async fn allowed_origins_can_read_every_error() {
    let recording = Recording::play(503, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        config.environment_fallback = false;
        config.max_attempts = 1;
        config.max_body_bytes = 1000;
        trusting(config);
    })
    .await;
    let client = reqwest::Client::new();
    let keyed = |request: RequestBuilder| request.header("x-goog-api-key", "callers-key");
    let post = |path: &str| keyed(service.post(path, &json!({"prompt": "x"})));
    let large = "x".repeat(1001);
    for (request, status) in [
        (service.post(GENERATE, &json!({})), 401),
        (service.get("/_admin/limits"), 401),
        (service.get("/nowhere"), 404),
        (post("/v1/responses"), 404),
        (client.delete(service.url("/chat")), 405),
        (client.request(Method::TRACE, service.url("/chat")), 405),
        (post(GENERATE).body(large.clone()), 413),
        (post("/chat").body(large.clone()), 413),
        (post("/v1/chat/completions").header("content-encoding", "lzma"), 415),
        (keyed(client.post(service.url("/chat"))).body("x"), 415),
        (post("/chat").body("{}"), 422),
        (post("/v1/chat/completions"), 400),
        (post("/v1beta/models/a%252Fb:generateContent"), 400),
        (post("/chat"), 502),
        (post(GENERATE), 503),
    ] {
        let response = request.header("origin", APP).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{response:?}");
        let headers = response.headers();
        assert_eq!(headers["access-control-allow-origin"], APP, "{response:?}");
        assert_eq!(headers["access-control-expose-headers"], "*", "{response:?}");
        assert!(!headers.contains_key("access-control-allow-credentials"));
        assert!(headers.get_all("vary").iter().any(|vary| vary == "origin"), "{response:?}");
    }
}

#[tokio::test]
async fn with_all_origins_allowed_pages_must_bring_their_own_key() {
    let service = Service::with(Options::default(), |config| {
        config.cors_origins = CorsOrigins::Any;
    })
    .await;
    for request in requests(&service) {
        let refused = answer(request.header("origin", EVIL)).await;
        assert_eq!(refused.status, 401);
        assert_eq!(refused.headers["access-control-allow-origin"], "*");
    }
    let own =
        service.post("/chat", &json!({"prompt": "x"})).header("x-goog-api-key", "callers-key");
    let own = answer(own.header("origin", EVIL)).await;
    assert_eq!(
        (own.status.as_u16(), &own.headers["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
    let allowed = preflight(&service, GENERATE, EVIL).await;
    assert_eq!(allowed.headers()["access-control-allow-origin"], "*");
    assert!(!allowed.headers().contains_key("access-control-allow-private-network"));
}

#[tokio::test]
async fn an_allowed_origin_may_reach_a_private_network() {
    let service = Service::with(Options::default(), trusting).await;
    for (origin, allowed) in [(APP, true), (EVIL, false)] {
        let request = reqwest::Client::new().request(Method::OPTIONS, service.url("/chat"));
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-private-network", "true");
        let headers = request.send().await.unwrap().headers().clone();
        assert_eq!(headers.contains_key("access-control-allow-private-network"), allowed);
    }
}

#[tokio::test]
async fn geminis_cors_headers_are_not_passed_on() {
    let answered = "HTTP/1.1 200 OK\r\ncontent-type: image/svg+xml\r\ncontent-length: 2\r\n\
                    access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n\
                    set-cookie: a=b\r\ncontent-security-policy: default-src *\r\n\
                    x-other: 1\r\n\r\n{}";
    let recording = Recording::write(vec![answered.into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
    })
    .await;
    for request in [
        service.get("/v1beta/files/f"),
        service.post(GENERATE, &json!({"contents": [{"parts": [{"text": "x"}]}]})),
    ] {
        let response = request.header("origin", EVIL).header("x-goog-api-key", "k").send().await;
        let headers = response.unwrap().headers().clone();
        assert_eq!(headers["x-other"], "1");
        assert!(!headers.keys().any(|name| name.as_str().starts_with("access-control-")));
        assert!(!headers.contains_key("set-cookie"));
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("sandbox"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
}

#[tokio::test]
async fn every_page_has_security_headers() {
    let service = Service::start().await;
    for path in ["/", "/docs/", "/openapi.json", "/nowhere"] {
        let response = service.get(path).send().await.unwrap();
        let headers = response.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["x-frame-options"], "DENY", "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("frame-ancestors 'none'"), "{path}");
        assert!(policy.starts_with("default-src 'self'"), "{path}");
    }
    // The content security policy forbids inline scripts.
    let page = service.get("/docs/").send().await.unwrap().text().await.unwrap();
    let scripts: Vec<_> = page.split("<script").skip(1).collect();
    assert!(!scripts.is_empty() && scripts.iter().all(|script| script.starts_with(" src=")));
}
