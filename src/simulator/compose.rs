//! Composing the text of a response.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::instance::fitting;
use super::options::Options;
use super::quota::QuotaExceeded;
use super::refusal::ErrorResponse;
use super::request::{GenerateContentRequest, GenerationConfig};
use super::response::{Candidate, Content, PromptOutcome, beginning, pieces, sized};
use super::schema::{check_response_json_schema, check_response_schema};
use super::script::{Ending, Script};
use super::stats::hash;
use super::tokens::tokens;

/// The prefix of a continuation token. The number of the next call follows.
const TOKEN_PREFIX: &str = "simulated continuation ";

/// The limit and the wait that a scripted quota refusal names.
const SCRIPTED_LIMIT: u64 = 10;
const SCRIPTED_WAIT: Duration = Duration::from_millis(12_345);

/// The most calls that one answer can be spread over.
const MAX_HOPS: usize = 10_000;

/// Composes the candidate of a response.
pub(super) fn candidate<'a>(
    options: &Options,
    request: &GenerateContentRequest<'_>,
    schema: Option<&Value>,
    prompt: &str,
    script: &Script<'a>,
) -> Result<PromptOutcome<'a>, ErrorResponse> {
    let mut finish_reason = script.finish.unwrap_or("STOP");
    let mut text = match script.text {
        Some(text) => text.to_owned(),
        None if script.invalid_json => r#"{"unfinished": "#.to_owned(),
        None => compose_text(options, request, schema, prompt, script.bytes)?,
    };
    let max_tokens = request.generation_config().and_then(|config| config.max_output_tokens);
    let hop = hop(request)?;
    let mut continuation_token = None;
    if script.hops.is_some() || finish_reason == "CONTINUATION" {
        let is_last;
        (text, is_last) = text_of_hop(&text, hop, script.hops);
        if !is_last {
            finish_reason = "CONTINUATION";
            continuation_token = Some(STANDARD.encode(format!("{TOKEN_PREFIX}{}", hop + 1)));
        }
    } else if hop > 0 {
        return Err(invalid_token());
    } else if finish_reason == "MAX_TOKENS" {
        let half = text.len() / 2;
        text = beginning(text, half);
    } else if let Some(max_tokens) = max_tokens.filter(|max| tokens(&text) > *max) {
        finish_reason = "MAX_TOKENS";
        text = beginning(text, max_tokens.saturating_mul(4) as usize);
    }
    let content = match finish_reason {
        _ if script.empty => Content::WithoutParts,
        _ if script.text.is_some()
            || matches!(finish_reason, "STOP" | "MAX_TOKENS" | "CONTINUATION") =>
        {
            Content::Parts { count: script.parts.unwrap_or(1), thought: script.thought }
        }
        _ => Content::Missing,
    };
    let finish_reason = (!script.unfinished).then_some(finish_reason);
    let text = Cow::Owned(text);
    Ok(PromptOutcome::Candidate(Candidate { text, finish_reason, continuation_token, content }))
}

/// The refusal of a script; 503 by default.
pub(super) fn scripted_refusal(
    ending: Option<&Ending<'_>>,
    model: &str,
    free_tier: bool,
) -> ErrorResponse {
    match ending {
        Some(Ending::Status(status)) => ErrorResponse::with_status(*status),
        Some(Ending::Html(status)) => ErrorResponse::html(*status),
        Some(Ending::Quota(quota)) => {
            let violations = vec![(*quota, SCRIPTED_LIMIT)];
            let exceeded = QuotaExceeded { violations, retry_in: SCRIPTED_WAIT };
            ErrorResponse::quota_exceeded(&exceeded, model, free_tier)
        }
        Some(Ending::SpendLimit) => ErrorResponse::spend_limit(),
        Some(Ending::BatchLimit) => ErrorResponse::batch_limit(),
        Some(Ending::Close | Ending::Blocked(_)) | None => {
            ErrorResponse::with_status(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

/// The number of the call among those that an answer is spread over, from its continuation token.
fn hop(request: &GenerateContentRequest<'_>) -> Result<usize, ErrorResponse> {
    let Some(token) = &request.continuation_token else { return Ok(0) };
    let token = STANDARD.decode(&*token.0).ok().and_then(|token| String::from_utf8(token).ok());
    let hop = token.and_then(|token| token.strip_prefix(TOKEN_PREFIX)?.parse().ok());
    hop.filter(|hop| (1..MAX_HOPS).contains(hop)).ok_or_else(invalid_token)
}

fn invalid_token() -> ErrorResponse {
    ErrorResponse::invalid_argument("The continuation token is not valid for this request.")
}

/// The piece of a text that one call answers with, and whether it is the last. Without a number of
/// calls each gives half of what is left, and none is the last.
fn text_of_hop(text: &str, hop: usize, hops: Option<usize>) -> (String, bool) {
    if let Some(hops) = hops {
        let pieces = pieces(text, hops.min(MAX_HOPS));
        let piece = pieces.get(hop).copied().unwrap_or_default();
        return (piece.to_owned(), hop + 1 >= pieces.len());
    }
    let mut rest = text;
    for _ in 0..hop {
        rest = &rest[rest.floor_char_boundary(rest.len() / 2)..];
    }
    (rest[..rest.floor_char_boundary(rest.len() / 2)].to_owned(), false)
}

/// The text of a response: JSON that matches the schema when there is one, otherwise a sentence that
/// repeats the prompt.
fn compose_text(
    options: &Options,
    request: &GenerateContentRequest<'_>,
    schema: Option<&Value>,
    prompt: &str,
    bytes: Option<usize>,
) -> Result<String, ErrorResponse> {
    if let Some(schema) = schema {
        let value = fitting(schema, prompt, options.seed ^ hash(prompt))
            .ok_or_else(|| ErrorResponse::with_status(StatusCode::BAD_REQUEST))?;
        return Ok(match value {
            Value::String(choice) if request.wants_enum() => choice,
            value => value.to_string(),
        });
    }
    let text = format!("Simulated answer to: {prompt}");
    if request.wants_json() {
        return Ok(json!({"answer": text}).to_string());
    }
    Ok(match bytes.or(options.answer_bytes) {
        Some(bytes) => sized(text, bytes),
        None => text,
    })
}

/// The schema of the response, if the request has one.
///
/// # Errors
///
/// Refuses a schema that Gemini would refuse.
pub(super) fn check_schemas(
    request: &GenerateContentRequest<'_>,
) -> Result<Option<Value>, ErrorResponse> {
    let Some(config) = request.generation_config() else { return Ok(None) };
    let schema = match *config {
        GenerationConfig { response_schema: None, response_json_schema: None, .. } => {
            return Ok(None);
        }
        GenerationConfig { response_schema: Some(_), response_json_schema: Some(_), .. } => {
            return Err(broken_rule(
                "response_json_schema: only one of response_schema and response_json_schema may \
                 be set",
            ));
        }
        GenerationConfig { response_schema: Some(schema), .. } => {
            let schema = parsed(schema)?;
            check_response_schema(&schema)?;
            schema
        }
        GenerationConfig { response_json_schema: Some(schema), .. } => {
            let schema = parsed(schema)?;
            check_response_json_schema(&schema)?;
            schema
        }
    };
    if !request.wants_json() && !request.wants_enum() {
        return Err(broken_rule("response_mime_type: must be application/json with a schema"));
    }
    Ok(Some(schema))
}

/// A documented rule of the generation config. The wording of its refusal is not recorded.
fn broken_rule(rule: &str) -> ErrorResponse {
    ErrorResponse::rules(&[format!("GenerateContentRequest.generation_config.{rule}")])
}

fn parsed(schema: &RawValue) -> Result<Value, ErrorResponse> {
    serde_json::from_str(schema.get()).map_err(|error| {
        ErrorResponse::invalid_argument(format!("Invalid JSON payload received. {error}"))
    })
}
