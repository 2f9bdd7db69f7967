//! Budgets of every store.

use super::*;

for_both_stores! {
    calls_are_spread_over_the_minute,
    a_returned_reservation_is_available_to_the_next_call,
    a_call_that_cannot_be_sent_in_time_is_refused_at_once,
    a_refusal_sets_quotas_and_pauses_the_account,
    an_alias_is_charged_to_another_account,
    the_lowest_limit_set_by_hand_for_either_account_holds_for_both,
    quotas_that_gemini_named_stay_when_accounts_are_joined,
    a_declined_call_gives_its_day_back_even_if_quotas_are_learned_later,
    a_used_up_day_refuses_calls,
    tokens_that_were_spent_without_a_reservation_count_from_then_on,
    a_payers_spend_is_kept_beside_its_models,
}

/// A minute of six seconds.
pub(super) const MINUTE: Duration = Duration::from_secs(6);

pub(super) fn budget(
    store: &Shared,
    model: &str,
    requests_per_minute: Option<u64>,
) -> Arc<dyn BudgetAdmin> {
    planned_budget(store, model, requests_per_minute, Source::Tier)
}

pub(super) fn planned_budget(
    store: &Shared,
    model: &str,
    requests_per_minute: Option<u64>,
    source: Source,
) -> Arc<dyn BudgetAdmin> {
    let planned = requests_per_minute.map(|limit| Planned { limit, source });
    let planned = PlannedQuotas::default().with(RequestsPerMinute, planned);
    store.budget(&Payer::Key([7; 32]), model, planned, MINUTE)
}

pub(super) fn soon() -> Instant {
    Instant::now() + 30 * SECOND
}

pub(super) async fn reserve(
    budget: &Arc<dyn BudgetAdmin>,
    line: Line,
) -> Result<Reservation, Exhausted> {
    Arc::clone(budget).reserve(line, Cost::one(1), soon()).await
}

pub(super) async fn reserve_now(
    budget: &Arc<dyn BudgetAdmin>,
) -> Result<Option<Reservation>, NotReserved> {
    Arc::clone(budget).try_reserve(Cost::one(1), soon()).result().await
}

pub(super) async fn used(budget: &Arc<dyn BudgetAdmin>) -> (u64, u64) {
    let usage = budget.usage().await.unwrap()[RequestsPerMinute];
    (usage.used, usage.reserved)
}

async fn calls_are_spread_over_the_minute(store: Shared) {
    // Ten a second with a burst of one.
    let budget = budget(&store, "m", Some(60));
    let began = Instant::now();
    for sent in 1..=5 {
        let reservation = reserve(&budget, Line::Queue).await.unwrap();
        assert_eq!(used(&budget).await, (sent - 1, 1));
        let _ = reservation.start();
    }
    assert_eq!(used(&budget).await, (5, 0));
    assert!(began.elapsed() >= 4 * SECOND / 10, "{:?}", began.elapsed());
    assert!(reserve_now(&budget).await.unwrap().is_none(), "there is no room now");
}

async fn a_returned_reservation_is_available_to_the_next_call(store: Shared) {
    let budget = budget(&store, "m", Some(60));
    let held = reserve_now(&budget).await.unwrap().expect("nothing is spent");
    let next = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { reserve(&budget, Line::Queue).await }
    });
    while budget.usage().await.unwrap().waiting == 0 {
        tokio::task::yield_now().await;
    }
    assert!(reserve_now(&budget).await.unwrap().is_none(), "it is waited for");
    drop(held);
    drop(next.await.unwrap().unwrap());
    assert_eq!(used(&budget).await, (0, 0));
}

async fn a_call_that_cannot_be_sent_in_time_is_refused_at_once(store: Shared) {
    let budget = budget(&store, "m", Some(1));
    let _ = reserve_now(&budget).await.unwrap().expect("nothing is spent").start();
    let deadline = Instant::now() + SECOND;
    let refused =
        Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), deadline).await.unwrap_err();
    let Exhausted::NotBefore { kind: Some(RequestsPerMinute), retry_after } = refused else {
        panic!("{refused}")
    };
    assert!(retry_after > 5 * SECOND && retry_after < 7 * SECOND, "{retry_after:?}");
    assert!(Instant::now() < deadline, "it did not wait for it");
    let none = self::budget(&store, "other", Some(0));
    let no_quota = Exhausted::NoQuota { kind: Some(RequestsPerMinute) };
    assert_eq!(reserve(&none, Line::Queue).await.err(), Some(no_quota));
}

async fn a_refusal_sets_quotas_and_pauses_the_account(store: Shared) {
    let budget = budget(&store, "m", None);
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(reserve_now(&budget).await.unwrap().expect("nothing limits it").start());
    }
    budget.learn(Quotas::default().with(RequestsPerMinute, 3));
    budget.pause_until(Instant::now() + SECOND / 5, None);
    assert!(budget.is_paused());
    sent.pop().expect("three left").take_back();
    let usage = budget.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(3));
    assert!(usage[RequestsPerMinute].used >= 2, "what left before counts: {usage:?}");
    assert!(usage.paused_for.is_some());
    assert!(reserve_now(&budget).await.unwrap().is_none(), "it is paused");
    budget.forget();
    assert!(!budget.is_paused());
    let usage = budget.usage().await.unwrap();
    assert_eq!((usage[RequestsPerMinute].limit, usage.paused_for), (None, None));
}

async fn an_alias_is_charged_to_another_account(store: Shared) {
    let (alias, real) = (budget(&store, "latest", Some(600)), budget(&store, "real", Some(600)));
    for budget in [&alias, &alias, &real] {
        let _ = reserve(budget, Line::Queue).await.unwrap().start();
    }
    real.transfer_in(alias.transfer_out(), false);
    assert_eq!(used(&real).await.0, 3);
    assert_eq!(real.usage().await.unwrap()[RequestsPerDay].used, 3);
    assert_eq!(used(&alias).await.0, 0);
}

pub(super) async fn limit_of(budget: &Arc<dyn BudgetAdmin>) -> Option<u64> {
    budget.usage().await.unwrap()[RequestsPerMinute].limit
}

async fn the_lowest_limit_set_by_hand_for_either_account_holds_for_both(store: Shared) {
    use Source::{Setting, Tier};
    for (number, (real, alias, counts)) in [
        ((Some(300), Tier), (Some(7), Setting), Some(7)),
        ((Some(300), Tier), (Some(1000), Setting), Some(1000)),
        ((Some(9), Setting), (Some(7), Setting), Some(7)),
        ((Some(7), Setting), (Some(9), Setting), Some(7)),
        ((Some(500), Setting), (Some(300), Tier), Some(500)),
        ((None, Setting), (Some(300), Tier), None),
        ((Some(300), Tier), (None, Setting), Some(300)),
    ]
    .into_iter()
    .enumerate()
    {
        let open = |name: &str, (limit, source)| {
            planned_budget(&store, &format!("{name}-{number}"), limit, source)
        };
        let (alias, real) = (open("latest", alias), open("real", real));
        drop(reserve(&alias, Line::Queue).await.unwrap());
        for _ in 0..2 {
            real.transfer_in(alias.transfer_out(), false);
            assert_eq!(limit_of(&real).await, counts, "{number}");
        }
    }
}

async fn quotas_that_gemini_named_stay_when_accounts_are_joined(store: Shared) {
    let named = |requests, tokens| {
        Quotas::default().with(RequestsPerMinute, requests).with(InputTokensPerMinute, tokens)
    };
    let alias = planned_budget(&store, "latest", Some(30), Source::Setting);
    let real = budget(&store, "real", Some(100));
    alias.learn(named(Some(20), Some(9000)));
    real.learn(named(Some(40), None));
    real.transfer_in(alias.transfer_out(), false);
    let usage = real.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(30), "what was set by hand is the most");
    assert_eq!(usage[InputTokensPerMinute].limit, Some(9000));
    real.learn(named(Some(25), None));
    assert_eq!(limit_of(&real).await, Some(25));
    real.forget();
    let usage = real.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(30));
    assert_eq!(usage[InputTokensPerMinute].limit, None);
}

/// The first burst: some calls are over, some in flight, and one is admitted when Gemini names a quota.
async fn a_declined_call_gives_its_day_back_even_if_quotas_are_learned_later(store: Shared) {
    let budget = budget(&store, "m", None);
    let take = async || reserve_now(&budget).await.unwrap().expect("nothing limits it");
    let mut sent = Vec::new();
    for _ in 0..6 {
        sent.push(take().await.start());
    }
    let [refused, declined, before, answered, lost, late] =
        <[_; 6]>::try_from(sent).expect("six have left");
    let unsent = take().await;
    before.take_back_of_day();
    budget.learn(Quotas::default().with(RequestsPerMinute, 600));
    refused.take_back();
    late.take_back();
    declined.take_back_of_day();
    answered.settle(1);
    drop((unsent, lost));
    let usage = budget.usage().await.unwrap();
    assert_eq!(usage[RequestsPerDay].used, 2, "one was answered and one was lost: {usage:?}");
}

async fn a_used_up_day_refuses_calls(store: Shared) {
    let budget = budget(&store, "m", Some(600));
    let sent = reserve_now(&budget).await.unwrap().expect("nothing is spent").start();
    budget.close_day(sent.at());
    sent.take_back();
    let refused = reserve_now(&budget).await.err();
    let closed = matches!(refused, Some(NotReserved::Exhausted(Exhausted::DayExhausted { .. })));
    assert!(closed, "{refused:?}");
}

async fn tokens_that_were_spent_without_a_reservation_count_from_then_on(store: Shared) {
    let planned = Some(Planned { limit: 600, source: Source::Tier });
    let planned = PlannedQuotas::default().with(InputTokensPerMinute, planned);
    let budget = store.budget(&Payer::Key([7; 32]), "m", planned, MINUTE);
    let session = Arc::clone(&budget).reserve(Line::Queue, Cost::of(1, 10), soon()).await.unwrap();
    let session = session.start();
    budget.spend(Resource::InputTokens, 300);
    budget.spend(Resource::InputTokens, 200);
    let used = async || budget.usage().await.unwrap()[InputTokensPerMinute].used;
    assert_eq!(used().await, 510);
    session.settle(0);
    assert_eq!(used().await, 500);
    let next = Arc::clone(&budget).try_reserve(Cost::of(1, 200), soon()).result().await;
    assert!(next.unwrap().is_none(), "there is no room now");
}

/// The ten minutes of the payer have six seconds here.
async fn a_payers_spend_is_kept_beside_its_models(store: Shared) {
    let planned = Planned { limit: 1_000_000, source: Source::Tier };
    let planned = PlannedQuotas::default().with(SpendPerTenMinutes, planned);
    let spend = store.budget(&Payer::Key([7; 32]), "*", planned, MINUTE);
    let model = budget(&store, "m", Some(60));
    let reserve = async |amount: u64, deadline| {
        Arc::clone(&spend).reserve(Line::Queue, Cost::of_spend(amount), deadline).await
    };
    let usage = async || {
        let usage = spend.usage().await.unwrap()[SpendPerTenMinutes];
        (usage.limit, usage.used, usage.reserved)
    };
    let reservation = reserve(900_000, soon()).await.unwrap();
    assert_eq!(usage().await, (Some(1_000_000), 0, 900_000));
    let sent = reservation.start();
    assert_eq!(usage().await, (Some(1_000_000), 900_000, 0));
    let refused = reserve(200_000, Instant::now() + SECOND).await.unwrap_err();
    let is_of_spend = |reason: &Exhausted| {
        matches!(reason, Exhausted::NotBefore { kind: Some(SpendPerTenMinutes), .. })
    };
    assert!(is_of_spend(&refused), "{refused:?}");
    assert_eq!(used(&model).await, (0, 0), "the model has quotas of its own");
    sent.settle_spend(100_000);
    assert_eq!(usage().await, (Some(1_000_000), 100_000, 0));
    // A tenth is spent, and drains in a tenth of the time.
    drop(reserve(200_000, Instant::now() + SECOND).await.unwrap());
    let too_large = reserve(1_000_001, soon()).await.unwrap_err();
    let limit = 1_000_000;
    let kind = SpendPerTenMinutes;
    assert_eq!(too_large, Exhausted::TooLarge { kind, cost: 1_000_001, limit });
    assert_eq!(usage().await, (Some(1_000_000), 100_000, 0));
    // One that waits until its deadline learns the same.
    let held = reserve(900_000, soon()).await.unwrap();
    let late = reserve(100_000, Instant::now() + SECOND / 10).await.unwrap_err();
    assert!(is_of_spend(&late), "{late:?}");
    drop(held);
    model.pause_until(Instant::now() + MINUTE, Some(SpendPerTenMinutes));
    let late = Instant::now() + SECOND / 10;
    let late = Arc::clone(&model).reserve(Line::Queue, Cost::one(1), late).await.unwrap_err();
    assert!(is_of_spend(&late), "{late:?}");
}
