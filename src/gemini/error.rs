//! Errors: why an exchange gave no answer.

use std::{borrow::Cow, mem, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};

use super::{
    BoxError, Secrets,
    quota::{LONGEST_SHORTAGE, Refusal, RefusalScope, is_unfunded, retry_after},
    redact::redact_text,
    status::{Detail, Status},
    unreachable,
    usage::Usage,
};

/// The longest message of Gemini's that is passed on, in bytes. Its longest recorded message has
/// fewer than 500; only messages that repeat themselves for each field of a schema are longer.
const MAX_MESSAGE: usize = 2048;

/// An exchange without an answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// A message that the caller may see: Gemini's own if its error was the documented JSON, else
    /// one of ours. It contains no HTML, URL or key, and has about 2 KiB at most.
    pub message: String,
    /// The tokens that were spent without an answer.
    pub usage: Usage,
    /// Whether Gemini accepted the call, and so knows the model by the requested name.
    pub accepted_model: bool,
    /// The underlying error, for the log only.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Gemini does not know the key: 400 with the reason `API_KEY_INVALID`, or 401.
    InvalidKey,
    /// The key lacks the permission: it is leaked or blocked, or the service is not enabled. 403.
    PermissionDenied,
    /// The model does not exist, or no longer does. 404.
    ModelNotFound,
    /// Gemini rejects the request: any other 4xx.
    InvalidRequest,
    /// The prompt or the answer was blocked. 200.
    ContentBlocked {
        /// Gemini's reason: `SAFETY`, `RECITATION`, `PROHIBITED_CONTENT`, …
        reason: String,
    },
    /// A quota is used up. 429.
    RateLimited(Box<Refusal>),
    /// The account has no funds: its credits are used up, or it has reached its monthly cap. 402,
    /// or a 429 that says so. This holds for all models and keys of the account until somebody
    /// pays.
    Unfunded,
    /// Gemini is overloaded: 503. It may say how long to wait; at most an hour is accepted.
    Overloaded(Option<Duration>),
    /// Gemini failed or cancelled the call: 499, 500, 502, any other 5xx.
    Unavailable,
    /// Gemini reports a timeout of its own: 408, 504.
    DeadlineExceeded,
    /// The attempt exceeded our timeout. Gemini may still be working on it and charge for it.
    Timeout,
    /// No connection could be made, or it broke before anything was written: Gemini has not seen
    /// the call.
    Connection,
    /// The connection broke after something was written and before the answer was complete.
    /// Gemini may have run the call and charge for it.
    BrokenOff,
    /// The response is not in Gemini's format.
    Malformed,
    /// There is a candidate without text; it may have function calls. 200.
    Empty,
    /// The output tokens were used up before any text, mostly by thinking. 200.
    Truncated,
}

impl ErrorKind {
    /// The stable code of the kind, for callers and dashboards.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidKey => "invalid_api_key",
            Self::PermissionDenied => "permission_denied",
            Self::ModelNotFound => "model_not_found",
            Self::InvalidRequest => "invalid_request",
            Self::ContentBlocked { .. } => "content_blocked",
            Self::RateLimited(refusal) => match refusal.scope {
                RefusalScope::PerMinute | RefusalScope::Load => "rate_limited",
                RefusalScope::PerDay => "daily_quota_exhausted",
                RefusalScope::NoQuota => "no_quota",
                RefusalScope::Spend => "spend_limited",
                RefusalScope::Other => "other_quota_exhausted",
            },
            Self::Unfunded => "account_unfunded",
            Self::Overloaded(_) | Self::Unavailable => "upstream_unavailable",
            Self::DeadlineExceeded | Self::Timeout => "upstream_timeout",
            Self::Connection | Self::BrokenOff => "upstream_connection",
            Self::Malformed => "malformed_answer",
            Self::Empty => "empty_answer",
            Self::Truncated => "truncated_answer",
        }
    }
}

impl Error {
    /// An error that has spent no tokens.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            usage: Usage::default(),
            accepted_model: false,
            source: None,
        }
    }

    /// The error for an attempt that exceeded this time limit.
    pub fn timed_out(time_limit: Duration) -> Error {
        Error::new(ErrorKind::Timeout, format!("Gemini did not answer within {time_limit:?}"))
    }

    /// The error for an answer that exceeds the size limit.
    pub(super) fn too_long() -> Error {
        Error::new(ErrorKind::Malformed, "Gemini's answer is too long")
    }

    /// The error for a stream without a proper end. `unrecognized` counts the lines that are not in
    /// Gemini's format, such as a proxy's error in place of the end.
    pub(super) fn unfinished(unrecognized: u64) -> Error {
        if unrecognized > 0 {
            let message = "Gemini's answer was cut off: it ends in lines that are not Gemini's";
            return Error::new(ErrorKind::Malformed, message);
        }
        let message = "Gemini's answer was cut off: it has no finish reason";
        Error::new(ErrorKind::BrokenOff, message)
    }

    /// The chain of causes, for the log only: it may contain addresses, but no text that Gemini or
    /// a caller wrote.
    pub fn cause(&self) -> Option<String> {
        // The messages of these kinds are always ours.
        let own =
            matches!(self.kind, ErrorKind::Connection | ErrorKind::BrokenOff | ErrorKind::Timeout);
        let own = own.then(|| self.message.clone());
        let source = self.source.as_deref().map(|source| unreachable::chain(source));
        let causes: Vec<_> = own.into_iter().chain(source).collect();
        (!causes.is_empty()).then(|| causes.join(": "))
    }

    /// The error for a body that is not from Gemini's API, or `None` if it may be: a page of a
    /// proxy, of Google's front end, or of another server at a wrong base URL. Nothing of the body
    /// is shown. Such a server knows neither models nor keys, so 401 and 404 do not mean either.
    pub(super) fn not_gemini(
        status: StatusCode,
        content_type: Option<&HeaderValue>,
        body: &[u8],
    ) -> Option<Error> {
        let start = body.trim_ascii_start().first()?;
        let content_type = media_type(content_type);
        let is_json = |content_type: &str| content_type.ends_with("json");
        if matches!(start, b'{' | b'[')
            || (*start != b'<' && content_type.as_deref().is_some_and(is_json))
        {
            return None;
        }
        let came = match content_type.as_deref() {
            Some(content_type) if !is_json(content_type) => content_type,
            Some(_) => "a page",
            None => "content of no type",
        };
        let message = format!("Gemini answered {status} with {came} instead of JSON");
        let source: BoxError = format!("{status} with {came}").into();
        let error = match status.as_u16() {
            ..=399 | 401 | 404 | 405 | 407 => {
                let message = format!("{message}; GEMINI_BASE_URL may point to another server");
                Error::new(ErrorKind::Malformed, message)
            }
            _ => Error { message, ..Error::from_status(status, &Status::default()) },
        };
        Some(Error { source: Some(source.into()), ..error })
    }

    /// Whether the same call may succeed soon: quotas that refill within minutes, any 5xx, and
    /// broken connections. Not our own timeout, nor blocked, empty or truncated answers, which cost
    /// tokens on every attempt.
    pub fn is_transient(&self) -> bool {
        match &self.kind {
            ErrorKind::RateLimited(refusal) => refusal.is_transient(),
            ErrorKind::Overloaded(_)
            | ErrorKind::Unavailable
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Connection
            | ErrorKind::BrokenOff => true,
            _ => false,
        }
    }

    /// Applies the `Retry-After` header to a 429 or 503. The longer wait counts.
    pub(super) fn waiting(mut self, wait: Option<Duration>) -> Error {
        let retry_after = match &mut self.kind {
            ErrorKind::RateLimited(refusal) => &mut refusal.retry_after,
            ErrorKind::Overloaded(retry_after) => retry_after,
            _ => return self,
        };
        *retry_after = (*retry_after).max(wait);
        self
    }

    /// The same error with keys overwritten in its texts.
    pub(super) fn masked(mut self, secrets: &Secrets) -> Error {
        self.message = secrets.mask_text(self.message);
        if let ErrorKind::ContentBlocked { reason } = &mut self.kind {
            *reason = secrets.mask_text(mem::take(reason));
        }
        self
    }

    /// Reads a body that came with an error status.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Error {
        Status::with(body, |envelope| Error::from_status(status, envelope))
    }

    /// Reads a body that came with a success status and is not an answer: an error envelope after
    /// the HTTP status was already sent, or something else.
    pub(super) fn read_despite_success(body: &[u8]) -> Error {
        Status::with(body, |envelope| match envelope.http_status() {
            Some(code) if !code.is_success() => Error::from_status(code, envelope),
            _ => Error::new(ErrorKind::Malformed, "the answer is not in Gemini's format"),
        })
    }

    fn from_status(status: StatusCode, envelope: &Status<'_>) -> Error {
        let details = envelope.details();
        let words = envelope.message.as_deref().unwrap_or_default().trim();
        let kind = match status.as_u16() {
            400 if is_key_invalid(words, &details) => ErrorKind::InvalidKey,
            401 => ErrorKind::InvalidKey,
            402 => ErrorKind::Unfunded,
            403 => ErrorKind::PermissionDenied,
            404 => ErrorKind::ModelNotFound,
            408 | 504 => ErrorKind::DeadlineExceeded,
            429 => refused(envelope.code_word(), words, &details),
            499 => ErrorKind::Unavailable,
            400..500 => ErrorKind::InvalidRequest,
            503 => {
                let wait = retry_after(words, &details);
                ErrorKind::Overloaded(wait.map(|wait| wait.min(LONGEST_SHORTAGE)))
            }
            500..600 => ErrorKind::Unavailable,
            _ => ErrorKind::Malformed,
        };
        if words.is_empty() || words.starts_with('<') {
            Error::new(kind, format!("Gemini answered {status}"))
        } else {
            Error::new(kind, bounded(words))
        }
    }
}

/// The type and subtype of a content type, if they are safe to show.
fn media_type(content_type: Option<&HeaderValue>) -> Option<String> {
    let essence = content_type?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/+.-".contains(&byte);
    let is_shown = (1..=64).contains(&essence.len()) && essence.bytes().all(is_plain);
    is_shown.then_some(essence)
}

/// The kind of a 429.
fn refused(code: Option<&str>, words: &str, details: &[Detail]) -> ErrorKind {
    let refusal = Refusal::read(code, words, details);
    if refusal.violations.is_empty() && is_unfunded(words) {
        ErrorKind::Unfunded
    } else {
        ErrorKind::RateLimited(refusal.into())
    }
}

/// Whether a 400 is about the key. The reason in the details is the documented sign; the message is
/// the fallback if an intermediary dropped the details.
fn is_key_invalid(message: &str, details: &[Detail]) -> bool {
    let reason = |detail: &Detail| matches!(detail, Detail::ErrorInfo(info) if info.reason == "API_KEY_INVALID");
    details.iter().any(reason)
        || message.starts_with("API key not valid")
        || message.starts_with("API key expired")
}

/// Gemini's own message, without anything that looks like a secret, and shortened if it is too long.
pub(super) fn bounded(words: &str) -> Cow<'_, str> {
    // Redact before cutting: half a secret is not recognized.
    let words = redact_text(words);
    if words.len() <= MAX_MESSAGE {
        return words;
    }
    format!("{}…", &words[..words.floor_char_boundary(MAX_MESSAGE)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Error {
        Error::read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn the_status_alone_determines_the_kind() {
        for body in
            ["", "<!DOCTYPE html><html>…", "{}", "[]", r#"{"error":null}"#, r#"{"error":"x"}"#]
        {
            for (status, kind, passing) in [
                (400, ErrorKind::InvalidRequest, false),
                (401, ErrorKind::InvalidKey, false),
                (403, ErrorKind::PermissionDenied, false),
                (404, ErrorKind::ModelNotFound, false),
                (408, ErrorKind::DeadlineExceeded, true),
                (402, ErrorKind::Unfunded, false),
                (413, ErrorKind::InvalidRequest, false),
                (499, ErrorKind::Unavailable, true),
                (500, ErrorKind::Unavailable, true),
                (502, ErrorKind::Unavailable, true),
                (503, ErrorKind::Overloaded(None), true),
                (504, ErrorKind::DeadlineExceeded, true),
                (302, ErrorKind::Malformed, false),
            ] {
                let error = read(status, body);
                assert_eq!(
                    (&error.kind, error.is_transient()),
                    (&kind, passing),
                    "{status} {body}"
                );
                assert!(error.message.starts_with("Gemini answered "), "{}", error.message);
            }
            assert!(matches!(read(429, body).kind, ErrorKind::RateLimited(_)));
        }
    }

    #[test]
    fn a_web_page_is_not_taken_for_an_answer_and_is_not_shown() {
        let not_gemini = |status: u16, content_type: &'static str, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            Error::not_gemini(
                status,
                Some(&HeaderValue::from_static(content_type)),
                body.as_bytes(),
            )
        };
        let page = "<!DOCTYPE html><title>secret</title>";
        for (status, kind) in [
            (200, ErrorKind::Malformed),
            (302, ErrorKind::Malformed),
            (400, ErrorKind::InvalidRequest),
            (401, ErrorKind::Malformed),
            (403, ErrorKind::PermissionDenied),
            (404, ErrorKind::Malformed),
            (413, ErrorKind::InvalidRequest),
            (502, ErrorKind::Unavailable),
            (503, ErrorKind::Overloaded(None)),
        ] {
            let error = not_gemini(status, "text/html; charset=UTF-8", page).unwrap();
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.message.contains(" with text/html instead of JSON"), "{error}");
            assert!(!error.message.contains("secret"), "{error}");
        }
        let posing = not_gemini(404, "application/json", page).unwrap();
        assert!(posing.message.contains(" with a page instead of JSON"), "{posing}");
        assert!(not_gemini(200, "text/plain", "OK").is_some());
        let odd = not_gemini(404, "text/secret key", page).unwrap();
        assert!(odd.message.contains("content of no type"), "{odd}");
        for (content_type, body) in [
            ("application/json", "not JSON"),
            ("application/json", ""),
            ("text/html", ""),
            ("text/html", " {\"error\": {}}"),
            ("text/html", "[{\"error\": {}}]"),
        ] {
            assert!(not_gemini(404, content_type, body).is_none(), "{content_type}: {body}");
        }
    }

    #[test]
    fn an_envelope_is_read_with_and_without_an_array_around_it() {
        let envelope = r#"{"error":{"code":400,"message":"API key is odd.\n","details":[
            {"@type":"type.googleapis.com/google.rpc.ErrorInfo","metadata":7},
            {"@type":"type.googleapis.com/google.rpc.Brand.New","reason":"x"}, null,
            {"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#;
        for body in [envelope.to_owned(), format!(" [{envelope}\n]")] {
            let error = read(400, &body);
            assert_eq!((error.kind, &*error.message), (ErrorKind::InvalidKey, "API key is odd."));
        }
    }

    #[test]
    fn an_exhausted_daily_quota_is_not_transient() {
        let refused = |id: &str| {
            read(
                429,
                &format!(
                    r#"{{"error":{{"details":[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
                     "violations":[{{"quotaId":"{id}"}}]}}]}}}}"#
                ),
            )
        };
        assert!(refused("RequestsPerMinute").is_transient());
        assert!(!refused("RequestsPerDay").is_transient());
        assert!(read(429, "").is_transient());
    }

    #[test]
    fn an_account_without_funds_is_distinguished_from_an_exhausted_quota() {
        let unfunded =
            r#"{"error":{"code":429,"message":"Your prepayment credits are depleted."}}"#;
        assert_eq!(read(429, unfunded).kind, ErrorKind::Unfunded);
        let refused =
            r#"{"error":{"message":"Your credits: Quota exceeded for metric: m/requests"}}"#;
        assert!(matches!(read(429, refused).kind, ErrorKind::RateLimited(_)), "it names a quota");
    }

    #[test]
    fn a_code_may_be_a_word() {
        let body = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"Words."}}}}"#);
        assert_eq!(read(503, &body("service_unavailable")).message, "Words.");
        let despite_success = |code| Error::read_despite_success(body(code).as_bytes()).kind;
        assert_eq!(despite_success("service_unavailable"), ErrorKind::Overloaded(None));
        assert_eq!(despite_success("cancelled"), ErrorKind::Unavailable);
        assert_eq!(despite_success("payment_required"), ErrorKind::Unfunded);
        assert_eq!(despite_success("brand_new"), ErrorKind::Malformed);
    }

    #[test]
    fn an_error_without_a_number_is_read_by_its_status() {
        let kind = |error: &str| Error::read_despite_success(error.as_bytes()).kind.code();
        for (error, code) in [
            (r#"{"error":{"status":"UNAVAILABLE"}}"#, "upstream_unavailable"),
            (r#"{"error":{"code":"503"}}"#, "upstream_unavailable"),
            (r#"{"error":{"code":0,"status":"RESOURCE_EXHAUSTED"}}"#, "rate_limited"),
            (r#"{"error":{"code":null,"status":"INTERNAL"}}"#, "upstream_unavailable"),
            (r#"[{"error":{"code":504}}]"#, "upstream_timeout"),
            (r#"{"error":{"code":200}}"#, "malformed_answer"),
            (r#"{"error":{"status":"NOVEL"}}"#, "malformed_answer"),
            (r#"{"error":"busy"}"#, "malformed_answer"),
        ] {
            assert_eq!(kind(error), code, "{error}");
        }
    }

    #[test]
    fn the_longer_wait_of_header_and_body_counts() {
        let body = r#"{"error":{"details":[
            {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"9s"}]}}"#;
        let wait = |status, header| {
            let error = read(status, body).waiting(Some(Duration::from_secs(header)));
            match error.kind {
                ErrorKind::RateLimited(refusal) => refusal.retry_after,
                ErrorKind::Overloaded(retry_after) => retry_after,
                _ => None,
            }
        };
        for status in [429, 503] {
            assert_eq!(wait(status, 3), Some(Duration::from_secs(10)), "{status}");
            assert_eq!(wait(status, 30), Some(Duration::from_secs(30)), "{status}");
        }
        assert_eq!(wait(500, 30), None);
    }

    #[test]
    fn an_overload_is_accepted_for_an_hour_at_most() {
        let body = r#"{"error":{"details":[
            {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"3153600000s"}]}}"#;
        assert_eq!(read(503, body).kind, ErrorKind::Overloaded(Some(LONGEST_SHORTAGE)));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let error = read(400, &format!(r#"{{"error":{{"message":"{}"}}}}"#, "€".repeat(1000)));
        assert_eq!(error.message, format!("{}…", "€".repeat(MAX_MESSAGE / 3)));
    }
}
