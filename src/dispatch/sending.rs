//! A body of whatever size on its way to Gemini, and whether its sender or Gemini is waited for.

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

/// Tells how far a body is.
#[derive(Debug)]
pub struct Sending(watch::Receiver<State>);

/// What became of the sender of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFault {
    /// It sent nothing for too long.
    TooSlow,
    /// Its connection broke, or what it sent is no body.
    Broken,
}

/// Which side the service waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Gemini: to be reached, to take what was received, or to answer.
    Gemini { since: Instant },
    /// The client.
    Client,
    /// Nobody: the client failed.
    Failed(ClientFault),
}

impl State {
    fn gemini() -> Self {
        Self::Gemini { since: Instant::now() }
    }
}

impl Sending {
    /// A body, and what tells how far it is.
    pub fn of<B>(body: B) -> (UnsyncBoxBody<Bytes, BoxError>, Self)
    where
        B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
    {
        let (state, sending) = watch::channel(State::gemini());
        (Watched { body: Box::pin(body), state }.boxed_unsync(), Self(sending))
    }

    /// There is no body.
    pub fn nothing() -> Self {
        Self(watch::channel(State::gemini()).1)
    }

    /// Why the body did not come whole, if the client is to blame.
    pub fn fault(&self) -> Option<ClientFault> {
        match *self.0.borrow() {
            State::Failed(fault) => Some(fault),
            _ => None,
        }
    }

    /// Waits until Gemini was waited for so long without a break. While the client is waited for,
    /// or has failed, this takes for ever.
    pub(super) async fn overdue(&mut self, limit: Duration) {
        loop {
            let state = *self.0.borrow_and_update();
            let late = async {
                match state {
                    State::Gemini { since } => sleep_until(since + limit).await,
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

/// Waits for a change; for ever where there will be none.
async fn changed(state: &mut watch::Receiver<State>) {
    if state.changed().await.is_err() {
        pending().await
    }
}

/// A body that tells how far it is.
struct Watched<B> {
    body: Pin<Box<B>>,
    state: watch::Sender<State>,
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
            Poll::Pending => State::Client,
            Poll::Ready(Some(Err(error))) if error.is::<TimeoutError>() => {
                State::Failed(ClientFault::TooSlow)
            }
            Poll::Ready(Some(Err(_))) => State::Failed(ClientFault::Broken),
            Poll::Ready(_) => State::gemini(),
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
    /// Nothing more is asked of the client.
    fn drop(&mut self) {
        self.state.send_if_modified(|state| {
            let waits = *state == State::Client;
            if waits {
                *state = State::gemini();
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

    /// A body of what is sent to it.
    fn body() -> (mpsc::UnboundedSender<Piece>, UnsyncBoxBody<Bytes, BoxError>, Sending) {
        let (client, pieces) = mpsc::unbounded_channel();
        let pieces = unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let (body, sending) = Sending::of(StreamBody::new(pieces));
        (client, body, sending)
    }

    fn piece() -> Piece {
        Ok(Frame::data(Bytes::from_static(b"x")))
    }

    async fn is_late(sending: &mut Sending, after: Duration) -> bool {
        advance(after).await;
        sending.overdue(LIMIT).now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_stands_while_the_client_is_waited_for() {
        let (client, mut body, mut sending) = body();
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_late(&mut sending, 100 * LIMIT).await);
        client.send(piece()).unwrap();
        assert!(body.frame().now_or_never().is_some());
        assert!(!is_late(&mut sending, LIMIT / 2).await);
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_late(&mut sending, 100 * LIMIT).await);
        drop(client);
        assert!(body.frame().await.is_none());
        assert!(!is_late(&mut sending, LIMIT / 2).await);
        assert!(is_late(&mut sending, LIMIT).await);
        assert_eq!(sending.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_while_gemini_does_not_take_the_body() {
        let (_client, body, mut sending) = body();
        assert!(!is_late(&mut sending, LIMIT / 2).await);
        assert!(is_late(&mut sending, LIMIT).await);
        drop(body);
        assert!(is_late(&mut sending, Duration::ZERO).await);
        let mut nothing = Sending::nothing();
        assert!(!is_late(&mut nothing, LIMIT / 2).await);
        assert!(is_late(&mut nothing, LIMIT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_starts_when_the_body_is_dropped_unread() {
        let (_client, mut body, mut sending) = body();
        assert!(body.frame().now_or_never().is_none());
        drop(body);
        assert!(!is_late(&mut sending, LIMIT / 2).await);
        assert!(is_late(&mut sending, LIMIT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_fails_is_to_blame() {
        let (client, mut body, mut sending) = body();
        client.send(Err("broken".into())).unwrap();
        assert!(body.frame().await.unwrap().is_err());
        drop(body);
        assert_eq!(sending.fault(), Some(ClientFault::Broken));
        assert!(!is_late(&mut sending, 100 * LIMIT).await);
    }
}
