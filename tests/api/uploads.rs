//! Uploads that continue at a URL of their own.

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use gemini_concurrent_generation::simulator::Options;
use http::{HeaderMap, Uri};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{SERVER_KEY, Service, answer, listen};

/// Begins an upload. `x-goog-upload-url` is on this host, `location` on another one.
async fn begin_upload(headers: HeaderMap, uri: Uri) -> impl IntoResponse {
    let path = format!("/prefix{}&key={SERVER_KEY}&upload_id=7", uri.path_and_query().unwrap());
    let host = headers["host"].to_str().unwrap();
    let key = headers.get("x-goog-api-key").map_or("none", |key| key.to_str().unwrap());
    [
        ("x-goog-upload-url", format!("http://{host}{path}")),
        ("location", format!("http://127.0.0.1:9{path}")),
        ("x-seen-key", key.to_owned()),
    ]
}

#[tokio::test]
async fn an_upload_continues_through_the_service() {
    let stop = CancellationToken::new();
    let upstream = axum::Router::new().nest("/prefix", axum::Router::new().fallback(begin_upload));
    let upstream = listen(upstream, &stop).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url = format!("http://{upstream}/prefix");
        config.environment_fallback = false;
    })
    .await;
    let path = "/upload/v1beta/files?protocol=resumable";
    let request = service.post(path, &json!({})).header("x-goog-api-key", "callers-key");
    let begun = request.header("x-forwarded-proto", "https").send().await.unwrap();
    assert_eq!(begun.headers()["x-seen-key"], "*".repeat("callers-key".len()));
    let url = begun.headers()["x-goog-upload-url"].to_str().unwrap().to_owned();
    let begins = format!("https://{}{path}&upload_id=7&gateway_expires=", service.address);
    assert!(url.starts_with(&begins), "{url}");
    let elsewhere = begun.headers()["location"].to_str().unwrap();
    assert!(elsewhere.starts_with("http://127.0.0.1:9/"), "{elsewhere}");

    // The upload's URL is proof enough without a key, and none is added. Gemini gets its own URL.
    let signed = &url[url.find("/upload").unwrap()..];
    let rest = service.post(signed, &json!({})).send().await.unwrap();
    assert_eq!(rest.headers()["x-seen-key"], "none");
    let sent_on = rest.headers()["location"].to_str().unwrap();
    assert!(!sent_on.contains("gateway_"), "{sent_on}");
    assert_eq!(answer(service.post(path, &json!({}))).await.status, 401);
}

#[tokio::test]
async fn an_upload_that_began_elsewhere_requires_a_key() {
    let stop = CancellationToken::new();
    let upstream = axum::Router::new().nest("/prefix", axum::Router::new().fallback(begin_upload));
    let upstream = listen(upstream, &stop).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url = format!("http://{upstream}/prefix");
    })
    .await;
    let began = service.post("/upload/v1beta/files?a=b", &json!({})).send().await.unwrap();
    let url = began.headers()["x-goog-upload-url"].to_str().unwrap();
    let signed = url[url.find("/upload").unwrap()..].to_owned();
    for unsigned in [
        "/upload/v1beta/files?upload_id=7".to_owned(),
        "/upload/v1beta/files?%75pload_id=7".to_owned(),
        signed.replace("upload_id=7", "upload_id=8"),
        format!("{signed}&upload_id=8"),
        signed.replace("/v1beta/", "/v1/"),
    ] {
        // The server's key is not used either.
        let refused = answer(service.post(&unsigned, &json!({}))).await;
        assert_eq!(refused.status, 401, "{unsigned}");
        let own = service.post(&unsigned, &json!({})).header("x-goog-api-key", "callers-key");
        assert_eq!(own.send().await.unwrap().headers()["x-seen-key"], "***********");
    }
}

/// A reverse proxy that serves the service under `/gemini/v2` and sets the forwarded prefix.
async fn proxied(service: &Service, stop: &CancellationToken) -> String {
    let inner = format!("http://{}", service.address);
    let pass = async move |headers: HeaderMap, uri: Uri, body: Bytes| {
        let request = reqwest::Client::new().post(format!("{inner}{uri}")).headers(headers);
        let request = request.header("x-forwarded-prefix", "/gemini/v2/");
        let passed = request.body(body).send().await.unwrap();
        let (status, headers) = (passed.status(), passed.headers().clone());
        let body = Body::from(passed.bytes().await.unwrap());
        let mut response = (status, body).into_response();
        response.headers_mut().extend(headers);
        Response::from(response)
    };
    let routes = axum::Router::new().fallback(pass);
    let address = listen(axum::Router::new().nest("/gemini/v2", routes), stop).await;
    format!("http://{address}/gemini/v2")
}

#[tokio::test]
async fn an_upload_continues_under_the_prefix_that_a_proxy_strips() {
    let stop = CancellationToken::new();
    let service = Service::start().await;
    let proxy = proxied(&service, &stop).await;
    let begin = reqwest::Client::new().post(format!("{proxy}/upload/v1beta/files"));
    let begin = begin.header("x-goog-upload-protocol", "resumable");
    let begin = begin.header("x-goog-upload-command", "start");
    let begin = begin.header("x-goog-upload-header-content-length", "5");
    let begin = begin.header("content-type", "application/json").body("{}");
    let begun = begin.send().await.unwrap();
    let url = begun.headers()["x-goog-upload-url"].to_str().unwrap();
    assert!(url.starts_with(&format!("{proxy}/upload/v1beta/files?")), "{url}");
    let rest = reqwest::Client::new().post(url).body("bytes");
    let rest = rest.header("x-goog-upload-command", "upload, finalize");
    let rest = answer(rest.header("x-goog-upload-offset", "0")).await;
    assert_eq!(rest.body["file"]["sizeBytes"], "5", "{rest:?}");
}

#[tokio::test]
async fn a_forwarded_prefix_cannot_name_another_host() {
    let service = Service::start().await;
    let own = format!("http://{}/upload/v1beta/files?", service.address);
    for prefix in ["@evil.example", ".evil.example/", "//evil.example", "/a/../b", "/a?b", "/a, /b"]
    {
        let begin = service.post("/upload/v1beta/files", &json!({}));
        let begin = begin.header("x-goog-upload-protocol", "resumable");
        let begin = begin.header("x-goog-upload-command", "start");
        let begun = begin.header("x-forwarded-prefix", prefix).send().await.unwrap();
        let url = begun.headers()["x-goog-upload-url"].to_str().unwrap();
        assert!(url.starts_with(&own), "{prefix}: {url}");
    }
}
