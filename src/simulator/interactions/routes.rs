//! The endpoints of the Interactions API.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::events::{completed, events};
use super::form::InteractionForm;
use super::request::InteractionRequest;
use super::store::{Previous, Replay, with_status};
use crate::simulator::call::SimulatedCall;
use crate::simulator::form::{Form, SimulatedRequest};
use crate::simulator::json::{json_response, parse, received};
use crate::simulator::plan::{Plan, Reply};
use crate::simulator::refusal::{Envelope, ErrorResponse};
use crate::simulator::request::GenerateContentRequest;
use crate::simulator::state::Simulator;
use crate::simulator::stats::{CallOutcome, JournalEntry, RunningCall, hash};
use crate::simulator::target::{Target, api_key, check_key, owner, query_value, version};
use crate::simulator::transmission::{DONE, Framing, add_tier, deliver, with_content_type};

/// The routes of the Interactions API.
pub(in crate::simulator) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        router
            .route(&format!("/{version}/interactions"), post(create))
            .route(&format!("/{version}/interactions/{{id}}"), get(read).delete(delete))
            .route(&format!("/{version}/interactions/{{id}}/cancel"), post(cancel))
    })
}

async fn create(State(simulator): State<Simulator>, request: Request) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    match received(body).await {
        Ok(body) => create_interaction(&simulator, &parts, body, arrived).await,
        Err(refusal) => refused(refusal),
    }
}

/// Handles a request for an interaction with its body.
pub(in crate::simulator) async fn create_interaction(
    simulator: &Simulator,
    parts: &Parts,
    body: Bytes,
    arrived: Instant,
) -> Response {
    let key = api_key(&parts.headers, &parts.uri);
    let (form, content, context_tokens, name) = match prepare(simulator, key, &body) {
        Ok(prepared) => prepared,
        Err(refusal) => return unreadable(simulator, key, refusal),
    };
    let collection = if form.is_agent { "agents" } else { "models" };
    let version = version(&parts.uri);
    let target = Target { version, collection, model: &name, method: "CreateInteraction" };
    let in_flight = RunningCall::arrive(simulator.collector(), &name, key);
    let call = SimulatedCall {
        simulator,
        target,
        headers: &parts.headers,
        key,
        body: &body,
        arrived,
        context_tokens,
    };
    if form.background {
        start(&call, form, content, in_flight).await
    } else {
        let request = SimulatedRequest { form: Form::Interaction(form), content };
        call.answer(request, in_flight).await
    }
}

/// A parsed request: the properties of the interaction, the request in Gemini's shape, the tokens of
/// the interactions before it, and the model or agent.
type Prepared<'a> =
    (InteractionForm, Result<GenerateContentRequest<'a>, ErrorResponse>, u64, String);

fn prepare<'a>(
    simulator: &Simulator,
    key: Option<&str>,
    body: &'a [u8],
) -> Result<Prepared<'a>, ErrorResponse> {
    let owner = hash(check_key(key, simulator.options())?);
    let request: InteractionRequest<'a> = parse(body)?;
    let name = request.name()?.to_owned();
    let (store, background) =
        (request.store.unwrap_or(true), request.background.unwrap_or_default());
    if background && !store {
        return Err(ErrorResponse::invalid_argument("background requires store to be true."));
    }
    let previous = request.previous_interaction_id.as_ref().map(|id| id.0.to_string());
    let continues = request.continuation_token.is_some() && request.input.is_none();
    let Previous { tokens, prompt } = match &previous {
        Some(id) => simulator.interactions().previous(owner, id, continues)?,
        None => Previous::default(),
    };
    let mut form = InteractionForm {
        id: format!("v1_simulated{}", simulator.next_number()),
        owner,
        is_agent: request.is_agent(),
        stream: request.stream.unwrap_or_default(),
        background,
        store,
        previous,
        input: request.input.clone(),
        prompt: String::new(),
    };
    let content = request.into_content(prompt);
    if let Ok(content) = &content {
        form.prompt = content.prompt().into_owned();
    }
    Ok((form, content, tokens, name))
}

/// Counts and refuses a call whose body cannot be read.
fn unreadable(simulator: &Simulator, key: Option<&str>, refusal: ErrorResponse) -> Response {
    let refusal = refusal.in_envelope(Envelope::Interactions);
    let mut in_flight = RunningCall::arrive(simulator.collector(), "", key);
    if simulator.options().journal {
        in_flight.record(JournalEntry::without_body(key.unwrap_or_default(), ""));
    }
    in_flight.end(&CallOutcome::Refused(&refusal));
    refusal.into_response()
}

/// Starts a background interaction. It stays in flight until its run ends or is cancelled; the
/// response does not wait for that.
async fn start(
    call: &SimulatedCall<'_>,
    form: InteractionForm,
    content: Result<GenerateContentRequest<'_>, ErrorResponse>,
    mut in_flight: RunningCall,
) -> Response {
    let (owner, id, stream) = (form.owner, form.id.clone(), form.stream);
    let request = SimulatedRequest { form: Form::Interaction(form), content };
    let plan = call.plan(request, &mut in_flight);
    let Plan { reply: Reply::Answered(_), tier, .. } = plan else {
        return deliver(plan, in_flight, call.arrived, Framing::Whole).await;
    };
    let interactions = call.simulator.interactions();
    let replay = match interactions.start(owner, &id, in_flight) {
        Ok(replay) => replay,
        Err(refusal) => return refused(refusal),
    };
    let run = call.simulator.collector().background_run_started();
    let (done_at, cancelled) = (replay.done_at, replay.cancelled.clone());
    let in_flight = replay.run.clone();
    tokio::spawn(async move {
        let _run = run;
        tokio::select! {
            () = sleep_until(done_at) => in_flight.end(),
            () = cancelled.cancelled() => in_flight.cancel(),
        }
    });
    let mut response = if stream {
        streamed(replay, 0)
    } else {
        interactions.snapshot(owner, &id).map_or_else(refused, |object| json_response(&object))
    };
    add_tier(&mut response, tier);
    response
}

async fn read(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let asks = |name| query_value(&parts.uri, name) == Some("true");
    let interactions = simulator.interactions();
    let answered = owner(&parts, simulator.options()).and_then(|owner| {
        if asks("stream") {
            let replay = interactions.replay(owner, &id)?;
            let after = query_value(&parts.uri, "last_event_id").map_or(Ok(0), event_number)?;
            Ok(streamed(replay, after))
        } else {
            Ok(json_response(&interactions.read(owner, &id, asks("include_input"))?))
        }
    });
    answered.unwrap_or_else(refused)
}

/// The number of the last event that the client has seen.
fn event_number(id: &str) -> Result<usize, ErrorResponse> {
    let number = id.strip_prefix("evt_").and_then(|number| number.parse().ok());
    number
        .ok_or_else(|| ErrorResponse::invalid_argument("last_event_id is not the ID of an event."))
}

async fn cancel(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    respond(
        owner(&parts, simulator.options())
            .and_then(|owner| simulator.interactions().cancel(owner, &id)),
    )
}

async fn delete(
    State(simulator): State<Simulator>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    respond(
        owner(&parts, simulator.options())
            .and_then(|owner| simulator.interactions().delete(owner, &id)),
    )
}

fn respond(result: Result<Value, ErrorResponse>) -> Response {
    result.map_or_else(refused, |body| json_response(&body))
}

/// The error in the format of the Interactions API.
pub(in crate::simulator) fn refused(refusal: ErrorResponse) -> Response {
    refusal.in_envelope(Envelope::Interactions).into_response()
}

/// Streams the numbered events of an interaction from the one after `after`, evenly over its run.
/// Past events are sent at once.
fn streamed(replay: Replay, after: usize) -> Response {
    let events = events(&replay.object, replay.chunks);
    let body = stream::unfold((replay, events, after, false), |state| async move {
        let (replay, events, sent, is_done) = state;
        if is_done {
            return None;
        }
        let Some(event) = events.get(sent) else {
            return Some((frame(Bytes::from_static(DONE)), (replay, events, sent, true)));
        };
        // The first two events say that the interaction has started.
        let number = sent + 1;
        let (position, length) =
            (number.saturating_sub(2) as u32, events.len().saturating_sub(2).max(1) as u32);
        let run = replay.done_at - replay.started_at;
        tokio::select! {
            biased;
            () = sleep_until(replay.started_at + run * position / length) => {
                if number == events.len() {
                    replay.run.end();
                }
                Some((frame(event.frame(Some(number))), (replay, events, number, false)))
            }
            () = replay.cancelled.cancelled() => {
                let end = completed(&with_status(&replay.object, "cancelled"));
                let number = events.len();
                let bytes = end.frame(Some(number));
                Some((frame(bytes), (replay, events, number, false)))
            }
        }
    });
    with_content_type(Body::from_stream(body), Framing::NamedEvents)
}

fn frame(bytes: Bytes) -> Result<Bytes, std::convert::Infallible> {
    Ok(bytes)
}
