//! The operator's web pages, at `/dashboard`. They are rendered here; a small script replaces the parts
//! of a page that have changed.
//!
//! | file | what is in it |
//! |---|---|
//! | `access` | who may see a page and send a form: sessions, hosts, origins, tokens of forms |
//! | `sessions`, `throttle`, `login` | sessions, and how they begin and end |
//! | `page`, `live` | what a page is; its changes as server-sent events |
//! | `layout`, `parts`, `chart`, `history`, `format` | what pages are made of |
//! | `failure` | errors as pages |
//! | `playground` | generations that are tried out |
//! | `overview`, `accounts`, `jobs`, `job`, `semaphores`, `replicas`, `failures` | the pages and their actions |
//! | `assets` | style, script and icon |

mod access;
mod accounts;
mod assets;
mod chart;
mod failure;
mod failures;
mod form;
mod format;
mod history;
mod job;
mod jobs;
mod layout;
mod live;
mod login;
mod overview;
mod page;
mod parts;
mod playground;
mod replicas;
mod semaphores;
mod sessions;
mod throttle;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::Redirect;
use axum::routing::{any, get, post};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::ApiError;
use crate::gateway::Gateway;
use accounts::AccountsPage;
use failures::FailuresPage;
use job::JobPage;
use jobs::JobsPage;
use overview::OverviewPage;
use page::Page;
use replicas::ReplicasPage;
use semaphores::{Refreshed, SemaphorePage, SemaphoresPage};
use sessions::Sessions;
use throttle::Throttle;

/// How many pages are kept up to date at once.
const MAX_STREAMS: usize = 64;

/// The state of the dashboard, for all workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dashboard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sessions: Sessions,
    throttle: Throttle,
    refreshed: Refreshed,
    /// One permit for each page that is kept up to date.
    streams: Arc<Semaphore>,
    /// Cancelled when the service begins to shut down.
    shutdown: CancellationToken,
}

/// What every handler uses.
#[derive(Debug, Clone)]
struct Site {
    gateway: Gateway,
    dashboard: Arc<Shared>,
}

impl Dashboard {
    /// A dashboard without sessions. Its pages are no longer updated once `shutdown` is cancelled, so
    /// that they do not delay it.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self(Arc::new(Shared {
            sessions: Sessions::default(),
            throttle: Throttle::default(),
            refreshed: Refreshed::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            shutdown,
        }))
    }

    /// The routes of the dashboard, for [`router_with`](crate::api::router_with). Without an admin key
    /// they answer that there is no dashboard.
    pub fn routes(&self, gateway: Gateway) -> Router<Gateway> {
        if gateway.config.admin_api_key.is_none() {
            let absent = || any(async || ApiError::no_dashboard());
            let paths = ["/dashboard", "/dashboard/", "/dashboard/{*path}"];
            return paths.into_iter().fold(Router::new(), |all, path| all.route(path, absent()));
        }
        let site = Site { gateway, dashboard: Arc::clone(&self.0) };
        pages().layer(from_fn_with_state(site.clone(), access::check)).with_state(site)
    }
}

fn pages() -> Router<Site> {
    let router = Router::new()
        .route("/dashboard/", get(async || Redirect::permanent("/dashboard")))
        .route("/dashboard/login", get(login::form).post(login::login))
        .route("/dashboard/logout", post(login::logout))
        .route("/dashboard/assets/{name}", get(assets::asset))
        .route("/dashboard/jobs/{id}/pause", post(job::pause))
        .route("/dashboard/jobs/{id}/resume", post(job::resume))
        .route("/dashboard/jobs/{id}/cancel", post(job::cancel))
        .route("/dashboard/jobs/{id}/retry", post(job::retry))
        .route("/dashboard/jobs/{id}/delete", post(job::delete))
        .route("/dashboard/jobs/{id}/results", get(job::results))
        .route("/dashboard/playground", get(playground::show).post(playground::send))
        .route("/dashboard/accounts/reset", post(accounts::reset_limits))
        .route("/dashboard/semaphores", post(semaphores::create))
        .route("/dashboard/semaphores/{id}/limit", post(semaphores::change))
        .route("/dashboard/semaphores/{id}/delete", post(semaphores::delete))
        .route("/dashboard/semaphores/{id}/leases/{lease}/release", post(semaphores::release_lease))
        .route("/dashboard/{*path}", any(failure::unknown_page));
    let router = with_page::<OverviewPage>(router, "/dashboard");
    let router = with_page::<JobsPage>(router, "/dashboard/jobs");
    let router = with_page::<JobPage>(router, "/dashboard/jobs/{id}");
    let router = with_page::<SemaphoresPage>(router, "/dashboard/semaphores");
    let router = with_page::<SemaphorePage>(router, "/dashboard/semaphores/{id}");
    let router = with_page::<AccountsPage>(router, "/dashboard/accounts");
    let router = with_page::<ReplicasPage>(router, "/dashboard/replicas");
    with_page::<FailuresPage>(router, "/dashboard/failures")
        .method_not_allowed_fallback(failure::wrong_method)
}

/// Adds a page and its changes.
fn with_page<P: Page>(router: Router<Site>, path: &str) -> Router<Site> {
    router.route(path, get(page::show::<P>)).route(&format!("{path}/live"), get(live::live::<P>))
}
