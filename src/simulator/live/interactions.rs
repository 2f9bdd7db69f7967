//! The live form of the Interactions API, in text.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::session::{GO_AWAY, Session};
use super::socket::{End, Socket, upgrade};
use crate::simulator::interactions::usage;
use crate::simulator::refusal::ErrorResponse;
use crate::simulator::request::GenerateContentRequest;
use crate::simulator::response::{Candidate, PromptOutcome, SimulatedResponse, pieces};
use crate::simulator::state::Simulator;

/// Opens a session.
pub(super) async fn open(State(simulator): State<Simulator>, request: Request) -> Response {
    upgrade(simulator, request, serve)
}

/// An interaction under way.
struct LiveInteraction {
    session: Session,
    id: String,
    model: String,
    /// What all turns used.
    usage: Value,
    steps: usize,
}

async fn serve(simulator: Simulator, mut socket: Socket, key: String) {
    let interaction = match create(simulator, &mut socket, key).await {
        Ok(interaction) => interaction,
        Err(End::Closed) => return,
        Err(End::Refused(refusal)) => return socket.refuse(&refusal).await,
    };
    let mut interaction = interaction;
    match interaction.converse(&mut socket).await {
        End::Closed => interaction.session.end(),
        End::Refused(refusal) => {
            interaction.session.refused(&refusal);
            socket.refuse(&refusal).await;
        }
    }
}

/// Reads the first event and answers it.
async fn create(
    simulator: Simulator,
    socket: &mut Socket,
    key: String,
) -> Result<LiveInteraction, End> {
    let frame = socket.receive().await?;
    let event = events(&frame).first().cloned().unwrap_or_default();
    let model = match event["event_type"].as_str() {
        Some("interaction.create") => event["model"].as_str(),
        Some("interaction.connect") => {
            return Err(ErrorResponse::not_found("The interaction").into());
        }
        _ => None,
    };
    let Some(model) = model else {
        return Err(
            ErrorResponse::invalid_argument("The first event must be interaction.create.").into()
        );
    };
    let model = model.to_owned();
    let id = format!("v1_simulated{}", simulator.next_number());
    let session = Session::open(simulator, key, &model)?;
    let created =
        json!({"id": id, "status": "in_progress", "object": "interaction", "model": model});
    let created = json!({"event_type": "interaction.created", "interaction": created});
    socket.send(&created).await?;
    Ok(LiveInteraction { session, id, model, usage: Value::Null, steps: 0 })
}

/// The events of a frame, which holds one or a list.
fn events(frame: &Value) -> Vec<Value> {
    match frame.get("events").and_then(Value::as_array) {
        Some(events) => events.clone(),
        None => vec![frame.clone()],
    }
}

impl LiveInteraction {
    /// Handles event after event, and says why the session ends.
    async fn converse(&mut self, socket: &mut Socket) -> End {
        loop {
            let frame = match socket.receive().await {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            for event in events(&frame) {
                match self.handle(socket, &event).await {
                    Ok(true) => {}
                    Ok(false) => {
                        socket.close().await;
                        return End::Closed;
                    }
                    Err(end) => return end,
                }
            }
        }
    }

    /// Handles one event. Returns whether the session continues.
    async fn handle(&mut self, socket: &mut Socket, event: &Value) -> Result<bool, End> {
        match event["event_type"].as_str() {
            Some("input") => return self.answer(socket, &event["content"]).await,
            Some("interaction.complete") => self.end(socket, "completed").await?,
            Some("interaction.cancel") => self.end(socket, "cancelled").await?,
            Some("interaction.disconnect") => {}
            _ => {
                return Err(
                    ErrorResponse::invalid_argument("The event is not one of a client.").into()
                );
            }
        }
        Ok(false)
    }

    async fn answer(&mut self, socket: &mut Socket, content: &Value) -> Result<bool, End> {
        let texts = content.as_array().into_iter().flatten();
        let parts: Vec<Value> = texts.map(|item| json!({"text": item["text"]})).collect();
        let body = json!({"contents": [{"role": "user", "parts": parts}]}).to_string();
        let request = GenerateContentRequest::parse(body.as_bytes())?;
        let step = self.steps;
        let encode = |response: &SimulatedResponse<'_>, chunks| {
            (step_events(response, step, chunks), usage(response))
        };
        let ((events, usage), after) =
            socket.unless_closed(self.session.turn(&request, encode)).await?;
        if after.closes {
            return Err(End::Closed);
        }
        self.steps += 1;
        add(&mut self.usage, &usage);
        for event in events {
            socket.send(&event).await?;
        }
        let update = json!({
            "event_type": "interaction.status_update",
            "interaction_id": self.id,
            "status": "in_progress",
            "usage": self.usage,
        });
        socket.send(&update).await?;
        if after.goes_away {
            sleep(GO_AWAY).await;
            socket.send(&json!({"event_type": "reconnection_required"})).await?;
        }
        Ok(!after.goes_away)
    }

    async fn end(&self, socket: &mut Socket, status: &str) -> Result<(), End> {
        let interaction = json!({
            "id": self.id,
            "status": status,
            "usage": self.usage,
            "object": "interaction",
            "model": self.model,
        });
        let name = format!("interaction.{status}");
        Ok(socket.send(&json!({"event_type": name, "interaction": interaction})).await?)
    }
}

/// The events of a step of the model.
fn step_events(response: &SimulatedResponse<'_>, index: usize, chunks: usize) -> Vec<Value> {
    let text = match &response.outcome {
        PromptOutcome::Candidate(Candidate { text, .. }) => &**text,
        PromptOutcome::Blocked(_) => "",
    };
    let step = json!({"type": "model_output"});
    let mut events = vec![json!({"event_type": "step.start", "index": index, "step": step})];
    events.extend(pieces(text, chunks).iter().map(|text| {
        let delta = json!({"text": text, "type": "text"});
        json!({"event_type": "step.delta", "index": index, "delta": delta})
    }));
    events.push(json!({"event_type": "step.stop", "index": index}));
    events
}

/// Adds the totals of a usage: those of an interaction are cumulative.
fn add(total: &mut Value, usage: &Value) {
    let Some(counts) = usage.as_object() else { return };
    for (name, count) in counts {
        if let Some(count) = count.as_u64() {
            total[name] = (total[name].as_u64().unwrap_or_default() + count).into();
        }
    }
}
