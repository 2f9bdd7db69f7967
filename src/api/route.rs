//! The route of a path, for traces. It is looked for only if a request is traced: with axum's
//! `MatchedPath`, every request would take memory for it.

use std::sync::LazyLock;

use super::relay::{LIVE_ROUTES, PREFIXES};
use super::router::openapi;

/// The routes: those that are documented, and then those with any path below them.
static ROUTES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let relayed = PREFIXES.into_iter().chain(["/docs/", "/dashboard/"]);
    let relayed = relayed.map(|prefix| format!("{prefix}{{*path}}"));
    let live = LIVE_ROUTES.map(str::to_owned);
    let pages = ["/dashboard".to_owned()];
    openapi().paths.paths.into_keys().chain(live).chain(pages).chain(relayed).collect()
});

/// The route of a path; `None` for paths that have none.
pub(super) fn route_of(path: &str) -> Option<&'static str> {
    ROUTES.iter().map(String::as_str).find(|route| fits(route, path))
}

/// Whether a path fits a route with parameters: `/a/{b}`, `/a/{b}:c`, or `/a/{*rest}`.
fn fits(route: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for part in route.split('/') {
        let Some(segment) = segments.next() else { return false };
        if part.starts_with("{*") {
            return true;
        }
        let fits = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some((_, suffix)) => segment.len() > suffix.len() && segment.ends_with(suffix),
            None => segment == part,
        };
        if !fits {
            return false;
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_the_route_that_serves_it() {
        for (path, route) in [
            ("/", Some("/")),
            ("/chat", Some("/chat")),
            ("/jobs/job_1/results", Some("/jobs/{job_id}/results")),
            ("/_admin/semaphores/images", Some("/_admin/semaphores/{semaphore_id}")),
            ("/v1beta/models/m:generateContent", Some("/v1beta/models/{model}:generateContent")),
            ("/v1beta/models/m:countTokens", Some("/v1beta/{*path}")),
            ("/v1/chat/completions", Some("/v1/chat/completions")),
            ("/v1beta/interactions/live", Some("/v1beta/interactions/live")),
            ("/ws/google.ai.generativelanguage", Some("/ws/{*path}")),
            ("/upload/v1beta/files", Some("/upload/{*path}")),
            ("/docs/index.css", Some("/docs/{*path}")),
            ("/dashboard", Some("/dashboard")),
            ("/dashboard/jobs", Some("/dashboard/{*path}")),
            ("/chat/", None),
            ("/jobs//results", None),
            ("/unknown", None),
            ("", None),
        ] {
            assert_eq!(route_of(path), route, "{path}");
        }
    }
}
