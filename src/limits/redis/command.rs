//! The commands that replicas send to the script. The script documents what each one does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use crate::limits::model::{Cost, QuotaKind, Quotas};

/// Identifies a semaphore. A new semaphore with a deleted one's name has another generation. The
/// global semaphore is 0.
pub(super) type SemaphoreGeneration = u64;

/// The global semaphore.
pub(super) const GLOBAL: SemaphoreGeneration = 0;

/// One command of a member.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Command {
    Join {
        run: String,
        limit: usize,
        /// Whether the process has just started, so that its settings apply.
        starts: bool,
        known: Vec<Registered>,
        /// The data set that this process was a member of before. Redis has another name for it if
        /// it has lost that data.
        #[serde(skip_serializing_if = "Option::is_none")]
        lineage: Option<Arc<str>>,
        /// The longest replica lease that this process knows of, its own included.
        longest_us: u64,
    },
    Retire {
        /// The member that retires; the sender if `None`.
        #[serde(skip_serializing_if = "Option::is_none")]
        member: Option<String>,
    },
    RequestPermits {
        semaphore: SemaphoreGeneration,
        ticket: u64,
        permits: usize,
        #[serde(rename = "waited_us", serialize_with = "micros_since")]
        since: Instant,
        wait: bool,
        /// Whether it is served ahead of all first requests.
        returns: bool,
    },
    CancelRequest {
        semaphore: SemaphoreGeneration,
        ticket: u64,
        permits: usize,
    },
    ReleasePermits {
        semaphore: SemaphoreGeneration,
        permits: usize,
    },
    ClaimPermits {
        semaphore: SemaphoreGeneration,
        permits: usize,
    },
    Refresh {
        semaphore: SemaphoreGeneration,
    },
    OpenBudget {
        account: Arc<str>,
        planned: Box<Quotas>,
        /// The limits among them that were set by hand for this model.
        #[serde(skip_serializing_if = "is_unlimited")]
        by_hand: Box<Quotas>,
        /// The limits set by hand for the accounts that are charged here.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        aliases: BTreeMap<Arc<str>, Quotas>,
        /// The quotas that Gemini named, in case Redis has lost them.
        #[serde(skip_serializing_if = "Option::is_none")]
        learned: Option<Box<Quotas>>,
        minute_us: u64,
        midnight_us: u64,
        /// Whether Gemini has accepted a call of the account.
        proven: bool,
    },
    ProveBudget {
        account: Arc<str>,
    },
    LookUpBudget {
        account: Arc<str>,
    },
    /// Adds what was spent before Redis kept the account.
    CountBudget {
        account: Arc<str>,
        /// Within the last minute.
        minute: Cost,
        /// Since the day began, `began_us_ago` ago.
        today: Cost,
        began_us_ago: u64,
        midnight_us: u64,
    },
    ClaimBudget {
        account: Arc<str>,
        cost: Cost,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
    },
    Reserve {
        account: Arc<str>,
        ticket: u64,
        cost: Cost,
        line: &'static str,
        #[serde(rename = "waited_us", serialize_with = "micros_since")]
        since: Instant,
        #[serde(rename = "time_limit_us", serialize_with = "micros_until")]
        deadline: Instant,
        midnight_us: u64,
        wait: bool,
    },
    CancelReserve {
        account: Arc<str>,
        ticket: u64,
    },
    GiveBackBudget {
        account: Arc<str>,
        cost: Cost,
    },
    StartCall {
        account: Arc<str>,
        ticket: u64,
        cost: Cost,
        midnight_us: u64,
        by: Arc<str>,
    },
    Settle {
        account: Arc<str>,
        ticket: u64,
        counted: Cost,
        actual: Cost,
        sent_us_ago: u64,
        midnight_us: u64,
        by: Arc<str>,
    },
    CloseDay {
        account: Arc<str>,
        for_us: u64,
    },
    Pause {
        account: Arc<str>,
        for_us: u64,
        /// The quota for which Gemini refused a call, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<QuotaKind>,
    },
    /// Sets the quotas that Gemini named. The others stay.
    LearnQuotas {
        account: Arc<str>,
        quotas: Quotas,
    },
    ForgetQuotas {
        account: Arc<str>,
    },
    /// Moves what `from` has spent to `account`.
    TransferBudget {
        account: Arc<str>,
        from: Arc<str>,
        /// The limits set by hand for `from`.
        by_hand: Quotas,
        /// Whether this replica learned of it from Redis.
        from_replica: bool,
        midnight_us: u64,
    },
    BudgetUsage {
        account: Arc<str>,
        midnight_us: u64,
    },
    /// Sets the limit of the global semaphore.
    SetGlobalLimit {
        limit: usize,
    },
    Register {
        name: String,
        limit: usize,
        /// Whether the limit is in this replica's settings. Of several replicas' the lowest holds.
        of_setting: bool,
    },
    Delete {
        name: String,
    },
    Find {
        name: String,
    },
    Lease {
        semaphore: SemaphoreGeneration,
        name: String,
        id: String,
        holder: String,
        permits: usize,
        ttl_us: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    FindLease {
        semaphore: SemaphoreGeneration,
        key: String,
    },
    RenewLease {
        name: String,
        id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl_us: Option<u64>,
    },
    ReleaseLease {
        name: String,
        id: String,
        /// Leaves the lease alone if a request has found it by its idempotency key.
        unless_found: bool,
    },
    ListLeases {
        semaphore: SemaphoreGeneration,
    },
    Report {
        report: String,
        /// By window.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        points: BTreeMap<&'static str, String>,
    },
    /// Reads a part of the past, from the first to the last index. Negative ones count from the end.
    ReadPast {
        window: &'static str,
        from: i64,
        to: i64,
    },
    OpenLogin {
        id: String,
        idle_us: u64,
        longest_us: u64,
    },
    UseLogin {
        id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        idle_us: Option<u64>,
    },
    CloseLogin {
        id: String,
    },
}

impl Command {
    /// The account that the command is about.
    pub fn account(&self) -> Option<&Arc<str>> {
        match self {
            Self::OpenBudget { account, .. }
            | Self::ProveBudget { account }
            | Self::LookUpBudget { account }
            | Self::CountBudget { account, .. }
            | Self::ClaimBudget { account, .. }
            | Self::Reserve { account, .. }
            | Self::CancelReserve { account, .. }
            | Self::GiveBackBudget { account, .. }
            | Self::StartCall { account, .. }
            | Self::Settle { account, .. }
            | Self::CloseDay { account, .. }
            | Self::Pause { account, .. }
            | Self::LearnQuotas { account, .. }
            | Self::ForgetQuotas { account }
            | Self::TransferBudget { account, .. }
            | Self::BudgetUsage { account, .. } => Some(account),
            _ => None,
        }
    }

    /// Whether the command has the same effect when it is sent again, by any member.
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self,
            Self::LearnQuotas { .. }
                | Self::ForgetQuotas { .. }
                | Self::TransferBudget { .. }
                | Self::Pause { .. }
                | Self::CloseDay { .. }
                | Self::ProveBudget { .. }
                | Self::ReleaseLease { .. }
                | Self::CloseLogin { .. }
        )
    }
}

/// A named semaphore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registered {
    pub name: String,
    pub semaphore: SemaphoreGeneration,
    pub limit: usize,
}

fn micros_since<S: Serializer>(since: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(micros(since.elapsed()))
}

fn micros_until<S: Serializer>(until: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(micros(until.saturating_duration_since(Instant::now())))
}

/// A time in microseconds, as it is sent.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(MAX_NUMBER).min(MAX_NUMBER)
}

/// The largest number that is sent. Lua's numbers are written with 14 digits.
const MAX_NUMBER: u64 = 10_000_000_000_000;

/// Quotas as they are sent.
pub(super) fn bounded(quotas: Quotas) -> Quotas {
    Quotas::from_fn(|kind| quotas[kind].map(|quota| quota.min(MAX_NUMBER)))
}

fn is_unlimited(quotas: &Quotas) -> bool {
    !quotas.is_any()
}
