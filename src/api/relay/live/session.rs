//! A session, from the client's first message to the close frames.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientEnd, LastTime, MAX_EARLY, Receiver, Sender};
use crate::api::auth::{check_model, check_text};
use crate::api::error::ApiError;
use crate::api::json::measured;
use crate::api::relay::counted::model_of;
use crate::api::single::failed;
use crate::dispatch::{
    Call, CallKind, CallObserver, CallRequest, CountedReceiver, LiveSession, SessionEnd, TierChoice,
};
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Error, Forward, LiveApi, LiveEvent, LiveSender, Model, closing_error};
use crate::limits::Semaphore;
use crate::memory::OverBudget;

/// How long the closing handshake with Gemini may take, and then the one with the client.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The same when the grace period of a shutdown is over.
const SHUTDOWN_CLOSE_TIMEOUT: Duration = Duration::from_millis(400);

/// A session whose handshake is accepted.
pub(super) struct Session {
    pub gateway: Gateway,
    pub api: LiveApi,
    /// The key that pays.
    pub key: ApiKey,
    /// The semaphore that the session holds beside the global one.
    pub semaphore: Option<Arc<dyn Semaphore>>,
    /// The handshake to send to Gemini.
    pub request: Forward,
    /// Who is told what happens to the session's call.
    pub observer: Option<Arc<dyn CallObserver>>,
}

/// Why a session ends.
enum End {
    /// The client ended it.
    Client(ClientEnd),
    /// Gemini closed it.
    Gemini(Option<CloseFrame>),
    /// The connection to Gemini broke.
    Broken(Error),
    /// It is refused.
    Refused(Box<ApiError>),
    /// No message was relayed for `LIVE_IDLE_TIMEOUT_SECONDS`.
    Idle,
    /// It has lasted for `LIVE_TIMEOUT_SECONDS`.
    TimedOut,
    /// The grace period of a shutdown is over.
    ShutDown,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<ClientEnd> for End {
    fn from(end: ClientEnd) -> Self {
        Self::Client(end)
    }
}

impl Session {
    /// Runs the session until it ends, or until `cut_off` is cancelled.
    pub async fn run(self, connection: OnUpgrade, cut_off: CancellationToken) {
        let Ok(connection) = connection.await else { return };
        let started = Instant::now();
        let mut client = Client::new(connection, &self.gateway).await;
        let opened = tokio::select! {
            opened = self.open(&mut client) => opened,
            () = cut_off.cancelled() => Err(End::ShutDown),
        };
        let end = match opened {
            Ok((mut session, first)) => {
                let end = self.relay(&mut client, &mut session, first, &cut_off).await;
                if let End::Client(ClientEnd::Closed(_)) = end {
                    // Before Gemini is waited for.
                    let _ = timeout(CLOSE_TIMEOUT, client.sender.close(None)).await;
                }
                settle(&mut session, &end).await;
                end
            }
            Err(end) => end,
        };
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(end = end.label(), duration_ms, "the live session ended");
        let time_limit = end.close_timeout();
        let _ = timeout(time_limit, self.close(&mut client, end)).await;
    }

    /// Waits for the client's first message and for admission, and opens the session at Gemini.
    /// Returns it with Gemini's first message.
    async fn open(&self, client: &mut Client) -> Result<(LiveSession, Message), End> {
        let gateway = &self.gateway;
        let time_limit = gateway.config.client_timeout;
        let setup = timeout(time_limit, client.receiver.receive()).await;
        let setup = setup.map_err(|_| ApiError::no_first_message(time_limit))??;
        let call = self.call(&setup).await?;
        let opening = gateway.dispatcher.open_live(&call, &self.request, self.api, setup);
        let opened = tokio::select! {
            opened = opening => opened.map_err(|error| failed(&call, error))?,
            end = client.receiver.end() => return Err(end.into()),
        };
        client.receiver.relayed();
        Ok(opened)
    }

    /// Puts the session with this first message into the queue.
    async fn call(&self, setup: &Message) -> Result<Call, ApiError> {
        let gateway = &self.gateway;
        let deadline = Instant::now() + gateway.config.request_timeout;
        let body = bytes_of(setup);
        check_text(|| body.clone(), gateway).await?;
        let named = self.api.model(&body).map_err(ApiError::invalid_first_message)?;
        let model = named.as_deref().and_then(model_of).unwrap_or_else(|| self.unnamed());
        check_model(&model, gateway)?;
        let (input, tier) = measured(body).await?;
        let (kind, key, semaphore) = (CallKind::Live, self.key.clone(), self.semaphore.clone());
        let (size, tier) = (input.into(), TierChoice::of_body(tier));
        let observer = self.observer.clone();
        let request = CallRequest { kind, key, model, semaphore, size, tier, deadline, observer };
        Ok(gateway.dispatcher.enqueue(request))
    }

    /// The name under which a session is counted whose first message names no model.
    fn unnamed(&self) -> Model {
        let name = match self.api {
            LiveApi::Bidi => "live",
            LiveApi::Interactions => "interactions",
        };
        Model::parse(name).expect("a name")
    }

    /// Relays messages in both directions until the session ends. Each side is read only as fast as
    /// the other side accepts messages.
    async fn relay(
        &self,
        client: &mut Client,
        session: &mut LiveSession,
        first: Message,
        cut_off: &CancellationToken,
    ) -> End {
        let config = &self.gateway.config;
        let end = Instant::now() + config.live_timeout;
        let last_relayed = LastTime::now();
        let liveness =
            Liveness { last_read: client.receiver.last_read(), time_limit: config.client_timeout };
        let LiveSession { sender, receiver } = session;
        let to_client = to_client(&mut client.sender, receiver, first, &last_relayed, &liveness);
        let to_gemini = to_gemini(sender, &mut client.receiver, &last_relayed, &self.gateway);
        let (to_client, to_gemini) = (pin!(to_client), pin!(to_gemini));
        tokio::select! {
            end = to_client => end,
            end = to_gemini => end,
            () = until_idle(&last_relayed, config.live_idle_timeout) => End::Idle,
            () = sleep_until(end) => End::TimedOut,
            () = cut_off.cancelled() => End::ShutDown,
        }
    }

    /// Closes the client's side.
    async fn close(&self, client: &mut Client, end: End) {
        let config = &self.gateway.config;
        let frame = match end {
            End::Client(ClientEnd::Gone) => return,
            End::Client(ClientEnd::Closed(_)) => return client.sender.close(None).await,
            End::Client(ClientEnd::TooLarge(largest)) => {
                let frame = ApiError::body_too_large(largest).into_close_frame();
                Some(CloseFrame { code: CloseCode::Size, ..frame })
            }
            End::Client(ClientEnd::TooEarly(largest)) => {
                Some(ApiError::too_much_early(MAX_EARLY, largest).into_close_frame())
            }
            End::Client(ClientEnd::OverBudget) => {
                Some(ApiError::from(OverBudget).into_close_frame())
            }
            End::Client(ClientEnd::Invalid) => {
                let reason = "The client violates the protocol of WebSockets.".into();
                Some(CloseFrame { code: CloseCode::Protocol, reason })
            }
            End::Gemini(frame) => frame,
            End::Broken(error) => Some(ApiError::broken_session(error).into_close_frame()),
            End::Refused(error) => Some(error.into_close_frame()),
            End::Idle => Some(ApiError::session_idle(config.live_idle_timeout).into_close_frame()),
            End::TimedOut => {
                Some(ApiError::session_timeout(config.live_timeout).into_close_frame())
            }
            End::ShutDown => {
                let reason = "The gateway is shutting down.".into();
                Some(CloseFrame { code: CloseCode::Away, reason })
            }
        };
        client.close(frame).await;
    }
}

impl End {
    /// The name of the reason, for the log.
    fn label(&self) -> &'static str {
        match self {
            Self::Client(ClientEnd::Closed(_)) => "client_closed",
            Self::Client(ClientEnd::Gone) => "client_gone",
            Self::Client(ClientEnd::TooLarge(_) | ClientEnd::TooEarly(_)) => "body_too_large",
            Self::Client(ClientEnd::OverBudget) => "server_busy",
            Self::Client(ClientEnd::Invalid) => "protocol_violation",
            Self::Gemini(_) => "gemini_closed",
            Self::Broken(error) => error.kind.code(),
            Self::Refused(error) => error.code(),
            Self::Idle => "idle",
            Self::TimedOut => "timeout",
            Self::ShutDown => "shutdown",
        }
    }

    fn close_timeout(&self) -> Duration {
        match self {
            Self::ShutDown => SHUTDOWN_CLOSE_TIMEOUT,
            _ => CLOSE_TIMEOUT,
        }
    }
}

/// Closes the session at Gemini, unless Gemini has closed it, then settles it and gives back what it
/// holds.
async fn settle(session: &mut LiveSession, end: &End) {
    let LiveSession { sender, receiver } = session;
    let away = || Some(CloseFrame { code: CloseCode::Away, reason: "".into() });
    let closing = async {
        match end {
            End::Broken(_) => {}
            End::Gemini(_) => sender.close(None).await,
            End::Client(ClientEnd::Closed(frame)) => {
                let code = frame.as_ref().map(|frame| frame.code);
                sender.close(code.map(|code| CloseFrame { code, reason: "".into() })).await;
                // The last messages may report tokens.
                while let Ok(LiveEvent::Message(_)) = receiver.receive().await {}
            }
            _ => sender.close(away()).await,
        }
    };
    let _ = timeout(end.close_timeout(), closing).await;
    match end {
        End::Client(ClientEnd::Closed(_)) => session.end(&SessionEnd::Closed),
        End::Gemini(frame) => match closing_error(frame.as_ref()) {
            None => session.end(&SessionEnd::Closed),
            Some(error) => session.end(&SessionEnd::Failed(&error)),
        },
        End::Broken(error) => session.end(&SessionEnd::Failed(error)),
        End::Idle | End::TimedOut => session.end(&SessionEnd::TimedOut),
        End::Client(_) | End::Refused(_) | End::ShutDown => session.end(&SessionEnd::Cancelled),
    }
}

/// Checks whether a client is still there.
struct Liveness {
    last_read: Arc<LastTime>,
    /// How long the client may be silent until it is sent a ping, and then until it is cut off.
    time_limit: Duration,
}

/// Relays Gemini's messages, and sends pings to a silent client.
async fn to_client(
    client: &mut Sender,
    gemini: &mut CountedReceiver,
    first: Message,
    last_relayed: &LastTime,
    liveness: &Liveness,
) -> End {
    let mut next = Some(first);
    let mut last_ping = None;
    loop {
        if let Some(message) = next.take() {
            if let Err(end) = client.send(message).await {
                return end.into();
            }
            last_relayed.touch();
        }
        let last_read = liveness.last_read.get();
        let unanswered = last_ping.filter(|ping| *ping >= last_read);
        let due = unanswered.unwrap_or(last_read) + liveness.time_limit;
        tokio::select! {
            event = gemini.receive() => match event {
                Ok(LiveEvent::Message(message)) => next = Some(message),
                Ok(LiveEvent::Closed(frame)) => return End::Gemini(frame),
                Err(error) => return End::Broken(error),
            },
            () = sleep_until(due) => {
                if liveness.last_read.get() > last_read {
                    continue;
                }
                if unanswered.is_some() {
                    return ClientEnd::Gone.into();
                }
                last_ping = Some(Instant::now());
                if let Err(end) = client.send(Message::Ping(Bytes::new())).await {
                    return end.into();
                }
            }
        }
    }
}

/// Relays the client's messages.
async fn to_gemini(
    gemini: &mut LiveSender,
    client: &mut Receiver,
    last_relayed: &LastTime,
    gateway: &Gateway,
) -> End {
    loop {
        let message = match client.receive().await {
            Ok(message) => message,
            Err(end) => return end.into(),
        };
        if let Err(error) = check_text(|| bytes_of(&message), gateway).await {
            return error.into();
        }
        if let Err(error) = gemini.send(message).await {
            return End::Broken(error);
        }
        client.relayed();
        last_relayed.touch();
    }
}

/// Waits until no message was relayed for so long.
async fn until_idle(last_relayed: &LastTime, time_limit: Duration) {
    loop {
        let deadline = last_relayed.get() + time_limit;
        sleep_until(deadline).await;
        if last_relayed.get() + time_limit <= Instant::now() {
            return;
        }
    }
}

/// The payload of a message.
fn bytes_of(message: &Message) -> Bytes {
    match message {
        Message::Text(text) => text.clone().into(),
        Message::Binary(bytes) => bytes.clone(),
        _ => Bytes::new(),
    }
}
