use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn requests(counting: Counting, requests_per_minute: u64) -> KeyQuotas {
    KeyQuotas::new(&Options {
        requests_per_minute: Some(requests_per_minute),
        counting,
        ..Options::default()
    })
}

fn demand<'a>(key: &'a str, model: &'a str, input_tokens: u64) -> Demand<'a> {
    Demand { key, model, requests: 1, input_tokens, tier: ServiceTier::Standard }
}

fn admit(quotas: &KeyQuotas, tokens: u64) -> Result<(), QuotaExceeded> {
    quotas.admit(&demand("key", "gemini-a", tokens), Instant::now()).map(drop)
}

fn wait(quotas: &KeyQuotas, tokens: u64) -> Duration {
    admit(quotas, tokens).expect_err("a quota is exceeded").retry_in
}

#[tokio::test(start_paused = true)]
async fn a_sliding_window_frees_each_request_a_minute_after_it_came() {
    let quotas = requests(Counting::SlidingWindow, 2);
    assert_eq!(admit(&quotas, 1), Ok(()));
    tokio::time::advance(40 * SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(wait(&quotas, 1), 20 * SECOND);
    tokio::time::advance(20 * SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(wait(&quotas, 1), 40 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_fixed_minute_starts_afresh() {
    let quotas = requests(Counting::FixedMinute, 2);
    tokio::time::advance(59 * SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(wait(&quotas, 1), SECOND);
    tokio::time::advance(SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_token_bucket_holds_at_most_one_second_of_quota() {
    let quotas = requests(Counting::TokenBucket, 120);
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(wait(&quotas, 1), SECOND / 2);
    tokio::time::advance(SECOND / 2).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
    tokio::time::advance(3600 * SECOND).await;
    assert_eq!((0..9).filter(|_| admit(&quotas, 1).is_ok()).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_the_bucket_leaves_a_debt() {
    let quotas = KeyQuotas::new(&Options {
        input_tokens_per_minute: Some(600),
        counting: Counting::TokenBucket,
        ..Options::default()
    });
    assert_eq!(admit(&quotas, 110), Ok(()));
    assert_eq!(wait(&quotas, 10), 11 * SECOND);
    tokio::time::advance(11 * SECOND).await;
    assert_eq!(admit(&quotas, 110), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_the_whole_quota_is_always_refused() {
    for counting in [Counting::SlidingWindow, Counting::FixedMinute, Counting::TokenBucket] {
        let quotas = KeyQuotas::new(&Options {
            input_tokens_per_minute: Some(600),
            counting,
            ..Options::default()
        });
        for _ in 0..3 {
            assert_eq!(wait(&quotas, 601), 60 * SECOND);
            tokio::time::advance(60 * SECOND).await;
        }
        assert_eq!(admit(&quotas, 600), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_minute_can_be_shortened() {
    let quotas = KeyQuotas::new(&Options {
        requests_per_minute: Some(1),
        minute_seconds: 0.5,
        ..Options::default()
    });
    assert_eq!(admit(&quotas, 1), Ok(()));
    assert_eq!(wait(&quotas, 1), SECOND / 2);
}

#[tokio::test(start_paused = true)]
async fn keys_and_models_have_separate_quotas() {
    let quotas = requests(Counting::SlidingWindow, 1);
    let now = Instant::now();
    assert_eq!(quotas.admit(&demand("a", "gemini-a", 1), now), Ok(ServiceTier::Standard));
    assert_eq!(quotas.admit(&demand("a", "gemini-b", 1), now), Ok(ServiceTier::Standard));
    assert_eq!(quotas.admit(&demand("b", "gemini-a", 1), now), Ok(ServiceTier::Standard));
    assert!(quotas.admit(&demand("a", "gemini-a", 1), now).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_does_not_count() {
    let quotas = KeyQuotas::new(&Options {
        requests_per_minute: Some(1),
        input_tokens_per_minute: Some(100),
        ..Options::default()
    });
    assert_eq!(
        admit(&quotas, 101).expect_err("too many tokens").violations,
        [(Quota::InputTokensPerMinute, 100)]
    );
    assert_eq!(admit(&quotas, 100), Ok(()));
    let both = [(Quota::RequestsPerMinute, 1), (Quota::InputTokensPerMinute, 100)];
    assert_eq!(admit(&quotas, 1).expect_err("both are used up").violations, both);
}

#[tokio::test(start_paused = true)]
async fn priority_calls_above_their_share_are_served_as_standard() {
    let quotas = requests(Counting::SlidingWindow, 10);
    let priority = Demand { tier: ServiceTier::Priority, ..demand("key", "gemini-a", 1) };
    let tiers: Vec<ServiceTier> =
        (0..4).map(|_| quotas.admit(&priority, Instant::now()).expect("room")).collect();
    assert_eq!(
        tiers,
        [
            ServiceTier::Priority,
            ServiceTier::Priority,
            ServiceTier::Priority,
            ServiceTier::Standard
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_key_spends_counts_for_ten_minutes_over_all_models() {
    let options = Options { spend_per_ten_minutes: Some(1e-6), ..Options::default() };
    let quotas = KeyQuotas::new(&options);
    assert!(quotas.may_spend("a", 1000, Instant::now()));
    quotas.spend("a", 1000, Instant::now());
    assert!(!quotas.may_spend("a", 0, Instant::now()));
    assert!(quotas.may_spend("b", 0, Instant::now()));
    tokio::time::advance(599 * SECOND).await;
    assert!(!quotas.may_spend("a", 0, Instant::now()));
    tokio::time::advance(SECOND).await;
    assert!(quotas.may_spend("a", 0, Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn the_day_ends_at_midnight_in_los_angeles() {
    // One minute before a day of 25 hours, on which the clocks go back.
    let wall = "2026-10-31T23:59:00-07:00".parse().expect("a valid timestamp");
    let options = Options { requests_per_day: Some(1), ..Options::default() };
    let quotas = KeyQuotas::with_calendar(&options, Calendar { wall, instant: Instant::now() });
    assert_eq!(admit(&quotas, 1), Ok(()));
    let refused = admit(&quotas, 1).expect_err("the day's only request is used");
    assert_eq!(refused.violations, [(Quota::RequestsPerDay, 1)]);
    assert!(refused.retry_in <= 60 * SECOND);
    tokio::time::advance(60 * SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
    tokio::time::advance(25 * 3600 * SECOND - SECOND).await;
    assert!(admit(&quotas, 1).is_err());
    tokio::time::advance(SECOND).await;
    assert_eq!(admit(&quotas, 1), Ok(()));
}
