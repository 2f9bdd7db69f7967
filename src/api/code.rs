//! The table of error codes: the one source of statuses, of what may be retried, of the OpenAPI
//! document's descriptions and of the table in `docs/errors.md`.

use std::fmt;

use http::StatusCode;
use serde::{Serialize, Serializer};

use crate::gemini::{ErrorKind, RefusalScope};
use crate::limits::{Exhausted, Refused};

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Retryable,
    Final,
}

/// What the table says about a code.
struct Entry {
    name: &'static str,
    status: StatusCode,
    retry: Retry,
    meaning: &'static str,
}

/// Defines [`Code`] from the rows of the table.
macro_rules! codes {
    ($($code:ident = $name:literal, $status:ident, $retry:ident, $meaning:literal;)*) => {
        /// What went wrong, in a word that does not change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $code,)*
        }

        impl Code {
            /// All codes, in the order of their statuses.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            const fn entry(self) -> Entry {
                match self {
                    $(Self::$code => Entry {
                        name: $name,
                        status: StatusCode::$status,
                        retry: Retry::$retry,
                        meaning: $meaning,
                    },)*
                }
            }
        }
    };
}

codes! {
    InvalidPath = "invalid_path", BAD_REQUEST, Final,
        "on Gemini's and OpenAI's surfaces: the path has dots or an empty part, is escaped \
         twice, has an escaped slash (interactions), or calls something that is not a model";
    InvalidHost = "invalid_host", BAD_REQUEST, Final,
        "no `Host` header, or several";
    MultipleCredentials = "multiple_credentials", BAD_REQUEST, Final,
        "the head of the request has different keys";
    InvalidRequest = "invalid_request", BAD_REQUEST, Final,
        "Gemini rejected the request; `detail` is its message";
    ContentBlocked = "content_blocked", BAD_REQUEST, Final,
        "Gemini blocked the prompt or its answer; `detail` has the reason";
    BodyIncomplete = "body_incomplete", BAD_REQUEST, Final,
        "the body ended early";
    BodyNotDecoded = "body_not_decoded", BAD_REQUEST, Final,
        "the body is not in the encoding that its `Content-Encoding` names, or the file of a job is \
         not the gzip or zstd file that it looks like";
    RequestExceedsQuota = "request_exceeds_quota", BAD_REQUEST, Final,
        "the request alone costs more than the key may spend on the model in a minute, in \
         tokens or in requests";
    Unauthenticated = "unauthenticated", UNAUTHORIZED, Final,
        "no key pays, the admin key is wrong or in a place from which it would go to Gemini, or \
         a browser sent the request for a page that may not spend the server's key";
    InvalidApiKey = "invalid_api_key", UNAUTHORIZED, Final,
        "Gemini does not know the key";
    AccountUnfunded = "account_unfunded", PAYMENT_REQUIRED, Final,
        "Gemini says that the account has no funds: its credits are used up, or its spending cap \
         is reached";
    PermissionDenied = "permission_denied", FORBIDDEN, Final,
        "the key may not do this, or its account is limited (`PUP_LIMITED_DISABLED`)";
    NoQuota = "no_quota", FORBIDDEN, Final,
        "the key's quota for the model, or what it may spend, is 0, by the settings or by Gemini";
    ModelNotFound = "model_not_found", NOT_FOUND, Final,
        "Gemini does not know the model";
    SemaphoreNotFound = "semaphore_not_found", NOT_FOUND, Final,
        "no semaphore has this name";
    LeaseNotFound = "lease_not_found", NOT_FOUND, Final,
        "the lease was released, has ended, or never existed";
    AccountNotFound = "account_not_found", NOT_FOUND, Final,
        "no such key was used with the model since the start";
    JobNotFound = "job_not_found", NOT_FOUND, Final,
        "no job has this id, it was deleted, or it belongs to another key";
    NotFound = "not_found", NOT_FOUND, Final,
        "no such path, or a path of OpenAI's that Gemini does not have";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, Final,
        "the path does not accept this method";
    ClientTimeout = "client_timeout", REQUEST_TIMEOUT, Final,
        "the body, the next piece of an upload, or the first message of a live session did not \
         arrive within `CLIENT_TIMEOUT_SECONDS`; or nothing was sent in a live session for \
         `LIVE_IDLE_TIMEOUT_SECONDS`";
    SemaphoreDeleted = "semaphore_deleted", CONFLICT, Final,
        "the semaphore was deleted while the request waited for it";
    IdempotencyConflict = "idempotency_conflict", CONFLICT, Final,
        "a job with the same `Idempotency-Key` exists, and its content is another one";
    JobStateConflict = "job_state_conflict", CONFLICT, Final,
        "the change does not apply to a job in its state, or a batch that is waited for was \
         cancelled or paused; `detail` has the state";
    LeaseUnavailable = "lease_unavailable", CONFLICT, Retryable,
        "too few permits became free in time; comes with `Retry-After`, and with `semaphore`, as \
         `GET /_admin/semaphores` shows it";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, Final,
        "the body, or a line of a job, is larger than `MAX_BODY_BYTES`, as sent or decoded, a job \
         is larger than `JOB_MAX_BYTES`, or the body grows more than 200-fold when it is decoded, \
         or needs more than seven eighths of `BODY_MEMORY_BYTES` once it is read; or too much came \
         in a live session before it was open";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, Final,
        "the body is not sent as JSON, or is in an encoding that is not supported; \
         `Accept-Encoding` lists those that are";
    ValidationError = "validation_error", UNPROCESSABLE_ENTITY, Final,
        "the body is not JSON, has a string or a number that cannot be read (`\"\\ud83d\"`, \
         `1e999`), is nested more than 127 levels deep, or a field, a schema or a batch's size \
         cannot be used";
    UpgradeRequired = "upgrade_required", UPGRADE_REQUIRED, Final,
        "the path is one of live sessions, and the request is not a handshake for a WebSocket \
         (version 13) over HTTP/1.1";
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, Retryable,
        "a quota per minute is not available in time; `Retry-After` says when it is";
    DailyQuotaExhausted = "daily_quota_exhausted", TOO_MANY_REQUESTS, Retryable,
        "a quota per day is exhausted; `Retry-After` lasts until midnight in California";
    SpendLimited = "spend_limited", TOO_MANY_REQUESTS, Retryable,
        "what the account may spend in ten minutes, by the settings or by Gemini, has no room for the \
         request; comes with `Retry-After`";
    OtherQuotaExhausted = "other_quota_exhausted", TOO_MANY_REQUESTS, Retryable,
        "a quota is exhausted that Gemini does not name, or that ordinary calls do not use (batch \
         jobs, grounding); comes with `Retry-After`, of one minute if Gemini names no time";
    InternalError = "internal_error", INTERNAL_SERVER_ERROR, Final,
        "an internal error of the gateway";
    ServerKeyMissing = "server_key_missing", INTERNAL_SERVER_ERROR, Final,
        "the admin key is right, but the server has no `GEMINI_API_KEY`";
    UpstreamUnavailable = "upstream_unavailable", BAD_GATEWAY, Retryable,
        "Gemini is overloaded or failing; comes with `Retry-After` if Gemini says when to try \
         again";
    UpstreamConnection = "upstream_connection", BAD_GATEWAY, Retryable,
        "Gemini could not be reached, the connection broke, or a stream ended without a \
         `finishReason`; `detail` gives the reason (refused, no such host, certificate, \
         timeout), and the log has the whole chain of causes";
    MalformedAnswer = "malformed_answer", BAD_GATEWAY, Retryable,
        "the answer is not in Gemini's format, such as a page of HTML: `GEMINI_BASE_URL` may \
         point to something else; or a stream ended in lines that are not Gemini's";
    EmptyAnswer = "empty_answer", BAD_GATEWAY, Retryable,
        "the answer has no text; `detail` has Gemini's reason: `MALFORMED_RESPONSE`, \
         `NO_IMAGE`, `OTHER`, …";
    TruncatedAnswer = "truncated_answer", BAD_GATEWAY, Final,
        "Gemini stopped (`MAX_TOKENS`, `CONTINUATION`) before there was any text, or before the \
         JSON was complete";
    SchemaViolation = "schema_violation", BAD_GATEWAY, Retryable,
        "two answers did not fit the schema, or one could not be checked in bounded time; \
         `detail` lists what did not fit";
    QueueFull = "queue_full", SERVICE_UNAVAILABLE, Retryable,
        "`MAX_QUEUED_REQUESTS` already wait; comes with `Retry-After`";
    ServerBusy = "server_busy", SERVICE_UNAVAILABLE, Retryable,
        "the bodies of other requests take all of `BODY_MEMORY_BYTES`; comes with `Retry-After`";
    TooManyAccounts = "too_many_accounts", SERVICE_UNAVAILABLE, Retryable,
        "16,384 keys and models are in use, and this one is new; comes with `Retry-After`";
    LimitsUnavailable = "limits_unavailable", SERVICE_UNAVAILABLE, Retryable,
        "Redis, which holds the limits that the replicas share, cannot be reached; comes with \
         `Retry-After`";
    JobStoreUnavailable = "job_store_unavailable", SERVICE_UNAVAILABLE, Retryable,
        "the store of the jobs cannot be read or written; nothing was changed";
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, Retryable,
        "an attempt took longer than `UPSTREAM_TIMEOUT_SECONDS` (`FLEX_TIMEOUT_SECONDS` for flex), \
         or Gemini reported a timeout";
    RequestTimeout = "request_timeout", GATEWAY_TIMEOUT, Retryable,
        "the request took longer than `REQUEST_TIMEOUT_SECONDS` (`FLEX_TIMEOUT_SECONDS` for flex, \
         if that is longer), or the live session longer than `LIVE_TIMEOUT_SECONDS`";
    JobStoreFull = "job_store_full", INSUFFICIENT_STORAGE, Retryable,
        "the disk on which jobs are stored is full; nothing was stored; comes with `Retry-After`";
}

impl Code {
    /// The code as clients see it.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// The status of an answer with this code.
    pub const fn status(self) -> StatusCode {
        self.entry().status
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(self) -> bool {
        self.entry().retry == Retry::Retryable
    }

    /// What the code means, as the manual has it.
    pub const fn meaning(self) -> &'static str {
        self.entry().meaning
    }

    /// The code of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl From<&ErrorKind> for Code {
    fn from(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidKey => Self::InvalidApiKey,
            ErrorKind::PermissionDenied => Self::PermissionDenied,
            ErrorKind::ModelNotFound => Self::ModelNotFound,
            ErrorKind::InvalidRequest => Self::InvalidRequest,
            ErrorKind::ContentBlocked { .. } => Self::ContentBlocked,
            ErrorKind::RateLimited(refusal) => match refusal.scope {
                RefusalScope::PerMinute | RefusalScope::Load => Self::RateLimited,
                RefusalScope::PerDay => Self::DailyQuotaExhausted,
                RefusalScope::NoQuota => Self::NoQuota,
                RefusalScope::Spend => Self::SpendLimited,
                RefusalScope::Other => Self::OtherQuotaExhausted,
            },
            ErrorKind::Unfunded => Self::AccountUnfunded,
            ErrorKind::Overloaded(_) | ErrorKind::Unavailable => Self::UpstreamUnavailable,
            ErrorKind::DeadlineExceeded | ErrorKind::Timeout => Self::UpstreamTimeout,
            ErrorKind::Connection | ErrorKind::BrokenOff => Self::UpstreamConnection,
            ErrorKind::Malformed => Self::MalformedAnswer,
            ErrorKind::Empty => Self::EmptyAnswer,
            ErrorKind::Truncated => Self::TruncatedAnswer,
        }
    }
}

impl From<&Refused> for Code {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::QueueFull => Self::QueueFull,
            Refused::SemaphoreDeleted => Self::SemaphoreDeleted,
            Refused::Unfunded => Self::AccountUnfunded,
            Refused::StoreUnavailable(_) => Self::LimitsUnavailable,
            Refused::TooManyAccounts => Self::TooManyAccounts,
            Refused::MoreThanLimit { .. } => Self::ValidationError,
            Refused::Exhausted(exhausted) => match exhausted {
                Exhausted::NotBefore { kind: Some(kind), .. } if kind.is_of_payer() => {
                    Self::SpendLimited
                }
                Exhausted::NotBefore { .. } | Exhausted::NoRoom { .. } => Self::RateLimited,
                Exhausted::DayExhausted { .. } => Self::DailyQuotaExhausted,
                Exhausted::TooLarge { .. } => Self::RequestExceedsQuota,
                Exhausted::NoQuota { .. } => Self::NoQuota,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_distinct_names_and_are_sorted_by_status() {
        for pair in Code::ALL.windows(2) {
            assert!(pair[0].status() <= pair[1].status(), "{} {}", pair[0], pair[1]);
        }
        for code in Code::ALL {
            assert_eq!(Code::named(code.name()), Some(*code));
        }
        assert_eq!(Code::named("ok"), None);
    }

    #[test]
    fn metrics_and_answers_name_a_call_that_was_not_admitted_alike() {
        use std::time::Duration;

        use crate::limits::{QuotaKind, StoreUnavailable};

        let retry_after = Duration::from_secs(1);
        let kind = QuotaKind::RequestsPerMinute;
        let exhausted = [
            Exhausted::NoQuota { kind: None },
            Exhausted::TooLarge { kind, cost: 2, limit: 1 },
            Exhausted::NotBefore { kind: None, retry_after },
            Exhausted::NotBefore { kind: Some(QuotaKind::SpendPerTenMinutes), retry_after },
            Exhausted::NoRoom { retry_after },
            Exhausted::DayExhausted { kind: None, retry_after },
        ];
        for refused in exhausted.map(Refused::Exhausted).into_iter().chain([
            Refused::QueueFull,
            Refused::SemaphoreDeleted,
            Refused::Unfunded,
            Refused::MoreThanLimit { limit: 1 },
            Refused::StoreUnavailable(StoreUnavailable { retry_after }),
            Refused::TooManyAccounts,
        ]) {
            assert_eq!(Code::from(&refused).name(), refused.code(), "{refused:?}");
        }
    }

    /// The metrics count calls by the name that `gemini` gives to the kind of an error.
    #[test]
    fn metrics_and_answers_name_an_upstream_error_alike() {
        let blocked = ErrorKind::ContentBlocked { reason: "SAFETY".to_owned() };
        for kind in [
            ErrorKind::InvalidKey,
            ErrorKind::PermissionDenied,
            ErrorKind::ModelNotFound,
            ErrorKind::InvalidRequest,
            blocked,
            ErrorKind::Unfunded,
            ErrorKind::Overloaded(None),
            ErrorKind::Unavailable,
            ErrorKind::DeadlineExceeded,
            ErrorKind::Timeout,
            ErrorKind::Connection,
            ErrorKind::BrokenOff,
            ErrorKind::Malformed,
            ErrorKind::Empty,
            ErrorKind::Truncated,
        ] {
            assert_eq!(Code::from(&kind).name(), kind.code(), "{kind:?}");
        }
    }
}
