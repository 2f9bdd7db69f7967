//! The surface for OpenAI's clients, under `/v1beta/openai`.

use std::borrow::Cow;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::SimulatedCall;
use super::embeddings::openai_embeddings;
use super::form::SimulatedRequest;
use super::json::{json_response, received};
use super::options::Options;
use super::refusal::{Envelope, ErrorResponse};
use super::state::Simulator;
use super::stats::RunningCall;
use super::target::{Target, api_key, check_key};

/// The routes of the surface.
pub(super) fn router() -> Router<Simulator> {
    Router::new()
        .route("/v1beta/openai/chat/completions", post(chat_completions))
        .route("/v1beta/openai/embeddings", post(embeddings))
        .route("/v1beta/openai/models", get(list_models))
        .route("/v1beta/openai/models/{*model}", get(get_model))
}

async fn chat_completions(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "generateContent", |body| SimulatedRequest::completion(body))
        .await
}

async fn embeddings(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "embedContent", read_embeddings).await
}

/// Handles a generating call. Its body names the model.
async fn generate(
    simulator: &Simulator,
    request: Request,
    method: &str,
    read: fn(&[u8]) -> (Cow<'_, str>, SimulatedRequest<'_>),
) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.in_envelope(Envelope::List).into_response(),
    };
    let (model, mut request) = read(&body);
    let target = target(&model, method);
    let key = api_key(&parts.headers, &parts.uri);
    request.content = key.ok_or_else(ErrorResponse::no_bearer).and(request.content);
    let in_flight = RunningCall::arrive(simulator.collector(), target.model, key);
    let headers = &parts.headers;
    let call =
        SimulatedCall { simulator, target, headers, key, body: &body, arrived, context_tokens: 0 };
    call.answer(request, in_flight).await
}

fn read_embeddings(body: &[u8]) -> (Cow<'_, str>, SimulatedRequest<'_>) {
    let (model, call) = openai_embeddings(body);
    (model, SimulatedRequest::embeddings(call))
}

/// The target of a call. The model may have the prefix `models/`. Gemini's refusals name this
/// version.
fn target<'a>(model: &'a str, method: &'a str) -> Target<'a> {
    let model = model.strip_prefix("models/").unwrap_or(model);
    Target { version: "v1main", collection: "models", model, method }
}

async fn list_models(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    match check_bearer(&request, options) {
        Ok(()) => {
            let data: Vec<Value> = simulator.listed_models().into_iter().map(described).collect();
            json_response(&json!({"object": "list", "data": data}))
        }
        Err(refusal) => refusal.in_envelope(Envelope::List).into_response(),
    }
}

async fn get_model(
    State(simulator): State<Simulator>,
    Path(model): Path<String>,
    request: Request,
) -> Response {
    let options = simulator.options();
    let target = target(&model, "GetModel");
    match check_bearer(&request, options)
        .and_then(|()| target.check_model(options, simulator.today()))
    {
        Ok(_) => json_response(&described(target.model)),
        Err(refusal) => refusal.in_envelope(Envelope::List).into_response(),
    }
}

fn check_bearer(request: &Request, options: &Options) -> Result<(), ErrorResponse> {
    let key = api_key(request.headers(), request.uri()).ok_or_else(ErrorResponse::no_bearer)?;
    check_key(Some(key), options).map(drop)
}

fn described(model: &str) -> Value {
    json!({"id": format!("models/{model}"), "object": "model", "owned_by": "google"})
}
