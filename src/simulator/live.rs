//! Live sessions over WebSockets.
//!
//! Source: Google's SDKs, `live` and live interactions; a recorded session.

mod bidi;
mod interactions;
mod session;
mod socket;

use axum::Router;
use axum::routing::get;

use super::state::Simulator;

/// The WebSocket endpoints.
pub(super) fn router() -> Router<Simulator> {
    ["v1", "v1beta", "v1alpha"].into_iter().fold(Router::new(), |router, version| {
        let service = format!("/ws/google.ai.generativelanguage.{version}.GenerativeService");
        router
            .route(&format!("{service}.BidiGenerateContent"), get(bidi::open))
            .route(&format!("{service}.BidiGenerateContentConstrained"), get(bidi::open))
            .route(&format!("/{version}/interactions/live"), get(interactions::open))
    })
}
