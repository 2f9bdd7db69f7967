//! Reading a JSON body: whole, in time, within its size, and to the right type or a list of what
//! is wrong and where.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, OptionalFromRequest};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Request};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_path_to_error::Segment as Step;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::auth::Caller;
use super::encoding::{Coding, decoded, in_utf8};
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::InputFeatures;
use crate::generation::{InvalidField, Object, Segment};
use crate::memory::Share;

/// A body of more bytes than this is read on a thread for such work. It takes milliseconds, in
/// which the worker serves its other connections.
const LARGE_BODY: usize = 256 * 1024;

/// How many objects and lists of JSON may stand in one another. It is what serde_json reads, and a
/// little more than Gemini does.
const MAX_DEPTH: usize = 127;

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
    /// The memory that the body takes, to be held until the request is answered.
    pub share: Share,
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
        let body = read_json(request, gateway).await?;
        let (body, share) = parse_body(body, gateway).await?;
        Ok(Self { caller, semaphore, body, share })
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, gateway: &Gateway) -> Result<Self, ApiError> {
        let body = read_json(request, gateway).await?;
        let (body, _share) = parse_body(body, gateway).await?;
        Ok(Self(body))
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
        let body = read_json(request, gateway).await?;
        // The OpenAPI document can describe a body that may be left out only as one that may be
        // `null` too.
        if body.bytes.trim_ascii() == b"null" {
            return Ok(None);
        }
        let (body, _share) = parse_body(body, gateway).await?;
        Ok(Some(Self(body)))
    }
}

/// A whole body that is sent as JSON, not parsed yet.
async fn read_json(request: Request<Body>, gateway: &Gateway) -> Result<Buffered, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::not_json());
    }
    let (head, body) = request.into_parts();
    buffer(&head.headers, body, gateway).await
}

/// A body of JSON, and the memory that it takes.
async fn parse_body<T: DeserializeOwned + Send + 'static>(
    Buffered { bytes, mut share }: Buffered,
    gateway: &Gateway,
) -> Result<(T, Share), ApiError> {
    let largest = gateway.bodies.largest();
    let parsed = with_body(bytes, move |bytes| {
        let size = parsed_size(bytes);
        if size > largest - bytes.len() {
            return Err(ApiError::too_many_parts());
        }
        share.grow(size)?;
        let value = parse(bytes).map_err(|field| ApiError::invalid(vec![field]))?;
        Ok((value, share))
    });
    parsed.await?
}

/// About how much more memory the parts of a JSON text take than its bytes do, in bytes: a value of
/// two bytes becomes one of dozens.
fn parsed_size(json: &[u8]) -> usize {
    let (mut size, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' => size += 64,
            b',' => size += 128,
            b'{' => size += 256,
            _ => {}
        }
    }
    size
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

/// A whole body, and the memory that it takes.
pub(super) struct Buffered {
    pub bytes: Bytes,
    pub share: Share,
}

impl AsRef<[u8]> for Buffered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A whole body as it was before it was compressed, in time, within its size and within the memory
/// for all bodies, of which it holds its share until its last clone is dropped.
///
/// # Errors
/// 413, 408, 415, 503, and 400 for one that breaks off or is not of its encoding.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    gateway: &Gateway,
) -> Result<Bytes, ApiError> {
    Ok(Bytes::from_owner(buffer(headers, body, gateway).await?))
}

async fn buffer(headers: &HeaderMap, body: Body, gateway: &Gateway) -> Result<Buffered, ApiError> {
    let limit = gateway.config.max_body_bytes.min(gateway.bodies.largest());
    let coding = Coding::of(headers)?;
    let most_time = gateway.config.client_timeout;
    let announced = headers.get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let expected = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
    let body = collect(body, limit, expected, gateway.bodies.share());
    let body = timeout(most_time, body).await;
    let body = body.unwrap_or_else(|_| Err(ApiError::body_too_slow(most_time)))?;
    let Buffered { bytes, share } = match coding {
        Some(coding) => decoded(coding, body, limit, headers, gateway).await?,
        None => body,
    };
    Ok(Buffered { bytes: in_utf8(bytes)?, share })
}

/// Reads a body of at most `limit` bytes, and probably of no more than `expected`. Its share grows
/// as it comes: to announce a body costs nothing.
async fn collect(
    mut body: Body,
    limit: usize,
    expected: usize,
    mut share: Share,
) -> Result<Buffered, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::body_broken())?.into_data() else { continue };
        if data.len() > limit - whole.len() {
            return Err(ApiError::body_too_large(limit));
        }
        share.grow(data.len())?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(Buffered { bytes: data, share });
        }
        append(&mut whole, &data, expected);
    }
    Ok(Buffered { bytes: whole.into(), share })
}

/// Copies a piece, so that small pieces do not keep the buffers that they came in.
fn append(whole: &mut Vec<u8>, piece: &[u8], expected: usize) {
    let needed = whole.len() + piece.len();
    if needed > whole.capacity() {
        let capacity = (2 * whole.capacity()).min(expected).max(needed);
        whole.reserve_exact(capacity - whole.len());
    }
    whole.extend_from_slice(piece);
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
    check_depth(bytes)?;
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

/// Measures a body that goes on as it came.
///
/// # Errors
/// 422 for one that is nested too deeply.
pub(super) async fn measured(body: Bytes) -> Result<InputFeatures, ApiError> {
    let features = with_body(body, |bytes| {
        check_depth(bytes)?;
        Ok(InputFeatures::of_body(bytes))
    });
    features.await?.map_err(|field| ApiError::invalid(vec![field]))
}

/// Refuses JSON that is nested deeply, in one pass and without recursion: whoever reads it
/// afterwards may recurse.
fn check_depth(json: &[u8]) -> Result<(), InvalidField> {
    let mut depth = 0_usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next().filter(|byte| **byte != b'"') {
                    if *byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            b'{' | b'[' if depth == MAX_DEPTH => {
                let message = format!("The body is nested more than {MAX_DEPTH} levels deep");
                return Err(InvalidField { path: Vec::new(), kind: "too_deep", message });
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a body is JSON that names a model.
///
/// # Errors
/// 422 with what is wrong, and where.
pub(super) async fn check_names_model(body: Bytes) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Named {
        #[expect(dead_code, reason = "that it can be read is all that is asked")]
        model: String,
    }

    let read = with_body(body, parse::<Named>);
    read.await?.map(drop).map_err(|field| ApiError::invalid(vec![field]))
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
    if let Some((kind, what)) = unreadable(&text) {
        let message = format!("{what} (line {}, column {})", error.line(), error.column());
        return InvalidField { path, kind, message };
    }
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

/// What is wrong with a text or a number that is JSON, and cannot be read all the same: what
/// serde_json says of it.
fn unreadable(text: &str) -> Option<(&'static str, &'static str)> {
    let kinds = [
        (
            "lone leading surrogate",
            "string_unicode",
            "The text has an escape that is one half of a surrogate pair, without the other half",
        ),
        (
            "unexpected end of hex escape",
            "string_unicode",
            "The text has an escape that is one half of a surrogate pair, without the other half",
        ),
        ("invalid unicode code point", "string_unicode", "The text is not UTF-8"),
        ("number out of range", "number_out_of_range", "The number is too large to be one"),
    ];
    let known = kinds.into_iter().find(|(words, ..)| text.starts_with(words));
    known.map(|(_, kind, what)| (kind, what))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_json_are_counted_and_text_is_not() {
        assert_eq!(parsed_size(br#""[,{ \" [,{ \\""#), 0);
        assert_eq!(parsed_size(br#"{"a": [1, 2], "b\"": "x,y"}"#), 256 + 64 + 2 * 128);
        let nested = b"[[],[],[],[]]".as_slice();
        assert!(parsed_size(nested) >= 5 * size_of::<serde_json::Value>());
    }

    #[test]
    fn a_body_grows_to_what_was_announced_and_no_further() {
        let mut whole = Vec::new();
        for _ in 0..10 {
            append(&mut whole, &[0; 100], 1000);
            assert!(whole.capacity() <= 1000);
        }
        append(&mut whole, &[0; 100], 1000);
        assert_eq!(whole.len(), 1100);
    }
}
