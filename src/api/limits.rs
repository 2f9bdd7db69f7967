//! `/_admin/limits`: what each key may send to each model, and what is spent of it. For the
//! administrator.

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
use super::error::{ApiError, ErrorBody};
use super::openapi::AdminFailures;
use super::path::Names;
use crate::gateway::Gateway;
use crate::limits::{
    Account, AdaptiveLimit, PerKind, Planned, QuotaKind, QuotaUsage, Refused, RefusedHere,
    Semaphore as _, SemaphoreUsage, Source, StoreUnavailable,
};

/// How many keys and models are shown.
const MOST_SHOWN: usize = 1000;

/// The limits of the keys and models that calls were made for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitList {
    /// How many there are. The first 1,000 are shown: those whose calls Gemini has accepted before
    /// others, and the last used first.
    count: usize,
    limits: Vec<AccountStatus>,
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
    /// The model that Gemini charges for calls of this one, as it said itself; the limits shown are
    /// those that both share. Null where it is charged itself.
    counts_as: Option<String>,
    #[serde(flatten)]
    quotas: QuotaStatuses,
    /// How many requests wait for these quotas; a batch is one.
    waiting: u64,
    /// In how many seconds a small request that comes now could be sent, as far as the quotas go;
    /// null for never.
    next_slot_in_seconds: Option<f64>,
    /// For how many more seconds nothing is sent because Gemini refused a call; null where it did
    /// not.
    paused_for_seconds: Option<f64>,
    /// Why calls are refused here without asking Gemini; null where they are not.
    refused: Option<RefusedStatus>,
    concurrency: AdaptiveStatus,
}

/// Each quota by its name. A day ends at midnight in California.
#[derive(Debug)]
struct QuotaStatuses(PerKind<QuotaStatus>);

impl Serialize for QuotaStatuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(kind, status)| (kind.name(), status)))
    }
}

impl PartialSchema for QuotaStatuses {
    fn schema() -> RefOr<Schema> {
        let object = QuotaKind::ALL.into_iter().fold(ObjectBuilder::new(), |object, kind| {
            object.property(kind.name(), QuotaStatus::schema()).required(kind.name())
        });
        object.into()
    }
}

impl ToSchema for QuotaStatuses {}

/// Calls that are refused here because Gemini refused one for good: each process finds out by
/// itself.
#[derive(Debug, Serialize, ToSchema)]
struct RefusedStatus {
    /// `refusing` until the next call is let through, to find out whether Gemini still refuses;
    /// `probe_due` when the next one that comes is.
    state: RefusedState,
    /// The code that calls are refused with.
    #[schema(value_type = String, example = "account_unfunded")]
    code: &'static str,
    /// When Gemini refused the first of them.
    #[schema(format = DateTime, example = "2026-12-01T12:00:00.000Z")]
    since: String,
    /// In how many seconds the next call is let through; 0 where the next one that comes is.
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
    /// How much may be spent; null where nobody knows a limit.
    limit: Option<u64>,
    /// Who says so: `tier` for GEMINI_TIER, `setting` for GEMINI_LIMITS, `gemini` for a refusal
    /// that named it; null where nobody does.
    #[schema(value_type = Option<String>, example = "tier")]
    source: Option<Source>,
    /// What was sent and still counts.
    used: u64,
    /// What is let in and not sent yet.
    reserved: u64,
}

/// How many calls of this key and model are in flight at once.
#[derive(Debug, Serialize, ToSchema)]
struct AdaptiveStatus {
    /// The most there may be now: Gemini's refusals for load lower it, success raises it.
    limit: usize,
    /// The most there may ever be: GEMINI_CONCURRENCY_LIMIT.
    ceiling: usize,
    /// How many are let in.
    in_use: usize,
    /// How many wait for this limit.
    waiting: usize,
    /// The limit at which Gemini refused last; null where it did not, or takes that many again.
    broke_at: Option<usize>,
}

impl AccountStatus {
    async fn of(shown: &Arc<Account>) -> Result<Self, StoreUnavailable> {
        let account = shown.charged();
        let (quotas, usage) = account.quotas().await?;
        let is_alias = !Arc::ptr_eq(&account, shown);
        Ok(Self {
            key: shown.payer().to_string(),
            model: shown.model().to_owned(),
            counts_as: is_alias.then(|| account.model().to_owned()),
            quotas: QuotaStatuses(PerKind::from_fn(|kind| {
                QuotaStatus::of(quotas[kind], usage.quotas[kind])
            })),
            waiting: usage.waiting,
            next_slot_in_seconds: usage.next_free_in.map(milliseconds),
            paused_for_seconds: usage.paused_for.map(milliseconds),
            refused: account.refused_here().map(RefusedStatus::of),
            concurrency: AdaptiveStatus::of(account.concurrency()),
        })
    }
}

impl QuotaStatus {
    fn of(planned: Option<Planned>, usage: QuotaUsage) -> Self {
        let QuotaUsage { limit, used, reserved } = usage;
        Self { limit, source: planned.map(|planned| planned.source), used, reserved }
    }
}

impl RefusedStatus {
    fn of(refused: RefusedHere) -> Self {
        let RefusedHere { reason, since, next_probe_in } = refused;
        let state =
            if next_probe_in.is_zero() { RefusedState::ProbeDue } else { RefusedState::Refusing };
        let code = ApiError::from(Refused::from(reason)).code();
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

/// Seconds, true to the millisecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// The limits of keys and models, in the order of their names. No key is shown.
#[utoipa::path(
    get,
    path = "/_admin/limits",
    tag = "limits",
    responses((status = OK, description = "The limits", body = LimitList), AdminFailures),
    security(("AdminKey" = []))
)]
pub(super) async fn list_limits(
    _: Admin,
    State(gateway): State<Gateway>,
) -> Result<Json<LimitList>, ApiError> {
    let accounts = gateway.limiter.accounts();
    let shown = accounts.at_most(MOST_SHOWN);
    let limits = try_join_all(shown.iter().map(AccountStatus::of)).await?;
    Ok(Json(LimitList { count: accounts.count(), limits }))
}

/// Forgets what Gemini has taught of a key and a model: the settings count again, with no pause, no
/// used-up day and no lowered concurrency, and the model is charged itself. What is spent stays.
#[utoipa::path(
    delete,
    path = "/_admin/limits/{key}/{model}",
    tag = "limits",
    params(
        ("key" = String, Path, description = "The key as `/_admin/limits` shows it", example = "server"),
        ("model" = String, Path, description = "The model", example = "gemini-3.5-flash-lite")
    ),
    responses(
        (status = NO_CONTENT, description = "It is forgotten"),
        (status = 404, description = "No such key was used with the model", body = ErrorBody),
        AdminFailures
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
