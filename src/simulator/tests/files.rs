//! Files and their uploads.

use futures_util::stream;
use http::request::Builder;

use super::*;

const UPLOAD: &str = "/upload/v1beta/files";

async fn send(simulator: &Simulator, request: Builder, body: impl Into<Body>) -> Response {
    call(simulator, request.body(body.into()).expect("a valid request")).await
}

fn upload_status(response: &Response) -> &str {
    response.headers()["x-goog-upload-status"].to_str().expect("text")
}

/// Begins an upload and returns its address.
async fn begun(simulator: &Simulator, body: &Value) -> String {
    let request = Request::post(UPLOAD)
        .header("host", "files.example:81")
        .header("authorization", "Bearer key")
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-type", "text/plain");
    let response = send(simulator, request, body.to_string()).await;
    assert_eq!((response.status().as_u16(), upload_status(&response)), (200, "active"));
    response.headers()["x-goog-upload-url"].to_str().expect("text").to_owned()
}

#[tokio::test]
async fn an_upload_in_two_requests_becomes_a_file() {
    let simulator = simulator();
    let url = begun(&simulator, &json!({"file": {"displayName": "mine"}})).await;
    assert!(url.starts_with("http://files.example:81/upload/v1beta/files?upload_id="), "{url}");
    let part = |offset: &str, command: &str| {
        Request::post(&url)
            .header("host", "files.example:81")
            .header("x-goog-upload-offset", offset)
            .header("x-goog-upload-command", command)
    };
    let response = send(&simulator, part("0", "upload"), "12345").await;
    assert_eq!(upload_status(&response), "active");
    let queried = send(&simulator, part("0", "query"), "").await;
    assert_eq!(queried.headers()["x-goog-upload-size-received"], "5");
    let with_a_gap = send(&simulator, part("6", "upload, finalize"), "67").await;
    assert_eq!(with_a_gap.status(), 400);
    let response = send(&simulator, part("5", "upload, finalize"), "67").await;
    assert_eq!(upload_status(&response), "final");
    let file = json_of(response).await.1["file"].take();
    let name = file["name"].as_str().expect("a name").to_owned();
    assert_eq!(file["sizeBytes"], "7");
    assert_eq!((&file["mimeType"], &file["displayName"]), (&json!("text/plain"), &json!("mine")));
    assert_eq!(file["state"], "ACTIVE");
    assert_eq!(file["uri"], format!("http://files.example:81/v1beta/{name}"));

    assert_eq!(get(&simulator, "/v1beta/files").await.1, json!({"files": [file]}));
    assert_eq!(get(&simulator, &format!("/v1/{name}")).await.1, file);
    let again = send(&simulator, part("7", "upload, finalize"), "8").await;
    assert_eq!(again.status(), 404);
}

#[tokio::test]
async fn files_are_their_keys_own_and_can_be_deleted() {
    let simulator = simulator();
    let upload =
        Request::post(format!("{UPLOAD}?uploadType=media")).header("x-goog-api-key", "key");
    let (_, answer) = json_of(send(&simulator, upload, "123").await).await;
    assert_eq!(answer["file"]["sizeBytes"], "3");
    let path = format!("/v1beta/{}", answer["file"]["name"].as_str().expect("a name"));
    let with_key = async |request: Builder, key: &str| {
        json_of(send(&simulator, request.header("x-goog-api-key", key), "").await).await
    };
    assert_eq!(with_key(Request::get("/v1beta/files"), "another").await, (200, json!({})));
    assert_eq!(with_key(Request::get(&path), "another").await.0, 403);
    assert_eq!(with_key(Request::delete(&path), "another").await.0, 403);
    assert_eq!(with_key(Request::delete(&path), "key").await, (200, json!({})));
    assert_eq!(with_key(Request::get(&path), "key").await.0, 403);
    assert_eq!(with_key(Request::post(UPLOAD), "invalid").await.0, 400);
    assert_eq!(get(&simulator, "/v1/cachedContents").await, (200, json!({})));
}

#[tokio::test]
async fn a_body_is_counted_however_large() {
    let simulator = simulator();
    let url = begun(&simulator, &json!({})).await;
    let megabyte = Bytes::from(vec![0; 1 << 20]);
    let chunks = (0..1024).map(move |_| Ok::<_, std::io::Error>(megabyte.clone()));
    let request = Request::post(&url).header("x-goog-upload-command", "upload, finalize");
    let response = send(&simulator, request, Body::from_stream(stream::iter(chunks))).await;
    assert_eq!(json_of(response).await.1["file"]["sizeBytes"], (1 << 30).to_string());
}

#[tokio::test]
async fn the_oldest_file_is_forgotten_first() {
    let simulator = simulator();
    for size in 0..=1000 {
        let request = Request::post(UPLOAD).header("authorization", "Bearer key");
        send(&simulator, request, "x".repeat(size)).await;
    }
    let (_, listed) = get(&simulator, "/v1beta/files").await;
    let files = listed["files"].as_array().expect("files");
    assert_eq!((files.len(), &files[0]["sizeBytes"]), (1000, &json!("1")));
}
