//! Live sessions: calls in which both sides send messages until one of them ends the session.

use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::attempt::{Attempt, Outcome, Reader};
use super::{Call, CallError, Dispatcher};
use crate::gemini::{
    Client, Error, Forward, ForwardError, LiveApi, LiveEvent, LiveReceiver, LiveSender, LiveSocket,
    LiveUsage, Model, SendContext,
};

/// A session that Gemini has accepted. It holds the call's slots until it is
/// [ended](LiveSession::end) or dropped.
pub struct LiveSession {
    /// Sends messages to Gemini.
    pub sender: LiveSender,
    /// Receives messages from Gemini.
    pub receiver: CountedReceiver,
}

/// Receives messages from Gemini, and counts the tokens that they report.
pub struct CountedReceiver {
    receiver: LiveReceiver,
    usage: LiveUsage,
    /// Until the session has ended.
    attempt: Option<Attempt>,
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd<'a> {
    /// The client or Gemini closed it normally.
    Closed,
    /// Gemini closed it with this error, or the connection to Gemini broke.
    Failed(&'a Error),
    /// It lasted too long, or no message was sent for too long.
    TimedOut,
    /// The client is gone, or the gateway is shutting down.
    Cancelled,
}

/// Opens a session.
struct Open<'a> {
    request: &'a Forward,
    api: LiveApi,
    setup: Message,
}

impl Reader for Open<'_> {
    type Received = (LiveSocket, Message);
    type Answer = (LiveSession, Message);

    async fn exchange(
        &self,
        client: &Client,
        call: &Call,
        context: SendContext,
        time_limit: Duration,
    ) -> Result<Self::Received, ForwardError> {
        let opened =
            client.open_live(self.request, self.api, call.key(), self.setup.clone(), context);
        let opened = timeout(time_limit, opened).await;
        Ok(opened.unwrap_or_else(|_| Err(Error::timed_out(time_limit)))?)
    }

    fn status(&self, _: &Self::Received) -> StatusCode {
        StatusCode::SWITCHING_PROTOCOLS
    }

    /// The first message does not name it.
    fn model_version(&self, _: &Self::Received) -> Option<Model> {
        None
    }

    fn read(&self, (socket, first): Self::Received, attempt: Attempt) -> Self::Answer {
        let LiveSocket { sender, receiver } = socket;
        let usage = LiveUsage::new(self.api);
        let mut receiver = CountedReceiver { receiver, usage, attempt: Some(attempt) };
        receiver.count(&first);
        (LiveSession { sender, receiver }, first)
    }
}

impl Dispatcher {
    /// Waits for admission, then opens a session with the client's first message. Returns it with
    /// Gemini's first message. After a transient error, it is opened again.
    ///
    /// # Errors
    /// [`CallError`], of the last attempt.
    pub async fn open_live(
        &self,
        call: &Call,
        request: &Forward,
        api: LiveApi,
        setup: Message,
    ) -> Result<(LiveSession, Message), CallError> {
        let admitted = self.admit(call).await?;
        // Boxed so that a call that waits takes no more memory than its wait.
        Box::pin(self.run(admitted, Open { request, api, setup })).await
    }
}

impl LiveSession {
    /// Settles the session and gives back what it holds.
    pub fn end(&mut self, end: &SessionEnd<'_>) {
        let outcome = match end {
            SessionEnd::Closed => Outcome::Answered(None),
            SessionEnd::Failed(error) => Outcome::BrokenOff(error),
            SessionEnd::TimedOut => Outcome::Overdue,
            SessionEnd::Cancelled => Outcome::Cancelled,
        };
        self.receiver.end(&outcome);
    }
}

impl CountedReceiver {
    /// Receives the next message, or the end. Dropping the future loses no message.
    ///
    /// # Errors
    /// [`Error`] if the connection broke, or Gemini violated the protocol.
    pub async fn receive(&mut self) -> Result<LiveEvent, Error> {
        let event = self.receiver.receive().await?;
        if let LiveEvent::Message(message) = &event {
            self.count(message);
        }
        Ok(event)
    }

    fn count(&mut self, message: &Message) {
        let text: &[u8] = match message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
            _ => return,
        };
        let before = self.usage.total();
        self.usage.read(text);
        let usage = self.usage.total();
        if let Some(attempt) = self.attempt.as_mut().filter(|_| usage != before) {
            attempt.spend(usage);
        }
    }

    fn end(&mut self, outcome: &Outcome<'_>) {
        if let Some(attempt) = self.attempt.take() {
            attempt.end(outcome, self.usage.total());
        }
    }
}

impl Drop for CountedReceiver {
    fn drop(&mut self) {
        self.end(&Outcome::Cancelled);
    }
}
