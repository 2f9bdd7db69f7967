//! The events of a streamed interaction.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::simulator::response::pieces;

/// A server-sent event with a name.
pub(super) struct InteractionEvent {
    name: &'static str,
    data: Value,
}

impl InteractionEvent {
    fn new(name: &'static str, mut data: Value) -> Self {
        data["event_type"] = name.into();
        Self { name, data }
    }

    /// The event as it is sent. Background interactions number their events.
    pub fn frame(&self, number: Option<usize>) -> Bytes {
        let data = match number {
            None => self.data.to_string(),
            Some(number) => {
                let mut data = self.data.clone();
                data["event_id"] = event_id(number).into();
                data.to_string()
            }
        };
        format!("event: {}\ndata: {data}\n\n", self.name).into()
    }
}

/// The identifier of an event.
pub(super) fn event_id(number: usize) -> String {
    format!("evt_{number}")
}

/// The events of an interaction, whose text is sent in at most so many chunks. The order is that of
/// recorded streams.
pub(super) fn events(object: &Value, chunks: usize) -> Vec<InteractionEvent> {
    let mut started = object.clone();
    if let Some(started) = started.as_object_mut() {
        let kept = ["id", "status", "object", "model", "agent"];
        started.retain(|name, _| kept.contains(&name.as_str()));
        started["status"] = "in_progress".into();
    }
    let update = json!({"interaction_id": object["id"], "status": "in_progress"});
    let mut events = vec![
        InteractionEvent::new("interaction.created", json!({"interaction": started})),
        InteractionEvent::new("interaction.status_update", update),
    ];
    for (index, step) in object["steps"].as_array().into_iter().flatten().enumerate() {
        let (step, deltas) = deltas(step, chunks);
        events.push(InteractionEvent::new("step.start", json!({"index": index, "step": step})));
        let delta = |delta: Value| {
            InteractionEvent::new("step.delta", json!({"index": index, "delta": delta}))
        };
        events.extend(deltas.into_iter().map(delta));
        events.push(InteractionEvent::new("step.stop", json!({"index": index})));
    }
    events.push(completed(object));
    events
}

/// The last event: the interaction without its steps.
pub(super) fn completed(object: &Value) -> InteractionEvent {
    let mut ended = object.clone();
    if let Some(ended) = ended.as_object_mut() {
        ended.shift_remove("steps");
    }
    InteractionEvent::new("interaction.completed", json!({"interaction": ended}))
}

/// A step as it starts, and its deltas.
fn deltas(step: &Value, chunks: usize) -> (Value, Vec<Value>) {
    let kind = &step["type"];
    match kind.as_str() {
        Some("model_output") => {
            let text = step["content"][0]["text"].as_str().unwrap_or_default();
            let delta = |text: &&str| json!({"text": text, "type": "text"});
            (json!({"type": kind}), pieces(text, chunks).iter().map(delta).collect())
        }
        Some("function_call") => {
            let arguments = step["arguments"].to_string();
            let start = json!({"type": kind, "id": step["id"], "name": step["name"]});
            (start, vec![json!({"arguments": arguments, "type": "arguments_delta"})])
        }
        _ => {
            let signature = json!({"signature": step["signature"], "type": "thought_signature"});
            (json!({"type": kind}), vec![signature])
        }
    }
}
