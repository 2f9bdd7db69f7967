//! `/_admin/limits`: the quotas and limits of each key and model, and how much of them is used.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures_util::future::try_join_all;
use http::StatusCode;
use serde::{Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::auth::Admin;
use super::code::Code;
use super::error::ApiError;
use super::openapi::{AdminErrors, ResetLimitsErrors};
use super::path::Names;
use crate::gateway::Gateway;
use crate::limits::{
    Account, AdaptiveLimit, Capacity, Limiter, PerKind, Planned, QuotaKind, QuotaUsage, Refused,
    RefusedHere, Semaphore as _, SemaphoreUsage, Source, Spending, StoreUnavailable,
};
use crate::prices::NanoDollars;

/// How many keys and models are shown at most.
const MOST_SHOWN: usize = 1000;

/// The limits of the keys and models that were used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitList {
    /// How many there are. At most 1,000 are shown: accepted by Gemini before others, and last used first.
    count: usize,
    limits: Vec<AccountStatus>,
    /// What the keys with a limit on their spend have spent on all models in the last ten minutes.
    spend: Vec<SpendStatus>,
}

/// What a key has spent on all models in the last ten minutes. Calls count at their estimated cost until
/// Gemini reports their tokens.
#[derive(Debug, Serialize, ToSchema)]
struct SpendStatus {
    /// The key's label, or the first 8 hex digits of its SHA-256.
    #[schema(example = "server")]
    key: String,
    /// The limit in US dollars.
    limit_usd: Option<f64>,
    /// Where the limit comes from: `tier` for GEMINI_TIER, `setting` for GEMINI_LIMITS.
    #[schema(value_type = Option<String>, example = "tier")]
    source: Option<Source>,
    /// US dollars of calls that were sent and still count.
    used_usd: f64,
    /// US dollars of calls that are admitted and not sent yet.
    reserved_usd: f64,
    /// How many requests wait for this limit. A batch counts as one.
    waiting: u64,
    /// For how many more seconds nothing is sent because Gemini refused a call for the spend of the key;
    /// null if nothing is paused.
    paused_for_seconds: Option<f64>,
}

/// The limits of one key and model at one moment.
#[derive(Debug, Serialize, ToSchema)]
struct AccountStatus {
    /// The key's label, or the first 8 hex digits of its SHA-256.
    #[schema(example = "server")]
    key: String,
    /// The model.
    #[schema(example = "gemini-3.5-flash-lite")]
    model: String,
    /// The model that Gemini charges for calls to this one. The limits shown are those that both share.
    /// Null if this model itself is charged.
    counts_as: Option<String>,
    #[serde(flatten)]
    quotas: QuotaStatuses,
    /// How many requests wait for these quotas. A batch counts as one.
    waiting: u64,
    /// In how many seconds the quotas would admit a small request that arrives now; null for never.
    next_slot_in_seconds: Option<f64>,
    /// For how many more seconds nothing is sent because Gemini refused a call; null if nothing is paused.
    paused_for_seconds: Option<f64>,
    /// Why this service refuses calls without sending them; null if it does not.
    refused: Option<RefusedStatus>,
    concurrency: AdaptiveStatus,
    /// The adaptive limit of flex calls, which Gemini refuses by themselves.
    flex_concurrency: AdaptiveStatus,
}

/// The quotas by name. A day ends at midnight in California.
#[derive(Debug)]
struct QuotaStatuses(PerKind<QuotaStatus>);

impl Serialize for QuotaStatuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = self.0.iter().filter(|(kind, _)| !kind.is_of_payer());
        serializer.collect_map(shown.map(|(kind, status)| (kind.name(), status)))
    }
}

impl PartialSchema for QuotaStatuses {
    fn schema() -> RefOr<Schema> {
        let shown = QuotaKind::ALL.into_iter().filter(|kind| !kind.is_of_payer());
        let object = shown.fold(ObjectBuilder::new(), |object, kind| {
            object.property(kind.name(), QuotaStatus::schema()).required(kind.name())
        });
        object.into()
    }
}

impl ToSchema for QuotaStatuses {}

/// Calls are refused without being sent, because Gemini refused one permanently. Each process finds this
/// out for itself.
#[derive(Debug, Serialize, ToSchema)]
struct RefusedStatus {
    /// `refusing` until a call may be sent again, to find out whether Gemini still refuses; `probe_due`
    /// if the next call is sent.
    state: RefusedState,
    /// The error code of the refused calls.
    #[schema(value_type = String, example = "account_unfunded")]
    code: Code,
    /// When Gemini refused the first call.
    #[schema(format = DateTime, example = "2026-12-01T12:00:00.000Z")]
    since: String,
    /// In how many seconds a call may be sent again; 0 if the next one is.
    next_probe_in_seconds: f64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RefusedState {
    Refusing,
    ProbeDue,
}

/// One quota.
#[derive(Debug, Serialize, ToSchema)]
struct QuotaStatus {
    /// The limit; null if none is known.
    limit: Option<u64>,
    /// Where the limit comes from: `tier` for GEMINI_TIER, `setting` for GEMINI_LIMITS, `gemini` for a
    /// refusal that named it; null if none is known.
    #[schema(value_type = Option<String>, example = "tier")]
    source: Option<Source>,
    /// How much was sent and still counts.
    used: u64,
    /// How much is admitted and not sent yet.
    reserved: u64,
}

/// An adaptive limit on concurrent calls of this key and model.
#[derive(Debug, Serialize, ToSchema)]
struct AdaptiveStatus {
    /// The current limit. Gemini's refusals for load lower it, successful calls raise it.
    limit: usize,
    /// The highest limit: GEMINI_CONCURRENCY_LIMIT.
    ceiling: usize,
    /// How many calls are admitted.
    in_use: usize,
    /// How many calls wait for this limit.
    waiting: usize,
    /// The limit at which Gemini last refused for load; null if it did not, or accepts that many again.
    broke_at: Option<usize>,
}

impl AccountStatus {
    async fn of(shown: &Arc<Account>, limiter: &Limiter) -> Result<Self, StoreUnavailable> {
        let account = shown.charged();
        let (quotas, usage) = account.quotas().await?;
        let is_alias = !Arc::ptr_eq(&account, shown);
        Ok(Self {
            key: shown.payer().to_string(),
            model: shown.model().to_owned(),
            counts_as: is_alias.then(|| account.model().to_owned()),
            quotas: QuotaStatuses(PerKind::from_fn(|kind| match kind {
                QuotaKind::EnqueuedTokens => QuotaStatus::of_enqueued(limiter, &account),
                kind => QuotaStatus::of(quotas[kind], usage.quotas[kind]),
            })),
            waiting: usage.waiting,
            next_slot_in_seconds: usage.next_free_in.map(milliseconds),
            paused_for_seconds: usage.paused_for.map(milliseconds),
            refused: account.refused_here().map(RefusedStatus::of),
            concurrency: AdaptiveStatus::of(account.concurrency()),
            flex_concurrency: AdaptiveStatus::of(account.concurrency_of(Capacity::Flex)),
        })
    }
}

impl SpendStatus {
    fn of(spending: Spending) -> Self {
        let Spending { payer, planned, usage } = spending;
        let QuotaUsage { limit, used, reserved } = usage[QuotaKind::SpendPerTenMinutes];
        Self {
            key: payer.to_string(),
            limit_usd: limit.map(|limit| NanoDollars(limit).dollars()),
            source: planned.map(|planned| planned.source),
            used_usd: NanoDollars(used).dollars(),
            reserved_usd: NanoDollars(reserved).dollars(),
            waiting: usage.waiting,
            paused_for_seconds: usage.paused_for.map(milliseconds),
        }
    }
}

impl QuotaStatus {
    fn of(planned: Option<Planned>, usage: QuotaUsage) -> Self {
        let QuotaUsage { limit, used, reserved } = usage;
        Self { limit, source: planned.map(|planned| planned.source), used, reserved }
    }

    fn of_enqueued(limiter: &Limiter, account: &Account) -> Self {
        let (planned, used) = limiter.enqueued_usage(account);
        let limit = planned.map(|planned| planned.limit);
        Self::of(planned, QuotaUsage { limit, used, reserved: 0 })
    }
}

impl RefusedStatus {
    fn of(refused: RefusedHere) -> Self {
        let RefusedHere { reason, since, next_probe_in } = refused;
        let state =
            if next_probe_in.is_zero() { RefusedState::ProbeDue } else { RefusedState::Refusing };
        let code = Code::from(&Refused::from(reason));
        let since = format!("{since:.3}");
        Self { state, code, since, next_probe_in_seconds: milliseconds(next_probe_in) }
    }
}

impl AdaptiveStatus {
    fn of(concurrency: &AdaptiveLimit) -> Self {
        let SemaphoreUsage { in_use, waiting, .. } = concurrency.semaphore().usage();
        Self {
            limit: concurrency.limit(),
            ceiling: concurrency.ceiling(),
            in_use,
            waiting,
            broke_at: concurrency.broke_at(),
        }
    }
}

/// Seconds, rounded down to the millisecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// List the limits of all keys and models, by name. Keys are shown only by their label or hash.
#[utoipa::path(
    get,
    path = "/_admin/limits",
    tag = "limits",
    responses((status = OK, description = "The limits", body = LimitList), AdminErrors),
    security(("AdminKey" = []))
)]
pub(super) async fn list_limits(
    _: Admin,
    State(gateway): State<Gateway>,
) -> Result<Json<LimitList>, ApiError> {
    let accounts = gateway.limiter.accounts();
    let shown = accounts.at_most(MOST_SHOWN);
    let limits =
        try_join_all(shown.iter().map(|account| AccountStatus::of(account, &gateway.limiter)))
            .await?;
    let spend = accounts.spending(MOST_SHOWN).await?.into_iter().map(SpendStatus::of).collect();
    Ok(Json(LimitList { count: accounts.count(), limits, spend }))
}

/// Forget what was learned from Gemini about a key and a model: the limits of the settings apply again,
/// without pauses, exhausted days or a lowered adaptive limit, and the model itself is charged. What is
/// used stays.
#[utoipa::path(
    delete,
    path = "/_admin/limits/{key}/{model}",
    tag = "limits",
    params(
        ("key" = String, Path, description = "The key as `/_admin/limits` shows it", example = "server"),
        ("model" = String, Path, description = "The model", example = "gemini-3.5-flash-lite")
    ),
    responses(
        (status = NO_CONTENT, description = "The learned limits are forgotten"),
        ResetLimitsErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn reset_limits(
    _: Admin,
    State(gateway): State<Gateway>,
    Names((key, model)): Names<(String, String)>,
) -> Result<StatusCode, ApiError> {
    if gateway.limiter.accounts().forget(&key, &model) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::unknown_account(&key, &model))
    }
}
