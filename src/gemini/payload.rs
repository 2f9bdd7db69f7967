//! The body of a call, which is sent only if a check still allows it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, SizeHint};

use super::BoxError;

/// Returns whether a call may still be sent.
pub type SendCheck = Arc<dyn Fn() -> bool + Send + Sync>;

/// The body of a call.
#[derive(Debug)]
pub enum Payload {
    /// A complete body, which can be sent again.
    Buffered(Full<Bytes>),
    /// A body of any size that is sent as it arrives.
    Streaming(UnsyncBoxBody<Bytes, BoxError>),
}

/// A body that is sent only if the check allows it. The connection asks for the body right before it
/// writes head and body together, on any thread and any time after the call was made.
pub(super) struct CheckedBody {
    pub(super) payload: Payload,
    pub(super) send_check: Option<SendCheck>,
    /// Whether a connection has asked for the body, so that part of the request may be written.
    pub(super) written: Arc<AtomicBool>,
}

/// The check did not allow the call.
#[derive(Debug, thiserror::Error)]
#[error("the call may no longer be sent")]
struct NotAllowed;

impl Body for CheckedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.send_check.as_ref().is_some_and(|may_send| !may_send()) {
            return Poll::Ready(Some(Err(NotAllowed.into())));
        }
        self.written.store(true, Ordering::Relaxed);
        match &mut self.payload {
            Payload::Buffered(body) => {
                Pin::new(body).poll_frame(context).map_err(|never| match never {})
            }
            Payload::Streaming(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = match &self.payload {
            Payload::Buffered(body) => body.is_end_stream(),
            Payload::Streaming(body) => body.is_end_stream(),
        };
        // An empty body is not polled: its head may be written from here on.
        if is_over {
            self.written.store(true, Ordering::Relaxed);
        }
        is_over
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Buffered(body) => body.size_hint(),
            Payload::Streaming(body) => body.size_hint(),
        }
    }
}
