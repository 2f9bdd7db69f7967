//! `/_admin/semaphores/{semaphore_id}/leases`: permits for work outside this service. For the
//! administrator.

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
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::openapi::{AdminFailures, BodyFailures};
use super::path::Names;
use super::semaphores::{SemaphoreStatus, registered};
use super::whole_number::whole_number;
use crate::gateway::Gateway;
use crate::generation::InvalidField;
use crate::limits::{Lease, LeaseTerms, Leases, NoLease, SemaphoreId};

/// The longest holder and the longest idempotency key, in characters.
const MAX_TEXT: usize = 128;

/// Asks for a lease.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "holder": "render-7", "permits": 1, "ttl_seconds": 30, "wait_seconds": 10,
    "idempotency_key": "render-7/frame-12"
}))]
pub(super) struct LeaseRequest {
    /// Who it is for, for people to read: 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    holder: String,
    /// How many permits it is for, no more than the semaphore's limit.
    #[serde(default = "one", deserialize_with = "whole_number")]
    #[schema(value_type = usize, minimum = 1, maximum = 1000, default = 1)]
    permits: i64,
    /// For how many seconds it is held without being renewed.
    #[schema(minimum = 1, maximum = 3600)]
    ttl_seconds: f64,
    /// For how many seconds the request waits for its turn, at most.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 600, default = 0)]
    wait_seconds: f64,
    /// A request that was sent before with the same key, and whose lease is held or still waited
    /// for, is answered with that lease: 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128, pattern = r"\S")]
    idempotency_key: Option<String>,
}

/// Renews a lease.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewalRequest {
    /// For how many seconds it is held from now on, and after later renewals; as before where
    /// nothing is said.
    #[schema(minimum = 1, maximum = 3600)]
    ttl_seconds: Option<f64>,
}

/// A lease.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeaseStatus {
    /// Its name, by which it is renewed and released.
    #[schema(value_type = String, example = "6f1c0b7f2f5e4a0f9b1d3c5e7a9b0d2f")]
    lease_id: Arc<str>,
    /// The semaphore it holds.
    #[schema(value_type = String, example = "image-service")]
    semaphore_id: SemaphoreId,
    /// Who it is for.
    #[schema(value_type = String, example = "render-7")]
    holder: Arc<str>,
    /// How many permits it holds.
    #[schema(minimum = 1, maximum = 1000)]
    permits: usize,
    /// When it ends unless it is renewed, in UTC.
    #[schema(format = DateTime, example = "2026-07-28T09:30:00.000Z")]
    expires_at: String,
    /// Greater than the token of every lease granted before. Whoever is sent work with a token
    /// less than one seen already can tell that its lease is over.
    fencing_token: u64,
}

/// The leases of a semaphore.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeaseList {
    /// How many.
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

/// The leases that hold a semaphore, the oldest first.
#[utoipa::path(
    get,
    path = "/_admin/semaphores/{semaphore_id}/leases",
    tag = "leases",
    params(("semaphore_id" = String, Path, description = "Its name", example = "image-service")),
    responses(
        (status = OK, description = "The leases", body = LeaseList),
        (status = 404, description = "There is no such semaphore", body = ErrorBody),
        AdminFailures
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

/// Takes a lease: permits for work outside this service, from those that its own calls take too,
/// first come, first served. It ends by itself unless it is renewed.
///
/// A client that hangs up while it waits leaves the queue. To wait longer than one request may,
/// send the next with the same `idempotency_key` before the last is over: that keeps the place.
#[utoipa::path(
    post,
    path = "/_admin/semaphores/{semaphore_id}/leases",
    tag = "leases",
    params(("semaphore_id" = String, Path, description = "Its name", example = "image-service")),
    request_body = LeaseRequest,
    responses(
        (status = CREATED, description = "Here is the lease", body = LeaseStatus),
        (status = OK, description = "The idempotency key's lease was there", body = LeaseStatus),
        (status = 404, description = "There is no such semaphore", body = ErrorBody),
        (status = 409, description = "Too few permits came free in time (`lease_unavailable`, \
            with `semaphore` and `Retry-After`), or the semaphore was deleted meanwhile \
            (`semaphore_deleted`)", body = ErrorBody),
        (status = 422, description = "A field cannot be used: more permits than the limit, or an \
            idempotency key that came with other terms before, too", body = ErrorBody),
        (status = 503, description = "Too many requests wait (`queue_full`), their bodies take too \
            much memory (`server_busy`), or the limits that the replicas share are unavailable \
            (`limits_unavailable`)", body = ErrorBody),
        BodyFailures,
        AdminFailures
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
    let asked = gateway.leases.acquire(id.clone(), &semaphore, terms, key, wait).await;
    let (lease, new) = asked.map_err(|reason| match reason {
        NoLease::Unavailable => ApiError::no_lease(SemaphoreStatus::of(id, &*semaphore)),
        NoLease::KeyReused => {
            let message = "The key was used for a lease of another holder, permits or ttl_seconds";
            ApiError::invalid(vec![InvalidField::new("idempotency_key", "reused", message)])
        }
        NoLease::Refused(refused) => refused.into(),
    })?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(lease.into())))
}

/// Renews a lease: it ends its `ttl_seconds` from now. A lease that has ended does not come back.
#[utoipa::path(
    put,
    path = "/_admin/semaphores/{semaphore_id}/leases/{lease_id}",
    tag = "leases",
    params(
        ("semaphore_id" = String, Path, description = "Its semaphore", example = "image-service"),
        ("lease_id" = String, Path, description = "Its name", example = "{lease_id}")
    ),
    request_body(content = Option<RenewalRequest>, example = json!({"ttl_seconds": 30})),
    responses(
        (status = OK, description = "The lease, renewed", body = LeaseStatus),
        (status = 404, description = "It was released, has ended, or never was \
            (`lease_not_found`)", body = ErrorBody),
        (status = 422, description = "A field cannot be used", body = ErrorBody),
        BodyFailures,
        AdminFailures
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
    let mut faults = Vec::new();
    let ttl = ttl_seconds.map(|ttl| seconds("ttl_seconds", ttl, Leases::TTL, &mut faults));
    if !faults.is_empty() {
        return Err(ApiError::invalid(faults));
    }
    let unknown = || ApiError::unknown_lease(&semaphore_id, &lease_id);
    let id = SemaphoreId::parse(&semaphore_id).map_err(|_| unknown())?;
    let renewed = gateway.limiter.store().renew_lease(&id, &lease_id, ttl).await?;
    let lease = renewed.map_err(|_| unknown())?;
    Ok(Json(lease.into()))
}

/// Releases a lease. Its permits are free at once; to release it again changes nothing.
#[utoipa::path(
    delete,
    path = "/_admin/semaphores/{semaphore_id}/leases/{lease_id}",
    tag = "leases",
    params(
        ("semaphore_id" = String, Path, description = "Its semaphore", example = "image-service"),
        ("lease_id" = String, Path, description = "Its name", example = "{lease_id}")
    ),
    responses(
        (status = NO_CONTENT, description = "It holds nothing, or nothing any longer"),
        (status = 404, description = "It is of another semaphore (`lease_not_found`)",
            body = ErrorBody),
        AdminFailures
    ),
    security(("AdminKey" = []))
)]
pub(super) async fn release_lease(
    _: Admin,
    State(gateway): State<Gateway>,
    Names((semaphore_id, lease_id)): Names<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let unknown = || ApiError::unknown_lease(&semaphore_id, &lease_id);
    let id = SemaphoreId::parse(&semaphore_id).map_err(|_| unknown())?;
    gateway.limiter.store().release_lease(&id, &lease_id).await?.map_err(|_| unknown())?;
    Ok(StatusCode::NO_CONTENT)
}

fn one() -> i64 {
    1
}

impl LeaseRequest {
    /// What is asked for, and how long it is waited for.
    fn check(&self) -> Result<(LeaseTerms, Duration), ApiError> {
        let mut faults = Vec::new();
        text("holder", &self.holder, &mut faults);
        if let Some(key) = &self.idempotency_key {
            text("idempotency_key", key, &mut faults);
        }
        let permits = usize::try_from(self.permits).unwrap_or(0);
        if !Leases::PERMITS.contains(&permits) {
            faults.push(out_of_range("permits", "a whole number", 1, 1000));
        }
        let ttl = seconds("ttl_seconds", self.ttl_seconds, Leases::TTL, &mut faults);
        let wait = seconds("wait_seconds", self.wait_seconds, Leases::WAIT, &mut faults);
        if faults.is_empty() {
            Ok((LeaseTerms { holder: self.holder.as_str().into(), permits, ttl }, wait))
        } else {
            Err(ApiError::invalid(faults))
        }
    }
}

fn text(field: &str, text: &str, faults: &mut Vec<InvalidField>) {
    if text.trim().is_empty() {
        faults.push(InvalidField::blank(field));
    } else if text.chars().count() > MAX_TEXT {
        let message = format!("Field must have at most {MAX_TEXT} characters");
        faults.push(InvalidField::new(field, "string_too_long", message));
    }
}

/// A time in seconds, or a fault and none.
fn seconds(
    field: &str,
    value: f64,
    range: RangeInclusive<Duration>,
    faults: &mut Vec<InvalidField>,
) -> Duration {
    let time = Duration::try_from_secs_f64(value).ok().filter(|time| range.contains(time));
    time.unwrap_or_else(|| {
        let (least, most) = (range.start().as_secs(), range.end().as_secs());
        faults.push(out_of_range(field, "a number", least, most));
        Duration::ZERO
    })
}

fn out_of_range(field: &str, what: &str, least: impl Display, most: impl Display) -> InvalidField {
    let message = format!("Field must be {what} from {least} to {most}");
    InvalidField::new(field, "out_of_range", message)
}
