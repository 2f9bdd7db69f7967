//! Where jobs are kept: one trait, implemented over SQLite and PostgreSQL.
//!
//! | file | what is in it |
//! |---|---|
//! | `row` | a job's row: how it is written in both databases, and what changes do to it |
//! | `claim` | which blocks a claim takes |
//! | `retry` | retries that take several transactions |
//! | `payload` | the compressed lines of a block |
//! | `specs` | the options of jobs, read once |
//! | `sqlite` | jobs in a file, for one process |
//! | `postgres` | jobs in PostgreSQL, for several replicas |
//!
//! SQLite is the default, since it needs no other service. rusqlite is used and not sqlx: all changes
//! are made by one thread, which calls SQLite directly. sqlx passes each statement through a
//! channel to a thread of its own, which costs several times what an insert takes, a million times over.
//! PostgreSQL is used through tokio-postgres for the same reason: statements of one transaction are few,
//! and take arrays of results.

mod claim;
mod payload;
mod postgres;
mod query;
mod retry;
mod row;
mod specs;
mod sqlite;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;

use super::model::{
    Answered, Change, Claimed, FailuresToRetry, Job, JobId, JobNumber, NewBlock, NewJob, Order,
    Owner, ReplicaId, ResultPage, SharedFields, Totals,
};
pub use postgres::InvalidDatabaseUrl;

/// Where jobs are kept.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The folder with the SQLite database, if there is no other.
    pub folder: PathBuf,
    /// The URL of a PostgreSQL database, which contains a password.
    pub database: Option<SecretString>,
}

impl StoreSettings {
    /// Checks the URL of a database without connecting.
    ///
    /// # Errors
    /// [`InvalidDatabaseUrl`].
    pub fn check_url(url: &str) -> Result<(), InvalidDatabaseUrl> {
        postgres::parse(url).map(drop)
    }
}

/// The store that settings name. It is opened when it is first needed: no file exists before the first job
/// is begun, and a store that cannot be opened is tried again with each operation. [`JobStore::check`] tells
/// whether it can be used.
pub fn open(settings: &StoreSettings) -> Arc<dyn JobStore> {
    match &settings.database {
        Some(url) => Arc::new(postgres::PostgresStore::new(url.clone())),
        None => Arc::new(sqlite::SqliteStore::new(settings.folder.clone())),
    }
}

/// The result of a store's operation.
pub type Stored<T> = BoxFuture<'static, Result<T, StoreError>>;

/// Keeps jobs, their items and their results. Every change is atomic, and durable when its future is
/// ready: it survives a crash of the process, and a power cut.
///
/// Every operation may be repeated after an error, with the same arguments. After
/// [`StoreError::Unavailable`] it is unknown whether the change was made, since the answer may be what
/// was lost. Dropping the future of an operation does not undo it, but blocks whose claim nobody receives
/// are not held. Times are kept in milliseconds. Numbers beyond `i64::MAX` are kept as that.
pub trait JobStore: Debug + Send + Sync {
    /// Whether other processes may use the same store.
    fn is_shared(&self) -> bool {
        true
    }

    /// Begins a job. Nobody sees it until it is [committed](JobStore::commit). Jobs that were begun and
    /// not committed are removed when their process has ended: at the next start, or by other replicas
    /// when it has neither added items nor [renewed](JobStore::renew) its claims for ten minutes.
    fn begin(&self, job: NewJob, replica: ReplicaId) -> Stored<JobNumber>;

    /// Adds items to a job that was begun, in their order. It is durable with the commit only. At most
    /// some MB at once; the future waits while others are being written.
    fn append(&self, job: JobNumber, blocks: Vec<NewBlock>) -> Stored<()>;

    /// Accepts a job with all of its items. If its owner has a job with the same idempotency key, the
    /// new one is abandoned. A job without items is completed at once. A job that was committed before is
    /// [`Committed::New`] again.
    fn commit(&self, job: JobNumber, totals: Totals) -> Stored<Committed>;

    /// Removes a job that was not committed.
    fn abandon(&self, job: JobNumber) -> Stored<()>;

    /// A job.
    fn job(&self, id: JobId) -> Stored<Option<Job>>;

    /// The fields that the items of a job share; none if there is no such job.
    fn shared_fields(&self, job: JobNumber) -> Stored<SharedFields>;

    /// Jobs, newest first: those of an owner, or all. Only those with a number below `before`.
    fn jobs(&self, owner: Option<Owner>, before: Option<JobNumber>, limit: u32)
    -> Stored<Vec<Job>>;

    /// The jobs that are queued, running, or paused: those that an engine looks after.
    fn open_jobs(&self) -> Stored<Vec<Job>>;

    /// Changes the state of a job. A change that does not apply leaves the job as it is. `None` if
    /// there is no such job.
    fn change(&self, job: JobNumber, change: Change, now: Timestamp) -> Stored<Option<Job>>;

    /// Removes results of failed items of a job that has ended, so that they are asked again, and queues
    /// the job if there were any, or if it was cancelled with items that have no result: these are asked
    /// too. What failed calls cost stays counted. A job that has not ended is left as it is. `None` if there is no such job.
    ///
    /// Atomic for up to some thousand failed items. With more, a crash may leave some of them as they were.
    fn retry(&self, job: JobNumber, which: FailuresToRetry, now: Timestamp) -> Stored<Option<Job>>;

    /// Removes a job with its items and results. It is invisible at once. The future is ready when
    /// nothing of it is left in the store's files, as far as the store can do that. If that fails, the job
    /// stays invisible, and the store goes on removing it.
    fn delete(&self, job: JobNumber) -> Stored<()>;

    /// Claims blocks with items that have no result, those with the lowest indices first, for `lease`
    /// from now. No one else claims them before that has passed. No more than `bytes` bytes, as their lines
    /// take in memory: of a first block that is larger only the size is told. No more than `items` items,
    /// except in the first block. It may be less though more is left. A queued job is running once a block
    /// is claimed. A job that is neither queued nor running has nothing to claim.
    fn claim(
        &self,
        job: JobNumber,
        replica: ReplicaId,
        items: u32,
        bytes: usize,
        lease: Duration,
    ) -> Stored<Claimed>;

    /// Extends all claims of a process to `lease` from now, and tells which blocks of which jobs it still
    /// holds, by the index of their first item. A block is held until its items all have results. Keeps the
    /// jobs that the process is adding items to, and lets the store clean up; so it is called
    /// every few seconds even if nothing is claimed.
    fn renew(&self, replica: ReplicaId, lease: Duration) -> Stored<Vec<(JobNumber, u64)>>;

    /// Gives back the claims of a process: those for a job, or all.
    fn release(&self, replica: ReplicaId, job: Option<JobNumber>) -> Stored<()>;

    /// Records results. One whose item has a result already, or whose job is gone or cancelled, is
    /// ignored. A block whose items all have results is no longer claimed, and a job whose items all
    /// have results is completed. Returns the jobs as they are then.
    fn record(&self, job: JobNumber, results: Vec<Answered>, now: Timestamp)
    -> Stored<Option<Job>>;

    /// Reads results after a position (0: from the beginning), at most `limit` of them and about `bytes`
    /// bytes, at least one if there is one. A job that is gone has none, and the page is the last.
    ///
    /// Only failed ones have gaps in input order. While the job runs, earlier items may still fail, so
    /// only the order of completion is complete for a reader that follows.
    fn results(
        &self,
        job: JobNumber,
        order: Order,
        only_failed: bool,
        after: u64,
        limit: u32,
        bytes: usize,
    ) -> Stored<ResultPage>;

    /// The jobs that ended before a time.
    fn ended_before(&self, time: Timestamp, limit: u32) -> Stored<Vec<JobNumber>>;

    /// The announcements that are due: of jobs that have ended, have a webhook, and whose next attempt
    /// is due, each with the number of attempts before it. At most `limit`, those that have been due
    /// longest first. They are claimed for `lease`.
    fn due_announcements(
        &self,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Stored<Vec<(Job, u32)>>;

    /// Notes that the announcement of a job's end at `ended_at` was delivered or given up (`None`), or
    /// that an attempt failed and when the next one is made. It is ignored if the job has ended again
    /// since, after a retry: that end has an announcement of its own.
    fn announced(
        &self,
        job: JobNumber,
        ended_at: Timestamp,
        next_attempt: Option<Timestamp>,
    ) -> Stored<()>;

    /// Whether the store can be used now. A database that does not exist yet is not made.
    fn check(&self) -> Stored<()>;

    /// Finishes all that was begun, and closes the store. Later operations are
    /// [`StoreError::Unavailable`].
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// What became of a job that was to be accepted.
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// It is accepted.
    New(Box<Job>),
    /// The same was accepted before, with the same idempotency key.
    Same(Box<Job>),
    /// Something else was accepted with the same idempotency key.
    Conflict,
}

/// Why the store did not do what it was asked. No message contains a prompt, an answer or a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk of the job store is full: {0}")]
    Full(String),
    /// The store cannot be used now: the file cannot be opened or written, or the database is gone.
    #[error("the job store is unavailable: {0}")]
    Unavailable(String),
    /// The store's data is damaged.
    #[error("the job store is damaged: {0}")]
    Damaged(String),
    /// A newer version of this program has written the store.
    #[error("the job store has format {found}; this version reads up to {known}")]
    TooNew {
        /// The format of the store.
        found: i64,
        /// The newest format that this version knows.
        known: i64,
    },
}
