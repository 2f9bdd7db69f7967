//! The client's side of a session.

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

/// How much is read from a socket at once, in bytes.
const READ_BUFFER: usize = 16 << 10;

type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// A client's WebSocket.
pub(super) struct Client {
    pub sender: Sender,
    pub receiver: Receiver,
}

/// Sends to the client.
pub(super) struct Sender(SplitSink<Socket, Message>);

/// Receives from the client. What has come of a message takes its share of the memory for bodies.
pub(super) struct Receiver {
    stream: SplitStream<Socket>,
    share: Arc<Mutex<Share>>,
    bodies: Arc<BodyBudget>,
    /// A message that came before anything could be done with it.
    early: Option<Message>,
    heard: Arc<Moment>,
}

/// Why nothing more comes from a client.
#[derive(Debug)]
pub(super) enum NoMore {
    /// It closed the session.
    Closed(Option<CloseFrame>),
    /// Its connection broke.
    Gone,
    /// Its message is larger than this many bytes.
    TooLarge(usize),
    /// There is no memory for its message.
    OverBudget,
    /// What it sends is not in the protocol.
    Invalid,
}

/// When something happened last.
pub(super) struct Moment(Mutex<Instant>);

impl Moment {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    /// It happens.
    pub fn now(&self) {
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
        let share = Arc::new(Mutex::new(bodies.share()));
        let io = Metered { io: TokioIo::new(connection), share: Arc::clone(&share) };
        let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let (sender, stream) = stream.split();
        let receiver = Receiver { stream, share, bodies, early: None, heard: Moment::new() };
        Self { sender: Sender(sender), receiver }
    }

    /// Closes the session, and waits for the client to close its side too.
    pub async fn close(&mut self, frame: Option<CloseFrame>) {
        self.sender.close(frame).await;
        self.receiver.drain().await;
    }
}

impl Sender {
    /// Sends a message, and waits until the connection has taken all of it.
    pub async fn send(&mut self, message: Message) -> Result<(), NoMore> {
        self.0.send(message).await.map_err(|_| NoMore::Gone)
    }

    /// Sends a close frame, or answers the client's.
    pub async fn close(&mut self, frame: Option<CloseFrame>) {
        if self.0.send(Message::Close(frame)).await.is_err() {
            // Where the client has closed, its frame is answered with the same.
            let _ = self.0.close().await;
        }
    }
}

impl Receiver {
    /// Receives the next message. Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Message, NoMore> {
        if let Some(early) = self.early.take() {
            return Ok(early);
        }
        loop {
            let message = match self.stream.next().await {
                None => return Err(NoMore::Gone),
                Some(Err(error)) => return Err(no_more(error)),
                Some(Ok(message)) => message,
            };
            self.heard.now();
            match message {
                Message::Text(_) | Message::Binary(_) => return Ok(message),
                Message::Close(frame) => return Err(NoMore::Closed(frame)),
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// A message has been passed on: its memory is free.
    pub fn passed_on(&mut self) {
        let share = self.bodies.share();
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = share;
        self.heard.now();
    }

    /// Waits until the client closes or is gone. One message that comes before is kept; then nothing
    /// more is read.
    pub async fn ended(&mut self) -> NoMore {
        if self.early.is_none() {
            match self.receive().await {
                Ok(message) => self.early = Some(message),
                Err(end) => return end,
            }
        }
        std::future::pending().await
    }

    /// When the client sent something last.
    pub fn heard(&self) -> Arc<Moment> {
        Arc::clone(&self.heard)
    }

    /// Throws away what comes until the client closes.
    async fn drain(&mut self) {
        while let Some(Ok(_)) = self.stream.next().await {
            self.passed_on();
        }
    }
}

fn no_more(error: Error) -> NoMore {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            NoMore::TooLarge(max_size)
        }
        Error::Io(error) if error.get_ref().is_some_and(|error| error.is::<OverBudget>()) => {
            NoMore::OverBudget
        }
        // A client that does not close properly is gone.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => NoMore::Gone,
        Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_) => NoMore::Invalid,
        _ => NoMore::Gone,
    }
}

/// A connection that is read only as far as there is memory for what comes.
struct Metered<T> {
    io: T,
    share: Arc<Mutex<Share>>,
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
