//! The other calls that cost tokens: decisions, voices, and trigger
//! executions.
//!
//! Source: types of Google's Python SDK. What they cost is inferred.

pub(super) mod triggers;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::SimulatedCall;
use super::form::{Form, SimulatedRequest};
use super::interactions::{contents, create_interaction, refused, usage};
use super::json::{json_response, parse, received};
use super::refusal::{Envelope, ErrorResponse};
use super::request::GenerateContentRequest;
use super::response::{PromptOutcome, SimulatedResponse};
use super::state::Simulator;
use super::stats::RunningCall;
use super::target::{Target, api_key, owner, version};

/// The model that prompted voices are made with when none is named.
const VOICE_MODEL: &str = "gemini-3.8-flash-tts";

/// The routes of these calls, except for indexing files.
pub(super) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        router
            .route(&format!("/{version}/decisions"), post(decide))
            .route(&format!("/{version}/voices"), post(create_voice))
            .route(&format!("/{version}/triggers"), post(create_trigger))
            .route(&format!("/{version}/triggers/{{id}}"), get(read_trigger))
            .route(&format!("/{version}/triggers/{{id}}/executions"), post(execute_trigger))
    })
}

async fn decide(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "CreateDecision", |body| {
        (body["model"].as_str(), &body["input"], decision)
    })
    .await
}

async fn create_voice(State(simulator): State<Simulator>, request: Request) -> Response {
    generate(&simulator, request, "CreateVoice", |body| {
        let voice = &body["voice"];
        let model = voice["model"].as_str().or(body["model"].as_str());
        (model.or(Some(VOICE_MODEL)), voice, voice_of)
    })
    .await
}

/// Writes the body of a response from the request and the response of the model.
type Encode = fn(&Value, &SimulatedResponse<'_>) -> Value;

/// Handles a call whose body names a model. The function gives the model, the input and how the
/// response is written.
async fn generate(
    simulator: &Simulator,
    request: Request,
    method: &str,
    read: fn(&Value) -> (Option<&str>, &Value, Encode),
) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let read_body = async {
        let body = received(body).await?;
        let value: Value = parse(&body)?;
        Ok((body, value))
    };
    let (body, value) = match read_body.await {
        Ok(read) => read,
        Err(refusal) => return refused(refusal),
    };
    let (model, input, encode) = read(&value);
    let name = model.unwrap_or_default();
    let name = name.strip_prefix("models/").unwrap_or(name);
    let key = api_key(&parts.headers, &parts.uri);
    let in_flight = RunningCall::arrive(simulator.collector(), name, key);
    let content = GenerateContentRequest::of_contents(contents(input)).checked();
    let call = SimulatedCall {
        simulator,
        target: Target { version: version(&parts.uri), collection: "models", model: name, method },
        headers: &parts.headers,
        key,
        body: &body,
        arrived,
        context_tokens: 0,
    };
    let form = Form::Other { envelope: Envelope::Interactions, encode };
    call.answer(SimulatedRequest { form, content }, in_flight).await
}

fn decision(body: &Value, response: &SimulatedResponse<'_>) -> Value {
    if let PromptOutcome::Blocked(reason) = response.outcome {
        return json!({"prompt_feedback": {"block_reason": reason}, "usage": usage(response)});
    }
    let questions = body["questions"].as_object().into_iter().flatten();
    let answers: serde_json::Map<String, Value> =
        questions.map(|(id, question)| (id.clone(), answer_to(question))).collect();
    json!({"answers": answers, "usage": usage(response)})
}

/// The first choice, a yes, or the lowest score.
fn answer_to(question: &Value) -> Value {
    match question["type"].as_str() {
        Some("choice") => {
            let choices = question["criteria"].as_object();
            let choice = choices.and_then(|choices| choices.keys().next());
            let choice = choice.cloned().unwrap_or_default();
            let probabilities = json!({choice.clone(): 0.9});
            json!({"type": "choice", "choice": choice, "confidence": 0.9,
                "probabilities": probabilities})
        }
        Some("score") => {
            json!({"type": "score", "score": 1, "confidence": 0.9, "probabilities": {"1": 0.9},
                "legend": {"1": "simulated"}})
        }
        _ => json!({"type": "noul", "noul": 0.9, "confidence": 0.9}),
    }
}

fn voice_of(body: &Value, response: &SimulatedResponse<'_>) -> Value {
    let mut voice = body["voice"].as_object().cloned().unwrap_or_default();
    voice.insert("id".to_owned(), format!("voices/{}", response.response_id).into());
    voice.insert("model".to_owned(), response.model.into());
    let audio = json!({"mime_type": "audio/wav", "data": "UklGRg=="});
    voice.insert("sample_audio".to_owned(), audio);
    voice.insert("usage".to_owned(), usage(response));
    voice.into()
}

async fn create_trigger(State(simulator): State<Simulator>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = received(body).await;
    let created = owner(&parts, simulator.options()).and_then(|owner| {
        let mut trigger: Value = parse(&body?)?;
        if !trigger["interaction"].is_object() {
            return Err(ErrorResponse::invalid_argument("interaction is required."));
        }
        trigger["id"] = format!("simulated-{}", simulator.next_number()).into();
        trigger["status"] = "active".into();
        trigger["create_time"] = Timestamp::now().to_string().into();
        simulator.triggers().insert(owner, trigger.clone());
        Ok(trigger)
    });
    created.map_or_else(refused, |trigger| json_response(&trigger))
}

async fn read_trigger(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let found =
        owner(&parts, simulator.options()).and_then(|owner| simulator.triggers().read(owner, &id));
    found.map_or_else(refused, |trigger| json_response(&trigger))
}

/// Runs a trigger now: starts its interaction in the background.
async fn execute_trigger(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let arrived = Instant::now();
    let (parts, _) = request.into_parts();
    let found =
        owner(&parts, simulator.options()).and_then(|owner| simulator.triggers().read(owner, &id));
    let mut body = match found {
        Ok(trigger) => trigger["interaction"].clone(),
        Err(refusal) => return refused(refusal),
    };
    body["background"] = true.into();
    let body = body.to_string().into();
    let started = create_interaction(&simulator, &parts, body, arrived).await;
    if started.status() != StatusCode::OK {
        return started;
    }
    let (head, body) = started.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let interaction: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut response = json_response(&json!({
        "id": format!("simulated-{}", simulator.next_number()),
        "trigger_id": id,
        "interaction_id": interaction["id"],
        "status": "in_progress",
        "start_time": Timestamp::now().to_string(),
    }));
    response.headers_mut().extend(head.headers);
    response
}
