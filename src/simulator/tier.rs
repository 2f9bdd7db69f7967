//! The service tiers.

use http::HeaderValue;

/// A service tier. Source: Gemini API docs, flex and priority inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ServiceTier {
    #[default]
    Standard,
    /// Half the price; refused with 503 when there is no spare capacity.
    Flex,
    /// 1.8 times the price; served as standard above its own limit.
    Priority,
}

impl ServiceTier {
    /// Reads the `service_tier` of a request; `None` if there is no such tier. OpenAI's clients also
    /// send `auto` and `default`. Interactions accept `deferred`, which is undocumented and counts as
    /// flex here.
    pub fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "" | "unspecified" | "standard" | "auto" | "default" => Some(Self::Standard),
            "flex" | "deferred" => Some(Self::Flex),
            "priority" => Some(Self::Priority),
            _ => None,
        }
    }

    /// The name in responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }

    /// The value of the header `x-gemini-service-tier`.
    pub fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }

    /// The price as a multiple of the standard price. Source: Gemini API docs, pricing.
    pub fn price_factor(self) -> f64 {
        match self {
            Self::Standard => 1.0,
            Self::Flex => 0.5,
            Self::Priority => 1.8,
        }
    }
}
