//! Paths in OpenAI's form.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;

use crate::api::error::ApiError;
use crate::gemini::API_KEY;

/// The path of Gemini's endpoints in OpenAI's form.
pub(super) const OPENAI: &str = "/v1beta/openai";

/// Resources below `/v1/` that only OpenAI has, and that Gemini serves. Source: Gemini API
/// documentation, "OpenAI compatibility".
const SERVED: [&str; 4] = ["chat/completions", "embeddings", "images/generations", "videos"];

/// Resources below `/v1/` that both OpenAI and Gemini have.
const SHARED: [&str; 3] = ["models", "files", "batches"];

/// Resources below `/v1/` that only OpenAI has, and that Gemini does not serve. Source: OpenAI's API
/// reference.
const NOT_SERVED: [&str; 16] = [
    "assistants",
    "audio",
    "chat",
    "chatkit",
    "completions",
    "containers",
    "conversations",
    "evals",
    "fine_tuning",
    "images",
    "moderations",
    "realtime",
    "responses",
    "threads",
    "uploads",
    "vector_stores",
];

/// The path at Gemini for a path of OpenAI's, escaped as it came; `None` for a path of Gemini's.
///
/// # Errors
/// 404 for a path that Gemini does not serve.
pub(super) fn path(
    raw: &str,
    plain: &str,
    headers: &HeaderMap,
) -> Option<Result<String, ApiError>> {
    let (version, rest) = raw.strip_prefix('/')?.split_once('/')?;
    let (first, below) =
        rest.split_once('/').map_or((rest, ""), |(first, _)| (first, &rest[first.len()..]));
    let is_version = matches!(version, "v1" | "v1beta" | "v1alpha");
    if is_version && percent_decode_str(first).eq(b"openai".iter().copied()) {
        return Some(Ok(format!("{OPENAI}{below}")));
    }
    let resource = plain.strip_prefix("/v1/")?;
    let brings_token = brings_token(headers) && !headers.contains_key(API_KEY);
    if SERVED.iter().any(|served| is_or_is_below(resource, served))
        || (brings_token
            && !resource.contains(':')
            && SHARED.iter().any(|shared| is_or_is_below(resource, shared)))
    {
        return Some(Ok(format!("{OPENAI}/{rest}")));
    }
    let is_openais = NOT_SERVED.iter().any(|missing| is_or_is_below(resource, missing));
    is_openais.then(|| Err(ApiError::not_served(plain)))
}

/// Whether a request has a token as OpenAI's clients send it. Google's clients send
/// `Token auth_tokens/…`.
fn brings_token(headers: &HeaderMap) -> bool {
    let token = headers.get(AUTHORIZATION).map(|token| token.as_bytes().to_ascii_lowercase());
    token.is_some_and(|token| !token.starts_with(b"token "))
}

fn is_or_is_below(path: &str, resource: &str) -> bool {
    path.strip_prefix(resource).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
