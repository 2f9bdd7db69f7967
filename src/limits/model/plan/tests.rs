use super::super::quota::QuotaKind::*;
use super::*;

const MODEL: &str = "gemini-3.8-flash";

fn scope(label: Option<&str>, model: Option<&str>) -> LimitScope {
    LimitScope { label: label.map(Into::into), model: model.map(Into::into) }
}

fn requests_per_minute(limit: Limit) -> Limits {
    Limits::default().with(RequestsPerMinute, limit)
}

fn setting(limit: u64) -> Option<Planned> {
    Some(Planned { limit, source: Source::Setting })
}

fn tier(limit: u64) -> Option<Planned> {
    Some(Planned { limit, source: Source::Tier })
}

#[test]
fn the_default_is_no_limits_and_a_minute_of_sixty_seconds() {
    let plan = QuotaPlan::default();
    assert_eq!(plan.quotas(None, MODEL), PlannedQuotas::default());
    assert_eq!(plan.quotas(Some("server"), MODEL), PlannedQuotas::default());
    assert_eq!(Quotas::from(plan.quotas(None, MODEL)), Quotas::default());
    assert_eq!(plan.label(&[0; 32]), None);
    assert_eq!(plan.minute, Duration::from_secs(60));
    assert_eq!(plan.ten_minutes(), Duration::from_secs(600) + SPEND_MARGIN);
}

#[test]
fn a_tier_applies_to_every_key_and_model() {
    for (name, numbers) in [
        (Tier::Free, [Some(5), Some(25_000), Some(25), None]),
        (Tier::Tier1, [Some(300), Some(1_000_000), Some(1_000), Some(10_000_000_000)]),
        (Tier::Tier2, [Some(1_000), Some(2_000_000), Some(10_000), Some(50_000_000_000)]),
        (Tier::Tier3, [Some(2_000), Some(8_000_000), None, Some(200_000_000_000)]),
    ] {
        let plan = QuotaPlan { tier: Some(name), ..QuotaPlan::default() };
        let [requests_per_minute, input_tokens_per_minute, requests_per_day, spend] =
            numbers.map(|number| number.and_then(tier));
        let expected = PlannedQuotas::default()
            .with(RequestsPerMinute, requests_per_minute)
            .with(InputTokensPerMinute, input_tokens_per_minute)
            .with(RequestsPerDay, requests_per_day);
        assert_eq!(plan.quotas(None, "any"), expected);
        assert_eq!(plan.quotas(Some("team-a"), "any"), expected);
        let of_model = plan.quotas(None, MODEL).with(EnqueuedTokens, None);
        assert_eq!(of_model, expected, "only enqueued tokens differ between models");
        let of_payer = PlannedQuotas::default().with(SpendPerTenMinutes, spend);
        assert_eq!(plan.of_payer(None), of_payer);
        assert_eq!(plan.of_payer(Some("team-a")), of_payer);
        assert_eq!(Quotas::from(expected.with(SpendPerTenMinutes, spend)), name.quotas());
    }
}

#[test]
fn a_tier_limits_the_enqueued_tokens_of_each_family_of_models() {
    for (model, tier1, tier2) in [
        ("gemini-3.8-flash", Some(3_000_000), Some(400_000_000)),
        ("gemini-flash-latest", Some(3_000_000), Some(400_000_000)),
        ("gemini-3.5-flash-lite", Some(10_000_000), Some(500_000_000)),
        ("gemini-3.1-pro-preview", Some(5_000_000), Some(500_000_000)),
        ("gemini-3.1-flash-image", Some(1_000_000), Some(250_000_000)),
        ("gemini-3.1-flash-lite-image", Some(2_000_000), Some(270_000_000)),
        ("gemini-3-pro-image", Some(2_000_000), Some(270_000_000)),
        ("gemini-embedding-001", Some(500_000), Some(5_000_000)),
        ("gemini-3.8-flash-tts", None, None),
        ("gemini-4-argon", None, None),
        ("other-flash", None, None),
    ] {
        let tokens = |tier: Option<Tier>| {
            let plan = QuotaPlan { tier, ..QuotaPlan::default() };
            plan.quotas(None, model)[EnqueuedTokens].map(|planned| planned.limit)
        };
        assert_eq!(tokens(Some(Tier::Tier1)), tier1, "{model}");
        assert_eq!(tokens(Some(Tier::Tier2)), tier2, "{model}");
        assert_eq!((tokens(Some(Tier::Free)), tokens(None)), (None, None), "{model}");
    }
}

#[test]
fn spend_is_limited_for_labels_and_not_for_models() {
    let mut plan = QuotaPlan { tier: Some(Tier::Tier1), ..QuotaPlan::default() };
    let spend = |limit| Limits::default().with(SpendPerTenMinutes, limit);
    plan.add_limits(scope(Some("a"), None), spend(Limit::AtMost(7))).unwrap();
    plan.add_limits(scope(Some("b"), None), spend(Limit::Unlimited)).unwrap();
    plan.add_limits(scope(None, Some(MODEL)), spend(Limit::AtMost(1))).unwrap();
    let of_payer = |label| plan.of_payer(label)[SpendPerTenMinutes];
    assert_eq!(of_payer(Some("a")), setting(7));
    assert_eq!(of_payer(Some("b")), None);
    assert_eq!(of_payer(None), tier(10_000_000_000));
    assert_eq!(plan.quotas(Some("a"), MODEL)[SpendPerTenMinutes], None);
}

/// Whatever the order in which the rules are added.
#[test]
fn the_most_specific_rule_holds() {
    let rules = [
        (scope(Some("a"), Some(MODEL)), 1),
        (scope(Some("a"), None), 2),
        (scope(None, Some(MODEL)), 3),
        (scope(None, None), 4),
        (scope(Some("b"), Some(MODEL)), 5),
        (scope(None, Some("other")), 6),
    ];
    for turn in 0..rules.len() {
        for backwards in [false, true] {
            let mut rules = rules.to_vec();
            rules.rotate_left(turn);
            if backwards {
                rules.reverse();
            }
            let mut plan = QuotaPlan::default();
            for (scope, limit) in rules {
                plan.add_limits(scope, requests_per_minute(Limit::AtMost(limit))).unwrap();
            }
            let holds = |label, model| plan.quotas(label, model)[RequestsPerMinute];
            assert_eq!(holds(Some("a"), MODEL), setting(1));
            assert_eq!(holds(Some("a"), "other"), setting(2));
            assert_eq!(holds(None, MODEL), setting(3));
            assert_eq!(holds(Some("c"), MODEL), setting(3));
            assert_eq!(holds(None, "third"), setting(4));
            assert_eq!(holds(Some("b"), "third"), setting(4));
            assert_eq!(holds(Some("b"), MODEL), setting(5));
            assert_eq!(holds(Some("b"), "other"), setting(6));
        }
    }
}

#[test]
fn each_quota_comes_from_the_most_specific_rule_that_names_it() {
    let mut plan = QuotaPlan { tier: Some(Tier::Tier1), ..QuotaPlan::default() };
    let every = Limits::default()
        .with(RequestsPerMinute, Limit::AtMost(4))
        .with(InputTokensPerMinute, Limit::AtMost(40));
    plan.add_limits(scope(None, None), every).unwrap();
    plan.add_limits(scope(None, Some(MODEL)), requests_per_minute(Limit::Unlimited)).unwrap();
    let own = Limits::default().with(InputTokensPerMinute, Limit::AtMost(0));
    plan.add_limits(scope(Some("a"), Some(MODEL)), own).unwrap();
    let expected = PlannedQuotas::default()
        .with(InputTokensPerMinute, setting(0))
        .with(RequestsPerDay, tier(1_000))
        .with(EnqueuedTokens, tier(3_000_000));
    assert_eq!(plan.quotas(Some("a"), MODEL), expected);
    let others = expected.with(InputTokensPerMinute, setting(40));
    assert_eq!(plan.quotas(None, MODEL), others);
}

#[test]
fn a_rule_is_added_once() {
    let mut plan = QuotaPlan::default();
    for label in [None, Some("a")] {
        for model in [None, Some(MODEL)] {
            let scope = scope(label, model);
            plan.add_limits(scope.clone(), Limits::default()).unwrap();
            assert_eq!(plan.add_limits(scope, Limits::default()), Err(RepeatedScope));
        }
    }
}

#[test]
fn digests_that_can_match_one_key_have_one_label() {
    for (first, second) in
        [("12345678", "12345678"), ("12345678", "1234567890"), ("123456789", "12345678")]
    {
        let mut plan = QuotaPlan::default();
        plan.add_label(first.parse().unwrap(), "a").unwrap();
        assert_eq!(plan.add_label(second.parse().unwrap(), "b"), Err(OtherLabel));
        plan.add_label(second.parse().unwrap(), "a").unwrap();
    }
    let mut plan = QuotaPlan::default();
    plan.add_label("123456780".parse().unwrap(), "a").unwrap();
    plan.add_label("123456781".parse().unwrap(), "b").unwrap();
    assert!(plan.has_label("a") && plan.has_label("b") && !plan.has_label("c"));
}

#[test]
fn debug_output_shows_part_of_a_digest() {
    let digest: KeyDigest = "0A1b2c3d4e5f60718293".parse().unwrap();
    assert_eq!(format!("{digest:?}"), "KeyDigest(0a1b2c3d…)");
    for wrong in ["", "1234567", "1234567ä", "+1234567", &"0".repeat(65)] {
        assert_eq!(wrong.parse::<KeyDigest>(), Err(InvalidDigest), "{wrong}");
    }
}

#[test]
fn a_source_is_serialized_as_one_word() {
    let words = [Source::Tier, Source::Setting, Source::Gemini]
        .map(|source| serde_json::to_string(&source).unwrap());
    assert_eq!(words, ["\"tier\"", "\"setting\"", "\"gemini\""]);
}
