//! Jobs in an SQLite database, for one process.
//!
//! | file | what is in it |
//! |---|---|
//! | `database`, `format_1.sql` | the files, the lock, the settings, the formats |
//! | `claims` | which blocks are claimed, in memory |
//! | `commands` | what the writer does for others |
//! | `writer` | the thread that makes all changes, in groups |
//! | `erase` | removes jobs from the disk in steps |
//! | `readers` | connections that only read |
//! | `rows` | reads jobs |
//! | `uploads`, `work`, `changes`, `results` | the operations |
//!
//! The database is in WAL mode. A transaction with a promise (an accepted job, a result, a change) is synced
//! to the disk before its callers learn of it; items of an upload are synced with the commit of
//! their job. The file is locked for its process, since another one would not see its claims.

mod changes;
mod claims;
mod commands;
mod database;
mod erase;
mod readers;
mod results;
mod rows;
mod uploads;
mod work;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::claim::{Claimed as StoredClaim, Most};
use super::query::Query;
use super::retry::Retried;
use super::row::{closed, no_upload};
use super::{Committed, JobStore, StoreError, Stored};
use crate::jobs::model::{
    Answered, Change, Claimed, FailuresToRetry, Job, JobId, JobNumber, NewBlock, NewJob, Order,
    Owner, ReplicaId, ResultPage, SharedFields, Totals,
};
use commands::{Context, Kind, Ordered};
use database::Files;
use readers::Readers;
use writer::{Shared, Writer};

/// How many KiB of items wait to be written at most.
const MAX_WAITING: u32 = 8 << 10;

/// Jobs in an SQLite database.
#[derive(Debug)]
pub(super) struct SqliteStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    readers: Readers,
    /// Started when it is first needed.
    writer: Mutex<Option<Arc<Writer>>>,
    is_closed: AtomicBool,
    waiting: Arc<Semaphore>,
}

impl SqliteStore {
    pub(super) fn new(folder: PathBuf) -> Self {
        let shared = Arc::new(Shared {
            files: Files::new(folder),
            specs: super::specs::Specs::default(),
            claims: Mutex::default(),
            generation: 0.into(),
        });
        Self(Arc::new(Inner {
            readers: Readers::new(Arc::clone(&shared)),
            shared,
            writer: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            waiting: Arc::new(Semaphore::new(MAX_WAITING as usize)),
        }))
    }

    fn write<T: Send + 'static>(
        &self,
        kind: Kind,
        absent: Result<T, StoreError>,
        run: impl FnMut(&mut Context<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Stored<T> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.write(kind, absent, run).await })
    }

    fn read<T: Send + 'static>(
        &self,
        absent: T,
        read: impl FnOnce(&Connection, &Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Stored<T> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let ping = |_: &mut Context<'_>| Ok(true);
            if !inner.shared.is_open() && !inner.write(Kind::Prepares, Ok(false), ping).await? {
                return Ok(absent);
            }
            inner.readers.read(read).await
        })
    }
}

impl Inner {
    async fn write<T: Send + 'static>(
        &self,
        kind: Kind,
        absent: Result<T, StoreError>,
        run: impl FnMut(&mut Context<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.write_claiming(kind, absent, run, |_| Vec::new()).await
    }

    async fn write_claiming<T: Send + 'static>(
        &self,
        kind: Kind,
        absent: Result<T, StoreError>,
        run: impl FnMut(&mut Context<'_>) -> Result<T, StoreError> + Send + 'static,
        claimed: fn(&T) -> Vec<(i64, i64)>,
    ) -> Result<T, StoreError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        // No thread is started for a store that holds nothing.
        let is_absent = !self.shared.is_open() && !self.shared.files.database.exists();
        if is_absent && kind != Kind::Creates {
            return absent;
        }
        let (reply, outcome) = oneshot::channel();
        let writer = self.writer()?;
        writer.send(Box::new(Ordered { kind, run, output: None, absent, reply, claimed }))?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    fn writer(&self) -> Result<Arc<Writer>, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*writer {
            Some(writer) => Ok(Arc::clone(writer)),
            None => {
                Ok(Arc::clone(writer.insert(Arc::new(Writer::start(Arc::clone(&self.shared))?))))
            }
        }
    }

    /// Removes all of a hidden job.
    async fn erase(&self, job: JobNumber) -> Result<(), StoreError> {
        self.shared.specs.forget(job);
        self.writer()?.erase(job.0)?.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn append(&self, job: JobNumber, blocks: Vec<NewBlock>) -> Result<(), StoreError> {
        let bytes: usize = blocks.iter().map(|block| block.lines.len()).sum();
        let kib = u32::try_from(bytes >> 10).unwrap_or(MAX_WAITING).clamp(1, MAX_WAITING);
        let permit = Arc::clone(&self.waiting).acquire_many_owned(kib).await;
        let permit = permit.map_err(|_| closed())?;
        let blocks = spawn_blocking(move || uploads::compress(blocks)).await;
        let blocks = blocks.map_err(|_| closed())??;
        let append = move |context: &mut Context<'_>| {
            let _held_until_written = &permit;
            uploads::append(context, job, &blocks)
        };
        self.write(Kind::Prepares, Err(no_upload()), append).await
    }

    async fn retry(
        &self,
        job: JobNumber,
        which: FailuresToRetry,
    ) -> Result<Option<Job>, StoreError> {
        let mut from = None;
        loop {
            let step = move |context: &mut Context<'_>| changes::retry(context, job, which, from);
            match self.write(Kind::Promises, Ok(Retried::default()), step).await? {
                Retried { job, next: None } => return Ok(job),
                Retried { next, .. } => from = next,
            }
        }
    }
}

/// The blocks of a claim: job and index of the first item.
fn blocks_of((job, claimed): &(JobNumber, StoredClaim)) -> Vec<(i64, i64)> {
    claimed.blocks.iter().map(|block| (job.0, block.first)).collect()
}

impl JobStore for SqliteStore {
    fn is_shared(&self) -> bool {
        false
    }

    fn begin(&self, job: NewJob, _: ReplicaId) -> Stored<JobNumber> {
        let begin = move |context: &mut Context<'_>| uploads::begin(context, &job);
        self.write(Kind::Creates, Err(closed()), begin)
    }

    fn append(&self, job: JobNumber, blocks: Vec<NewBlock>) -> Stored<()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.append(job, blocks).await })
    }

    fn commit(&self, job: JobNumber, totals: Totals) -> Stored<Committed> {
        let now = Timestamp::now();
        let commit = move |context: &mut Context<'_>| uploads::commit(context, job, totals, now);
        self.write(Kind::Promises, Err(no_upload()), commit)
    }

    fn abandon(&self, job: JobNumber) -> Stored<()> {
        self.write(Kind::Prepares, Ok(()), move |context| uploads::abandon(context, job))
    }

    fn job(&self, id: JobId) -> Stored<Option<Job>> {
        self.read(None, move |sql, shared| rows::job_by_id(sql, shared, &id))
    }

    fn shared_fields(&self, job: JobNumber) -> Stored<SharedFields> {
        self.read(SharedFields::new(), move |sql, _| rows::shared_fields(sql, job))
    }

    fn jobs(
        &self,
        owner: Option<Owner>,
        before: Option<JobNumber>,
        limit: u32,
    ) -> Stored<Vec<Job>> {
        self.read(Vec::new(), move |sql, shared| {
            rows::jobs(sql, shared, owner.as_ref(), before, limit)
        })
    }

    fn open_jobs(&self) -> Stored<Vec<Job>> {
        self.read(Vec::new(), rows::open_jobs)
    }

    fn change(&self, job: JobNumber, change: Change, now: Timestamp) -> Stored<Option<Job>> {
        self.write(Kind::Promises, Ok(None), move |context| {
            changes::change(context, job, change.clone(), now)
        })
    }

    fn retry(&self, job: JobNumber, which: FailuresToRetry, _: Timestamp) -> Stored<Option<Job>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.retry(job, which).await })
    }

    fn delete(&self, job: JobNumber) -> Stored<()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let hide = move |context: &mut Context<'_>| changes::hide(context, job);
            match inner.write(Kind::Promises, Ok(false), hide).await? {
                true => inner.erase(job).await,
                false => Ok(()),
            }
        })
    }

    fn claim(
        &self,
        job: JobNumber,
        replica: ReplicaId,
        items: u32,
        bytes: usize,
        lease: Duration,
    ) -> Stored<Claimed> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let (now, time) = (Instant::now(), Timestamp::now());
            let claim = move |context: &mut Context<'_>| {
                let most = Most { items: items.into(), bytes: bytes as u64 };
                let found = work::claim(context, job, &replica, most, (now, now + lease), time)?;
                Ok((job, found))
            };
            let none = Ok((job, StoredClaim::default()));
            let found = inner.write_claiming(Kind::Promises, none, claim, blocks_of).await?;
            found.1.read()
        })
    }

    fn renew(&self, replica: ReplicaId, lease: Duration) -> Stored<Vec<(JobNumber, u64)>> {
        let until = Instant::now() + lease;
        self.write(Kind::Prepares, Ok(Vec::new()), move |context| {
            Ok(context.claims.renew(&replica, until))
        })
    }

    fn release(&self, replica: ReplicaId, job: Option<JobNumber>) -> Stored<()> {
        self.write(Kind::Prepares, Ok(()), move |context| {
            context.claims.release(&replica, job);
            Ok(())
        })
    }

    fn record(
        &self,
        job: JobNumber,
        results: Vec<Answered>,
        now: Timestamp,
    ) -> Stored<Option<Job>> {
        self.write(Kind::Promises, Ok(None), move |context| {
            work::record(context, job, &results, now)
        })
    }

    fn results(
        &self,
        job: JobNumber,
        order: Order,
        only_failed: bool,
        after: u64,
        limit: u32,
        bytes: usize,
    ) -> Stored<ResultPage> {
        let none = ResultPage { results: Vec::new(), is_last: true };
        let query = Query { job, order, only_failed, after, limit, bytes };
        self.read(none, move |sql, _| results::page(sql, &query))
    }

    fn ended_before(&self, time: Timestamp, limit: u32) -> Stored<Vec<JobNumber>> {
        self.read(Vec::new(), move |sql, _| rows::ended_before(sql, time, limit))
    }

    fn due_announcements(
        &self,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Stored<Vec<(Job, u32)>> {
        self.write(Kind::Promises, Ok(Vec::new()), move |context| {
            changes::due_announcements(context, now, lease, limit)
        })
    }

    fn announced(
        &self,
        job: JobNumber,
        ended_at: Timestamp,
        next_attempt: Option<Timestamp>,
    ) -> Stored<()> {
        self.write(Kind::Promises, Ok(()), move |context| {
            changes::announced(context, job, ended_at, next_attempt)
        })
    }

    fn check(&self) -> Stored<()> {
        let none = |_: &mut Context<'_>| Ok(());
        self.write(Kind::Prepares, Ok(()), none)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.0.is_closed.store(true, Ordering::Release);
        let inner = Arc::clone(&self.0);
        async move {
            inner.readers.close().await;
            let writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(writer) = writer {
                drop(writer.close().await);
            }
        }
        .boxed()
    }
}
