//! The HTTP endpoints, and the calls of Gemini's own API on models.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::batches::store::Kind;
use super::call::SimulatedCall;
use super::embeddings::{batch_embed_contents, embed_content};
use super::form::SimulatedRequest;
use super::json::{json_response, received};
use super::refusal::ErrorResponse;
use super::request::count_tokens;
use super::state::Simulator;
use super::stats::{RunningCall, Stats};
use super::target::{Target, api_key, check_key, query_value};
use super::tier::ServiceTier;
use super::transmission::{Framing, wait_until};
use super::{batches, file_search, files, interactions, live, openai, other_calls};

/// Every route of the simulator.
pub(super) fn router(simulator: Simulator) -> Router {
    let mut router = Router::new()
        .route("/_simulator/stats", get(stats))
        .route("/_simulator/reset", post(reset));
    for version in ["/v1", "/v1beta", "/v1alpha"] {
        router = router
            .route(&format!("{version}/models"), get(list_models))
            .route(&format!("{version}/cachedContents"), get(list_cached_contents))
            .route(&format!("{version}/models/{{call}}"), get(get_model).post(call_model))
            .route(&format!("{version}/tunedModels/{{call}}"), get(get_model).post(call_model));
    }
    router
        .merge(openai::router())
        .merge(files::router())
        .merge(interactions::router())
        .merge(live::router())
        .merge(batches::router())
        .merge(other_calls::router())
        .merge(file_search::router())
        .with_state(simulator)
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
    let listed: Vec<Value> = simulator
        .listed_models()
        .into_iter()
        .map(|model| described(&format!("models/{model}")))
        .collect();
    json_response(&json!({"models": listed}))
}

/// The simulator has no cached contents.
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
        .and_then(|target| {
            target.check_model(options, simulator.today()).map(|_| target.resource())
        });
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

/// Handles a call of a model's method.
async fn call_model(State(simulator): State<Simulator>, request: Request) -> Response {
    let target = match target(request.uri(), "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let read: fn(&[u8]) -> SimulatedRequest<'_> = match target.method {
        "generateContent" => |body| SimulatedRequest::content(body, Framing::Whole),
        "streamGenerateContent" if query_value(request.uri(), "alt") == Some("sse") => {
            |body| SimulatedRequest::content(body, Framing::Events)
        }
        "streamGenerateContent" => |body| SimulatedRequest::content(body, Framing::Array),
        "embedContent" => embed,
        "batchEmbedContents" => embed_batch,
        "batchGenerateContent" => return create_batch(&simulator, request, Kind::Generate).await,
        "asyncBatchEmbedContent" => return create_batch(&simulator, request, Kind::Embed).await,
        "countTokens" => return call_count_tokens(&simulator, request).await,
        _ => {
            let Target { version, method, .. } = target;
            return ErrorResponse::model_not_found(&target.resource(), version, method)
                .into_response();
        }
    };
    generate(&simulator, request, read).await
}

fn embed(body: &[u8]) -> SimulatedRequest<'_> {
    SimulatedRequest::embeddings(embed_content(body))
}

fn embed_batch(body: &[u8]) -> SimulatedRequest<'_> {
    SimulatedRequest::embeddings(batch_embed_contents(body))
}

fn target<'a>(uri: &'a Uri, default_method: &'a str) -> Result<Target<'a>, ErrorResponse> {
    let target = Target::from_path(uri.path())
        .ok_or_else(|| ErrorResponse::with_status(StatusCode::NOT_FOUND))?;
    let method = if target.method.is_empty() { default_method } else { target.method };
    Ok(Target { method, ..target })
}

async fn create_batch(simulator: &Simulator, request: Request, kind: Kind) -> Response {
    let (parts, body) = request.into_parts();
    match target(&parts.uri, "") {
        Ok(target) => batches::create(simulator, &parts, body, target, kind).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn call_count_tokens(simulator: &Simulator, request: Request) -> Response {
    let arrived = Instant::now();
    let _in_flight = simulator.collector().count_tokens_called();
    let (parts, body) = request.into_parts();
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let options = simulator.options();
    let counted = check_key(api_key(&parts.headers, &parts.uri), options)
        .and_then(|_| target(&parts.uri, "")?.check_model(options, simulator.today()))
        .and_then(|_| count_tokens(&body));
    match counted {
        Ok(tokens) => {
            wait_until(arrived + simulator.median_latency(ServiceTier::Standard)).await;
            json_response(&json!({
                "totalTokens": tokens,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
            }))
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Handles a generating call.
async fn generate(
    simulator: &Simulator,
    request: Request,
    read: fn(&[u8]) -> SimulatedRequest<'_>,
) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let target = match target(&parts.uri, "") {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let key = api_key(&parts.headers, &parts.uri);
    let in_flight = RunningCall::arrive(simulator.collector(), target.model, key);
    let body = match received(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let headers = &parts.headers;
    let call =
        SimulatedCall { simulator, target, headers, key, body: &body, arrived, context_tokens: 0 };
    call.answer(read(&body), in_flight).await
}
