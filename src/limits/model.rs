//! The rules of the limits, without IO and without synchronization.
//!
//! | file | what is in it |
//! |---|---|
//! | `quota` | the kinds of quotas, as data |
//! | `plan` | what the settings say about quotas |
//! | `payer` | whom Gemini charges, without the key |
//! | `capacity` | the parts of Gemini's capacity, each with an adaptive limit |
//! | `cost` | what a call costs, and what it is expected to cost |
//! | `usage` | how much of the quotas is used, and why a call does not fit |
//! | `minute` | the length of a minute and its margins, with the reasons |
//! | `rolling` | the quotas per minute |
//! | `day` | the quotas per day |
//! | `ledger` | all quotas of one account: what is queued, reserved and sent |
//! | `search` | the search for the number of concurrent calls that Gemini accepts |
//! | `semaphore_id` | the names and limits that a named semaphore can have |
//! | `lease` | the terms of a lease |

mod capacity;
mod cost;
mod day;
mod lease;
mod ledger;
mod minute;
mod payer;
mod plan;
mod quota;
mod rolling;
mod search;
mod semaphore_id;
mod usage;

use std::time::Duration;

pub use capacity::Capacity;
pub use cost::{Cost, Estimate};
pub(super) use day::end_of_used_up;
pub use lease::{Lease, LeaseTerms, MAX_LEASE_TTL, NewLease, NoSuchLease};
pub(super) use ledger::{Ledger, Opening};
pub use ledger::{Line, Spent};
pub use payer::Payer;
pub(in crate::limits) use payer::PayerRef;
pub(super) use plan::{EVERY_MODEL, SPEND_MARGIN};
pub use plan::{
    InvalidDigest, KeyDigest, Limit, LimitScope, Limits, OtherLabel, Planned, PlannedQuotas,
    QuotaPlan, RepeatedScope, Source, Tier,
};
pub use quota::{PerKind, QuotaKind, Quotas, Resource, Window};
pub(super) use search::Search;
pub use semaphore_id::{InvalidSemaphore, NAMED_LIMITS, SemaphoreId, parse_limit};
pub use usage::{BudgetUsage, Exhausted, QuotaUsage};

/// The store that the replicas share cannot be reached, so what the other replicas hold is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared limits are unavailable")]
pub struct StoreUnavailable {
    /// How long to wait before another attempt.
    pub retry_after: Duration,
}
