//! Requests per day.

use super::*;

fn budget_at(quotas: Quotas, wall: &str) -> Arc<LocalBudget> {
    LocalBudget::starting_at(quotas, MINUTE, wall.parse().expect("a valid timestamp"))
}

async fn day_exhausted(budget: &Arc<LocalBudget>) -> Duration {
    match Arc::clone(budget).reserve(Line::Queue, Cost::one(1), patient()).now_or_never() {
        Some(Err(Exhausted::DayExhausted { retry_after })) => retry_after,
        other => panic!("the day is not used up: {other:?}"),
    }
}

fn refuse_for_the_day(budget: &Arc<LocalBudget>, sent: Sent) {
    budget.close_day(sent.left_at());
    sent.refused();
}

#[tokio::test(start_paused = true)]
async fn the_day_begins_at_midnight_pacific_also_when_clocks_change() {
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
async fn a_day_that_gemini_calls_used_up_is_over_for_all_at_once() {
    let budget = budget_at(requests(60), "2026-07-01T22:00:00-07:00");
    let sent = send(&budget, 1).await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move {
                Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), patient()).await.err()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(budget.usage_now().waiting, 3);

    refuse_for_the_day(&budget, sent);
    let two_hours = Exhausted::DayExhausted { retry_after: 2 * HOUR };
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
    assert_eq!(budget.usage_now().requests_per_day.used, 1);

    // A second past midnight here may have been a second before it there.
    refuse_for_the_day(&budget, early);
    assert_eq!(day_exhausted(&budget).await, 4 * SECOND);
    advance(4 * SECOND).await;
    let today = send(&budget, 1).await;
    advance(2 * SECOND).await;
    refuse_for_the_day(&budget, today);
    assert_eq!(day_exhausted(&budget).await, 24 * HOUR - 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_count_against_the_day() {
    let budget =
        budget_at(Quotas { requests_per_day: Some(2), ..requests(1) }, "2026-07-01T20:00Z");
    let _ = send(&budget, 1).await;
    let mut second = Box::pin(reserve(&budget, 1));
    assert!((&mut second).now_or_never().is_none());
    let _ = day_exhausted(&budget).await;
    drop(second);
    assert!(timeout(2 * MINUTE, reserve(&budget, 1)).await.is_ok());
}
