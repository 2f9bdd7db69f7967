//! `GET /metrics`, for Prometheus.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::prometheus_text;

use super::error::ApiError;
use crate::gateway::Gateway;

/// Read metrics in Prometheus's text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = OK, description = "The metrics", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(gateway): State<Gateway>) -> Result<impl IntoResponse, ApiError> {
    let text = gateway.metrics.encode().map_err(|_| ApiError::internal())?;
    Ok(([(CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text))
}
