//! Sends an answer over HTTP/2 in small pieces. This bounds the buffer for a client that reads slowly,
//! and shows when everything was sent.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, sleep};

use crate::server::connections::RequestGuard;
use crate::server::stream::BUFFER;
use crate::server::timer::poll_timer;

tokio::task_local! {
    /// The progress of the stream that is polled now.
    static PROGRESS: Arc<SendProgress>;
}

/// The progress of sending an answer.
pub(super) struct SendProgress {
    progress: Mutex<Progress>,
    all_sent: AtomicWaker,
}

struct Progress {
    /// How many pieces are handed to the connection and not sent.
    unsent: usize,
    /// When the client last took something, or could start to.
    since: Instant,
}

impl SendProgress {
    pub(super) fn new() -> Self {
        let progress = Progress { unsent: 0, since: Instant::now() };
        Self { progress: Mutex::new(progress), all_sent: AtomicWaker::new() }
    }

    /// Runs a stream with this progress.
    pub(super) fn scope<F: Future>(
        self: Arc<Self>,
        stream: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        PROGRESS.scope(self, stream)
    }

    /// The progress of the stream that is polled now.
    pub(super) fn current() -> Arc<Self> {
        PROGRESS.get()
    }

    /// Waits until the client has taken nothing of an available answer for `client_timeout`.
    pub(super) async fn stalled(&self, client_timeout: Duration) {
        let mut timer = pin!(sleep(client_timeout));
        poll_fn(|context| {
            let deadline = match *self.progress() {
                Progress { unsent: 0, .. } => return Poll::Pending,
                Progress { since, .. } => since + client_timeout,
            };
            poll_timer(timer.as_mut(), deadline, context)
        })
        .await;
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(self: &Arc<Self>, bytes: Bytes) -> Piece {
        let mut progress = self.progress();
        if progress.unsent == 0 {
            progress.since = Instant::now();
        }
        progress.unsent += 1;
        Piece { bytes, sending: Arc::clone(self) }
    }

    fn poll_all_sent(&self, context: &mut Context<'_>) -> Poll<()> {
        self.all_sent.register(context.waker());
        if self.progress().unsent == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A piece of an answer. It is dropped when it is sent or its stream is reset.
pub(super) struct Piece {
    bytes: Bytes,
    sending: Arc<SendProgress>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.sending.progress().since = Instant::now();
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut progress = self.sending.progress();
        progress.unsent -= 1;
        let all_sent = progress.unsent == 0;
        drop(progress);
        if all_sent {
            self.sending.all_sent.wake();
        }
    }
}

/// The body of an answer. It ends when everything was sent, so that the stream counts until then.
pub(super) struct Http2Body {
    /// `None` after its end.
    body: Option<Body>,
    /// The part of the last frame that is not yet handed to the connection.
    rest: Bytes,
    sending: Arc<SendProgress>,
    _stream: RequestGuard,
}

impl Http2Body {
    pub(super) fn new(body: Body, sending: Arc<SendProgress>, stream: RequestGuard) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        Self { body, rest: Bytes::new(), sending, _stream: stream }
    }
}

impl hyper::body::Body for Http2Body {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        loop {
            if !self.rest.is_empty() {
                let most = self.rest.len().min(BUFFER);
                let bytes = self.rest.split_to(most);
                return Poll::Ready(Some(Ok(Frame::data(self.sending.hand_over(bytes)))));
            }
            let Some(body) = &mut self.body else {
                ready!(self.sending.poll_all_sent(context));
                return Poll::Ready(None);
            };
            match ready!(Pin::new(body).poll_frame(context)) {
                // Trailers are dropped, as over HTTP/1.
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.body = None,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none() && self.rest.is_empty() && self.sending.progress().unsent == 0
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}
