//! Every route on one page.

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::ApiError;
use super::guard::guard;
use super::jobs::endpoints as jobs;
use super::observe::{observe, panicked};
use super::openapi::{Documentation, Relayed};
use super::{chat, cinematic, health, leases, limits, metrics, relay, semaphores, structured};
use crate::gateway::Gateway;

fn documented() -> OpenApiRouter<Gateway> {
    OpenApiRouter::with_openapi(Documentation::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(chat::chat))
        .routes(routes!(structured::structured))
        .routes(routes!(cinematic::cinematic))
        .routes(routes!(chat::batch_chat))
        .routes(routes!(structured::batch_structured))
        .routes(routes!(cinematic::batch_cinematic))
        .routes(routes!(jobs::begin_job, jobs::list_jobs))
        .routes(routes!(jobs::pause_job))
        .routes(routes!(jobs::resume_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(jobs::retry_job))
        .routes(routes!(jobs::job_events))
        .routes(routes!(jobs::job_results))
        .routes(routes!(jobs::show_job, jobs::delete_job))
        .routes(routes!(semaphores::list_semaphores, semaphores::register_semaphore))
        .routes(routes!(leases::list_leases, leases::take_lease))
        .routes(routes!(leases::renew_lease, leases::release_lease))
        .routes(routes!(semaphores::delete_semaphore))
        .routes(routes!(limits::list_limits))
        .routes(routes!(limits::reset_limits))
        .routes(routes!(metrics::metrics))
}

/// The router of the service without its dashboard.
pub fn router(gateway: Gateway) -> Router {
    router_with(gateway, Router::new())
}

/// The router of the service with further routes, which pass the same layers.
pub fn router_with(gateway: Gateway, others: Router<Gateway>) -> Router {
    let (routes, document) = documented().split_for_parts();
    let docs = SwaggerUi::new("/docs")
        .config(Config::default().try_it_out_enabled(true).persist_authorization(false))
        .url("/openapi.json", document.merge_from(Relayed::openapi()));
    observed(routes.merge(docs).merge(relayed()).merge(others), gateway)
}

/// The routes of relayed requests: all of Gemini's and OpenAI's APIs.
fn relayed() -> Router<Gateway> {
    let router = relay::PREFIXES.into_iter().fold(Router::new(), |router, prefix| {
        router.route(&format!("{prefix}{{*path}}"), any(relay::relay))
    });
    relay::LIVE_ROUTES.into_iter().fold(router, |router, path| router.route(path, any(relay::live)))
}

/// Routes with the layers that every request passes.
fn observed(routes: Router<Gateway>, gateway: Gateway) -> Router {
    routes
        .fallback(relay::unrouted)
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        // The outermost layer is the last one. A panic becomes an answer before the answer is logged.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(gateway.clone(), guard))
        .layer(from_fn_with_state(gateway.clone(), observe))
        .with_state(gateway)
}

/// The OpenAPI document.
pub fn openapi() -> Document {
    documented().into_openapi().merge_from(Relayed::openapi())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use axum::routing::get;
    use futures_util::future::join;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tokio::sync::Notify;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;

    async fn get_from(router: Router, path: &str) -> (StatusCode, String, Value) {
        let request = Request::get(path).header("x-request-id", "order-66").header("host", "x");
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (status, id) = (response.status(), response.headers()["x-request-id"].clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, id.to_str().unwrap().to_owned(), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_fails_only_its_own_request() {
        let panicked = Arc::new(Notify::new());
        let has_panicked = Arc::clone(&panicked);
        let routes = Router::new()
            .route("/panic", get(async || -> StatusCode { panic!("the secret prompt") }))
            .route(
                "/beside",
                get(async move || {
                    has_panicked.notified().await;
                    axum::Json("unharmed")
                }),
            );
        let gateway = Gateway::new(Config::default(), true).unwrap();
        let router = observed(routes, gateway);

        let fails = async {
            let answer = get_from(router.clone(), "/panic").await;
            panicked.notify_one();
            answer
        };
        let (other, failed) = join(get_from(router.clone(), "/beside"), fails).await;
        let body = json!({"detail": "Internal error.", "code": "internal_error"});
        assert_eq!(failed, (StatusCode::INTERNAL_SERVER_ERROR, "order-66".to_owned(), body));
        assert_eq!(other, (StatusCode::OK, "order-66".to_owned(), json!("unharmed")));
    }
}
