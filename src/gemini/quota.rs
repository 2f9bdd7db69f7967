//! What a 429 says: which quota is used up and when there is some again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::status::{Detail, ErrorInfo, QuotaViolation};
use crate::pacific::until_midnight;

/// The window of every per-minute quota, and so the longest it can be closed.
const MINUTE: Duration = Duration::from_secs(60);

/// What `RetryInfo.retryDelay` can be short of the truth, being rounded down to whole seconds.
const ROUNDED_OFF: Duration = Duration::from_secs(1);

/// Why Gemini refused a call with 429.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The widest of what was exceeded: a day before a minute.
    pub scope: Scope,
    /// The quotas that were exceeded, as far as the answer names them.
    pub violations: Vec<Violation>,
    /// How long Gemini says to wait: its `RetryInfo` or its message, the later of the two. Where
    /// only the `RetryInfo` says so, a second more, since that is rounded down.
    ///
    /// Not to be trusted alone: a day's quota comes with delays as short as `0s`. Use
    /// [`Refusal::retry_at`].
    pub retry_after: Option<Duration>,
}

/// For how long a refusal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A quota per minute, or one with an unnamed period.
    PerMinute,
    /// A quota per day, until midnight in California.
    PerDay,
    /// No quota is named: a burst, or Gemini is short of capacity.
    Load,
}

/// One exceeded quota. Quotas are counted per project and, mostly, model; never per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Such as `GenerateRequestsPerDayPerProjectPerModel-FreeTier`.
    pub quota_id: Option<String>,
    /// Such as `generativelanguage.googleapis.com/generate_content_free_tier_requests`.
    pub quota_metric: Option<String>,
    /// How many of [`Violation::quantity`] are allowed in a [`Violation::period`].
    pub limit: Option<u64>,
    /// The model the quota is for.
    pub model: Option<String>,
    /// What is counted.
    pub quantity: Quantity,
    /// In what time.
    pub period: Period,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantity {
    /// Calls.
    Requests,
    /// Tokens of the prompt.
    InputTokens,
    /// Something else.
    Other,
}

/// The time a quota is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// Any 60 seconds.
    Minute,
    /// From midnight to midnight in California.
    Day,
    /// It was not said.
    Unknown,
}

impl Refusal {
    /// When a new attempt can succeed, counted from `now`; `None` where Gemini does not say.
    ///
    /// A day's quota is back at the next midnight in California, whatever delay was said; a
    /// minute's after the delay that was said, or else after 60 seconds.
    pub fn retry_at(&self, now: Timestamp) -> Option<Duration> {
        match self.scope {
            Scope::PerDay => Some(until_midnight(now)),
            Scope::PerMinute => Some(self.retry_after.unwrap_or(MINUTE)),
            Scope::Load => self.retry_after,
        }
    }

    /// Reads the message and the details of a 429.
    pub(super) fn read(message: &str, details: &[Detail]) -> Refusal {
        let violations = violations(message, details);
        Refusal {
            scope: Scope::of(&violations),
            violations,
            retry_after: retry_after(message, details),
        }
    }
}

impl Scope {
    fn of(violations: &[Violation]) -> Scope {
        if violations.iter().any(|violation| violation.period == Period::Day) {
            Scope::PerDay
        } else if violations.is_empty() {
            Scope::Load
        } else {
            Scope::PerMinute
        }
    }
}

fn retry_after(message: &str, details: &[Detail]) -> Option<Duration> {
    let exact = delay_in(message);
    let rounded = details.iter().find_map(|detail| match detail {
        Detail::RetryInfo(info) => duration(&info.retry_delay),
        _ => None,
    });
    match (exact, rounded) {
        (Some(exact), rounded) => Some(exact.max(rounded.unwrap_or_default())),
        (None, rounded) => rounded.map(|rounded| rounded.saturating_add(ROUNDED_OFF)),
    }
}

/// The delay in a message that ends with `Please retry in 48.939935699s.`
fn delay_in(message: &str) -> Option<Duration> {
    let (_, delay) = message.rsplit_once("retry in ")?;
    duration(delay.split_whitespace().next()?.trim_end_matches(['.', ',']))
}

/// A duration as Google writes it: `26s`, `48.939935699s`, `820ms`, `1m2.5s`, `15h3m`.
fn duration(text: &str) -> Option<Duration> {
    text.parse::<SignedDuration>().ok()?.try_into().ok()
}

fn violations(message: &str, details: &[Detail]) -> Vec<Violation> {
    let mut lines = message_lines(message);
    let mut violations = Vec::new();
    for detail in details {
        match detail {
            Detail::QuotaFailure(failure) => violations
                .extend(failure.violations.iter().map(|named| Violation::read(named, &mut lines))),
            Detail::ErrorInfo(info) => violations.extend(Violation::from_error_info(info)),
            _ => {}
        }
    }
    if violations.is_empty() { lines } else { violations }
}

/// The violations that a message lists, a line each:
/// `* Quota exceeded for metric: METRIC, limit: 20, model: gemini-3.6-flash`
fn message_lines(message: &str) -> Vec<Violation> {
    let listed = message.lines().filter_map(|line| line.split_once("exceeded for metric: "));
    listed.map(|(_, fields)| Violation::from_message(fields)).collect()
}

impl Violation {
    /// Reads one violation of a `QuotaFailure`; what it leaves out may stand in the first of the
    /// message's `lines` for its metric, which is used up by this.
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

    /// A violation of which only the names are known, and what these say.
    fn of(quota_id: Option<String>, quota_metric: Option<String>) -> Violation {
        let names = [quota_id.as_deref(), quota_metric.as_deref()].map(Option::unwrap_or_default);
        let says = |words| names.iter().any(|name| squeezed(name).contains(words));
        let quantity = if says("inputtoken") {
            Quantity::InputTokens
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

/// A name with only its letters left, in lower case: an id's `InputTokens` and a metric's
/// `input_token_count` then have the same words in them.
fn squeezed(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    #[test]
    fn durations_are_read_in_every_form_that_google_writes() {
        for (text, expected) in [
            ("0s", Some(Duration::ZERO)),
            ("26s", Some(Duration::from_secs(26))),
            ("48.939935699s", Some(Duration::new(48, 939_935_699))),
            ("820ms", Some(Duration::from_millis(820))),
            ("211.5ms", Some(Duration::from_micros(211_500))),
            ("1m2.5s", Some(Duration::from_millis(62_500))),
            ("15h3m", Some(Duration::from_secs(15 * HOUR + 3 * 60))),
            ("9h56m7.32s", Some(Duration::from_millis((9 * HOUR + 56 * 60 + 7) * 1000 + 320))),
            ("-3s", None),
            ("99999999999999999999s", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }

    fn refusal(details: &str, message: &str) -> Refusal {
        Refusal::read(message, &serde_json::from_str::<Vec<Detail>>(details).unwrap())
    }

    fn violation(quota_id: &str) -> String {
        format!(
            r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
                 "violations":[{{"quotaId":"{quota_id}"}}]}}"#
        )
    }

    fn retry_info(delay: &str) -> String {
        format!(r#"{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{delay}"}}"#)
    }

    const MINUTE_ID: &str = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier";
    const DAY_ID: &str = "GenerateRequestsPerDayPerProjectPerModel-FreeTier";

    #[test]
    fn a_used_up_day_outweighs_a_minute_and_any_delay() {
        let details =
            format!("[{},{},{}]", violation(MINUTE_ID), retry_info("0s"), violation(DAY_ID));
        let refusal = refusal(&details, "Please retry in 12ms.");
        assert_eq!(refusal.scope, Scope::PerDay);
        assert_eq!(refusal.violations.len(), 2);
        let now = "2026-07-01T05:00:00Z".parse().unwrap();
        assert_eq!(refusal.retry_at(now), Some(Duration::from_secs(2 * HOUR)));
    }

    #[test]
    fn a_minute_is_over_when_it_was_said_to_be_or_after_a_minute() {
        let minute = violation(MINUTE_ID);
        let retry_at = |details: &str, message: &str| {
            let refusal = refusal(details, message);
            assert_eq!(refusal.scope, Scope::PerMinute);
            refusal.retry_at(Timestamp::UNIX_EPOCH).unwrap()
        };
        assert_eq!(retry_at(&format!("[{minute}]"), ""), Duration::from_secs(60));
        let told = format!("[{minute},{}]", retry_info("26s"));
        assert_eq!(retry_at(&told, ""), Duration::from_secs(27), "it was rounded down");
        assert_eq!(retry_at(&told, "Please retry in 26.25s."), Duration::from_millis(26_250));
        assert_eq!(retry_at(&told, "Please retry in 820ms."), Duration::from_secs(26));
    }

    #[test]
    fn a_refusal_that_names_no_quota_is_for_load() {
        let silent = refusal("[]", "Resource has been exhausted (e.g. check quota).");
        assert_eq!(silent.scope, Scope::Load);
        assert_eq!(silent.retry_at(Timestamp::UNIX_EPOCH), None);
        let told = refusal(&format!("[{}]", retry_info("3s")), "");
        assert_eq!(told.retry_at(Timestamp::UNIX_EPOCH), Some(Duration::from_secs(4)));
    }

    #[test]
    fn a_limit_that_the_details_leave_out_is_found_in_the_message() {
        let details = r#"[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[
            {"quotaMetric":"m/requests","quotaId":"RequestsPerMinute","quotaValue":"9"},
            {"quotaMetric":"m/requests","quotaId":"RequestsPerDay"},
            {"quotaMetric":"m/input_token_count","quotaId":"InputTokensPerMinute"}]}]"#;
        let message = "You exceeded your current quota.\n\
            * Quota exceeded for metric: m/input_token_count, limit: 0, model: a\n\
            * Quota exceeded for metric: m/requests, limit: 9, model: b\n\
            * Quota exceeded for metric: m/requests, limit: 100, model: b\n\
            Please retry in 1s.";
        let found = refusal(details, message).violations;
        let limits: Vec<_> = found.iter().map(|v| (v.quantity, v.period, v.limit)).collect();
        assert_eq!(
            limits,
            [
                (Quantity::Requests, Period::Minute, Some(9)),
                (Quantity::Requests, Period::Day, Some(100)),
                (Quantity::InputTokens, Period::Minute, Some(0)),
            ]
        );
        assert_eq!(found[2].model.as_deref(), Some("a"));

        let alone = refusal("[]", message);
        assert_eq!((alone.scope, alone.violations.len()), (Scope::PerMinute, 3));
        assert_eq!(alone.retry_after, Some(Duration::from_secs(1)));
    }
}
