//! Serves one request over HTTP/1. The unread rest of a body must not be taken for the next request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use tower::ServiceExt;

use super::Shutdown;
use super::state::{RemainingBody, State};
use crate::upgrade::Takeover;

/// The most bytes of an unread body that are read so that the connection can serve another request, and
/// the most time for it.
const DRAINED: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// Answers one request. If its body was not read to the end, and the rest is not short and available at
/// once, the answer announces that the connection closes. So does every answer once a shutdown is
/// announced: a client that is told does not send its next request on a connection that ends.
pub(super) async fn exchange(
    router: Router,
    mut request: Request<Incoming>,
    state: Arc<State>,
    takeover: Takeover,
    shutdown: &Shutdown,
) -> Result<Response<Http1Body>, Infallible> {
    // Reading a body with `Expect: 100-continue` would make the client send it.
    let drains = !request.headers().contains_key(EXPECT);
    state.request(!request.body().is_end_stream());
    if request.headers().contains_key(UPGRADE) {
        request.extensions_mut().insert(takeover);
    }
    let on_body_over = {
        let state = Arc::clone(&state);
        move |rest| state.body_over(rest)
    };
    let request = request.map(|body| RequestBody::of(body, on_body_over));
    let mut response = router.oneshot(request).await?;
    let is_read = match state.take_rest() {
        RemainingBody::Read => true,
        RemainingBody::Unread(rest) => drains && drain(rest).await,
        RemainingBody::Reading => false,
    };
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !is_read || (shutdown.announced.is_cancelled() && !switches) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        state.will_linger();
    }
    Ok(response.map(|body| Http1Body { body, state }))
}

/// Tells handlers the address from which a request came.
pub(super) fn with_peer<B>(mut request: Request<B>, peer: Option<SocketAddr>) -> Request<B> {
    if let Some(peer) = peer {
        request.extensions_mut().insert(ConnectInfo(peer));
    }
    request
}

/// Reads the rest of a short body. Returns whether it was read to the end.
pub(super) async fn drain(mut rest: Incoming) -> bool {
    if rest.size_hint().upper().is_none_or(|left| left > DRAINED) {
        return false;
    }
    let drained = async {
        while let Some(frame) = rest.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    timeout(DRAIN_TIME, drained).await.unwrap_or(false)
}

/// The body of a request. Its callback gets the unread rest, or `None` at the end of the body.
pub(super) struct RequestBody<F: Fn(Option<Incoming>)> {
    /// `None` after its end.
    body: Option<Incoming>,
    on_over: F,
}

impl<F: Fn(Option<Incoming>) + Send + Unpin + 'static> RequestBody<F> {
    pub(super) fn of(body: Incoming, on_over: F) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self { body: Some(body), on_over })
    }
}

impl<F: Fn(Option<Incoming>) + Unpin> hyper::body::Body for RequestBody<F> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        // A body of known length is not polled at its end.
        if matches!(frame, None | Some(Err(_))) || body.is_end_stream() {
            self.body = None;
            (self.on_over)(None);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}

impl<F: Fn(Option<Incoming>)> Drop for RequestBody<F> {
    fn drop(&mut self) {
        if let Some(rest) = self.body.take() {
            (self.on_over)(Some(rest));
        }
    }
}

/// The body of an answer. Dropping it marks the request as answered.
pub(super) struct Http1Body {
    body: Body,
    state: Arc<State>,
}

impl hyper::body::Body for Http1Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Http1Body {
    fn drop(&mut self) {
        self.state.answered();
    }
}
