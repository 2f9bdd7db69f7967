//! The models: prices and retirement dates.
//!
//! Source: Gemini API docs, models, pricing and deprecations, as of November 2026.

use jiff::civil::{Date, date};

/// A model, its standard price and what becomes of it.
struct Model {
    id: &'static str,
    /// US dollars per million input tokens.
    input: f64,
    /// US dollars per million output and thought tokens.
    output: f64,
    end: End,
}

/// What becomes of a model.
#[derive(Clone, Copy)]
enum End {
    /// No retirement is announced.
    None,
    /// From this day calls get 404.
    Gone(Date),
    /// From this day another model answers, at its own price.
    Routed(Date, &'static str),
}

/// Aliases have always been routed.
const ALWAYS: Date = Date::ZERO;

const fn model(id: &'static str, input: f64, output: f64, end: End) -> Model {
    Model { id, input, output, end }
}

#[rustfmt::skip]
const MODELS: &[Model] = &[
    model("gemini-3.5-flash-lite", 0.3, 2.5, End::None),
    model("gemini-3.8-flash", 0.75, 3.75, End::None),
    model("gemini-embedding-2", 0.2, 0.0, End::None),
    model("gemini-2.5-pro", 1.25, 10.0, End::Routed(date(2026, 12, 1), "gemini-3.8-flash")),
    model("gemini-2.5-flash", 0.3, 2.5, End::Routed(date(2026, 12, 1), "gemini-3.5-flash-lite")),
    model("gemini-2.5-flash-lite", 0.1, 0.4, End::None),
    model("gemini-2.5-flash-image", 0.3, 2.5, End::Gone(date(2027, 3, 15))),
    model("gemini-3-flash-preview", 0.5, 3.0, End::None),
    model("gemini-3.1-flash-lite", 0.25, 1.5, End::Gone(date(2027, 5, 7))),
    model("gemini-3.1-flash-lite-preview", 0.25, 1.5, End::Gone(date(2026, 5, 25))),
    model("gemini-3.1-pro-preview", 2.0, 12.0, End::None),
    model("gemini-3.1-pro-preview-customtools", 2.0, 12.0, End::None),
    model("gemini-3.5-flash", 1.5, 9.0, End::Routed(date(2026, 10, 8), "gemini-3.6-flash")),
    model("gemini-3.6-flash", 0.75, 3.75, End::None),
    model("gemini-3.7-flash", 0.75, 3.75, End::Routed(date(2026, 10, 8), "gemini-3.8-flash")),
    model("gemini-4-argon", 2.0, 10.0, End::None),
    model("gemini-4-hydrogen", 1.5, 7.5, End::None),
    model("gemini-flash-latest", 0.75, 3.75, End::Routed(ALWAYS, "gemini-3.8-flash")),
    model("gemini-flash-lite-latest", 0.3, 2.5, End::Routed(ALWAYS, "gemini-3.5-flash-lite")),
    model("gemini-pro-latest", 2.0, 12.0, End::Routed(ALWAYS, "gemini-3.1-pro-preview")),
    model("gemini-3-pro-image", 2.0, 12.0, End::None),
    model("gemini-3.1-flash-image", 0.5, 3.0, End::None),
    model("gemini-3.1-flash-lite-image", 0.25, 1.5, End::None),
    model("gemini-nano-banana-2.1", 1.5, 7.5, End::None),
    model("gemini-embedding-001", 0.15, 0.0, End::Gone(date(2028, 5, 14))),
    model("gemini-embedding-2-preview", 0.2, 0.0, End::Gone(date(2026, 11, 6))),
    model("gemini-3.8-flash-tts", 0.5, 9.0, End::None),
    model("gemini-3.8-flash-lite-tts", 0.5, 6.0, End::None),
    model("gemini-2.5-flash-preview-tts", 0.5, 10.0, End::Gone(date(2026, 11, 17))),
    model("gemini-3.8-live", 0.75, 4.5, End::None),
    model("gemini-omni-1.1-flash", 1.5, 9.0, End::Gone(date(2026, 12, 3))),
    model("deep-research-preview-04-2026", 2.0, 12.0, End::None),
];

/// The models that exist on a day.
pub(super) fn existing(today: Date) -> impl Iterator<Item = &'static str> {
    let exists = move |model: &&Model| !matches!(model.end, End::Gone(day) if day <= today);
    MODELS.iter().filter(exists).map(|model| model.id)
}

/// The model that answers calls of a model on a day; `None` when it is gone. Unknown models answer
/// themselves.
pub(super) fn answering(id: &str, today: Date) -> Option<&str> {
    let Some(model) = find(id) else { return Some(id) };
    match model.end {
        End::Gone(day) if day <= today => None,
        End::Routed(day, successor) if day <= today => Some(successor),
        _ => Some(id),
    }
}

/// What a call costs at the standard price, in billionths of a US dollar. Unknown models are free.
pub(super) fn cost(id: &str, input_tokens: u64, output_tokens: u64) -> f64 {
    // A dollar per million tokens is a thousand billionths per token.
    find(id).map_or(0.0, |model| {
        1_000.0 * (model.input * input_tokens as f64 + model.output * output_tokens as f64)
    })
}

fn find(id: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_model_is_gone_or_routed_from_its_day_on() {
        let (before, day) = (date(2026, 11, 30), date(2026, 12, 1));
        assert_eq!(answering("gemini-2.5-pro", before), Some("gemini-2.5-pro"));
        assert_eq!(answering("gemini-2.5-pro", day), Some("gemini-3.8-flash"));
        assert_eq!(answering("gemini-3.1-flash-lite-preview", day), None);
        assert_eq!(answering("gemini-flash-latest", before), Some("gemini-3.8-flash"));
        assert_eq!(answering("gemini-mine", day), Some("gemini-mine"));
    }

    #[test]
    fn every_successor_exists_and_answers_itself() {
        let today = date(2026, 12, 31);
        for model in MODELS {
            if let End::Routed(_, successor) = model.end {
                assert_eq!(answering(successor, today), Some(successor), "{}", model.id);
            }
        }
    }

    #[test]
    fn a_call_costs_its_input_and_its_output() {
        assert_eq!(cost("gemini-4-argon", 1_000_000, 1_000_000), 12e9);
        assert_eq!(cost("gemini-mine", 1_000_000, 1_000_000), 0.0);
    }
}
