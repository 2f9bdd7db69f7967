//! The client's end of a connection, which can be watched while it is read from and written to.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection::BUFFER;
use super::state::State;

/// How much is read ahead of what is asked for, in bytes: as much as the headers of the next request
/// may take.
pub(super) const READ_AHEAD: usize = 2 * BUFFER;

/// How much is read ahead at once, in bytes.
const PIECE: usize = 4096;

/// What a connection over HTTP/2 begins with. Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection's socket. Clones are the same socket.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    /// What was read before it was asked for.
    ahead: Mutex<BytesMut>,
    state: Arc<State>,
}

impl Stream {
    pub(super) fn new(socket: TcpStream, state: Arc<State>) -> Self {
        Self { shared: Arc::new(Shared { socket, ahead: Mutex::default(), state }) }
    }

    /// Waits until the client has closed its side, also while what it sent before is not read: the
    /// end of what can be read is not seen behind bytes that nobody reads.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) async fn peer_closed(&self) {
        // Urgent data is not subscribed to, so that only the end of the stream is ready here.
        let _ = self.shared.socket.ready(tokio::io::Interest::PRIORITY).await;
    }

    /// Elsewhere the end is seen when all before it is read.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) async fn peer_closed(&self) {
        std::future::pending().await
    }

    /// Reads on while nobody asks for what the client sends. Ready when the client has closed its
    /// side, or has sent more than is read ahead. What fills the receive buffer of the system holds
    /// up the end of the stream: a client that has left cannot be told from one that sends without
    /// measure, and neither waits for an answer.
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

    /// Whether the client speaks HTTP/2 with prior knowledge: as many of its first bytes are read
    /// as it takes to know, and are kept.
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

    /// Reads ahead, until so many bytes are kept at most.
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

    /// Reads what the system has received, nothing at its end.
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

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ahead = self.shared.ahead();
        let read = if ahead.is_empty() {
            ready!(self.shared.poll_read(buffer, context))?
        } else {
            let read = ahead.len().min(buffer.remaining());
            buffer.put_slice(&ahead.split_to(read));
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

impl Stream {
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

impl AsyncWrite for Stream {
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
