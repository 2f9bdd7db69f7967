//! Errors in the format of Gemini's and OpenAI's APIs, so that their client libraries raise the
//! exceptions that their users expect.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{ApiError, Detail, FieldError};
use crate::api::code::Code;
use crate::generation::Segment;

/// The body of an error in Gemini's format.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"error": {
    "code": 401, "message": "Authentication failed. …", "status": "UNAUTHENTICATED", "details": [{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "UNAUTHENTICATED",
        "domain": "gemini-concurrent-generation"
    }]
}}))]
pub(in crate::api) struct GoogleFailure {
    error: GoogleStatus,
}

/// A `google.rpc.Status`.
#[derive(Serialize, ToSchema)]
struct GoogleStatus {
    /// The HTTP status.
    code: u16,
    /// What went wrong.
    message: String,
    /// The name of the status: `UNAUTHENTICATED`, `RESOURCE_EXHAUSTED`, …
    #[schema(value_type = String)]
    status: &'static str,
    /// An `ErrorInfo` whose reason is the error code, and a `RetryInfo` if it is known when another
    /// attempt can succeed. Gemini's own errors may have neither.
    #[schema(required = false)]
    details: Vec<Value>,
}

/// The body of an error in OpenAI's format.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"error": {
    "message": "Authentication failed. …", "type": "authentication_error", "param": null,
    "code": "unauthenticated"
}}))]
pub(in crate::api) struct OpenAiFailure {
    error: OpenAiError,
}

/// The body of a failure as Interactions has it.
#[derive(Serialize)]
struct InteractionsFailure {
    error: InteractionsError,
}

#[derive(Serialize)]
struct InteractionsError {
    /// What went wrong in a word of Gemini's.
    code: &'static str,
    message: String,
}

#[derive(Serialize, ToSchema)]
struct OpenAiError {
    /// What went wrong.
    message: String,
    /// Its kind: `invalid_request_error`, `authentication_error`, `rate_limit_error`, …
    #[schema(value_type = String)]
    r#type: &'static str,
    /// Always null.
    param: Option<String>,
    /// The error code, which does not change.
    #[schema(value_type = String)]
    code: Code,
}

impl ApiError {
    /// The error in Gemini's format.
    pub(in crate::api) fn into_google(self) -> Response {
        let (status, headers, failure) = self.google();
        answer(status, headers, failure)
    }

    /// The body of the error in Gemini's format.
    pub(in crate::api) fn into_google_failure(self) -> GoogleFailure {
        self.google().2
    }

    fn google(self) -> (StatusCode, HeaderMap, GoogleFailure) {
        let (status, headers) = (self.relayed_status(), self.headers());
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.code.name().to_ascii_uppercase(),
            "domain": env!("CARGO_PKG_NAME"),
        })];
        details.extend(self.retry_after.map(|wait| {
            json!({
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{:.3}s", wait.as_secs_f64()),
            })
        }));
        let error = GoogleStatus {
            code: status.as_u16(),
            message: self.detail.into_text(),
            status: google_status(status),
            details,
        };
        (status, headers, GoogleFailure { error })
    }

    /// The error in OpenAI's format.
    pub(in crate::api) fn into_openai(self) -> Response {
        let headers = self.headers();
        let (status, failure) = self.into_openai_failure();
        answer(status, headers, failure)
    }

    /// The status and the body of the error in OpenAI's format.
    pub(in crate::api) fn into_openai_failure(self) -> (StatusCode, OpenAiFailure) {
        let status = self.relayed_status();
        let error = OpenAiError {
            message: self.detail.into_text(),
            r#type: openai_type(status),
            param: None,
            code: self.code,
        };
        (status, OpenAiFailure { error })
    }

    /// The error as Gemini would answer a request for an interaction.
    pub(in crate::api) fn into_interactions(self) -> Response {
        let (status, headers) = (self.relayed_status(), self.headers());
        let code = interactions_code(status, self.code());
        let error = InteractionsError { code, message: self.detail.into_text() };
        answer(status, headers, InteractionsFailure { error })
    }

    /// The status on these surfaces: neither Gemini nor OpenAI uses 422.
    fn relayed_status(&self) -> StatusCode {
        match self.code.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        }
    }
}

fn answer(status: StatusCode, headers: HeaderMap, body: impl Serialize) -> Response {
    (status, headers, Json(body)).into_response()
}

/// The name of a status. Source: google/rpc/code.proto.
fn google_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        // Gemini sends RESOURCE_EXHAUSTED with its own 402, too.
        402 | 429 => "RESOURCE_EXHAUSTED",
        408 | 504 => "DEADLINE_EXCEEDED",
        400..500 => "INVALID_ARGUMENT",
        502 | 503 => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

/// The code of an error of Interactions. Source: Gemini API reference, error codes.
fn interactions_code(status: StatusCode, code: &str) -> &'static str {
    match (status.as_u16(), code) {
        (401, _) => "authentication",
        (402, _) => "payment_required",
        (403, _) => "permission_denied",
        (404, "model_not_found") => "model_not_found",
        (404, _) => "not_found",
        (409, _) => "aborted",
        (429, "daily_quota_exhausted") => "quota_exceeded",
        (429, _) => "rate_limit_exceeded",
        (408 | 504, _) => "deadline_exceeded",
        (400..500, _) => "invalid_request",
        (502 | 503, _) => "service_unavailable",
        _ => "api_error",
    }
}

/// The type of an error. Source: OpenAI's API reference, error codes.
fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    }
}

impl Detail {
    pub(in crate::api) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Fields(fields) => {
                let lines: Vec<_> = fields.iter().map(FieldError::line).collect();
                lines.join("; ")
            }
        }
    }
}

impl FieldError {
    fn line(&self) -> String {
        let steps = self.loc.iter().map(|step| match step {
            Segment::Key(key) => key.clone(),
            Segment::Index(index) => index.to_string(),
        });
        format!("{}: {}", steps.collect::<Vec<_>>().join("."), self.msg)
    }
}
