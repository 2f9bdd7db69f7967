//! Reads JSON bodies: to the right type, or to a list of what is wrong and where.

use std::fmt;
use std::marker::PhantomData;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, OptionalFromRequest};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment as Step;

use super::body::buffer;
use super::buffered::{Buffered, with_body};
use super::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::{InputFeatures, ServiceTier};
use crate::generation::{InvalidField, Segment};
use crate::memory::Share;

/// How deeply objects and lists may be nested: as deeply as serde_json reads them, which is a little
/// deeper than Gemini accepts.
const MAX_DEPTH: usize = 127;

/// A JSON body.
#[derive(Debug, Default)]
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Gateway> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, gateway: &Gateway) -> Result<Self, ApiError> {
        let (body, _share) = read(request, gateway).await?;
        Ok(Self(body))
    }
}

/// For an optional body.
impl<T: DeserializeOwned + Send + 'static> OptionalFromRequest<Gateway> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(
        request: Request<Body>,
        gateway: &Gateway,
    ) -> Result<Option<Self>, ApiError> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        let body = buffer_json(request, gateway).await?;
        // OpenAPI documents an optional body as one that may also be `null`.
        if body.bytes.trim_ascii() == b"null" {
            return Ok(None);
        }
        let (body, _share) = parse_body(body, gateway).await?;
        Ok(Some(Self(body)))
    }
}

/// Reads and parses a JSON body. Gives the value and its share of the memory budget.
///
/// # Errors
/// As for [`buffer`]; 422 with the invalid field.
pub(super) async fn read<T: DeserializeOwned + Send + 'static>(
    request: Request<Body>,
    gateway: &Gateway,
) -> Result<(T, Share), ApiError> {
    parse_body(buffer_json(request, gateway).await?, gateway).await
}

/// Reads a whole body that is sent as JSON, without parsing it.
async fn buffer_json(request: Request<Body>, gateway: &Gateway) -> Result<Buffered, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::not_json());
    }
    let (head, body) = request.into_parts();
    buffer(&head.headers, body, gateway).await
}

/// Parses a body, and grows its share of the memory by what the parsed value takes.
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

/// An estimate of the memory, in bytes, that the values of a JSON text take once they are parsed: a value
/// of two bytes takes dozens.
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

/// Whether a body is sent as JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A value that is written as a JSON object. serde's own structs also accept a list of all fields in
/// their order, which no caller of this interface means.
#[derive(Debug)]
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// Parses JSON. Only if that fails, it is parsed again with a reader that tracks the path to the error,
/// which is slower.
///
/// # Errors
/// The field that is invalid.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidField> {
    check_depth(bytes)?;
    let read = serde_json::from_slice(bytes).or_else(|_| {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| not_json(&error))?;
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().iter().filter_map(segment).collect();
            invalid_field(path, &error.into_inner())
        })
    });
    read.map(|Object(value)| value)
}

/// The features of a relayed body from which its tokens are estimated, and its service tier.
///
/// # Errors
/// 422 if it is nested too deeply.
pub(super) async fn measured(body: Bytes) -> Result<(InputFeatures, ServiceTier), ApiError> {
    let features = with_body(body, |bytes| {
        check_depth(bytes)?;
        Ok(InputFeatures::with_tier_of_body(bytes))
    });
    features.await?.map_err(|field| ApiError::invalid(vec![field]))
}

/// Refuses JSON that is nested too deeply, in one pass and without recursion, because code that reads it
/// later may recurse.
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

/// Checks that a body is JSON with a `model`.
///
/// # Errors
/// 422 with the place of the error.
pub(super) async fn check_names_model(body: Bytes) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Named {
        #[expect(dead_code, reason = "only checked to be there")]
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

/// The error for invalid JSON, in FastAPI's words, which clients of this interface know. It does not
/// contain the value, which may be a key.
fn invalid_field(mut path: Vec<Segment>, error: &serde_json::Error) -> InvalidField {
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
        ("duplicate", "The field occurs more than once")
    } else {
        expected(&text)
    };
    InvalidField { path, kind, message: message.to_owned() }
}

/// The kind and the message for a string or a number that is valid JSON but cannot be represented, by the
/// start of serde_json's message.
fn unreadable(text: &str) -> Option<(&'static str, &'static str)> {
    const LONE_SURROGATE: &str =
        "The text has an escape for one half of a surrogate pair without the other half";
    let kinds = [
        ("lone leading surrogate", "string_unicode", LONE_SURROGATE),
        ("unexpected end of hex escape", "string_unicode", LONE_SURROGATE),
        ("invalid unicode code point", "string_unicode", "The text is not UTF-8"),
        ("number out of range", "number_out_of_range", "The number is too large"),
    ];
    let known = kinds.into_iter().find(|(start, ..)| text.starts_with(start));
    known.map(|(_, kind, what)| (kind, what))
}

/// The name between `opening` at the start of a message and the next backtick.
fn quoted<'a>(text: &'a str, opening: &str) -> Option<&'a str> {
    text.strip_prefix(opening)?.split('`').next()
}

/// The kind and the message for a value of the wrong type, by the type that was expected.
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
}
