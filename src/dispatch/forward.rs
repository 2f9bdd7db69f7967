//! Answers that reach the caller as they come.

use std::mem;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::attempt::{Attempt, Outcome, Reader, Shown};
use super::background::{Creation, Observed};
use super::{Admitted, Call, CallError, Dispatcher, UploadProgress, retry_after};
use crate::gemini::{
    Answer, ApiKey, Client, Error, Forward, ForwardError, ForwardedBody, InteractionScanner,
    MaskedBody, Model, Payload, SendContext, StreamMonitor, Usage, UsageScanner,
};
use crate::prices::PriceTier;

/// How long to wait for the ID of a run whose client has hung up.
const ID_TIMEOUT: Duration = Duration::from_secs(60);

/// The body of an answer that is still coming. It holds the call's slots until its last byte;
/// dropping it before gives them back.
pub struct Forwarded {
    body: ForwardedBody,
    /// Until the answer has ended.
    unsettled: Option<Unsettled>,
}

/// Passes an answer on as it comes.
pub(super) struct PassOn<'a> {
    pub request: &'a Forward,
    pub body: Bytes,
    /// How long nothing may come between two pieces of the answer.
    pub idle: Duration,
    /// Where the request creates an interaction.
    pub creation: Option<Creation>,
}

impl Reader for PassOn<'_> {
    type Received = Response<ForwardedBody>;
    type Answer = Response<Forwarded>;

    fn shown(&self) -> Shown<'_> {
        let Forward { streams, is_read, .. } = *self.request;
        Shown { streams, body: is_read.then_some(&self.body) }
    }

    async fn exchange(
        &self,
        client: &Client,
        call: &Call,
        context: SendContext,
        time_limit: Duration,
    ) -> Result<Response<ForwardedBody>, ForwardError> {
        let body = call.sent_body(&self.body);
        let answer = client.forward(self.request, call.key(), body, context, self.idle);
        timeout(time_limit, answer)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(time_limit).into()))
    }

    fn status(&self, response: &Response<ForwardedBody>) -> StatusCode {
        response.status()
    }

    fn model_version(&self, response: &Response<ForwardedBody>) -> Option<Model> {
        response.body().model_version(self.request.surface)
    }

    fn read(&self, response: Response<ForwardedBody>, attempt: Attempt) -> Response<Forwarded> {
        let Forward { surface, streams, is_read, .. } = *self.request;
        let watch =
            StreamMonitor::of(response.headers(), streams).filter(|_| !is_read).map(Box::new);
        let scanner = match &self.creation {
            Some(creation) => Scanner::Interaction(Box::default(), Box::new(creation.clone())),
            None => Scanner::Usage(UsageScanner::new(surface)),
        };
        let service_tier = ForwardedBody::service_tier(response.headers());
        let is_stream = watch.is_some();
        let unsettled = Unsettled { attempt, scanner, service_tier, is_read, is_stream, watch };
        response.map(|body| Forwarded::new(body, unsettled))
    }
}

impl Dispatcher {
    /// Passes on a request that costs nothing: it takes no slot and is sent once. Gemini may take
    /// as long to answer as in an attempt at a call, from when it has all of the body; until then,
    /// as long to be reached or to take the next piece.
    ///
    /// What it says of a run in the background is noted. A run that it deletes is settled first: its
    /// usage cannot be read later.
    ///
    /// # Errors
    /// [`CallError::Upstream`].
    pub async fn pass(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
        progress: &mut UploadProgress,
    ) -> Result<Response<Observed>, CallError> {
        let run = self.background.run(request);
        if let Some(run) = run.as_ref().filter(|_| request.method == Method::DELETE) {
            run.settle_before_deletion(&self.background).await;
        }
        let limit = self.policy.attempt_timeout;
        let passed = tokio::select! {
            biased;
            passed = self.client.pass(request, key, payload, SendContext::default()) => passed,
            () = progress.overdue(limit) => Err(Error::timed_out(limit).into()),
        };
        let response = passed.map_err(|rejected| CallError::rejected(rejected, None))?;
        if let Some(run) = run.as_ref().filter(|_| request.method == Method::DELETE) {
            run.is_deleted();
        }
        Ok(response.map(|body| self.background.observe(run, &request.method, body)))
    }

    /// Passes on a call whose body is a file, once it is [admitted](Dispatcher::admit). It is sent
    /// once, and holds its slots until Gemini answers, for which it has the same time as
    /// [`Dispatcher::pass`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn upload(
        &self,
        Admitted { call, admission }: Admitted,
        request: &Forward,
        payload: Payload,
        progress: &mut UploadProgress,
    ) -> Result<Response<Observed>, CallError> {
        let in_flight = self.start(&call, admission).await?;
        let limit = self.policy.attempt_timeout;
        let upload = PassFile { request, limit, file: Mutex::new(Some((payload, progress))) };
        let response = self.attempt(&call, 1, in_flight, &upload).await?.map_err(|rejected| {
            self.note_failure(&call, rejected.error.kind.code(), false);
            let retry_after = retry_after(&rejected.error);
            CallError::rejected(rejected, retry_after)
        })?;
        Ok(response.map(|body| self.background.observe(None, &request.method, body)))
    }
}

/// Passes a file on, and the answer back. Its answer does not say what it cost.
struct PassFile<'a> {
    request: &'a Forward,
    /// How long Gemini may take to take a piece of the file, or to answer.
    limit: Duration,
    /// Until it is sent.
    file: Mutex<Option<(Payload, &'a mut UploadProgress)>>,
}

impl Reader for PassFile<'_> {
    type Received = Response<MaskedBody<Incoming>>;
    type Answer = Response<MaskedBody<Incoming>>;

    async fn exchange(
        &self,
        client: &Client,
        call: &Call,
        context: SendContext,
        _: Duration,
    ) -> Result<Self::Received, ForwardError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (payload, progress) = file.expect("a file is sent once");
        tokio::select! {
            biased;
            passed = client.pass(self.request, Some(call.key()), payload, context) => passed,
            () = progress.overdue(self.limit) => Err(Error::timed_out(self.limit).into()),
        }
    }

    fn status(&self, response: &Self::Received) -> StatusCode {
        response.status()
    }

    fn model_version(&self, _: &Self::Received) -> Option<Model> {
        None
    }

    fn read(&self, response: Self::Received, attempt: Attempt) -> Self::Answer {
        attempt.end(&Outcome::Answered(None), Usage::default());
        response
    }
}

/// Reads what passes of an answer.
enum Scanner {
    Usage(UsageScanner),
    Interaction(Box<InteractionScanner>, Box<Creation>),
}

/// What is to be settled when the answer has ended.
struct Unsettled {
    attempt: Attempt,
    scanner: Scanner,
    /// The service tier that the headers name.
    service_tier: Option<PriceTier>,
    /// Whether the reader of the answer reports how it ended.
    is_read: bool,
    /// Whether the answer is a stream.
    is_stream: bool,
    /// Tells how the answer ends from what passes, where it can be told.
    watch: Option<Box<StreamMonitor>>,
}

impl Unsettled {
    fn scan(&mut self, bytes: &[u8]) {
        match &mut self.scanner {
            Scanner::Usage(usage) => usage.scan(bytes),
            Scanner::Interaction(seen, _) => seen.scan(bytes),
        }
        if let Some(watch) = &mut self.watch {
            watch.scan(bytes);
        }
    }

    /// Settles the attempt, and returns its usage. That of a run that goes on is not known yet.
    fn settle(self, outcome: &Outcome<'_>) -> Usage {
        let runs_on = self.runs_on();
        let Self { attempt, scanner, service_tier, .. } = self;
        let usage = match scanner {
            Scanner::Usage(usage) => usage.usage(),
            Scanner::Interaction(seen, creation) if runs_on => {
                creation.follow(&seen, attempt);
                return Usage::default();
            }
            Scanner::Interaction(seen, creation) => {
                creation.remember(&seen, &attempt);
                seen.usage()
            }
        };
        let mut usage = usage.unwrap_or_default();
        usage.service_tier = usage.service_tier.or(service_tier);
        attempt.end(outcome, usage)
    }

    /// Whether Gemini still works on it, in the background.
    fn runs_on(&self) -> bool {
        match &self.scanner {
            Scanner::Usage(_) => false,
            Scanner::Interaction(seen, creation) => creation.runs_on(seen, self.is_stream),
        }
    }

    /// The last byte has passed.
    fn settle_whole(mut self) {
        if self.runs_on() {
            self.settle(&Outcome::Answered(None));
            return;
        }
        let Some(mut watch) = self.watch.take() else {
            self.settle(&Outcome::Answered(None));
            return;
        };
        let call = &self.attempt.call;
        let (kind, model) = (call.kind().label(), call.model().clone());
        match watch.end() {
            Ok(()) => {
                self.settle(&Outcome::Answered(None));
            }
            Err(error) => {
                let code = error.kind.code();
                tracing::warn!(kind, %model, code, "the stream failed: {error}");
                self.settle(&Outcome::BrokenOff(error));
            }
        }
        let unrecognized = watch.unrecognized();
        if unrecognized > 0 {
            tracing::warn!(kind, %model, unrecognized, "the stream has lines that are not Gemini's");
        }
    }

    /// Whether the answer is to name a run that is not known yet.
    fn lacks_id(&self) -> bool {
        match &self.scanner {
            Scanner::Usage(_) => false,
            Scanner::Interaction(seen, creation) => creation.lacks_id(seen),
        }
    }

    /// The client has hung up before the ID of its run came. Without the ID, the run could not be
    /// followed, and would go on at Gemini without a slot.
    async fn settle_with_id(mut self, mut body: ForwardedBody) {
        let read = async {
            while self.lacks_id()
                && let Some(Ok(frame)) = body.frame().await
            {
                self.scan(frame.data_ref().map_or(&[][..], |data| data));
            }
        };
        // Without an ID, nothing can be followed.
        let _ = timeout(ID_TIMEOUT, read).await;
        self.settle_unread();
    }

    /// The client has hung up. An error that has already arrived is reported nevertheless.
    fn settle_unread(self) {
        match &self.watch {
            Some(watch) if watch.error().is_some() => self.settle_whole(),
            _ => {
                self.settle(&Outcome::Cancelled);
            }
        }
    }
}

impl Forwarded {
    /// An answer that is already whole is settled at once and holds nothing.
    fn new(body: ForwardedBody, mut unsettled: Unsettled) -> Self {
        match body.complete() {
            Some(whole) if !unsettled.is_read => {
                unsettled.scan(whole);
                unsettled.settle_whole();
                Self { body, unsettled: None }
            }
            _ => Self { body, unsettled: Some(unsettled) },
        }
    }

    /// Whoever reads the answer says how it ended, with the answer if it is whole. From then on it holds
    /// nothing. Returns the usage with what it costs; `None` if the answer was settled before.
    pub fn settle(&mut self, read: Result<Option<&Answer>, &Error>) -> Option<Usage> {
        match read {
            Ok(answer) => self.end(&Outcome::Answered(answer)),
            Err(error) => self.end(&Outcome::BrokenOff(error)),
        }
    }

    /// The whole answer, if it has come and nothing of it was taken.
    pub fn complete(&self) -> Option<&Bytes> {
        self.body.complete()
    }

    /// Whether the answer holds the call's slots until its end.
    pub fn holds_slots(&self) -> bool {
        self.unsettled.is_some()
    }

    fn end(&mut self, ended: &Outcome<'_>) -> Option<Usage> {
        Some(self.unsettled.take()?.settle(ended))
    }

    /// The last byte has arrived. A reader of the answer still has to report how it ended.
    fn end_whole(&mut self) {
        if let Some(unsettled) = self.unsettled.take_if(|unsettled| !unsettled.is_read) {
            unsettled.settle_whole();
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
                if let (Some(data), Some(unsettled)) = (frame.data_ref(), &mut self.unsettled) {
                    unsettled.scan(data);
                }
                // Nobody polls a body of known length beyond its end.
                if self.body.is_end_stream() {
                    self.end_whole();
                }
            }
            Some(Err(error)) => {
                self.end(&Outcome::BrokenOff(error));
            }
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
        let Some(unsettled) = self.unsettled.take() else { return };
        match Handle::try_current() {
            Ok(runtime) if unsettled.lacks_id() => {
                let body = mem::replace(&mut self.body, ForwardedBody::empty());
                runtime.spawn(unsettled.settle_with_id(body));
            }
            _ => unsettled.settle_unread(),
        }
    }
}
