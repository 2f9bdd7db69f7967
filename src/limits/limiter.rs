//! Admission: a request takes a ticket in the queue, and its calls are admitted one after the other.
//!
//! | file | what is in it |
//! |---|---|
//! | `queue` | tickets, and waiting for permits and slots |
//! | `account_queue` | the calls of a request for one account, and how each is admitted |
//! | `reserve` | waiting for quota, and for what the payer may spend |
//! | `admission` | an admitted call, and a call in flight until its outcome is known |
//! | `held_by` | which limit a call waited for the longest |

mod account_queue;
mod admission;
mod held_by;
mod queue;
mod reserve;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::accounts::{Accounts, Tripped};
use super::budget::NotReserved;
use super::local::LocalStore;
use super::model::{Exhausted, QuotaPlan, StoreUnavailable};
use super::semaphore::{NotGranted, Semaphore};
use super::store::Store;

pub use account_queue::{AccountQueue, HeadOfQueue};
pub use admission::{Admission, InFlightCall, PermitsExpired};
pub use held_by::HeldBy;
pub use queue::QueueTicket;

/// Decides which calls are sent to Gemini: a global limit on calls in flight, named semaphores, and
/// the accounts with their quotas.
#[derive(Debug)]
pub struct Limiter {
    /// When it was made. Times that are kept as numbers count from then.
    began: Instant,
    store: Arc<dyn Store>,
    global: Arc<dyn Semaphore>,
    accounts: Accounts,
    waiting: AtomicUsize,
    max_waiting: AtomicUsize,
}

/// Why a call was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The maximum number of requests is already waiting.
    #[error("the queue is full")]
    QueueFull,
    /// The named semaphore was deleted while the call waited for it.
    #[error("the semaphore was deleted")]
    SemaphoreDeleted,
    /// The quotas have no room for the call before its deadline.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Gemini refused an earlier call because the account has no funds.
    #[error("the account has no funds")]
    Unfunded,
    /// The request is for more permits than the semaphore has.
    #[error("the semaphore has no more than {limit} permits")]
    MoreThanLimit {
        /// The semaphore's limit.
        limit: usize,
    },
    /// The shared limits are unavailable.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
    /// The table of accounts is full, and the call has a new key or model.
    #[error("too many keys and models are in use")]
    TooManyAccounts,
}

impl Refused {
    /// The stable code of the reason, for callers and dashboards.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SemaphoreDeleted => "semaphore_deleted",
            Self::Unfunded => "account_unfunded",
            Self::StoreUnavailable(_) => "limits_unavailable",
            Self::TooManyAccounts => "too_many_accounts",
            Self::MoreThanLimit { .. } => "validation_error",
            Self::Exhausted(exhausted) => match exhausted {
                Exhausted::NotBefore { kind: Some(kind), .. } if kind.is_of_payer() => {
                    "spend_limited"
                }
                Exhausted::NotBefore { .. } | Exhausted::NoRoom { .. } => "rate_limited",
                Exhausted::DayExhausted { .. } => "daily_quota_exhausted",
                Exhausted::TooLarge { .. } => "request_exceeds_quota",
                Exhausted::NoQuota { .. } => "no_quota",
            },
        }
    }
}

impl From<NotReserved> for Refused {
    fn from(reason: NotReserved) -> Self {
        match reason {
            NotReserved::Exhausted(reason) => Self::Exhausted(reason),
            NotReserved::StoreUnavailable(reason) => Self::StoreUnavailable(reason),
        }
    }
}

impl From<Tripped> for Refused {
    fn from(reason: Tripped) -> Self {
        match reason {
            Tripped::Unfunded => Self::Unfunded,
            Tripped::NoQuota => Self::Exhausted(Exhausted::NoQuota { kind: None }),
        }
    }
}

impl From<NotGranted> for Refused {
    fn from(reason: NotGranted) -> Self {
        match reason {
            // Only requests that do not wait get this.
            NotGranted::NoneFree => Self::QueueFull,
            NotGranted::Closed => Self::SemaphoreDeleted,
            NotGranted::MoreThanLimit { limit } => Self::MoreThanLimit { limit },
            NotGranted::StoreUnavailable(reason) => Self::StoreUnavailable(reason),
        }
    }
}

/// How busy the limiter is at one moment, in calls. `waiting` is in requests, and a batch is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// The number of calls that may be in flight at once.
    pub limit: usize,
    /// The number of further calls that could start now.
    pub available: usize,
    /// The number of calls in flight.
    pub in_flight: usize,
    /// The number of requests that wait for a quota or a semaphore.
    pub waiting: usize,
}

impl Limiter {
    /// A limiter of this process alone, with at most `limit` calls in flight and `max_waiting` waiting
    /// requests.
    pub fn new(limit: usize, max_waiting: usize, plan: QuotaPlan) -> Arc<Self> {
        Self::with_store(LocalStore::new(limit), limit, max_waiting, plan)
    }

    /// A limiter with the limits of a store whose global limit is `limit`, at most `max_waiting`
    /// waiting requests, and the quotas of `plan`.
    pub fn with_store(
        store: Arc<dyn Store>,
        limit: usize,
        max_waiting: usize,
        plan: QuotaPlan,
    ) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            global: store.global(),
            accounts: Accounts::new(Arc::clone(&store), plan, limit),
            store,
            waiting: AtomicUsize::new(0),
            max_waiting: max_waiting.into(),
        })
    }

    /// Takes over new settings, for waiting requests too: the number of calls in flight, of waiting
    /// requests, and the quotas. What was spent stays counted, and nothing that was granted is taken
    /// away. The limit of calls in flight applies to all replicas, if it is not what it was here.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if the shared limits are unavailable. Nothing is changed then.
    pub async fn reconfigure(
        &self,
        limit: usize,
        max_waiting: usize,
        plan: QuotaPlan,
    ) -> Result<(), StoreUnavailable> {
        if limit != self.concurrency_limit() {
            self.store.set_global(limit).await?;
        }
        self.max_waiting.store(max_waiting, Ordering::Relaxed);
        self.accounts.replan(plan, limit);
        Ok(())
    }

    /// How many calls may be in flight at once, as the settings say.
    pub fn concurrency_limit(&self) -> usize {
        self.accounts.ceiling()
    }

    /// How many requests may wait. The last eighth is for accounts that Gemini has accepted: callers can make
    /// up any number of keys.
    fn max_waiting(&self, is_unproven: bool) -> usize {
        let max = self.max_waiting.load(Ordering::Relaxed);
        if is_unproven { max - max / 8 } else { max }
    }

    /// The store that keeps the limits.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The accounts that calls are made for.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Whether a request that had to wait could join the queue now. A live session is accepted before
    /// it is known which account pays for it.
    ///
    /// # Errors
    /// [`Refused::QueueFull`]; [`Refused::StoreUnavailable`].
    pub fn check_queue(&self) -> Result<(), Refused> {
        self.store.reach()?;
        let Occupancy { available, waiting, .. } = self.occupancy();
        if available == 0 && waiting >= self.max_waiting(false) {
            Err(Refused::QueueFull)
        } else {
            Ok(())
        }
    }

    /// How busy the limiter is now.
    pub fn occupancy(&self) -> Occupancy {
        let global = self.global.usage();
        Occupancy {
            limit: global.limit,
            available: global.available(),
            in_flight: global.in_use,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}
