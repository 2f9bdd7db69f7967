//! The door: how many calls run at once, what an account may spend, and who goes next.
//!
//! | file | what is in it |
//! |---|---|
//! | `door` | one request's way in: its place, its lanes, an admission, a call under way |
//! | `semaphore`, `named` | permits of which a number is out at once; those that have a name |
//! | `lease` | permits held by work outside this process, which end unless they are renewed |
//! | `account` | what belongs to one key and model: a budget and an adaptive limit |
//! | `budget` | quotas per minute and per day, spread so that Gemini never has to refuse |
//! | `adaptive` | how many calls of an account run at once, found out from refusals for load |
//! | `plan` | what the settings say about quotas |
//!
//! All are first come, first served, and what they give out comes back when it is dropped. Nothing
//! here knows what a call is.

mod account;
mod adaptive;
mod budget;
mod door;
mod lease;
mod named;
mod plan;
mod semaphore;

pub use account::{Account, Accounts, Payer};
pub use adaptive::{AdaptiveLimit, Slot};
pub use budget::{Budget, BudgetUsage, Exhausted, QuotaUsage, Quotas, Reservation, Sent};
pub use door::{Admission, Door, Lane, Occupancy, Refused, Turn, Turnstile, Underway};
pub use lease::{Lease, LeaseTerms, Leases, NoLease, NoSuchLease};
pub use named::{InvalidSemaphore, NamedSemaphores, SemaphoreId};
pub use plan::{
    InvalidDigest, KeyDigest, Limit, Limits, OtherLabel, Planned, PlannedQuotas, QuotaPlan,
    RepeatedScope, Scope, Source, Tier,
};
pub use semaphore::{NotGranted, Permit, Semaphore};
