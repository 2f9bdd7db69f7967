//! `/_admin/semaphores/{semaphore_id}/leases`: permits for programs outside this service.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::error::{ApiError, ErrorBody};
use super::json::JsonBody;
use super::openapi::{AdminErrors, RenewLeaseErrors, SemaphoreErrors, TakeLeaseErrors};
use super::path::Names;
use super::semaphore_status::SemaphoreStatus;
use super::semaphores::registered;
use super::whole_number::whole_number;
use crate::gateway::Gateway;
use crate::generation::InvalidField;
use crate::limits::{Lease, LeaseTerms, Leases, NoLease, SemaphoreId};

/// The longest holder and the longest idempotency key, in characters.
const MAX_TEXT: usize = 128;

/// A request for a lease.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "holder": "render-7", "permits": 1, "ttl_seconds": 30, "wait_seconds": 10,
    "idempotency_key": "render-7/frame-12"
}))]
pub(super) struct LeaseRequest {
    /// A name for the holder of the lease, shown to operators: 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    holder: String,
    /// How many permits the lease holds: no more than the limit of the semaphore.
    #[serde(default = "one", deserialize_with = "whole_number")]
    #[schema(value_type = usize, minimum = 1, maximum = 1000, default = 1)]
    permits: i64,
    /// After how many seconds the lease expires unless it is renewed.
    #[schema(minimum = 1, maximum = 3600)]
    ttl_seconds: f64,
    /// How many seconds the request waits for permits, at most.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 600, default = 0)]
    wait_seconds: f64,
    /// If an earlier request had the same key, and its lease is held or still waited for, the answer is
    /// that lease: 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    idempotency_key: Option<String>,
}

/// A renewal of a lease.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewalRequest {
    /// After how many seconds the lease expires, from now and from later renewals; unchanged if absent.
    #[schema(minimum = 1, maximum = 3600)]
    ttl_seconds: Option<f64>,
}

/// A lease.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeaseStatus {
    /// The id by which the lease is renewed and released.
    #[schema(value_type = String, example = "6f1c0b7f2f5e4a0f9b1d3c5e7a9b0d2f")]
    lease_id: Arc<str>,
    /// The semaphore whose permits it holds.
    #[schema(value_type = String, example = "image-service")]
    semaphore_id: SemaphoreId,
    /// The name of the holder.
    #[schema(value_type = String, example = "render-7")]
    holder: Arc<str>,
    /// How many permits it holds.
    #[schema(minimum = 1, maximum = 1000)]
    permits: usize,
    /// When it expires unless it is renewed, in UTC.
    #[schema(format = DateTime, example = "2026-07-28T09:30:00.000Z")]
    expires_at: String,
    /// Greater than the token of every lease granted before. A resource that receives a token smaller than
    /// one it has already seen knows that the lease of the smaller one is over.
    fencing_token: u64,
}

/// The leases of a semaphore.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeaseList {
    /// How many leases there are.
    count: usize,
    leases: Vec<LeaseStatus>,
}

impl From<Lease> for LeaseStatus {
    fn from(lease: Lease) -> Self {
        let Lease { id, semaphore_id, terms, expires_at, fencing_token, .. } = lease;
        let LeaseTerms { holder, permits, .. } = terms;
        let expires_at = format!("{expires_at:.3}");
        Self { lease_id: id, semaphore_id, holder, permits, expires_at, fencing_token }
    }
}

/// List the leases of a semaphore, oldest first.
#[utoipa::path(
    get,
    path = "/_admin/semaphores/{semaphore_id}/leases",
    tag = "leases",
    params(("semaphore_id" = String, Path, description = "The name of the semaphore", example = "image-service")),
    responses(
        (status = OK, description = "The leases", body = LeaseList),
        SemaphoreErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn list_leases(
    _: Admin,
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
) -> Result<Json<LeaseList>, ApiError> {
    let (_, semaphore) = registered(&gateway, &id).await?;
    let leases = gateway.limiter.store().leases(&semaphore).await?;
    let leases: Vec<_> = leases.into_iter().map(Into::into).collect();
    Ok(Json(LeaseList { count: leases.len(), leases }))
}

/// Take a lease: permits for work outside this service. Leases and this service's own calls are served in
/// the order in which they arrive. A lease expires unless it is renewed.
///
/// A client that disconnects while it waits leaves the queue. To wait longer than one request may, send
/// the next one with the same `idempotency_key` before the last one ends: that keeps the position in the
/// queue.
#[utoipa::path(
    post,
    path = "/_admin/semaphores/{semaphore_id}/leases",
    tag = "leases",
    params(("semaphore_id" = String, Path, description = "The name of the semaphore", example = "image-service")),
    request_body = LeaseRequest,
    responses(
        (status = CREATED, description = "The new lease", body = LeaseStatus),
        (status = OK, description = "The existing lease of the idempotency key", body = LeaseStatus),
        TakeLeaseErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn take_lease(
    _: Admin,
    State(gateway): State<Gateway>,
    Names(id): Names<String>,
    JsonBody(request): JsonBody<LeaseRequest>,
) -> Result<(StatusCode, Json<LeaseStatus>), ApiError> {
    let (terms, wait) = request.check()?;
    let (id, semaphore) = registered(&gateway, &id).await?;
    let key = request.idempotency_key.as_deref();
    let lease = gateway.leases.acquire(id.clone(), &semaphore, terms, key, wait).await;
    let (lease, new) = lease.map_err(|reason| match reason {
        NoLease::Unavailable => ApiError::no_lease(SemaphoreStatus::of(id, &*semaphore)),
        NoLease::KeyReused => {
            let message =
                "The key was used for a lease with another holder, permits or ttl_seconds";
            ApiError::invalid(vec![InvalidField::new("idempotency_key", "reused", message)])
        }
        NoLease::Refused(refused) => refused.into(),
    })?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(lease.into())))
}

/// Renew a lease: it expires `ttl_seconds` from now. A lease that has expired cannot be renewed.
#[utoipa::path(
    put,
    path = "/_admin/semaphores/{semaphore_id}/leases/{lease_id}",
    tag = "leases",
    params(
        ("semaphore_id" = String, Path, description = "The name of the semaphore", example = "image-service"),
        ("lease_id" = String, Path, description = "The id of the lease", example = "{lease_id}")
    ),
    request_body(content = Option<RenewalRequest>, example = json!({"ttl_seconds": 30})),
    responses(
        (status = OK, description = "The renewed lease", body = LeaseStatus),
        RenewLeaseErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn renew_lease(
    _: Admin,
    State(gateway): State<Gateway>,
    Names((semaphore_id, lease_id)): Names<(String, String)>,
    body: Option<JsonBody<RenewalRequest>>,
) -> Result<Json<LeaseStatus>, ApiError> {
    let JsonBody(RenewalRequest { ttl_seconds }) = body.unwrap_or_default();
    let mut errors = Vec::new();
    let ttl = ttl_seconds.map(|ttl| seconds("ttl_seconds", ttl, Leases::TTL, &mut errors));
    if !errors.is_empty() {
        return Err(ApiError::invalid(errors));
    }
    let unknown = || ApiError::unknown_lease(&semaphore_id, &lease_id);
    let id = SemaphoreId::parse(&semaphore_id).map_err(|_| unknown())?;
    let renewed = gateway.limiter.store().renew_lease(&id, &lease_id, ttl).await?;
    let lease = renewed.map_err(|_| unknown())?;
    Ok(Json(lease.into()))
}

/// Release a lease. Its permits are free at once. Releasing it again has no effect.
#[utoipa::path(
    delete,
    path = "/_admin/semaphores/{semaphore_id}/leases/{lease_id}",
    tag = "leases",
    params(
        ("semaphore_id" = String, Path, description = "The name of the semaphore", example = "image-service"),
        ("lease_id" = String, Path, description = "The id of the lease", example = "{lease_id}")
    ),
    responses(
        (status = NO_CONTENT, description = "The lease holds no permits (any more)"),
        (status = 404, description = "The lease belongs to another semaphore (`lease_not_found`)",
            body = ErrorBody),
        AdminErrors
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn release_lease(
    _: Admin,
    State(gateway): State<Gateway>,
    Names((semaphore_id, lease_id)): Names<(String, String)>,
) -> Result<StatusCode, ApiError> {
    release(&gateway, &semaphore_id, &lease_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Releases a lease.
///
/// # Errors
/// 404 if it belongs to another semaphore; 503 if the limits are shared and cannot be reached.
pub(crate) async fn release(
    gateway: &Gateway,
    semaphore_id: &str,
    lease_id: &str,
) -> Result<(), ApiError> {
    let unknown = || ApiError::unknown_lease(semaphore_id, lease_id);
    let id = SemaphoreId::parse(semaphore_id).map_err(|_| unknown())?;
    gateway.limiter.store().release_lease(&id, lease_id).await?.map_err(|_| unknown())
}

fn one() -> i64 {
    1
}

impl LeaseRequest {
    /// The checked terms, and how long to wait for the lease.
    fn check(&self) -> Result<(LeaseTerms, Duration), ApiError> {
        let mut errors = Vec::new();
        text("holder", &self.holder, &mut errors);
        if let Some(key) = &self.idempotency_key {
            text("idempotency_key", key, &mut errors);
        }
        let permits = usize::try_from(self.permits).unwrap_or(0);
        if !Leases::PERMITS.contains(&permits) {
            errors.push(out_of_range("permits", "a whole number", 1, 1000));
        }
        let ttl = seconds("ttl_seconds", self.ttl_seconds, Leases::TTL, &mut errors);
        let wait = seconds("wait_seconds", self.wait_seconds, Leases::WAIT, &mut errors);
        if errors.is_empty() {
            Ok((LeaseTerms { holder: self.holder.as_str().into(), permits, ttl }, wait))
        } else {
            Err(ApiError::invalid(errors))
        }
    }
}

fn text(field: &str, text: &str, errors: &mut Vec<InvalidField>) {
    if text.trim().is_empty() {
        errors.push(InvalidField::blank(field));
    } else if text.chars().count() > MAX_TEXT {
        let message = format!("Field must have at most {MAX_TEXT} characters");
        errors.push(InvalidField::new(field, "string_too_long", message));
    }
}

/// A time in seconds. If it is out of range, adds an error and gives zero.
fn seconds(
    field: &str,
    value: f64,
    range: RangeInclusive<Duration>,
    errors: &mut Vec<InvalidField>,
) -> Duration {
    let time = Duration::try_from_secs_f64(value).ok().filter(|time| range.contains(time));
    time.unwrap_or_else(|| {
        let (least, most) = (range.start().as_secs(), range.end().as_secs());
        errors.push(out_of_range(field, "a number", least, most));
        Duration::ZERO
    })
}

fn out_of_range(field: &str, what: &str, least: impl Display, most: impl Display) -> InvalidField {
    let message = format!("Field must be {what} from {least} to {most}");
    InvalidField::new(field, "out_of_range", message)
}
