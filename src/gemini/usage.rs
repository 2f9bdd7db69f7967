//! Token usage as Gemini counts it.

use std::ops::{Add, AddAssign};

use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::prices::{ChargedTokens, NanoDollars, PriceTier};

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
    /// All tokens, `totalTokenCount`.
    pub total_tokens: u64,
    /// Tokens of the prompt that were cached, `cachedContentTokenCount`.
    pub cached_tokens: u64,
    /// Tokens of what tools added to the prompt, `toolUsePromptTokenCount`.
    pub tool_tokens: u64,
    /// The service tier that answered, `serviceTier`: `standard`, `flex` or `priority`. It may be another
    /// than was asked for. Null if Gemini does not say, or if several tiers answered.
    // Some answers name it only in the header `x-gemini-service-tier`.
    #[serde(serialize_with = "tier_name")]
    #[schema(value_type = Option<String>)]
    pub service_tier: Option<PriceTier>,
    /// What the exchange costs in US dollars, at the prices of the model and the tier that answered; 0
    /// if the model's prices are unknown.
    // `dispatch` sets it.
    #[serde(rename = "cost_usd", serialize_with = "dollars")]
    #[schema(value_type = f64)]
    pub cost: NanoDollars,
}

fn tier_name<S: Serializer>(tier: &Option<PriceTier>, serializer: S) -> Result<S::Ok, S::Error> {
    tier.map(PriceTier::name).serialize(serializer)
}

fn dollars<S: Serializer>(cost: &NanoDollars, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(cost.dollars())
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
            tool_tokens: self.tool_tokens.saturating_add(other.tool_tokens),
            service_tier: other.service_tier.or(self.service_tier),
            cost: self.cost.saturating_add(other.cost),
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
    /// Its name in live sessions.
    #[serde(borrow)]
    response_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    thoughts_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    total_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    cached_content_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_use_prompt_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    service_tier: Option<&'a RawValue>,
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

/// The usage object of Interactions, which decisions and voices have too. Source: types in Google's
/// Python SDK 3.6.1, and recorded interactions.
#[derive(Deserialize)]
struct InteractionsUsage<'a> {
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
    #[serde(borrow)]
    total_tool_use_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PromptDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
}

/// Reads a count: a whole number, a number with a fraction, or either as a string, as proto JSON and some
/// proxies write it. Invalid counts are `None`; high ones are limited to [`MOST_TOKENS`].
pub(super) fn count(written: Option<&RawValue>) -> Option<u64> {
    let written = written?.get();
    let number = written.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let number: f64 = number.unwrap_or(written).parse().ok()?;
    // The conversion cuts off fractions. Integers up to 2^53 are exact.
    (number >= 0.0).then_some((number as u64).min(MOST_TOKENS))
}

/// The header with the service tier that answered.
const SERVICE_TIER: HeaderName = HeaderName::from_static("x-gemini-service-tier");

/// The service tier in the headers of an answer.
///
/// Source: Gemini API, "Priority inference".
pub(super) fn tier_header(headers: &HeaderMap) -> Option<PriceTier> {
    service_tier(headers.get(SERVICE_TIER)?.to_str().ok()?)
}

/// Reads the name of a tier, which may be in quotes and in upper case.
fn service_tier(written: &str) -> Option<PriceTier> {
    let name = written.trim_matches('"').to_ascii_lowercase();
    PriceTier::from_name(name.strip_prefix("service_tier_").unwrap_or(&name))
}

impl Usage {
    /// Reads a `usageMetadata`; `None` if it has no count.
    pub(super) fn of_gemini(object: &[u8]) -> Option<Usage> {
        let counts: UsageMetadata<'_> = serde_json::from_slice(object).ok()?;
        let service_tier = counts.service_tier.and_then(|tier| service_tier(tier.get()));
        let usage = Self::of_counts([
            count(counts.prompt_token_count),
            count(counts.candidates_token_count.or(counts.response_token_count)),
            count(counts.thoughts_token_count),
            count(counts.total_token_count),
            count(counts.cached_content_token_count),
            count(counts.tool_use_prompt_token_count),
        ])?;
        Some(Usage { service_tier, ..usage })
    }

    /// Whether Gemini has reported any token that is charged.
    pub fn is_known(self) -> bool {
        self.charged() != ChargedTokens::default()
    }

    /// What these tokens are charged as. Thoughts that only the total contains, as on OpenAI's surface,
    /// are output.
    pub fn charged(self) -> ChargedTokens {
        let input = self.prompt_tokens.saturating_add(self.tool_tokens);
        let rest = self.total_tokens.saturating_sub(input);
        let output = self.output_tokens.saturating_add(self.thinking_tokens);
        let output = if self.prompt_tokens > 0 { output.max(rest) } else { output };
        ChargedTokens { input, cached_input: self.cached_tokens, output }
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
            None,
        ])
    }

    /// Reads a `usage` of Interactions' format.
    pub(super) fn of_interactions(object: &[u8]) -> Option<Usage> {
        let counts: InteractionsUsage<'_> = serde_json::from_slice(object).ok()?;
        Self::of_counts([
            count(counts.total_input_tokens),
            count(counts.total_output_tokens),
            count(counts.total_thought_tokens),
            count(counts.total_tokens),
            count(counts.total_cached_tokens),
            count(counts.total_tool_use_tokens),
        ])
    }

    /// The tokens of the prompt, of the answer, of the thoughts, of all kinds, the cached ones, and those of tools.
    pub(super) fn of_counts(counts: [Option<u64>; 6]) -> Option<Usage> {
        counts.iter().any(Option::is_some).then(|| {
            let [prompt_tokens, output_tokens, thinking_tokens, total_tokens, cached_tokens, tools] =
                counts.map(Option::unwrap_or_default);
            Usage {
                prompt_tokens,
                output_tokens,
                thinking_tokens,
                total_tokens,
                cached_tokens,
                tool_tokens: tools,
                ..Usage::default()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_that_only_the_total_contains_are_charged_as_output() {
        let usage =
            Usage::of_openai(br#"{"prompt_tokens":5,"completion_tokens":2,"total_tokens":90}"#);
        let charged = usage.unwrap().charged();
        assert_eq!((charged.input, charged.output), (5, 85));
        let usage = Usage { total_tokens: 90, ..Usage::default() };
        assert_eq!(usage.charged().output, 0, "the total may be input");
    }

    #[test]
    fn the_tier_and_the_tokens_of_tools_are_read() {
        let usage = Usage::of_gemini(
            br#"{"promptTokenCount":22,"candidatesTokenCount":900,"thoughtsTokenCount":73,
                "toolUsePromptTokenCount":129,"totalTokenCount":1124,"serviceTier":"flex"}"#,
        )
        .unwrap();
        assert_eq!((usage.tool_tokens, usage.service_tier), (129, Some(PriceTier::Flex)));
        assert_eq!(usage.charged(), ChargedTokens { input: 151, cached_input: 0, output: 973 });
        for (written, tier) in [
            ("standard", Some(PriceTier::Standard)),
            ("PRIORITY", Some(PriceTier::Priority)),
            ("SERVICE_TIER_FLEX", Some(PriceTier::Flex)),
            ("batch", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(SERVICE_TIER, written.parse().unwrap())]);
            assert_eq!(tier_header(&headers), tier, "{written:?}");
        }
    }

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
