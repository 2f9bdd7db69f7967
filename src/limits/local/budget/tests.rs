use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::limits::budget::Sent;
pub(in crate::limits) use crate::limits::model::QuotaKind::*;
use crate::limits::model::Resource;
use crate::pacific::Calendar;

pub(in crate::limits) mod counters;
mod day;
mod model;
mod properties;

pub(in crate::limits) const MINUTE: Duration = Duration::from_secs(60);
pub(in crate::limits) const SECOND: Duration = Duration::from_secs(1);
pub(in crate::limits) const HOUR: Duration = Duration::from_secs(3600);

/// Half of a window's margin, and what tokio's timer rounds up to.
pub(in crate::limits) const TOLERANCE: Duration = Duration::from_millis(150);

pub(in crate::limits) fn per_minute(requests: u64, tokens: u64) -> Quotas {
    Quotas::default().with(RequestsPerMinute, requests).with(InputTokensPerMinute, tokens)
}

pub(in crate::limits) fn requests(limit: u64) -> Quotas {
    Quotas::default().with(RequestsPerMinute, limit)
}

pub(in crate::limits) fn tokens(limit: u64) -> Quotas {
    Quotas::default().with(InputTokensPerMinute, limit)
}

pub(in crate::limits) fn per_day(limit: u64) -> Quotas {
    Quotas::default().with(RequestsPerDay, limit)
}

pub(in crate::limits) fn budget(quotas: Quotas) -> Arc<LocalBudget> {
    LocalBudget::new(quotas, MINUTE)
}

/// A budget that is opened at that time of the wall clock, which passes as tokio's does.
pub(in crate::limits) fn starting_at(quotas: Quotas, wall: Timestamp) -> Arc<LocalBudget> {
    let calendar = Calendar { wall, instant: Instant::now() };
    with_clock(quotas, Arc::new(calendar))
}

pub(in crate::limits) fn with_clock(quotas: Quotas, clock: Arc<dyn WallClock>) -> Arc<LocalBudget> {
    let budget = LocalBudget::with_clock("".into(), PlannedQuotas::default(), MINUTE, clock);
    budget.set(quotas);
    budget
}

/// Late enough for anything that can become available.
pub(in crate::limits) fn far_deadline() -> Instant {
    Instant::now() + 24 * HOUR
}

pub(in crate::limits) async fn reserve(budget: &Arc<LocalBudget>, tokens: u64) -> Reservation {
    Arc::clone(budget)
        .reserve(Line::Queue, Cost::one(tokens), far_deadline())
        .await
        .expect("it comes free before the deadline")
}

pub(in crate::limits) async fn send(budget: &Arc<LocalBudget>, tokens: u64) -> Sent {
    reserve(budget, tokens).await.start()
}

/// Why a call without time to wait is refused.
pub(in crate::limits) async fn refusal(budget: &Arc<LocalBudget>, tokens: u64) -> Exhausted {
    Arc::clone(budget)
        .reserve(Line::Queue, Cost::one(tokens), Instant::now())
        .await
        .expect_err("there is no room now")
}

pub(in crate::limits) async fn is_free(budget: &Arc<LocalBudget>, tokens: u64) -> bool {
    Arc::clone(budget).reserve(Line::Queue, Cost::one(tokens), Instant::now()).await.is_ok()
}

/// How long the future takes on the paused clock.
pub(in crate::limits) async fn seconds(future: impl Future) -> f64 {
    let start = Instant::now();
    future.await;
    start.elapsed().as_secs_f64()
}

pub(in crate::limits) fn close(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= TOLERANCE.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn requests_are_spread_over_the_minute() {
    let budget = budget(requests(60));
    let took = seconds(async {
        for _ in 0..11 {
            let _ = send(&budget, 1).await;
        }
    })
    .await;
    assert!(close(took, 10.0 * 1.035), "{took}");
}

#[tokio::test(start_paused = true)]
async fn half_a_seconds_worth_is_sent_at_once() {
    let budget = budget(requests(1200));
    let mut at_once = 0;
    while let Some(Ok(reservation)) =
        Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), far_deadline()).now_or_never()
    {
        let _ = reservation.start();
        at_once += 1;
    }
    assert_eq!(at_once, 10);
}

#[tokio::test(start_paused = true)]
async fn without_quotas_everything_is_sent_at_once_and_counted() {
    let budget = budget(Quotas::default());
    let took = seconds(async {
        for _ in 0..1000 {
            let _ = send(&budget, 1_000_000).await;
        }
    });
    assert_eq!(took.await, 0.0);
    let usage = budget.usage_now();
    assert_eq!(usage[RequestsPerMinute].used, 1000);
    assert_eq!(usage[InputTokensPerMinute].used, 1_000_000_000);
    assert_eq!(usage.next_free_in, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_does_not_age_until_it_is_sent() {
    let budget = budget(tokens(100));
    let reservation = reserve(&budget, 100).await;
    advance(10 * MINUTE).await;
    assert!(!is_free(&budget, 1).await, "the reservation still counts");

    let _ = reservation.start();
    advance(MINUTE).await;
    assert!(!is_free(&budget, 1).await, "a minute and a margin have not passed since it left");
    advance(SECOND).await;
    assert!(is_free(&budget, 100).await);
}

#[tokio::test(start_paused = true)]
async fn accumulated_reservations_are_not_sent_in_a_burst() {
    let budget = budget(requests(600));
    let mut held = Vec::new();
    while let Some(Ok(reservation)) =
        Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), far_deadline()).now_or_never()
    {
        held.push(reservation);
    }
    advance(30 * SECOND).await;
    assert!(reserve(&budget, 1).now_or_never().is_none(), "half a second's worth is held already");

    let bunch = held.len() as f64;
    held.into_iter().for_each(|reservation| drop(reservation.start()));
    let took = seconds(async {
        for _ in 0..20 {
            let _ = send(&budget, 1).await;
        }
    })
    .await;
    // At most 10 a second: the held reservations have used up the burst.
    assert!(close(took, 20.0 * 0.1005) && bunch <= 5.0, "{took} s after {bunch}");
}

#[tokio::test(start_paused = true)]
async fn an_unsent_reservation_is_returned_at_once() {
    let budget = budget(per_minute(5, 100));
    let reservation = reserve(&budget, 100).await;
    let waiting = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { seconds(reserve(&budget, 100)).await }
    });
    sleep(7 * SECOND).await;
    drop(reservation);
    assert!(close(waiting.await.unwrap(), 7.0));
    assert_eq!(budget.usage_now()[InputTokensPerMinute].reserved, 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_call_is_not_overtaken_by_small_ones() {
    let budget = budget(tokens(6000));
    let _ = send(&budget, 3000).await;
    let order = Mutex::new(Vec::new());
    let call = async |tokens| {
        let _ = send(&budget, tokens).await;
        order.lock().unwrap().push(tokens);
    };
    join_all([call(6000), call(1), call(2)]).await;
    assert_eq!(*order.lock().unwrap(), [6000, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn leaving_the_queue_unblocks_the_next_call() {
    let budget = budget(tokens(6000));
    let _ = send(&budget, 3000).await;
    let mut large = Box::pin(reserve(&budget, 6000));
    assert!((&mut large).now_or_never().is_none());
    let mut small = Box::pin(reserve(&budget, 10));
    assert!((&mut small).now_or_never().is_none());
    assert_eq!(budget.usage_now().waiting, 2);

    drop(large);
    // Half a minute's tokens are sent. They drain in half a minute.
    let took = seconds(small).await;
    assert!(close(took, 29.65), "{took}");
    assert_eq!(budget.usage_now().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_be_sent_in_time_is_refused_at_once_with_a_retry_time() {
    let budget = budget(requests(5));
    let _ = send(&budget, 1).await;
    let in_line = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { drop(send(&budget, 1).await) }
    });
    tokio::task::yield_now().await;

    // One call is ahead of it in the queue, and a request takes 12.06 s.
    let deadline = Instant::now() + 20 * SECOND;
    let refused = Arc::clone(&budget)
        .reserve(Line::Queue, Cost::one(1), deadline)
        .now_or_never()
        .expect("it does not wait");
    let Err(Exhausted::NotBefore { retry_after, .. }) = refused else { panic!("{refused:?}") };
    assert!(close(retry_after.as_secs_f64(), 24.15), "{retry_after:?}");
    assert_eq!(budget.usage_now().next_free_in, Some(retry_after));

    in_line.await.unwrap();
    let took = seconds(send(&budget, 1)).await;
    assert!(close(took, 12.09), "the reported wait is true: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_refused_at_its_deadline() {
    let budget = budget(requests(5));
    let held = reserve(&budget, 1).await;
    let start = Instant::now();
    let refused = Arc::clone(&budget)
        .reserve(Line::Queue, Cost::one(1), start + 30 * SECOND)
        .await
        .expect_err("it is held up");
    assert!(matches!(refused, Exhausted::NotBefore { .. }), "{refused:?}");
    assert!(close(start.elapsed().as_secs_f64(), 30.0));
    assert_eq!(budget.usage_now().waiting, 0);
    drop(held);
    assert!(is_free(&budget, 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_the_middle_of_the_queue_is_refused_at_its_deadline() {
    let budget = budget(requests(5));
    let held = reserve(&budget, 1).await;
    let mut first = Box::pin(reserve(&budget, 1));
    assert!((&mut first).now_or_never().is_none());
    let took = seconds(async {
        let refused = Arc::clone(&budget)
            .reserve(Line::Queue, Cost::one(1), Instant::now() + 40 * SECOND)
            .await;
        assert!(matches!(refused, Err(Exhausted::NotBefore { .. })), "{refused:?}");
    });
    assert!(close(took.await, 40.0));
    drop(held);
    assert!(first.now_or_never().is_some(), "the first has kept its position");
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_a_whole_minute_is_refused_at_once() {
    let budget = budget(tokens(1000));
    let refused = Arc::clone(&budget)
        .reserve(Line::Queue, Cost::one(1001), far_deadline())
        .now_or_never()
        .expect("it does not wait");
    assert_eq!(
        refused.unwrap_err(),
        Exhausted::TooLarge { kind: InputTokensPerMinute, cost: 1001, limit: 1000 }
    );
    let _ = send(&budget, 1000).now_or_never().expect("it just fits");
}

pub(in crate::limits) async fn send_many(
    budget: &Arc<LocalBudget>,
    requests: u64,
) -> Result<Sent, Exhausted> {
    let cost = Cost::of(requests, 1);
    let reservation = Arc::clone(budget).reserve(Line::Queue, cost, far_deadline()).await;
    reservation.map(Reservation::start)
}

#[tokio::test(start_paused = true)]
async fn a_call_of_several_requests_takes_as_many_of_the_quotas() {
    let budget = budget(per_minute(100, 1000).with(RequestsPerDay, 250));
    let took = seconds(async {
        let _ = send_many(&budget, 100).await.unwrap();
        let _ = send_many(&budget, 100).await.unwrap();
    });
    let took = took.await;
    assert!(close(took, 60.3), "a whole minute's quota each: {took}");
    let usage = budget.usage_now();
    assert_eq!(usage[RequestsPerMinute].used, 100);
    assert_eq!(usage[RequestsPerDay].used, 200);
    let refused = send_many(&budget, 51).await.unwrap_err();
    assert!(matches!(refused, Exhausted::DayExhausted { .. }), "{refused:?}");
    send_many(&budget, 50).await.unwrap().take_back();
    assert_eq!(budget.usage_now()[RequestsPerDay].used, 200, "all of it is given back");
}

#[tokio::test(start_paused = true)]
async fn a_call_of_more_requests_than_a_whole_window_has_is_refused_at_once() {
    for (quotas, kind) in [(requests(10), RequestsPerMinute), (per_day(10), RequestsPerDay)] {
        let budget = budget(quotas);
        let refused = send_many(&budget, 11).now_or_never().expect("it does not wait");
        let expected = Exhausted::TooLarge { kind, cost: 11, limit: 10 };
        assert_eq!(refused.unwrap_err(), expected);
        let _ = send_many(&budget, 10).now_or_never().expect("it just fits").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_per_day_count_what_calls_cost() {
    let budget = budget(Quotas::default().with(InputTokensPerDay, 1000));
    send(&budget, 600).await.settle(500);
    assert_eq!(budget.usage_now()[InputTokensPerDay].used, 500);
    let refused = reserve_now(&budget, Cost::one(501)).unwrap_err();
    let kind = Some(InputTokensPerDay);
    assert!(
        matches!(refused, Exhausted::DayExhausted { kind: of, .. } if of == kind),
        "{refused:?}"
    );
    send(&budget, 500).await.take_back();
    assert_eq!(budget.usage_now()[InputTokensPerDay].used, 500, "a refused call does not count");
    let too_large = reserve_now(&budget, Cost::one(1001)).unwrap_err();
    let expected = Exhausted::TooLarge { kind: InputTokensPerDay, cost: 1001, limit: 1000 };
    assert_eq!(too_large, expected);
}

#[tokio::test(start_paused = true)]
async fn images_per_minute_bound_only_calls_that_generate_images() {
    let budget = budget(Quotas::default().with(ImagesPerMinute, 4));
    let images = |count| Cost::one(1).with(Resource::Images, count);
    let four = Arc::clone(&budget).reserve(Line::Queue, images(4), far_deadline()).await.unwrap();
    let _ = four.start();
    let late = reserve_now(&budget, images(1)).unwrap_err();
    assert!(matches!(late, Exhausted::NotBefore { kind: Some(ImagesPerMinute), .. }), "{late:?}");
    assert!(reserve_now(&budget, Cost::one(1)).unwrap().is_some(), "a text costs no image");
    budget.set(Quotas::default().with(ImagesPerMinute, 0));
    assert_eq!(reserve_now(&budget, images(1)).unwrap_err(), no_quota(ImagesPerMinute));
    assert!(reserve_now(&budget, Cost::one(1)).unwrap().is_some());
}

fn no_quota(kind: QuotaKind) -> Exhausted {
    Exhausted::NoQuota { kind: Some(kind) }
}

/// Reserves if there is room at once.
pub(in crate::limits) fn reserve_now(
    budget: &Arc<LocalBudget>,
    cost: Cost,
) -> Result<Option<Reservation>, Exhausted> {
    match Arc::clone(budget).try_reserve(cost, Instant::now()) {
        TryReserve::Ready(answer) => answer.map_err(|reason| match reason {
            NotReserved::Exhausted(reason) => reason,
            NotReserved::StoreUnavailable(reason) => panic!("{reason}"),
        }),
        TryReserve::Pending(_) => panic!("it is kept here"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_zero_admits_nothing() {
    for (quotas, kind) in [
        (requests(0), RequestsPerMinute),
        (tokens(0), InputTokensPerMinute),
        (per_day(0), RequestsPerDay),
    ] {
        let budget = budget(quotas);
        assert_eq!(
            Arc::clone(&budget)
                .reserve(Line::Queue, Cost::one(1), far_deadline())
                .await
                .unwrap_err(),
            no_quota(kind)
        );
        assert_eq!(budget.usage_now().next_free_in, None);
        budget.set(Quotas::default());
        assert!(is_free(&budget, 1).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_all_calls_and_keeps_their_order() {
    let budget = budget(requests(6000));
    let start = Instant::now();
    budget.pause_until(start + 20 * SECOND, None);
    budget.pause_until(start + 10 * SECOND, None);
    assert_eq!(budget.usage_now().paused_for, Some(20 * SECOND));
    assert_eq!(
        refusal(&budget, 1).await,
        Exhausted::NotBefore { kind: None, retry_after: 20 * SECOND }
    );

    let order = Mutex::new(Vec::new());
    let call = async |name| {
        let _ = send(&budget, 1).await;
        order.lock().unwrap().push((name, start.elapsed().as_secs()));
    };
    join_all(["a", "b", "c"].map(call)).await;
    assert_eq!(*order.lock().unwrap(), [("a", 20), ("b", 20), ("c", 20)]);
    assert_eq!(budget.usage_now().paused_for, None);
}

#[tokio::test(start_paused = true)]
async fn a_pause_past_its_deadline_refuses_the_first_in_the_queue() {
    let budget = budget(requests(60));
    let _ = send(&budget, 1).await;
    let mut waiting = Box::pin(Arc::clone(&budget).reserve(
        Line::Queue,
        Cost::one(1),
        Instant::now() + 10 * SECOND,
    ));
    assert!((&mut waiting).now_or_never().is_none());
    budget.pause_until(Instant::now() + MINUTE, None);
    let refused = waiting.now_or_never().expect("it is hopeless now").unwrap_err();
    assert_eq!(refused, Exhausted::NotBefore { kind: None, retry_after: MINUTE });
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_does_not_count() {
    let budget = budget(per_minute(1, 100).with(RequestsPerDay, 10));
    send(&budget, 100).await.take_back();
    let usage = budget.usage_now();
    assert_eq!(usage[RequestsPerMinute].used, 0);
    assert_eq!(usage[InputTokensPerMinute].used, 0);
    assert_eq!(usage[RequestsPerDay].used, 0);
    advance(SECOND).await;
    assert!(is_free(&budget, 100).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cost_less_makes_room_and_one_that_cost_more_takes_it() {
    let budget = budget(tokens(1000));
    send(&budget, 1000).await.settle(400);
    assert_eq!(budget.usage_now()[InputTokensPerMinute].used, 400);
    let took = seconds(send(&budget, 600)).await;
    assert!(close(took, 0.4 * 60.3), "the debt is paid at the quota's rate: {took}");

    advance(2 * MINUTE).await;
    send(&budget, 100).await.settle(900);
    assert_eq!(budget.usage_now()[InputTokensPerMinute].used, 900);
    let took = seconds(send(&budget, 200)).await;
    assert!(close(took, 60.3), "{took}");
}

#[tokio::test(start_paused = true)]
async fn tokens_given_back_late_make_no_burst() {
    let budget = budget(tokens(6000));
    let first = send(&budget, 1000).await;
    advance(11 * SECOND).await;
    let _ = send(&budget, 1000).await;
    // When the second was sent, the first had drained, whatever it had cost.
    first.settle(1);
    let took = seconds(send(&budget, 1000)).await;
    assert!(close(took, 10.05), "{took}");
}

#[tokio::test(start_paused = true)]
async fn an_estimate_far_too_low_blocks_the_quota_for_at_most_a_minute() {
    let budget = budget(tokens(1000));
    send(&budget, 1).await.settle(u64::MAX);
    let took = seconds(send(&budget, 1000)).await;
    assert!(close(took, 60.3), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_raised_quota_wakes_waiting_calls() {
    let budget = budget(requests(1));
    let _ = send(&budget, 1).await;
    let mut waiting = Box::pin(send(&budget, 1));
    assert!((&mut waiting).now_or_never().is_none());
    advance(SECOND).await;
    budget.set(requests(600));
    assert!(waiting.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_quota_learned_later_counts_what_was_sent_before() {
    let budget = budget(Quotas::default());
    for _ in 0..10 {
        let _ = send(&budget, 10).await;
    }
    advance(20 * SECOND).await;
    budget.set(requests(10));
    let took = seconds(send(&budget, 10)).await;
    assert!(close(took, 40.3), "all ten count for the rest of their minute: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_lowered_quota_refuses_calls_that_wait_in_vain() {
    let budget = budget(tokens(1000));
    let _ = send(&budget, 900).await;
    let mut waiting =
        Box::pin(Arc::clone(&budget).reserve(Line::Queue, Cost::one(800), far_deadline()));
    assert!((&mut waiting).now_or_never().is_none());
    budget.set(tokens(500));
    let refused = waiting.now_or_never().expect("it is hopeless now").unwrap_err();
    assert_eq!(refused, Exhausted::TooLarge { kind: InputTokensPerMinute, cost: 800, limit: 500 });
}

#[tokio::test(start_paused = true)]
async fn the_minute_can_be_shortened() {
    let budget = LocalBudget::new(requests(60), MINUTE / 60);
    let _ = send(&budget, 1).await;
    let took = seconds(send(&budget, 1)).await;
    assert!((0.01725..0.02).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_takes_little_memory() {
    let budget = budget(requests(1));
    let entry = QueueEntry::join(budget, Line::Queue, Cost::one(1), far_deadline()).unwrap();
    let size = size_of_val(&entry.wait(far_deadline()));
    assert!(size < 500, "{size} bytes");
}

#[tokio::test(start_paused = true)]
async fn the_money_of_a_long_call_counts_from_its_end() {
    let ten_minutes = 10 * MINUTE;
    let quotas = Quotas::default().with(SpendPerTenMinutes, 10_000_000);
    for lasts in [SECOND, 20 * SECOND, 2 * ten_minutes] {
        let budget = LocalBudget::new(quotas, ten_minutes);
        let reserved =
            Arc::clone(&budget).reserve(Line::Queue, Cost::of_spend(1_000), far_deadline());
        let sent = reserved.await.unwrap().start();
        let used = || budget.usage_now()[SpendPerTenMinutes].used;
        advance(lasts).await;
        sent.settle_spend(5_000);
        assert_eq!(used(), 5_000, "{lasts:?}");
        let from = if lasts > SECOND { Duration::ZERO } else { lasts };
        advance(ten_minutes - from - SECOND).await;
        assert_eq!(used(), 5_000, "{lasts:?}");
        advance(30 * SECOND).await;
        assert_eq!(used(), 0, "{lasts:?}");
    }
}
