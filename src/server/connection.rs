//! Serves one connection, from its first request to its last.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_io_timeout::TimeoutWriter;

use super::connections::ConnectionGuard;
use super::exchange::{exchange, with_peer};
use super::http2::http2;
use super::state::State;
use super::stream::{BUFFER, ClientStream, Io, LINGER_PAUSE};
use super::timer::poll_timer;
use super::{ServerLimits, Shutdown};
use crate::upgrade::{Session, Takeover};

/// The most memory that a connection takes besides buffered bodies, in bytes: up to two buffers for
/// headers or for the request and its answer, two for bytes read ahead, and its state. Over HTTP/2, each
/// request takes this much.
pub(super) const MEMORY: u64 = 4 * BUFFER as u64;

/// How long a client may take from connecting to its first request while a shutdown begins.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// How long input is read and discarded after the last answer, in total. Closing a connection with unread
/// input resets it, and the client may lose the answer.
const LINGER: Duration = Duration::from_secs(30);

/// Serves one connection as long as it speaks HTTP. Returns the session that follows, if it switches
/// to another protocol.
pub(super) async fn connection(
    socket: TcpStream,
    router: Router,
    limits: ServerLimits,
    shutdown: Shutdown,
    open: &ConnectionGuard,
) -> Option<Session> {
    let state = &open.state;
    let peer = socket.peer_addr().ok();
    // Register the socket with this runtime; it was accepted on another one.
    let here = socket.into_std().and_then(TcpStream::from_std);
    let stream = match here.and_then(|socket| socket.set_nodelay(true).map(|()| socket)) {
        Ok(socket) => ClientStream::new(socket, Arc::clone(state)),
        Err(error) => {
            tracing::debug!(%error, "a connection could not be served");
            return None;
        }
    };
    let is_http2 = tokio::select! {
        biased;
        is_http2 = stream.begins_http2() => is_http2,
        // No complete request has arrived.
        () = stops(&shutdown, state) => false,
        () = must_close(&stream, state, limits) => return None,
    };
    // A client that stops reading would otherwise hold the resources of its answer forever.
    let mut io = TimeoutWriter::new(stream.clone());
    io.set_timeout(Some(limits.client_timeout));
    let io = TokioIo::new(Box::pin(io));
    let takeover = Takeover::default();
    let result = if is_http2 {
        // Boxed because it is large and most connections do not use HTTP/2.
        Box::pin(http2(io, peer, router, limits, shutdown.begins, open)).await
    } else {
        http1(io, (&stream, peer), router, limits, shutdown, state, &takeover).await
    };
    if let Some(session) = takeover.take().filter(|_| matches!(result, Some(Ok(())))) {
        state.upgraded();
        return Some(session);
    }
    if let Some(Err(error)) = &result {
        tracing::debug!(%error, "a connection ended with an error");
    }
    // Input that is not a valid request gets an answer too.
    let was_answered = |error: &hyper::Error| is_http2 || error.is_parse();
    if result
        .is_some_and(|result| state.lingers() || result.is_err_and(|error| was_answered(&error)))
    {
        linger(stream, state).await;
    }
    None
}

/// Serves a connection over HTTP/1. Returns the result, or `None` if it was cut off.
async fn http1(
    io: Io,
    (stream, peer): (&ClientStream, Option<SocketAddr>),
    router: Router,
    limits: ServerLimits,
    shutdown: Shutdown,
    state: &Arc<State>,
    takeover: &Takeover,
) -> Option<hyper::Result<()>> {
    let service = service_fn(|request| {
        let request = with_peer(request, peer);
        exchange(router.clone(), request, Arc::clone(state), takeover.clone(), &shutdown)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The timeout for headers starts with their first byte: see `State::deadline`.
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut closing = pin!(must_close(stream, state, limits));
    let mut stopping = pin!(stops(&shutdown, state));
    let mut has_stopped = false;
    loop {
        tokio::select! {
            // The connection first, because it updates the state.
            biased;
            result = &mut connection => return Some(result),
            // Ending the connection drops its running handler.
            () = &mut closing => return None,
            () = &mut stopping, if !has_stopped => {
                has_stopped = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Waits until the shutdown begins, and until a client that has just connected has had time to send its
/// first request. With `announced`, its connection ends after the answer.
async fn stops(shutdown: &Shutdown, state: &State) {
    shutdown.begins.cancelled().await;
    if let Some(connected_at) = state.connected_at() {
        sleep_until(connected_at + FIRST_REQUEST).await;
    }
}

/// Waits until the connection must end: the client hung up on an answer, exceeded a timeout, or has to
/// make room for another.
async fn must_close(stream: &ClientStream, state: &State, limits: ServerLimits) {
    let mut closed = pin!(stream.peer_closed());
    let mut close_requested = pin!(state.close_requested());
    let mut timer = pin!(sleep(limits.client_timeout));
    let mut hung_up = false;
    poll_fn(|context| {
        hung_up = hung_up
            || closed.as_mut().poll(context).is_ready()
            || (state.is_answering(context.waker()) && stream.poll_read_ahead(context).is_ready());
        // Between two requests, input that was sent before is read to the end.
        if (hung_up && state.has_request()) || close_requested.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(deadline) = state.deadline(&limits) else { return Poll::Pending };
        poll_timer(timer.as_mut(), deadline, context)
    })
    .await;
}

/// Discards further input, so that the client can read the answer.
async fn linger(mut stream: ClientStream, state: &State) {
    state.linger();
    let rest = async {
        let mut buffer = vec![0; BUFFER];
        while let Ok(Ok(1..)) = timeout(LINGER_PAUSE, stream.read(&mut buffer)).await {}
    };
    tokio::select! {
        () = rest => {}
        () = sleep(LINGER) => {}
        () = state.close_requested() => {}
    }
}
