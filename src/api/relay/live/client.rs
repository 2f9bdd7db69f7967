//! The client's WebSocket.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::gateway::Gateway;
use crate::memory::{BodyBudget, OverBudget, Share};

/// How much is read from the connection at once, in bytes.
const READ_BUFFER: usize = 16 << 10;

/// The length of the header of a client's control frame, in bytes. Source: RFC 6455, section 5.2.
const MASKED_HEADER: usize = 6;

/// How many messages are kept that arrive before the session is open. Each takes about 100 bytes beside
/// its own.
pub(super) const MAX_EARLY: usize = 1024;

type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// A client's WebSocket.
pub(super) struct Client {
    pub sender: Sender,
    pub receiver: Receiver,
}

/// Sends messages to the client.
pub(super) struct Sender(SplitSink<Socket, Message>);

/// Receives messages from the client. The bytes of a message take memory from the budget for request
/// bodies until the message is relayed.
pub(super) struct Receiver {
    stream: SplitStream<Socket>,
    share: Arc<Mutex<Share>>,
    bodies: Arc<BodyBudget>,
    /// The most bytes of one message, and of all that arrive before the session is open.
    largest: usize,
    /// Messages that arrived before the session was open.
    early: VecDeque<Message>,
    last_read: Arc<LastTime>,
}

/// Why no more messages come from a client.
#[derive(Debug)]
pub(super) enum ClientEnd {
    /// The client closed the session.
    Closed(Option<CloseFrame>),
    /// The connection broke, or the client does not answer.
    Gone,
    /// A message is larger than this many bytes.
    TooLarge(usize),
    /// More messages than are kept, or more bytes than this in total, came before the session was open.
    TooEarly(usize),
    /// There is no memory for a message.
    OverBudget,
    /// The client violates the protocol.
    Invalid,
}

/// When something happened last.
#[derive(Debug)]
pub(super) struct LastTime(Mutex<Instant>);

impl LastTime {
    /// It happened now.
    pub fn now() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    /// It has happened again.
    pub fn touch(&self) {
        *self.lock() = Instant::now();
    }

    /// When it happened.
    pub fn get(&self) -> Instant {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// The WebSocket on a connection whose handshake is done.
    pub async fn new(connection: Upgraded, gateway: &Gateway) -> Self {
        let bodies = Arc::clone(&gateway.bodies);
        let largest = gateway.config.max_body_bytes.min(bodies.largest());
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        let (share, last_read) = (Arc::new(Mutex::new(bodies.share())), LastTime::now());
        let io = Metered {
            io: TokioIo::new(connection),
            share: Arc::clone(&share),
            last_read: Arc::clone(&last_read),
        };
        let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let (sender, stream) = stream.split();
        let early = VecDeque::new();
        Self {
            sender: Sender(sender),
            receiver: Receiver { stream, share, bodies, largest, early, last_read },
        }
    }

    /// Closes the session, and waits until the client has closed it too.
    pub async fn close(&mut self, frame: Option<CloseFrame>) {
        self.sender.close(frame).await;
        self.receiver.discard().await;
    }
}

impl Sender {
    /// Sends a message, and waits until all of it is written to the connection.
    pub async fn send(&mut self, message: Message) -> Result<(), ClientEnd> {
        self.0.send(message).await.map_err(|_| ClientEnd::Gone)
    }

    /// Sends a close frame; if the client has sent one, answers it with the same.
    pub async fn close(&mut self, frame: Option<CloseFrame>) {
        if self.0.send(Message::Close(frame)).await.is_err() {
            let _ = self.0.close().await;
        }
    }
}

impl Receiver {
    /// Receives the next message. Dropping the future loses no message.
    pub async fn receive(&mut self) -> Result<Message, ClientEnd> {
        match self.early.pop_front() {
            Some(message) => Ok(message),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Message, ClientEnd> {
        loop {
            match self.stream.next().await {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return Ok(message),
                Some(Ok(Message::Close(frame))) => return Err(ClientEnd::Closed(frame)),
                // The library answers pings.
                Some(Ok(Message::Ping(payload) | Message::Pong(payload))) => {
                    self.give_back(MASKED_HEADER + payload.len());
                }
                Some(Ok(Message::Frame(_))) => {}
                Some(Err(error)) => return Err(end(error)),
                None => return Err(ClientEnd::Gone),
            }
        }
    }

    /// Gives the memory back that a control frame took. It may stand between the fragments of a message,
    /// which keep theirs.
    fn give_back(&self, bytes: usize) {
        self.share.lock().unwrap_or_else(PoisonError::into_inner).shrink(bytes);
    }

    /// Gives the memory back that the last message took, after it was relayed.
    pub fn relayed(&mut self) {
        if self.early.is_empty() {
            *self.share.lock().unwrap_or_else(PoisonError::into_inner) = self.bodies.share();
        }
    }

    /// Waits until the client closes the session, is gone, or has sent too much. Keeps the messages that
    /// arrive meanwhile: only one that is read shows whether the client is still there.
    pub async fn end(&mut self) -> ClientEnd {
        let mut bytes: usize = self.early.iter().map(Message::len).sum();
        loop {
            match self.read().await {
                Ok(message) => {
                    bytes += message.len();
                    self.early.push_back(message);
                }
                Err(end) => return end,
            }
            if self.early.len() > MAX_EARLY || bytes > self.largest {
                return ClientEnd::TooEarly(self.largest);
            }
        }
    }

    /// When bytes were last read from the client.
    pub fn last_read(&self) -> Arc<LastTime> {
        Arc::clone(&self.last_read)
    }

    /// Discards all messages until the client closes.
    async fn discard(&mut self) {
        self.early.clear();
        while let Some(Ok(_)) = self.stream.next().await {
            self.relayed();
        }
    }
}

fn end(error: Error) -> ClientEnd {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            ClientEnd::TooLarge(max_size)
        }
        Error::Io(error) if error.get_ref().is_some_and(|error| error.is::<OverBudget>()) => {
            ClientEnd::OverBudget
        }
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => ClientEnd::Gone,
        Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_) => ClientEnd::Invalid,
        _ => ClientEnd::Gone,
    }
}

/// A connection from which no more is read than there is memory for.
struct Metered<T> {
    io: T,
    share: Arc<Mutex<Share>>,
    last_read: Arc<LastTime>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.last_read.touch();
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        Poll::Ready(share.grow(read).map_err(io::Error::other))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
