//! Where a request in the words of Gemini or of OpenAI leads.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use crate::gemini::{API_KEY, Model, Surface};

/// Where Gemini has its endpoints of OpenAI's shape.
const OPENAI: &str = "/v1beta/openai";

/// Where a request leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination<'a> {
    /// Whose words it is in.
    pub surface: Surface,
    /// The path at Gemini.
    pub path: Cow<'a, str>,
    /// The method of a model that generates something, where it calls one by its path.
    pub call: Option<ModelCall>,
}

/// A call of a model's method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelCall {
    /// What it is called in metrics and logs.
    pub kind: &'static str,
    /// The model.
    pub model: Model,
    /// Whether the answer comes bit by bit.
    pub streams: bool,
}

impl<'a> Destination<'a> {
    /// Reads a path. `/v1/chat/completions` and `/v1/embeddings` are OpenAI's and nobody else's.
    /// `/v1/models` is of both: OpenAI's for who brings a bearer token and no `x-goog-api-key`.
    ///
    /// It is read as Gemini reads it, with what is escaped in it, so that nothing generates past the
    /// limits under another spelling.
    ///
    /// # Errors
    /// 400 for a path that could lead elsewhere, and for a call of something that is no model.
    pub fn of(path: &'a str, headers: &HeaderMap) -> Result<Self, ApiError> {
        let plain = percent_decode_str(path).decode_utf8_lossy();
        if plain.split('/').any(|segment| segment == "." || segment == "..") {
            return Err(ApiError::unusable_path("A path has no `.` and no `..` in it."));
        }
        let plain = plain.trim_end_matches('/');
        if let Some(rest) = openai_path(plain, headers) {
            let path = format!("{OPENAI}{rest}").into();
            return Ok(Self { surface: Surface::OpenAi, path, call: None });
        }
        let call = model_call(plain)?;
        Ok(Self { surface: Surface::Gemini, path: path.into(), call })
    }
}

/// What follows Gemini's `/openai`, where a path is OpenAI's.
fn openai_path<'a>(path: &'a str, headers: &HeaderMap) -> Option<&'a str> {
    for version in ["/v1", "/v1beta", "/v1alpha"] {
        let rest = path.strip_prefix(version).and_then(|rest| rest.strip_prefix("/openai"));
        if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            return Some(rest);
        }
    }
    let rest = path.strip_prefix("/v1")?;
    let brings_token = headers.contains_key(AUTHORIZATION) && !headers.contains_key(API_KEY);
    let is_model = rest == "/models" || rest.starts_with("/models/") && !rest.contains(':');
    let is_openai =
        matches!(rest, "/chat/completions" | "/embeddings") || (is_model && brings_token);
    is_openai.then_some(rest)
}

/// The call of `…/models/{model}:{method}`, where it generates something.
fn model_call(path: &str) -> Result<Option<ModelCall>, ApiError> {
    let segments = path.rsplit_once('/');
    let Some((model, method)) = segments.and_then(|(_, last)| last.rsplit_once(':')) else {
        return Ok(None);
    };
    let Some(kind) = kind(method) else { return Ok(None) };
    let collection = segments.map_or("", |(collection, _)| collection);
    let name = match collection.rsplit_once('/') {
        Some((_, "tunedModels")) => format!("tunedModels/{model}"),
        _ => model.to_owned(),
    };
    let model = Model::parse(&name).map_err(|error| ApiError::unusable_path(error.to_string()))?;
    Ok(Some(ModelCall { kind, model, streams: method.starts_with("stream") }))
}

/// What a method is called that generates something, counts tokens or embeds. Jobs for later
/// (`batchGenerateContent`, `asyncBatchEmbedContent`) are none of them: Gemini does them when it
/// likes, and counts them apart.
fn kind(method: &str) -> Option<&'static str> {
    match method {
        "generateContent" => Some("generate_content"),
        "streamGenerateContent" => Some("stream_generate_content"),
        "countTokens" => Some(COUNT_TOKENS),
        "embedContent" | "batchEmbedContents" => Some("embed_content"),
        method if method.starts_with("predict") => Some("predict"),
        method
            if ["generate", "streamGenerate", "count", "embed", "batchEmbed"]
                .iter()
                .any(|beginning| method.starts_with(beginning)) =>
        {
            Some("other_method")
        }
        _ => None,
    }
}

/// What calls are called that count tokens and do nothing else.
pub(super) const COUNT_TOKENS: &str = "count_tokens";

/// Whether what is posted to a path of OpenAI's shape generates something: all but what is kept for
/// later (`/files`, `/batches`).
pub(super) fn openai_generates(path: &str) -> bool {
    let resource = path.strip_prefix(OPENAI).and_then(|rest| rest.split('/').nth(1));
    !matches!(resource, Some("files" | "batches" | "models"))
}

/// What calls of OpenAI's shape are called, by what follows Gemini's `/openai`.
pub(super) fn openai_kind(path: &str) -> &'static str {
    match path.strip_prefix(OPENAI) {
        Some("/chat/completions") => "openai_chat",
        Some("/embeddings") => "openai_embeddings",
        _ => "openai_other",
    }
}
