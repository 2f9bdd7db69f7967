//! Lines of Gemini's batch files.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::outcome::Names;
use super::relayed::{Relayed, body_of, size_of};
use super::{Item, Reading, invalid, parsed};
use crate::api::error::ApiError;
use crate::api::jobs::object::Object;
use crate::dispatch::CallKind;
use crate::gemini::{Forward, Model, Surface};

/// The longest key, in characters.
const MAX_KEY: usize = 512;

/// A line. Source: Gemini API docs, "Batch API".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Option<String>,
    request: Box<RawValue>,
    model: Option<String>,
    /// Gemini ignores it in files.
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
}

/// Reads an item.
///
/// # Errors
/// As for [`Reading::item`].
pub(super) async fn read(reading: &Reading<'_>, line: &Bytes) -> Result<Item, ApiError> {
    let Line { key, request, model, .. } = parsed(line.clone()).await?;
    if key.as_ref().is_some_and(|key| key.chars().count() > MAX_KEY) {
        let message = format!("A key has at most {MAX_KEY} characters");
        return Err(invalid(&["key"], "string_length", message));
    }
    let mut object = Object::read(request.get().as_bytes())
        .ok_or_else(|| invalid(&["request"], "object_type", "Input should be an object"))?;
    let in_request = object.get("model").filter(|model| *model != "null");
    let in_request = in_request.map(serde_json::from_str::<String>).transpose();
    let in_request = in_request
        .map_err(|_| invalid(&["request", "model"], "string_type", "Input should be a string"))?;
    // The model is in the path of the call.
    object.remove("model");
    let own = in_request.or(model);
    let names_model = own.is_some();
    let named = own.or_else(|| reading.rules.model.clone());
    let named = named.ok_or_else(|| {
        let message = "Neither the line nor the job names a model";
        invalid(&["request", "model"], "missing", message)
    })?;
    let model = Model::parse(&named)
        .map_err(|error| invalid(&["request", "model"], "model_name", error.to_string()))?;
    let (body, tier, input) = body_of(reading.rules, object, "serviceTier", "request")?;
    let (kind, method) = match Object::read(&body) {
        Some(body) if body.has("contents") => (CallKind::GenerateContent, "generateContent"),
        Some(body) if body.has("content") => (CallKind::EmbedContent, "embedContent"),
        _ => return Err(invalid(&["request", "contents"], "missing", "Field required")),
    };
    let size = size_of(kind, Surface::Gemini, &model, &body, input)?;
    let (request, names) = (Forward::method(&model, method), Names::Gemini(key));
    let content = Relayed { request, body, names, model: model.clone(), names_model };
    let semaphore = reading.rules.semaphore.clone();
    Ok(Item { kind, model, semaphore, tier, size, content: Box::new(content) })
}

/// The key in a line.
pub(super) fn names(line: &[u8]) -> Names {
    let object = Object::read(line);
    let key = object.as_ref().and_then(|object| object.get("key"));
    Names::Gemini(key.and_then(|key| serde_json::from_str(key).ok()))
}
