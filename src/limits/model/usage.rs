//! How much of an account's quotas is used, and why a call does not fit into them.

use std::ops::Index;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quota::{PerKind, QuotaKind};

/// Why the quotas have no room for a call before its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// A quota is 0.
    #[error("the quota{} is 0", named(*kind))]
    NoQuota {
        /// The quota; `None` if it is not known which.
        kind: Option<QuotaKind>,
    },
    /// The call alone costs more than a whole quota.
    #[error("the request costs {cost} {}, more than the {limit} of a whole {}", kind.resource(), kind.window())]
    TooLarge {
        /// The quota that the call exceeds.
        kind: QuotaKind,
        /// What the call costs of it. Tokens are estimated.
        cost: u64,
        /// The quota.
        limit: u64,
    },
    /// The quotas of sliding windows have no room for the call before its deadline.
    #[error("the quota{} has no room before {retry_after:?} have passed", named(*kind))]
    NotBefore {
        /// The quota that has no room for the longest time, or for which Gemini has paused the
        /// account; `None` if it is not known which.
        kind: Option<QuotaKind>,
        /// When there would be room for the call, behind everything that waits now.
        retry_after: Duration,
    },
    /// The jobs that have not ended leave no room for another before its deadline.
    #[error("the jobs that have not ended leave no room")]
    NoRoom {
        /// When to try again. Nobody knows when a job ends.
        retry_after: Duration,
    },
    /// A quota per day is used up.
    #[error("the quota per day{} is used up for {retry_after:?}", named(*kind))]
    DayExhausted {
        /// The quota; `None` if it is not known which.
        kind: Option<QuotaKind>,
        /// The time until the day ends.
        retry_after: Duration,
    },
}

/// The name of a quota in a message, if it is known.
fn named(kind: Option<QuotaKind>) -> String {
    kind.map(|kind| format!(" of {} in a {}", kind.resource(), kind.window())).unwrap_or_default()
}

/// How much of an account's quotas is used at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUsage {
    /// The usage of each quota.
    pub quotas: PerKind<QuotaUsage>,
    /// The number of requests that wait.
    pub waiting: u64,
    /// When a small call could be admitted, behind everything that waits; `None` for never.
    pub next_free_in: Option<Duration>,
    /// How long a refusal by Gemini still pauses the account; `None` if it is not paused.
    pub paused_for: Option<Duration>,
    /// The quota for which Gemini refused that call, if it is known.
    pub paused_quota: Option<QuotaKind>,
    /// How long nothing is sent because Gemini says that the quota of the day is used up; `None` if it
    /// does not.
    pub day_closed_for: Option<Duration>,
}

impl Index<QuotaKind> for BudgetUsage {
    type Output = QuotaUsage;

    fn index(&self, kind: QuotaKind) -> &QuotaUsage {
        &self.quotas[kind]
    }
}

/// How much of one quota is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuotaUsage {
    /// The quota; `None` if it is unlimited.
    pub limit: Option<u64>,
    /// What was sent and still counts.
    pub used: u64,
    /// What is reserved and not yet sent.
    pub reserved: u64,
}
