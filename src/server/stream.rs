//! The client's socket, which can be watched for a hang-up while it is read and written.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutWriter;

use super::state::State;

/// The size of the buffers for a request's headers and for an answer, in bytes. Headers of more than
/// twice this size are rejected with 431.
pub(super) const BUFFER: usize = 16 * 1024;

/// How long input may pause while the rest of it is discarded after the last answer.
pub(super) const LINGER_PAUSE: Duration = Duration::from_secs(2);

/// The most bytes that are read ahead: as many as the headers of the next request may have.
pub(super) const READ_AHEAD: usize = 2 * BUFFER;

/// How much is read ahead at once, in bytes.
const PIECE: usize = 4096;

/// The start of a connection over HTTP/2. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The reading and writing end of a connection.
pub(super) type Io = TokioIo<Pin<Box<TimeoutWriter<ClientStream>>>>;

/// The socket of a connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ClientStream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    /// Bytes that were read ahead.
    ahead: Mutex<BytesMut>,
    state: Arc<State>,
}

impl ClientStream {
    pub(super) fn new(socket: TcpStream, state: Arc<State>) -> Self {
        Self { shared: Arc::new(Shared { socket, ahead: Mutex::default(), state }) }
    }

    /// Waits until the client has closed its side. Works even while earlier input is unread, behind
    /// which reading would not see the end.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) async fn peer_closed(&self) {
        // Without interest in urgent data, only the end of the stream is reported here.
        let _ = self.shared.socket.ready(tokio::io::Interest::PRIORITY).await;
    }

    /// On other systems, the end is seen when all earlier input was read.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) async fn peer_closed(&self) {
        std::future::pending().await
    }

    /// Reads ahead while nobody reads the input. Ready when the client has closed its side or has
    /// sent more than is read ahead. More input than that hides the end of the stream, so such a
    /// client cannot be distinguished from one that has hung up; neither is waiting for an answer.
    pub(super) fn poll_read_ahead(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut ahead = self.shared.ahead();
        while ahead.len() < READ_AHEAD {
            match ready!(self.shared.poll_ahead(&mut ahead, READ_AHEAD, context)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }

    /// Whether the client uses HTTP/2 with prior knowledge. Reads ahead as many bytes as it takes to
    /// decide.
    pub(super) async fn begins_http2(&self) -> bool {
        poll_fn(|context| {
            let mut ahead = self.shared.ahead();
            while PREFACE.starts_with(&ahead) && ahead.len() < PREFACE.len() {
                match ready!(self.shared.poll_ahead(&mut ahead, PREFACE.len(), context)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            Poll::Ready(&**ahead == PREFACE)
        })
        .await
    }
}

impl Shared {
    fn ahead(&self) -> MutexGuard<'_, BytesMut> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads ahead, up to `most` bytes in total.
    fn poll_ahead(
        &self,
        ahead: &mut BytesMut,
        most: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut bytes = [0; PIECE];
        let room = PIECE.min(most - ahead.len());
        let mut buffer = &mut bytes[..room];
        let read = ready!(self.poll_read(&mut buffer, context))?;
        ahead.extend_from_slice(&bytes[..read]);
        Poll::Ready(Ok(read))
    }

    /// Reads from the socket; 0 bytes at its end.
    fn poll_read(
        &self,
        buffer: &mut impl BufMut,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ahead = self.shared.ahead();
        let read = if ahead.is_empty() {
            ready!(self.shared.poll_read(buffer, context))?
        } else {
            let mut read = ahead.len().min(buffer.remaining());
            buffer.put_slice(&ahead.split_to(read));
            // What follows is read into the same buffer, which would have to grow for it otherwise. The
            // end of the stream, or an error, is seen by the next read.
            if buffer.remaining() > 0
                && let Poll::Ready(Ok(more)) = self.shared.poll_read(buffer, context)
            {
                read += more;
            }
            read
        };
        if ahead.is_empty() {
            *ahead = BytesMut::new();
        }
        if read > 0 {
            self.shared.state.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl ClientStream {
    fn poll_write_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.shared.socket.poll_write_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.shared.state.sent(true);
                    return Poll::Pending;
                }
            }
            match write(&self.shared.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.shared.state.sent(false);
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |socket| socket.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.shared.socket).shutdown(Shutdown::Write))
    }
}
