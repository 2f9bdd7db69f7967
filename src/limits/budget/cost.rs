//! What a call costs.

use std::ops::{Add, AddAssign, SubAssign};

use super::Exhausted;

/// More than any call costs, in requests or in tokens, so that sums cannot overflow.
const MOST: u64 = 1 << 32;

/// What a call costs of an account's quotas; or several calls together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// As how many requests Gemini counts it: 1, but for calls that bring several texts to embed.
    pub requests: u64,
    /// Input tokens, as estimated.
    pub tokens: u64,
}

impl Cost {
    /// A call that counts as one request of `tokens` input tokens.
    pub const fn one(tokens: u64) -> Self {
        Self { requests: 1, tokens }
    }

    /// The cost of a call, within what can be counted: at least one request.
    pub(in crate::limits) fn bounded(self) -> Self {
        Self { requests: self.requests.clamp(1, MOST), tokens: self.tokens.min(MOST) }
    }

    /// Input tokens, within what can be counted.
    pub(in crate::limits) fn bounded_tokens(tokens: u64) -> u64 {
        tokens.min(MOST)
    }

    /// What is left of it without `less`; nothing where that is more.
    pub(in crate::limits) fn saturating_sub(self, less: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(less.requests),
            tokens: self.tokens.saturating_sub(less.tokens),
        }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { requests: self.requests + more.requests, tokens: self.tokens + more.tokens }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Self) {
        *self = *self + more;
    }
}

impl SubAssign for Cost {
    fn sub_assign(&mut self, less: Self) {
        self.requests -= less.requests;
        self.tokens -= less.tokens;
    }
}

/// What a call is expected to cost, and what it costs at the very least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// What is reserved.
    pub cost: Cost,
    /// How many input tokens it costs at the very least. Only this decides that a call is too large:
    /// the expected tokens may rest on what was learned, and are wrong for a text of another kind.
    pub at_least: u64,
}

impl Estimate {
    /// What to reserve instead where `cost` was refused for this reason: a whole minute's tokens,
    /// where they were more and the call may cost so little.
    ///
    /// # Errors
    /// The reason, where it is another one.
    pub(in crate::limits) fn within(
        self,
        reason: Exhausted,
        cost: Cost,
    ) -> Result<Cost, Exhausted> {
        match reason {
            Exhausted::TooLarge { limit, .. } if self.at_least <= limit && limit < cost.tokens => {
                Ok(Cost { tokens: limit, ..cost })
            }
            reason => Err(reason),
        }
    }
}

impl From<Cost> for Estimate {
    /// A cost that is certain.
    fn from(cost: Cost) -> Self {
        Self { cost, at_least: cost.tokens }
    }
}
