//! Batches of requests to a model.
//!
//! Source: Gemini API docs, batch API and rate limits; recorded operations.

pub(super) mod store;

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use store::{Batch, Batches, Kind};

use super::compose::{candidate, check_schemas, scripted_refusal};
use super::embeddings::embed_content;
use super::json::{json_response, parse, received};
use super::refusal::ErrorResponse;
use super::request::GenerateContentRequest;
use super::response::{PromptOutcome, SimulatedResponse};
use super::script::{Ending, Script};
use super::state::{Charge, Simulator};
use super::stats::{CallOutcome, JournalEntry, RunningCall, hash};
use super::target::{Target, api_key, check_key};
use super::tier::ServiceTier;

/// The largest inline batch, in bytes. Source: Gemini API docs, batch API.
const MAX_INLINE: usize = 20 << 20;

/// Bytes per token of a file, whose content is not kept.
const BYTES_PER_TOKEN: u64 = 4;

/// The routes of existing batches. They are created by a method of a model.
pub(super) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        router.route(&format!("/{version}/batches"), get(list)).route(
            &format!("/{version}/batches/{{id}}"),
            get(read).delete(delete).merge(post(cancel)),
        )
    })
}

/// Creates a batch: `batchGenerateContent` or `asyncBatchEmbedContent`.
pub(super) async fn create(
    simulator: &Simulator,
    parts: &Parts,
    body: axum::body::Body,
    target: Target<'_>,
    kind: Kind,
) -> Response {
    let key = api_key(&parts.headers, &parts.uri);
    let mut in_flight = RunningCall::arrive(simulator.collector(), target.model, key);
    let created = match received(body).await {
        Ok(body) => {
            if simulator.options().journal {
                let entry = JournalEntry::without_body(key.unwrap_or_default(), target.model);
                let body = serde_json::from_slice(&body).unwrap_or_default();
                in_flight.record(JournalEntry { body, ..entry });
            }
            enqueue(simulator, key, target, kind, &body)
        }
        Err(refusal) => Err(refusal),
    };
    match created {
        Ok(operation) => {
            in_flight.end(&CallOutcome::Answered);
            json_response(&operation)
        }
        Err(refusal) => {
            in_flight.end(&CallOutcome::Refused(&refusal));
            refusal.into_response()
        }
    }
}

fn enqueue(
    simulator: &Simulator,
    key: Option<&str>,
    target: Target<'_>,
    kind: Kind,
    body: &[u8],
) -> Result<Value, ErrorResponse> {
    let options = simulator.options();
    let key = check_key(key, options)?;
    let model = target.check_model(options, simulator.today())?;
    if simulator.is_unfunded() {
        return Err(ErrorResponse::with_status(StatusCode::PAYMENT_REQUIRED));
    }
    if body.len() > MAX_INLINE {
        return Err(ErrorResponse::invalid_argument("Inline batches must be under 20 MB."));
    }
    let body: Value = parse(body)?;
    let contents = Contents::read(simulator, key, model, kind, &body["batch"])?;
    let id = format!("simulated-{}", simulator.next_number());
    let latency = contents.latency.unwrap_or(Duration::from_millis(options.batch_ms));
    let now = Instant::now();
    let batch = Batch {
        owner: hash(key),
        name: format!("batches/{id}"),
        display_name: either(&body["batch"], "displayName", "display_name").clone(),
        kind,
        model: target.model.to_owned(),
        tokens: contents.tokens,
        created: Timestamp::now(),
        running_at: now + latency / 10,
        done_at: now + latency,
        output: contents.output(&id),
        end: contents.end,
        requests: contents.requests,
        failed: contents.failed,
        cancelled: false,
    };
    let operation = simulator.batches().enqueue(batch, options.enqueued_tokens, now)?;
    simulator.collector().set_enqueued_tokens(simulator.batches().active_tokens(now));
    // A batch costs half the standard price, as flex does.
    let (tier, input_tokens) = (ServiceTier::Flex, contents.tokens);
    let output_tokens = contents.output_tokens;
    simulator.charge(&Charge { key, model, tier, input_tokens, output_tokens }, now);
    Ok(operation)
}

/// The requests of a batch and their answers.
struct Contents {
    kind: Kind,
    tokens: u64,
    output_tokens: u64,
    requests: usize,
    failed: usize,
    /// In the order of the requests; `None` for a batch that is read from a file.
    answers: Option<Vec<Value>>,
    /// From the markers of the first request.
    latency: Option<Duration>,
    /// The state that it ends in.
    end: String,
}

impl Contents {
    fn read(
        simulator: &Simulator,
        key: &str,
        model: &str,
        kind: Kind,
        batch: &Value,
    ) -> Result<Self, ErrorResponse> {
        let config = either(batch, "inputConfig", "input_config");
        let mut contents = Self {
            kind,
            tokens: 0,
            output_tokens: 0,
            requests: 0,
            failed: 0,
            answers: None,
            latency: None,
            end: "SUCCEEDED".to_owned(),
        };
        if let Some(name) = either(config, "fileName", "file_name").as_str() {
            let file = simulator.files().get(hash(key), name);
            let file = file.ok_or_else(|| ErrorResponse::no_such_file(name))?;
            let size = file["sizeBytes"].as_str().and_then(|size| size.parse::<u64>().ok());
            contents.tokens = size.unwrap_or_default().div_ceil(BYTES_PER_TOKEN);
            contents.requests = 1;
            return Ok(contents);
        }
        let requests = config["requests"]["requests"].as_array().filter(|list| !list.is_empty());
        let Some(requests) = requests else {
            return Err(ErrorResponse::rules(&[
                "BatchGenerateContentRequest.batch.input_config: requests must not be empty"
                    .to_owned(),
            ]));
        };
        contents.answers = Some(Vec::with_capacity(requests.len()));
        for item in requests {
            contents.add(simulator, model, item)?;
        }
        Ok(contents)
    }

    fn add(
        &mut self,
        simulator: &Simulator,
        model: &str,
        item: &Value,
    ) -> Result<(), ErrorResponse> {
        let request = item["request"].to_string();
        let mut answer = match self.kind {
            Kind::Generate => self.generate(simulator, model, request.as_bytes())?,
            Kind::Embed => {
                let (embeddings, request) = embed_content(request.as_bytes());
                let request = request?;
                self.tokens += request.input_tokens();
                let body = embeddings.encode(&request, model);
                json!({"response": serde_json::from_slice::<Value>(&body).unwrap_or_default()})
            }
        };
        if let Some(metadata) = item.get("metadata") {
            answer["metadata"] = metadata.clone();
        }
        self.requests += 1;
        self.answers.get_or_insert_default().push(answer);
        Ok(())
    }

    /// Answers one request: `response` or `error`.
    fn generate(
        &mut self,
        simulator: &Simulator,
        model: &str,
        request: &[u8],
    ) -> Result<Value, ErrorResponse> {
        let options = simulator.options();
        let request = GenerateContentRequest::parse(request)?;
        let schema = check_schemas(&request)?;
        let prompt = request.prompt();
        let (prompt, script) = Script::parse(&prompt)
            .map_err(|error| ErrorResponse::invalid_argument(format!("[[simulate:…]]: {error}")))?;
        self.tokens += request.input_tokens();
        if self.requests == 0 {
            self.latency = script.latency;
            self.end = script.ends_as.map_or_else(|| self.end.clone(), str::to_ascii_uppercase);
        }
        let outcome = match &script.ending {
            None => candidate(options, &request, schema.as_ref(), &prompt, &script)?,
            Some(Ending::Blocked(reason)) => PromptOutcome::Blocked(reason),
            ending => {
                self.failed += 1;
                let refusal = scripted_refusal(ending.as_ref(), model, options.free_tier);
                return Ok(serde_json::from_slice(refusal.body()).unwrap_or_default());
            }
        };
        let response = SimulatedResponse {
            model,
            response_id: simulator.next_response_id(),
            prompt_tokens: request.input_tokens(),
            tier: ServiceTier::Standard,
            outcome,
        };
        self.output_tokens += response.billed_output_tokens();
        let body = serde_json::from_slice::<Value>(&response.whole()).unwrap_or_default();
        Ok(json!({"response": body}))
    }

    fn output(&self, id: &str) -> Value {
        match (&self.answers, self.kind) {
            (None, _) => json!({"responsesFile": format!("files/batch-{id}")}),
            (Some(answers), Kind::Generate) => {
                json!({"inlinedResponses": {"inlinedResponses": answers}})
            }
            (Some(answers), Kind::Embed) => {
                json!({"inlinedEmbedContentResponses": {"inlinedResponses": answers}})
            }
        }
    }
}

/// A field in camelCase or snake_case.
fn either<'v>(value: &'v Value, camel: &str, snake: &str) -> &'v Value {
    if value[camel].is_null() { &value[snake] } else { &value[camel] }
}

async fn list(State(simulator): State<Simulator>, request: Request) -> Response {
    respond(&simulator, request, |batches, owner, now| Ok(batches.list(owner, now)))
}

async fn read(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    respond(&simulator, request, |batches, owner, now| batches.read(owner, &id, now))
}

async fn delete(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    respond(&simulator, request, |batches, owner, _| batches.delete(owner, &id))
}

async fn cancel(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    respond(&simulator, request, |batches, owner, now| match id.strip_suffix(":cancel") {
        Some(id) => batches.cancel(owner, id, now),
        None => Err(ErrorResponse::with_status(StatusCode::NOT_FOUND)),
    })
}

fn respond(
    simulator: &Simulator,
    request: Request,
    act: impl FnOnce(&Batches, u64, Instant) -> Result<Value, ErrorResponse>,
) -> Response {
    let (parts, _) = request.into_parts();
    let owner = check_key(api_key(&parts.headers, &parts.uri), simulator.options()).map(hash);
    let done = owner.and_then(|owner| act(simulator.batches(), owner, Instant::now()));
    done.map_or_else(IntoResponse::into_response, |body| json_response(&body))
}
