//! The model in the first message of a session, and the tokens in Gemini's messages.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::{RepeatedModel, Usage, named_model};

/// The API of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveApi {
    /// The Live API: `BidiGenerateContent` and the other bidirectional methods.
    Bidi,
    /// Live interactions.
    Interactions,
}

/// A first message that cannot open a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetup {
    /// It is not JSON, or does not have exactly one `setup`.
    #[error("the first message must be {{\"setup\": {{…}}}}")]
    NoSetup,
    /// It is not JSON, or not an event that opens a live interaction.
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
    /// The model that the client's first message names, if it names one.
    ///
    /// # Errors
    /// [`InvalidSetup`] if the message cannot open a session.
    pub fn model(self, message: &[u8]) -> Result<Option<String>, InvalidSetup> {
        match self {
            Self::Bidi => {
                let setup: Setup<'_> =
                    serde_json::from_slice(message).map_err(|_| InvalidSetup::NoSetup)?;
                Ok(named_model(setup.setup.get().as_bytes(), None)?)
            }
            Self::Interactions => {
                let first = events(message).and_then(|events| events.first().copied());
                let first = first.ok_or(InvalidSetup::NoEvent)?;
                let EventType { event_type } =
                    serde_json::from_slice(first).map_err(|_| InvalidSetup::NoEvent)?;
                match &*event_type {
                    "interaction.create" | "interaction.connect" => Ok(named_model(first, None)?),
                    _ => Err(InvalidSetup::NoEvent),
                }
            }
        }
    }
}

/// The JSON of each event in a message.
fn events(message: &[u8]) -> Option<Vec<&[u8]>> {
    match serde_json::from_slice::<Events<'_>>(message) {
        Ok(Events { events }) => {
            Some(events.into_iter().map(|event| event.get().as_bytes()).collect())
        }
        Err(_) => serde_json::from_slice::<&RawValue>(message).ok().map(|_| vec![message]),
    }
}

/// Adds up the tokens of a session that Gemini's messages report.
#[derive(Clone, Copy, Debug)]
pub struct LiveUsage {
    api: LiveApi,
    /// Those of ended interactions, or of all messages.
    total: Usage,
    /// Those of the current interaction since its start, as last reported.
    current: Usage,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BidiMessage<'a> {
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
}

/// The places in an event with the tokens of the interaction since its start. Source: Google's Python
/// SDK 3.6.1.
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

impl LiveUsage {
    /// The tokens of a session that has just begun.
    pub fn new(api: LiveApi) -> Self {
        Self { api, total: Usage::default(), current: Usage::default() }
    }

    /// The tokens of the session so far.
    pub fn total(&self) -> Usage {
        self.total + self.current
    }

    /// Reads one of Gemini's messages.
    pub fn read(&mut self, message: &[u8]) {
        match self.api {
            // Each message reports only its own tokens.
            LiveApi::Bidi => self.total += bidi_usage(message).unwrap_or_default(),
            LiveApi::Interactions => {
                for usage in events(message).into_iter().flatten().filter_map(interaction_usage) {
                    // A lower count belongs to another interaction.
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
    // A step reports only its own tokens.
    let is_step = event.event_type.is_some_and(|name| name.get().starts_with("\"step."));
    let of_event = event.usage.filter(|_| !is_step);
    let of_interactions = event.interaction.and_then(|interaction| interaction.usage);
    let of_metadata = event.metadata.and_then(|metadata| metadata.total_usage);
    let usage = of_interactions.or(of_event).or(of_metadata)?.get();
    Usage::of_interactions(usage.as_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_model_is_read_from_the_first_message() {
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
    fn the_tokens_of_all_messages_are_added_up() {
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
    fn the_last_report_of_each_interaction_counts() {
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
