//! What the engine has to know of an item: where it is sent, and what its result is. `api` implements it,
//! since only it knows the formats of the endpoints.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::model::{Answered, Job, SharedFields};
use crate::dispatch::{Admitted, Call, CallError, CallKind, CallSize, TierChoice};
use crate::gemini::{ApiKey, Model};
use crate::limits::Semaphore;

/// The forms of the items of all kinds.
pub trait ItemFormat: Debug + Send + Sync {
    /// What reads the items of a job, with the fields that they share.
    fn reader(&self, job: &Job, shared: SharedFields) -> Arc<dyn ItemReader>;
}

/// Reads the items of a job.
pub trait ItemReader: Debug + Send + Sync {
    /// Reads an item from its line, as it was stored. The error is the result of an item that fails
    /// without a call, such as one whose semaphore was deleted meanwhile.
    fn prepare(
        &self,
        key: &ApiKey,
        index: u64,
        line: Bytes,
    ) -> BoxFuture<'static, Result<PreparedItem, ItemOutcome>>;

    /// The result of an item that could not be read or sent because of an internal error.
    fn internal_error(&self, index: u64, line: &[u8]) -> Answered;
}

/// An item that is ready to be sent.
#[derive(Debug)]
pub struct PreparedItem {
    /// What is asked for.
    pub kind: CallKind,
    /// The model that is asked.
    pub model: Model,
    /// The semaphore that its calls hold in addition to the global limit.
    pub semaphore: Option<Arc<dyn Semaphore>>,
    /// The service tier.
    pub tier: TierChoice,
    /// What its first call is expected to cost.
    pub size: CallSize,
    /// How long it may take once it is admitted, retries included.
    pub timeout: Duration,
    /// Sends it.
    pub sender: Box<dyn ItemSender>,
}

/// Sends one item and writes its result.
pub trait ItemSender: Debug + Send {
    /// Sends an item whose first call has been admitted.
    fn send(self: Box<Self>, call: Call, admitted: Admitted) -> BoxFuture<'static, ItemOutcome>;

    /// The result of an item that was not admitted.
    fn refused(self: Box<Self>, error: CallError) -> ItemOutcome;
}

/// What became of an item.
#[derive(Debug)]
pub enum ItemOutcome {
    /// It has its result: an answer, or a failure that no repetition would change, or that was repeated
    /// often enough.
    Done(Answered),
    /// A limit of the account stopped it, so that it says nothing about the item. It is sent again, as
    /// often as it takes, after this time if one is known.
    Later(Option<Duration>),
    /// It failed with a transient error. It is sent again a few times; then this is its result.
    Repeat(Answered),
    /// Every item of the job would fail in this way: the key is invalid, or the account has no funds.
    /// The job is paused for this reason, an error code, and the item stays without a result.
    Hopeless(&'static str),
}
