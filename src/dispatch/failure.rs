//! What is kept of a call that failed.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Call, CallError, Dispatcher};
use crate::gemini::{Secrets, redact};
use crate::metrics::Failure;

/// The code of a call whose deadline passed.
pub(super) const REQUEST_TIMEOUT: &str = "request_timeout";

impl Dispatcher {
    /// Keeps a failure of a call that has no usable answer. `retried`: the call is sent again.
    pub fn note_failure(&self, call: &Call, code: &'static str, retried: bool) {
        self.metrics.failed(failure(call, code, retried));
    }

    /// Counts a call that was not admitted.
    pub(super) fn not_admitted(&self, call: &Call, error: &CallError) {
        if matches!(error, CallError::Upstream { .. }) {
            // It failed before, and was counted then.
            return;
        }
        let code = error.code();
        self.metrics.not_admitted(call.kind().label(), code);
        self.note_failure(call, code, false);
    }
}

/// A failure of a call, without anything that may be secret.
pub(super) fn failure(call: &Call, code: &'static str, retried: bool) -> Failure {
    let secrets = Secrets::new([call.key()]);
    let request_id = call.request_id().and_then(|id| id.to_str().ok());
    Failure {
        at: Timestamp::now(),
        code: code.into(),
        kind: call.kind().label().into(),
        model: masked(call.model().as_str(), &secrets),
        payer: call.account().payer().to_string().into(),
        request_id: request_id.map(|id| masked(id, &secrets)),
        retried,
        count: 1,
    }
}

/// A text of a client's with secrets overwritten.
fn masked(text: &str, secrets: &Secrets) -> Arc<str> {
    let masked = secrets.mask(Bytes::copy_from_slice(text.as_bytes()));
    String::from_utf8_lossy(&redact(&masked)).into()
}
