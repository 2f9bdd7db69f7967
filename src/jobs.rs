//! Durable jobs: bulk work that outlives connections, restarts and power cuts.
//!
//! A job is stored whole before it is accepted. The engine takes its items block by block, sends them
//! through the same admission as every other call, and records each result before it counts as done.
//!
//! # The promise
//!
//! An accepted item has exactly one result. A crash repeats at most the calls that were in flight;
//! nothing whose result was recorded is asked again. Three rules keep it:
//!
//! 1. A job becomes visible in the same transaction that makes it complete ([`JobStore::commit`]).
//! 2. A result is recorded durably before anything says that it exists ([`JobStore::record`]), and a
//!    second result of the same item is ignored.
//! 3. An item without a result is sent again only after its claim has ended: with its process, or with
//!    its lease ([`JobStore::claim`]).

mod engine;
mod handle;
pub mod item;
mod keys;
mod model;
mod observer;
pub mod store;
pub mod webhook;

pub use engine::{Engine, EngineSettings};
pub use handle::{Jobs, Watch};
pub use model::{
    Answered, Block, Change, Claimed, Failures, FailuresToRetry, Job, JobId, JobKind, JobNumber,
    JobSpec, JobState, NewBlock, NewJob, Order, Owner, PauseReason, Progress, Rate, ReplicaId,
    ResultPage, SharedFields, StoredResult, Totals,
};
pub use observer::{JobObserver, RunObserver};
pub use store::{Committed, InvalidDatabaseUrl, JobStore, StoreError, StoreSettings};
