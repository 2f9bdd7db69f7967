//! The service tier of a call, and falling back from flex to standard.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::call::Admitted;
use super::{Call, CallError, CallQueue, Dispatcher};
use crate::gemini::{ErrorKind, ServiceTier};
use crate::limits::{Capacity, Exhausted, Refused};

/// The service tier that a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct TierChoice {
    tier: Option<ServiceTier>,
    /// Whether the body still has to name the tier.
    is_to_be_written: bool,
    fallback_at: Option<Instant>,
}

/// What becomes of a flex call that is not served in time.
#[derive(Debug)]
pub(super) struct Fallback {
    /// When it falls back.
    pub at: Instant,
    /// The queue of its calls in the standard tier.
    pub queue: Arc<CallQueue>,
}

impl TierChoice {
    /// A tier that the caller asks for; `None` leaves it to Gemini. It is written into the body. A flex
    /// call that has not been served at `fallback_at` is sent again in the standard tier.
    pub fn new(tier: Option<ServiceTier>, fallback_at: Option<Instant>) -> Self {
        Self { tier, is_to_be_written: true, fallback_at }
    }

    /// The tier that a body names.
    pub fn of_body(tier: ServiceTier) -> Self {
        Self { tier: Some(tier), is_to_be_written: false, fallback_at: None }
    }

    /// The tier.
    pub fn tier(self) -> ServiceTier {
        self.tier.unwrap_or_default()
    }

    /// When a call in this tier falls back to which one.
    pub(super) fn fallback(self) -> Option<(Instant, Self)> {
        let at = self.fallback_at.filter(|_| self.tier() == ServiceTier::Flex)?;
        Some((at, Self::new(Some(ServiceTier::Standard), None)))
    }

    pub(super) fn capacity(self) -> Capacity {
        match self.tier() {
            ServiceTier::Flex => Capacity::Flex,
            ServiceTier::Standard | ServiceTier::Priority => Capacity::Standard,
        }
    }

    pub(super) fn added_to(self, body: &Bytes) -> Bytes {
        match self.tier {
            Some(tier) if self.is_to_be_written => tier.added_to(body),
            _ => body.clone(),
        }
    }
}

impl CallError {
    /// Whether a flex call failed for lack of capacity or time, so that a standard call may succeed.
    fn is_not_served(&self) -> bool {
        match self {
            Self::DeadlineExceeded
            | Self::Refused(Refused::Exhausted(Exhausted::NotBefore { .. })) => true,
            Self::Refused(_) => false,
            // A call that broke off may have run, and was sent again once already.
            Self::Upstream { error, .. } => match error.kind {
                ErrorKind::BrokenOff => false,
                ErrorKind::Timeout => true,
                _ => error.is_transient(),
            },
        }
    }
}

impl Dispatcher {
    /// Waits until a call that was not served in its tier is admitted in the one that it falls back to.
    ///
    /// # Errors
    /// `failed` where it does not fall back; otherwise as for [`Dispatcher::admit`].
    pub(super) async fn admit_after(
        &self,
        call: &Call,
        failed: CallError,
    ) -> Result<Admitted, CallError> {
        let Some(call) = call.in_standard_tier().filter(|_| failed.is_not_served()) else {
            return Err(failed);
        };
        let (kind, model) = (call.kind().label(), call.model());
        tracing::debug!(kind, %model, "a flex call falls back to the standard tier: {failed}");
        // Boxed so that a call that waits takes no more memory than its wait.
        let admission = Box::pin(self.admit_in_tier(&call)).await?;
        Ok(Admitted { call, admission })
    }
}
