//! File search stores. Adding a file embeds it, which costs input tokens of the embedding model.
//!
//! Source: Google's Python SDK, `file_search_stores`. The cost is inferred.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::SimulatedCall;
use super::form::{Form, SimulatedRequest};
use super::json::{json_response, parse, received};
use super::refusal::{Envelope, ErrorResponse};
use super::request::{Content, GenerateContentRequest, Part};
use super::response::SimulatedResponse;
use super::state::Simulator;
use super::stats::{RunningCall, hash};
use super::target::{Target, api_key, check_key};

/// The model that embeds files.
const EMBEDDING_MODEL: &str = "gemini-embedding-001";

/// Bytes per token of a file, whose content is not kept.
const BYTES_PER_TOKEN: u64 = 4;

/// The routes of the stores. Uploading to a store is a route of the files.
pub(super) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        let stores = format!("/{version}/fileSearchStores");
        router
            .route(&stores, post(create))
            .route(&format!("{stores}/{{call}}"), get(read).post(import).delete(delete))
            .route(&format!("{stores}/{{store}}/operations/{{id}}"), get(operation))
            .route(&format!("{stores}/{{store}}/upload/operations/{{id}}"), get(operation))
    })
}

async fn create(State(simulator): State<Simulator>, request: Request) -> Response {
    let name = format!("fileSearchStores/simulated-{}", simulator.next_number());
    respond(&simulator, &request.into_parts().0, json!({"name": name}))
}

async fn read(
    State(simulator): State<Simulator>,
    Path(store): Path<String>,
    request: Request,
) -> Response {
    let name = format!("fileSearchStores/{store}");
    respond(&simulator, &request.into_parts().0, json!({"name": name}))
}

async fn delete(State(simulator): State<Simulator>, request: Request) -> Response {
    respond(&simulator, &request.into_parts().0, json!({}))
}

/// An operation has ended by the first time it is read.
async fn operation(State(simulator): State<Simulator>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path();
    let name = path.find("fileSearchStores/").map_or(path, |start| &path[start..]);
    let ended = json!({"name": name, "done": true, "response": {}});
    respond(&simulator, &parts, ended)
}

fn respond(simulator: &Simulator, parts: &Parts, body: Value) -> Response {
    match check_key(api_key(&parts.headers, &parts.uri), simulator.options()) {
        Ok(_) => json_response(&body),
        Err(refusal) => refusal.into_response(),
    }
}

/// Adds an uploaded file to a store: `importFile`.
async fn import(
    State(simulator): State<Simulator>,
    Path(call): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(store) = call.strip_suffix(":importFile") else {
        return ErrorResponse::with_status(StatusCode::NOT_FOUND).into_response();
    };
    let key = api_key(&parts.headers, &parts.uri).map(str::to_owned);
    let body = received(body).await;
    let found = check_key(key.as_deref(), simulator.options()).and_then(|key| {
        let body: Value = parse(&body?)?;
        let name = body["fileName"].as_str().or(body["file_name"].as_str()).unwrap_or_default();
        let file = simulator.files().get(hash(key), name);
        let file = file.ok_or_else(|| ErrorResponse::no_such_file(name))?;
        let size = file["sizeBytes"].as_str().and_then(|size| size.parse().ok());
        Ok((key, size.unwrap_or_default()))
    });
    match found {
        Ok((key, bytes)) => index(&simulator, &parts, key, store, bytes).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Embeds a file of so many bytes for a store, and answers with the operation.
pub(super) async fn index(
    simulator: &Simulator,
    parts: &Parts,
    key: &str,
    store: &str,
    bytes: u64,
) -> Response {
    let in_flight = RunningCall::arrive(simulator.collector(), EMBEDDING_MODEL, Some(key));
    let body = json!({"store": store}).to_string();
    let call = SimulatedCall {
        simulator,
        target: Target {
            version: "v1beta",
            collection: "models",
            model: EMBEDDING_MODEL,
            method: "importFile",
        },
        headers: &parts.headers,
        key: Some(key),
        body: body.as_bytes(),
        arrived: Instant::now(),
        // One token is that of the empty content below.
        context_tokens: bytes.div_ceil(BYTES_PER_TOKEN).saturating_sub(1),
    };
    let content = vec![Content::new("user", vec![Part::default()])];
    let content = GenerateContentRequest::of_contents(content).checked();
    let form = Form::Other { envelope: Envelope::Native, encode: started };
    call.answer(SimulatedRequest { form, content }, in_flight).await
}

fn started(body: &Value, response: &SimulatedResponse<'_>) -> Value {
    let store = body["store"].as_str().unwrap_or_default();
    json!({"name": format!("fileSearchStores/{store}/operations/{}", response.response_id)})
}
