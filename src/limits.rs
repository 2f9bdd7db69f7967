//! Limits: how many calls run at once, what an account may spend, and which call is admitted next.
//!
//! Everything is first come, first served, and everything granted is given back when it is dropped.
//! Nothing here knows what a call contains.
//!
//! Each module uses only modules above it in the table. A test holds the code to the last column.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | `model` | quota kinds, settings of quotas, windows, the adaptive search, lease terms: rules without IO | nothing |
//! | `semaphore` | hot path: request and release permits | `model` |
//! | `budget` | hot path: reserve, start and settle what a call costs; beside it, how quotas are learned, moved and shown | `model` |
//! | `store` | administration: which semaphores, budgets and leases exist | `model`, `semaphore`, `budget` |
//! | `local` | the implementation in this process | `model`, `semaphore`, `budget`, `store` |
//! | `redis` | the implementation in Redis, for all replicas; an account without known quotas is counted in this process | `model`, `semaphore`, `budget`, `store`, `local` |
//! | `accounts` | one key and model: its budget, its adaptive limits, the model that is charged; what a payer spends on all models; which accounts are forgotten | `model`, `budget`, `store`, `local` |
//! | `limiter` | admission: tickets in the queue, admitted calls, calls in flight | `model`, `semaphore`, `budget`, `store`, `local`, `accounts` |
//! | `enqueued` | the tokens that batch jobs hold until they end | `model`, `semaphore`, `accounts`, `limiter` |
//! | `leases` | permits for work outside this process | `model`, `semaphore`, `store`, `limiter` |
//!
//! A new quota kind is a variant and a row in `model::quota`. Settings, windows, the Redis script,
//! refusals and `/_admin/limits` iterate over the rows. A new store implements the traits of
//! `semaphore`, `budget` and `store`, and joins the list of stores in `store::tests`.

mod accounts;
mod budget;
mod enqueued;
mod leases;
mod limiter;
mod local;
mod model;
mod redis;
mod semaphore;
mod store;

pub use self::redis::{InvalidRedisUrl, NoRedis, RedisSettings, SharedStore};
pub use accounts::{Account, Accounts, NamedBy, RefusedHere, Spending, Tripped};
pub use budget::{
    Budget, BudgetAdmin, ChargedModel, NotReserved, Reservation, Sent, Started, Transfer,
    TryReserve,
};
pub use enqueued::EnqueuedTokens;
pub use leases::{LeaseWait, Leases, NoLease};
pub use limiter::{
    AccountQueue, Admission, HeadOfQueue, HeldBy, InFlightCall, Limiter, Occupancy, PermitsExpired,
    QueueTicket, Refused,
};
pub use local::{AdaptiveLimit, LocalBudget, LocalSemaphore, LocalStore, Slot};
pub use model::{
    BudgetUsage, Capacity, Cost, Estimate, Exhausted, InvalidDigest, InvalidSemaphore, KeyDigest,
    Lease, LeaseTerms, Limit, LimitScope, Limits, Line, NAMED_LIMITS, NewLease, NoSuchLease,
    OtherLabel, Payer, PerKind, Planned, PlannedQuotas, QuotaKind, QuotaPlan, QuotaUsage, Quotas,
    RepeatedScope, Resource, SemaphoreId, Source, Spent, StoreUnavailable, Tier, Window,
    parse_limit,
};
pub use semaphore::{
    Acquire, Fence, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};
pub use store::{Fetched, LeaseStore, Report, Reports, Semaphores, Store, Unleased};
