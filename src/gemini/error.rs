//! Why an exchange gave no answer.

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

/// The most bytes of Gemini's own words that are passed on. Its longest recorded message has
/// fewer than 500; only those that repeat themselves for every field of a schema are longer.
const MAX_MESSAGE: usize = 2048;

/// An exchange that gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// What happened in words that the caller may see: Gemini's own message where its error was
    /// the documented JSON, else a sentence of ours. Never HTML, a URL or a key, and never longer
    /// than 2 KiB or so.
    pub message: String,
    /// The tokens that were spent although no answer came of them.
    pub usage: Usage,
    /// Whether Gemini took up the call, and so knows the model by the name it was given.
    pub accepted_model: bool,
    /// What lies behind it, for the log only.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What kept an exchange from giving an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Gemini does not know the key: 400 with the reason `API_KEY_INVALID`, or 401.
    InvalidKey,
    /// The key may not do this: leaked, blocked, its service not enabled. 403.
    PermissionDenied,
    /// There is no such model, or no longer. 404.
    ModelNotFound,
    /// Gemini does not take the request: any other 4xx.
    InvalidRequest,
    /// The prompt or the answer was blocked. 200.
    ContentBlocked {
        /// Gemini's word for why: `SAFETY`, `RECITATION`, `PROHIBITED_CONTENT`, …
        reason: String,
    },
    /// A quota is used up. 429.
    RateLimited(Box<Refusal>),
    /// The account has nothing left to pay with: its credits are used up, or it has reached its
    /// monthly cap. 402, or a 429 that says so. It holds for every model and key of the account,
    /// until somebody pays.
    Unfunded,
    /// Gemini has too much to do: 503. It may say how long to wait; an hour at most is believed.
    Overloaded(Option<Duration>),
    /// Gemini is broken, or gave the call up: 499, 500, 502, any other 5xx.
    Unavailable,
    /// Gemini took too long by its own clock: 408, 504.
    DeadlineExceeded,
    /// The attempt took too long by ours. Gemini may be working on it still, and be paid for it.
    Timeout,
    /// No connection could be made, or it broke before anything was written to it: Gemini has not
    /// seen the call.
    Connection,
    /// The connection broke after something was written to it, before the whole answer had come.
    /// Gemini may have run the call, and be paid for it.
    BrokenOff,
    /// Something answered that does not speak as Gemini does.
    Malformed,
    /// There is a candidate but no text in it, function calls at most. 200.
    Empty,
    /// All output tokens went before there was any text, to thinking mostly. 200.
    Truncated,
}

impl ErrorKind {
    /// The kind in a word that callers and dashboards can count on.
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

    /// The error for an attempt that was given up after so long.
    pub fn late(time_limit: Duration) -> Error {
        Error::new(ErrorKind::Timeout, format!("Gemini did not answer within {time_limit:?}"))
    }

    /// The error for an answer of which more comes than is read.
    pub(super) fn too_long() -> Error {
        Error::new(ErrorKind::Malformed, "the answer is longer than Gemini's ever are")
    }

    /// The error for a stream that never says that it is at its end. Of `strays` lines in it nobody
    /// knows what they say, such as a proxy's: they stand where the end should.
    pub(super) fn without_end(strays: u64) -> Error {
        if strays > 0 {
            let message = "Gemini's answer ended in lines that are not Gemini's: it was cut off";
            return Error::new(ErrorKind::Malformed, message);
        }
        let message = "Gemini's answer ended without a finish reason: it was cut off";
        Error::new(ErrorKind::BrokenOff, message)
    }

    /// What lies behind it, for the log only: addresses may stand in it. Nothing that Gemini or a
    /// caller wrote does.
    pub fn cause(&self) -> Option<String> {
        // The words of these are always ours.
        let own =
            matches!(self.kind, ErrorKind::Connection | ErrorKind::BrokenOff | ErrorKind::Timeout);
        let own = own.then(|| self.message.clone());
        let source = self.source.as_deref().map(|source| unreachable::chain(source));
        let said: Vec<_> = own.into_iter().chain(source).collect();
        (!said.is_empty()).then(|| said.join(": "))
    }

    /// The error for a body that Gemini's API does not send, if it is one: a page of a proxy's, of
    /// Google's front end, or of whatever else answers at a wrong base URL. Nothing of the body is
    /// told. A status that names the model or the key was not given by something that knows them.
    pub(super) fn foreign(
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
            None => "something of no type",
        };
        let message = format!("Gemini answered {status} with {came} in place of JSON");
        let source: BoxError = format!("{status} with {came}").into();
        let error = match status.as_u16() {
            ..=399 | 401 | 404 | 405 | 407 => {
                let message = format!("{message}; GEMINI_BASE_URL may lead to something else");
                Error::new(ErrorKind::Malformed, message)
            }
            _ => Error { message, ..Error::from_status(status, &Status::default()) },
        };
        Some(Error { source: Some(source.into()), ..error })
    }

    /// Whether the same call may well succeed a while later: a quota that comes back within
    /// minutes, any 5xx and broken connections. Not an attempt that was given up here, nor a
    /// blocked, empty or truncated answer, which cost tokens every time.
    pub fn is_passing(&self) -> bool {
        match &self.kind {
            ErrorKind::RateLimited(refusal) => refusal.is_passing(),
            ErrorKind::Overloaded(_)
            | ErrorKind::Unavailable
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Connection
            | ErrorKind::BrokenOff => true,
            _ => false,
        }
    }

    /// Takes over what the header `Retry-After` says, with 429 and 503: the later moment counts.
    pub(super) fn waiting(mut self, wait: Option<Duration>) -> Error {
        let told = match &mut self.kind {
            ErrorKind::RateLimited(refusal) => &mut refusal.retry_after,
            ErrorKind::Overloaded(retry_after) => retry_after,
            _ => return self,
        };
        *told = (*told).max(wait);
        self
    }

    /// The same without keys in what it says.
    pub(super) fn masked(mut self, secrets: &Secrets) -> Error {
        self.message = secrets.mask_text(self.message);
        if let ErrorKind::ContentBlocked { reason } = &mut self.kind {
            *reason = secrets.mask_text(mem::take(reason));
        }
        self
    }

    /// Reads a body that came with a status other than success.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Error {
        Status::told(body, |told| Error::from_status(status, told))
    }

    /// Reads a body that came with success and is no answer: an error's envelope for which the
    /// HTTP status had already gone out, or something else altogether.
    pub(super) fn read_despite_success(body: &[u8]) -> Error {
        Status::told(body, |told| match told.http_status() {
            Some(code) if !code.is_success() => Error::from_status(code, told),
            _ => Error::new(ErrorKind::Malformed, "the answer is not one that Gemini gives"),
        })
    }

    fn from_status(status: StatusCode, told: &Status<'_>) -> Error {
        let details = told.details();
        let words = told.message.as_deref().unwrap_or_default().trim();
        let kind = match status.as_u16() {
            400 if is_key_invalid(words, &details) => ErrorKind::InvalidKey,
            401 => ErrorKind::InvalidKey,
            402 => ErrorKind::Unfunded,
            403 => ErrorKind::PermissionDenied,
            404 => ErrorKind::ModelNotFound,
            408 | 504 => ErrorKind::DeadlineExceeded,
            429 => refused(told.code_word(), words, &details),
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

/// The type and subtype of a content type, where it is one that can be shown.
fn media_type(content_type: Option<&HeaderValue>) -> Option<String> {
    let essence = content_type?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/+.-".contains(&byte);
    let is_shown = (1..=64).contains(&essence.len()) && essence.bytes().all(is_plain);
    is_shown.then_some(essence)
}

/// What a 429 is about.
fn refused(code: Option<&str>, words: &str, details: &[Detail]) -> ErrorKind {
    let refusal = Refusal::read(code, words, details);
    if refusal.violations.is_empty() && is_unfunded(words) {
        ErrorKind::Unfunded
    } else {
        ErrorKind::RateLimited(refusal.into())
    }
}

/// Whether a 400 is about the key. The reason is the documented sign; the message stands in where
/// somebody in between has dropped the details.
fn is_key_invalid(message: &str, details: &[Detail]) -> bool {
    let reason = |detail: &Detail| matches!(detail, Detail::ErrorInfo(info) if info.reason == "API_KEY_INVALID");
    details.iter().any(reason)
        || message.starts_with("API key not valid")
        || message.starts_with("API key expired")
}

/// Gemini's own words, without what has the form of a secret, and cut where they are too many.
pub(super) fn bounded(words: &str) -> Cow<'_, str> {
    // Before they are cut: half a secret has no form by which to know it.
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
    fn a_status_alone_says_what_kind_of_error_it_is() {
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
                assert_eq!((&error.kind, error.is_passing()), (&kind, passing), "{status} {body}");
                assert!(error.message.starts_with("Gemini answered "), "{}", error.message);
            }
            assert!(matches!(read(429, body).kind, ErrorKind::RateLimited(_)));
        }
    }

    #[test]
    fn a_page_is_told_from_an_answer_and_nothing_of_it_is_shown() {
        let foreign = |status: u16, content_type: &'static str, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            Error::foreign(status, Some(&HeaderValue::from_static(content_type)), body.as_bytes())
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
            let error = foreign(status, "text/html; charset=UTF-8", page).unwrap();
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.message.contains(" with text/html in place of JSON"), "{error}");
            assert!(!error.message.contains("secret"), "{error}");
        }
        let posing = foreign(404, "application/json", page).unwrap();
        assert!(posing.message.contains(" with a page in place of JSON"), "{posing}");
        assert!(foreign(200, "text/plain", "OK").is_some());
        let odd = foreign(404, "text/secret key", page).unwrap();
        assert!(odd.message.contains("something of no type"), "{odd}");
        for (content_type, body) in [
            ("application/json", "not JSON"),
            ("application/json", ""),
            ("text/html", ""),
            ("text/html", " {\"error\": {}}"),
            ("text/html", "[{\"error\": {}}]"),
        ] {
            assert!(foreign(404, content_type, body).is_none(), "{content_type}: {body}");
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
    fn a_day_that_is_used_up_does_not_pass() {
        let refused = |id: &str| {
            read(
                429,
                &format!(
                    r#"{{"error":{{"details":[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
                     "violations":[{{"quotaId":"{id}"}}]}}]}}}}"#
                ),
            )
        };
        assert!(refused("RequestsPerMinute").is_passing());
        assert!(!refused("RequestsPerDay").is_passing());
        assert!(read(429, "").is_passing());
    }

    #[test]
    fn an_account_without_funds_is_told_from_a_used_up_quota() {
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
    fn an_error_without_a_number_is_told_by_its_status() {
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
    fn the_later_of_header_and_body_is_waited_for() {
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
    fn an_overload_is_believed_to_last_an_hour_at_most() {
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
