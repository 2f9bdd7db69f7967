//! Every route on one page.

use axum::Router;
use axum::middleware::from_fn;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::ApiError;
use super::observe::{observe, panicked};
use super::openapi::Documentation;
use super::{chat, cinematic, health, metrics, semaphores, structured};
use crate::gateway::Gateway;

fn documented() -> OpenApiRouter<Gateway> {
    OpenApiRouter::with_openapi(Documentation::openapi())
        .routes(routes!(health::health))
        .routes(routes!(chat::chat))
        .routes(routes!(structured::structured))
        .routes(routes!(cinematic::cinematic))
        .routes(routes!(chat::batch_chat))
        .routes(routes!(structured::batch_structured))
        .routes(routes!(cinematic::batch_cinematic))
        .routes(routes!(semaphores::list_semaphores, semaphores::register_semaphore))
        .routes(routes!(semaphores::delete_semaphore))
        .routes(routes!(metrics::metrics))
}

/// The whole of the service's HTTP, over a gateway.
pub fn router(gateway: Gateway) -> Router {
    let (routes, document) = documented().split_for_parts();
    let docs = SwaggerUi::new("/docs")
        .config(Config::default().try_it_out_enabled(true).persist_authorization(false))
        .url("/openapi.json", document);
    routes
        .merge(docs)
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        // Outermost last: a panic is an answer before the answer is logged and given its id.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(observe))
        .with_state(gateway)
}

/// The documentation of every endpoint.
pub fn openapi() -> Document {
    documented().into_openapi()
}
