//! Lines of OpenAI's batch files.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::outcome::Names;
use super::relayed::{Relayed, body_of, size_of};
use super::{Item, Reading, invalid, parsed};
use crate::api::destination::{CountedCall, Destination, ModelSource};
use crate::api::error::ApiError;
use crate::api::jobs::object::Object;
use crate::dispatch::CallKind;
use crate::gemini::{Forward, Model, Surface, named_model};

/// The longest id, in characters.
const MAX_ID: usize = 512;

/// The endpoints that Gemini's OpenAI-compatible API has, and that a line may name.
const SERVED: [&str; 3] = ["/chat/completions", "/embeddings", "/images/generations"];

/// A line. Source: OpenAI's API reference, "The request input object".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    custom_id: Option<String>,
    method: Option<String>,
    url: String,
    body: Box<RawValue>,
}

/// Reads an item.
///
/// # Errors
/// As for [`Reading::item`].
pub(super) async fn read(reading: &Reading<'_>, line: &Bytes) -> Result<Item, ApiError> {
    let Line { custom_id, method, url, body } = parsed(line.clone()).await?;
    if custom_id.as_ref().is_some_and(|id| id.chars().count() > MAX_ID) {
        let message = format!("An id has at most {MAX_ID} characters");
        return Err(invalid(&["custom_id"], "string_length", message));
    }
    if method.is_some_and(|method| method != "POST") {
        return Err(invalid(&["method"], "literal_error", "Input should be 'POST'"));
    }
    let (path, kind) = endpoint(&url)?;
    let mut object = Object::read(body.get().as_bytes())
        .ok_or_else(|| invalid(&["body"], "object_type", "Input should be an object"))?;
    if object.has("stream") && object.get("stream") != Some("false") {
        let message = "The answer to an item of a job is not streamed";
        return Err(invalid(&["body", "stream"], "value_error", message));
    }
    let names_model = object.has("model");
    let default = reading.rules.model.as_deref().filter(|_| !names_model);
    let default = default.map(|model| serde_json::Value::from(model).to_string());
    if let Some(default) = &default {
        object.remove("model");
        object.add("model", default);
    }
    let (body, tier, input) = body_of(reading.rules, object, "service_tier", "body")?;
    let named = named_model(&body, None);
    let named =
        named.map_err(|error| invalid(&["body", "model"], "duplicate", error.to_string()))?;
    let named = named.ok_or_else(|| invalid(&["body", "model"], "missing", "Field required"))?;
    let model = Model::parse(&named)
        .map_err(|error| invalid(&["body", "model"], "model_name", error.to_string()))?;
    let size = size_of(kind, Surface::OpenAi, &model, &body, input)?;
    let path = path.parse().map_err(|_| ApiError::internal())?;
    let request = Forward::call(Surface::OpenAi, path);
    // OpenAI's batch files are for one model, so that it is that of all items.
    let (names, names_model) = (Names::OpenAi(custom_id), false);
    let content = Relayed { request, body, names, model: model.clone(), names_model };
    let semaphore = reading.rules.semaphore.clone();
    Ok(Item { kind, model, semaphore, tier, size, content: Box::new(content) })
}

/// The id in a line.
pub(super) fn names(line: &[u8]) -> Names {
    let object = Object::read(line);
    let id = object.as_ref().and_then(|object| object.get("custom_id"));
    Names::OpenAi(id.and_then(|id| serde_json::from_str(id).ok()))
}

/// The path at Gemini and the kind of the call for the URL of a line, as for a request to that URL.
fn endpoint(url: &str) -> Result<(String, CallKind), ApiError> {
    let unserved = || {
        let message = "Input should be '/v1/chat/completions', '/v1/embeddings' or \
                       '/v1/images/generations'";
        invalid(&["url"], "literal_error", message)
    };
    if !url.starts_with('/') || url.contains(['?', '#']) {
        return Err(unserved());
    }
    let head = Request::builder().method(Method::POST).uri(url).header(AUTHORIZATION, "Bearer x");
    let (head, ()) = head.body(()).map_err(|_| unserved())?.into_parts();
    let Destination { surface, path, call, .. } = Destination::of(&head).map_err(|_| unserved())?;
    match call {
        Some(CountedCall { kind, model: ModelSource::Body, takes_file: false })
            if surface == Surface::OpenAi && SERVED.iter().any(|end| path.ends_with(end)) =>
        {
            Ok((path, kind))
        }
        _ => Err(unserved()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_line_leads_where_a_request_would() {
        for (url, path, kind) in [
            ("/v1/chat/completions", "/v1beta/openai/chat/completions", CallKind::OpenAiChat),
            ("/v1beta/openai/embeddings", "/v1beta/openai/embeddings", CallKind::OpenAiEmbeddings),
            ("/v1/images/generations", "/v1beta/openai/images/generations", CallKind::OpenAiOther),
        ] {
            assert_eq!(endpoint(url).unwrap(), (path.to_owned(), kind));
        }
        for url in [
            "",
            "v1/chat/completions",
            "https://example.com/v1/chat/completions",
            "/v1/chat/completions?key=x",
            "/v1/responses",
            "/v1/completions",
            "/v1/batches",
            "/v1/videos",
            "/v1beta/models/m:generateContent",
            "/v1/../v1/embeddings",
            "/v1/embeddings\n",
        ] {
            assert!(endpoint(url).is_err(), "{url}");
        }
    }
}
