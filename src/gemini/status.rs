//! The envelope of an error: a `google.rpc.Status` as JSON.

use std::borrow::Cow;

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{BOM, without_lone_surrogates};

/// The longest body that is parsed as an error, in bytes. The longest recorded one has 20,000. Parsing
/// takes several times its size in memory.
pub(super) const MAX_ERROR: usize = 1 << 20;

/// `{"code", "message", "status", "details"}` in the envelope `{"error": …}`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status<'a> {
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

impl Status<'_> {
    /// Parses the error in a body and passes it to `then`; an empty one if there is none. Half a
    /// surrogate pair, such as in a text that the error quotes, is repaired.
    pub(super) fn with<T>(body: &[u8], then: impl FnOnce(&Status<'_>) -> T) -> T {
        if let Some(status) = Status::read(body) {
            return then(&status);
        }
        let repaired = (body.len() <= MAX_ERROR).then(|| without_lone_surrogates(body)).flatten();
        then(&repaired.as_deref().and_then(Status::read).unwrap_or_default())
    }
}

impl<'a> Status<'a> {
    /// The error in a body; `None` if there is none, such as in HTML from a front end.
    ///
    /// A stream opened without `alt=sse` wraps the envelope in an array.
    fn read(body: &'a [u8]) -> Option<Status<'a>> {
        if body.len() > MAX_ERROR {
            return None;
        }
        let body = body.strip_prefix(BOM).unwrap_or(body);
        if body.trim_ascii_start().starts_with(b"[") {
            let envelopes: Vec<Envelope<'a>> = serde_json::from_slice(body).ok()?;
            envelopes.into_iter().find_map(|envelope| envelope.error)
        } else {
            serde_json::from_slice::<Envelope<'a>>(body).ok()?.error
        }
    }

    /// The code, if it is a word, as in Interactions.
    pub(super) fn code_word(&self) -> Option<&'a str> {
        self.code?.get().strip_prefix('"')?.strip_suffix('"')
    }

    /// The HTTP status that the code stands for, or else the one of `status`.
    pub(super) fn http_status(&self) -> Option<StatusCode> {
        let code = match self.code_word() {
            Some(word) => word.parse().ok().or_else(|| status_of_word(word)),
            None => self.code.and_then(|code| code.get().parse().ok()),
        };
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        code.or_else(|| StatusCode::from_u16(status_of_name(self.status.as_deref()?)?).ok())
    }

    /// The details, each parsed separately, so that an unexpected one does not hide the others.
    pub(super) fn details(&self) -> Vec<ErrorDetail> {
        let list = self.details.map(RawValue::get).unwrap_or_default();
        let details: Vec<&RawValue> = serde_json::from_str(list).unwrap_or_default();
        details.into_iter().filter_map(|detail| serde_json::from_str(detail.get()).ok()).collect()
    }
}

/// The HTTP status of an error code of Interactions. Source: Gemini API reference, error codes.
fn status_of_word(word: &str) -> Option<u16> {
    Some(match word {
        "invalid_request" | "failed_precondition" | "parameter_unknown" => 400,
        "authentication" => 401,
        "payment_required" => 402,
        "permission_denied" => 403,
        "not_found" | "model_not_found" => 404,
        "already_exists" | "aborted" => 409,
        "out_of_range" => 416,
        "rate_limit_exceeded" | "quota_exceeded" | "too_many_requests" => 429,
        "cancelled" => 499,
        "api_error" => 500,
        "unimplemented" => 501,
        "service_unavailable" => 503,
        "deadline_exceeded" => 504,
        _ => return None,
    })
}

/// The HTTP status of a canonical code. Source: google/rpc/code.proto.
fn status_of_name(name: &str) -> Option<u16> {
    Some(match name {
        "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => 400,
        "UNAUTHENTICATED" => 401,
        "PERMISSION_DENIED" => 403,
        "NOT_FOUND" => 404,
        "ALREADY_EXISTS" | "ABORTED" => 409,
        "RESOURCE_EXHAUSTED" => 429,
        "CANCELLED" => 499,
        "UNKNOWN" | "INTERNAL" | "DATA_LOSS" => 500,
        "UNIMPLEMENTED" => 501,
        "UNAVAILABLE" => 503,
        "DEADLINE_EXCEEDED" => 504,
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    error: Option<Status<'a>>,
}

/// One of the details, by its `@type`. Types that are not needed (`Help`, `LocalizedMessage`,
/// `DebugInfo`, …) are [`ErrorDetail::Other`].
#[derive(Debug, Deserialize)]
#[serde(tag = "@type")]
pub(super) enum ErrorDetail {
    #[serde(rename = "type.googleapis.com/google.rpc.ErrorInfo")]
    ErrorInfo(ErrorInfo),
    #[serde(rename = "type.googleapis.com/google.rpc.QuotaFailure")]
    QuotaFailure(QuotaFailure),
    #[serde(rename = "type.googleapis.com/google.rpc.RetryInfo")]
    RetryInfo(RetryInfo),
    #[serde(other)]
    Other,
}

/// The reason of an error as a word, with metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorInfo {
    /// `API_KEY_INVALID`, `RATE_LIMIT_EXCEEDED`, …
    pub(super) reason: String,
    pub(super) metadata: ErrorMetadata,
}

/// The quota in an [`ErrorInfo`]. One of Google's own test bodies has it in place of a
/// [`QuotaFailure`].
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorMetadata {
    pub(super) quota_limit: Option<String>,
    pub(super) quota_limit_value: Option<String>,
    pub(super) quota_metric: Option<String>,
}

/// The exceeded quotas.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct QuotaFailure {
    pub(super) violations: Vec<QuotaViolation>,
}

/// One exceeded quota.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QuotaViolation {
    pub(super) quota_metric: Option<String>,
    pub(super) quota_id: Option<String>,
    pub(super) quota_dimensions: Option<QuotaDimensions>,
    /// A number as a string. Sometimes absent, for example for a limit of 0.
    pub(super) quota_value: Option<String>,
}

/// What a quota is counted for, besides the project.
#[derive(Debug, Deserialize)]
pub(super) struct QuotaDimensions {
    pub(super) model: Option<String>,
}

/// How long to wait.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RetryInfo {
    /// Whole seconds, rounded down: `48s` for 48.94 s.
    pub(super) retry_delay: String,
}
