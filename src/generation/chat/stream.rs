//! A chat whose text comes piece by piece.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;

use super::{Chat, ChatResponse};
use crate::dispatch::{Call, Dispatcher, Forwarded};
use crate::gemini::{AnswerBuilder, Error, Events, Forward};
use crate::generation::{Failure, Generation};

/// A chat whose text comes piece by piece. Dropping it stops Gemini and gives its slots back.
pub struct ChatStream {
    chat: Chat,
    body: Forwarded,
    events: Events,
    /// Until the end.
    answer: Option<AnswerBuilder>,
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
    /// Waits for admission, asks for a chat, and waits for its first text. `idle` is how long
    /// nothing may come then.
    ///
    /// # Errors
    /// [`Failure`], as for a chat that comes at once.
    pub async fn open(
        dispatcher: &Dispatcher,
        call: &Call,
        chat: Chat,
        idle: Duration,
    ) -> Result<Self, Failure> {
        let request = Forward::stream(chat.model());
        let response = dispatcher.forward(call, &request, chat.ask(), idle).await;
        let body = response?.into_body();
        let answer = Some(AnswerBuilder::masking(dispatcher.secrets(call)));
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
        self.read().await.transpose()
    }

    /// What comes next, of which the limits and the metrics hear too where it is the end.
    async fn read(&mut self) -> Result<Option<ChatEvent>, Failure> {
        let Some(mut answer) = self.answer.take() else { return Ok(None) };
        match self.delta(&mut answer).await {
            Ok(Some(delta)) => {
                self.answer = Some(answer);
                return Ok(Some(ChatEvent::Delta(delta)));
            }
            Ok(None) => {}
            Err(error) => return Err(self.failed(error)),
        }
        let (rest, unrecognized) = (answer.rest(), answer.unrecognized());
        let answer = answer.finish().map_err(|error| self.failed(error))?;
        self.body.settle(Ok(()));
        if unrecognized > 0 {
            let model = self.chat.model();
            tracing::warn!(kind = Chat::KIND.label(), %model, unrecognized, "the stream has lines that are not Gemini's");
        }
        let done = ChatEvent::Done(self.chat.response(answer));
        if rest.is_empty() {
            return Ok(Some(done));
        }
        self.ready.push_back(done);
        Ok(Some(ChatEvent::Delta(rest)))
    }

    fn failed(&mut self, error: Error) -> Failure {
        self.body.settle(Err(&error));
        error.into()
    }

    /// The next text; `None` at the end of the stream.
    async fn delta(&mut self, answer: &mut AnswerBuilder) -> Result<Option<String>, Error> {
        let mut is_over = false;
        loop {
            while let Some(event) = self.events.pop() {
                let delta = answer.push(&event)?;
                if !delta.is_empty() {
                    return Ok(Some(delta));
                }
            }
            if is_over {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(frame) => self.events.extend(&frame?.into_data().unwrap_or_default()),
                None => {
                    self.events.end();
                    is_over = true;
                }
            }
        }
    }
}
