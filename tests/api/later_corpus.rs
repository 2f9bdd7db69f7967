//! Every exchange recorded in November 2026, read again.
//!
//! The expectations come from the recorded JSON by simple rules, and for errors are written by hand.
//! `cargo test later_corpus -- --nocapture` prints how many of each class were read.

use std::fs;
use std::time::Duration;

use gemini_concurrent_generation::gemini::{
    Answer, AnswerBuilder, Error, ErrorKind, Events, Period, Quantity, Surface, Usage,
    UsageScanner, embedding_requests,
};
use serde_json::Value;

use crate::corpus::{
    Exchange, Tally, expected_failure, expected_kind, expected_text, expected_usage, later_corpus,
};

/// How many exchanges were recorded.
const RECORDED: usize = 68;

fn recorded() -> Vec<Exchange> {
    let Some(folder) = later_corpus() else { return Vec::new() };
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    assert_eq!(files.len(), RECORDED);
    files.iter().map(Exchange::read).collect()
}

fn scanned(bytes: &[u8]) -> Option<Usage> {
    let mut scanner = UsageScanner::new(Surface::Gemini);
    bytes.chunks(100).for_each(|piece| scanner.scan(piece));
    scanner.usage()
}

/// The usage that is recorded in the format of interactions.
fn interactions_usage(usage: &Value) -> Usage {
    let count = |name: &str| usage[name].as_u64().unwrap_or(0);
    Usage {
        prompt_tokens: count("total_input_tokens"),
        output_tokens: count("total_output_tokens"),
        thinking_tokens: count("total_thought_tokens"),
        total_tokens: count("total_tokens"),
        cached_tokens: count("total_cached_tokens"),
        tool_tokens: count("total_tool_use_tokens"),
        ..Usage::default()
    }
}

/// The JSON of the events in a stream.
fn events(exchange: &Exchange) -> Vec<Value> {
    let text = String::from_utf8_lossy(&exchange.bytes);
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

/// What an answer came to: its text, or the failure that the rules expect.
fn outcome(
    name: &str,
    response: &Value,
    usage: Usage,
    text: &str,
    read: Result<Answer, Error>,
) -> String {
    match (read, expected_failure(response)) {
        (Ok(answer), None) => {
            assert_eq!((&*answer.text, answer.usage), (text, usage), "{name}");
            let reason = response["candidates"][0]["finishReason"].as_str();
            assert_eq!(Some(&*answer.finish_reason), reason, "{name}");
            let version = response["modelVersion"].as_str();
            assert_eq!(
                answer.model_version.as_ref().map(|model| model.as_str()),
                version,
                "{name}"
            );
            format!("text, {}", answer.finish_reason)
        }
        (Err(error), Some(kind)) => {
            assert_eq!((&error.kind, *error.usage), (&kind, usage), "{name}");
            assert!(error.accepted_model && !error.is_transient(), "{name}");
            error.kind.code().to_owned()
        }
        (read, expected) => panic!("{name}: {read:?}, not {expected:?}"),
    }
}

fn generated(exchange: &Exchange) -> String {
    let response = &exchange.response;
    let usage = expected_usage(response);
    assert_eq!(scanned(&exchange.bytes), Some(usage), "{}", exchange.name);
    outcome(&exchange.name, response, usage, &expected_text(response), exchange.result())
}

fn streamed(exchange: &Exchange) -> String {
    let pieces = events(exchange);
    let mut whole = pieces.last().expect("an event").clone();
    let usage = expected_usage(&whole);
    assert_eq!(scanned(&exchange.bytes), Some(usage), "{}", exchange.name);
    let text: String = pieces.iter().map(expected_text).collect();
    // The finish reason can come before the last event, which need not have a candidate.
    let reason = pieces
        .iter()
        .rev()
        .find_map(|piece| piece["candidates"][0]["finishReason"].as_str().map(str::to_owned));
    whole["candidates"] = serde_json::json!([{
        "content": {"parts": [{"text": text}]}, "finishReason": reason,
    }]);
    let mut events = Events::default();
    events.extend(&exchange.bytes);
    events.end();
    let mut answer = AnswerBuilder::default();
    let mut read = String::new();
    while let Some(event) = events.pop() {
        read += &answer.push(&event).unwrap();
    }
    assert_eq!(read, text, "{}", exchange.name);
    let answer = answer.finish().map(|answer| Answer { text: read, ..answer });
    outcome(&exchange.name, &whole, usage, &text, answer)
}

fn embedded(exchange: &Exchange) -> String {
    let usage = exchange.response.get("usageMetadata").map(|_| expected_usage(&exchange.response));
    assert_eq!(scanned(&exchange.bytes), usage, "{}", exchange.name);
    let texts = embedding_requests(Surface::Gemini, exchange.request.as_deref().unwrap());
    let embeddings = exchange.response["embeddings"].as_array().unwrap().len();
    assert_eq!(texts, Some(embeddings as u64), "{}", exchange.name);
    let usage = usage.map_or("no usage", |_| "usage");
    format!("as many requests as embeddings, {usage}")
}

fn interaction(exchange: &Exchange) -> String {
    let status = exchange.response["status"].as_str().unwrap();
    let usage = interactions_usage(&exchange.response["usage"]);
    assert_eq!(scanned(&exchange.bytes), Some(usage), "{}", exchange.name);
    format!("usage, {status}")
}

/// The usage of a streamed interaction is within its last events.
fn streamed_interaction(exchange: &Exchange) -> String {
    let events = events(exchange);
    let usage = events.iter().rev().find_map(|event| event["interaction"].get("usage"));
    match (usage, scanned(&exchange.bytes)) {
        (None, scanned) => {
            assert_eq!(scanned, None, "{}", exchange.name);
            "no usage".to_owned()
        }
        (Some(_), None) => "usage not read".to_owned(),
        (Some(usage), scanned) => {
            assert_eq!(scanned, Some(interactions_usage(usage)), "{}", exchange.name);
            "usage".to_owned()
        }
    }
}

/// Whether the readers of answers have nothing to read: the request costs nothing, or says nothing of
/// what it costs.
fn passes(exchange: &Exchange) -> bool {
    let free = ["cachedContents", "/upload/", "/download/", "fileSearchStores"];
    free.iter().any(|part| exchange.path.contains(part))
}

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn every_later_recording_is_read_correctly() {
    let mut tally = Tally::default();
    for exchange in recorded() {
        let path = &*exchange.path;
        let outcome = match exchange.class() {
            _ if is_refused(&exchange) => {
                let error = exchange.result().unwrap_err();
                format!("{}, {}", error.kind.code(), class_of(&error))
            }
            "interactions-create" => interaction(&exchange),
            "interactions-stream" => streamed_interaction(&exchange),
            "live-ws" => "not read here: a live session".to_owned(),
            _ if path.ends_with(":generateContent") => generated(&exchange),
            _ if path.contains(":streamGenerateContent") => streamed(&exchange),
            "embeddings" => embedded(&exchange),
            _ if passes(&exchange) => "passes unread".to_owned(),
            class => panic!("{}: nothing reads {class}", exchange.name),
        };
        tally.count(exchange.class(), &outcome);
    }
    tally.print("Recordings of November 2026");
}

/// A live session begins with another status than success, 101.
fn is_refused(exchange: &Exchange) -> bool {
    exchange.status.as_u16() >= 400
}

fn class_of(error: &Error) -> &'static str {
    if error.is_transient() { "retried" } else { "not retried" }
}

/// The code of each recorded error, and whether it is retried.
const ERRORS: [(&str, &str, bool); 13] = [
    ("err-400__quoted__context-overflow-1048576", "invalid_request", false),
    ("context-cache-model-doesnt-match-0", "invalid_request", false),
    ("auth-key-access-token-type-unsupported", "invalid_api_key", false),
    ("err-402__quoted__prepay-depleted", "account_unfunded", false),
    ("unknown-model-current-wording", "model_not_found", false),
    ("context-cache-not-found-0", "model_not_found", false),
    // No quota is named: it says nothing of the calls of other kinds.
    ("batch-create-help-only", "other_quota_exhausted", false),
    ("paid-tier2-input-tpm-retryinfo-differs-from-message", "rate_limited", true),
    ("prepay-depleted-old-form", "account_unfunded", false),
    ("spend-based-rate-limit", "spend_limited", true),
    ("invalid-request-unknown-tool", "invalid_request", false),
    ("poll-with-AQ-key-multiple-credentials", "invalid_request", false),
    ("openai-compat-err-429__quoted__array-wrapped", "other_quota_exhausted", false),
];

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn every_later_error_has_its_code_and_its_message() {
    let recorded = recorded();
    let errors: Vec<_> = recorded.iter().filter(|exchange| is_refused(exchange)).collect();
    for exchange in &errors {
        let known = ERRORS.iter().find(|(file, ..)| exchange.name.ends_with(file));
        let (_, code, transient) = known.unwrap_or_else(|| panic!("{}", exchange.name));
        let error = exchange.result().unwrap_err();
        assert_eq!((error.kind.code(), error.is_transient()), (*code, *transient));
        let kind = format!("{:?}", error.kind);
        if *code != "account_unfunded" {
            assert_eq!(kind.split('(').next(), Some(expected_kind(exchange)), "{}", exchange.name);
        }
        // Some errors come in a list.
        let body = exchange.response.get(0).unwrap_or(&exchange.response);
        assert_eq!(error.message, body["error"]["message"].as_str().unwrap().trim());
        assert_eq!(*error.usage, Usage::default());
    }
    assert!(recorded.is_empty() || errors.len() == ERRORS.len());
}

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn the_quota_and_the_longer_wait_of_a_refusal_are_read() {
    let recorded = recorded();
    let refused = recorded.iter().find(|exchange| exchange.name.contains("retryinfo-differs"));
    let Some(refused) = refused else { return };
    let ErrorKind::RateLimited(refusal) = refused.result().unwrap_err().kind else { panic!() };
    assert_eq!(refusal.retry_after, Some(Duration::new(51, 386_192_716)));
    let [quota] = &refusal.violations[..] else { panic!("{refusal:?}") };
    assert_eq!((quota.quantity, quota.period), (Quantity::InputTokens, Period::Minute));
    assert_eq!((quota.limit, quota.model.as_deref()), (Some(3_000_000), Some("gemini-3.8-flash")));
}
