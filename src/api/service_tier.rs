//! The service tier that a request asks for.

use std::time::Duration;

use tokio::time::Instant;

use crate::dispatch::TierChoice;
use crate::gemini::ServiceTier;
use crate::generation::InvalidField;

/// The longest time until a call falls back, in seconds: a year.
const MAX_FALLBACK: f64 = 31_536_000.0;

/// The fields of a request, or of a batch, about its service tier.
#[derive(Debug, Clone, Default)]
pub(super) struct TierFields {
    pub service_tier: Option<String>,
    pub flex_fallback_seconds: Option<f64>,
}

/// The tier of a request, checked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestedTier {
    tier: Option<ServiceTier>,
    fallback_after: Option<Duration>,
}

impl TierFields {
    /// Checks the fields.
    ///
    /// # Errors
    /// Every field that cannot be used.
    pub(super) fn check(&self) -> Result<RequestedTier, Vec<InvalidField>> {
        self.check_within(RequestedTier::default())
    }

    /// The same for an item of a batch. Its own fields override the batch's.
    ///
    /// # Errors
    /// Every field that cannot be used.
    pub(super) fn check_within(
        &self,
        batch: RequestedTier,
    ) -> Result<RequestedTier, Vec<InvalidField>> {
        let mut errors = Vec::new();
        let own = self.service_tier.as_deref().map(|name| {
            let tier = ServiceTier::named(name);
            errors.extend(tier.is_none().then(unknown_tier));
            tier.unwrap_or_default()
        });
        let tier = own.or(batch.tier);
        let fallback = self.flex_fallback_seconds;
        if fallback.is_some_and(|seconds| !(seconds > 0.0 && seconds <= MAX_FALLBACK)) {
            let message = "Input should be more than 0 and at most 31536000";
            errors.push(InvalidField::new("flex_fallback_seconds", "greater_than", message));
        } else if fallback.is_some() && errors.is_empty() && tier != Some(ServiceTier::Flex) {
            let message = "Only a request with the service_tier flex can fall back";
            errors.push(InvalidField::new("flex_fallback_seconds", "value_error", message));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let fallback_after = fallback.map(Duration::from_secs_f64).or(batch.fallback_after);
        Ok(RequestedTier { tier, fallback_after })
    }
}

impl RequestedTier {
    /// The tier.
    pub(super) fn tier(self) -> ServiceTier {
        self.tier.unwrap_or_default()
    }

    /// The tier that is asked for by name.
    pub(super) fn named(self) -> Option<ServiceTier> {
        self.tier
    }

    /// The tier of the calls of a request that came at this time.
    pub(super) fn chosen_at(self, came_at: Instant) -> TierChoice {
        let fallback_after = self.fallback_after.filter(|_| self.tier() == ServiceTier::Flex);
        TierChoice::new(self.tier, fallback_after.map(|after| came_at + after))
    }
}

fn unknown_tier() -> InvalidField {
    let message = "Input should be 'standard', 'flex' or 'priority'";
    InvalidField::new("service_tier", "literal_error", message)
}
