//! Error bodies, worded as Gemini words them.

mod field;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

pub(super) use field::FieldViolation;

use super::quota::{Quota, QuotaExceeded};

/// The content type of every JSON body.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=UTF-8");

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=UTF-8");

const QUOTA_MESSAGE: &str = "You exceeded your current quota, please check your plan and billing \
    details. For more information on this error, head to: \
    https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: \
    https://ai.dev/rate-limit. ";

/// An error response.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
    /// For a 429 with details, the quotas it names.
    quota_ids: Vec<&'static str>,
    /// The code in the Interactions API; `None` where the status determines it.
    code: Option<&'static str>,
}

/// How a refusal is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Envelope {
    /// `{"error": {"code": 429, "message", "status", "details"}}`.
    #[default]
    Native,
    /// A list with the native envelope, as OpenAI's clients get it.
    List,
    /// `{"error": {"code": "rate_limit_exceeded", "message"}}`.
    Interactions,
}

impl ErrorResponse {
    fn new(status: StatusCode, message: &str, details: Option<Value>) -> Self {
        let mut error = json!({
            "code": status.as_u16(),
            "message": message,
            "status": status_name(status),
        });
        if let Some(details) = details {
            error["details"] = details;
        }
        Self {
            status,
            content_type: JSON,
            body: Bytes::from(json!({"error": error}).to_string()),
            quota_ids: Vec::new(),
            code: None,
        }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// A request with one fault.
    pub fn invalid_argument(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message.as_ref(), None)
    }

    /// A request that violates rules. Google lists them, one a line.
    pub fn rules(violations: &[String]) -> Self {
        let message: String = violations.iter().map(|rule| format!("* {rule}\n")).collect();
        Self::invalid_argument(message)
    }

    /// A request with fields or values that Google's JSON reader refuses.
    pub fn bad_request(violations: &[FieldViolation]) -> Self {
        let lines: Vec<&str> = violations.iter().map(|v| v.description.as_str()).collect();
        let details = json!([{
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": violations.iter().map(FieldViolation::to_json).collect::<Vec<_>>(),
        }]);
        Self::new(StatusCode::BAD_REQUEST, &lines.join("\n"), Some(details))
            .with_code("parameter_unknown")
    }

    /// A call without a key.
    pub fn no_key() -> Self {
        let message = "Method doesn't allow unregistered callers (callers without established \
            identity). Please use API Key or other form of API consumer identity to call this API.";
        Self::new(StatusCode::FORBIDDEN, message, None)
    }

    /// A call by OpenAI's client without a key.
    pub fn no_bearer() -> Self {
        Self::invalid_argument("Missing or invalid Authorization header.")
    }

    /// A call with an unknown key.
    pub fn invalid_key() -> Self {
        let message = "API key not valid. Please pass a valid API key.";
        let details = json!([
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
            {
                "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
                "locale": "en-US",
                "message": message,
            },
        ]);
        Self::new(StatusCode::BAD_REQUEST, message, Some(details)).with_code("authentication")
    }

    /// An unknown model, or a method that it does not have.
    pub fn model_not_found(resource: &str, version: &str, method: &str) -> Self {
        let message = format!(
            "{resource} is not found for API version {version}, or is not supported for {method}. \
             Call ModelService.ListModels to see the list of available models and their supported \
             methods."
        );
        Self::new(StatusCode::NOT_FOUND, &message, None).with_code("model_not_found")
    }

    /// A retired model.
    pub fn model_retired(resource: &str) -> Self {
        let message = format!(
            "This model {resource} is no longer available. Please update your code to use a newer \
             model for the latest features and improvements."
        );
        Self::new(StatusCode::NOT_FOUND, &message, None).with_code("model_not_found")
    }

    /// An unknown resource other than a model.
    pub fn not_found(resource: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, &format!("{resource} is not found."), None)
    }

    /// A request that the current state does not allow.
    pub fn failed_precondition(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message, None).with_code("failed_precondition")
    }

    /// A call above the spend limit. Source: a recorded body, which has no details.
    pub fn spend_limit() -> Self {
        let message = "You exceeded your spend-based rate limit. Your spending rate has exceeded \
            the allowed limit for your account's billing history and tier.";
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, message, None);
        Self { quota_ids: vec!["spend"], ..refusal }.with_code("rate_limit_exceeded")
    }

    /// A batch above the limits of enqueued tokens or of jobs. Source: a recorded body, which
    /// names no quota.
    pub fn batch_limit() -> Self {
        let details = json!([help()]);
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, QUOTA_MESSAGE, Some(details));
        Self { quota_ids: vec!["batch"], ..refusal }
    }

    /// A file that does not exist or belongs to another key.
    pub fn no_such_file(id: &str) -> Self {
        let message =
            format!("You do not have permission to access the File {id} or it may not exist.");
        Self::new(StatusCode::FORBIDDEN, &message, None)
    }

    /// A call above a quota. The delay in the details is rounded down to whole seconds, as recorded.
    pub fn quota_exceeded(exceeded: &QuotaExceeded, model: &str, free_tier: bool) -> Self {
        let mut message = QUOTA_MESSAGE.to_owned();
        let mut violations = Vec::new();
        for (quota, limit) in &exceeded.violations {
            let metric = quota.metric(free_tier);
            message +=
                &format!("\n* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}");
            violations.push(json!({
                "quotaMetric": metric,
                "quotaId": quota.id(free_tier),
                "quotaDimensions": {"location": "global", "model": model},
                "quotaValue": limit.to_string(),
            }));
        }
        message += &format!("\nPlease retry in {}.", seconds(exceeded.retry_in));
        let details = json!([
            help(),
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations},
            {
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{}s", exceeded.retry_in.as_secs()),
            },
        ]);
        let quota_ids = exceeded.violations.iter().map(|(quota, _)| quota.id(free_tier)).collect();
        let per_day = exceeded.violations.iter().any(|(quota, _)| *quota == Quota::RequestsPerDay);
        let code = if per_day { "quota_exceeded" } else { "rate_limit_exceeded" };
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, &message, Some(details));
        Self { quota_ids, ..refusal }.with_code(code)
    }

    /// A refusal with the usual message of a status.
    pub fn with_status(status: StatusCode) -> Self {
        let message = match status.as_u16() {
            400 => "Request contains an invalid argument.",
            402 => {
                "Your prepayment credits are depleted. Please go to AI Studio at \
                 https://ai.studio/projects to manage your project and billing. Learn more at \
                 https://ai.google.dev/gemini-api/docs/billing#prepay."
            }
            403 => "Your API key was reported as leaked. Please use another API key.",
            429 => "Resource has been exhausted (e.g. check quota).",
            500 => {
                "An internal error has occurred. Please retry or report in \
                 https://developers.generativeai.google/guide/troubleshooting"
            }
            503 => "The model is overloaded. Please try again later.",
            504 => "Deadline expired before operation could complete.",
            _ => status.canonical_reason().unwrap_or("Unknown error."),
        };
        Self::new(status, message, None)
    }

    /// An HTML page, as a proxy in front of Gemini sends it.
    pub fn html(status: StatusCode) -> Self {
        let title = format!("Error {} ({})", status.as_u16(), status_name(status));
        let page = format!(
            "<!DOCTYPE html>\n<html lang=en>\n<title>{title}</title>\n<p>The server encountered a \
             temporary error and could not complete your request.\n</html>\n"
        );
        let body = Bytes::from(page);
        Self { status, content_type: HTML, body, quota_ids: Vec::new(), code: None }
    }

    /// The refusal in another envelope. An HTML page is not changed.
    pub fn in_envelope(self, envelope: Envelope) -> Self {
        if self.content_type == HTML {
            return self;
        }
        match envelope {
            Envelope::Native => self,
            Envelope::List => {
                let body = [b"[", &self.body[..], b"]"].concat().into();
                Self { body, ..self }
            }
            Envelope::Interactions => self.in_interactions_envelope(),
        }
    }

    /// Invalid keys get 401 in the Interactions API, where `generateContent` answers 400.
    fn in_interactions_envelope(self) -> Self {
        let native: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let code = self.code.unwrap_or_else(|| interactions_code(self.status));
        let status = if code == "authentication" { StatusCode::UNAUTHORIZED } else { self.status };
        let error = json!({"code": code, "message": native["error"]["message"]});
        let body = json!({"error": error}).to_string().into();
        Self { status, body, ..self }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The quotas that the body names.
    pub fn quota_ids(&self) -> &[&'static str] {
        &self.quota_ids
    }

    /// The body of the response.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, self.content_type);
        response
    }
}

/// The detail that links to the documentation of quotas.
fn help() -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }],
    })
}

/// The error code of the Interactions API for a status. Source: Gemini API docs, API errors.
fn interactions_code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "invalid_request",
        401 => "authentication",
        402 => "payment_required",
        403 => "permission_denied",
        404 => "not_found",
        409 => "aborted",
        416 => "out_of_range",
        429 => "too_many_requests",
        499 => "cancelled",
        501 => "unimplemented",
        503 => "service_unavailable",
        504 => "deadline_exceeded",
        _ => "api_error",
    }
}

/// The name of `google.rpc.Code` that goes with a status.
fn status_name(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        402 | 429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        500 => "INTERNAL",
        501 => "UNIMPLEMENTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "UNKNOWN",
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}.{:09}s", duration.as_secs(), duration.subsec_nanos())
}
