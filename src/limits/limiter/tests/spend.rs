//! The payer's spend beside the models' quotas.

use futures_util::future::join_all;
use tokio::time::{sleep, timeout_at};

use super::*;

const DOLLAR: u64 = 1_000_000_000;

/// A limiter with this much to spend in ten minutes, and a limit of requests a minute for the model
/// `slow`.
fn spending(spend: u64, slow: u64) -> Arc<Limiter> {
    let mut plan = QuotaPlan::default();
    let limits = Limits::default().with(SpendPerTenMinutes, Limit::AtMost(spend));
    plan.add_limits(LimitScope { label: None, model: None }, limits).unwrap();
    let limits = Limits::default().with(RequestsPerMinute, Limit::AtMost(slow));
    plan.add_limits(LimitScope { label: None, model: Some("slow".into()) }, limits).unwrap();
    Limiter::new(1000, 10_000, plan)
}

fn costing(spend: u64) -> Estimate {
    Estimate { spend, ..Cost::one(1).into() }
}

async fn admit_at(queue: &AccountQueue, spend: u64) -> Result<Admission, Refused> {
    queue.head().await.admit(costing(spend), Instant::now() + 2000 * SECOND).await
}

/// What is spent, and what is reserved.
fn spent(limiter: &Limiter) -> (u64, u64) {
    let all = limiter.accounts().spending(10).now_or_never().expect("at once").unwrap();
    let usage = all[0].usage[SpendPerTenMinutes];
    (usage.used, usage.reserved)
}

#[tokio::test(start_paused = true)]
async fn all_models_of_a_payer_spend_from_one_budget_and_each_payer_from_its_own() {
    let limiter = spending(10 * DOLLAR, 60);
    let [a, b] = ["a", "b"].map(|model| queue(&limiter, model));
    let mut first = admit_at(&a, 8 * DOLLAR).await.unwrap().start().unwrap();
    assert_eq!(spent(&limiter), (8 * DOLLAR, 0));
    let too_late = b.head().await.admit(costing(3 * DOLLAR), Instant::now() + 60 * SECOND).await;
    let of_spend = Some(SpendPerTenMinutes);
    let Err(Refused::Exhausted(Exhausted::NotBefore { kind, .. })) = too_late else { panic!() };
    assert_eq!(kind, of_spend);
    let stranger = limiter.accounts().of(&[8; 32], &"a".into());
    let stranger = QueueTicket::new(Arc::clone(&limiter)).queue(stranger, None);
    assert!(admit_at(&stranger, 8 * DOLLAR).now_or_never().expect("at once").is_ok());
    assert!(admit(&b).now_or_never().expect("a free call waits for no money").is_ok());
    first.charge(DOLLAR);
    first.answered(None);
    assert_eq!(spent(&limiter), (DOLLAR, 0));
    let began = Instant::now();
    drop(admit_at(&b, 3 * DOLLAR).await.unwrap());
    assert!(began.elapsed() < 62 * SECOND, "{:?}", began.elapsed());
    assert_eq!(spent(&limiter), (DOLLAR, 0), "what is not sent is given back");
}

#[tokio::test(start_paused = true)]
async fn a_call_settles_at_what_it_costs_and_a_failed_one_at_nothing() {
    let limiter = spending(10 * DOLLAR, 60);
    let queue = queue(&limiter, "a");
    let mut used = 0;
    let end = |how: usize, mut call: InFlightCall| match how {
        0 => {
            call.charge(7);
            call.answered(None);
        }
        1 => call.answered(Some(3)),
        2 => drop(call),
        3 => call.overloaded(),
        4 => call.declined(),
        5 => call.unsent(),
        6 => call.refused_alone(),
        7 => call.refused(Instant::now(), Quotas::default()),
        _ => {
            call.charge(0);
            drop(call);
        }
    };
    for (how, cost) in [7, 100, 100, 0, 0, 0, 0, 0, 0].into_iter().enumerate() {
        end(how, admit_at(&queue, 100).await.unwrap().start().unwrap());
        used += cost;
        assert_eq!(spent(&limiter), (used, 0), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_money_holds_no_quota_of_its_model_and_the_other_way_round() {
    let limiter = spending(10 * DOLLAR, 1);
    let [slow, other] = ["slow", "other"].map(|model| queue(&limiter, model));
    let first = admit_at(&other, 10 * DOLLAR).await.unwrap().start().unwrap();
    let mut waits = Box::pin(admit_at(&slow, DOLLAR));
    assert!((&mut waits).now_or_never().is_none());
    advance(SECOND).await;
    assert!((&mut waits).now_or_never().is_none());
    let reserved = || usage(&account(&limiter, "slow"))[RequestsPerMinute].reserved;
    assert_eq!(reserved(), 0, "it waits for money");
    first.unsent();
    let admitted = waits.await.unwrap();
    assert_eq!((reserved(), spent(&limiter)), (1, (0, DOLLAR)));
    let _sent = admitted.start().unwrap();
    let mut waits = Box::pin(admit_at(&slow, DOLLAR / 100));
    assert!((&mut waits).now_or_never().is_none());
    advance(SECOND).await;
    assert!((&mut waits).now_or_never().is_none());
    assert_eq!(spent(&limiter), (DOLLAR, 0), "it waits for its model's quota");
    drop(waits);
    assert_eq!(limiter.occupancy().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_cost_more_than_the_whole_limit_waits_for_all_of_it() {
    let limiter = spending(DOLLAR, 60);
    let queue = queue(&limiter, "a");
    let admission = admit_at(&queue, 5 * DOLLAR).await.unwrap();
    assert_eq!(spent(&limiter), (0, DOLLAR));
    let mut call = admission.start().unwrap();
    call.charge(5 * DOLLAR);
    assert_eq!(spent(&limiter), (5 * DOLLAR, 0));
    call.answered(None);
    let next = queue.head().await.admit(costing(1), deadline()).await;
    assert!(next.is_err(), "not within ten minutes");
}

#[tokio::test(start_paused = true)]
async fn money_that_a_call_costs_while_it_runs_counts_at_once_and_only_once() {
    for takes in [SECOND, 3600 * SECOND] {
        let limiter = spending(10 * DOLLAR, 60);
        let mut call = admit_at(&queue(&limiter, "a"), 100).await.unwrap().start().unwrap();
        advance(takes).await;
        call.pay(DOLLAR);
        let estimate = if takes == SECOND { 100 } else { 0 };
        assert_eq!(spent(&limiter), (DOLLAR + estimate, 0));
        call.charge(7);
        call.answered(None);
        assert_eq!(spent(&limiter), (DOLLAR + 7, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_spend_pauses_all_models_even_those_that_were_not_used_yet() {
    let limiter = spending(10 * DOLLAR, 60);
    let call = admit_at(&queue(&limiter, "a"), 1).await.unwrap().start().unwrap();
    limiter.accounts().pause_payer(call.account(), Instant::now() + 45 * SECOND);
    call.refused_alone();
    let began = Instant::now();
    let [a, b] = ["a", "b"].map(|model| queue(&limiter, model));
    for queue in [&a, &b] {
        let too_late = queue.head().await.admit(costing(1), began + SECOND).await;
        let Err(Refused::Exhausted(Exhausted::NotBefore { kind, .. })) = too_late else { panic!() };
        assert_eq!(kind, Some(SpendPerTenMinutes));
    }
    let both = join_all([&a, &b].map(|queue| admit_at(queue, 1))).await;
    assert!(both.iter().all(Result::is_ok));
    assert_eq!(began.elapsed(), 45 * SECOND);
}

/// Whatever calls cost, however long they take and whichever quota they wait for: Gemini, which counts a
/// call once it is answered, never sees more than the limit in ten minutes, and nearly all is spent.
#[tokio::test(start_paused = true)]
async fn no_ten_minutes_cost_more_than_the_limit_and_little_is_left() {
    for seed in 0..8 {
        let limiter = spending(10 * DOLLAR, 60);
        let mut random = fastrand::Rng::with_seed(seed);
        let began = Instant::now();
        let run = 3 * 603 * SECOND;
        let charged = Mutex::new(Vec::new());
        let calls = (0..4000).map(|_| {
            let model = ["slow", "a", "b"][random.usize(..3)];
            let most = if random.u32(..20) == 0 { DOLLAR / 5 } else { DOLLAR / 50 };
            let (estimate, takes) = (random.u64(1..=most), random.u64(500..15_000));
            let actual = estimate * random.u64(50..=100) / 100;
            (queue(&limiter, model), estimate, actual, takes)
        });
        let live = async |(queue, estimate, actual, takes): (Arc<AccountQueue>, u64, u64, u64)| {
            let head = queue.head().await;
            let Ok(admission) = head.admit(costing(estimate), began + 2 * run).await else {
                return;
            };
            let mut call = admission.start().unwrap();
            sleep(Duration::from_millis(takes)).await;
            charged.lock().unwrap().push((Instant::now(), actual));
            call.charge(actual);
            call.answered(None);
        };
        let _ = timeout_at(began + run, join_all(calls.map(live))).await;
        let charged = charged.into_inner().unwrap();
        let in_window = |end: Instant| {
            let recent = charged.iter().filter(|(at, _)| *at <= end && *at + 600 * SECOND > end);
            recent.map(|(_, cost)| cost).sum::<u64>()
        };
        let most = charged.iter().map(|(at, _)| in_window(*at)).max().unwrap();
        assert!(most <= 10 * DOLLAR, "seed {seed}: {most} in ten minutes");
        let all: u64 = charged.iter().map(|(_, cost)| cost).sum();
        let share = all as f64 / (30 * DOLLAR) as f64;
        assert!(share > 0.9, "seed {seed}: {share} of the budget of three windows");
        println!("seed {seed}: {share}");
    }
}
