//! The one table from failure to status, code and body.

mod envelope;

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::encoding::TAKEN as ENCODINGS;
use super::semaphores::SemaphoreStatus;
use crate::dispatch::CallError;
use crate::gemini::{self, ErrorKind, RefusalScope};
use crate::generation::offload::Unfinished;
use crate::generation::{Failure, InvalidField, Segment};
use crate::limits::{Exhausted, Refused, StoreUnavailable};
use crate::memory::OverBudget;

pub(super) use envelope::{GoogleFailure, OpenAiFailure};

/// When to come back where nobody knows better.
const SOON: Duration = Duration::from_secs(1);

/// When to come back where a minute's counts have to age.
const LATER: Duration = Duration::from_secs(60);

/// A failure as the client sees it.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: Detail,
    /// How full the semaphore is that had no room.
    semaphore: Option<Box<SemaphoreStatus>>,
    retryable: bool,
    retry_after: Option<Duration>,
    /// Whether it is about how the body is compressed.
    about_encoding: bool,
}

/// The body of every failure.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({"detail": "Not Found", "code": "not_found"}))]
pub(super) struct ErrorBody {
    /// What went wrong; for 422 a list of the fields that are wrong.
    detail: Detail,
    /// What went wrong in a word that does not change.
    #[schema(value_type = String)]
    code: &'static str,
    /// How full the semaphore is, where that is what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SemaphoreStatus>)]
    semaphore: Option<Box<SemaphoreStatus>>,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Detail {
    /// In a sentence.
    Text(String),
    /// Field by field.
    Fields(Vec<FieldError>),
}

/// A field that is wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}))]
pub(super) struct FieldError {
    /// The kind of fault, in a word that does not change.
    #[schema(value_type = String)]
    r#type: &'static str,
    /// The way to the field: keys and indices.
    #[schema(value_type = Vec<Value>)]
    loc: Vec<Segment>,
    /// What is wrong with it.
    msg: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = Detail::Text(detail.into());
        Self {
            status,
            code,
            detail,
            semaphore: None,
            retryable: false,
            retry_after: None,
            about_encoding: false,
        }
    }

    fn retryable(self, retry_after: Option<Duration>) -> Self {
        Self { retryable: true, retry_after, ..self }
    }

    /// Fields of the body that cannot be used.
    pub(super) fn invalid(fields: Vec<InvalidField>) -> Self {
        let fields = fields.into_iter().map(|InvalidField { path, kind, message }| FieldError {
            r#type: kind,
            loc: [Segment::from("body")].into_iter().chain(path).collect(),
            msg: message,
        });
        Self {
            detail: Detail::Fields(fields.collect()),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", "")
        }
    }

    /// The same fault, in an item of a batch.
    pub(super) fn in_item(mut self, index: usize) -> Self {
        if let Detail::Fields(fields) = &mut self.detail {
            for FieldError { loc, .. } in fields {
                loc.splice(1..1, [Segment::from("requests"), Segment::Index(index)]);
            }
        }
        self
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "Authentication failed. Provide 'Admin-API-Key' in headers or complete credentials in \
             payload.",
        )
    }

    pub(super) fn not_admin() -> Self {
        let detail = "Authentication failed. Provide a valid 'Admin-API-Key' in headers.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// A page of another origin may not spend the server's key.
    pub(super) fn cross_site() -> Self {
        let detail = "A browser sent this request for a page of another origin, which may not \
                      spend the server's key. Bring a key, or name the origin in CORS_ORIGINS.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// The server's key is not spent under this host's name.
    pub(super) fn foreign_host() -> Self {
        let detail = "The server's key is not spent under the name in the Host header. Bring a \
                      key, or add the name to ALLOWED_HOSTS.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// The server's key does not do this for a request without any key.
    pub(super) fn beyond_fallback() -> Self {
        let detail = "The server's key does this for nobody without a key. Provide \
                      'Admin-API-Key' in headers or a key of your own.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// The admin key stands where it would be sent on.
    pub(super) fn misplaced_admin_key() -> Self {
        let detail = "The admin key stands where it would be sent to Gemini. It is taken only as \
                      'Admin-API-Key', 'x-goog-api-key', a bearer token or '?key='.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// The URL of an upload that did not begin here, or began too long ago.
    pub(super) fn unknown_upload() -> Self {
        let detail = "Without a key, only an upload goes on that began here within the last day.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    pub(super) fn no_server_key() -> Self {
        let detail = "The admin key is right, but the server has no GEMINI_API_KEY to pay with.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_key_missing", detail)
    }

    pub(super) fn unusable_key() -> Self {
        let path = vec!["credentials".into(), "gemini_api_key".into()];
        let message = "An API key is one word of at most 8192 visible ASCII characters".to_owned();
        Self::invalid(vec![InvalidField { path, kind: "api_key", message }])
    }

    /// A key beside the body that cannot be one.
    pub(super) fn unusable_relayed_key() -> Self {
        let detail = "An API key is one word of at most 8192 visible ASCII characters.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    /// Different keys beside the body, of which Gemini would take none.
    pub(super) fn several_keys() -> Self {
        let detail = "The request brings different keys in several places. Send one: as \
                      'x-goog-api-key', as a bearer token, or as '?key='.";
        Self::new(StatusCode::BAD_REQUEST, "multiple_credentials", detail)
    }

    /// A path that leads nowhere at Gemini, or that cannot be told where it leads.
    pub(super) fn unusable_path(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_path", detail)
    }

    /// No `Host` header, or several.
    pub(super) fn invalid_host() -> Self {
        let detail = "A request has one Host header.";
        Self::new(StatusCode::BAD_REQUEST, "invalid_host", detail)
    }

    pub(super) fn unknown_semaphore(id: &str) -> Self {
        let detail = format!("There is no semaphore {id:?}. Register it at /_admin/semaphores.");
        Self::new(StatusCode::NOT_FOUND, "semaphore_not_found", detail)
    }

    /// Too few permits came free in time.
    pub(super) fn no_lease(semaphore: SemaphoreStatus) -> Self {
        let detail = "Too few permits of the semaphore came free in time.";
        let failure = Self::new(StatusCode::CONFLICT, "lease_unavailable", detail);
        Self { semaphore: Some(Box::new(semaphore)), ..failure.retryable(Some(SOON)) }
    }

    pub(super) fn unknown_lease(semaphore: &str, lease: &str) -> Self {
        let detail = format!(
            "The semaphore {semaphore:?} has no lease {lease:?}: it was released, or it ended \
             because it was not renewed in time, or it never was."
        );
        Self::new(StatusCode::NOT_FOUND, "lease_not_found", detail)
    }

    /// No such key has been used with the model.
    pub(super) fn unknown_account(key: &str, model: &str) -> Self {
        let detail = format!("No key {key:?} is in use with a model {model:?}.");
        Self::new(StatusCode::NOT_FOUND, "account_not_found", detail)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not Found")
    }

    /// A path of OpenAI's for which Gemini has nothing.
    pub(super) fn not_served(path: &str) -> Self {
        let detail = format!("Gemini has nothing like OpenAI's {path}.");
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed")
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("The body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// A body that is small as a text and large once it is read.
    pub(super) fn too_many_parts() -> Self {
        let detail = "The body has too many objects, lists and fields for the memory that bodies \
                      may take.";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    pub(super) fn not_json() -> Self {
        let detail = "The body must be JSON, sent with 'Content-Type: application/json'.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// A body in an encoding that is not taken.
    pub(super) fn unknown_encoding() -> Self {
        let detail = format!(
            "The body's 'Content-Encoding' is not taken: send it without one, or in one of \
             {ENCODINGS}."
        );
        let code = "unsupported_media_type";
        let failure = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, detail);
        Self { about_encoding: true, ..failure }
    }

    /// A body that is not of the encoding that it is said to be of.
    pub(super) fn not_decoded(coding: &str) -> Self {
        let detail =
            format!("The body is not {coding}, as its 'Content-Encoding' says, or broken.");
        Self::new(StatusCode::BAD_REQUEST, "body_not_decoded", detail)
    }

    /// A body that was not decoded in time.
    pub(super) fn not_decoded_in_time(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::Deadline => Self::request_timeout(),
            Unfinished::TooLong(limit) => {
                let detail = format!("The body takes longer than {limit:?} to decode.");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
            }
            Unfinished::Panicked => Self::internal(),
        }
    }

    /// A body that becomes so many times larger that it can only be meant to fill memory.
    pub(super) fn expands_too_much(ratio: usize) -> Self {
        let detail = format!("The body becomes more than {ratio} times larger when it is decoded.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// A form in place of JSON.
    pub(super) fn is_form() -> Self {
        let detail = "The body is a form (multipart/form-data). It must be JSON here, sent with \
                      'Content-Type: application/json'.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    pub(super) fn body_too_slow(limit: Duration) -> Self {
        let detail = format!("The body did not come within {limit:?}.");
        Self::new(StatusCode::REQUEST_TIMEOUT, "client_timeout", detail)
    }

    pub(super) fn body_broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body_incomplete", "The body did not come whole.")
    }

    /// Schemas that were not compiled; `field` is where they are.
    pub(super) fn not_compiled(unfinished: Unfinished, field: &str) -> Self {
        match unfinished {
            Unfinished::Deadline => Self::request_timeout(),
            Unfinished::TooLong(limit) => {
                let message =
                    format!("Takes longer than {limit:?} to compile (SCHEMA_TIMEOUT_SECONDS)");
                Self::invalid(vec![InvalidField::new(field, "json_schema", message)])
            }
            Unfinished::Panicked => Self::internal(),
        }
    }

    fn request_timeout() -> Self {
        let detail = "The request took longer than it may.";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "request_timeout", detail).retryable(None)
    }

    pub(super) fn internal() -> Self {
        let detail = "Something broke in this service.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    fn refused(refused: Refused) -> Self {
        match refused {
            Refused::QueueFull => {
                let detail = "Too many requests wait for their turn.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", detail)
                    .retryable(Some(SOON))
            }
            Refused::SemaphoreDeleted => {
                let detail = "The semaphore was deleted while the request waited for it.";
                Self::new(StatusCode::CONFLICT, "semaphore_deleted", detail)
            }
            Refused::Exhausted(exhausted) => Self::exhausted(exhausted),
            Refused::Unfunded => {
                let detail = "Gemini says that the account has nothing left to pay with. Add \
                              credits, or raise its cap; it is tried again every few minutes.";
                Self::new(StatusCode::PAYMENT_REQUIRED, "account_unfunded", detail)
            }
            Refused::StoreUnavailable(StoreUnavailable { retry_after }) => {
                let detail = "The limits that the replicas share are unavailable.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "limits_unavailable", detail)
                    .retryable(Some(retry_after))
            }
            Refused::TooManyAccounts => {
                let detail = "Too many keys and models are in use to keep account of a new one.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_accounts", detail)
                    .retryable(Some(LATER))
            }
            Refused::MoreThanLimit { limit } => {
                let message = format!("The semaphore has a limit of {limit}");
                Self::invalid(vec![InvalidField::new("permits", "out_of_range", message)])
            }
        }
    }

    fn exhausted(exhausted: Exhausted) -> Self {
        let too_many = |code, detail: &str, retry_after| {
            Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail).retryable(Some(retry_after))
        };
        match exhausted {
            Exhausted::NotBefore { retry_after } => {
                let detail = "The key's quota per minute for the model has no room for the \
                              request in the time that it may take.";
                too_many("rate_limited", detail, retry_after)
            }
            Exhausted::DayExhausted { retry_after } => {
                let detail = "The key's quota per day for the model is used up. It begins anew at \
                              midnight Pacific time.";
                too_many("daily_quota_exhausted", detail, retry_after)
            }
            Exhausted::TooLarge { kind, cost, limit } => {
                let (resource, window) = (kind.resource(), kind.window());
                let detail = format!(
                    "The request has about {cost} {resource}, more than the {limit} that the key \
                     may send to the model in a whole {window}."
                );
                Self::new(StatusCode::BAD_REQUEST, "request_exceeds_quota", detail)
            }
            Exhausted::NoQuota => {
                let detail = "The key's quota for the model is 0.";
                Self::new(StatusCode::FORBIDDEN, "no_quota", detail)
            }
        }
    }

    fn upstream(error: gemini::Error, retry_after: Option<Duration>) -> Self {
        let (status, retryable) = match &error.kind {
            ErrorKind::InvalidKey => (StatusCode::UNAUTHORIZED, false),
            ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, false),
            ErrorKind::ModelNotFound => (StatusCode::NOT_FOUND, false),
            ErrorKind::InvalidRequest | ErrorKind::ContentBlocked { .. } => {
                (StatusCode::BAD_REQUEST, false)
            }
            ErrorKind::RateLimited(refusal) if refusal.scope == RefusalScope::NoQuota => {
                (StatusCode::FORBIDDEN, false)
            }
            ErrorKind::RateLimited(_) => (StatusCode::TOO_MANY_REQUESTS, true),
            ErrorKind::Unfunded => (StatusCode::PAYMENT_REQUIRED, false),
            ErrorKind::DeadlineExceeded | ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, true),
            ErrorKind::Truncated => (StatusCode::BAD_GATEWAY, false),
            ErrorKind::Overloaded(_)
            | ErrorKind::Unavailable
            | ErrorKind::Connection
            | ErrorKind::BrokenOff
            | ErrorKind::Malformed
            | ErrorKind::Empty => (StatusCode::BAD_GATEWAY, true),
        };
        let retry_after = match status {
            StatusCode::TOO_MANY_REQUESTS => Some(retry_after.unwrap_or(SOON)),
            _ => retry_after,
        };
        let failure = Self::new(status, error.kind.code(), error.message);
        Self { retryable, retry_after, ..failure }
    }

    /// The headers of the answer, on every surface. Source for the encodings: RFC 9110, section
    /// 12.5.3.
    fn headers(&self) -> HeaderMap {
        let wait = self.retry_after.map(|wait| (RETRY_AFTER, whole_seconds(wait)));
        let encodings = (ACCEPT_ENCODING, HeaderValue::from_static(ENCODINGS));
        wait.into_iter().chain(self.about_encoding.then_some(encodings)).collect()
    }

    /// The word for the failure.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// What went wrong, in a sentence.
    pub(super) fn into_detail(self) -> Detail {
        self.detail
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        Self::refused(refused)
    }
}

impl From<OverBudget> for ApiError {
    fn from(_: OverBudget) -> Self {
        let detail = "The bodies of the requests under way take the memory that is set aside for \
                      them. Try again soon.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_busy", detail).retryable(Some(SOON))
    }
}

impl From<StoreUnavailable> for ApiError {
    fn from(reason: StoreUnavailable) -> Self {
        Self::refused(reason.into())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Dispatch(CallError::Refused(refused)) => Self::refused(refused),
            Failure::Dispatch(CallError::DeadlineExceeded) => Self::request_timeout(),
            Failure::Dispatch(CallError::Upstream { error, retry_after, .. }) => {
                Self::upstream(*error, retry_after)
            }
            Failure::SchemaViolation { violations, .. } => {
                let detail =
                    format!("The answer does not fit the schema: {}", violations.join("; "));
                Self::new(StatusCode::BAD_GATEWAY, "schema_violation", detail).retryable(None)
            }
            Failure::Internal => Self::internal(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let headers = self.headers();
        let body =
            Json(ErrorBody { detail: self.detail, code: self.code, semaphore: self.semaphore });
        (self.status, headers, body).into_response()
    }
}

/// Whole seconds, and never too few: who comes back too early is refused once more.
fn whole_seconds(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    seconds.max(1).into()
}
