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
use super::exchange::exchange;
use super::state::State;
use super::stream::Stream;

/// How much of a request's headers, and of an answer, is kept at once, in bytes. Headers of twice as
/// many are refused with 431.
const BUFFER: usize = 16 * 1024;

/// How much memory one connection takes at most that has sent no whole headers yet, in bytes: up to
/// two buffers of them, and its state.
pub(super) const MEMORY: u64 = 4 * BUFFER as u64;

/// How long what a client still sends is read and thrown away after the last answer: in all, and
/// from one piece to the next. A connection that is closed while something is unread is reset, and
/// the client may lose the answer.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// Serves one connection.
pub(super) async fn connection(
    socket: TcpStream,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    state: Arc<State>,
) {
    // It was accepted elsewhere; this runtime is the one that is to be woken for it.
    let here = socket.into_std().and_then(TcpStream::from_std);
    let stream = match here.and_then(|socket| socket.set_nodelay(true).map(|()| socket)) {
        Ok(socket) => Stream::new(socket, Arc::clone(&state)),
        Err(error) => return tracing::debug!(%error, "a connection could not be served"),
    };
    let service = service_fn(|request| exchange(router.clone(), request, Arc::clone(&state)));
    // A client that stops reading would hold for ever what its answer holds.
    let mut writer = TimeoutWriter::new(stream.clone());
    writer.set_timeout(Some(limits.client_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The time for headers counts from their first byte: see `State::deadline`.
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(writer)), service);
    let mut connection = pin!(connection);
    let result = {
        let mut over = pin!(over(&stream, &state, limits));
        let mut stops = false;
        loop {
            tokio::select! {
                // The connection first: the state is what it is afterwards.
                biased;
                result = &mut connection => break result,
                // Ending the connection drops the handler at work for it.
                () = &mut over => return,
                () = shutdown.cancelled(), if !stops => {
                    stops = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = &result {
        tracing::debug!(%error, "a connection ended early");
    }
    // What cannot be read as a request is answered too.
    if state.lingers() || result.is_err_and(|error| error.is_parse()) {
        linger(stream.clone(), &state).await;
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
        hung_up = hung_up || closed.as_mut().poll(context).is_ready();
        // Between two requests, what the client sent before is read to its end.
        if (hung_up && state.has_request()) || leave.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(deadline) = state.deadline(&limits) else { return Poll::Pending };
        poll_timer(timer.as_mut(), deadline, context)
    })
    .await;
}

/// Whether a deadline has passed. It changes with every request, and mostly to a later one: the
/// timer is set anew when it has run out.
fn poll_timer(
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
