//! The service tiers.

use bytes::Bytes;

use super::json;

/// How soon Gemini serves a call, at which price.
///
/// Source: Gemini API docs, flex inference and priority inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ServiceTier {
    /// The ordinary tier.
    #[default]
    Standard,
    /// Served when there is capacity to spare, within minutes, at half the price. Without capacity
    /// Gemini answers 503.
    Flex,
    /// Served first, at a higher price.
    Priority,
}

impl ServiceTier {
    /// All tiers.
    pub const ALL: [Self; 3] = [Self::Standard, Self::Flex, Self::Priority];

    /// The name on Gemini's wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }

    /// The tier of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }

    /// The tier that the value of `serviceTier` or `service_tier` in a relayed body stands for. Values
    /// that are unknown here are Gemini's to judge.
    pub(super) fn of_body(value: &str) -> Self {
        // The Interactions API also takes `deferred`, which is served as flex is.
        if value.eq_ignore_ascii_case("flex") || value.eq_ignore_ascii_case("deferred") {
            Self::Flex
        } else if value.eq_ignore_ascii_case("priority") {
            Self::Priority
        } else {
            Self::Standard
        }
    }

    /// The body of a `generateContent` call in this tier. `body` names none.
    pub fn added_to(self, body: &[u8]) -> Bytes {
        json::with_text_field(body, "serviceTier", self.name())
    }
}
