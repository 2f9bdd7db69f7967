//! A chat whose reply is streamed.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;

use super::Chat;
use crate::dispatch::{Call, Dispatcher, Forwarded};
use crate::gemini::{AnswerBuilder, Error, Events, Forward};
use crate::generation::{Generated, Generation, GenerationError};

/// A chat whose reply is streamed. Dropping it stops Gemini and releases the slots.
pub struct ChatStream {
    chat: Chat,
    body: Forwarded,
    events: Events,
    /// `None` after the end of the stream.
    answer: Option<AnswerBuilder>,
    /// What was read and not yet returned.
    ready: VecDeque<ChatEvent>,
}

/// A part of a streamed reply.
#[derive(Debug)]
pub enum ChatEvent {
    /// The next piece of the text; never empty.
    Delta(String),
    /// The whole reply, at the end.
    Done(Generated<String>),
}

impl ChatStream {
    /// Waits for admission, sends a chat, and waits for the first piece of its text. After that,
    /// the stream fails if nothing arrives for `idle`.
    ///
    /// # Errors
    /// [`GenerationError`], as for a chat that is not streamed.
    pub async fn open(
        dispatcher: &Dispatcher,
        call: &Call,
        chat: Chat,
        idle: Duration,
    ) -> Result<Self, GenerationError> {
        let request = Forward::stream(chat.model());
        let response = dispatcher.forward(call, &request, chat.body(), idle).await;
        let body = response?.into_body();
        let answer = Some(AnswerBuilder::masking(dispatcher.secrets(call)));
        let (events, ready) = (Events::default(), VecDeque::new());
        let mut stream = Self { chat, body, events, answer, ready };
        // A failure before the first event is answered with its status, so that event is awaited.
        let first = stream.read().await?;
        first.into_iter().for_each(|first| stream.ready.push_front(first));
        Ok(stream)
    }

    /// The next part; `None` after the end of the stream or after an error.
    pub async fn next(&mut self) -> Option<Result<ChatEvent, GenerationError>> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(Ok(ready));
        }
        self.read().await.transpose()
    }

    /// Reads the next part. At the end, reports the outcome to the limits and the metrics.
    async fn read(&mut self) -> Result<Option<ChatEvent>, GenerationError> {
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
            tracing::warn!(
                kind = Chat::KIND.label(),
                %model,
                unrecognized,
                "the stream has lines that are not Gemini's"
            );
        }
        let done = ChatEvent::Done(self.chat.reply(answer));
        if rest.is_empty() {
            return Ok(Some(done));
        }
        self.ready.push_back(done);
        Ok(Some(ChatEvent::Delta(rest)))
    }

    fn failed(&mut self, error: Error) -> GenerationError {
        self.body.settle(Err(&error));
        error.into()
    }

    /// The next piece of the text; `None` at the end of the stream.
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
