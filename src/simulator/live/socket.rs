//! WebSockets that carry JSON.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::simulator::refusal::ErrorResponse;
use crate::simulator::state::Simulator;
use crate::simulator::target::{api_key, check_key};

/// The largest message, in bytes.
const MAX_MESSAGE: usize = 16 << 20;

/// How many messages are kept while a turn is being answered.
const MAX_PENDING: usize = 1_000;

/// How long the simulator waits for the client to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest reason that a close frame can hold, in bytes.
const MAX_REASON: usize = 123;

/// A WebSocket that carries JSON.
pub(super) struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    /// What arrived while a turn was being answered.
    pending: VecDeque<Message>,
}

/// Why nothing more is read from a socket: the client closed it, or the connection broke.
pub(super) struct Closed;

/// Why a session ends.
pub(super) enum End {
    /// The client closed the socket, or the connection broke.
    Closed,
    /// The simulator closes it.
    Refused(ErrorResponse),
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<ErrorResponse> for End {
    fn from(refusal: ErrorResponse) -> Self {
        Self::Refused(refusal)
    }
}

/// Switches a connection to a WebSocket and serves it with the session's key.
pub(super) fn upgrade<F>(
    simulator: Simulator,
    mut request: Request,
    serve: impl FnOnce(Simulator, Socket, String) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let key = api_key(request.headers(), request.uri());
    let key = match check_key(key, simulator.options()) {
        Ok(key) => key.to_owned(),
        Err(refusal) => return refusal.into_response(),
    };
    let Some(accepted) = accept(&request) else {
        return ErrorResponse::invalid_argument("A WebSocket handshake is expected.")
            .into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let session = simulator.collector().live_session_opened();
    tokio::spawn(async move {
        let _session = session;
        if let Ok(upgraded) = upgraded.await {
            let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
            let io = TokioIo::new(upgraded);
            let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            serve(simulator, Socket { stream, pending: VecDeque::new() }, key).await;
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    response
}

/// The answer to the key of a handshake.
fn accept(request: &Request) -> Option<HeaderValue> {
    let header = |name| request.headers().get(name)?.to_str().ok();
    let is_websocket = header(header::UPGRADE)?.eq_ignore_ascii_case("websocket");
    let is_current = header(header::SEC_WEBSOCKET_VERSION)? == "13";
    let key = header(header::SEC_WEBSOCKET_KEY).filter(|_| is_websocket && is_current)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

impl Socket {
    /// Receives the next message.
    ///
    /// # Errors
    ///
    /// Ends where the client closes the socket, and refuses a message that is not JSON.
    pub async fn receive(&mut self) -> Result<Value, End> {
        loop {
            let next = match self.pending.pop_front() {
                Some(message) => Some(Ok(message)),
                None => self.stream.next().await,
            };
            let bytes = match next {
                Some(Ok(Message::Text(text))) => text.as_bytes().to_vec(),
                Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(End::Closed),
            };
            return serde_json::from_slice(&bytes).map_err(|error| {
                ErrorResponse::invalid_argument(format!("Invalid JSON payload received. {error}"))
                    .into()
            });
        }
    }

    /// Runs a task unless the client leaves before it ends. What else the client sends is kept for
    /// later.
    pub async fn unless_closed<T>(
        &mut self,
        task: impl Future<Output = Result<T, ErrorResponse>>,
    ) -> Result<T, End> {
        let mut task = pin!(task);
        loop {
            tokio::select! {
                biased;
                done = &mut task => return Ok(done?),
                message = self.stream.next(), if self.pending.len() < MAX_PENDING => match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(End::Closed),
                    Some(Ok(message)) => self.pending.push_back(message),
                },
            }
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &Value) -> Result<(), Closed> {
        let sent: Result<(), Error> = self.stream.send(Message::text(message.to_string())).await;
        sent.map_err(|_| Closed)
    }

    /// Closes the socket normally.
    pub async fn close(&mut self) {
        self.close_with(CloseCode::Normal, String::new()).await;
    }

    /// Closes the socket for a refusal: as a policy violation, or as an internal error where the
    /// request is not at fault.
    pub async fn refuse(&mut self, refusal: &ErrorResponse) {
        let body: Value = serde_json::from_slice(refusal.body()).unwrap_or_default();
        let mut reason = body["error"]["message"].as_str().unwrap_or_default().to_owned();
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let at_fault = matches!(refusal.status(), StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND);
        let code = if at_fault { CloseCode::Policy } else { CloseCode::Error };
        self.close_with(code, reason).await;
    }

    async fn close_with(&mut self, code: CloseCode, reason: String) {
        let frame = CloseFrame { code, reason: reason.into() };
        // The client may be gone.
        _ = self.stream.close(Some(frame)).await;
        let closed = async { while let Some(Ok(_)) = self.stream.next().await {} };
        _ = timeout(CLOSE_TIMEOUT, closed).await;
    }
}
