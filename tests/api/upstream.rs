//! An upstream with scripted answers that records what it was sent.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::listen;

/// An upstream with a script. It refuses calls past the script's end.
pub struct Upstream {
    pub base_url: String,
    calls: Arc<Mutex<Calls>>,
    _stop: DropGuard,
}

struct Calls {
    script: Vec<Reply>,
    asked: Vec<Value>,
}

/// The answer to one call.
#[derive(Clone)]
struct Reply {
    text: String,
    finish_reason: &'static str,
    continuation: Option<&'static str>,
}

impl Reply {
    fn ending(text: impl ToString, finish_reason: &'static str) -> Self {
        Self { text: text.to_string(), finish_reason, continuation: None }
    }
}

/// The usage reported for a call, counted from 1: `[prompt, output, thinking]`.
pub const fn cost(call: u64) -> [u64; 3] {
    [call * 10, call * 100, call * 1000]
}

impl Upstream {
    /// Answers with these texts, one for each call.
    pub async fn answering(texts: impl IntoIterator<Item = impl ToString>) -> Self {
        let texts = texts.into_iter();
        Self::with_script(texts.map(|text| Reply::ending(text, "STOP")).collect()).await
    }

    /// Answers once, with a text that was cut off at the token limit.
    pub async fn truncated(text: &str) -> Self {
        Self::with_script(vec![Reply::ending(text, "MAX_TOKENS")]).await
    }

    /// Answers with these texts, each but the last with a token that continues it.
    pub async fn in_parts(texts: &[&str], finish_reason: &'static str) -> Self {
        let (last, parts) = texts.split_last().expect("a text");
        let parts = parts.iter().map(|text| Reply {
            continuation: Some("more"),
            ..Reply::ending(text, "CONTINUATION")
        });
        let last = Reply::ending(last, finish_reason);
        Self::with_script(parts.chain([last]).collect()).await
    }

    /// Answers once, with a text and a token that continues it.
    pub async fn unfinished(text: &str) -> Self {
        let first = Reply { continuation: Some("more"), ..Reply::ending(text, "CONTINUATION") };
        Self::with_script(vec![first]).await
    }

    async fn with_script(script: Vec<Reply>) -> Self {
        let stop = CancellationToken::new();
        let calls = Arc::new(Mutex::new(Calls { script, asked: Vec::new() }));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&calls));
        let base_url = format!("http://{}", listen(router, &stop).await);
        Self { base_url, calls, _stop: stop.drop_guard() }
    }

    /// The bodies it was sent, in order.
    pub fn requests(&self) -> Vec<Value> {
        self.calls.lock().unwrap().asked.clone()
    }
}

async fn answer(State(calls): State<Arc<Mutex<Calls>>>, Json(body): Json<Value>) -> Response {
    let mut calls = calls.lock().unwrap();
    calls.asked.push(body);
    let number = calls.asked.len();
    let Some(reply) = calls.script.get(number - 1) else {
        let refusal = json!({"error": {"code": 400, "message": "The script is at its end."}});
        return (StatusCode::BAD_REQUEST, Json(refusal)).into_response();
    };
    let [prompt, output, thinking] = cost(number as u64);
    Json(json!({
        "candidates": [{
            "content": {"parts": [{"text": reply.text}], "role": "model"},
            "finishReason": reply.finish_reason,
            "continuationToken": reply.continuation,
        }],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "candidatesTokenCount": output,
            "thoughtsTokenCount": thinking,
            "totalTokenCount": prompt + output + thinking,
        },
    }))
    .into_response()
}
