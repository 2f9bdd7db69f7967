//! Answers that are longer than one call gives.
//!
//! Gemini stops a long answer before its end and gives a token that continues it. Each further call
//! passes admission like a retry, reads the input again and is charged for it.

use bytes::Bytes;

use super::attempt::Whole;
use super::{Call, CallError, Dispatcher};
use crate::gemini::{Answer, AnswerPart, ErrorKind};

/// An answer, joined from as many calls as it took.
#[derive(Debug)]
pub struct LongAnswer {
    /// The answer. If its finish reason says that it continues, it is not whole.
    pub answer: Answer,
    /// Why the answer was not continued, where a call for its next part failed.
    pub interrupted: Option<CallError>,
}

impl CallError {
    /// Whether Gemini withholds the answer, also what has come of it.
    pub fn is_blocked(&self) -> bool {
        let Self::Upstream { error, .. } = self else { return false };
        matches!(error.kind, ErrorKind::ContentBlocked { .. })
    }

    /// Says in the log that an answer was not continued because of this error.
    pub fn warn_of_interruption(&self, call: &Call) {
        let (kind, model, cause) = (call.kind().label(), call.model(), self.cause());
        tracing::warn!(kind, %model, cause, "the answer was not continued: {self}");
    }
}

impl Dispatcher {
    /// Asks for the parts that follow the first one of an answer to `body`. A part that cannot be had
    /// does not lose those that were paid for, unless Gemini withholds the answer.
    ///
    /// # Errors
    /// [`CallError`] if the answer is blocked or has no text.
    pub(super) async fn continue_answer(
        &self,
        call: &Call,
        body: &Bytes,
        mut answer: Answer,
    ) -> Result<LongAnswer, CallError> {
        let mut interrupted = None;
        for _ in 0..self.policy.max_continuations {
            let Some(token) = &answer.continuation else { break };
            match self.next_part(call, token.added_to(body)).await {
                Ok(part) => answer.append(part)?,
                Err(error) if error.is_blocked() || answer.text.is_empty() => {
                    return Err(error.after(&answer));
                }
                Err(error) => {
                    error.warn_of_interruption(call);
                    interrupted = Some(error);
                    break;
                }
            }
        }
        let answer = answer.joined(&self.secrets(call))?;
        Ok(LongAnswer { answer, interrupted })
    }

    async fn next_part(&self, call: &Call, body: Bytes) -> Result<Answer, CallError> {
        let admitted = self.admit(call).await?;
        self.run(admitted, Whole(body, AnswerPart::Later)).await
    }
}

impl CallError {
    /// The same error, which ends an answer of which these parts have come.
    fn after(mut self, answer: &Answer) -> Self {
        if let Self::Upstream { error, .. } = &mut self {
            *error.usage += answer.usage;
        }
        self
    }
}
