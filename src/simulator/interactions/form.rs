//! The object that an interaction ends as.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::events::events;
use crate::simulator::response::{Candidate, Content, PromptOutcome, SimulatedResponse};
use crate::simulator::script::Script;

/// The largest input that is kept for `include_input`, in bytes.
const KEPT_INPUT: usize = 64 << 10;

/// About how many bytes an object takes beside its text.
const OBJECT_SIZE: usize = 2 << 10;

/// The properties of an interaction that its request sets.
pub(in crate::simulator) struct InteractionForm {
    pub id: String,
    /// Hash of the key that it belongs to.
    pub owner: u64,
    pub is_agent: bool,
    pub stream: bool,
    pub background: bool,
    pub store: bool,
    pub previous: Option<String>,
    pub input: Option<Value>,
    /// The prompt with its markers, for continuing the answer.
    pub prompt: String,
}

/// An interaction as it ends.
pub(in crate::simulator) struct FinishedInteraction {
    pub id: String,
    pub owner: u64,
    pub object: Value,
    pub input: Option<Value>,
    /// Kept where the answer can be continued.
    pub prompt: String,
    /// Tokens of the interactions before it.
    pub earlier_tokens: u64,
    /// Tokens of all interactions up to this one.
    pub total_tokens: u64,
    /// About how many bytes it takes.
    pub size: usize,
    /// In how many chunks its text is streamed.
    pub chunks: usize,
    pub background: bool,
    pub store: bool,
    /// How long it is `queued`; a tenth of the run when absent.
    pub queued: Option<Duration>,
    /// The status that reading it is refused with.
    pub poll_status: Option<StatusCode>,
}

impl InteractionForm {
    /// The interaction as it ends with this response.
    pub fn finish(
        &self,
        response: &SimulatedResponse<'_>,
        script: &Script<'_>,
        chunks: usize,
        earlier_tokens: u64,
    ) -> FinishedInteraction {
        let (mut status, mut steps, error) = outcome(response);
        if let Some(scripted) = script.ends_as {
            status = scripted.to_owned();
        }
        if status == "requires_action" {
            steps.push(json!({
                "id": "simulated-call",
                "type": "function_call",
                "name": "simulated_function",
                "arguments": {"argument": "value"},
            }));
        }
        let now = seconds(Timestamp::now());
        let mut object = json!({
            "id": self.id,
            "status": status,
            "usage": usage(response),
            "created": now,
            "updated": now,
            "service_tier": response.tier.name(),
            "steps": steps,
            "object": "interaction",
        });
        object[if self.is_agent { "agent" } else { "model" }] = response.model.into();
        if let Some(previous) = &self.previous {
            object["previous_interaction_id"] = previous.as_str().into();
        }
        if let Some(error) = error {
            object["errors"] = json!([error]);
        }
        if let PromptOutcome::Candidate(Candidate { continuation_token: Some(token), .. }) =
            &response.outcome
        {
            object["continuation_token"] = token.as_str().into();
        }
        if script.no_usage {
            object.as_object_mut().map(|object| object.shift_remove("usage"));
        }
        let text = match &response.outcome {
            PromptOutcome::Candidate(candidate) => candidate.text.len(),
            PromptOutcome::Blocked(_) => 0,
        };
        let can_continue = object.get("continuation_token").is_some();
        let input = self.input.clone().filter(|input| input.to_string().len() <= KEPT_INPUT);
        FinishedInteraction {
            id: self.id.clone(),
            owner: self.owner,
            object,
            input,
            size: OBJECT_SIZE + text + self.prompt.len(),
            prompt: if can_continue { self.prompt.clone() } else { String::new() },
            earlier_tokens,
            total_tokens: earlier_tokens + response.prompt_tokens + response.output_tokens(),
            chunks,
            background: self.background,
            store: self.store,
            queued: script.queued,
            poll_status: script.poll_status,
        }
    }
}

impl FinishedInteraction {
    /// The response in one body, or as the events of a stream.
    pub fn encode(&self, stream: bool) -> Vec<Bytes> {
        if !stream {
            return vec![self.object.to_string().into()];
        }
        events(&self.object, self.chunks).iter().map(|event| event.frame(None)).collect()
    }
}

/// The status, the steps and the error of an interaction.
fn outcome(response: &SimulatedResponse<'_>) -> (String, Vec<Value>, Option<Value>) {
    let failed = |reason: &str| {
        let error = json!({
            "code": reason.to_ascii_lowercase(),
            "message": format!("The response was withheld: {reason}."),
        });
        ("failed".to_owned(), Vec::new(), Some(error))
    };
    let candidate = match &response.outcome {
        PromptOutcome::Blocked(reason) => return failed(reason),
        PromptOutcome::Candidate(candidate) => candidate,
    };
    let status = match candidate.finish_reason {
        Some("STOP") => "completed",
        Some("CONTINUATION") => "requires_continuation",
        Some("MAX_TOKENS") | None => "incomplete",
        Some(_) if matches!(candidate.content, Content::Parts { .. }) => "completed",
        Some(reason) => return failed(reason),
    };
    let mut steps = Vec::new();
    if response.thoughts().is_some() {
        steps.push(json!({"signature": "c2ltdWxhdGVk", "type": "thought"}));
    }
    if matches!(candidate.content, Content::Parts { .. }) {
        let content = json!([{"text": candidate.text, "type": "text"}]);
        steps.push(json!({"content": content, "type": "model_output"}));
    }
    (status.to_owned(), steps, None)
}

/// The usage in the names of the Interactions API. Thoughts are not part of the output.
pub(in crate::simulator) fn usage(response: &SimulatedResponse<'_>) -> Value {
    let (input, output) = (response.prompt_tokens, response.output_tokens());
    let thoughts = response.billed_output_tokens() - output;
    json!({
        "total_tokens": input + output + thoughts,
        "total_input_tokens": input,
        "input_tokens_by_modality": [{"modality": "text", "tokens": input}],
        "total_cached_tokens": 0,
        "total_output_tokens": output,
        "total_tool_use_tokens": 0,
        "total_thought_tokens": thoughts,
    })
}

/// A time to whole seconds, as the API writes it.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
