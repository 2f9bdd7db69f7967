//! A request of one who speaks Gemini's wire, or OpenAI's, and gets the answer as it came.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
    response,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use jiff::Timestamp;
use tower_http::timeout::TimeoutBody;

use super::client::{IDENTITY, JSON, NAME, unread, whole};
use super::events::{Event, Events};
use super::opening::{Opening, first_data};
use super::{
    ApiKey, Client, Error, ErrorKind, Fence, Masked, Masker, Model, Payload, Secrets, answer,
    retry_after,
};

/// How much of an answer that is no stream is kept until it is whole, in bytes: until then the
/// call can be made again if the answer breaks off. Longer ones pass as they come.
const MAX_HELD: usize = 1 << 20;

/// The longest answer, or event, that is read for the model that gave it, in bytes.
const MAX_READ: usize = 64 * 1024;

/// Whose words a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Gemini's own.
    Gemini,
    /// OpenAI's, which Gemini speaks too. The key is a bearer token here.
    OpenAi,
}

/// A request but for its body and for who pays.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Whose words it uses.
    pub surface: Surface,
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: Uri,
    /// Its headers, without any key.
    pub headers: HeaderMap,
    /// Whether the answer comes bit by bit and is of use from the first one.
    pub streams: bool,
    /// Whether the answer is read here: what it is then shows as it is read, and not as it passes.
    pub is_read: bool,
}

/// An answer that is no success.
#[derive(Debug)]
pub struct Rejected {
    /// What it says.
    pub error: Error,
    /// What came, the key taken out; `None` where no whole answer did.
    pub response: Option<Box<Response<Bytes>>>,
}

/// The body of an answer: what has come of it, and what is to come.
pub struct Held {
    /// Empty once it has been passed on.
    first: Bytes,
    rest: Option<Masked<Pin<Box<TimeoutBody<Incoming>>>>>,
    /// How many bytes the rest has, where that is known.
    left: Option<u64>,
}

impl Client {
    /// Makes a call and waits for its answer: for the first event of a stream as far as it tells
    /// whether it is an error, for all of anything else that is not too long. From then on it may
    /// stay silent for `idle`.
    ///
    /// Dropping the future, or the answer's body, closes the connection, which tells Gemini to stop.
    ///
    /// # Errors
    /// [`Rejected`], as long as nothing of a good answer has come.
    pub async fn forward(
        &self,
        request: &Forward,
        key: &ApiKey,
        body: Bytes,
        fence: Option<Fence>,
        idle: Duration,
    ) -> Result<Response<Held>, Rejected> {
        let payload = Payload::Whole(Full::new(body));
        let secrets = self.secrets(Some(key));
        let answer = self.answer(request, Some(key), payload, fence, &secrets, is_answer).await;
        let (head, body) = answer.map_err(Rejected::of_call)?.into_parts();
        if is_page(&head.headers) {
            let content_type = head.headers.get(CONTENT_TYPE);
            let error = Error::foreign(head.status, content_type, b"<");
            return Err(error.expect("a page is not JSON").into());
        }
        let is_stream = request.streams || is_event_stream(&head.headers);
        let held = Held::new(body, is_stream, idle, secrets.masker_of(&head.headers)).await?;
        match held.refused() {
            false => Ok(Response::from_parts(head, held)),
            true => Err(Rejected::despite_success(head, secrets.redact_body(held.first))),
        }
    }

    /// Passes a request on with a body of whatever size, and its answer back.
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn pass(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
    ) -> Result<Response<Masked<Incoming>>, Rejected> {
        let is_upload = request.path.path().starts_with("/upload/");
        let is_good = move |status| is_passed_on(status, is_upload);
        let secrets = self.secrets(key);
        let response = self.answer(request, key, payload, None, &secrets, is_good).await?;
        let masker = match request.is_download() {
            true => secrets.masker(),
            false => secrets.masker_of(response.headers()),
        };
        Ok(response.map(|body| Masked::new(body, masker)))
    }

    async fn answer(
        &self,
        request: &Forward,
        key: Option<&ApiKey>,
        payload: Payload,
        fence: Option<Fence>,
        secrets: &Secrets,
        is_good: impl Fn(StatusCode) -> bool,
    ) -> Result<Response<Incoming>, Rejected> {
        let response = self.send(request.with(key, payload), fence).await?;
        let (mut head, body) = response.into_parts();
        let is_good = is_good(head.status);
        if is_encoded(&head.headers) && !(is_good && request.is_download()) {
            let message = "Gemini's answer is in an encoding that was not asked for";
            return Err(Error::new(ErrorKind::Malformed, message).into());
        }
        secrets.redact_headers(&mut head.headers);
        // Among them is the reason phrase, which nobody needs and which could hold a key.
        head.extensions.clear();
        if is_good {
            return Ok(Response::from_parts(head, body));
        }
        let body = whole(head.status, body).await?;
        Err(Rejected::read(head, secrets.redact_body(body)))
    }
}

impl Forward {
    /// A request to stream what a model answers to a body.
    pub fn stream(model: &Model) -> Self {
        let path = format!("/v1beta/{}:streamGenerateContent?alt=sse", model.resource());
        Self {
            surface: Surface::Gemini,
            method: Method::POST,
            path: path.parse().expect("all of it was checked"),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, JSON), (USER_AGENT, NAME)]),
            streams: true,
            is_read: true,
        }
    }

    /// Whether it asks for a file, whose bytes can be anything and are the caller's own.
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

/// Whether so much of an answer has come that the rest can pass as it comes.
fn is_enough(first: &[u8], is_stream: bool) -> bool {
    let can_tell = || match Opening::of(first) {
        Opening::Unknown => false,
        Opening::Answer => true,
        Opening::Error { is_over, .. } => is_over,
    };
    first.len() >= MAX_HELD || (is_stream && can_tell())
}

/// The data of the error that an answer begins with: of one event, all its lines.
fn error_data(first: &[u8]) -> Option<Bytes> {
    let Opening::Error { .. } = Opening::of(first) else { return None };
    let mut events = Events::default();
    events.extend(first);
    events.end();
    match events.pop()? {
        Event::Data(data) => Some(data),
        Event::Stray(_) | Event::TooLong => None,
    }
}

/// Whether a status says that the body is an answer.
fn is_answer(status: StatusCode) -> bool {
    status.is_success() && !is_empty(status)
}

/// Whether a status is passed on where nothing is generated: besides success, that nothing changed
/// since the client last asked (304), and that an upload is to go on (308).
fn is_passed_on(status: StatusCode, is_upload: bool) -> bool {
    status.is_success()
        || status == StatusCode::NOT_MODIFIED
        || (is_upload && status == StatusCode::PERMANENT_REDIRECT)
}

/// Whether an answer with this status has no body. Source: RFC 9110, section 15.3.
fn is_empty(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
}

/// Whether a body is not as it is meant, so that no key would be found in it.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether an answer is a web page, which no call is answered with.
fn is_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/html"))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type
        .is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/event-stream"))
}

impl Rejected {
    fn read(head: response::Parts, body: Bytes) -> Self {
        let wait = retry_after::read(&head.headers, Timestamp::now());
        let foreign = Error::foreign(head.status, head.headers.get(CONTENT_TYPE), &body);
        let error = foreign.unwrap_or_else(|| Error::read(head.status, &body)).waiting(wait);
        let is_told = error.kind != ErrorKind::Malformed || head.status.is_client_error();
        let response = is_told.then(|| Box::new(Response::from_parts(head, body)));
        Self { error, response }
    }

    /// The same for a call, to whose client a body is not passed that is not one of Gemini's errors.
    /// Where nothing is generated, the client may have named a path that does not exist, as such a
    /// page says.
    fn of_call(self) -> Self {
        let is_told = self.error.kind != ErrorKind::Malformed;
        Self { response: self.response.filter(|_| is_told), ..self }
    }

    /// Reads an answer that came with success and begins with an error.
    fn despite_success(head: response::Parts, body: Bytes) -> Self {
        let data = error_data(&body);
        let error = Error::read_despite_success(data.as_deref().unwrap_or(&body));
        Self { error, response: Some(Box::new(Response::from_parts(head, body))) }
    }
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Self {
        Self { error, response: None }
    }
}

impl Held {
    /// Waits for what must have come before anything is passed on, or for the end.
    async fn new(
        body: Incoming,
        is_stream: bool,
        idle: Duration,
        masker: Masker,
    ) -> Result<Self, Error> {
        let length = body.size_hint().exact();
        let body = Box::pin(TimeoutBody::new(idle, body));
        let mut rest = Masked::new(body, masker);
        let mut first = BytesMut::new();
        while let Some(frame) = rest.frame().await {
            let Ok(data) = frame.map_err(unread)?.into_data() else { continue };
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

    /// Whether it is an error, although it came with success.
    fn refused(&self) -> bool {
        let error = error_data(&self.first).map(|data| Error::read_despite_success(&data));
        error.is_some_and(|error| error.kind != ErrorKind::Malformed)
    }

    /// The model that Gemini says it asked, where the first event says so, or a short answer.
    pub fn model_version(&self, surface: Surface) -> Option<Model> {
        let data = first_data(&self.first).filter(|data| data.len() <= MAX_READ)?;
        answer::model_version(data, surface)
    }

    /// All of the answer, where it has come.
    pub fn whole(&self) -> Option<&Bytes> {
        self.rest.is_none().then_some(&self.first)
    }
}

impl Body for Held {
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
        Poll::Ready(frame.map(|frame| frame.map_err(unread)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.left.map(|left| left + self.first.len() as u64);
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
