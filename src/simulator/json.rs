//! Reading and writing JSON as Google does.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::refusal::{ErrorResponse, FieldViolation, JSON};

/// The largest body, in bytes. Source: Gemini API docs, file input methods.
const MAX_BODY: usize = 100 * 1024 * 1024;

/// Receives a whole body.
pub(super) async fn received(body: Body) -> Result<Bytes, ErrorResponse> {
    let received = axum::body::to_bytes(body, MAX_BODY).await;
    received.map_err(|_| ErrorResponse::with_status(StatusCode::BAD_REQUEST))
}

/// A response with a JSON body.
pub(super) fn json_response(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response()
}

/// Reads a body.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ErrorResponse> {
    serde_json::from_slice(body).map_err(|_| explain::<T>(body))
}

/// Reads an invalid body again to find where it fails.
fn explain<'a, T: Deserialize<'a>>(body: &'a [u8]) -> ErrorResponse {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut deserializer) else {
        return ErrorResponse::invalid_argument(
            "Invalid JSON payload received. Unexpected data after the end of the value.",
        );
    };
    let message = error.inner().to_string();
    let Some(name) = unknown_name(&message) else {
        return ErrorResponse::invalid_argument(format!(
            "Invalid JSON payload received. {message}"
        ));
    };
    let mut path = field_path(error.path().iter());
    let last = field_name(name);
    let parent = path.strip_suffix(last.as_str()).map(|parent| parent.trim_end_matches('.').len());
    path.truncate(parent.unwrap_or(path.len()));
    ErrorResponse::bad_request(&[FieldViolation::unknown_name(name, &path)])
}

fn unknown_name(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// The place of a value, as Google writes it: `generation_config.response_schema`, `contents[0]`.
fn field_path<'a>(segments: impl Iterator<Item = &'a Segment>) -> String {
    segments.fold(String::new(), |mut path, segment| {
        match segment {
            Segment::Seq { index } => path.push_str(&format!("[{index}]")),
            Segment::Map { key } if path.is_empty() => path.push_str(&field_name(key)),
            Segment::Map { key } => path.extend([".", &field_name(key)]),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
        path
    })
}

/// The name of a field in the protocol buffer: `generationConfig` is `generation_config`.
pub(super) fn field_name(json_name: &str) -> String {
    json_name.chars().fold(String::new(), |mut name, character| {
        if character.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(character.to_ascii_lowercase());
        name
    })
}
