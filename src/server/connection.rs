//! One connection, from its first request to its last.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::connections::Open;
use super::exchange::exchange;
use super::http2::http2;
use super::state::State;
use super::stream::Stream;
use crate::upgrade::{Session, Takeover};

/// How much of a request's headers, and of an answer, is kept at once, in bytes. Headers of twice as
/// many are refused with 431.
pub(super) const BUFFER: usize = 16 * 1024;

/// How much memory one connection takes at most beside the bodies that are buffered, in bytes: up
/// to two buffers of headers, or of the request and its answer, two of what is read ahead, and its
/// state. Of one over HTTP/2 it is each request that takes so much.
pub(super) const MEMORY: u64 = 4 * BUFFER as u64;

/// How long what a client still sends is read and thrown away after the last answer: in all, and
/// from one piece to the next. A connection that is closed while something is unread is reset, and
/// the client may lose the answer.
const LINGER: Duration = Duration::from_secs(30);
pub(super) const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// What a connection is read from and written to.
pub(super) type Io = TokioIo<Pin<Box<TimeoutWriter<Stream>>>>;

/// Serves one connection as long as it speaks HTTP. Returns what is done with it afterwards, where
/// it goes on in another protocol.
pub(super) async fn connection(
    socket: TcpStream,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    open: &Open,
) -> Option<Session> {
    let state = &open.state;
    // It was accepted elsewhere; this runtime is the one that is to be woken for it.
    let here = socket.into_std().and_then(TcpStream::from_std);
    let stream = match here.and_then(|socket| socket.set_nodelay(true).map(|()| socket)) {
        Ok(socket) => Stream::new(socket, Arc::clone(state)),
        Err(error) => {
            tracing::debug!(%error, "a connection could not be served");
            return None;
        }
    };
    let is_http2 = tokio::select! {
        biased;
        is_http2 = stream.begins_http2() => is_http2,
        // Whatever has come so far, no request has.
        () = shutdown.cancelled() => false,
        () = over(&stream, state, limits) => return None,
    };
    // A client that stops reading would hold for ever what its answer holds.
    let mut io = TimeoutWriter::new(stream.clone());
    io.set_timeout(Some(limits.client_timeout));
    let io = TokioIo::new(Box::pin(io));
    let takeover = Takeover::default();
    let result = if is_http2 {
        // Boxed: most connections are not, and would be as large.
        Box::pin(http2(io, router, limits, shutdown, open)).await
    } else {
        http1(io, &stream, router, limits, shutdown, state, &takeover).await
    };
    if let Some(session) = takeover.take().filter(|_| matches!(result, Some(Ok(())))) {
        state.upgraded();
        return Some(session);
    }
    if let Some(Err(error)) = &result {
        tracing::debug!(%error, "a connection ended early");
    }
    // What cannot be read as a request is answered too.
    let told = |error: &hyper::Error| is_http2 || error.is_parse();
    if result.is_some_and(|result| state.lingers() || result.is_err_and(|error| told(&error))) {
        linger(stream, state).await;
    }
    None
}

/// Serves a connection over HTTP/1, to the end that is given back: `None` where it was cut off.
async fn http1(
    io: Io,
    stream: &Stream,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    state: &Arc<State>,
    takeover: &Takeover,
) -> Option<hyper::Result<()>> {
    let service = service_fn(|request| {
        exchange(router.clone(), request, Arc::clone(state), takeover.clone())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The time for headers counts from their first byte: see `State::deadline`.
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut over = pin!(over(stream, state, limits));
    let mut stops = false;
    loop {
        tokio::select! {
            // The connection first: the state is what it is afterwards.
            biased;
            result = &mut connection => return Some(result),
            // Ending the connection drops the handler at work for it.
            () = &mut over => return None,
            () = shutdown.cancelled(), if !stops => {
                stops = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Waits until the connection is to be ended: the client hung up on an answer, let a timeout pass,
/// or has to make room for another.
async fn over(stream: &Stream, state: &State, limits: Limits) {
    let mut closed = pin!(stream.peer_closed());
    let mut leave = pin!(state.asked_to_leave());
    let mut timer = pin!(sleep(limits.client_timeout));
    let mut hung_up = false;
    poll_fn(|context| {
        hung_up = hung_up
            || closed.as_mut().poll(context).is_ready()
            || (state.is_answering(context.waker()) && stream.poll_read_ahead(context).is_ready());
        // Between two requests, what the client sent before is read to its end.
        if (hung_up && state.has_request()) || leave.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(deadline) = state.deadline(&limits) else { return Poll::Pending };
        poll_timer(timer.as_mut(), deadline, context)
    })
    .await;
}

/// Whether a deadline has passed. It changes often, and mostly to a later one: the timer is set anew
/// when it has run out.
pub(super) fn poll_timer(
    mut timer: Pin<&mut Sleep>,
    deadline: Instant,
    context: &mut Context<'_>,
) -> Poll<()> {
    if deadline < timer.deadline() {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(context).is_ready() {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

/// Throws away what the client still sends, so that it reads the answer.
async fn linger(mut stream: Stream, state: &State) {
    state.linger();
    let rest = async {
        let mut buffer = vec![0; BUFFER];
        while let Ok(Ok(1..)) = timeout(LINGER_PAUSE, stream.read(&mut buffer)).await {}
    };
    tokio::select! {
        () = rest => {}
        () = sleep(LINGER) => {}
        () = state.asked_to_leave() => {}
    }
}
