use crate::config::{Config, InvalidSetting};
use crate::gemini::ApiKey;
use crate::limits::QuotaKind::*;
use crate::limits::{Planned, QuotaKind, QuotaPlan, Quotas, Source, Tier};

/// The output of `printf %s abc | sha256sum`.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn read(variables: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
    Config::read(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn plan(variables: &[(&str, &str)]) -> QuotaPlan {
    read(variables).unwrap().quota_plan
}

fn quotas(plan: &QuotaPlan, label: Option<&str>, model: &str) -> [Option<u64>; 3] {
    let quotas = Quotas::from(plan.quotas(label, model));
    [quotas[RequestsPerMinute], quotas[InputTokensPerMinute], quotas[RequestsPerDay]]
}

fn label_of<'a>(plan: &'a QuotaPlan, key: &str) -> Option<&'a str> {
    plan.label(ApiKey::new(key).unwrap().sha256()).map(|label| &**label)
}

#[test]
fn the_number_of_entries_is_bounded() {
    for (name, entry) in [("GEMINI_LIMITS", "*:rpm=1;"), ("GEMINI_KEY_LABELS", "a=1f3a9c02,")] {
        let list = entry.repeat(super::MAX_ENTRIES + 1);
        let error = read(&[(name, &list)]).unwrap_err();
        assert_eq!(error.to_string(), format!("{name}: expected at most 10000 entries"));
    }
}

#[test]
fn a_tier_sets_what_nothing_else_sets() {
    for (name, tier, calls) in [
        ("none", None, 15),
        ("free", Some(Tier::Free), 2),
        (" tier1 ", Some(Tier::Tier1), 15),
        ("tier2", Some(Tier::Tier2), 50),
        ("tier3", Some(Tier::Tier3), 100),
    ] {
        let config = read(&[("GEMINI_TIER", name)]).unwrap();
        assert_eq!((config.quota_plan.tier, config.concurrency_limit), (tier, calls), "{name}");
        let own = read(&[("GEMINI_TIER", name), ("GEMINI_CONCURRENCY_LIMIT", "7")]).unwrap();
        assert_eq!(own.concurrency_limit, 7, "{name}");
    }
    assert!(read(&[("GEMINI_TIER", "free"), ("GEMINI_CONCURRENCY_LIMIT", "0")]).is_err());
}

#[test]
fn limits_are_read() {
    let plan = plan(&[(
        "GEMINI_LIMITS",
        " gemini-3.8-flash : rpm = 150 , tpm=2000000,rpd=10000 ;\n*:rpd=0,rpm=none; \
         models/gemini-3.5-flash-lite:tpm=18446744073709551615;tunedModels/mine:rpd=007;",
    )]);
    assert_eq!(quotas(&plan, None, "gemini-3.8-flash"), [Some(150), Some(2_000_000), Some(10_000)]);
    assert_eq!(quotas(&plan, None, "gemini-3.5-flash-lite"), [None, Some(u64::MAX), Some(0)]);
    assert_eq!(quotas(&plan, None, "tunedModels/mine"), [None, None, Some(7)]);
    assert_eq!(quotas(&plan, None, "another"), [None, None, Some(0)]);
}

#[test]
fn every_kind_of_quota_can_be_set() {
    for kind in QuotaKind::ALL {
        let plan = plan(&[("GEMINI_LIMITS", &format!("*:{}=7", kind.setting()))]);
        let quotas = Quotas::from(plan.quotas(None, "any"));
        let all = quotas.or(plan.of_payer(None).into());
        let seven = if kind == SpendPerTenMinutes { 7_000_000_000 } else { 7 };
        assert_eq!(all, Quotas::default().with(kind, seven));
    }
}

#[test]
fn spend_is_read_in_dollars_of_any_fraction() {
    for (dollars, limit) in [
        ("10", Some(10_000_000_000)),
        ("0.5", Some(500_000_000)),
        ("12.345678901", Some(12_345_678_901)),
        ("10000.0", Some(10_000_000_000_000)),
        ("0", Some(0)),
        ("none", None),
    ] {
        let plan =
            plan(&[("GEMINI_TIER", "tier1"), ("GEMINI_LIMITS", &format!("*:spend={dollars}"))]);
        let spend = plan.of_payer(None)[SpendPerTenMinutes].map(|planned| planned.limit);
        assert_eq!(spend, limit, "{dollars}");
    }
}

#[test]
fn limits_override_the_tier() {
    let plan = plan(&[("GEMINI_TIER", "free"), ("GEMINI_LIMITS", "*:rpm=10;server@*:rpd=none")]);
    let quotas = plan.quotas(Some("server"), "gemini-3.8-flash");
    let rpm = Planned { limit: 10, source: Source::Setting };
    let tpm = Planned { limit: 25_000, source: Source::Tier };
    assert_eq!(quotas[RequestsPerMinute], Some(rpm));
    assert_eq!(quotas[InputTokensPerMinute], Some(tpm));
    assert_eq!(quotas[RequestsPerDay], None);
}

#[test]
fn invalid_limits_are_reported_with_their_entry() {
    for (limits, expected) in [
        ("*:rpm=1;pro", "in entry 2 a model or *, a colon, and limits"),
        ("*:rpm=1;;", "in entry 2 a model or *, a colon, and limits"),
        (";", "in entry 1 a model or *, a colon, and limits"),
        (
            "so me:rpm=1",
            "in entry 1 * or a model's name, such as gemini-3.5-flash-lite, before the :",
        ),
        (":rpm=1", "in entry 1 * or a model's name, such as gemini-3.5-flash-lite, before the :"),
        ("b@a@*:rpm=1", "in entry 1 server or a label of GEMINI_KEY_LABELS before the @"),
        ("team-b@*:rpm=1", "in entry 1 server or a label of GEMINI_KEY_LABELS before the @"),
        ("Server@*:rpm=1", "in entry 1 server or a label of GEMINI_KEY_LABELS before the @"),
        ("@*:rpm=1", "in entry 1 server or a label of GEMINI_KEY_LABELS before the @"),
        ("*:", "in entry 1 rpm, tpm, rpd, tpd, ipm, enqueued or spend with a limit, not \"\""),
        (
            "*:rpm=1,",
            "in entry 1 rpm, tpm, rpd, tpd, ipm, enqueued or spend with a limit, not \"\"",
        ),
        (
            "*:rps=1",
            "in entry 1 rpm, tpm, rpd, tpd, ipm, enqueued or spend with a limit, not \"rps=1\"",
        ),
        (
            "*:RPM=1",
            "in entry 1 rpm, tpm, rpd, tpd, ipm, enqueued or spend with a limit, not \"RPM=1\"",
        ),
        ("*:rpm=1 tpm=2", "in entry 1 rpm= with a whole number or none, not \"rpm=1 tpm=2\""),
        (
            "*:a\nb",
            "in entry 1 rpm, tpm, rpd, tpd, ipm, enqueued or spend with a limit, not \"a\\nb\"",
        ),
        ("*:rpm", "in entry 1 rpm= with a whole number or none, not \"rpm\""),
        ("*:rpm=", "in entry 1 rpm= with a whole number or none, not \"rpm=\""),
        ("*:rpm=+1", "in entry 1 rpm= with a whole number or none, not \"rpm=+1\""),
        ("*:tpm=-1", "in entry 1 tpm= with a whole number or none, not \"tpm=-1\""),
        ("*:tpm=1e6", "in entry 1 tpm= with a whole number or none, not \"tpm=1e6\""),
        (
            "*:rpd=18446744073709551616",
            "in entry 1 rpd= with a whole number or none, not \"rpd=18446744073709551616\"",
        ),
        ("*:rpm=1,rpd=2,rpm=none", "in entry 1 rpm only once, not \"rpm=none\""),
        (
            "*:spend=10001",
            "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=10001\"",
        ),
        ("*:spend=.5", "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=.5\""),
        ("*:spend=1.", "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=1.\""),
        ("*:spend=$1", "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=$1\""),
        ("*:spend=-1", "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=-1\""),
        (
            "*:spend=1.2345678901",
            "in entry 1 spend= with dollars, at most 10000, or none, not \"spend=1.2345678901\"",
        ),
        ("x:rpm=1,spend=1", "in entry 1 * before the colon, because spend counts over all models"),
        ("*:rpm=AIzaSyA-a-key-in-the-wrong-place", "in entry 1 rpm= with a whole number or none"),
        ("*:rpm=1;*:rpd=1", "in entry 2 keys and a model that no earlier entry has"),
        (
            "team-a@x:rpm=1;x:rpm=1;team-a@models/x:rpd=1",
            "in entry 3 keys and a model that no earlier entry has",
        ),
    ] {
        let variables = [("GEMINI_KEY_LABELS", "team-a=1f3a9c02"), ("GEMINI_LIMITS", limits)];
        let error = read(&variables).expect_err(limits);
        assert_eq!(error.to_string(), format!("GEMINI_LIMITS: expected {expected}"), "{limits:?}");
    }
}

#[test]
fn keys_are_identified_by_the_first_digits_of_their_digest() {
    for digits in [8, 9, 63, 64] {
        let labels = format!(" team-a = 00000000 , team_B.2={} ,", ABC[..digits].to_uppercase());
        let plan = plan(&[("GEMINI_KEY_LABELS", &labels)]);
        assert_eq!(label_of(&plan, "abc"), Some("team_B.2"), "{digits}");
        assert_eq!(label_of(&plan, "abd"), None, "{digits}");
        let (known, other) = ABC[..digits].split_at(digits - 1);
        let other = if other == "0" { "1" } else { "0" };
        let labels = format!("team-a={known}{other}");
        assert_eq!(label_of(&self::plan(&[("GEMINI_KEY_LABELS", &labels)]), "abc"), None);
    }
}

#[test]
fn several_keys_may_share_a_label_and_limits() {
    let labels = "team-a=ba7816bf,team-a=ba7816bf8f,team-a=77aa01bc";
    let plan =
        plan(&[("GEMINI_KEY_LABELS", labels), ("GEMINI_LIMITS", "team-a@gemini-3.8-flash:rpm=9")]);
    assert_eq!(label_of(&plan, "abc"), Some("team-a"));
    assert_eq!(quotas(&plan, Some("team-a"), "gemini-3.8-flash"), [Some(9), None, None]);
    assert_eq!(quotas(&plan, None, "gemini-3.8-flash"), [None; 3]);
}

#[test]
fn invalid_labels_are_reported_without_showing_what_may_be_a_key() {
    const LABEL: &str = "a label of 1 to 64 of A-Z a-z 0-9 . _ - before the =";
    const DIGEST: &str = "the first 8 to 64 hex digits of a key's SHA-256 after the =";
    const TWICE: &str = "one label for each key: an earlier entry gives this key another";
    let (most, too_many) = ("a".repeat(64), "a".repeat(65));
    assert!(read(&[("GEMINI_KEY_LABELS", &format!("{most}=12345678"))]).is_ok());
    for (labels, entry, expected) in [
        ("a=12345678,AIzaSecret", 2, "label=digest"),
        ("a=12345678,,", 2, "label=digest"),
        (",", 1, "label=digest"),
        ("=12345678", 1, LABEL),
        ("team a=12345678", 1, LABEL),
        ("team@a=12345678", 1, LABEL),
        ("*=12345678", 1, LABEL),
        (&format!("{too_many}=12345678"), 1, LABEL),
        ("AIzaSecret=team-a", 1, DIGEST),
        ("team-a=AIzaSecret", 1, DIGEST),
        ("team-a=1234567", 1, DIGEST),
        ("team-a=1234567g", 1, DIGEST),
        ("team-a=12345678=", 1, DIGEST),
        (&format!("team-a={ABC}0"), 1, DIGEST),
        ("a=12345678,b=12345678", 2, TWICE),
        ("a=12345678,b=87654321,b=123456789", 3, TWICE),
        ("a=123456789A,b=123456789", 2, TWICE),
        ("server=12345678,b=12345678", 2, TWICE),
    ] {
        let error = read(&[("GEMINI_KEY_LABELS", labels)]).expect_err(labels);
        let expected = format!("GEMINI_KEY_LABELS: expected in entry {entry} {expected}");
        assert_eq!(error.to_string(), expected, "{labels:?}");
    }
}

#[test]
fn the_servers_own_key_is_labelled_server_unless_a_label_is_set() {
    let key = ("GEMINI_API_KEY", "abc");
    let own = plan(&[key]);
    assert_eq!(label_of(&own, "abc"), Some("server"));
    assert_eq!(label_of(&own, "abd"), None);
    let other = plan(&[key, ("GEMINI_KEY_LABELS", "team-a=ba7816bf")]);
    assert_eq!(label_of(&other, "abc"), Some("team-a"));
    let shared = plan(&[key, ("GEMINI_KEY_LABELS", "server=a52d159f")]);
    assert_eq!(label_of(&shared, "abc"), Some("server"));
    assert_eq!(label_of(&shared, "abd"), Some("server"));
    // Also if the server has no key.
    let none = plan(&[("GEMINI_LIMITS", "server@*:rpm=1")]);
    assert_eq!(quotas(&none, Some("server"), "gemini-3.8-flash"), [Some(1), None, None]);
}

#[test]
fn a_key_set_later_is_the_servers_too() {
    let mut config = read(&[("GEMINI_KEY_LABELS", "team-a=ba7816bf")]).unwrap();
    config.set_gemini_api_key(ApiKey::new("abd").unwrap());
    assert_eq!(label_of(&config.quota_plan, "abd"), Some("server"));
    config.set_gemini_api_key(ApiKey::new("abc").unwrap());
    assert_eq!(label_of(&config.quota_plan, "abc"), Some("team-a"));
    assert!(config.gemini_api_key.is_some());
}
