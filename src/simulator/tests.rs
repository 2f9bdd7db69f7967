//! The simulator as a client sees it.

mod answers;
mod batches;
mod behaviour;
mod embeddings;
mod files;
mod interactions;
mod live;
mod openai;
mod other_calls;
mod requests;
mod tiers;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, Request, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Options, Simulator};

const FLASH: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
const STREAM: &str = "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent";

fn simulator() -> Simulator {
    Simulator::new(Options::default())
}

fn chat(text: &str) -> Value {
    json!({"contents": [{"role": "user", "parts": [{"text": text}]}]})
}

fn structured(keyword: &str, schema: &Value) -> Value {
    let mut request = chat("a question");
    request["generationConfig"] = json!({"responseMimeType": "application/json", keyword: schema});
    request
}

async fn call(simulator: &Simulator, request: Request<Body>) -> Response {
    simulator.router().oneshot(request).await.expect("a router does not fail")
}

async fn post(simulator: &Simulator, path: &str, body: &Value) -> Response {
    post_with_key(simulator, path, body, "key").await
}

async fn post_with_key(simulator: &Simulator, path: &str, body: &Value, key: &str) -> Response {
    let request = Request::post(path)
        .header("x-goog-api-key", key)
        .body(Body::from(body.to_string()))
        .expect("a valid request");
    call(simulator, request).await
}

async fn bytes(response: Response) -> Bytes {
    to_bytes(response.into_body(), usize::MAX).await.expect("a whole body")
}

async fn json_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&bytes(response).await).expect("a JSON body"))
}

/// The events of a stream, each with its `data: `.
async fn events_of(response: Response, separator: &str) -> Vec<String> {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let body = String::from_utf8(bytes(response).await.to_vec()).expect("UTF-8");
    let events = body.strip_suffix(separator).expect("a last event that is complete");
    events.split(separator).map(str::to_owned).collect()
}

async fn post_as_openai(simulator: &Simulator, path: &str, body: &Value) -> Response {
    let request = Request::post(path)
        .header("authorization", "Bearer key")
        .body(Body::from(body.to_string()))
        .expect("a valid request");
    call(simulator, request).await
}

async fn get(simulator: &Simulator, path: &str) -> (u16, Value) {
    let request = Request::get(path).header("authorization", "Bearer key");
    json_of(call(simulator, request.body(Body::empty()).expect("a valid request")).await).await
}

async fn ask(simulator: &Simulator, text: &str) -> (u16, Value) {
    json_of(post(simulator, FLASH, &chat(text)).await).await
}

fn text_of(answer: &Value) -> &str {
    answer["candidates"][0]["content"]["parts"][0]["text"].as_str().expect("a text")
}

fn message_of(refusal: &Value) -> &str {
    refusal["error"]["message"].as_str().expect("a message")
}

/// A request without a body, sent with the usual key.
async fn send(simulator: &Simulator, method: Method, path: &str) -> Response {
    let request = Request::builder().method(method).uri(path).header("x-goog-api-key", "key");
    call(simulator, request.body(Body::empty()).expect("a valid request")).await
}
