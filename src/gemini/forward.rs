//! Requests on Gemini's or OpenAI's surface, whose answers are passed on unchanged.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
    response,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use jiff::Timestamp;
use tower_http::timeout::TimeoutBody;

use super::answer_start::{AnswerStart, first_data};
use super::client::{IDENTITY, JSON, NAME, body_error, read_body};
use super::events::{Event, Events};
use super::quota::LONGEST_SHORTAGE;
use super::surface::Surface;
use super::{
    ApiKey, Client, Error, ErrorKind, MaskedBody, Masker, Model, Payload, Secrets, SendContext,
    answer, retry_after, usage,
};
use crate::prices::PriceTier;

/// How much of an answer that is not a stream is buffered until it is complete, in bytes. Up to this
/// size, the call can be repeated if the answer breaks off. Longer answers pass as they arrive.
const MAX_BUFFERED: usize = 1 << 20;

/// The longest answer or event that is parsed for its model, in bytes.
const MAX_READ: usize = 64 * 1024;

/// The header that chooses the form of interactions. Source: Google's Python SDK 3.6.1.
const API_REVISION: HeaderName = HeaderName::from_static("api-revision");

/// A request without its body and its key.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The format of the request.
    pub surface: Surface,
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: Uri,
    /// Its headers, without any key.
    pub headers: HeaderMap,
    /// Whether the answer is a stream, which is passed on from its first event.
    pub streams: bool,
    /// Whether the gateway itself reads the answer. The usage is then known from reading, and
    /// the passing bytes are not scanned for it.
    pub is_read: bool,
    /// Whether the request asks for a call that runs on at Gemini after its answer.
    pub runs_on: bool,
}

/// A call without a successful answer.
#[derive(Debug)]
pub struct ForwardError {
    /// The error.
    pub error: Error,
    /// The response with keys overwritten; `None` if none arrived completely.
    pub response: Option<Box<Response<Bytes>>>,
}

/// The body of an answer: the part that has arrived, and the part that is still expected.
pub struct ForwardedBody {
    /// Empty once it is passed on.
    first: Bytes,
    rest: Option<MaskedBody<Pin<Box<TimeoutBody<Incoming>>>>>,
    /// The length of the rest in bytes, if known.
    left: Option<u64>,
}

impl Client {
    /// Sends a call and waits for its answer: for a stream, until its first event shows whether it
    /// is an error; otherwise for the whole answer, if it is not too long. After that, the answer
    /// may pause for at most `idle`.
    ///
    /// Dropping the future or the answer's body closes the connection, which makes Gemini stop.
    ///
    /// # Errors
    /// [`ForwardError`], as long as no part of a successful answer was returned.
    pub async fn forward(
        &self,
        request: &Forward,
        key: &ApiKey,
        body: Bytes,
        context: SendContext,
        idle: Duration,
    ) -> Result<Response<ForwardedBody>, ForwardError> {
        let payload = Payload::Buffered(Full::new(body));
        let secrets = self.secrets(Some(key));
        let answer = self.answer(request, Some(key), payload, context, &secrets, is_answer).await;
        let (head, body) = answer.map_err(ForwardError::of_call)?.into_parts();
        if is_page(&head.headers) {
            let content_type = head.headers.get(CONTENT_TYPE);
            let error = Error::not_gemini(head.status, content_type, b"<");
            return Err(error.expect("a page is not JSON").into());
        }
        let is_stream = request.streams || is_event_stream(&head.headers);
        let held =
            ForwardedBody::new(body, is_stream, idle, secrets.masker_of(&head.headers)).await?;
        match held.is_error() {
            false => Ok(Response::from_parts(head, held)),
            true => Err(ForwardError::despite_success(head, secrets.redact_body(held.first))),
        }
    }

    /// Passes a request of any size on, and its answer back.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn pass(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
        context: SendContext,
    ) -> Result<Response<MaskedBody<Incoming>>, ForwardError> {
        let is_upload = request.path.path().starts_with("/upload/");
        let is_good = move |status| is_passed_on(status, is_upload);
        let secrets = self.secrets(key);
        let response = self.answer(request, key, payload, context, &secrets, is_good).await?;
        let masker = match request.is_download() {
            true => secrets.masker(),
            false => secrets.masker_of(response.headers()),
        };
        Ok(response.map(|body| MaskedBody::new(body, masker)))
    }

    async fn answer(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
        context: SendContext,
        secrets: &Secrets,
        is_good: impl Fn(StatusCode) -> bool,
    ) -> Result<Response<Incoming>, ForwardError> {
        let response = self.send(request.with(key, payload), context).await?;
        let (mut head, body) = response.into_parts();
        let is_good = is_good(head.status);
        if is_encoded(&head.headers) && !(is_good && request.is_download()) {
            let message = "Gemini's answer has an encoding that was not requested";
            return Err(Error::new(ErrorKind::Malformed, message).into());
        }
        secrets.redact_headers(&mut head.headers);
        // The extensions include the reason phrase, which is not needed and could contain a key.
        head.extensions.clear();
        if is_good {
            return Ok(Response::from_parts(head, body));
        }
        let body = read_body(head.status, body).await?;
        Err(ForwardError::read(head, secrets.redact_body(body)))
    }
}

impl Forward {
    /// A request for a streamed answer of a model.
    pub fn stream(model: &Model) -> Self {
        let path = format!("/v1beta/{}:streamGenerateContent?alt=sse", model.resource());
        Self {
            surface: Surface::Gemini,
            method: Method::POST,
            path: path.parse().expect("the model's name was checked"),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, JSON), (USER_AGENT, NAME)]),
            streams: true,
            is_read: true,
            runs_on: false,
        }
    }

    /// A call with a JSON body whose answer the gateway reads whole.
    pub fn call(surface: Surface, path: Uri) -> Self {
        Self {
            surface,
            method: Method::POST,
            path,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, JSON), (USER_AGENT, NAME)]),
            streams: false,
            is_read: true,
            runs_on: false,
        }
    }

    /// A call of a model's method, as [`call`](Self::call).
    pub fn method(model: &Model, method: &str) -> Self {
        let path = format!("/v1beta/{}:{method}", model.resource());
        Self::call(Surface::Gemini, path.parse().expect("the model's name was checked"))
    }

    /// A request that reads what this one has created at a path, in the same revision of the API.
    pub fn reading(&self, path: Uri) -> Self {
        let mut headers = HeaderMap::from_iter([(USER_AGENT, NAME)]);
        let revision = self.headers.get(API_REVISION).cloned();
        headers.extend(revision.map(|revision| (API_REVISION, revision)));
        let (method, streams, runs_on) = (Method::GET, false, false);
        Self { surface: self.surface, method, path, headers, streams, is_read: true, runs_on }
    }

    /// Whether this downloads a file, which may hold any bytes and belongs to the caller.
    fn is_download(&self) -> bool {
        self.path.path().starts_with("/download/")
    }

    fn with(&self, key: Option<&ApiKey>, payload: Payload) -> Request<Payload> {
        let mut request = Request::new(payload);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(ACCEPT_ENCODING, IDENTITY);
        if let Some(key) = key {
            key.insert_into(request.headers_mut(), self.surface);
        }
        request
    }
}

/// Whether enough of an answer has arrived to pass the rest on as it arrives.
fn is_enough(first: &[u8], is_stream: bool) -> bool {
    let can_tell = || match AnswerStart::of(first) {
        AnswerStart::Unknown => false,
        AnswerStart::Answer => true,
        AnswerStart::Error { is_over, .. } => is_over,
    };
    first.len() >= MAX_BUFFERED || (is_stream && can_tell())
}

/// The data of the error that an answer starts with: all lines of the first event.
fn error_data(first: &[u8]) -> Option<Bytes> {
    let AnswerStart::Error { .. } = AnswerStart::of(first) else { return None };
    let mut events = Events::default();
    events.extend(first);
    events.end();
    match events.pop()? {
        Event::Data(data) => Some(data),
        Event::Unrecognized(_) | Event::TooLong => None,
    }
}

/// Whether a response with this status is an answer.
fn is_answer(status: StatusCode) -> bool {
    status.is_success() && !is_empty(status)
}

/// Whether a status is passed on where nothing is generated: success, 304 (not modified), and for
/// uploads 308 (continue the upload).
fn is_passed_on(status: StatusCode, is_upload: bool) -> bool {
    status.is_success()
        || status == StatusCode::NOT_MODIFIED
        || (is_upload && status == StatusCode::PERMANENT_REDIRECT)
}

/// Whether a response with this status has no body. Source: RFC 9110, section 15.3.
fn is_empty(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
}

/// Whether a body is encoded, so that a key in it would not be found.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether an answer is a web page, which is never Gemini's.
fn is_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/html"))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type
        .is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/event-stream"))
}

impl ForwardError {
    fn read(head: response::Parts, body: Bytes) -> Self {
        let wait = retry_after::read(&head.headers, Timestamp::now(), LONGEST_SHORTAGE);
        let not_gemini = Error::not_gemini(head.status, head.headers.get(CONTENT_TYPE), &body);
        let error = not_gemini.unwrap_or_else(|| Error::read(head.status, &body)).waiting(wait);
        let is_shown = error.kind != ErrorKind::Malformed || head.status.is_client_error();
        let response = is_shown.then(|| Box::new(Response::from_parts(head, body)));
        Self { error, response }
    }

    /// The same for a call, whose client gets no body that is not an error of Gemini's. Where
    /// nothing is generated, such a body is passed on: the client may have named a path that does
    /// not exist.
    fn of_call(self) -> Self {
        let is_shown = self.error.kind != ErrorKind::Malformed;
        Self { response: self.response.filter(|_| is_shown), ..self }
    }

    /// Reads an answer with a success status that starts with an error.
    fn despite_success(head: response::Parts, body: Bytes) -> Self {
        let data = error_data(&body);
        let error = Error::read_despite_success(data.as_deref().unwrap_or(&body));
        Self { error, response: Some(Box::new(Response::from_parts(head, body))) }
    }
}

impl From<Error> for ForwardError {
    fn from(error: Error) -> Self {
        Self { error, response: None }
    }
}

impl ForwardedBody {
    /// Reads as much as must arrive before anything is passed on.
    async fn new(
        body: Incoming,
        is_stream: bool,
        idle: Duration,
        masker: Masker,
    ) -> Result<Self, Error> {
        let length = body.size_hint().exact();
        let body = Box::pin(TimeoutBody::new(idle, body));
        let mut rest = MaskedBody::new(body, masker);
        let mut first = BytesMut::new();
        while let Some(frame) = rest.frame().await {
            let Ok(data) = frame.map_err(body_error)?.into_data() else { continue };
            let first = if first.is_empty() && is_enough(&data, is_stream) {
                data
            } else {
                first.extend_from_slice(&data);
                if !is_enough(&first, is_stream) {
                    continue;
                }
                first.freeze()
            };
            let left = length.map(|length| length.saturating_sub(first.len() as u64));
            return Ok(Self { first, rest: Some(rest).filter(|_| left != Some(0)), left });
        }
        Ok(Self { first: first.freeze(), rest: None, left: Some(0) })
    }

    /// A body of which nothing is left.
    pub const fn empty() -> Self {
        Self { first: Bytes::new(), rest: None, left: Some(0) }
    }

    /// Whether the answer is an error in spite of its success status.
    fn is_error(&self) -> bool {
        let error = error_data(&self.first).map(|data| Error::read_despite_success(&data));
        error.is_some_and(|error| error.kind != ErrorKind::Malformed)
    }

    /// The service tier that answered, if the headers name it.
    pub fn service_tier(headers: &HeaderMap) -> Option<PriceTier> {
        usage::tier_header(headers)
    }

    /// The model that answered, if the first event or a short answer names it.
    pub fn model_version(&self, surface: Surface) -> Option<Model> {
        let data = first_data(&self.first).filter(|data| data.len() <= MAX_READ)?;
        answer::model_version(data, surface)
    }

    /// The whole answer, if it has arrived.
    pub fn complete(&self) -> Option<&Bytes> {
        self.rest.is_none().then_some(&self.first)
    }
}

impl Body for ForwardedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.first)))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(context));
        if let (Some(Ok(frame)), Some(left)) = (&frame, &mut self.left) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(body_error)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.left.map(|left| left + self.first.len() as u64);
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
