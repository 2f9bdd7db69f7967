//! What happens to calls, told to whoever follows it: traces, and the timeline of one request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::{Call, CallError};
use crate::gemini::{Answer, Model, TraceContext, Usage};
use crate::limits::{Admission, HeldBy};
use crate::metrics::TraceId;

/// Follows the calls of one piece of work: of a request, or of an item of a batch or a job. They are made
/// one after the other, and each goes through these events in this order:
/// [`Enqueued`](CallEvent::Enqueued), then [`Admitted`](CallEvent::Admitted) or
/// [`Refused`](CallEvent::Refused); [`Sent`](CallEvent::Sent), then [`Accepted`](CallEvent::Accepted) if
/// Gemini takes the call up; [`Ended`](CallEvent::Ended); and after [`RetryAt`](CallEvent::RetryAt) from
/// the start. If the caller gives a call up, no further event comes.
///
/// The methods run where calls are made, so they neither block nor panic.
pub trait CallObserver: fmt::Debug + Send + Sync {
    /// Something happens to a call.
    fn observe(&self, event: &CallEvent<'_>);

    /// The position in a trace that the attempt which was just [`Sent`](CallEvent::Sent) carries to Gemini.
    fn trace_context(&self) -> Option<Box<TraceContext>> {
        None
    }

    /// The id of the trace that the calls are part of, if it is kept.
    fn trace_id(&self) -> Option<TraceId> {
        None
    }

    /// An observer of the item with this index, where the piece of work is a batch.
    fn item(&self, _index: u64) -> Option<Arc<dyn CallObserver>> {
        None
    }
}

/// What happens to a call.
#[derive(Debug, Clone, Copy)]
pub enum CallEvent<'a> {
    /// It waits for admission: for the first time, to be sent again, or in another service tier.
    Enqueued(&'a Call),
    /// It was admitted.
    Admitted {
        /// How long it waited at the head of its queue.
        waited: Duration,
        /// The limit that it waited for the longest.
        held_by: Option<HeldBy>,
    },
    /// It was not admitted.
    Refused(&'a CallError),
    /// An attempt is sent to Gemini.
    Sent(SentAttempt<'a>),
    /// Gemini takes the attempt up: the whole answer has come, or the first piece of it.
    Accepted {
        /// The status of the answer.
        status: StatusCode,
    },
    /// The attempt has ended, and so has its answer.
    Ended(&'a EndedAttempt<'a>),
    /// The call failed with a transient error, and is enqueued again then.
    RetryAt(Instant),
}

/// An attempt that is sent.
#[derive(Debug, Clone, Copy)]
pub struct SentAttempt<'a> {
    /// The call, in the service tier in which it is sent.
    pub call: &'a Call,
    /// The number of the attempt in its tier, from 1.
    pub attempt: usize,
    /// Whether a stream is asked for.
    pub streams: bool,
    /// The body, if the gateway reads the answer itself.
    pub body: Option<&'a Bytes>,
}

/// An attempt that has ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedAttempt<'a> {
    /// `success`, `cancelled` if the client hung up, or the code of the error.
    pub outcome: &'static str,
    /// The status of an answer with an error.
    pub status: Option<StatusCode>,
    /// The model that answered, where Gemini names it.
    pub answered_by: Option<&'a Model>,
    /// The tokens, with what they cost.
    pub usage: Usage,
    /// The answer, if the gateway has read it whole.
    pub answer: Option<&'a Answer>,
}

impl Call {
    pub(crate) fn observe(&self, event: CallEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.observe(&event);
        }
    }

    /// Tells how the wait for admission ended.
    pub(super) fn observe_end_of_wait(&self, admission: &Result<Admission, CallError>) {
        self.observe(match admission {
            Ok(Admission { waited, held_by, .. }) => {
                CallEvent::Admitted { waited: *waited, held_by: *held_by }
            }
            Err(error) => CallEvent::Refused(error),
        });
    }
}
