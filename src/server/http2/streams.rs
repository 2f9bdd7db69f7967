//! The streams of one connection. They run in the connection's task and end with it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::rt::Executor;

use super::answer::SendProgress;

type StreamTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The streams of one connection. Clones share them.
#[derive(Clone)]
pub(super) struct Streams {
    /// New streams that do not run yet.
    new: Arc<Mutex<Vec<StreamTask>>>,
    client_timeout: Duration,
}

impl Streams {
    pub(super) fn new(client_timeout: Duration) -> Self {
        Self { new: Arc::default(), client_timeout }
    }

    /// Runs all streams. Poll it after the connection, which starts new ones.
    pub(super) async fn run(&self) -> Infallible {
        let mut running = FuturesUnordered::new();
        poll_fn(|context| {
            running.extend(self.new.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
            while let Poll::Ready(Some(())) = running.poll_next_unpin(context) {}
            Poll::Pending
        })
        .await
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let sending = Arc::new(SendProgress::new());
        let stream = AssertUnwindSafe(sending.clone().scope(stream)).catch_unwind();
        let client_timeout = self.client_timeout;
        let stream = async move {
            // Dropping the stream resets it.
            tokio::select! {
                biased;
                ended = stream => if ended.is_err() {
                    tracing::error!("a stream panicked");
                },
                () = sending.stalled(client_timeout) => {
                    tracing::debug!("a client stopped reading its answer");
                }
            }
        };
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(stream));
    }
}
