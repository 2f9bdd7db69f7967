//! What the script replies, and what it publishes.
//!
//! A notification can come from the script of an older version that keeps the limits in the same
//! format, so the names in notifications change only with the format.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::command::{Registered, SemaphoreGeneration};
use crate::limits::model::{Cost, PerKind, QuotaKind, QuotaUsage, Quotas};

/// The reply to one call of the script.
#[derive(Debug, Deserialize)]
pub(super) struct Reply {
    /// Whether the member's lease is over. Then nothing was done.
    #[serde(default)]
    pub expired: bool,
    /// The format in which other replicas keep the limits, if it is not this program's. Then nothing
    /// was done.
    pub other_format: Option<String>,
    /// This program's format, if there is another.
    #[serde(default)]
    pub format: String,
    /// The results of the commands that have one, by index.
    #[serde(default)]
    pub results: BTreeMap<usize, Box<RawValue>>,
    #[serde(default)]
    pub answers: Vec<TicketAnswer>,
    /// The semaphores that the call touched.
    #[serde(default)]
    pub semaphores: BTreeMap<SemaphoreGeneration, TouchedSemaphore>,
    /// When something ends that may make room for waiting requests.
    pub check_again_in_us: Option<f64>,
    /// When anything is granted again, if Redis may have lost what is held.
    pub opens_in_us: Option<f64>,
    /// By how much Redis's clock was set forward, or back if it is negative.
    pub stepped_us: Option<f64>,
}

/// The state of a semaphore.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct TouchedSemaphore {
    pub limit: usize,
    pub in_use: usize,
    /// How many of those in use leases hold.
    pub leased: usize,
    pub waiting: usize,
}

/// The outcome of a request with a ticket.
#[derive(Debug, Deserialize)]
pub(super) struct TicketAnswer {
    pub ticket: u64,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(super) enum Verdict {
    // Of a semaphore.
    Granted { semaphore: SemaphoreGeneration, permits: usize },
    MoreThanLimit { limit: usize },
    Closed,
    // Of a budget.
    Reserved { account: Arc<str>, cost: Cost },
    NoQuota { kind: Option<QuotaKind> },
    TooLarge { kind: QuotaKind, cost: u64, limit: u64 },
    NotBefore { kind: Option<QuotaKind>, retry_after_us: u64 },
    DayExhausted { kind: Option<QuotaKind>, retry_after_us: u64 },
    Unopened,
    // Of either, for a request that does not wait.
    Unavailable,
}

/// A message that the script publishes to one member or to all.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notification {
    Answers(Vec<TicketAnswer>),
    Registered(Registered),
    Deleted(Deleted),
    /// Redis keeps the account from now on.
    Watched(AccountName),
    Paused(Paused),
    /// The account is no longer paused.
    Resumed(AccountName),
    /// A new member has the longest replica lease.
    #[serde(rename = "replica_lease")]
    LongestLease(LongestLease),
    /// The quotas of an account have changed.
    Corrected(Box<Corrected>),
    /// Gemini charges another account for an account's calls.
    Charged(ChargedAccount),
}

#[derive(Debug, Deserialize)]
pub(super) struct AccountName {
    pub account: Arc<str>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Paused {
    pub account: Arc<str>,
    pub for_us: u64,
    /// The quota for which Gemini refused a call, if it is known.
    pub kind: Option<QuotaKind>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Corrected {
    pub account: Arc<str>,
    pub quotas: Quotas,
    /// Those of them that Gemini named.
    pub learned: Quotas,
    /// Whether the settings of some replicas differ. Then the lowest limits hold.
    #[serde(default)]
    pub settings_differ: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChargedAccount {
    pub account: Arc<str>,
    /// The account that is charged; the account itself if `None`.
    pub to: Option<Arc<str>>,
}

/// The longest replica lease of all members.
#[derive(Debug, Deserialize)]
pub(super) struct LongestLease {
    pub longest_us: u64,
}

/// A semaphore that was deleted.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Deleted {
    pub name: String,
    pub semaphore: SemaphoreGeneration,
}

/// The result of `join`.
#[derive(Debug, Deserialize)]
pub(super) struct Joined {
    #[serde(deserialize_with = "list_or_empty_object")]
    pub semaphores: Vec<Registered>,
    pub lineage: Arc<str>,
    #[serde(flatten)]
    pub longest: LongestLease,
}

/// The result of `budget_usage`.
#[derive(Debug, Deserialize)]
pub(super) struct UsageResult {
    pub quotas: PerKind<Option<QuotaUsage>>,
    pub waiting: u64,
    pub next_free_in_us: Option<u64>,
    pub paused_for_us: Option<u64>,
    pub paused_quota: Option<QuotaKind>,
    pub day_closed_for_us: Option<u64>,
}

/// The result of `report`.
#[derive(Debug, Deserialize)]
pub(super) struct ReportResult {
    #[serde(deserialize_with = "list_or_empty_object")]
    pub reports: Vec<String>,
    /// Whether the member is the first of all.
    pub first: bool,
}

/// The result of `use_login`.
#[derive(Debug, Deserialize)]
pub(super) struct LoginResult {
    pub open: bool,
}

/// The result of `read_past`.
#[derive(Debug, Deserialize)]
pub(super) struct PastResult {
    #[serde(deserialize_with = "list_or_empty_object")]
    pub points: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RegisterResult {
    pub semaphore: SemaphoreGeneration,
    pub new: bool,
    /// The limit that holds.
    pub limit: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteResult {
    pub deleted: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct FindResult {
    pub semaphore: SemaphoreGeneration,
    pub limit: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct LeaseResult {
    pub lease: SharedLease,
    pub new: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReleaseResult {
    pub of_another: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ListResult {
    #[serde(deserialize_with = "list_or_empty_object")]
    pub leases: Vec<SharedLease>,
}

/// A lease as the script keeps it.
#[derive(Debug, Deserialize)]
pub(super) struct SharedLease {
    pub id: String,
    pub name: String,
    pub holder: String,
    pub permits: usize,
    /// The time to live that the client asked for.
    pub asked_ttl_us: u64,
    pub ends_in_us: f64,
    /// In decimal digits: too long for one of Lua's numbers.
    pub fencing_token: String,
}

/// A list. Lua does not tell an empty list from an empty object, and cjson writes `{}` for both.
fn list_or_empty_object<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List<T> {
        Full(Vec<T>),
        Empty {},
    }
    Ok(match List::deserialize(deserializer)? {
        List::Full(list) => list,
        List::Empty {} => Vec::new(),
    })
}
