//! Jobs in PostgreSQL, for several replicas.
//!
//! | file | what is in it |
//! |---|---|
//! | `url`, `database`, `format_1.sql` | connections, transactions, formats |
//! | `lost` | claims whose outcome nobody learned |
//! | `rows` | reads and writes jobs |
//! | `uploads`, `work`, `changes`, `results`, `erase` | the operations |
//!
//! Blocks are claimed with `FOR UPDATE SKIP LOCKED`, so that replicas do not wait for each other, and held by
//! leases of the database's own clock. All other changes lock the row of the job first, which
//! also keeps them from blocking each other crosswise. What is deleted stays in pages of
//! the database until it vacuums and reuses them, and in its write-ahead log and backups for as long as
//! these are kept.

mod changes;
mod database;
mod erase;
mod lost;
mod results;
mod rows;
mod uploads;
mod url;
mod work;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::task::spawn_blocking;

use super::claim::Most;
use super::query::Query;
use super::retry::Retried;
use super::row::closed;
use super::specs::Specs;
use super::{Committed, JobStore, StoreError, Stored};
use crate::jobs::model::{
    Answered, Change, Claimed, FailuresToRetry, Job, JobId, JobNumber, NewBlock, NewJob, Order,
    Owner, ReplicaId, ResultPage, SharedFields, Totals,
};
use database::{Database, Failure, Sql};
use lost::LostClaims;
pub use url::InvalidDatabaseUrl;
pub(super) use url::parse;

/// Jobs in a PostgreSQL database.
#[derive(Debug)]
pub(super) struct PostgresStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    specs: Specs,
    lost: Arc<LostClaims>,
}

impl PostgresStore {
    pub(super) fn new(url: SecretString) -> Self {
        let (database, specs) = (Database::new(url), Specs::default());
        Self(Arc::new(Inner { database, specs, lost: Arc::default() }))
    }

    /// Makes a transaction.
    fn transact<T: Send + 'static>(
        &self,
        work: impl for<'a> Fn(&'a Inner, &'a Sql<'_>) -> BoxFuture<'a, Result<T, Failure>>
        + Send
        + Sync
        + 'static,
    ) -> Stored<T> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.transact(work).await })
    }
}

impl Inner {
    async fn transact<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl for<'a> Fn(&'a Self, &'a Sql<'_>) -> BoxFuture<'a, Result<T, Failure>>
        + Send
        + Sync
        + 'static,
    ) -> Result<T, StoreError> {
        let (inner, work) = (Arc::clone(self), Arc::new(work));
        self.database
            .transaction(move |sql| {
                let (inner, work) = (Arc::clone(&inner), Arc::clone(&work));
                async move { work(&inner, sql).await }.boxed()
            })
            .await
    }

    /// Removes all of a hidden job, also if nobody waits for it.
    async fn erase(self: &Arc<Self>, job: JobNumber) -> Result<(), StoreError> {
        self.specs.forget(job);
        let inner = Arc::clone(self);
        let erasing = tokio::spawn(async move {
            while inner.transact(move |_, sql| erase::step(sql, job).boxed()).await? {}
            Ok(())
        });
        erasing.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn append(
        self: Arc<Self>,
        job: JobNumber,
        blocks: Vec<NewBlock>,
    ) -> Result<(), StoreError> {
        let blocks = spawn_blocking(move || uploads::Blocks::compress(blocks)).await;
        let blocks = Arc::new(blocks.map_err(|_| closed())??);
        self.transact(move |_, sql| {
            let blocks = Arc::clone(&blocks);
            async move { uploads::append(sql, job, &blocks).await }.boxed()
        })
        .await
    }

    async fn commit(
        self: Arc<Self>,
        job: JobNumber,
        totals: Totals,
    ) -> Result<Committed, StoreError> {
        let now = Timestamp::now();
        let committed = self
            .transact(move |inner, sql| {
                uploads::commit(sql, &inner.specs, job, totals, now).boxed()
            })
            .await?;
        if !matches!(committed, Committed::New(_)) {
            drop(tokio::spawn(async move { self.erase(job).await }));
        }
        Ok(committed)
    }

    async fn retry(
        self: Arc<Self>,
        job: JobNumber,
        which: FailuresToRetry,
    ) -> Result<Option<Job>, StoreError> {
        let mut from = None;
        loop {
            let retried = self
                .transact(move |inner, sql| {
                    changes::retry(sql, &inner.specs, job, which, from).boxed()
                })
                .await?;
            match retried {
                Retried { job, next: None } => return Ok(job),
                Retried { next, .. } => from = next,
            }
        }
    }

    async fn renew(
        self: Arc<Self>,
        replica: ReplicaId,
        lease: Duration,
    ) -> Result<Vec<(JobNumber, u64)>, StoreError> {
        let lost = Arc::new(self.lost.of(&replica));
        let held = self
            .transact(move |_, sql| {
                let (replica, lost) = (replica.clone(), Arc::clone(&lost));
                async move { work::renew(sql, &replica, &lost, lease).await }.boxed()
            })
            .await?;
        for job in self.transact(|_, sql| erase::take_over(sql).boxed()).await? {
            let inner = Arc::clone(&self);
            drop(tokio::spawn(async move { inner.erase(job).await }));
        }
        Ok(held)
    }
}

impl JobStore for PostgresStore {
    fn begin(&self, job: NewJob, replica: ReplicaId) -> Stored<JobNumber> {
        let new = Arc::new((job, replica));
        self.transact(move |_, sql| {
            let new = Arc::clone(&new);
            async move { uploads::begin(sql, &new.0, &new.1).await }.boxed()
        })
    }

    fn append(&self, job: JobNumber, blocks: Vec<NewBlock>) -> Stored<()> {
        Box::pin(Arc::clone(&self.0).append(job, blocks))
    }

    fn commit(&self, job: JobNumber, totals: Totals) -> Stored<Committed> {
        Box::pin(Arc::clone(&self.0).commit(job, totals))
    }

    fn abandon(&self, job: JobNumber) -> Stored<()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            if inner.transact(move |_, sql| uploads::abandon(sql, job).boxed()).await? {
                drop(tokio::spawn(async move { inner.erase(job).await }));
            }
            Ok(())
        })
    }

    fn job(&self, id: JobId) -> Stored<Option<Job>> {
        self.transact(move |inner, sql| {
            let id = id.clone();
            async move { rows::job_by_id(sql, &inner.specs, &id).await }.boxed()
        })
    }

    fn shared_fields(&self, job: JobNumber) -> Stored<SharedFields> {
        self.transact(move |_, sql| rows::shared_fields(sql, job).boxed())
    }

    fn jobs(
        &self,
        owner: Option<Owner>,
        before: Option<JobNumber>,
        limit: u32,
    ) -> Stored<Vec<Job>> {
        self.transact(move |inner, sql| {
            let owner = owner.clone();
            async move { rows::jobs(sql, &inner.specs, owner.as_ref(), before, limit).await }
                .boxed()
        })
    }

    fn open_jobs(&self) -> Stored<Vec<Job>> {
        self.transact(|inner, sql| rows::open_jobs(sql, &inner.specs).boxed())
    }

    fn change(&self, job: JobNumber, change: Change, now: Timestamp) -> Stored<Option<Job>> {
        self.transact(move |inner, sql| {
            changes::change(sql, &inner.specs, job, change.clone(), now).boxed()
        })
    }

    fn retry(&self, job: JobNumber, which: FailuresToRetry, _: Timestamp) -> Stored<Option<Job>> {
        Box::pin(Arc::clone(&self.0).retry(job, which))
    }

    fn delete(&self, job: JobNumber) -> Stored<()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            match inner.transact(move |_, sql| changes::hide(sql, job).boxed()).await? {
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
            let most = Most { items: items.into(), bytes: bytes as u64 };
            let claim = inner.lost.begin(&replica);
            let claimant = Arc::new(work::Claimant { replica, claim: claim.number(), lease });
            let found = inner
                .transact(move |_, sql| {
                    let (claimant, now) = (Arc::clone(&claimant), Timestamp::now());
                    async move { work::claim(sql, job, &claimant, most, now).await }.boxed()
                })
                .await?;
            let found = found.read()?;
            claim.received();
            Ok(found)
        })
    }

    fn renew(&self, replica: ReplicaId, lease: Duration) -> Stored<Vec<(JobNumber, u64)>> {
        Box::pin(Arc::clone(&self.0).renew(replica, lease))
    }

    fn release(&self, replica: ReplicaId, job: Option<JobNumber>) -> Stored<()> {
        self.transact(move |_, sql| {
            let replica = replica.clone();
            async move { work::release(sql, &replica, job).await }.boxed()
        })
    }

    fn record(
        &self,
        job: JobNumber,
        results: Vec<Answered>,
        now: Timestamp,
    ) -> Stored<Option<Job>> {
        let results = Arc::new(results);
        self.transact(move |inner, sql| {
            let results = Arc::clone(&results);
            async move { work::record(sql, &inner.specs, job, &results, now).await }.boxed()
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
        let query = Query { job, order, only_failed, after, limit, bytes };
        self.transact(move |_, sql| results::page(sql, query).boxed())
    }

    fn ended_before(&self, time: Timestamp, limit: u32) -> Stored<Vec<JobNumber>> {
        self.transact(move |_, sql| rows::ended_before(sql, time, limit).boxed())
    }

    fn due_announcements(
        &self,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Stored<Vec<(Job, u32)>> {
        self.transact(move |inner, sql| {
            changes::due_announcements(sql, &inner.specs, now, lease, limit).boxed()
        })
    }

    fn announced(
        &self,
        job: JobNumber,
        ended_at: Timestamp,
        next_attempt: Option<Timestamp>,
    ) -> Stored<()> {
        self.transact(move |_, sql| changes::announced(sql, job, ended_at, next_attempt).boxed())
    }

    fn check(&self) -> Stored<()> {
        self.transact(|_, sql| async move { sql.execute("SELECT 1", &[]).await.map(drop) }.boxed())
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.0.database.close();
        async {}.boxed()
    }
}
