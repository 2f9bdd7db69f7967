//! Random calls compared with the model.

use std::cell::RefCell;

use futures_util::future::join;
use proptest::prelude::*;

use super::model::{Event, Log, models};
use super::*;

/// The course of one call, in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Call {
    arrives: u64,
    pub(super) cost: Cost,
    /// How long it waits before it is cancelled.
    cancelled_after: u64,
    /// Its deadline, from its arrival.
    deadline: u64,
    /// How long its reservation is held.
    held: u64,
    leaves: bool,
    /// How long it runs after it is sent.
    takes: u64,
    end: End,
    line: Line,
}

/// Ten hours in milliseconds: longer than anything waits.
const NEVER: u64 = 36_000_000;

#[derive(Debug, Clone, Copy)]
enum End {
    /// Settled at this percentage of the estimate.
    Settled(u64),
    Unsettled,
    Refused,
}

/// Runs the calls, and changes the quotas at the given milliseconds.
async fn run(budget: &Arc<LocalBudget>, calls: &[Call], changes: &[(u64, Quotas)]) -> Log {
    let start = Instant::now();
    let log = RefCell::new(Log::new());
    let record = |call: usize, event: Event| {
        log.borrow_mut().push((start.elapsed().as_secs_f64(), call, event));
    };
    let live = async |number: usize, call: &Call| {
        sleep(Duration::from_millis(call.arrives)).await;
        record(number, Event::Arrived);
        let deadline = Instant::now() + Duration::from_millis(call.deadline);
        let reserving = Arc::clone(budget).reserve(call.line, call.cost, deadline);
        let reservation =
            match timeout(Duration::from_millis(call.cancelled_after), reserving).await {
                Ok(Ok(reservation)) => reservation,
                Ok(Err(exhausted)) => return record(number, Event::Exhausted(exhausted)),
                Err(_) => return record(number, Event::Cancelled),
            };
        record(number, Event::Reserved);
        if call.held > 0 {
            sleep(Duration::from_millis(call.held)).await;
        }
        if !call.leaves {
            drop(reservation);
            return record(number, Event::GaveBack);
        }
        let sent = reservation.start();
        record(number, Event::Left);
        sleep(Duration::from_millis(call.takes)).await;
        match call.end {
            End::Settled(hundredths) => {
                let actual = call.cost[Resource::InputTokens] * hundredths / 100;
                sent.settle(actual);
                record(number, Event::Costs(actual));
            }
            End::Unsettled => drop(sent),
            End::Refused => {
                sent.take_back();
                record(number, Event::Refused);
            }
        }
    };
    let change = async {
        for (at, quotas) in changes {
            tokio::time::sleep_until(start + Duration::from_millis(*at)).await;
            budget.set(*quotas);
            record(usize::MAX, Event::Set(*quotas));
        }
    };
    let lives = join_all(calls.iter().enumerate().map(|(number, call)| live(number, call)));
    join(lives, change).await;
    log.into_inner()
}

/// Runs a future on its own paused clock.
fn on_paused_clock<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("nothing else is needed for it").block_on(future)
}

/// Mostly one request; never more than any quota below allows.
fn cost() -> impl Strategy<Value = Cost> {
    let requests = prop_oneof![6 => Just(1_u64), 1 => 2..20_u64];
    let tokens = prop_oneof![4 => 1..400_u64, 1 => 400..2000_u64];
    (requests, tokens).prop_map(|(requests, tokens)| Cost::of(requests, tokens))
}

fn call() -> impl Strategy<Value = Call> {
    let end = prop_oneof![
        4 => (0..=100_u64).prop_map(End::Settled),
        1 => Just(End::Unsettled),
        1 => Just(End::Refused),
    ];
    (
        (0..120_000_u64, cost()),
        prop_oneof![3 => Just(NEVER), 1 => 0..40_000_u64],
        prop_oneof![3 => Just(NEVER), 1 => 0..60_000_u64],
        (prop_oneof![4 => Just(0_u64), 1 => 1..8000_u64], prop::bool::weighted(0.85)),
        (0..70_000_u64, end),
    )
        .prop_map(
            |((arrives, cost), cancelled_after, deadline, (held, leaves), (takes, end))| Call {
                arrives,
                cost,
                cancelled_after,
                deadline,
                held,
                leaves,
                takes,
                end,
                line: Line::Queue,
            },
        )
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    prop::collection::vec(call(), 1..80)
}

/// Calls of all lines: some yield once, some return.
fn calls_of_all_lines() -> impl Strategy<Value = Vec<Call>> {
    let line =
        prop_oneof![2 => Just(Line::Queue), 2 => Just(Line::YieldOnce), 1 => Just(Line::Returning)];
    let call = (call(), line).prop_map(|(call, line)| Call { line, ..call });
    prop::collection::vec(call, 1..80)
}

fn quotas() -> impl Strategy<Value = Quotas> {
    let requests = prop_oneof![Just(None), (20..300_u64).prop_map(Some)];
    let tokens = prop_oneof![Just(None), (2000..20_000_u64).prop_map(Some)];
    (requests, tokens).prop_map(|(requests_per_minute, input_tokens_per_minute)| {
        Quotas::default()
            .with(RequestsPerMinute, requests_per_minute)
            .with(InputTokensPerMinute, input_tokens_per_minute)
    })
}

/// First come, first served: no call reserves before an earlier one is done.
fn assert_in_order(log: &Log) {
    let mut queue = Vec::new();
    for (_, call, event) in log {
        match event {
            Event::Arrived => queue.push(call),
            Event::Reserved => assert_eq!(queue.remove(0), call),
            Event::Cancelled | Event::Exhausted(_) => queue.retain(|waiting| *waiting != call),
            _ => {}
        }
    }
    assert_eq!(queue, Vec::<&usize>::new(), "somebody waits for ever");
}

/// Whenever something is reserved, everything that counts fits: reservations, and calls sent within
/// the minute.
fn assert_within_limits(log: &Log, calls: &[Call], mut quotas: Quotas) {
    for (index, (now, _, event)) in log.iter().enumerate() {
        match event {
            Event::Set(changed) => quotas = *changed,
            Event::Reserved => {
                for (model, limit) in models(log, index + 1, calls, quotas) {
                    let counted = model.unsent() + model.sent_within(60.0, *now);
                    assert!(counted <= limit, "{counted} of {limit} at {now}");
                }
            }
            _ => {}
        }
    }
}

/// No minute that begins with a call holds more than the limit.
fn assert_no_window_exceeds(log: &Log, calls: &[Call], quotas: Quotas) {
    for (model, limit) in models(log, log.len(), calls, quotas) {
        let sent = model.sent();
        for (start, _) in &sent {
            let within = sent.iter().filter(|(at, _)| (*start..start + 60.0).contains(at));
            let sum: u64 = within.map(|(_, cost)| cost).sum();
            assert!(sum <= limit, "{sum} of {limit} in the minute from {start}");
        }
    }
}

/// Each call that reserved could do so then, and could not earlier while it was first in the queue.
fn assert_as_soon_as_it_may(log: &Log, calls: &[Call], quotas: Quotas) {
    let has_room = |index: usize, call: usize, now: f64| {
        models(log, index, calls, quotas)
            .all(|(model, limit)| model.has_room(limit, model.cost_of(call), now))
    };
    for (index, (reserved_at, call, event)) in log.iter().enumerate() {
        if *event != Event::Reserved {
            continue;
        }
        assert!(has_room(index, *call, *reserved_at), "call {call} went too soon");
        for before in since_it_was_first(log, index, *call)..=index {
            let moment = log[before].0 - TOLERANCE.as_secs_f64();
            if moment >= log[before - 1].0 {
                assert!(!has_room(before, *call, moment), "call {call} could go at {moment}");
            }
        }
    }
}

/// The length of the log when all earlier calls had left the queue.
fn since_it_was_first(log: &Log, reserved: usize, call: usize) -> usize {
    let arrived = log.iter().position(|of| of.1 == call && of.2 == Event::Arrived).unwrap();
    let mut ahead: Vec<_> = Vec::new();
    let mut first_since = arrived + 1;
    for (index, (_, other, event)) in log[..reserved].iter().enumerate() {
        match event {
            Event::Arrived if index < arrived => ahead.push(other),
            Event::Reserved | Event::Cancelled | Event::Exhausted(_) if ahead.contains(&other) => {
                ahead.retain(|waiting| *waiting != other);
                first_since = first_since.max(index + 1);
            }
            _ => {}
        }
    }
    first_since
}

/// A minute and its margin after the last call, nothing is spent.
async fn assert_all_is_free(budget: &Arc<LocalBudget>) {
    let usage = budget.usage_now();
    let reserved = [usage[RequestsPerMinute].reserved, usage[InputTokensPerMinute].reserved];
    assert_eq!((reserved, usage.waiting), ([0, 0], 0));
    sleep(61 * SECOND).await;
    let usage = budget.usage_now();
    assert_eq!((usage[RequestsPerMinute].used, usage[InputTokensPerMinute].used), (0, 0));
    let whole = usage[InputTokensPerMinute].limit.unwrap_or(1);
    assert!(is_free(budget, whole).await, "a whole minute's tokens can be spent");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn limits_hold_in_any_window_and_calls_start_in_order_as_early_as_possible(
        calls in calls(),
        quotas in quotas(),
    ) {
        on_paused_clock(async {
            let budget = budget(quotas);
            let log = run(&budget, &calls, &[]).await;
            assert_in_order(&log);
            assert_within_limits(&log, &calls, quotas);
            assert_no_window_exceeds(&log, &calls, quotas);
            assert_as_soon_as_it_may(&log, &calls, quotas);
            assert_all_is_free(&budget).await;
        });
    }

    #[test]
    fn limits_hold_while_they_change(
        calls in calls(),
        first in quotas(),
        mut changes in prop::collection::vec((0..150_000_u64, quotas()), 1..6),
    ) {
        changes.sort_by_key(|change| change.0);
        on_paused_clock(async {
            let budget = budget(first);
            let log = run(&budget, &calls, &changes).await;
            assert_in_order(&log);
            assert_within_limits(&log, &calls, first);
            assert_all_is_free(&budget).await;
        });
    }

    #[test]
    fn limits_hold_and_no_call_is_lost_in_any_order(
        calls in calls_of_all_lines(),
        quotas in quotas(),
    ) {
        on_paused_clock(async {
            let budget = budget(quotas);
            let log = run(&budget, &calls, &[]).await;
            assert_within_limits(&log, &calls, quotas);
            assert_no_window_exceeds(&log, &calls, quotas);
            assert_all_is_free(&budget).await;
            let forgotten = log.iter().find(|(_, call, event)| {
                let out_of_time = matches!(event, Event::Exhausted(Exhausted::NotBefore { .. }));
                out_of_time && calls[*call].deadline == NEVER
            });
            assert_eq!(forgotten, None);
        });
    }

    /// Two runs differ only in one call's deadline. The run in which the call waits shows whether the
    /// refusal in the other run was right.
    #[test]
    fn a_call_refused_at_once_could_not_have_been_sent_in_time(
        mut calls in calls(),
        which in any::<prop::sample::Index>(),
        time_limit in 0..60_000_u64,
        quotas in quotas(),
    ) {
        for call in &mut calls {
            // Anything given back or given up could help the call.
            (call.cancelled_after, call.deadline, call.held) = (NEVER, NEVER, 0);
            (call.leaves, call.end) = (true, End::Unsettled);
        }
        let which = which.index(calls.len());
        let mut outcome = |deadline: u64| {
            calls[which].deadline = deadline;
            let log = on_paused_clock(async { run(&budget(quotas), &calls, &[]).await });
            let mut own = log.into_iter().filter(|of| of.1 == which).map(|(at, _, event)| (at, event));
            let arrived = own.next().expect("it arrives").0;
            let (at, event) = own.next().expect("it is let in or refused");
            (at - arrived, event)
        };
        let (0.0, Event::Exhausted(Exhausted::NotBefore { retry_after, .. })) = outcome(time_limit) else {
            return Ok(());
        };
        let (waited, _) = outcome(NEVER);
        let (time_limit, retry_after) = (time_limit as f64 / 1000.0, retry_after.as_secs_f64());
        prop_assert!(waited >= time_limit, "it went after {waited} s, before {time_limit} s");
        prop_assert!(waited >= retry_after - 1e-6, "{waited} s instead of {retry_after} s");
    }
}
