//! What messages of a session say: the model that the first one asks for, and what Gemini's cost.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::usage::count;
use super::super::{RepeatedModel, Usage, named_model};

/// Whose protocol a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveApi {
    /// That of the Live API: `BidiGenerateContent` and its like.
    Bidi,
    /// That of live interactions.
    Interactions,
}

/// A first message with which no session can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetup {
    /// It is no JSON, or has no `setup`.
    #[error("the first message must be {{\"setup\": {{…}}}}")]
    NoSetup,
    /// It is no JSON, or is no event of live interactions.
    #[error("the first message must be the event interaction.create or interaction.connect")]
    NoEvent,
    /// It names its model twice.
    #[error(transparent)]
    RepeatedModel(#[from] RepeatedModel),
}

#[derive(Deserialize)]
struct Setup<'a> {
    #[serde(borrow)]
    setup: &'a RawValue,
}

/// An event of live interactions, or a list of events.
#[derive(Deserialize)]
struct Events<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct EventType {
    event_type: String,
}

impl LiveApi {
    /// The model that the first message of a client asks for, if it names one.
    ///
    /// # Errors
    /// [`InvalidSetup`] where the message cannot open a session.
    pub fn model(self, message: &[u8]) -> Result<Option<String>, InvalidSetup> {
        match self {
            Self::Bidi => {
                let setup: Setup<'_> =
                    serde_json::from_slice(message).map_err(|_| InvalidSetup::NoSetup)?;
                Ok(named_model(setup.setup.get().as_bytes())?)
            }
            Self::Interactions => {
                let first = events(message).and_then(|events| events.first().copied());
                let first = first.ok_or(InvalidSetup::NoEvent)?;
                let EventType { event_type } =
                    serde_json::from_slice(first).map_err(|_| InvalidSetup::NoEvent)?;
                match &*event_type {
                    "interaction.create" | "interaction.connect" => Ok(named_model(first)?),
                    _ => Err(InvalidSetup::NoEvent),
                }
            }
        }
    }
}

/// The events in a message, each as it is written.
fn events(message: &[u8]) -> Option<Vec<&[u8]>> {
    match serde_json::from_slice::<Events<'_>>(message) {
        Ok(Events { events }) => {
            Some(events.into_iter().map(|event| event.get().as_bytes()).collect())
        }
        Err(_) => serde_json::from_slice::<&RawValue>(message).ok().map(|_| vec![message]),
    }
}

/// Adds up what a session costs, from Gemini's messages.
#[derive(Clone, Copy, Debug)]
pub struct LiveUsage {
    api: LiveApi,
    /// What is over and settled, or was told message by message.
    total: Usage,
    /// What was told last of the interaction under way, which counts from its beginning.
    current: Usage,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BidiMessage<'a> {
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
}

/// The places in an event that have what the interaction cost so far. Source: Google's Python SDK
/// 3.6.1.
#[derive(Deserialize)]
struct InteractionEvent<'a> {
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    interaction: Option<Interaction<'a>>,
    #[serde(borrow)]
    metadata: Option<Metadata<'a>>,
}

#[derive(Deserialize)]
struct Interaction<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    total_usage: Option<&'a RawValue>,
}

/// The tokens of an interaction.
#[derive(Deserialize)]
struct InteractionUsage<'a> {
    #[serde(borrow)]
    total_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_thought_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_cached_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_tokens: Option<&'a RawValue>,
}

impl LiveUsage {
    /// Of a session that has cost nothing yet.
    pub fn new(api: LiveApi) -> Self {
        Self { api, total: Usage::default(), current: Usage::default() }
    }

    /// What the session has cost so far.
    pub fn total(&self) -> Usage {
        self.total + self.current
    }

    /// Reads a message of Gemini's.
    pub fn read(&mut self, message: &[u8]) {
        match self.api {
            // Each message tells what it cost itself.
            LiveApi::Bidi => self.total += bidi_usage(message).unwrap_or_default(),
            LiveApi::Interactions => {
                for usage in events(message).into_iter().flatten().filter_map(interaction_usage) {
                    // Less than before is said of another interaction.
                    if usage.total_tokens < self.current.total_tokens {
                        self.total += self.current;
                    }
                    self.current = usage;
                }
            }
        }
    }
}

fn bidi_usage(message: &[u8]) -> Option<Usage> {
    let message: BidiMessage<'_> = serde_json::from_slice(message).ok()?;
    Usage::of_gemini(message.usage_metadata?.get().as_bytes())
}

fn interaction_usage(event: &[u8]) -> Option<Usage> {
    let event: InteractionEvent<'_> = serde_json::from_slice(event).ok()?;
    // That of a step is its own.
    let is_step = event.event_type.is_some_and(|name| name.get().starts_with("\"step."));
    let of_event = event.usage.filter(|_| !is_step);
    let of_interaction = event.interaction.and_then(|interaction| interaction.usage);
    let of_metadata = event.metadata.and_then(|metadata| metadata.total_usage);
    let usage = of_interaction.or(of_event).or(of_metadata)?.get();
    let counts: InteractionUsage<'_> = serde_json::from_str(usage).ok()?;
    let counts = [
        counts.total_input_tokens,
        counts.total_output_tokens,
        counts.total_thought_tokens,
        counts.total_tokens,
        counts.total_cached_tokens,
    ];
    Usage::of_counts(counts.map(count))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_message_names_the_model() {
        let model = |api: LiveApi, message: &str| api.model(message.as_bytes());
        let named = |name: &str| Ok(Some(name.to_owned()));
        let (bidi, interactions) = (LiveApi::Bidi, LiveApi::Interactions);
        let setup = r#"{"setup":{"generationConfig":{"model":"no"},"model":"models/m"}}"#;
        assert_eq!(model(bidi, setup), named("models/m"));
        assert_eq!(model(bidi, r#"{"setup":{}}"#), Ok(None));
        for other in [r#"{"clientContent":{}}"#, r#"{"setup":{},"setup":{}}"#, "[]", "x"] {
            assert_eq!(model(bidi, other), Err(InvalidSetup::NoSetup), "{other}");
        }
        let repeated = model(bidi, r#"{"setup":{"model":"a","model":"b"}}"#);
        assert_eq!(repeated, Err(InvalidSetup::RepeatedModel(RepeatedModel)));

        let create = r#"{"event_type":"interaction.create","model":"m"}"#;
        assert_eq!(model(interactions, create), named("m"));
        assert_eq!(model(interactions, &format!(r#"{{"events":[{create}]}}"#)), named("m"));
        let connect = r#"{"event_type":"interaction.connect","id":"v1_x"}"#;
        assert_eq!(model(interactions, connect), Ok(None));
        for other in [r#"{"event_type":"input"}"#, r#"{"events":[]}"#, "{}", "x"] {
            assert_eq!(model(interactions, other), Err(InvalidSetup::NoEvent), "{other}");
        }
    }

    #[test]
    fn the_usage_of_each_message_counts() {
        let mut usage = LiveUsage::new(LiveApi::Bidi);
        for message in [
            json!({"setupComplete": {}}),
            json!({"serverContent": {}, "usageMetadata": {"promptTokenCount": 50, "responseTokenCount": 40, "totalTokenCount": 90}}),
            json!({"serverContent": {"modelTurn": {"usageMetadata": {"promptTokenCount": 7}}}}),
            json!({"usageMetadata": {"promptTokenCount": 25, "candidatesTokenCount": 20, "totalTokenCount": 45}}),
        ] {
            usage.read(message.to_string().as_bytes());
        }
        usage.read(b"not JSON");
        let total = usage.total();
        assert_eq!((total.prompt_tokens, total.output_tokens, total.total_tokens), (75, 60, 135));
    }

    #[test]
    fn the_last_usage_of_an_interaction_counts() {
        let usage_of = |tokens: u64| {
            json!({"total_input_tokens": tokens, "total_output_tokens": 2 * tokens,
                "total_thought_tokens": 1, "total_tokens": 3 * tokens + 1})
        };
        let mut usage = LiveUsage::new(LiveApi::Interactions);
        for event in [
            json!({"event_type": "interaction.created", "interaction": {"id": "v1_a"}}),
            json!({"event_type": "interaction.status_update", "usage": usage_of(10)}),
            json!({"event_type": "step.stop", "usage": usage_of(90)}),
            json!({"events": [{"event_type": "step.delta", "metadata": {"total_usage": usage_of(15)}}]}),
            json!({"event_type": "interaction.completed", "interaction": {"usage": usage_of(20)}}),
            json!({"event_type": "interaction.status_update", "usage": usage_of(5)}),
        ] {
            usage.read(event.to_string().as_bytes());
        }
        let total = usage.total();
        assert_eq!((total.prompt_tokens, total.output_tokens, total.thinking_tokens), (25, 50, 2));
    }
}
