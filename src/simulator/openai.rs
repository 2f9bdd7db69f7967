//! The surface for OpenAI's clients, under `/v1beta/openai`.

use std::borrow::Cow;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::completion::chat_completion;
use super::embeddings::openai_embeddings;
use super::exchange::{Asked, Exchange};
use super::json::{json_response, received};
use super::refusal::Refusal;
use super::routes::listed_models;
use super::stats::Call;
use super::target::{Target, api_key, check_key};
use super::{Options, Simulator};

/// The routes of the surface.
pub(super) fn router() -> Router<Simulator> {
    Router::new()
        .route("/v1beta/openai/chat/completions", post(chat_completions))
        .route("/v1beta/openai/embeddings", post(embeddings))
        .route("/v1beta/openai/models", get(list_models))
        .route("/v1beta/openai/models/{*model}", get(get_model))
}

async fn chat_completions(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "generateContent", chat_completion).await
}

async fn embeddings(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "embedContent", openai_embeddings).await
}

/// Any call that is counted as one of the model's answers. It arrives with its body, which alone
/// says which model is meant.
async fn generate(
    simulator: &Simulator,
    request: Request,
    method: &str,
    read: fn(&[u8]) -> (Cow<'_, str>, Asked<'_>),
) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.in_list().into_response(),
    };
    let (model, (form, request)) = read(&body);
    let target = target(&model, method);
    let key = api_key(&parts.headers, &parts.uri);
    let request = key.ok_or_else(Refusal::no_bearer).and(request);
    let call = Call::arrive(simulator.ledger(), target.model, key);
    let headers = &parts.headers;
    let exchange = Exchange { simulator, target, headers, key, body: &body, arrived, form };
    exchange.answer(request, call).await
}

/// A model, with or without `models/` before it. Gemini's refusals name this version.
fn target<'a>(model: &'a str, method: &'a str) -> Target<'a> {
    let model = model.strip_prefix("models/").unwrap_or(model);
    Target { version: "v1main", collection: "models", model, method }
}

async fn list_models(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    match check_bearer(&request, options) {
        Ok(()) => {
            let data: Vec<Value> = listed_models(options).map(described).collect();
            json_response(&json!({"object": "list", "data": data}))
        }
        Err(refusal) => refusal.in_list().into_response(),
    }
}

async fn get_model(
    State(simulator): State<Simulator>,
    Path(model): Path<String>,
    request: Request,
) -> Response {
    let options = simulator.options();
    let target = target(&model, "GetModel");
    match check_bearer(&request, options).and_then(|()| target.check_model(options)) {
        Ok(()) => json_response(&described(target.model)),
        Err(refusal) => refusal.in_list().into_response(),
    }
}

fn check_bearer(request: &Request, options: &Options) -> Result<(), Refusal> {
    let key = api_key(request.headers(), request.uri()).ok_or_else(Refusal::no_bearer)?;
    check_key(Some(key), options).map(drop)
}

fn described(model: &str) -> Value {
    json!({"id": format!("models/{model}"), "object": "model", "owned_by": "google"})
}
