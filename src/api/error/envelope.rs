//! Failures in the words of those whose surface was spoken to, so that their clients raise what
//! their users expect.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{ApiError, Detail, FieldError};
use crate::generation::Segment;

/// The body of a failure as Gemini writes it.
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
    /// An `ErrorInfo` whose reason is the failure's code, and a `RetryInfo` where it is known when
    /// another attempt can succeed. Gemini's own errors may have none.
    #[schema(required = false)]
    details: Vec<Value>,
}

/// The body of a failure as OpenAI writes it.
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
    /// What went wrong in a word that does not change.
    #[schema(value_type = String)]
    code: &'static str,
}

impl ApiError {
    /// The failure as Gemini would answer with it.
    pub(in crate::api) fn into_google(self) -> Response {
        let (status, headers) = (self.status_of_others(), self.headers());
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.code.to_ascii_uppercase(),
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
        answer(status, headers, GoogleFailure { error })
    }

    /// The failure as OpenAI would answer with it.
    pub(in crate::api) fn into_openai(self) -> Response {
        let (status, headers) = (self.status_of_others(), self.headers());
        let error = OpenAiError {
            message: self.detail.into_text(),
            r#type: openai_type(status),
            param: None,
            code: self.code,
        };
        answer(status, headers, OpenAiFailure { error })
    }

    /// The failure as Gemini would answer with it to a request for an interaction.
    pub(in crate::api) fn into_interactions(self) -> Response {
        let (status, headers) = (self.status_of_others(), self.headers());
        let code = interactions_code(status, self.code);
        let error = InteractionsError { code, message: self.detail.into_text() };
        answer(status, headers, InteractionsFailure { error })
    }

    /// Neither Gemini nor OpenAI answers a body that it cannot use with 422.
    fn status_of_others(&self) -> StatusCode {
        match self.status {
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
        // As Gemini answers 402 itself.
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
    fn into_text(self) -> String {
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
