//! Why a command failed, and its exit statuses.

use http::StatusCode;
use serde_json::Value;

use super::directory::DirectoryError;
use super::input::InputError;
use super::output::OutputError;
use super::upload::Upload;
use crate::api::Code;
use crate::client::{ClientError, Refusal, path_of_field};

/// The exit statuses of `run` and `jobs`, as the manual has them. Those from 69 on are of sysexits.h.
pub const EXIT_STATUSES: &[(&str, &str)] = &[
    ("0", "every item was answered"),
    ("2", "the arguments or the input cannot be used; nothing was asked"),
    ("3", "some items failed; the others were answered"),
    ("69", "the service cannot be reached, is away for too long, or refuses the request"),
    ("74", "the output cannot be written"),
    ("75", "the job was paused or cancelled by somebody else, or another run has the output"),
    (
        "76",
        "a signal came and the service could not be told to pause: the job may go on, and the same command follows it",
    ),
    ("77", "the key is missing, or Gemini or the service does not accept it"),
    ("78", "a setting is invalid"),
    ("129", "SIGHUP: the job is paused, or nothing was asked yet; the same command continues it"),
    ("130", "Ctrl-C: the same (143 after SIGTERM)"),
];

pub(super) const USAGE: u8 = 2;
pub(super) const SOME_FAILED: u8 = 3;
pub(super) const UNAVAILABLE: u8 = 69;
pub(super) const CANNOT_WRITE: u8 = 74;
pub(super) const NOT_NOW: u8 = 75;
pub(super) const NOT_PAUSED: u8 = 76;
pub(super) const NO_PERMISSION: u8 = 77;
const SETTINGS: u8 = 78;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RunFailure {
    /// The exit status for this error.
    pub exit_status: u8,
    message: String,
    /// Whether a service may have accepted the job all the same.
    may_be_accepted: bool,
}

impl RunFailure {
    pub(super) fn new(exit_status: u8, message: impl Into<String>) -> Self {
        Self { exit_status, message: message.into(), may_be_accepted: false }
    }

    /// Whether a service to which all of a job was sent may have accepted it.
    pub(super) fn may_be_accepted(&self) -> bool {
        self.may_be_accepted
    }

    /// Whether the output cannot be written.
    pub(super) fn is_of_output(&self) -> bool {
        self.exit_status == CANNOT_WRITE
    }

    /// A setting is invalid.
    pub fn settings(message: String) -> Self {
        Self::new(SETTINGS, message)
    }

    /// The job is paused, for a reason that may be an error code.
    pub(super) fn paused(reason: &str) -> Self {
        let status = Code::named(reason).map(Code::status);
        let exit_status = match status {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => NO_PERMISSION,
            Some(_) => UNAVAILABLE,
            None => NOT_NOW,
        };
        let message = format!("the job is paused ({reason}); the same command continues it");
        Self::new(exit_status, message)
    }

    /// The service does not accept an upload. Its lines are named as those of the input.
    pub(super) fn of_upload(error: ClientError, upload: &Upload) -> Self {
        match error {
            ClientError::Refused(Refusal { detail: Value::Array(fields), .. })
                if !fields.is_empty() =>
            {
                let name = upload.input().name();
                let lines: Vec<_> =
                    fields.iter().map(|field| invalid_field(field, upload)).collect();
                Self::new(USAGE, format!("{name} has invalid items:\n{}", lines.join("\n")))
            }
            ClientError::Refused(refusal)
                if refusal.status().is_client_error()
                    && refusal
                        .code
                        .is_some_and(|code| !code.is_retryable() && !is_about_key(code)) =>
            {
                Self::new(USAGE, refusal.to_string())
            }
            ClientError::Silent { .. } if upload.was_sent() => {
                let advice = "it may have accepted the job; the same command continues it";
                let message = format!("{error}; {advice}");
                Self { may_be_accepted: true, ..Self::new(UNAVAILABLE, message) }
            }
            other => other.into(),
        }
    }
}

/// Whether an error is about the key, and not about what is asked.
fn is_about_key(code: Code) -> bool {
    matches!(code.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// An invalid field of a line of the upload, such as `line 7: prompt: Field must not be blank`.
fn invalid_field(field: &Value, upload: &Upload) -> String {
    let path = field["loc"].as_array().map(Vec::as_slice).unwrap_or_default();
    let at = path.iter().position(Value::is_u64);
    let number = at.and_then(|at| path[at].as_u64());
    let path = path_of_field(at.map_or(path, |at| &path[at + 1..]));
    // The first line of the upload has the options.
    let line = number.and_then(|number| upload.line_of(number.checked_sub(2)?));
    let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("  {line}{path}{}", field["msg"].as_str().unwrap_or_default())
}

impl From<InputError> for RunFailure {
    fn from(error: InputError) -> Self {
        Self::new(USAGE, error.to_string())
    }
}

impl From<OutputError> for RunFailure {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Input(error) => error.into(),
            OutputError::Unwritable { .. } => Self::new(CANNOT_WRITE, error.to_string()),
        }
    }
}

impl From<DirectoryError> for RunFailure {
    fn from(error: DirectoryError) -> Self {
        let exit_status = match error {
            DirectoryError::Busy(_) => NOT_NOW,
            DirectoryError::Foreign(_)
            | DirectoryError::Damaged(..)
            | DirectoryError::Unusable(..) => CANNOT_WRITE,
        };
        Self::new(exit_status, error.to_string())
    }
}

impl From<ClientError> for RunFailure {
    fn from(error: ClientError) -> Self {
        let exit_status = match &error {
            ClientError::Refused(refusal) => match refusal.status() {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => NO_PERMISSION,
                _ => UNAVAILABLE,
            },
            ClientError::Unreachable { .. }
            | ClientError::Silent { .. }
            | ClientError::Broken(_) => UNAVAILABLE,
        };
        let is_refused = matches!(&error, ClientError::Refused(refusal)
            if refusal.status().is_client_error());
        Self { may_be_accepted: !is_refused, ..Self::new(exit_status, error.to_string()) }
    }
}
