//! Errors: why an exchange gave no answer.

use std::{borrow::Cow, mem, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};

use super::{
    BoxError, Secrets,
    quota::{LONGEST_SHORTAGE, Refusal, RefusalScope, is_unfunded, retry_after},
    redact::redact_text,
    status::{ErrorDetail, Status},
    usage::Usage,
};
use crate::connect::unreachable;

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
    // Boxed to keep results small.
    pub usage: Box<Usage>,
    /// Whether Gemini accepted the call, and so knows the model by the requested name.
    pub accepted_model: bool,
    /// The status of Gemini's answer, or the one that its body names; `None` if no answer with an error
    /// came.
    pub status: Option<StatusCode>,
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
            usage: Box::default(),
            accepted_model: false,
            status: None,
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
                Error { status: Some(status), ..Error::new(ErrorKind::Malformed, message) }
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

    /// Reads a body that was received with an error status.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Error {
        Status::with(body, |envelope| Error::from_status(status, envelope))
    }

    /// Reads a body that was received with a success status and is not an answer: an error envelope after
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
        let message = match words {
            _ if words.is_empty() || words.starts_with('<') => format!("Gemini answered {status}"),
            words => bounded(words).into_owned(),
        };
        Error { status: Some(status), ..Error::new(kind, message) }
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
fn refused(code: Option<&str>, words: &str, details: &[ErrorDetail]) -> ErrorKind {
    let refusal = Refusal::read(code, words, details);
    if refusal.violations.is_empty() && is_unfunded(words) {
        ErrorKind::Unfunded
    } else {
        ErrorKind::RateLimited(refusal.into())
    }
}

/// Whether a 400 is about the key. The reason in the details is the documented sign; the message is
/// the fallback if an intermediary dropped the details.
fn is_key_invalid(message: &str, details: &[ErrorDetail]) -> bool {
    let reason = |detail: &ErrorDetail| matches!(detail, ErrorDetail::ErrorInfo(info) if info.reason == "API_KEY_INVALID");
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
mod tests;
