//! The progress of a body of any size on its way to Gemini, which tells whether the client or Gemini
//! is waited for.

use std::future::pending;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tower_http::timeout::TimeoutError;

use crate::gemini::BoxError;

/// The progress of a body that is passed on.
#[derive(Debug)]
pub struct UploadProgress(watch::Receiver<WaitingFor>);

/// What the client did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFault {
    /// It sent nothing for too long.
    TooSlow,
    /// Its connection broke, or its body is malformed.
    Broken,
}

/// Which side the gateway waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitingFor {
    /// Gemini: to be reached, to take what was received, or to answer.
    Gemini { since: Instant },
    /// The client.
    Client,
    /// Neither: the client failed.
    Nobody(ClientFault),
}

impl WaitingFor {
    fn gemini() -> Self {
        Self::Gemini { since: Instant::now() }
    }
}

impl UploadProgress {
    /// Watches a body: the body to send, and its progress.
    pub fn of<B>(body: B) -> (UnsyncBoxBody<Bytes, BoxError>, Self)
    where
        B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
    {
        let (state, progress) = watch::channel(WaitingFor::gemini());
        (Watched { body: Box::pin(body), state }.boxed_unsync(), Self(progress))
    }

    /// The progress of a request without a body.
    pub fn without_body() -> Self {
        Self(watch::channel(WaitingFor::gemini()).1)
    }

    /// What the client did wrong, if the body broke off because of it.
    pub fn fault(&self) -> Option<ClientFault> {
        match *self.0.borrow() {
            WaitingFor::Nobody(fault) => Some(fault),
            _ => None,
        }
    }

    /// Completes once Gemini has been waited for so long without a break. It never completes while the
    /// client is waited for, or after the client failed.
    pub(super) async fn overdue(&mut self, limit: Duration) {
        loop {
            let state = *self.0.borrow_and_update();
            let late = async {
                match state {
                    WaitingFor::Gemini { since } => sleep_until(since + limit).await,
                    _ => pending().await,
                }
            };
            tokio::select! {
                () = late => return,
                changed = changed(&mut self.0) => changed,
            }
        }
    }
}

/// Waits for a change; for ever where none can come.
async fn changed(state: &mut watch::Receiver<WaitingFor>) {
    if state.changed().await.is_err() {
        pending().await
    }
}

/// A body that reports its progress.
struct Watched<B> {
    body: Pin<Box<B>>,
    state: watch::Sender<WaitingFor>,
}

impl<B: Body<Data = Bytes, Error = BoxError>> Body for Watched<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = self.body.as_mut().poll_frame(context);
        let state = match &frame {
            Poll::Pending => WaitingFor::Client,
            Poll::Ready(Some(Err(error))) if error.is::<TimeoutError>() => {
                WaitingFor::Nobody(ClientFault::TooSlow)
            }
            Poll::Ready(Some(Err(_))) => WaitingFor::Nobody(ClientFault::Broken),
            Poll::Ready(_) => WaitingFor::gemini(),
        };
        self.state.send_replace(state);
        Poll::Ready(ready!(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Watched<B> {
    /// From here on the client is not waited for.
    fn drop(&mut self) {
        self.state.send_if_modified(|state| {
            let waits = *state == WaitingFor::Client;
            if waits {
                *state = WaitingFor::gemini();
            }
            waits
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream::unfold;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    type Piece = Result<Frame<Bytes>, BoxError>;

    /// A body of the pieces that are sent to the channel.
    fn body() -> (mpsc::UnboundedSender<Piece>, UnsyncBoxBody<Bytes, BoxError>, UploadProgress) {
        let (client, pieces) = mpsc::unbounded_channel();
        let pieces = unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let (body, progress) = UploadProgress::of(StreamBody::new(pieces));
        (client, body, progress)
    }

    fn piece() -> Piece {
        Ok(Frame::data(Bytes::from_static(b"x")))
    }

    async fn is_late(progress: &mut UploadProgress, after: Duration) -> bool {
        advance(after).await;
        progress.overdue(LIMIT).now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_not_counted_while_the_client_is_waited_for() {
        let (client, mut body, mut progress) = body();
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_late(&mut progress, 100 * LIMIT).await);
        client.send(piece()).unwrap();
        assert!(body.frame().now_or_never().is_some());
        assert!(!is_late(&mut progress, LIMIT / 2).await);
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_late(&mut progress, 100 * LIMIT).await);
        drop(client);
        assert!(body.frame().await.is_none());
        assert!(!is_late(&mut progress, LIMIT / 2).await);
        assert!(is_late(&mut progress, LIMIT).await);
        assert_eq!(progress.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_while_gemini_does_not_take_the_body() {
        let (_client, body, mut progress) = body();
        assert!(!is_late(&mut progress, LIMIT / 2).await);
        assert!(is_late(&mut progress, LIMIT).await);
        drop(body);
        assert!(is_late(&mut progress, Duration::ZERO).await);
        let mut nothing = UploadProgress::without_body();
        assert!(!is_late(&mut nothing, LIMIT / 2).await);
        assert!(is_late(&mut nothing, LIMIT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_from_when_the_body_is_dropped_unread() {
        let (_client, mut body, mut progress) = body();
        assert!(body.frame().now_or_never().is_none());
        drop(body);
        assert!(!is_late(&mut progress, LIMIT / 2).await);
        assert!(is_late(&mut progress, LIMIT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_breaks_off_is_the_clients_fault() {
        let (client, mut body, mut progress) = body();
        client.send(Err("broken".into())).unwrap();
        assert!(body.frame().await.unwrap().is_err());
        drop(body);
        assert_eq!(progress.fault(), Some(ClientFault::Broken));
        assert!(!is_late(&mut progress, 100 * LIMIT).await);
    }
}
