//! One test suite for all stores, and tests of several replicas that share one.

use std::time::Duration;

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::time::Instant;

use super::*;
use crate::limits::accounts::{Accounts, NamedBy};
use crate::limits::budget::{NotReserved, Reservation};
use crate::limits::local::LocalStore;
use crate::limits::model::{
    Cost, Exhausted, LeaseTerms, Limit, LimitScope, Limits, Line, Planned, QuotaKind::*, QuotaPlan,
    Quotas, Resource, Source,
};
use crate::limits::redis::test_server::RedisServer;
use crate::limits::semaphore::{Acquire, NotGranted, PermitRequest, SemaphoreUsage, WaitMode};

const SECOND: Duration = Duration::from_secs(1);

/// Runs each test against a store of this process and against one in Redis.
macro_rules! for_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod local {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::LocalStore::new(5)).await;
            })+
        }

        mod shared {
            $(#[tokio::test]
            async fn $test() {
                let server = super::RedisServer::start().await;
                super::$test(server.store(5).await).await;
            })+
        }
    };
}

mod budgets;
mod leases;
mod replicas;
mod reports;
mod rules;
mod semaphores;

type Shared = Arc<dyn Store>;

fn id(name: &str) -> SemaphoreId {
    SemaphoreId::parse(name).unwrap()
}

async fn semaphore(store: &Shared, limit: usize) -> Arc<dyn Semaphore> {
    store.register(id("images"), limit).await.unwrap().0
}

/// The usage after all commands sent so far.
async fn usage(store: &Shared, semaphore: &Arc<dyn Semaphore>) -> SemaphoreUsage {
    store.refresh().await.unwrap();
    semaphore.usage()
}

/// A request that has to wait.
async fn waiting(store: &Shared, mut request: PermitRequest) -> PermitRequest {
    store.refresh().await.unwrap();
    assert!((&mut request).now_or_never().is_none(), "it has to wait");
    request
}
