//! Reading a JSON body: whole, in time, within its size, and to the right type or a list of what
//! is wrong and where.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, OptionalFromRequest};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_path_to_error::Segment as Step;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::auth::Caller;
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::generation::{InvalidField, Object, Segment};

/// A body of more bytes than this is read on a thread for such work. It takes milliseconds, in
/// which the worker serves its other connections.
const LARGE_BODY: usize = 256 * 1024;

/// The header that names a semaphore, for requests whose body does not.
pub(super) const EXTERNAL_SEMAPHORE_ID: HeaderName =
    HeaderName::from_static("x-external-semaphore-id");

/// The semaphore that a header names.
pub(super) fn semaphore_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(EXTERNAL_SEMAPHORE_ID)?;
    Some(String::from_utf8_lossy(id.as_bytes()).into_owned())
}

/// A request for work: who sent it and what it says.
#[derive(Debug)]
pub(super) struct Asked<T> {
    pub caller: Caller,
    /// The semaphore that is named beside the body.
    pub semaphore: Option<String>,
    pub body: T,
}

/// A body of JSON.
#[derive(Debug, Default)]
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, gateway: &Gateway) -> Result<Self, ApiError> {
        let caller = Caller::of(request.headers(), request.uri().query(), gateway);
        if caller.is_admin() {
            // Whatever the body says, the server's key pays: without one, the body is not read.
            caller.payer(None, gateway)?;
        }
        let semaphore = semaphore_id(request.headers());
        let JsonBody(body) =
            <JsonBody<T> as FromRequest<Gateway>>::from_request(request, gateway).await?;
        Ok(Self { caller, semaphore, body })
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, gateway: &Gateway) -> Result<Self, ApiError> {
        let bytes = read_json(request, gateway).await?;
        parse_body(bytes).await.map(Self)
    }
}

/// For a body that may be left out.
impl<T: DeserializeOwned + Send + 'static> OptionalFromRequest<Gateway> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(
        request: Request<Body>,
        gateway: &Gateway,
    ) -> Result<Option<Self>, ApiError> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        let bytes = read_json(request, gateway).await?;
        // The OpenAPI document can describe a body that may be left out only as one that may be
        // `null` too.
        if bytes.trim_ascii() == b"null" {
            return Ok(None);
        }
        parse_body(bytes).await.map(Self).map(Some)
    }
}

/// A whole body that is sent as JSON, not parsed yet.
async fn read_json(request: Request<Body>, gateway: &Gateway) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::not_json());
    }
    let (head, body) = request.into_parts();
    read(&head.headers, body, gateway).await
}

async fn parse_body<T: DeserializeOwned + Send + 'static>(bytes: Bytes) -> Result<T, ApiError> {
    let parsed = with_body(bytes, |bytes| parse(bytes)).await?;
    parsed.map_err(|field| ApiError::invalid(vec![field]))
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A whole body, in time and within its size.
///
/// # Errors
/// 413, 408, and 400 for one that breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    gateway: &Gateway,
) -> Result<Bytes, ApiError> {
    let (limit, patience) = (gateway.config.max_body_bytes, gateway.config.client_timeout);
    let announced = headers.get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let body = Limited::new(body, limit).collect();
    match timeout(patience, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(limit)),
        Ok(Err(_)) => Err(ApiError::body_broken()),
        Err(_) => Err(ApiError::body_too_slow(patience)),
    }
}

/// Works on a body: where it is large, on a thread for such work.
///
/// # Errors
/// 500 where the work panics there.
pub(super) async fn with_body<T: Send + 'static>(
    body: Bytes,
    work: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, ApiError> {
    if body.len() <= LARGE_BODY {
        return Ok(work(&body));
    }
    spawn_blocking(move || work(&body)).await.map_err(|_| ApiError::internal())
}

/// Reads JSON. What is wrong is looked for only where something is: the readings that keep track
/// of it are spared all good requests.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidField> {
    let read = serde_json::from_slice(bytes).or_else(|_| {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| not_json(&error))?;
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().iter().filter_map(segment).collect();
            fault(path, &error.into_inner())
        })
    });
    read.map(|Object(value)| value)
}

fn not_json(error: &serde_json::Error) -> InvalidField {
    let message = format!("The body is not JSON: {error}");
    InvalidField { path: Vec::new(), kind: "json_invalid", message }
}

fn segment(step: &Step) -> Option<Segment> {
    match step {
        Step::Map { key } => Some(Segment::Key(key.clone())),
        Step::Seq { index } => Some(Segment::Index(*index)),
        Step::Enum { .. } | Step::Unknown => None,
    }
}

/// A fault in FastAPI's words, which clients of this interface know. The value that was found is
/// left out: it may be a key.
fn fault(mut path: Vec<Segment>, error: &serde_json::Error) -> InvalidField {
    let text = error.to_string();
    let (kind, message) = if let Some(field) = quoted(&text, "missing field `") {
        path.push(field.into());
        ("missing", "Field required")
    } else if let Some(field) = quoted(&text, "unknown field `") {
        if path.last() != Some(&field.into()) {
            path.push(field.into());
        }
        ("extra_forbidden", "There is no such field")
    } else if let Some(field) = quoted(&text, "duplicate field `") {
        path.push(field.into());
        ("duplicate", "The field is there more than once")
    } else {
        expected(&text)
    };
    InvalidField { path, kind, message: message.to_owned() }
}

/// The name between `opening` at the start of a message and the next backtick.
fn quoted<'a>(text: &'a str, opening: &str) -> Option<&'a str> {
    text.strip_prefix(opening)?.split('`').next()
}

/// The fault of a value of the wrong type, by what was expected.
fn expected(text: &str) -> (&'static str, &'static str) {
    let expected = text.split_once("expected ").map_or("", |(_, expected)| expected);
    match expected.split([' ', ',']).find(|word| !matches!(*word, "a" | "an")) {
        Some("string" | "borrowed") => ("string_type", "Input should be a string"),
        Some("sequence") => ("list_type", "Input should be a list"),
        Some("map" | "struct" | "object") => ("object_type", "Input should be an object"),
        Some("boolean") => ("bool_type", "Input should be true or false"),
        Some("usize" | "u64" | "u32" | "i64") => ("int_type", "Input should be a whole number"),
        Some("f64") => ("float_type", "Input should be a number"),
        _ => ("value_error", "Input cannot be used here"),
    }
}
