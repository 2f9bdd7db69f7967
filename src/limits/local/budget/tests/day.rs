//! Requests per day.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::SignedDuration;

use super::*;
use crate::pacific::WallClock;

fn budget_at(quotas: Quotas, wall: &str) -> Arc<LocalBudget> {
    let wall = wall.parse().expect("a valid timestamp");
    starting_at(quotas, wall)
}

async fn day_exhausted(budget: &Arc<LocalBudget>) -> Duration {
    match Arc::clone(budget).reserve(Line::Queue, Cost::one(1), far_deadline()).now_or_never() {
        Some(Err(Exhausted::DayExhausted { retry_after, .. })) => retry_after,
        other => panic!("the day is not used up: {other:?}"),
    }
}

fn refuse_for_the_day(budget: &Arc<LocalBudget>, sent: Sent) {
    budget.close_day(sent.at());
    sent.take_back();
}

#[tokio::test(start_paused = true)]
async fn the_day_begins_at_pacific_midnight_even_when_clocks_change() {
    // A minute before midnight, and the hours of the day that follows.
    for (wall, hours) in [
        ("2026-03-06T23:59:00-08:00", 24),
        ("2026-03-07T23:59:00-08:00", 23),
        ("2026-03-08T23:59:00-07:00", 24),
        ("2026-10-30T23:59:00-07:00", 24),
        ("2026-10-31T23:59:00-07:00", 25),
        ("2026-11-01T23:59:00-08:00", 24),
    ] {
        let budget = budget_at(per_day(2), wall);
        let _ = send(&budget, 1).await;
        assert!(is_free(&budget, 1).await, "one of two is used");
        let _ = send(&budget, 1).await;
        assert_eq!(day_exhausted(&budget).await, MINUTE, "{wall}");

        advance(MINUTE).await;
        let _ = send(&budget, 1).await;
        let _ = send(&budget, 1).await;
        assert_eq!(day_exhausted(&budget).await, hours * HOUR, "{wall}");
        advance(hours * HOUR - SECOND).await;
        assert_eq!(day_exhausted(&budget).await, SECOND, "{wall}");
        advance(SECOND).await;
        assert!(is_free(&budget, 1).await, "{wall}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_that_gemini_calls_used_up_refuses_all_calls_at_once() {
    let budget = budget_at(requests(60), "2026-07-01T22:00:00-07:00");
    let sent = send(&budget, 1).await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move {
                Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), far_deadline()).await.err()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(budget.usage_now().waiting, 3);

    refuse_for_the_day(&budget, sent);
    let two_hours = Exhausted::DayExhausted { kind: None, retry_after: 2 * HOUR };
    for refused in join_all(waiting).await {
        assert_eq!(refused.unwrap(), Some(two_hours));
    }
    assert_eq!(budget.usage_now().next_free_in, Some(2 * HOUR));
    advance(2 * HOUR).await;
    assert!(is_free(&budget, 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_from_yesterday_does_not_close_today() {
    let budget = budget_at(Quotas::default(), "2026-07-01T23:59:59-07:00");
    let yesterday = send(&budget, 1).await;
    advance(2 * SECOND).await;
    let early = send(&budget, 1).await;
    refuse_for_the_day(&budget, yesterday);
    assert!(is_free(&budget, 1).await, "it left yesterday");
    assert_eq!(budget.usage_now()[RequestsPerDay].used, 1);

    // A second after midnight here may have been a second before midnight at Google.
    refuse_for_the_day(&budget, early);
    assert_eq!(day_exhausted(&budget).await, 4 * SECOND);
    advance(4 * SECOND).await;
    let today = send(&budget, 1).await;
    advance(2 * SECOND).await;
    refuse_for_the_day(&budget, today);
    assert_eq!(day_exhausted(&budget).await, 24 * HOUR - 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_count_against_the_day() {
    let budget = budget_at(requests(1).with(RequestsPerDay, 2), "2026-07-01T20:00Z");
    let _ = send(&budget, 1).await;
    let mut second = Box::pin(reserve(&budget, 1));
    assert!((&mut second).now_or_never().is_none());
    let _ = day_exhausted(&budget).await;
    drop(second);
    assert!(timeout(2 * MINUTE, reserve(&budget, 1)).await.is_ok());
}

/// A wall clock that can be set.
#[derive(Debug)]
struct SettableClock {
    calendar: Calendar,
    /// The seconds by which it was set forward.
    ahead: AtomicI64,
}

impl SettableClock {
    fn set_forward(&self, hours: i64) {
        self.ahead.fetch_add(hours * 3600, Ordering::Relaxed);
    }
}

impl WallClock for SettableClock {
    fn at(&self, now: Instant) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        self.calendar.wall_at(now).checked_add(ahead).unwrap()
    }
}

fn with_settable_clock(quotas: Quotas, wall: &str) -> (Arc<LocalBudget>, Arc<SettableClock>) {
    let calendar = Calendar { wall: wall.parse().unwrap(), instant: Instant::now() };
    let clock = Arc::new(SettableClock { calendar, ahead: AtomicI64::new(0) });
    let shared: Arc<dyn WallClock> = Arc::<SettableClock>::clone(&clock);
    (with_clock(quotas, shared), clock)
}

#[tokio::test(start_paused = true)]
async fn a_used_up_day_ends_when_the_machine_wakes_on_the_next_day() {
    let (budget, clock) = with_settable_clock(per_day(1), "2026-07-01T20:00:00-07:00");
    let sent = send(&budget, 1).await;
    refuse_for_the_day(&budget, sent);
    assert_eq!(day_exhausted(&budget).await, 4 * HOUR);
    // The machine sleeps for five hours; tokio's clock stops.
    clock.set_forward(5);
    advance(SECOND).await;
    assert!(is_free(&budget, 1).await, "it is one o'clock");
    assert_eq!(budget.usage_now()[RequestsPerDay].used, 0);
    let _ = send(&budget, 1).await;
    let left = day_exhausted(&budget).await;
    assert_eq!(left, 23 * HOUR - SECOND, "the new day ends at midnight");
    clock.set_forward(72);
    advance(SECOND).await;
    assert!(is_free(&budget, 1).await);
}

#[tokio::test(start_paused = true)]
async fn calls_sent_before_the_machine_slept_do_not_count_in_the_new_day() {
    let (budget, clock) = with_settable_clock(per_day(5), "2026-07-01T20:00:00-07:00");
    let before = send(&budget, 1).await;
    clock.set_forward(5);
    advance(SECOND).await;
    let _ = send(&budget, 1).await;
    before.take_back();
    assert_eq!(budget.usage_now()[RequestsPerDay].used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_lengthens_the_day_by_no_more_than_the_step() {
    let (budget, clock) = with_settable_clock(per_day(1), "2026-07-01T20:00:00-07:00");
    let sent = send(&budget, 1).await;
    budget.close_day(sent.at());
    clock.set_forward(-3);
    advance(SECOND).await;
    assert_eq!(day_exhausted(&budget).await, 7 * HOUR - SECOND, "what was sent counts on");
    // It had been two days ahead.
    clock.set_forward(-48);
    advance(SECOND).await;
    assert_eq!(day_exhausted(&budget).await, 7 * HOUR - 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn learned_quotas_are_dropped_when_the_day_ends() {
    let planned = per_minute(600, 1000);
    let budget = budget_at(planned, "2026-07-01T23:00:00-07:00");
    budget.learn(requests(2));
    let limit = || budget.usage_now()[RequestsPerMinute].limit;
    advance(HOUR - SECOND).await;
    assert_eq!(limit(), Some(2));
    assert_eq!(budget.usage_now()[InputTokensPerMinute].limit, Some(1000));
    advance(SECOND).await;
    assert_eq!(limit(), Some(600), "it may have been raised since");
    budget.learn(requests(2));
    assert_eq!(limit(), Some(2), "Gemini says it again");
    budget.forget();
    assert_eq!(limit(), Some(600));
}
