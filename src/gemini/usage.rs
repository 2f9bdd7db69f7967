//! Token usage as Gemini counts it.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// The highest count of tokens that is accepted. No exchange comes near it, and sums stay exact.
pub(super) const MOST_TOKENS: u64 = 1 << 32;

/// The tokens of an exchange; 0 where Gemini reports no count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt, `promptTokenCount`.
    pub prompt_tokens: u64,
    /// Tokens of the answer without its thoughts, `candidatesTokenCount`.
    pub output_tokens: u64,
    /// Tokens of the thoughts, `thoughtsTokenCount`.
    pub thinking_tokens: u64,
    /// All tokens, `totalTokenCount`. Tool prompts count only here.
    pub total_tokens: u64,
    /// Tokens of the prompt that were cached, `cachedContentTokenCount`.
    #[serde(skip)]
    #[schema(ignore)]
    pub cached_tokens: u64,
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            thinking_tokens: self.thinking_tokens.saturating_add(other.thinking_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

/// The usage object of Gemini's format.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsageMetadata<'a> {
    #[serde(borrow)]
    prompt_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    candidates_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    thoughts_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    total_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    cached_content_token_count: Option<&'a RawValue>,
}

/// The usage object of OpenAI's format.
#[derive(Deserialize)]
struct OpenAiUsage<'a> {
    #[serde(borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_tokens_details: Option<&'a RawValue>,
}

/// The usage object of Interactions.
#[derive(Deserialize)]
struct InteractionUsage<'a> {
    #[serde(borrow)]
    total_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_thought_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_cached_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PromptDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
}

/// Reads a count: a whole number, a number with a fraction, or either as a string, as proto JSON and some
/// proxies write it. Invalid counts are `None`; high ones are limited to [`MOST_TOKENS`].
fn count(written: Option<&RawValue>) -> Option<u64> {
    let written = written?.get();
    let number = written.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let number: f64 = number.unwrap_or(written).parse().ok()?;
    // The conversion cuts off fractions. Integers up to 2^53 are exact.
    (number >= 0.0).then_some((number as u64).min(MOST_TOKENS))
}

impl Usage {
    /// Reads a `usageMetadata`; `None` if it has no count.
    pub(super) fn of_gemini(object: &[u8]) -> Option<Usage> {
        let counts: UsageMetadata<'_> = serde_json::from_slice(object).ok()?;
        Self::of_counts([
            count(counts.prompt_token_count),
            count(counts.candidates_token_count),
            count(counts.thoughts_token_count),
            count(counts.total_token_count),
            count(counts.cached_content_token_count),
        ])
    }

    /// Reads a `usage` of OpenAI's format.
    pub(super) fn of_openai(object: &[u8]) -> Option<Usage> {
        let counts: OpenAiUsage<'_> = serde_json::from_slice(object).ok()?;
        let details = counts.prompt_tokens_details.map(RawValue::get);
        let details = details.and_then(|details| serde_json::from_str(details).ok());
        let cached = details.and_then(|details: PromptDetails<'_>| count(details.cached_tokens));
        Self::of_counts([
            count(counts.prompt_tokens),
            count(counts.completion_tokens),
            None,
            count(counts.total_tokens),
            cached,
        ])
    }

    /// Reads a `usage` of Interactions. Thoughts are no part of the output.
    pub(super) fn of_interaction(object: &[u8]) -> Option<Usage> {
        let counts: InteractionUsage<'_> = serde_json::from_slice(object).ok()?;
        Self::of_counts([
            count(counts.total_input_tokens),
            count(counts.total_output_tokens),
            count(counts.total_thought_tokens),
            count(counts.total_tokens),
            count(counts.total_cached_tokens),
        ])
    }

    fn of_counts(counts: [Option<u64>; 5]) -> Option<Usage> {
        counts.iter().any(Option::is_some).then(|| {
            let [prompt_tokens, output_tokens, thinking_tokens, total_tokens, cached_tokens] =
                counts.map(Option::unwrap_or_default);
            Usage { prompt_tokens, output_tokens, thinking_tokens, total_tokens, cached_tokens }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_adds_up() {
        let one = Usage {
            prompt_tokens: 1,
            output_tokens: 2,
            thinking_tokens: 3,
            total_tokens: 6,
            ..Usage::default()
        };
        let mut sum = Usage::default();
        sum += one;
        sum += one;
        assert_eq!(
            sum,
            Usage {
                prompt_tokens: 2,
                output_tokens: 4,
                thinking_tokens: 6,
                total_tokens: 12,
                ..Usage::default()
            }
        );
    }
}
