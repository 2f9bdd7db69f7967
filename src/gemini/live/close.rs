//! Why Gemini closes a session.

use http::StatusCode;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::{Error, ErrorKind, Secrets};

/// Words of a reason, in lower case, and the HTTP status of errors with these words. Google does not
/// document the reasons; the words are those of its HTTP errors.
const WORDS: [(&str, StatusCode); 12] = [
    ("api key", StatusCode::BAD_REQUEST),
    ("quota", StatusCode::TOO_MANY_REQUESTS),
    ("rate limit", StatusCode::TOO_MANY_REQUESTS),
    ("resource exhausted", StatusCode::TOO_MANY_REQUESTS),
    ("resource has been exhausted", StatusCode::TOO_MANY_REQUESTS),
    ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
    ("prepayment", StatusCode::TOO_MANY_REQUESTS),
    ("overloaded", StatusCode::SERVICE_UNAVAILABLE),
    ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
    ("permission", StatusCode::FORBIDDEN),
    ("credential", StatusCode::UNAUTHORIZED),
    ("not found", StatusCode::NOT_FOUND),
];

/// The error for a session that Gemini closed before it accepted it.
pub(super) fn refused(frame: Option<&CloseFrame>) -> Error {
    closing_error(frame).unwrap_or_else(|| {
        Error::new(ErrorKind::Unavailable, "Gemini closed the session before it began")
    })
}

/// The error for which Gemini closed a session; `None` if the session ended normally.
pub fn closing_error(frame: Option<&CloseFrame>) -> Option<Error> {
    let frame = frame?;
    if matches!(frame.code, CloseCode::Normal | CloseCode::Away) {
        return None;
    }
    let words = frame.reason.to_ascii_lowercase();
    let known = WORDS.iter().find(|(word, _)| words.contains(word)).map(|(_, status)| *status);
    let status = known.unwrap_or(match frame.code {
        CloseCode::Error => StatusCode::INTERNAL_SERVER_ERROR,
        CloseCode::Restart | CloseCode::Again => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    });
    let body = json!({"error": {"code": status.as_u16(), "message": &*frame.reason}});
    let error = Error::read(status, body.to_string().as_bytes());
    if frame.reason.is_empty() {
        let message = format!("Gemini closed the session with {}", u16::from(frame.code));
        return Some(Error { message, ..error });
    }
    Some(error)
}

/// A close frame with the keys in its reason overwritten.
pub(super) fn redacted(frame: CloseFrame, secrets: &Secrets) -> CloseFrame {
    let CloseFrame { code, reason } = frame;
    let reason = secrets.redact_body(reason.into());
    let reason = String::from_utf8_lossy(&reason).into_owned().into();
    CloseFrame { code, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemini::{ApiKey, RefusalScope};

    fn frame(code: u16, reason: &str) -> CloseFrame {
        CloseFrame { code: code.into(), reason: reason.into() }
    }

    #[test]
    fn a_reason_is_read_as_the_error_it_describes() {
        for (code, reason, expected) in [
            (1007, "API key not valid. Please pass a valid API key.", "invalid_api_key"),
            (1008, "models/x is not found for API version v1beta", "model_not_found"),
            (1007, "Request contains an invalid argument.", "invalid_request"),
            (1008, "The caller does not have permission", "permission_denied"),
            (1011, "You exceeded your current quota, please check your plan", "other"),
            (1011, "The model is overloaded. Please try again later.", "upstream_unavailable"),
            (1011, "Your prepayment credits are depleted.", "account_unfunded"),
            (1011, "Internal error encountered.", "upstream_unavailable"),
            (1013, "", "upstream_unavailable"),
            (4000, "", "invalid_request"),
        ] {
            let error = closing_error(Some(&frame(code, reason))).expect(reason);
            match &error.kind {
                ErrorKind::RateLimited(_) => assert_eq!(expected, "other", "{reason}"),
                kind => assert_eq!(kind.code(), expected, "{reason}"),
            }
            assert!(error.message.contains(reason), "{}", error.message);
        }
        let spend = closing_error(Some(&frame(1011, "You exceeded your spend-based rate limit.")));
        let Some(ErrorKind::RateLimited(refusal)) = spend.map(|error| error.kind) else { panic!() };
        assert_eq!(refusal.scope, RefusalScope::Spend);
    }

    #[test]
    fn a_session_that_ends_normally_has_no_error() {
        for end in [None, Some(frame(1000, "")), Some(frame(1001, "quota"))] {
            assert!(closing_error(end.as_ref()).is_none(), "{end:?}");
        }
        assert_eq!(refused(None).kind, ErrorKind::Unavailable);
    }

    #[test]
    fn keys_in_a_reason_are_overwritten() {
        let key = ApiKey::new("the-secret-key").unwrap();
        let other = format!("AIza{}", "x".repeat(35));
        let frame = frame(1008, &format!("Consumer the-secret-key and {other} are suspended"));
        let reason = redacted(frame, &Secrets::new([&key])).reason;
        assert!(!reason.contains("secret") && !reason.contains("AIza"), "{reason}");
        assert!(reason.contains("are suspended"), "{reason}");
    }
}
