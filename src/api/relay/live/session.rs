//! One session, from the client's first message to the last frame.

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

use super::client::{Client, Moment, NoMore, Receiver, Sender};
use crate::api::auth::{check_model, check_text};
use crate::api::error::ApiError;
use crate::api::json::measured;
use crate::api::relay::counted::model_of;
use crate::api::single::failed;
use crate::dispatch::{Call, CallKind, CallRequest, CountedReceiver, LiveSession, SessionEnd};
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Error, Forward, LiveApi, LiveEvent, LiveSender, Model, closing_error};
use crate::limits::Semaphore;
use crate::memory::OverBudget;

/// How long either side may take to close, once the other has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The same when the gateway stops.
const LAST_TIMEOUT: Duration = Duration::from_millis(500);

/// A session that was accepted: who pays for it, and where it leads.
pub(super) struct Session {
    pub gateway: Gateway,
    pub api: LiveApi,
    pub key: ApiKey,
    /// The semaphore that it holds beside the global one.
    pub semaphore: Option<Arc<dyn Semaphore>>,
    pub request: Forward,
}

/// How a session ended.
enum End {
    /// For what the client did.
    Client(NoMore),
    /// Gemini closed it.
    Upstream(Option<CloseFrame>),
    /// The connection to Gemini broke.
    Broken(Error),
    /// It was refused.
    Refused(Box<ApiError>),
    /// Nobody said anything for too long.
    Idle,
    /// It took longer than it may.
    TimedOut,
    /// The gateway stops.
    ShutDown,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<NoMore> for End {
    fn from(end: NoMore) -> Self {
        Self::Client(end)
    }
}

impl Session {
    /// Runs the session on a connection whose handshake is done, until it ends or is cut off.
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
                settle(&mut session, &end).await;
                end
            }
            Err(end) => end,
        };
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(end = end.label(), duration_ms, "the live session ended");
        let patience = if cut_off.is_cancelled() { LAST_TIMEOUT } else { CLOSE_TIMEOUT };
        let _ = timeout(patience, self.close(&mut client, end)).await;
    }

    /// Waits for the client's first message and for admission, and opens the session at Gemini.
    /// Returns it with Gemini's first message.
    async fn open(&self, client: &mut Client) -> Result<(LiveSession, Message), End> {
        let gateway = &self.gateway;
        let setup = timeout(gateway.config.client_timeout, client.receiver.receive()).await;
        let setup =
            setup.map_err(|_| ApiError::no_first_message(gateway.config.client_timeout))??;
        let call = self.call(&setup).await?;
        let opened = gateway.dispatcher.open_live(&call, &self.request, self.api, setup);
        let opened = tokio::select! {
            opened = opened => opened.map_err(|error| failed(&call, error))?,
            end = client.receiver.ended() => return Err(end.into()),
        };
        client.receiver.passed_on();
        Ok(opened)
    }

    /// The call of a session that begins with this message.
    async fn call(&self, setup: &Message) -> Result<Call, ApiError> {
        let gateway = &self.gateway;
        let deadline = Instant::now() + gateway.config.request_timeout;
        let body = bytes_of(setup);
        check_text(|| body.clone(), gateway).await?;
        let named = self.api.model(&body).map_err(ApiError::invalid_first_message)?;
        let model = named.as_deref().and_then(model_of).unwrap_or_else(|| self.unnamed());
        check_model(&model, gateway)?;
        let size = measured(body).await?.into();
        let (kind, key, semaphore) = (CallKind::Live, self.key.clone(), self.semaphore.clone());
        let request = CallRequest { kind, key, model, semaphore, size, deadline };
        Ok(gateway.dispatcher.enqueue(request))
    }

    /// The name under which a session is counted that names no model.
    fn unnamed(&self) -> Model {
        let name = match self.api {
            LiveApi::Bidi => "live",
            LiveApi::Interactions => "interactions",
        };
        Model::parse(name).expect("a name")
    }

    /// Passes messages on, in both directions, until the session ends. Each side is read only as fast
    /// as the other takes what it says.
    async fn relay(
        &self,
        client: &mut Client,
        session: &mut LiveSession,
        first: Message,
        cut_off: &CancellationToken,
    ) -> End {
        let config = &self.gateway.config;
        let opened = Instant::now();
        let passed = Moment::new();
        let heard = client.receiver.heard();
        let LiveSession { sender, receiver } = session;
        let silence = Silence { heard, most: config.client_timeout };
        let to_client = to_client(&mut client.sender, receiver, first, &passed, &silence);
        let to_gemini = to_gemini(sender, &mut client.receiver, &passed, &self.gateway);
        let idle = until_idle(&passed, config.live_idle_timeout);
        let (to_client, to_gemini) = (pin!(to_client), pin!(to_gemini));
        tokio::select! {
            end = to_client => end,
            end = to_gemini => end,
            () = idle => End::Idle,
            () = sleep_until(opened + config.live_timeout) => End::TimedOut,
            () = cut_off.cancelled() => End::ShutDown,
        }
    }

    /// Tells the client how the session ended.
    async fn close(&self, client: &mut Client, end: End) {
        let config = &self.gateway.config;
        let frame = match end {
            End::Client(NoMore::Gone) => return,
            // Its frame is answered with the same.
            End::Client(NoMore::Closed(_)) => return client.sender.close(None).await,
            End::Upstream(None) => return client.close(None).await,
            End::Client(NoMore::TooLarge(most)) => CloseFrame {
                code: CloseCode::Size,
                ..ApiError::body_too_large(most).into_close_frame()
            },
            End::Client(NoMore::OverBudget) => ApiError::from(OverBudget).into_close_frame(),
            End::Client(NoMore::Invalid) => {
                let reason = "What came is not in the protocol of WebSockets.".into();
                CloseFrame { code: CloseCode::Protocol, reason }
            }
            End::Upstream(Some(frame)) => frame,
            End::Broken(error) => ApiError::of_session(error).into_close_frame(),
            End::Refused(error) => error.into_close_frame(),
            End::Idle => ApiError::session_idle(config.live_idle_timeout).into_close_frame(),
            End::TimedOut => ApiError::session_timeout(config.live_timeout).into_close_frame(),
            End::ShutDown => {
                CloseFrame { code: CloseCode::Away, reason: "The gateway stops.".into() }
            }
        };
        client.close(Some(frame)).await;
    }
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::Client(NoMore::Closed(_)) => "client_closed",
            Self::Client(NoMore::Gone) => "client_gone",
            Self::Client(NoMore::TooLarge(_)) => "message_too_large",
            Self::Client(NoMore::OverBudget) => "server_busy",
            Self::Client(NoMore::Invalid) => "not_a_websocket",
            Self::Upstream(_) => "gemini_closed",
            Self::Broken(error) => error.kind.code(),
            Self::Refused(error) => error.code(),
            Self::Idle => "idle",
            Self::TimedOut => "timeout",
            Self::ShutDown => "shutdown",
        }
    }
}

/// Closes the session at Gemini, unless Gemini has, and gives back what it holds.
async fn settle(session: &mut LiveSession, end: &End) {
    let LiveSession { sender, receiver } = session;
    let closing = async {
        match end {
            End::Broken(_) => {}
            End::Upstream(_) => sender.close(None).await,
            End::Client(NoMore::Closed(frame)) => {
                let code = frame.as_ref().map(|frame| frame.code);
                let frame = code.map(|code| CloseFrame { code, reason: "".into() });
                sender.close(frame).await;
                // What Gemini still says of the cost counts.
                while let Ok(LiveEvent::Message(_)) = receiver.receive().await {}
            }
            _ => sender.close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() })).await,
        }
    };
    let patience = if matches!(end, End::ShutDown) { LAST_TIMEOUT / 2 } else { CLOSE_TIMEOUT };
    let _ = timeout(patience, closing).await;
    match end {
        End::Client(NoMore::Closed(_)) => session.end(&SessionEnd::Closed),
        End::Upstream(frame) => match closing_error(frame.as_ref()) {
            None => session.end(&SessionEnd::Closed),
            Some(error) => session.end(&SessionEnd::Failed(&error)),
        },
        End::Broken(error) => session.end(&SessionEnd::Failed(error)),
        End::Idle | End::TimedOut => session.end(&SessionEnd::TimedOut),
        End::Client(_) | End::Refused(_) | End::ShutDown => session.end(&SessionEnd::Cancelled),
    }
}

/// How long a client may say nothing, not even answer a ping.
struct Silence {
    heard: Arc<Moment>,
    most: Duration,
}

/// Passes Gemini's messages on, and asks a silent client whether it is there.
async fn to_client(
    client: &mut Sender,
    gemini: &mut CountedReceiver,
    first: Message,
    passed: &Moment,
    silence: &Silence,
) -> End {
    let mut next = Some(first);
    let mut asked = None;
    loop {
        if let Some(message) = next.take() {
            if let Err(end) = client.send(message).await {
                return end.into();
            }
            passed.now();
        }
        let heard = silence.heard.get();
        let due = asked.filter(|asked| *asked >= heard).unwrap_or(heard) + silence.most;
        tokio::select! {
            event = gemini.receive() => match event {
                Ok(LiveEvent::Message(message)) => next = Some(message),
                Ok(LiveEvent::Closed(frame)) => return End::Upstream(frame),
                Err(error) => return End::Broken(error),
            },
            () = sleep_until(due) => {
                if silence.heard.get() > heard {
                    continue;
                }
                if asked.is_some_and(|asked| asked >= heard) {
                    return NoMore::Gone.into();
                }
                asked = Some(Instant::now());
                if let Err(end) = client.send(Message::Ping(Bytes::new())).await {
                    return end.into();
                }
            }
        }
    }
}

/// Passes the client's messages on.
async fn to_gemini(
    gemini: &mut LiveSender,
    client: &mut Receiver,
    passed: &Moment,
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
        client.passed_on();
        passed.now();
    }
}

/// Waits until nothing was passed on for so long.
async fn until_idle(passed: &Moment, most: Duration) {
    loop {
        let deadline = passed.get() + most;
        sleep_until(deadline).await;
        if passed.get() + most <= Instant::now() {
            return;
        }
    }
}

/// What a message holds.
fn bytes_of(message: &Message) -> Bytes {
    match message {
        Message::Text(text) => text.clone().into(),
        Message::Binary(bytes) => bytes.clone(),
        _ => Bytes::new(),
    }
}
