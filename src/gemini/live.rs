//! Live sessions: WebSockets to Gemini. Source: Google's Python SDK 3.6.1, `live` and live
//! interactions; a recorded session.

mod close;
mod message;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::Message;

use super::client::read_body;
use super::{ApiKey, Client, Error, ErrorKind, Forward, Payload, Secrets, SendContext};

pub use close::closing_error;
pub use message::{InvalidSetup, LiveApi, LiveUsage};

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// The prefix of all headers of a handshake.
const SEC_WEBSOCKET: &str = "sec-websocket-";

/// The longest message that is accepted from Gemini, in bytes. Messages with audio have tens of
/// kilobytes.
const MAX_MESSAGE: usize = 16 << 20;

/// How much is read from the connection at once, in bytes.
const READ_BUFFER: usize = 16 << 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A WebSocket to Gemini.
pub struct LiveSocket {
    /// Sends messages to Gemini.
    pub sender: LiveSender,
    /// Receives messages from Gemini.
    pub receiver: LiveReceiver,
}

/// Sends messages to Gemini.
pub struct LiveSender(SplitSink<Socket, Message>);

/// Receives messages from Gemini, with the keys in use overwritten.
pub struct LiveReceiver {
    stream: SplitStream<Socket>,
    secrets: Secrets,
}

/// What Gemini sends.
#[derive(Debug)]
pub enum LiveEvent {
    /// A message.
    Message(Message),
    /// The end of the session, with Gemini's reason if it gives one.
    Closed(Option<CloseFrame>),
}

impl Client {
    /// Opens a WebSocket, sends the client's first message, and waits for Gemini's first message, which
    /// accepts the session.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`Error`] if Gemini refuses the handshake, or closes the session instead of accepting it.
    pub(crate) async fn open_live(
        &self,
        request: &Forward,
        api: LiveApi,
        key: &ApiKey,
        setup: Message,
        context: SendContext,
    ) -> Result<(LiveSocket, Message), Error> {
        let secrets = self.secrets(Some(key));
        let (handshake, accept) = handshake(request, api, key);
        let SendContext { check, trace } = context;
        let response = self.send(handshake, SendContext { check: None, trace }).await?;
        let upgraded = upgraded(response, &accept, &secrets).await?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let stream = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
        let (sender, stream) = stream.split();
        let (mut sender, mut receiver) = (LiveSender(sender), LiveReceiver { stream, secrets });
        // The first message is what costs; the handshake does not.
        if check.is_some_and(|may_send| !may_send()) {
            let message = "the session came too late to be opened";
            return Err(Error::new(ErrorKind::Connection, message));
        }
        sender.send(setup).await?;
        match receiver.receive().await? {
            LiveEvent::Message(message) => Ok((LiveSocket { sender, receiver }, message)),
            LiveEvent::Closed(frame) => Err(close::refused(frame.as_ref())),
        }
    }
}

/// The handshake, and the value of `Sec-WebSocket-Accept` that accepts it.
fn handshake(request: &Forward, api: LiveApi, key: &ApiKey) -> (Request<Payload>, String) {
    let nonce = generate_key();
    let accept = derive_accept_key(nonce.as_bytes());
    let mut headers: HeaderMap = request.headers.clone();
    let old: Vec<_> = headers.keys().filter(|name| is_of_handshake(name)).cloned().collect();
    old.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let nonce = HeaderValue::try_from(nonce).expect("base64 can stand in a header");
    headers.insert(SEC_WEBSOCKET_KEY, nonce);
    key.insert_into_live(&mut headers, api);
    let mut handshake = Request::new(Payload::Buffered(Full::default()));
    *handshake.method_mut() = Method::GET;
    *handshake.uri_mut() = request.path.clone();
    *handshake.headers_mut() = headers;
    (handshake, accept)
}

fn is_of_handshake(name: &HeaderName) -> bool {
    name.as_str().starts_with(SEC_WEBSOCKET)
}

/// The connection, if Gemini accepts the handshake.
async fn upgraded(
    response: Response<Incoming>,
    accept: &str,
    secrets: &Secrets,
) -> Result<Upgraded, Error> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let content_type = response.headers().get(CONTENT_TYPE).cloned();
        let body = read_body(status, response.into_body()).await?;
        let foreign = Error::not_gemini(status, content_type.as_ref(), &body);
        return Err(match foreign {
            Some(error) => error,
            None if status.is_success() => not_a_websocket(),
            None => Error::read(status, &secrets.redact_body(body)),
        });
    }
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|accepted| accepted.as_bytes() != accept.as_bytes()) {
        return Err(not_a_websocket());
    }
    hyper::upgrade::on(response).await.map_err(|_| broken())
}

fn not_a_websocket() -> Error {
    Error::new(ErrorKind::Malformed, "Gemini did not accept the handshake for a WebSocket")
}

fn broken() -> Error {
    Error::new(ErrorKind::BrokenOff, "the connection to Gemini broke during the session")
}

/// The error for a failure of the WebSocket.
fn failed(error: tungstenite::Error) -> Error {
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    match error {
        tungstenite::Error::Capacity(_) => Error::too_long(),
        tungstenite::Error::Protocol(ResetWithoutClosingHandshake) => broken(),
        tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_) => {
            let message = "Gemini violated the protocol of WebSockets";
            Error::new(ErrorKind::Malformed, message)
        }
        _ => broken(),
    }
}

impl LiveSender {
    /// Sends a message, and waits until all of it is written to the connection. If the future is
    /// dropped, the rest of the message is sent before the next one.
    ///
    /// # Errors
    /// [`Error`] if the connection broke.
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.0.send(message).await.map_err(failed)
    }

    /// Sends a close frame; if Gemini has sent one, answers it with the same.
    pub async fn close(&mut self, frame: Option<CloseFrame>) {
        if self.0.send(Message::Close(frame)).await.is_err() {
            let _ = self.0.close().await;
        }
    }
}

impl LiveReceiver {
    /// Receives the next message, or the end. Dropping the future loses no message.
    ///
    /// # Errors
    /// [`Error`] if the connection broke, or Gemini violated the protocol.
    pub(crate) async fn receive(&mut self) -> Result<LiveEvent, Error> {
        loop {
            let Some(message) = self.stream.next().await else { return Err(broken()) };
            return Ok(match message.map_err(failed)? {
                Message::Text(text) => {
                    let text = self.secrets.redact_message(text.into()).try_into();
                    LiveEvent::Message(Message::Text(text.map_err(|_| not_a_websocket())?))
                }
                Message::Binary(bytes) => {
                    LiveEvent::Message(Message::Binary(self.secrets.redact_message(bytes)))
                }
                Message::Close(frame) => {
                    LiveEvent::Closed(frame.map(|frame| close::redacted(frame, &self.secrets)))
                }
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            });
        }
    }
}
