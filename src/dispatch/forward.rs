//! A call whose answer goes to the caller as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout};

use super::{Attempts, Call, Dispatcher, Ended, Failure, Sending, reported};
use crate::gemini::{ApiKey, Error, Forward, Held, Masked, Payload, Rejected, Usage, UsageScanner};
use crate::limits::{Admission, Underway};
use crate::metrics::Metrics;

/// The body of an answer under way. It holds the call's slots until its last byte, and gives them
/// back when it is dropped before.
pub struct Forwarded {
    body: Held,
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
            let underway = self.depart(call, admission).await?;
            let outcome = self.open(call, request, body.clone(), underway, idle).await?;
            let Rejected { error, response } = match outcome {
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
    ) -> Result<Response<Masked<Incoming>>, Unanswered> {
        let limit = self.policy.attempt_timeout;
        let passed = tokio::select! {
            biased;
            passed = self.client.pass(request, key, payload) => passed,
            () = sending.overdue(limit) => Err(Error::late(limit).into()),
        };
        passed.map_err(|Rejected { error, response }| {
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
        underway: Underway,
        idle: Duration,
    ) -> Result<Result<Response<Forwarded>, Rejected>, Failure> {
        let sent = Instant::now();
        let patience = self.patience(call, sent);
        let answer = self.client.forward(request, &call.route.key, body, underway.fence(), idle);
        let result =
            timeout(patience, answer).await.unwrap_or_else(|_| Err(Error::late(patience).into()));
        match result {
            Ok(response) => {
                self.projects.prove(&call.route.key);
                self.counts_as(&underway, response.body().model_version().as_ref());
                let usage = UsageScanner::new(request.surface);
                let metrics = Arc::clone(&self.metrics);
                let passage = Passage { underway, call: call.clone(), sent, usage, metrics };
                Ok(Ok(response.map(|body| Forwarded::new(body, passage))))
            }
            Err(rejected) => {
                self.settle(underway, &rejected.error);
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
    underway: Underway,
    call: Call,
    sent: Instant,
    usage: UsageScanner,
    metrics: Arc<Metrics>,
}

impl Passage {
    fn end(self, ended: &Ended<'_>) {
        let usage = self.usage.usage().unwrap_or_default();
        match ended {
            Ended::Answered => self.underway.answered(reported(usage)),
            // What Gemini has said of the cost by then stands, and else the estimate.
            _ if usage.prompt_tokens > 0 => self.underway.answered(reported(usage)),
            _ => drop(self.underway),
        }
        ended.record(&self.metrics, &self.call, self.sent, usage);
    }
}

impl Forwarded {
    /// What is whole has cost what it cost, and holds nothing any more.
    fn new(body: Held, mut passage: Passage) -> Self {
        let Some(whole) = body.whole() else { return Self { body, passage: Some(passage) } };
        passage.usage.scan(whole);
        passage.end(&Ended::Answered);
        Self { body, passage: None }
    }

    fn end(&mut self, ended: &Ended<'_>) {
        if let Some(passage) = self.passage.take() {
            passage.end(ended);
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
                    passage.usage.scan(data);
                }
                // A body of known length is not asked for more.
                if self.body.is_end_stream() {
                    self.end(&Ended::Answered);
                }
            }
            Some(Err(error)) => self.end(&Ended::BrokenOff(error)),
            None => self.end(&Ended::Answered),
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
        self.end(&Ended::Cancelled);
    }
}
