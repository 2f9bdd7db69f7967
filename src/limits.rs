//! The limiter: how many calls run at once, what an account may spend, and who goes next.
//!
//! | file | what is in it |
//! |---|---|
//! | `limiter` | one request's way in: its place, its queues, an admission, a call under way |
//! | `semaphore`, `named` | permits of which a number is out at once; the names they can have |
//! | `lease` | permits held by work outside this process, which end unless they are renewed |
//! | `store` | where semaphores and leases are kept: here, or for all replicas |
//! | `shared` | what all replicas share, in Redis |
//! | `account` | what belongs to one key and model: a budget and an adaptive limit |
//! | `accounts` | all of them, which models are charged as another, and which accounts are forgotten |
//! | `budget` | quotas per minute and per day, spread so that Gemini never has to refuse |
//! | `adaptive` | how many calls of an account run at once, found out from refusals for load |
//! | `breakers` | which calls Gemini is certain to refuse until somebody pays or raises a quota |
//! | `quota` | the kinds of quotas, as data |
//! | `plan` | what the settings say about quotas |
//!
//! All are first come, first served, and what they give out comes back when it is dropped. Nothing
//! here knows what a call is.

mod account;
mod accounts;
mod adaptive;
mod breakers;
mod budget;
mod lease;
mod limiter;
mod named;
mod plan;
mod quota;
mod semaphore;
mod shared;
mod store;

pub use account::{Account, Payer};
pub use accounts::{Accounts, NamedBy};
pub use adaptive::{AdaptiveLimit, Slot};
pub use breakers::{RefusedHere, Tripped};
pub use budget::{
    Attempt, Budget, BudgetUsage, Charged, Cost, Estimate, Exhausted, HandedOver, Line,
    LocalBudget, NotReserved, QuotaUsage, Reservation, Sent, Spent, Started,
};
pub use lease::{Lease, LeaseTerms, Leases, NoLease, NoSuchLease};
pub use limiter::{
    AccountQueue, Admission, HeadOfQueue, InFlightCall, Limiter, Occupancy, PermitsExpired,
    QueueTicket, Refused,
};
pub use named::{InvalidSemaphore, NAMED_LIMITS, SemaphoreId, parse_limit};
pub use plan::{
    InvalidDigest, KeyDigest, Limit, LimitScope, Limits, OtherLabel, Planned, PlannedQuotas,
    QuotaPlan, RepeatedScope, Source, Tier,
};
pub use quota::{PerKind, QuotaKind, Quotas, Resource, Window};
pub use semaphore::{
    Acquire, Fence, LocalSemaphore, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage,
    StoreUnavailable, WaitMode,
};
pub use shared::{InvalidRedisUrl, NoRedis, RedisSettings, SharedStore};
pub use store::{Fetched, LocalStore, NewLease, Store, Unleased};
