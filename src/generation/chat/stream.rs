//! A chat whose reply is streamed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;

use super::Chat;
use crate::dispatch::{Call, CallError, Dispatcher, Forwarded};
use crate::gemini::{AnswerBuilder, Error, Events, Forward};
use crate::generation::{Generated, Generation, GenerationError};

/// A chat whose reply is streamed. Dropping it stops Gemini and releases the slots.
pub struct ChatStream {
    chat: Chat,
    parts: Parts,
    body: Forwarded,
    events: Events,
    /// `None` after the end of the stream.
    answer: Option<AnswerBuilder>,
    /// What was read and not yet returned.
    ready: VecDeque<ChatEvent>,
}

/// Asks for the parts of a reply.
struct Parts {
    dispatcher: Arc<Dispatcher>,
    call: Call,
    /// How long nothing may come between two pieces of a part.
    idle: Duration,
    /// How many more parts may be asked for.
    left: usize,
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
        dispatcher: &Arc<Dispatcher>,
        call: &Call,
        chat: Chat,
        idle: Duration,
    ) -> Result<Self, GenerationError> {
        let (dispatcher, call) = (Arc::clone(dispatcher), call.clone());
        let left = dispatcher.max_continuations();
        let parts = Parts { dispatcher, call, idle, left };
        let body = parts.open(chat.body()).await?;
        let answer = Some(AnswerBuilder::masking(parts.dispatcher.secrets(&parts.call)));
        let (events, ready) = (Events::default(), VecDeque::new());
        let mut stream = Self { chat, parts, body, events, answer, ready };
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
        let mut interrupted = None;
        loop {
            match self.delta(&mut answer).await {
                Ok(Some(delta)) => {
                    self.answer = Some(answer);
                    return Ok(Some(ChatEvent::Delta(delta)));
                }
                Ok(None) => {}
                Err(error) => return Err(self.failed(error)),
            }
            match self.continued(&mut answer).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.is_blocked() => return Err(error.into()),
                Err(error) => {
                    interrupted = Some(error);
                    break;
                }
            }
        }
        self.done(answer, interrupted).map(Some)
    }

    /// Waits for the next part of the reply, if Gemini stopped before its end. The slots of the part
    /// that has ended are released before.
    async fn continued(&mut self, answer: &mut AnswerBuilder) -> Result<bool, CallError> {
        let Some(token) = answer.continuation() else { return Ok(false) };
        let Some(left) = self.parts.left.checked_sub(1) else { return Ok(false) };
        self.parts.left = left;
        let body = token.added_to(&self.chat.body());
        if let Some(usage) = self.body.settle(Ok(None)) {
            answer.charge_part(usage);
        }
        self.body = self.parts.open(body).await?;
        self.events = Events::default();
        answer.start_next_part();
        Ok(true)
    }

    /// The end of the reply. A part that failed before any of it came does not lose what has come.
    fn done(
        &mut self,
        mut answer: AnswerBuilder,
        interrupted: Option<CallError>,
    ) -> Result<ChatEvent, GenerationError> {
        let (rest, unrecognized) = (answer.rest(), answer.unrecognized());
        let earlier = answer.earlier_usage();
        let mut answer = match (answer.finish(), interrupted) {
            (Ok(answer), interrupted) => {
                interrupted.inspect(|error| error.warn_of_interruption(&self.parts.call));
                answer
            }
            (Err(_), Some(interrupted)) => return Err(interrupted.into()),
            (Err(error), None) => return Err(self.failed(error)),
        };
        if let Some(usage) = self.body.settle(Ok(Some(&answer))) {
            answer.usage = earlier + usage;
        }
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
            return Ok(done);
        }
        self.ready.push_back(done);
        Ok(ChatEvent::Delta(rest))
    }

    fn failed(&mut self, error: Error) -> GenerationError {
        self.body.settle(Err(&error));
        error.into()
    }

    /// The next piece of the text; `None` at the end of a part.
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

impl Parts {
    /// Waits for admission and asks for a part. Waits until it begins.
    async fn open(&self, body: Bytes) -> Result<Forwarded, CallError> {
        let request = Forward::stream(self.call.model());
        let response = self.dispatcher.forward(&self.call, &request, body, self.idle).await;
        Ok(response?.into_body())
    }
}
