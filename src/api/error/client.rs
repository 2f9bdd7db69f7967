//! The errors that are found in `api` itself: in keys, paths, bodies and names.

use std::time::Duration;

use super::{ApiError, SOON};
use crate::api::code::Code;
use crate::api::semaphore_status::SemaphoreStatus;
use crate::generation::InvalidField;
use crate::generation::offload::OffloadError;

/// What an API key is.
const KEY_FORMAT: &str = "An API key is one word of at most 8192 visible ASCII characters";

/// Keys.
impl ApiError {
    pub(in crate::api) fn unauthenticated() -> Self {
        let detail = "Authentication failed. Provide 'Admin-API-Key' in headers or complete \
                      credentials in payload.";
        Self::new(Code::Unauthenticated, detail)
    }

    pub(in crate::api) fn not_admin() -> Self {
        let detail = "Authentication failed. Provide a valid 'Admin-API-Key' in headers.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// A page of another origin may not spend the server's key.
    pub(in crate::api) fn cross_site() -> Self {
        let detail = "A browser sent this request for a page of another origin, which may not \
                      spend the server's key. Send a key, or add the origin to CORS_ORIGINS.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// The server's key is not spent for requests to this host name.
    pub(in crate::api) fn foreign_host() -> Self {
        let detail = "The server's key is not spent for requests with this Host header. Send a \
                      key, or add the host to ALLOWED_HOSTS.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// The server's key may not be used for this by a request without a key.
    pub(in crate::api) fn beyond_fallback() -> Self {
        let detail = "The server's key is not used for this without the admin key. Provide \
                      'Admin-API-Key' in headers or a key of your own.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// The admin key is in a place from which it would be sent to Gemini.
    pub(in crate::api) fn misplaced_admin_key() -> Self {
        let detail = "The admin key is in a place from which it would be sent to Gemini. It is \
                      accepted only as 'Admin-API-Key', 'x-goog-api-key', a bearer token or \
                      '?key='.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// The URL of an upload that was not started here, or was started too long ago.
    pub(in crate::api) fn unknown_upload() -> Self {
        let detail = "Without a key, an upload can be continued only if it was started here \
                      within the last day.";
        Self::new(Code::Unauthenticated, detail)
    }

    pub(in crate::api) fn no_server_key() -> Self {
        let detail = "The admin key is right, but the server has no GEMINI_API_KEY to pay with.";
        Self::new(Code::ServerKeyMissing, detail)
    }

    /// The key in the body is not a valid key.
    pub(in crate::api) fn unusable_key() -> Self {
        let path = vec!["credentials".into(), "gemini_api_key".into()];
        Self::invalid(vec![InvalidField { path, kind: "api_key", message: KEY_FORMAT.to_owned() }])
    }

    /// The key in the head of the request is not a valid key.
    pub(in crate::api) fn unusable_relayed_key() -> Self {
        Self::new(Code::Unauthenticated, format!("{KEY_FORMAT}."))
    }

    /// The head of the request has different keys. Gemini would reject them all.
    pub(in crate::api) fn several_keys() -> Self {
        let detail = "The request has different keys in several places. Send one: as \
                      'x-goog-api-key', as a bearer token, or as '?key='.";
        Self::new(Code::MultipleCredentials, detail)
    }
}

/// Paths and names.
impl ApiError {
    /// A path that does not exist at Gemini, or whose meaning is ambiguous.
    pub(in crate::api) fn unusable_path(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidPath, detail)
    }

    /// No `Host` header, or several.
    pub(in crate::api) fn invalid_host() -> Self {
        Self::new(Code::InvalidHost, "A request must have exactly one valid Host header.")
    }

    pub(in crate::api) fn unknown_semaphore(id: &str) -> Self {
        let detail = format!("There is no semaphore {id:?}. Register it at /_admin/semaphores.");
        Self::new(Code::SemaphoreNotFound, detail)
    }

    /// Too few permits became free in time.
    pub(in crate::api) fn no_lease(semaphore: SemaphoreStatus) -> Self {
        let detail = "Too few permits of the semaphore became available in time.";
        let error = Self::new(Code::LeaseUnavailable, detail).after(SOON);
        Self { semaphore: Some(Box::new(semaphore)), ..error }
    }

    pub(in crate::api) fn unknown_lease(semaphore: &str, lease: &str) -> Self {
        let detail = format!(
            "The semaphore {semaphore:?} has no lease {lease:?}: it was released, it expired \
             because it was not renewed in time, or it never existed."
        );
        Self::new(Code::LeaseNotFound, detail)
    }

    /// The key was not used with the model.
    pub(crate) fn unknown_account(key: &str, model: &str) -> Self {
        let detail = format!("No key {key:?} is in use with a model {model:?}.");
        Self::new(Code::AccountNotFound, detail)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(Code::NotFound, "Not Found")
    }

    /// The dashboard is not served without an admin key.
    pub(crate) fn no_dashboard() -> Self {
        Self::new(Code::NotFound, "There is no dashboard, because ADMIN_API_KEY is not set.")
    }

    /// A path of OpenAI's that Gemini does not have.
    pub(in crate::api) fn not_served(path: &str) -> Self {
        Self::new(Code::NotFound, format!("Gemini has nothing like OpenAI's {path}."))
    }

    pub(in crate::api) fn method_not_allowed() -> Self {
        Self::new(Code::MethodNotAllowed, "Method Not Allowed")
    }
}

/// Jobs.
impl ApiError {
    pub(in crate::api) fn unknown_job() -> Self {
        let detail = "There is no such job, or it belongs to another key.";
        Self::new(Code::JobNotFound, detail)
    }

    /// The idempotency key was sent before, with another content.
    pub(in crate::api) fn idempotency_conflict() -> Self {
        let detail = "A job with the same Idempotency-Key exists, and its content is another one.";
        Self::new(Code::IdempotencyConflict, detail)
    }

    /// The change does not apply to a job in its state.
    pub(in crate::api) fn job_state_conflict(detail: String) -> Self {
        Self::new(Code::JobStateConflict, detail)
    }

    /// A job that is waited for does not go on, for a reason that is an error code or not.
    pub(in crate::api) fn job_paused(id: &str, reason: &str) -> Self {
        let detail = format!("The job {id} is paused: {reason}.");
        Self::new(Code::named(reason).unwrap_or(Code::JobStateConflict), detail)
    }

    /// A job of so many bytes is not taken.
    pub(in crate::api) fn job_too_large(limit: u64) -> Self {
        let detail = format!("The job is larger than {limit} bytes (JOB_MAX_BYTES).");
        Self::new(Code::BodyTooLarge, detail)
    }

    /// A job of so many items is not taken.
    pub(in crate::api) fn too_many_items(limit: u64) -> Self {
        let detail = format!("The job has more than {limit} items (JOB_MAX_ITEMS).");
        Self::new(Code::BodyTooLarge, detail)
    }

    /// A line is longer than fits into memory.
    pub(in crate::api) fn line_too_long(line: u64, limit: usize) -> Self {
        let detail = format!("Line {line} is longer than {limit} bytes (MAX_BODY_BYTES).");
        Self::new(Code::BodyTooLarge, detail)
    }

    /// The body is neither lines of JSON, nor a form with a file of them, nor a batch.
    pub(in crate::api) fn not_items() -> Self {
        let detail = "The body must be lines of JSON, sent with 'Content-Type: \
                      application/x-ndjson' or as the file of a form (multipart/form-data), or \
                      JSON with a list of requests, sent with 'Content-Type: application/json'.";
        Self::new(Code::UnsupportedMediaType, detail)
    }

    /// The answer of a call is longer than is kept.
    pub(in crate::api) fn answer_too_large(limit: usize) -> Self {
        let detail = format!("The answer is larger than {limit} bytes.");
        Self::new(Code::TruncatedAnswer, detail)
    }

    /// The answer is not JSON.
    pub(in crate::api) fn answer_not_json() -> Self {
        Self::new(Code::MalformedAnswer, "The answer is not JSON.")
    }
}

/// Bodies.
impl ApiError {
    pub(in crate::api) fn body_too_large(limit: usize) -> Self {
        Self::new(Code::BodyTooLarge, format!("The body is larger than {limit} bytes."))
    }

    /// The parsed body would take too much memory, although its text does not.
    pub(in crate::api) fn too_many_parts() -> Self {
        let detail = "The body has more objects, lists and fields than fit into the memory that \
                      is reserved for bodies.";
        Self::new(Code::BodyTooLarge, detail)
    }

    pub(in crate::api) fn not_json() -> Self {
        let detail = "The body must be JSON, sent with 'Content-Type: application/json'.";
        Self::new(Code::UnsupportedMediaType, detail)
    }

    /// The encoding of the body is not one of the supported ones.
    pub(in crate::api) fn unknown_encoding(supported: &'static str) -> Self {
        let detail = format!(
            "The body's 'Content-Encoding' is not supported: send it without one, or in one of \
             {supported}."
        );
        let error = Self::new(Code::UnsupportedMediaType, detail);
        Self { accept_encoding: Some(supported), ..error }
    }

    /// The body is not in the encoding that its header names.
    pub(in crate::api) fn not_decoded(coding: &str) -> Self {
        let detail = format!(
            "The body is not valid {coding}, which its 'Content-Encoding' says that it is."
        );
        Self::new(Code::BodyNotDecoded, detail)
    }

    /// The file of a form looks as if it had this encoding, and has not.
    pub(in crate::api) fn file_not_decoded(coding: &str) -> Self {
        let detail =
            format!("The file begins like one in {coding}, and is not valid or not complete.");
        Self::new(Code::BodyNotDecoded, detail)
    }

    /// The body was not decoded in time.
    pub(in crate::api) fn not_decoded_in_time(error: OffloadError) -> Self {
        match error {
            OffloadError::DeadlineExceeded => Self::request_timeout(),
            OffloadError::TimeLimit(limit) => {
                let detail = format!("The body takes longer than {limit:?} to decode.");
                Self::new(Code::BodyTooLarge, detail)
            }
            OffloadError::Panicked => Self::internal(),
        }
    }

    /// The body grows so much when it is decoded that it is probably an attack.
    pub(in crate::api) fn expands_too_much(ratio: usize) -> Self {
        let detail = format!("The body becomes more than {ratio} times larger when it is decoded.");
        Self::new(Code::BodyTooLarge, detail)
    }

    /// The body is a form, not JSON.
    pub(in crate::api) fn is_form() -> Self {
        let detail = "The body is a form (multipart/form-data). It must be JSON here, sent with \
                      'Content-Type: application/json'.";
        Self::new(Code::UnsupportedMediaType, detail)
    }

    pub(in crate::api) fn body_too_slow(limit: Duration) -> Self {
        Self::new(Code::ClientTimeout, format!("The body did not arrive within {limit:?}."))
    }

    pub(in crate::api) fn body_broken() -> Self {
        Self::new(Code::BodyIncomplete, "The body is incomplete.")
    }

    /// The schemas were not compiled in time; `field` is where they are.
    pub(in crate::api) fn not_compiled(error: OffloadError, field: &str) -> Self {
        match error {
            OffloadError::DeadlineExceeded => Self::request_timeout(),
            OffloadError::TimeLimit(limit) => {
                let message =
                    format!("Takes longer than {limit:?} to compile (SCHEMA_TIMEOUT_SECONDS)");
                Self::invalid(vec![InvalidField::new(field, "json_schema", message)])
            }
            OffloadError::Panicked => Self::internal(),
        }
    }
}
