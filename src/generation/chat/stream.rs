//! A chat whose text comes piece by piece.

use std::time::Duration;

use http_body_util::BodyExt;

use super::{Chat, ChatResponse};
use crate::dispatch::{Call, Dispatcher, Forwarded};
use crate::gemini::{Events, Forward, Growing};
use crate::generation::{Failure, Generation};
use crate::limits::Admission;

/// A chat whose text comes piece by piece. Dropping it stops Gemini and gives its slots back.
pub struct ChatStream {
    chat: Chat,
    body: Forwarded,
    events: Events,
    /// Until the end.
    answer: Option<Growing>,
    /// What came first, before anybody was told that anything would.
    first: Option<ChatEvent>,
}

/// What comes of a chat, in its order.
#[derive(Debug)]
pub enum ChatEvent {
    /// More text; never empty.
    Delta(String),
    /// The whole of it, at the end.
    Done(ChatResponse),
}

impl ChatStream {
    /// Asks for a chat that has been let in, and waits for its first text. `idle` is how long
    /// nothing may come then.
    ///
    /// # Errors
    /// [`Failure`], as for a chat that comes at once.
    pub async fn open(
        dispatcher: &Dispatcher,
        call: &Call,
        chat: Chat,
        admission: Admission,
        idle: Duration,
    ) -> Result<Self, Failure> {
        let request = Forward::stream(chat.model());
        let response = dispatcher.forward(call, &request, chat.ask(), admission, idle).await;
        let body = response.map_err(|unanswered| unanswered.failure)?.into_body();
        let (events, answer) = (Events::default(), Some(Growing::default()));
        let mut stream = Self { chat, body, events, answer, first: None };
        stream.first = stream.read().await?;
        Ok(stream)
    }

    /// What comes next; `None` after the end, which a failure is as well.
    pub async fn next(&mut self) -> Option<Result<ChatEvent, Failure>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let next = self.read().await.transpose()?;
        if next.is_err() {
            self.answer = None;
        }
        Some(next)
    }

    async fn read(&mut self) -> Result<Option<ChatEvent>, Failure> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        loop {
            let event = match self.events.pop() {
                Some(event) => event,
                None => match self.body.frame().await {
                    Some(frame) => {
                        let data = frame?.into_data().unwrap_or_default();
                        self.events.extend(&data);
                        continue;
                    }
                    None => match self.events.rest() {
                        Some(event) => event,
                        None => break,
                    },
                },
            };
            let delta = answer.push(&event)?;
            if !delta.is_empty() {
                return Ok(Some(ChatEvent::Delta(delta)));
            }
        }
        let answer = self.answer.take().unwrap_or_default().finish()?;
        Ok(Some(ChatEvent::Done(self.chat.response(answer))))
    }
}
