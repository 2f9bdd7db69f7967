//! `GET /`: whether the service is healthy, how busy it is, and how it is configured. `GET /livez` and
//! `GET /readyz`: the probes of load balancers and orchestrators.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::gateway::{Gateway, NotReady};
use crate::gemini::Model;

/// The state of the service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `healthy`, or `degraded` while the limits that the replicas share are unavailable.
    #[schema(value_type = String, example = "healthy")]
    status: &'static str,
    /// The name of the service.
    #[schema(value_type = String)]
    service: &'static str,
    /// The version of the service.
    #[schema(value_type = String)]
    version: &'static str,
    /// Whether a simulator answers in place of Gemini.
    simulated: bool,
    concurrency_status: ConcurrencyStatus,
    /// The limits that the replicas share through Redis; `null` if this replica has its own limits.
    shared_limits: Option<SharedLimits>,
    /// Whether the server has an admin key.
    admin_key_configured: bool,
    /// Whether the server has a Gemini key of its own.
    server_credentials_configured: bool,
    /// Whether the server's key pays for requests without a key.
    environment_fallback: bool,
    default_models: DefaultModels,
}

/// How busy the service is.
#[derive(Debug, Serialize, ToSchema)]
struct ConcurrencyStatus {
    /// How many calls may be in flight at once. If limits are shared, this and the next two values are
    /// those of all replicas, as last reported.
    global_concurrency_limit: usize,
    /// How many more could start now.
    current_available_slots: usize,
    /// How many are in flight.
    in_flight: usize,
    /// How many requests wait in this replica. A batch counts as one.
    waiting: usize,
    /// How many named semaphores there are.
    external_semaphores_count: usize,
    /// The models for which fewer calls run at once for now, because Gemini refused some for load, each
    /// with the lowest limit of any key. `/_admin/limits` shows the keys.
    adaptive_limits: BTreeMap<String, usize>,
}

/// The limits that the replicas share.
#[derive(Debug, Serialize, ToSchema)]
struct SharedLimits {
    /// Whether Redis can be reached. Otherwise no call starts, and new requests are refused with 503
    /// `limits_unavailable`.
    connected: bool,
}

/// Whether this replica can take requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadinessStatus {
    /// `ready` or `not_ready`.
    #[schema(value_type = String, example = "ready")]
    status: &'static str,
    /// Why it is not ready: `shutting_down`, `limits_unavailable` or `job_store_unavailable`.
    #[schema(value_type = Vec<String>)]
    reasons: Vec<&'static str>,
}

/// The models of requests that name none.
#[derive(Debug, Serialize, ToSchema)]
struct DefaultModels {
    /// For chats.
    #[schema(value_type = String)]
    chat: Model,
    /// For structured output and stories.
    #[schema(value_type = String)]
    structured: Model,
}

/// The lowered limits, by model.
fn adaptive_limits(gateway: &Gateway) -> BTreeMap<String, usize> {
    let mut lowered = BTreeMap::new();
    for account in gateway.limiter.accounts().lowered() {
        let limit = account.concurrency().limit();
        if limit < account.concurrency().ceiling() {
            let lowest = lowered.entry(account.model().to_owned()).or_insert(limit);
            *lowest = limit.min(*lowest);
        }
    }
    lowered
}

/// See the state of the service. Needs no key.
#[utoipa::path(
    get,
    path = "/",
    tag = "service",
    responses((status = OK, description = "The service is up", body = Health))
)]
pub(super) async fn health(State(gateway): State<Gateway>) -> Json<Health> {
    let limiter = gateway.limiter.occupancy();
    let store = gateway.limiter.store();
    let connected = store.reach().is_ok();
    Json(Health {
        status: if connected { "healthy" } else { "degraded" },
        service: "Gemini Concurrent Generation Service",
        version: env!("CARGO_PKG_VERSION"),
        simulated: gateway.simulated,
        concurrency_status: ConcurrencyStatus {
            global_concurrency_limit: limiter.limit,
            current_available_slots: limiter.available,
            in_flight: limiter.in_flight,
            waiting: limiter.waiting,
            external_semaphores_count: store.named().len(),
            adaptive_limits: adaptive_limits(&gateway),
        },
        shared_limits: store.is_shared().then_some(SharedLimits { connected }),
        admin_key_configured: gateway.config.admin_api_key.is_some(),
        server_credentials_configured: gateway.config.gemini_api_key.is_some(),
        environment_fallback: gateway.config.environment_fallback,
        default_models: DefaultModels {
            chat: gateway.defaults.chat_model.clone(),
            structured: gateway.defaults.structured_model.clone(),
        },
    })
}

/// Check that the process answers. Needs no key.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "service",
    responses((status = OK, description = "It answers", body = String, content_type = "text/plain"))
)]
pub(super) async fn livez() -> &'static str {
    "ok"
}

/// Check that this replica can take requests: its limits and its jobs can be used, and it is not shutting
/// down. Needs no key.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "service",
    responses(
        (status = OK, description = "It can", body = ReadinessStatus),
        (status = SERVICE_UNAVAILABLE, description = "It cannot now", body = ReadinessStatus)
    )
)]
pub(super) async fn readyz(State(gateway): State<Gateway>) -> impl IntoResponse {
    let reasons = gateway.readiness.reasons().await.into_iter().map(name).collect::<Vec<_>>();
    let (status, text) = match reasons.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    (status, Json(ReadinessStatus { status: text, reasons }))
}

fn name(reason: NotReady) -> &'static str {
    match reason {
        NotReady::ShuttingDown => "shutting_down",
        NotReady::LimitsUnavailable => "limits_unavailable",
        NotReady::JobStoreUnavailable => "job_store_unavailable",
    }
}
