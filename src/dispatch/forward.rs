//! A call whose answer goes to the caller as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout};

use super::{Attempts, Call, Dispatcher, Ended, Failure, Sending, counts_as, reported, settle};
use crate::gemini::{
    ApiKey, Error, Forward, ForwardError, ForwardedBody, MaskedBody, Payload, StreamMonitor, Usage,
    UsageScanner,
};
use crate::limits::{Admission, InFlightCall, Limiter, NamedBy};
use crate::metrics::Metrics;

/// The body of an answer under way. It holds the call's slots until its last byte, and gives them
/// back when it is dropped before.
pub struct Forwarded {
    body: ForwardedBody,
    /// Until it has ended.
    passage: Option<Passage>,
}

/// Why a call gave no answer to pass on.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub failure: Failure,
    /// What Gemini said, where it said something.
    pub response: Option<Box<Response<Bytes>>>,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self { failure, response: None }
    }
}

impl Dispatcher {
    /// Sends a call until there is an answer to pass on, it fails for good, or its attempts or its
    /// time are used up. The first attempt goes with `admission`. As long as nothing was passed
    /// on, it can be sent again. Between two pieces of the answer `idle` may pass.
    ///
    /// # Errors
    /// [`Unanswered`], of the last attempt.
    pub async fn forward(
        &self,
        call: &Call,
        request: &Forward,
        body: Bytes,
        mut admission: Admission,
        idle: Duration,
    ) -> Result<Response<Forwarded>, Unanswered> {
        let mut attempts = Attempts::default();
        loop {
            let in_flight = self.start(call, admission).await?;
            let outcome = self.open(call, request, body.clone(), in_flight, idle).await?;
            let ForwardError { error, response } = match outcome {
                Ok(response) => return Ok(response),
                Err(rejected) => rejected,
            };
            admission = match self.readmit(call, &mut attempts, &error).await? {
                Ok(admission) => admission,
                Err(retry_after) => {
                    let failure = Failure::upstream(error, retry_after);
                    return Err(Unanswered { failure, response });
                }
            };
        }
    }

    /// Passes on a request that costs nothing: it takes no slot, and is sent once. Gemini may take
    /// as long for it as for an attempt at a call, counted from when all of the body was sent;
    /// before that, as long to be reached or to take the next piece of it.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn pass(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
        sending: &mut Sending,
    ) -> Result<Response<MaskedBody<Incoming>>, Unanswered> {
        let limit = self.policy.attempt_timeout;
        let passed = tokio::select! {
            biased;
            passed = self.client.pass(request, key, payload) => passed,
            () = sending.overdue(limit) => Err(Error::timed_out(limit).into()),
        };
        passed.map_err(|ForwardError { error, response }| {
            let failure = Failure::upstream(error, None);
            Unanswered { failure, response }
        })
    }

    /// One attempt.
    async fn open(
        &self,
        call: &Call,
        request: &Forward,
        body: Bytes,
        in_flight: InFlightCall,
        idle: Duration,
    ) -> Result<Result<Response<Forwarded>, ForwardError>, Failure> {
        let sent = Instant::now();
        let time_limit = self.time_limit(call, sent);
        let answer = self.client.forward(request, &call.route.key, body, in_flight.fence(), idle);
        let result = timeout(time_limit, answer)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(time_limit).into()));
        match result {
            Ok(response) => {
                self.projects.prove(&call.route.key);
                let named = response.body().model_version(request.surface);
                counts_as(&self.limiter, &in_flight, named.as_ref(), NamedBy::Answer);
                let watch = StreamMonitor::of(response.headers(), request.streams);
                let passage = Passage {
                    in_flight,
                    call: call.clone(),
                    sent,
                    usage: UsageScanner::new(request.surface),
                    is_read: request.is_read,
                    watch: watch.filter(|_| !request.is_read).map(Box::new),
                    limiter: Arc::clone(&self.limiter),
                    metrics: Arc::clone(&self.metrics),
                };
                Ok(Ok(response.map(|body| Forwarded::new(body, passage))))
            }
            Err(rejected) => {
                settle(&self.limiter, in_flight, &rejected.error);
                let ended = self.ended(call, sent, &rejected.error);
                ended.record(&self.metrics, call, sent, Usage::default());
                match ended {
                    Ended::Overdue => Err(Failure::DeadlineExceeded),
                    _ => Ok(Err(rejected)),
                }
            }
        }
    }
}

/// What is held and kept account of while an answer passes.
struct Passage {
    in_flight: InFlightCall,
    call: Call,
    sent: Instant,
    usage: UsageScanner,
    /// Whether whoever reads the answer says what it was.
    is_read: bool,
    /// What tells it by what passes, where that can be told.
    watch: Option<Box<StreamMonitor>>,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
}

impl Passage {
    fn scan(&mut self, bytes: &[u8]) {
        self.usage.scan(bytes);
        if let Some(watch) = &mut self.watch {
            watch.scan(bytes);
        }
    }

    fn end(self, ended: &Ended<'_>) {
        let usage = self.usage.usage().unwrap_or_default();
        match ended {
            Ended::Answered => self.in_flight.answered(reported(usage)),
            Ended::BrokenOff(error) | Ended::Failed(error) => {
                // What Gemini has said of the cost by then stands.
                let accepted_model = error.accepted_model || usage.prompt_tokens > 0;
                let error = Error { usage, accepted_model, ..Error::clone(error) };
                settle(&self.limiter, self.in_flight, &error);
            }
            _ if usage.prompt_tokens > 0 => self.in_flight.answered(reported(usage)),
            _ => drop(self.in_flight),
        }
        ended.record(&self.metrics, &self.call, self.sent, usage);
    }

    /// The last byte has passed.
    fn end_whole(mut self) {
        let Some(mut watch) = self.watch.take() else { return self.end(&Ended::Answered) };
        let (kind, model) = (self.call.kind, self.call.route.model().clone());
        match watch.end() {
            Ok(()) => self.end(&Ended::Answered),
            Err(error) => {
                let code = error.kind.code();
                tracing::warn!(kind, %model, code, "the stream failed: {error}");
                self.end(&Ended::BrokenOff(error));
            }
        }
        let unrecognized = watch.unrecognized();
        if unrecognized > 0 {
            tracing::warn!(kind, %model, unrecognized, "the stream has lines that are not Gemini's");
        }
    }

    /// Nobody reads on. An error that has come is told all the same.
    fn end_unread(self) {
        match &self.watch {
            Some(watch) if watch.error().is_some() => self.end_whole(),
            _ => self.end(&Ended::Cancelled),
        }
    }
}

impl Forwarded {
    /// What is whole has cost what it cost, and holds nothing any more.
    fn new(body: ForwardedBody, mut passage: Passage) -> Self {
        match body.complete() {
            Some(whole) if !passage.is_read => {
                passage.scan(whole);
                passage.end_whole();
                Self { body, passage: None }
            }
            _ => Self { body, passage: Some(passage) },
        }
    }

    /// Whoever reads the answer says what it was: from here on it holds nothing.
    pub fn settle(&mut self, read: Result<(), &Error>) {
        match read {
            Ok(()) => self.end(&Ended::Answered),
            Err(error) => self.end(&Ended::BrokenOff(error)),
        }
    }

    /// Whether the call holds its slots until the answer has passed.
    pub fn holds_slots(&self) -> bool {
        self.passage.is_some()
    }

    fn end(&mut self, ended: &Ended<'_>) {
        if let Some(passage) = self.passage.take() {
            passage.end(ended);
        }
    }

    /// The last byte has come.
    fn end_whole(&mut self) {
        if let Some(passage) = self.passage.take_if(|passage| !passage.is_read) {
            passage.end_whole();
        }
    }
}

impl Body for Forwarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(passage)) = (frame.data_ref(), &mut self.passage) {
                    passage.scan(data);
                }
                // A body of known length is not asked for more.
                if self.body.is_end_stream() {
                    self.end_whole();
                }
            }
            Some(Err(error)) => self.end(&Ended::BrokenOff(error)),
            None => self.end_whole(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        if let Some(passage) = self.passage.take() {
            passage.end_unread();
        }
    }
}
