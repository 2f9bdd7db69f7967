//! Failures in the words of those whose surface was spoken to, so that their clients raise what
//! their users expect.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::RETRY_AFTER;
use serde_json::{Value, json};

use super::{ApiError, Detail, FieldError, whole_seconds};
use crate::generation::Segment;

impl ApiError {
    /// The failure as Gemini would answer with it: the envelope of a `google.rpc.Status`.
    pub(in crate::api) fn into_google(self) -> Response {
        let (status, retry_after) = (self.status_of_others(), self.retry_after);
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": self.code.to_ascii_uppercase(),
            "domain": env!("CARGO_PKG_NAME"),
        })];
        details.extend(retry_after.map(|wait| {
            json!({
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{:.3}s", wait.as_secs_f64()),
            })
        }));
        let error = json!({
            "code": status.as_u16(),
            "message": self.detail.into_text(),
            "status": google_status(status),
            "details": details,
        });
        answer(status, error, retry_after)
    }

    /// The failure as OpenAI would answer with it.
    pub(in crate::api) fn into_openai(self) -> Response {
        let (status, retry_after) = (self.status_of_others(), self.retry_after);
        let error = json!({
            "message": self.detail.into_text(),
            "type": openai_type(status),
            "param": null,
            "code": self.code,
        });
        answer(status, error, retry_after)
    }

    /// Neither Gemini nor OpenAI answers a body that it cannot use with 422.
    fn status_of_others(&self) -> StatusCode {
        match self.status {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        }
    }
}

fn answer(status: StatusCode, error: Value, retry_after: Option<Duration>) -> Response {
    let mut response = (status, Json(json!({"error": error}))).into_response();
    if let Some(wait) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, whole_seconds(wait));
    }
    response
}

/// The name of a status. Source: google/rpc/code.proto.
fn google_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        408 | 504 => "DEADLINE_EXCEEDED",
        429 => "RESOURCE_EXHAUSTED",
        400..500 => "INVALID_ARGUMENT",
        502 | 503 => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

/// The type of an error. Source: OpenAI's API reference, error codes.
fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
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
