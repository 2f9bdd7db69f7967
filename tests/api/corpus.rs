//! Every recorded exchange with the real Gemini, parsed again.
//!
//! The expectations come from the recorded JSON by simple rules, and for refusals are written by
//! hand. None comes from the code under test. `cargo test corpus -- --nocapture` prints how many of
//! each class were read.

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

use gemini_concurrent_generation::gemini::{
    Answer, Error, ErrorKind, InputFeatures, Period, Quantity, Refusal, RefusalScope,
    TokenEstimator, Usage,
};
use gemini_concurrent_generation::prices::{NanoDollars, PriceTier};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

/// One recorded exchange.
pub struct Exchange {
    /// The file name without `.json`.
    pub name: String,
    pub path: String,
    pub status: StatusCode,
    /// The request's body, serialized again, if it was recorded.
    pub request: Option<Vec<u8>>,
    pub response: Value,
    /// The exact bytes of the body if known, else the body serialized again.
    pub bytes: Vec<u8>,
}

impl Exchange {
    /// Reads the exchange in a file.
    pub fn read(file: &PathBuf) -> Exchange {
        let mut recorded: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let mut request = recorded["request"]["body"].take();
        if request["type"] == "json" {
            request = request["content"].take();
        }
        let response = &mut recorded["response"];
        let mut body = response["body"].take();
        if body["type"] == "json" {
            // The recorder's own wrapper in place of the body.
            body = body["content"].take();
        }
        let bytes = match (&response["body_raw"], &body) {
            (Value::String(exact), _) | (_, Value::String(exact)) => exact.clone().into_bytes(),
            _ => body.to_string().into_bytes(),
        };
        Exchange {
            name: file.file_stem().unwrap().to_string_lossy().into_owned(),
            path: recorded["request"]["path"].as_str().unwrap().to_owned(),
            status: response_status(&recorded),
            request: request.is_object().then(|| request.to_string().into_bytes()),
            response: body,
            bytes,
        }
    }

    /// The first word of the file name, which names the case: `generate`, `err-429`,
    /// `finish-SAFETY`, …
    pub fn class(&self) -> &str {
        self.name.split("__").next().unwrap()
    }

    pub fn is_error(&self) -> bool {
        !self.status.is_success()
    }

    /// Whether this answers a call that the gateway itself makes.
    fn is_answer(&self) -> bool {
        !self.is_error() && self.path.ends_with(":generateContent")
    }

    pub fn result(&self) -> Result<Answer, Error> {
        Answer::read(self.status, &self.bytes)
    }
}

fn response_status(recorded: &Value) -> StatusCode {
    let status = recorded["response"]["status"].as_u64().unwrap();
    StatusCode::from_u16(status.try_into().unwrap()).unwrap()
}

/// All exchanges in the order of their names.
pub fn corpus() -> Vec<Exchange> {
    let folder = env::var_os("GEMINI_CORPUS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/gemini/corpus"),
        PathBuf::from,
    );
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("no corpus at {}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    assert!(!files.is_empty(), "the corpus at {} is empty", folder.display());
    files.iter().map(Exchange::read).collect()
}

/// How many exchanges of each class had each outcome.
#[derive(Default)]
pub struct Tally(BTreeMap<(String, String), usize>);

impl Tally {
    pub fn count(&mut self, class: &str, outcome: &str) {
        *self.0.entry((class.to_owned(), outcome.to_owned())).or_default() += 1;
    }

    pub fn print(&self, title: &str) {
        println!("\n{title}");
        for ((class, outcome), count) in &self.0 {
            println!("{count:5}  {class:32}  {outcome}");
        }
        println!("{:5}  total", self.0.values().sum::<usize>());
    }
}

/// An answer's text: the parts of the first candidate that have text and are not thoughts.
pub fn expected_text(response: &Value) -> String {
    let parts = response["candidates"][0]["content"]["parts"].as_array();
    let texts = parts.into_iter().flatten().filter(|part| part["thought"] != Value::Bool(true));
    texts.filter_map(|part| part["text"].as_str()).collect()
}

pub fn expected_usage(response: &Value) -> Usage {
    let tier = response["usageMetadata"]["serviceTier"].as_str();
    let count = |name: &str| response["usageMetadata"][name].as_u64().unwrap_or(0);
    Usage {
        prompt_tokens: count("promptTokenCount"),
        output_tokens: count("candidatesTokenCount"),
        thinking_tokens: count("thoughtsTokenCount"),
        total_tokens: count("totalTokenCount"),
        cached_tokens: count("cachedContentTokenCount"),
        tool_tokens: count("toolUsePromptTokenCount"),
        service_tier: tier.and_then(|tier| PriceTier::from_name(&tier.to_ascii_lowercase())),
        cost: NanoDollars::default(),
    }
}

/// The finish reasons, recorded or documented, with which Gemini withholds an answer.
const BLOCKED: [&str; 7] =
    ["SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"];

/// Why an answer with status 200 counts as a failure; `None` if it does not.
pub fn expected_failure(response: &Value) -> Option<ErrorKind> {
    let candidate = &response["candidates"][0];
    let feedback = &response["promptFeedback"];
    let blocked = |reason: &str| Some(ErrorKind::ContentBlocked { reason: reason.to_owned() });
    let finish_reason = candidate["finishReason"].as_str().unwrap_or_default();
    if response.get("candidates").is_none() && response.get("promptFeedback").is_none() {
        Some(ErrorKind::Malformed)
    } else if candidate.is_null() {
        blocked(feedback["blockReason"].as_str().unwrap_or("BLOCK_REASON_UNSPECIFIED"))
    } else if BLOCKED.contains(&finish_reason) {
        blocked(finish_reason)
    } else if !expected_text(response).is_empty() {
        None
    } else if finish_reason == "MAX_TOKENS" {
        Some(ErrorKind::Truncated)
    } else {
        Some(ErrorKind::Empty)
    }
}

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn every_recorded_answer_is_read_correctly() {
    let mut tally = Tally::default();
    for exchange in corpus() {
        if !exchange.is_answer() {
            let outcome = if exchange.is_error() { "an error: see there" } else { "not our call" };
            tally.count(exchange.class(), outcome);
            continue;
        }
        let response = &exchange.response;
        let outcome = match (exchange.result(), expected_failure(response)) {
            (Ok(answer), None) => {
                let candidate = &response["candidates"][0];
                let reason = candidate["finishReason"].as_str();
                assert_eq!(answer.text, expected_text(response), "{}", exchange.name);
                assert_eq!(answer.usage, expected_usage(response), "{}", exchange.name);
                assert_eq!(
                    answer.finish_reason,
                    reason.unwrap_or("FINISH_REASON_UNSPECIFIED"),
                    "{}",
                    exchange.name
                );
                format!("text, {}", answer.finish_reason)
            }
            (Err(error), Some(kind)) => {
                assert_eq!(error.kind, kind, "{}", exchange.name);
                assert_eq!(*error.usage, expected_usage(response), "{}", exchange.name);
                assert_eq!(error.accepted_model, kind != ErrorKind::Malformed, "{}", exchange.name);
                assert!(!error.is_transient(), "{}", exchange.name);
                format!("{:?}", error.kind)
            }
            (result, expected) => panic!("{}: {result:?}, not {expected:?}", exchange.name),
        };
        tally.count(exchange.class(), &outcome);
    }
    tally.print("Recorded answers");
}

/// The kind of an error by its status, and for 400 by the reason in its details.
pub fn expected_kind(exchange: &Exchange) -> &'static str {
    let details = exchange.response["error"]["details"].as_array();
    let mut reasons = details.into_iter().flatten().map(|detail| &detail["reason"]);
    match exchange.status.as_u16() {
        400 if reasons.any(|reason| reason == "API_KEY_INVALID") => "InvalidKey",
        400 => "InvalidRequest",
        401 => "InvalidKey",
        402 => "Unfunded",
        403 => "PermissionDenied",
        404 => "ModelNotFound",
        429 => "RateLimited",
        500 | 502 => "Unavailable",
        503 => "Overloaded",
        504 => "Timeout",
        status => panic!("{}: no rule for {status}", exchange.name),
    }
}

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn every_recorded_error_is_classified() {
    let mut tally = Tally::default();
    for exchange in corpus().iter().filter(|exchange| exchange.is_error()) {
        let error = exchange.result().unwrap_err();
        let kind = format!("{:?}", error.kind);
        let kind = kind.split('(').next().unwrap();
        assert_eq!(kind, expected_kind(exchange), "{}", exchange.name);
        let message = exchange.response["error"]["message"].as_str().unwrap();
        assert_eq!(error.message, message.trim(), "{}", exchange.name);
        assert_eq!(*error.usage, Usage::default(), "{}", exchange.name);
        tally.count(exchange.class(), kind);
    }
    tally.print("Recorded errors");
}

/// What one recorded refusal says, read by hand.
struct Expected {
    /// The end of the file name.
    file: &'static str,
    scope: RefusalScope,
    /// Every exceeded quota, in order.
    quotas: &'static [(Quantity, Period, Option<u64>)],
    retry_after: Option<Duration>,
}

const TOKENS_1M: &[(Quantity, Period, Option<u64>)] =
    &[(Quantity::InputTokens, Period::Minute, Some(1_000_000))];

/// A refusal for 1,000,000 input tokens a minute.
const fn tokens(file: &'static str, secs: u64, nanos: u32) -> Expected {
    let retry_after = Some(Duration::new(secs, nanos));
    Expected { file, scope: RefusalScope::PerMinute, quotas: TOKENS_1M, retry_after }
}

const REFUSALS: [Expected; 20] = [
    // Three quotas without values and no RetryInfo: the daily quota decides.
    Expected {
        file: "free-tier-three-violations-no-quotaValue",
        scope: RefusalScope::PerDay,
        quotas: &[
            (Quantity::InputTokens, Period::Minute, None),
            (Quantity::Requests, Period::Minute, None),
            (Quantity::Requests, Period::Day, None),
        ],
        retry_after: None,
    },
    // A daily quota with a short delay.
    Expected {
        file: "per-day-quotaId-with-retryinfo-36s",
        scope: RefusalScope::PerDay,
        quotas: &[(Quantity::Requests, Period::Day, Some(20))],
        retry_after: Some(Duration::new(36, 429_760_048)),
    },
    // Only a link, and a message about load.
    Expected {
        file: "help-only-no-retryinfo",
        scope: RefusalScope::Other,
        quotas: &[],
        retry_after: None,
    },
    Expected {
        file: "short-no-details",
        scope: RefusalScope::Load,
        quotas: &[],
        retry_after: None,
    },
    // The quota is in an ErrorInfo.
    Expected {
        file: "unary-failure-quota-exceeded-0",
        scope: RefusalScope::NoQuota,
        quotas: &[(Quantity::Requests, Period::Minute, Some(0))],
        retry_after: None,
    },
    // A RetryInfo alone, in whole seconds: the wait is one second longer.
    Expected {
        file: "free-tier-tpm-retryinfo-26s",
        scope: RefusalScope::PerMinute,
        quotas: &[(Quantity::InputTokens, Period::Minute, Some(250_000))],
        retry_after: Some(Duration::from_secs(27)),
    },
    tokens("2-0-flash-handles-context-length-exc-0", 24, 0),
    tokens("2-5-flash-handles-context-length-exc-0-v10", 56, 0),
    tokens("2-5-flash-handles-context-length-exc-0-v12", 35, 0),
    tokens("2-5-flash-handles-context-length-exc-0-v13", 4, 0),
    // A RetryInfo in whole seconds, and the exact delay in the message.
    tokens("2-5-flash-handles-context-length-exc-0", 48, 939_935_699),
    tokens("2-5-flash-handles-context-length-exc-0-v2", 47, 941_445_783),
    tokens("2-5-flash-handles-context-length-exc-0-v3", 16, 302_655_129),
    tokens("2-5-flash-handles-context-length-exc-0-v4", 7, 361_585_788),
    tokens("2-5-flash-handles-context-length-exc-0-v5", 15, 222_153_507),
    tokens("2-5-flash-handles-context-length-exc-0-v6", 43, 372_058_478),
    tokens("2-5-flash-handles-context-length-exc-0-v7", 30, 219_520_485),
    tokens("2-5-flash-handles-context-length-exc-0-v8", 21, 861_320_108),
    tokens("2-5-flash-handles-context-length-exc-0-v9", 22, 375_817_872),
    tokens("2-5-flash-handles-context-length-exc-0-v11", 38, 614_529_013),
];

#[test]
#[cfg_attr(not(corpus), ignore = "there was no corpus at ../shared/gemini/corpus at build time")]
fn every_recorded_refusal_is_classified() {
    // Seven in the evening in California: five hours to midnight.
    let now: Timestamp = "2026-07-02T02:00:00Z".parse().unwrap();
    let mut checked = 0;
    println!("\nRecorded refusals\nfile | scope | quota, its limit | retry after | retry at");
    for exchange in corpus().iter().filter(|exchange| exchange.status.as_u16() == 429) {
        let ErrorKind::RateLimited(refusal) = exchange.result().unwrap_err().kind else {
            panic!("{}", exchange.name)
        };
        print_refusal(&exchange.name, &refusal, now);
        if let Some(expected) = REFUSALS.iter().find(|known| exchange.name.ends_with(known.file)) {
            check_refusal(&exchange.name, &refusal, expected, now);
            checked += 1;
        }
    }
    assert_eq!(checked, REFUSALS.len(), "an expected refusal has no recording");
}

/// The folder of the exchanges recorded later; `None` if it does not exist.
pub fn later_corpus() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/gemini/corpus-2026-11");
    folder.is_dir().then_some(folder)
}

fn print_refusal(name: &str, refusal: &Refusal, now: Timestamp) {
    let quotas: Vec<_> = refusal
        .violations
        .iter()
        .map(|quota| format!("{} {:?}", quota.quota_id.as_deref().unwrap_or("?"), quota.limit))
        .collect();
    println!(
        "{name} | {:?} | {} | {:?} | {:?}",
        refusal.scope,
        quotas.join(", "),
        refusal.retry_after,
        refusal.retry_at(now)
    );
}

fn check_refusal(name: &str, refusal: &Refusal, expected: &Expected, now: Timestamp) {
    let quotas: Vec<_> = refusal
        .violations
        .iter()
        .map(|quota| (quota.quantity, quota.period, quota.limit))
        .collect();
    assert_eq!(refusal.scope, expected.scope, "{name}");
    assert_eq!(quotas, expected.quotas, "{name}");
    assert_eq!(refusal.retry_after, expected.retry_after, "{name}");
    let retry_at = match expected.scope {
        RefusalScope::PerDay => Some(Duration::from_secs(5 * 3600)),
        RefusalScope::Load | RefusalScope::NoQuota => None,
        _ => Some(expected.retry_after.unwrap_or(Duration::from_secs(60))),
    };
    assert_eq!(refusal.retry_at(now), retry_at, "{name}");
}

/// Nothing was learned yet, and some requests use tokens that the gateway cannot see: Gemini's own
/// tools, files of unknown length.
#[test]
fn estimated_tokens_are_close_to_the_recorded_counts() {
    let estimate = |exchange: &Exchange| {
        let actual = exchange.response["usageMetadata"]["promptTokenCount"].as_u64()?;
        let features = InputFeatures::of_body(exchange.request.as_deref()?);
        Some(TokenEstimator::default().estimate(features) as f64 / actual.max(1) as f64)
    };
    let mut ratios: Vec<f64> = corpus().iter().filter_map(estimate).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| ratios[ratios.len() * part / 100];
    println!(
        "{} recorded requests, estimated over counted: {:.2} at 25 %, {:.2} at 50 %, {:.2} at 75 %",
        ratios.len(),
        at(25),
        at(50),
        at(75)
    );
    assert!(at(25) > 0.7 && at(75) < 2.0, "{ratios:?}");
}
