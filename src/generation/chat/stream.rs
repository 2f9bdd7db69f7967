//! A chat whose text comes piece by piece.

use std::collections::VecDeque;
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
    /// What has been read and not been passed on.
    ready: VecDeque<ChatEvent>,
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
        let answer = Some(Growing::without(dispatcher.secrets(call)));
        let (events, ready) = (Events::default(), VecDeque::new());
        let mut stream = Self { chat, body, events, answer, ready };
        // The first event is waited for: what fails before it is answered as any failure.
        let first = stream.read().await?;
        first.into_iter().for_each(|first| stream.ready.push_front(first));
        Ok(stream)
    }

    /// What comes next; `None` after the end, which a failure is as well.
    pub async fn next(&mut self) -> Option<Result<ChatEvent, Failure>> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(Ok(ready));
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
                        self.events.extend(&data)?;
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
        let mut answer = self.answer.take().unwrap_or_default();
        let rest = answer.rest();
        let done = ChatEvent::Done(self.chat.response(answer.finish()?));
        if rest.is_empty() {
            return Ok(Some(done));
        }
        self.ready.push_back(done);
        Ok(Some(ChatEvent::Delta(rest)))
    }
}
