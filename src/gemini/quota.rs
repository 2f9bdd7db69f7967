//! Reads a 429: which quota is exhausted, and when it is available again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::status::{ErrorDetail, ErrorInfo, QuotaViolation};
use crate::pacific::until_midnight;

/// The window of a quota per minute, and the wait if Gemini gives none.
const MINUTE: Duration = Duration::from_secs(60);

/// The longest pause for a quota per minute: its window, and the same again for differing clocks.
const LONGEST_MINUTE: Duration = Duration::from_secs(120);

/// The window of the spend-based limit, and so its longest duration. Source: Gemini API docs, "Rate
/// limits".
const SPEND_WINDOW: Duration = Duration::from_secs(600);

/// The longest accepted shortage of capacity, whatever Gemini reports. A call with an earlier deadline
/// is given up at once, and no deadline is later.
pub(super) const LONGEST_SHORTAGE: Duration = Duration::from_secs(60 * 60);

/// The longest delay that is read from an answer; no quota lasts longer.
const LONGEST_DELAY: Duration = Duration::from_secs(25 * 60 * 60);

/// Added to `RetryInfo.retryDelay`, which Gemini rounds down to whole seconds.
const ROUNDED_OFF: Duration = Duration::from_secs(1);

/// Why Gemini refused a call with 429.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The widest quota that was exceeded: a day before a minute.
    pub scope: RefusalScope,
    /// The exceeded quotas that the answer names.
    pub violations: Vec<Violation>,
    /// How long Gemini asks to wait: the longer of its `RetryInfo` and its message. If only the
    /// `RetryInfo` says so, one second is added, since it is rounded down.
    ///
    /// Do not use it alone: refusals for a daily quota come with delays as short as `0s`. Use
    /// [`Refusal::retry_at`].
    pub retry_after: Option<Duration>,
}

/// What a refusal applies to, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalScope {
    /// A quota per minute, or one with an unnamed period.
    PerMinute,
    /// A quota per day, until midnight in California.
    PerDay,
    /// Gemini lacks capacity: "Resource has been exhausted (e.g. check quota)", or no message at
    /// all.
    Load,
    /// A quota of the model is 0. Waiting does not help; somebody must raise it.
    NoQuota,
    /// The spending limit of the account is reached for now. Applies to all its models.
    Spend,
    /// A quota that ordinary calls do not use (batch jobs, grounding), or one that Gemini does not
    /// name. It says nothing about other calls to the model.
    Other,
}

/// An exceeded quota. Google counts quotas per project and mostly per model, never per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// For example `GenerateRequestsPerDayPerProjectPerModel-FreeTier`.
    pub quota_id: Option<String>,
    /// For example `generativelanguage.googleapis.com/generate_content_free_tier_requests`.
    pub quota_metric: Option<String>,
    /// How much of [`Violation::quantity`] is allowed in a [`Violation::period`].
    pub limit: Option<u64>,
    /// The model that the quota is for.
    pub model: Option<String>,
    /// What the quota counts.
    pub quantity: Quantity,
    /// The period it counts over.
    pub period: Period,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantity {
    /// Calls.
    Requests,
    /// Tokens of the prompt.
    InputTokens,
    /// Generated images.
    Images,
    /// Resources that only some calls use: batch jobs, grounding by search, cached content.
    Separate,
    /// Something else.
    Other,
}

/// The period of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// Any 60 seconds.
    Minute,
    /// From midnight to midnight in California.
    Day,
    /// Not named.
    Unknown,
}

impl Refusal {
    /// How long from `now` until a new attempt can succeed; `None` if unknown.
    ///
    /// A daily quota is available again at the next midnight in California, whatever delay Gemini
    /// reports. Any other is available after the reported delay, limited to the longest time that
    /// the quota can last, or after 60 seconds if no delay is reported.
    pub fn retry_at(&self, now: Timestamp) -> Option<Duration> {
        let delay = self.retry_after.unwrap_or(MINUTE);
        match self.scope {
            RefusalScope::PerDay => Some(until_midnight(now)),
            RefusalScope::Other if self.names(Period::Day) => Some(until_midnight(now)),
            RefusalScope::PerMinute => Some(delay.min(LONGEST_MINUTE)),
            RefusalScope::Spend => Some(delay.min(SPEND_WINDOW)),
            RefusalScope::Other => Some(delay),
            RefusalScope::Load => self.retry_after.map(|delay| delay.min(LONGEST_SHORTAGE)),
            RefusalScope::NoQuota => None,
        }
    }

    /// Whether the same call can succeed within minutes. For unnamed quotas, Gemini's delay decides.
    pub(super) fn is_transient(&self) -> bool {
        match self.scope {
            RefusalScope::PerMinute | RefusalScope::Load | RefusalScope::Spend => true,
            RefusalScope::Other => self.violations.is_empty() && self.retry_after.is_some(),
            RefusalScope::PerDay | RefusalScope::NoQuota => false,
        }
    }

    fn names(&self, period: Period) -> bool {
        self.violations.iter().any(|quota| quota.period == period)
    }

    /// Reads a 429 from its code, if that is a word, its message and its details.
    pub(super) fn read(code: Option<&str>, message: &str, details: &[ErrorDetail]) -> Refusal {
        let violations = violations(message, details);
        let scope = match (RefusalScope::of(&violations), code) {
            (Some(scope), _) => scope,
            // Interactions give the kind of quota as a code. Source: Gemini API reference, error codes.
            (None, Some("rate_limit_exceeded")) => RefusalScope::PerMinute,
            (None, Some("quota_exceeded")) => RefusalScope::PerDay,
            (None, _) => RefusalScope::of_message(message),
        };
        Refusal { scope, violations, retry_after: retry_after(message, details) }
    }
}

impl RefusalScope {
    /// The scope of named quotas; `None` if there are none.
    fn of(violations: &[Violation]) -> Option<RefusalScope> {
        if violations.is_empty() {
            return None;
        }
        let ordinary = || violations.iter().filter(|quota| quota.quantity != Quantity::Separate);
        Some(if ordinary().any(|quota| quota.limit == Some(0)) {
            RefusalScope::NoQuota
        } else if ordinary().any(|quota| quota.period == Period::Day) {
            RefusalScope::PerDay
        } else if ordinary().next().is_some() {
            RefusalScope::PerMinute
        } else {
            RefusalScope::Other
        })
    }

    /// The scope of a refusal without named quotas, by its message.
    fn of_message(message: &str) -> RefusalScope {
        let message = message.to_ascii_lowercase();
        if message.is_empty() || message.contains("resource has been exhausted") {
            RefusalScope::Load
        } else if message.contains(SPEND_BASED) {
            RefusalScope::Spend
        } else {
            RefusalScope::Other
        }
    }
}

/// Marks the limit on an account's spending in ten minutes. Source: recorded refusals, which name no
/// quota.
const SPEND_BASED: &str = "spend-based";

/// Whether a 429 says that the account has no funds. Until 2026 Gemini sent this in place of a 402, and
/// still does for a monthly cap. Source: recorded and quoted refusals.
pub(super) fn is_unfunded(message: &str) -> bool {
    // Links, and the advice that nearly every refusal contains, do not count.
    let words: Vec<_> =
        message.split_whitespace().filter(|word| !word.starts_with("http")).collect();
    let message = words.join(" ").to_ascii_lowercase();
    !message.contains(SPEND_BASED)
        && ["prepay", "credits", "spending cap", "spend cap", "billing account"]
            .iter()
            .any(|sign| message.contains(sign))
}

/// How long an error's message and details ask to wait.
pub(super) fn retry_after(message: &str, details: &[ErrorDetail]) -> Option<Duration> {
    let exact = delay_in(message);
    let rounded = details.iter().find_map(|detail| match detail {
        ErrorDetail::RetryInfo(info) => duration(&info.retry_delay),
        _ => None,
    });
    match (exact, rounded) {
        (Some(exact), rounded) => Some(exact.max(rounded.unwrap_or_default())),
        (None, rounded) => rounded.map(|rounded| rounded.saturating_add(ROUNDED_OFF)),
    }
}

/// The delay in a message that ends in `Please retry in 48.939935699s.`
fn delay_in(message: &str) -> Option<Duration> {
    let (_, delay) = message.rsplit_once("retry in ")?;
    duration(delay.split_whitespace().next()?.trim_end_matches(['.', ',']))
}

/// A duration in Google's notation: `26s`, `48.939935699s`, `820ms`, `1m2.5s`, `15h3m`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let duration = Duration::try_from(text.parse::<SignedDuration>().ok()?).ok()?;
    Some(duration.min(LONGEST_DELAY))
}

fn violations(message: &str, details: &[ErrorDetail]) -> Vec<Violation> {
    let mut lines = message_lines(message);
    let mut violations = Vec::new();
    for detail in details {
        match detail {
            ErrorDetail::QuotaFailure(failure) => violations
                .extend(failure.violations.iter().map(|named| Violation::read(named, &mut lines))),
            ErrorDetail::ErrorInfo(info) => violations.extend(Violation::from_error_info(info)),
            _ => {}
        }
    }
    if violations.is_empty() { lines } else { violations }
}

/// The violations that a message lists, one per line:
/// `* Quota exceeded for metric: METRIC, limit: 20, model: gemini-3.6-flash`
fn message_lines(message: &str) -> Vec<Violation> {
    let listed = message.lines().filter_map(|line| line.split_once("exceeded for metric: "));
    listed.map(|(_, fields)| Violation::from_message(fields)).collect()
}

impl Violation {
    /// Reads one violation of a `QuotaFailure`. Missing values are taken from the first of the
    /// message's `lines` for the same metric, which is removed.
    fn read(named: &QuotaViolation, lines: &mut Vec<Violation>) -> Violation {
        let line = lines
            .iter()
            .position(|line| line.quota_metric == named.quota_metric)
            .map(|found| lines.remove(found));
        let (limit, model) = line.map(|line| (line.limit, line.model)).unwrap_or_default();
        let dimension = named.quota_dimensions.as_ref().and_then(|of| of.model.clone());
        Violation {
            limit: number(named.quota_value.as_deref()).or(limit),
            model: dimension.or(model),
            ..Violation::of(named.quota_id.clone(), named.quota_metric.clone())
        }
    }

    fn from_error_info(info: &ErrorInfo) -> Option<Violation> {
        let about = &info.metadata;
        let quota_id = about.quota_limit.clone()?;
        Some(Violation {
            limit: number(about.quota_limit_value.as_deref()),
            ..Violation::of(Some(quota_id), about.quota_metric.clone())
        })
    }

    fn from_message(fields: &str) -> Violation {
        let mut fields = fields.split(", ");
        let mut violation = Violation::of(None, fields.next().map(str::to_owned));
        for field in fields {
            match field.split_once(": ") {
                Some(("limit", limit)) => violation.limit = number(Some(limit)),
                Some(("model", model)) => violation.model = Some(model.to_owned()),
                _ => {}
            }
        }
        violation
    }

    /// A violation with only its names, from which the quantity and the period are read.
    fn of(quota_id: Option<String>, quota_metric: Option<String>) -> Violation {
        let names = [quota_id.as_deref(), quota_metric.as_deref()].map(Option::unwrap_or_default);
        let says = |words: &str| names.iter().any(|name| letters(name).contains(words));
        let is_separate =
            ["grounding", "search", "enqueued", "cachedcontent"].into_iter().any(says)
                || (says("batch") && !says("batchembed"));
        let quantity = if is_separate {
            Quantity::Separate
        } else if says("inputtoken") {
            Quantity::InputTokens
        } else if says("images") {
            Quantity::Images
        } else if says("request") {
            Quantity::Requests
        } else {
            Quantity::Other
        };
        let period = if says("perday") {
            Period::Day
        } else if says("perminute") {
            Period::Minute
        } else {
            Period::Unknown
        };
        Violation { quota_id, quota_metric, limit: None, model: None, quantity, period }
    }
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}

/// A name reduced to lower-case letters, so that the ID's `InputTokens` and the metric's
/// `input_token_count` match the same words.
fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests;
