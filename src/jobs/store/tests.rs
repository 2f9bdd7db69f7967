//! One test suite for both stores, and tests of what only one of them can do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use rustix::process::Signal;
use tempfile::TempDir;

use super::*;
use crate::jobs::model::{
    Answered, Block, Change, Failures, FailuresToRetry, Job, JobId, JobKind, JobNumber, JobSpec,
    JobState, NewBlock, NewJob, Order, Owner, PauseReason, ReplicaId, SharedFields, Totals,
};
use crate::prices::NanoDollars;

#[expect(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/support/postgres_launcher.rs"]
mod postgres_launcher;

use postgres_launcher::Postgres;

/// Runs each test against a database in a file and against one in PostgreSQL.
macro_rules! for_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Database::in_file()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Database::in_postgres().await).await;
            })+
        }
    };
}

mod faults_of_files;
mod faults_of_postgres;
mod full_disks;
mod lives;
mod measurement;
mod power;
mod readers;
mod work;

/// Longer than any test.
const LEASE: Duration = Duration::from_secs(3600);

/// What is searched for on the disk.
const MARKER: &str = "A-PROMPT-THAT-NOBODY-MAY-SEE";

type Store = Arc<dyn JobStore>;

/// Where a test keeps its jobs.
enum Database {
    File(TempDir),
    Postgres(Box<Postgres>),
}

impl Database {
    fn in_file() -> Self {
        Self::File(TempDir::new().unwrap())
    }

    async fn in_postgres() -> Self {
        Self::Postgres(Box::new(Postgres::start().await))
    }

    fn open(&self) -> Store {
        match self {
            Self::File(folder) => in_folder(folder.path()),
            Self::Postgres(server) => in_database(server),
        }
    }

    /// Stores of two replicas. A file is for one process, so there it is one store.
    fn open_two(&self) -> [Store; 2] {
        let first = self.open();
        match self {
            Self::File(_) => [Arc::clone(&first), first],
            Self::Postgres(_) => [first, self.open()],
        }
    }
}

fn in_folder(folder: &Path) -> Store {
    open(&StoreSettings { folder: folder.to_owned(), database: None })
}

fn in_database(server: &Postgres) -> Store {
    open(&StoreSettings { folder: "/no/such/folder".into(), database: Some(server.url().into()) })
}

fn replica(name: &str) -> ReplicaId {
    ReplicaId(name.to_owned())
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn new_job() -> NewJob {
    let spec = JobSpec {
        kind: JobKind::Chat,
        name: Some("a \0 name".to_owned()),
        model: None,
        external_semaphore_id: None,
        service_tier: None,
        webhook_url: None,
        shared_bytes: 40,
    };
    let (id, owner) = (JobId::random(), Owner::Admin);
    let shared = SharedFields::from_iter([("system".to_owned(), MARKER.into())]);
    NewJob { id, owner, spec, shared, idempotency_key: None, created_at: at(0) }
}

fn line(index: u64) -> String {
    format!("{{\"prompt\":\"{MARKER} {index}\"}}\n")
}

fn block(first: u64, items: u64) -> NewBlock {
    let lines: String = (first..first + items).map(line).collect();
    NewBlock { first, lines: lines.into(), items: items as u32 }
}

/// Blocks of 10 items.
fn blocks(items: u64) -> Vec<NewBlock> {
    (0..items).step_by(10).map(|first| block(first, 10.min(items - first))).collect()
}

fn totals(items: u64) -> Totals {
    Totals { items, bytes: items * 40, content: [items as u8; 32] }
}

/// Stores a job with this many items.
async fn upload(store: &Store, job: NewJob, items: u64) -> Job {
    let number = store.begin(job, replica("a")).await.unwrap();
    store.append(number, blocks(items)).await.unwrap();
    match store.commit(number, totals(items)).await.unwrap() {
        Committed::New(job) => *job,
        other => panic!("{other:?}"),
    }
}

fn answered(index: u64) -> Answered {
    Answered {
        index,
        line: Bytes::from(format!("{{\"answer\":\"{MARKER} {index}\"}}")),
        failure: None,
        retryable: false,
        input_tokens: 3,
        output_tokens: 5,
        cost: NanoDollars(7),
    }
}

fn failed(index: u64, code: &str, retryable: bool) -> Answered {
    Answered { failure: Some(code.to_owned()), retryable, ..answered(index) }
}

/// Claims all that there is to claim at once.
async fn claim_all(store: &Store, job: JobNumber, name: &str) -> Vec<Block> {
    let mut all = Vec::new();
    loop {
        let some = store.claim(job, replica(name), 1000, 1 << 20, LEASE).await.unwrap().blocks;
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

async fn record(store: &Store, job: JobNumber, results: Vec<Answered>) -> Job {
    store.record(job, results, at(1)).await.unwrap().expect("it is there")
}

async fn job(store: &Store, job: &Job) -> Job {
    store.job(job.id.clone()).await.unwrap().expect("it is there")
}

/// The indices of all results, page by page.
async fn indices(store: &Store, job: JobNumber, order: Order, only_failed: bool) -> Vec<u64> {
    let (mut after, mut found) = (0, Vec::new());
    loop {
        let page = store.results(job, order, only_failed, after, 7, 1 << 20).await.unwrap();
        let Some(last) = page.results.last() else { return found };
        after = last.next;
        found.extend(page.results.iter().map(|result| result.index));
        for result in &page.results {
            assert_eq!(result.line, answered(result.index).line);
        }
    }
}
