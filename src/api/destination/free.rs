//! Requests that cost nothing.
//!
//! Reading and deleting cost nothing. Any other request is counted unless it is listed here, so that
//! a new method of Google's is never free by accident.

use http::Method;

use super::openai::OPENAI;
use crate::api::auth::{Purpose, name_of, parameters};

/// The requests with another method than GET, HEAD or DELETE that generate nothing: the method and
/// the path at Gemini. `*` matches a part of a segment, `**` all further segments. Source: Gemini API
/// reference, and the paths in Google's Python SDK 3.6.1.
const FREE: &[(Method, &str)] = &[
    // Upload.
    (Method::POST, "/upload/*/files"),
    (Method::PUT, "/upload/*/files"),
    (Method::PUT, "/upload/*/environments/**"),
    (Method::POST, "/*/files"),
    (Method::POST, "/*/files:register"),
    (Method::POST, "/v1beta/openai/files"),
    // Cached contents. Their storage costs money but counts against no quota.
    (Method::POST, "/*/cachedContents"),
    (Method::PATCH, "/*/cachedContents/*"),
    // Search stores. Adding a file to one is counted.
    (Method::POST, "/*/fileSearchStores"),
    // What agents need. Their runs are interactions.
    (Method::POST, "/*/agents"),
    (Method::PATCH, "/*/agents/*"),
    (Method::POST, "/*/credentials"),
    (Method::PATCH, "/*/credentials/*"),
    (Method::POST, TRIGGERS),
    (Method::PATCH, "/*/triggers/*"),
    // Notifications.
    (Method::POST, "/*/webhooks"),
    (Method::PATCH, "/*/webhooks/*"),
    (Method::POST, "/*/webhooks/*:ping"),
    (Method::POST, "/*/webhooks/*:rotateSigningSecret"),
    // Changes of existing batch jobs.
    (Method::PATCH, "/*/batches/*:updateGenerateContentBatch"),
    (Method::PATCH, "/*/batches/*:updateEmbedContentBatch"),
    // Cancellation.
    (Method::POST, "/*/batches/*:cancel"),
    (Method::POST, "/v1beta/openai/batches/*/cancel"),
    (Method::POST, "/*/interactions/*/cancel"),
    (Method::POST, "/*/operations/*:cancel"),
    (Method::POST, "/*/models/*/operations/*:cancel"),
    (Method::POST, "/*/tunedModels/*/operations/*:cancel"),
];

/// Where triggers are created. Google runs them by their schedule, without the gateway.
const TRIGGERS: &str = "/*/triggers";

/// The parameter that names an upload. Source: recorded uploads.
pub(in crate::api) const UPLOAD_ID: &str = "upload_id";

/// Whether a request continues an upload, which counts when it begins.
pub(in crate::api) fn continues_upload(path: &str, query: &str) -> bool {
    path.starts_with("/upload/")
        && parameters(query).any(|parameter| name_of(parameter) == UPLOAD_ID)
}

/// What the answer to a request tells of batch jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum JobStatus {
    /// The state of one or of several jobs.
    Shown,
    /// This job is deleted, and holds nothing any more. Source: Gemini API docs, batch API.
    Deleted(String),
}

/// What the answer to a request tells of batch jobs, if anything.
pub(super) fn job_status(method: &Method, path: &str) -> Option<JobStatus> {
    let is_job = is_match("/*/batches/*", path);
    match *method {
        Method::DELETE if is_job => {
            let (_, id) = path.rsplit_once('/')?;
            Some(JobStatus::Deleted(format!("batches/{id}")))
        }
        Method::GET | Method::POST if is_job || is_match("/*/batches", path) => {
            Some(JobStatus::Shown)
        }
        Method::POST if is_match("/*/batches/*:cancel", path) => Some(JobStatus::Shown),
        _ => None,
    }
}

/// Whether a request makes Google run agents later that the gateway does not see.
pub(super) fn schedules_runs(method: &Method, path: &str) -> bool {
    *method == Method::POST && is_match(TRIGGERS, path)
}

/// Whether a request with another method than GET, HEAD or DELETE costs nothing.
pub(super) fn is_free(method: &Method, path: &str) -> bool {
    FREE.iter().any(|(free, pattern)| free == method && is_match(pattern, path))
}

/// What a request that costs nothing uses the key for. Reading the models is open to whoever may
/// generate; everything else belongs to the key's account.
pub(super) fn purpose_of(method: &Method, path: &str) -> Purpose {
    let mut segments = path.strip_prefix(OPENAI).unwrap_or(path).split('/').skip(1);
    let first = segments.next();
    let resource = if path.starts_with(OPENAI) { first } else { segments.next() };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if reads && resource == Some("models") && segments.count() <= 1 {
        Purpose::Generation
    } else {
        Purpose::Account
    }
}

fn is_match(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut segments) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), segments.next()) {
            (Some("**"), Some(_)) => return true,
            (Some(pattern), Some(segment)) if is_segment(pattern, segment) => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Whether a segment matches a pattern. `*` matches a name that is not empty and has no method.
fn is_segment(pattern: &str, segment: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(method) => {
            let name = segment.strip_suffix(method);
            name.is_some_and(|name| !name.is_empty() && !name.contains(':'))
        }
        None => pattern == segment,
    }
}
