//! The routes, and the calls in Gemini's own shape.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::embeddings::{batch_embed_contents, embed_content};
use super::exchange::{Asked, Exchange, Form};
use super::json::{json_response, received};
use super::refusal::Refusal;
use super::request::{GenerateContentRequest, count_tokens};
use super::stats::{Call, Stats};
use super::target::{Target, api_key, check_key, query_value};
use super::transmission::{Framing, wait_until};
use super::{Options, Simulator};
use super::{files, openai};

/// What is listed when any model goes.
const LISTED_MODELS: [&str; 3] =
    ["gemini-3.5-flash-lite", "gemini-3.8-flash", "gemini-embedding-2"];

/// Every route of the simulator.
pub(super) fn router(simulator: Simulator) -> Router {
    let mut router = Router::new()
        .route("/_simulator/stats", get(stats))
        .route("/_simulator/reset", post(reset));
    for version in ["/v1", "/v1beta"] {
        router = router
            .route(&format!("{version}/models"), get(list_models))
            .route(&format!("{version}/cachedContents"), get(list_cached_contents))
            .route(&format!("{version}/models/{{call}}"), get(get_model).post(call_model))
            .route(&format!("{version}/tunedModels/{{call}}"), get(get_model).post(call_model));
    }
    router.merge(openai::router()).merge(files::router()).with_state(simulator)
}

async fn stats(State(simulator): State<Simulator>) -> Json<Stats> {
    Json(simulator.stats())
}

async fn reset(State(simulator): State<Simulator>) -> StatusCode {
    simulator.reset();
    StatusCode::NO_CONTENT
}

async fn list_models(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    if let Err(refusal) = check_key(api_key(request.headers(), request.uri()), options) {
        return refusal.into_response();
    }
    let listed: Vec<Value> =
        listed_models(options).map(|model| described(&format!("models/{model}"))).collect();
    json_response(&json!({"models": listed}))
}

/// The models that exist, or some of them when any goes.
pub(super) fn listed_models(options: &Options) -> impl Iterator<Item = &str> {
    let any = if options.models.is_empty() { &LISTED_MODELS[..] } else { &[] };
    options.models.iter().map(String::as_str).chain(any.iter().copied())
}

/// There are none.
async fn list_cached_contents(State(simulator): State<Simulator>, request: Request) -> Response {
    match check_key(api_key(request.headers(), request.uri()), simulator.options()) {
        Ok(_) => json_response(&json!({})),
        Err(refusal) => refusal.into_response(),
    }
}

async fn get_model(State(simulator): State<Simulator>, request: Request) -> Response {
    let options = simulator.options();
    let checked = check_key(api_key(request.headers(), request.uri()), options)
        .and_then(|_| target(request.uri(), "GetModel"))
        .and_then(|target| target.check_model(options).map(|()| target.resource()));
    match checked {
        Ok(resource) => json_response(&described(&resource)),
        Err(refusal) => refusal.into_response(),
    }
}

fn described(resource: &str) -> Value {
    json!({
        "name": resource,
        "version": "001",
        "displayName": resource,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens", "embedContent"],
    })
}

/// Any call of a model's method.
async fn call_model(State(simulator): State<Simulator>, request: Request) -> Response {
    let target = match target(request.uri(), "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let read: fn(&[u8]) -> Asked<'_> = match target.method {
        "generateContent" => generate_content,
        "streamGenerateContent" if query_value(request.uri(), "alt") == Some("sse") => {
            stream_generate_content
        }
        "streamGenerateContent" => array_generate_content,
        "embedContent" => embed_content,
        "batchEmbedContents" => batch_embed_contents,
        "countTokens" => return call_count_tokens(&simulator, request).await,
        _ => {
            let Target { version, method, .. } = target;
            return Refusal::model_not_found(&target.resource(), version, method).into_response();
        }
    };
    generate(&simulator, request, read).await
}

fn generate_content(body: &[u8]) -> Asked<'_> {
    (Form::Content(Framing::Whole), GenerateContentRequest::parse(body))
}

fn stream_generate_content(body: &[u8]) -> Asked<'_> {
    (Form::Content(Framing::Events), GenerateContentRequest::parse(body))
}

fn array_generate_content(body: &[u8]) -> Asked<'_> {
    (Form::Content(Framing::Array), GenerateContentRequest::parse(body))
}

fn target<'a>(uri: &'a Uri, default_method: &'a str) -> Result<Target<'a>, Refusal> {
    let target =
        Target::from_path(uri.path()).ok_or_else(|| Refusal::with_status(StatusCode::NOT_FOUND))?;
    let method = if target.method.is_empty() { default_method } else { target.method };
    Ok(Target { method, ..target })
}

async fn call_count_tokens(simulator: &Simulator, request: Request) -> Response {
    let arrived = Instant::now();
    let _in_flight = simulator.ledger().count_tokens_called();
    let (parts, body) = request.into_parts();
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let options = simulator.options();
    let counted = check_key(api_key(&parts.headers, &parts.uri), options)
        .and_then(|_| target(&parts.uri, "")?.check_model(options))
        .and_then(|()| count_tokens(&body));
    match counted {
        Ok(tokens) => {
            wait_until(arrived + simulator.median_latency()).await;
            json_response(&json!({
                "totalTokens": tokens,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
            }))
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Any call that is counted as one of the model's answers.
async fn generate(
    simulator: &Simulator,
    request: Request,
    read: fn(&[u8]) -> Asked<'_>,
) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let target = match target(&parts.uri, "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let key = api_key(&parts.headers, &parts.uri);
    let call = Call::arrive(simulator.ledger(), target.model, key);
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let headers = &parts.headers;
    let (form, request) = read(&body);
    let exchange = Exchange { simulator, target, headers, key, body: &body, arrived, form };
    exchange.answer(request, call).await
}
