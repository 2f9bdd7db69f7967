use super::*;

const HOUR: u64 = 3600;

#[test]
fn durations_are_read_in_all_of_googles_notations() {
    for (text, expected) in [
        ("0s", Some(Duration::ZERO)),
        ("26s", Some(Duration::from_secs(26))),
        ("48.939935699s", Some(Duration::new(48, 939_935_699))),
        ("820ms", Some(Duration::from_millis(820))),
        ("211.5ms", Some(Duration::from_micros(211_500))),
        ("1m2.5s", Some(Duration::from_millis(62_500))),
        ("15h3m", Some(Duration::from_secs(15 * HOUR + 3 * 60))),
        ("9h56m7.32s", Some(Duration::from_millis((9 * HOUR + 56 * 60 + 7) * 1000 + 320))),
        ("9223372036854775807s", Some(LONGEST_DELAY)),
        ("-3s", None),
        ("99999999999999999999s", None),
        ("soon", None),
        ("", None),
    ] {
        assert_eq!(duration(text), expected, "{text:?}");
    }
}

fn refusal(details: &str, message: &str) -> Refusal {
    Refusal::read(None, message, &serde_json::from_str::<Vec<ErrorDetail>>(details).unwrap())
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
fn an_exhausted_day_outweighs_a_minute_and_any_delay() {
    let details = format!("[{},{},{}]", violation(MINUTE_ID), retry_info("0s"), violation(DAY_ID));
    let refusal = refusal(&details, "Please retry in 12ms.");
    assert_eq!(refusal.scope, RefusalScope::PerDay);
    assert_eq!(refusal.violations.len(), 2);
    let now = "2026-07-01T05:00:00Z".parse().unwrap();
    assert_eq!(refusal.retry_at(now), Some(Duration::from_secs(2 * HOUR)));
}

#[test]
fn a_quota_per_minute_is_available_after_the_reported_delay_or_a_minute() {
    let minute = violation(MINUTE_ID);
    let retry_at = |details: &str, message: &str| {
        let refusal = refusal(details, message);
        assert_eq!(refusal.scope, RefusalScope::PerMinute);
        refusal.retry_at(Timestamp::UNIX_EPOCH).unwrap()
    };
    assert_eq!(retry_at(&format!("[{minute}]"), ""), Duration::from_secs(60));
    let refused = format!("[{minute},{}]", retry_info("26s"));
    assert_eq!(retry_at(&refused, ""), Duration::from_secs(27), "it was rounded down");
    assert_eq!(retry_at(&refused, "Please retry in 26.25s."), Duration::from_millis(26_250));
    assert_eq!(retry_at(&refused, "Please retry in 820ms."), Duration::from_secs(26));
}

#[test]
fn a_refusal_without_a_named_quota_is_read_by_its_message() {
    for (message, scope, passing, wait) in [
        ("", RefusalScope::Load, true, None),
        ("Resource has been exhausted (e.g. check quota).", RefusalScope::Load, true, None),
        (
            "You exceeded your spend-based rate limit. Your spending rate has exceeded the \
             allowed limit for your account's billing history and tier.",
            RefusalScope::Spend,
            true,
            Some(60),
        ),
        (
            "You exceeded your current quota, please check your plan and billing details.",
            RefusalScope::Other,
            false,
            Some(60),
        ),
        ("Search Grounding quota exceeded.", RefusalScope::Other, false, Some(60)),
        ("Too many requests. Please retry in 3s.", RefusalScope::Other, true, Some(3)),
    ] {
        let refusal = refusal("[]", message);
        assert_eq!((refusal.scope, refusal.is_transient()), (scope, passing), "{message}");
        let retry_at = refusal.retry_at(Timestamp::UNIX_EPOCH);
        assert_eq!(retry_at, wait.map(Duration::from_secs), "{message}");
    }
    let refused = refusal(&format!("[{}]", retry_info("3s")), "");
    assert_eq!(refused.retry_at(Timestamp::UNIX_EPOCH), Some(Duration::from_secs(4)));
}

#[test]
fn interactions_give_the_kind_of_quota_as_a_code() {
    let scope = |code| Refusal::read(Some(code), "You exceeded your quota.", &[]).scope;
    assert_eq!(scope("rate_limit_exceeded"), RefusalScope::PerMinute);
    assert_eq!(scope("quota_exceeded"), RefusalScope::PerDay);
    assert_eq!(scope("too_many_requests"), RefusalScope::Other);
}

#[test]
fn a_quota_of_batch_jobs_or_grounding_does_not_apply_to_the_model() {
    for id in [
        "SearchGroundingRequestsPerDayPerProject",
        "GroundingRequestsPerDayPerProject-FreeTier",
        "BatchEnqueuedTokensPerModel",
        "TotalCachedContentStorageTokensPerModelFreeTier",
    ] {
        let details = format!("[{},{}]", violation(id), retry_info("3s"));
        let refusal = refusal(&details, "");
        assert_eq!((refusal.scope, refusal.is_transient()), (RefusalScope::Other, false), "{id}");
        let hours = if id.contains("PerDay") { 8 } else { 0 };
        let wait = refusal.retry_at(Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(wait.as_secs() / HOUR, hours, "{id}: midnight in California");
    }
    let embeds = format!("[{}]", violation("BatchEmbedContentsRequestsPerMinutePerProject"));
    assert_eq!(refusal(&embeds, "").scope, RefusalScope::PerMinute);
    let both = format!("[{},{}]", violation("GroundingRequestsPerDay"), violation(MINUTE_ID));
    assert_eq!(refusal(&both, "").scope, RefusalScope::PerMinute);
}

#[test]
fn a_quota_of_zero_has_no_retry_time() {
    for id in [MINUTE_ID, DAY_ID] {
        let details = format!(
            r#"[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
                 "violations":[{{"quotaId":"{id}","quotaValue":"0"}}]}},{}]"#,
            retry_info("3s")
        );
        let refusal = refusal(&details, "");
        assert_eq!((refusal.scope, refusal.is_transient()), (RefusalScope::NoQuota, false));
        assert_eq!(refusal.retry_at(Timestamp::UNIX_EPOCH), None);
    }
}

#[test]
fn an_account_without_funds_is_recognized_by_the_message() {
    for message in [
        "Your prepayment credits are depleted. Please go to AI Studio.",
        "Your billing account has exceeded its monthly spending cap",
        "Your project has exceeded its spend cap.",
    ] {
        assert!(is_unfunded(message), "{message}");
    }
    for message in [
        "",
        "Resource has been exhausted (e.g. check quota).",
        "You exceeded your current quota, please check your plan and billing details.",
        "Quota exceeded. See https://ai.google.dev/gemini-api/docs/billing#prepay",
        "You exceeded your spend-based rate limit, for your account's billing history.",
    ] {
        assert!(!is_unfunded(message), "{message}");
    }
}

#[test]
fn no_delay_exceeds_the_duration_of_its_quota() {
    let far = retry_info("3153600000s");
    let wait = |details: &str, message: &str| {
        refusal(details, message).retry_at(Timestamp::UNIX_EPOCH).unwrap()
    };
    assert_eq!(wait(&format!("[{},{far}]", violation(MINUTE_ID)), ""), LONGEST_MINUTE);
    assert_eq!(wait(&format!("[{far}]"), "spend-based"), SPEND_WINDOW);
    assert_eq!(wait(&format!("[{far}]"), ""), LONGEST_SHORTAGE);
    assert!(wait(&format!("[{far}]"), "other") <= LONGEST_DELAY + ROUNDED_OFF);
}

#[test]
fn a_limit_missing_in_the_details_is_read_from_the_message() {
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
    assert_eq!((alone.scope, alone.violations.len()), (RefusalScope::NoQuota, 3));
    assert_eq!(alone.retry_after, Some(Duration::from_secs(1)));
}
