//! Errors of live sessions, some of which end a session with a close frame.

use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::ApiError;
use crate::api::code::Code;
use crate::gemini::{self, InvalidSetup};
use crate::generation::InvalidField;

/// The longest reason that a close frame can hold, in bytes. Source: RFC 6455, section 5.5.
const MAX_REASON: usize = 123;

impl ApiError {
    /// The path is one of live sessions, and the request is not a handshake.
    pub(in crate::api) fn upgrade_required() -> Self {
        let detail = "This path serves WebSockets (version 13) over HTTP/1.1.";
        Self::new(Code::UpgradeRequired, detail)
    }

    /// A browser opens a session for a page that may not read answers.
    pub(in crate::api) fn cross_site_session() -> Self {
        let detail = "A browser opened this session for a page of another origin, which may not \
                      read answers. Add the origin to CORS_ORIGINS.";
        Self::new(Code::Unauthenticated, detail)
    }

    /// The first message did not arrive in time.
    pub(in crate::api) fn no_first_message(limit: Duration) -> Self {
        let detail = format!("The first message did not arrive within {limit:?}.");
        Self::new(Code::ClientTimeout, detail)
    }

    /// A client has sent more before its session was open than is kept.
    pub(in crate::api) fn too_much_early(messages: usize, bytes: usize) -> Self {
        let detail = format!(
            "More than {messages} messages or {bytes} bytes came before the session was open."
        );
        Self::new(Code::BodyTooLarge, detail)
    }

    /// The first message cannot open a session.
    pub(in crate::api) fn invalid_first_message(error: InvalidSetup) -> Self {
        let field = match error {
            InvalidSetup::NoSetup => "setup",
            InvalidSetup::NoEvent => "event_type",
            InvalidSetup::RepeatedModel(_) => "model",
        };
        Self::invalid(vec![InvalidField::new(field, "first_message", error.to_string())])
    }

    /// Neither side of a session sent a message for so long.
    pub(in crate::api) fn session_idle(limit: Duration) -> Self {
        let detail = format!("No message was sent for {limit:?} (LIVE_IDLE_TIMEOUT_SECONDS).");
        Self::new(Code::ClientTimeout, detail)
    }

    /// A session has lasted for the longest time.
    pub(in crate::api) fn session_timeout(limit: Duration) -> Self {
        let detail = format!("The session has lasted for {limit:?} (LIVE_TIMEOUT_SECONDS).");
        Self::new(Code::RequestTimeout, detail)
    }

    /// The connection to Gemini broke during a session.
    pub(in crate::api) fn broken_session(error: gemini::Error) -> Self {
        Self::upstream(error, None)
    }

    /// The close frame for the error: 1013 if another attempt can succeed later, 1008 if the client is
    /// at fault, otherwise 1011. Source: RFC 6455, section 7.4, and its registry of codes.
    pub(in crate::api) fn into_close_frame(self) -> CloseFrame {
        let code = match self.code.status() {
            _ if self.is_retryable() => CloseCode::Again,
            status if status.is_client_error() => CloseCode::Policy,
            _ => CloseCode::Error,
        };
        let mut reason = format!("{}: {}", self.code(), self.into_detail().into_text());
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        CloseFrame { code, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Refused;

    #[test]
    fn a_close_frame_tells_client_errors_and_retryable_errors_apart() {
        let frame = |error: ApiError| {
            let CloseFrame { code, reason } = error.into_close_frame();
            (u16::from(code), reason.to_string())
        };
        let (code, reason) = frame(Refused::QueueFull.into());
        assert_eq!((code, reason.starts_with("queue_full: ")), (1013, true));
        let (code, reason) = frame(ApiError::invalid_first_message(InvalidSetup::NoSetup));
        assert_eq!((code, reason.starts_with("validation_error: body.setup: ")), (1008, true));
        assert_eq!(frame(ApiError::internal()).0, 1011);
        let long = ApiError::unusable_path("ä".repeat(200));
        let (_, reason) = frame(long);
        assert!(reason.len() <= MAX_REASON && reason.ends_with('ä'), "{reason}");
    }
}
