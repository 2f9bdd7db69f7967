//! What costs nothing.
//!
//! Reading and deleting never do. Of everything else, what is not listed here is counted, so that a
//! new method of Google's is not free by accident.

use http::Method;

use super::openai::OPENAI;
use crate::api::auth::Purpose;

/// What is sent with another method than GET, HEAD or DELETE and generates nothing: a method and a
/// path at Gemini. `*` stands for a part of a segment, `**` for all further segments. Source: Gemini
/// API reference, and the paths in Google's Python SDK 3.6.1.
const FREE: &[(Method, &str)] = &[
    // Upload.
    (Method::POST, "/upload/*/files"),
    (Method::PUT, "/upload/*/files"),
    (Method::POST, "/upload/*/fileSearchStores/*:uploadToFileSearchStore"),
    (Method::PUT, "/upload/*/fileSearchStores/*:uploadToFileSearchStore"),
    (Method::PUT, "/upload/*/environments/**"),
    (Method::POST, "/*/files"),
    (Method::POST, "/*/files:register"),
    (Method::POST, "/v1beta/openai/files"),
    // Cached contents. Storage costs money, but no quota.
    (Method::POST, "/*/cachedContents"),
    (Method::PATCH, "/*/cachedContents/*"),
    // Batch jobs that exist.
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

/// Whether a request that is neither GET, HEAD nor DELETE costs nothing.
pub(super) fn is_free(method: &Method, path: &str) -> bool {
    FREE.iter().any(|(free, pattern)| free == method && is_match(pattern, path))
}

/// What a request that costs nothing does with the key. The models are everybody's.
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

/// Whether a segment fits a pattern. What `*` stands for is not empty and calls no method.
fn is_segment(pattern: &str, segment: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(method) => {
            let name = segment.strip_suffix(method);
            name.is_some_and(|name| !name.is_empty() && !name.contains(':'))
        }
        None => pattern == segment,
    }
}
