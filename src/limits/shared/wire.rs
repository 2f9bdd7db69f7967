//! What replicas say to the script in Redis and what they hear from it. The script tells what each
//! operation does.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::limits::budget::{Cost, QuotaUsage};
use crate::limits::quota::{PerKind, QuotaKind, Quotas, Resource};

/// The script that changes what is shared, whole: nothing of two calls of it ever mixes.
pub(in crate::limits) static SCRIPT: LazyLock<String> = LazyLock::new(|| {
    let resources = Resource::ALL.map(|resource| format!("'{}'", resource.key()));
    let kinds = QuotaKind::ALL.map(|kind| {
        let (name, unit, window) = (kind.setting(), kind.resource().key(), kind.window());
        format!("{{name = '{name}', unit = '{unit}', window = '{window}'}}")
    });
    let tables = format!(
        "local UNITS = {{{}}}\nlocal KINDS = {{{}}}\n",
        resources.join(", "),
        kinds.join(", ")
    );
    let parts = [
        &tables,
        include_str!("script/members.lua"),
        include_str!("script/semaphore.lua"),
        include_str!("script/lease.lua"),
        include_str!("script/allowance.lua"),
        include_str!("script/budget.lua"),
        include_str!("script/main.lua"),
    ];
    parts.concat()
});

/// Which semaphore: a new one of an old name has another number. The global one is 0.
pub(super) type Generation = u64;

/// The global semaphore's.
pub(super) const GLOBAL: Generation = 0;

/// One thing that a member says.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Op {
    Join {
        run: String,
        limit: usize,
        /// Whether the process has just started, so that its settings count.
        starts: bool,
        known: Vec<Registered>,
        /// What it was a member of before: another name if Redis has forgotten that.
        #[serde(skip_serializing_if = "Option::is_none")]
        lineage: Option<Arc<str>>,
        /// The greatest tenure that this process has heard of, its own included.
        longest_us: u64,
    },
    Retire {
        /// This one, where none is named.
        #[serde(skip_serializing_if = "Option::is_none")]
        member: Option<String>,
    },
    Ask {
        semaphore: Generation,
        ticket: u64,
        permits: usize,
        #[serde(rename = "waited_us", serialize_with = "micros_since")]
        since: Instant,
        wait: bool,
        /// Whether it goes before all that ask for the first time.
        returns: bool,
    },
    Leave {
        semaphore: Generation,
        ticket: u64,
        permits: usize,
    },
    GiveBack {
        semaphore: Generation,
        permits: usize,
    },
    Claim {
        semaphore: Generation,
        permits: usize,
    },
    Look {
        semaphore: Generation,
    },
    OpenBudget {
        account: Arc<str>,
        planned: Quotas,
        /// What of it was set by hand for this model.
        #[serde(skip_serializing_if = "is_without_limit")]
        by_hand: Quotas,
        /// What was set by hand for the accounts that are charged here.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        aliases: BTreeMap<Arc<str>, Quotas>,
        /// What Gemini taught, for a Redis that has forgotten it.
        #[serde(skip_serializing_if = "Option::is_none")]
        learned: Option<Quotas>,
        minute_us: u64,
        midnight_us: u64,
        /// Whether Gemini has answered a call of it.
        proven: bool,
    },
    ProveBudget {
        account: Arc<str>,
    },
    LookUpBudget {
        account: Arc<str>,
    },
    /// What was spent before the account was kept in Redis.
    CountBudget {
        account: Arc<str>,
        /// Within the last minute.
        minute: Cost,
        /// Since the day began, which is so long ago.
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
        #[serde(rename = "patience_us", serialize_with = "micros_until")]
        deadline: Instant,
        midnight_us: u64,
        wait: bool,
    },
    LeaveBudget {
        account: Arc<str>,
        ticket: u64,
    },
    GiveBackBudget {
        account: Arc<str>,
        cost: Cost,
    },
    Depart {
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
        left_us_ago: u64,
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
    },
    /// Gemini named these quotas; the others stay.
    LearnQuotas {
        account: Arc<str>,
        quotas: Quotas,
    },
    ForgetQuotas {
        account: Arc<str>,
    },
    /// What was spent as `from` counts as spent by `account`.
    TakeOverBudget {
        account: Arc<str>,
        from: Arc<str>,
        /// What was set by hand for `from`.
        by_hand: Quotas,
        /// Whether another replica has found it out, and Redis has told.
        heard: bool,
        midnight_us: u64,
    },
    BudgetUsage {
        account: Arc<str>,
        midnight_us: u64,
    },
    Register {
        name: String,
        limit: usize,
    },
    Delete {
        name: String,
    },
    Find {
        name: String,
    },
    Lease {
        semaphore: Generation,
        name: String,
        id: String,
        holder: String,
        permits: usize,
        ttl_us: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    FindLease {
        semaphore: Generation,
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
        /// Only where nobody has found it by its idempotency key.
        unless_found: bool,
    },
    ListLeases {
        semaphore: Generation,
    },
}

impl Op {
    /// The account that it is about.
    pub fn account(&self) -> Option<&Arc<str>> {
        match self {
            Self::OpenBudget { account, .. }
            | Self::ProveBudget { account }
            | Self::LookUpBudget { account }
            | Self::CountBudget { account, .. }
            | Self::ClaimBudget { account, .. }
            | Self::Reserve { account, .. }
            | Self::LeaveBudget { account, .. }
            | Self::GiveBackBudget { account, .. }
            | Self::Depart { account, .. }
            | Self::Settle { account, .. }
            | Self::CloseDay { account, .. }
            | Self::Pause { account, .. }
            | Self::LearnQuotas { account, .. }
            | Self::ForgetQuotas { account }
            | Self::TakeOverBudget { account, .. }
            | Self::BudgetUsage { account, .. } => Some(account),
            _ => None,
        }
    }

    /// Whether it tells of something that is so, whoever says it and how often.
    pub fn can_be_said_twice(&self) -> bool {
        matches!(
            self,
            Self::LearnQuotas { .. }
                | Self::ForgetQuotas { .. }
                | Self::TakeOverBudget { .. }
                | Self::Pause { .. }
                | Self::CloseDay { .. }
                | Self::ProveBudget { .. }
                | Self::ReleaseLease { .. }
        )
    }
}

fn micros_since<S: Serializer>(since: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(micros(since.elapsed()))
}

fn micros_until<S: Serializer>(until: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(micros(until.saturating_duration_since(Instant::now())))
}

/// A time as it is told.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(FAR).min(FAR)
}

/// The longest time and the largest amount that are told: Lua's numbers are written with 14 digits.
const FAR: u64 = 10_000_000_000_000;

/// Quotas as Redis is told of them.
pub(super) fn told(quotas: Quotas) -> Quotas {
    Quotas::from_fn(|kind| quotas[kind].map(|quota| quota.min(FAR)))
}

fn is_without_limit(quotas: &Quotas) -> bool {
    !quotas.is_any()
}

/// What the script answers.
#[derive(Debug, Deserialize)]
pub(super) struct Reply {
    /// Whether the member is none any more: nothing was done then.
    #[serde(default)]
    pub expired: bool,
    /// The format in which others keep the limits, where it is not this program's, and this one's:
    /// nothing was done then.
    pub other_format: Option<String>,
    #[serde(default)]
    pub format: String,
    /// What became of the operations that have a result, by their place in the list.
    #[serde(default)]
    pub results: BTreeMap<usize, Box<RawValue>>,
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// Each semaphore that was touched.
    #[serde(default)]
    pub semaphores: BTreeMap<Generation, Stands>,
    /// In how long something ends that may make room for those who wait.
    pub look_again_in_us: Option<f64>,
    /// In how long anything is granted at all, where Redis may have forgotten who holds what.
    pub opens_in_us: Option<f64>,
    /// By how much Redis's clock was set forward, or back where it is negative.
    pub stepped_us: Option<f64>,
}

/// How a semaphore stands.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Stands {
    pub limit: usize,
    pub out: usize,
    pub waiting: usize,
}

/// What a ticket has come to.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub ticket: u64,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(super) enum Verdict {
    // Of a semaphore.
    Granted { semaphore: Generation, permits: usize },
    MoreThanLimit { limit: usize },
    Closed,
    // Of a budget.
    Reserved { account: Arc<str>, cost: Cost },
    NoQuota,
    TooLarge { kind: QuotaKind, cost: u64, limit: u64 },
    NotBefore { retry_after_us: u64 },
    DayExhausted { retry_after_us: u64 },
    Unopened,
    // Of either, for who does not wait.
    Unavailable,
}

/// What is published.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum News {
    Answers(Vec<Answer>),
    Registered(Registered),
    Deleted(Deleted),
    /// An account is kept in Redis from now on.
    Watched(Account),
    Paused(Paused),
    /// An account is not paused any more.
    Resumed(Account),
    /// Of a new member.
    ReplicaLease(Longest),
    /// The quotas of an account have changed.
    Corrected(Corrected),
    /// Gemini charges another account for the calls of this one.
    Charged(Charged),
}

#[derive(Debug, Deserialize)]
pub(super) struct Charged {
    pub account: Arc<str>,
    /// The other one; `None` for itself.
    pub to: Option<Arc<str>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Corrected {
    pub account: Arc<str>,
    pub quotas: Quotas,
    /// Those of them that Gemini named.
    pub learned: Quotas,
    /// Whether the settings of some replicas differ, of which the lowest limits count.
    #[serde(default)]
    pub settings_differ: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Account {
    pub account: Arc<str>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Paused {
    pub account: Arc<str>,
    pub for_us: u64,
}

/// The greatest tenure of all members.
#[derive(Debug, Deserialize)]
pub(super) struct Longest {
    pub longest_us: u64,
}

/// What is spent of an account.
#[derive(Debug, Deserialize)]
pub(super) struct UsageResult {
    pub quotas: PerKind<Option<QuotaUsage>>,
    pub waiting: u64,
    pub next_free_in_us: Option<u64>,
    pub paused_for_us: Option<u64>,
}

/// A named semaphore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registered {
    pub name: String,
    pub semaphore: Generation,
    pub limit: usize,
}

/// A semaphore that is no more.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Deleted {
    pub name: String,
    pub semaphore: Generation,
}

/// What a new member finds.
#[derive(Debug, Deserialize)]
pub(super) struct Joined {
    #[serde(deserialize_with = "list_or_empty_object")]
    pub semaphores: Vec<Registered>,
    pub lineage: Arc<str>,
    #[serde(flatten)]
    pub longest: Longest,
}

#[derive(Debug, Deserialize)]
pub(super) struct RegisterResult {
    pub semaphore: Generation,
    pub new: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteResult {
    pub deleted: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct FindResult {
    pub semaphore: Generation,
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
    /// As it was asked for.
    pub asked_ttl_us: u64,
    pub ends_in_us: f64,
    /// In digits: too long for a number of Lua's.
    pub fencing_token: String,
}

/// A list; in Lua, where an empty one and an empty object are the same, cjson writes `{}` for it.
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
