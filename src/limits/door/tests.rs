use crate::limits::quota::QuotaKind::*;
use std::task::{Context, Wake};

use futures_util::FutureExt;
use tokio::time::advance;

use super::*;
use crate::limits::breakers::PROBE_INTERVAL;
use crate::limits::budget::BudgetUsage;
use crate::limits::{Acquire as _, Cost, Limit, Limits, NamedBy, Scope, SemaphoreId};

const SECOND: Duration = Duration::from_secs(1);

fn door(limit: usize, max_waiting: usize) -> Arc<Door> {
    Door::new(limit, max_waiting, QuotaPlan::default())
}

/// A door that lets one call a second of each account go.
fn one_a_second(limit: usize) -> Arc<Door> {
    let mut plan = QuotaPlan::default();
    let limits = Limits::default().with(RequestsPerMinute, Limit::AtMost(60));
    plan.add_limits(Scope { label: None, model: None }, limits).unwrap();
    Door::new(limit, 10, plan)
}

fn account(door: &Door, model: &str) -> Arc<Account> {
    door.accounts().of(&[7; 32], &model.into())
}

/// What is spent of a budget of this process.
fn usage(account: &Account) -> BudgetUsage {
    account.budget().usage().now_or_never().expect("at once").unwrap()
}

fn lane(door: &Arc<Door>, model: &str) -> Arc<Lane> {
    Arc::new(Turnstile::new(Arc::clone(door)).lane(account(door, model), None))
}

fn named(door: &Door, limit: usize) -> Arc<dyn Semaphore> {
    let registered = door.store().register(SemaphoreId::parse("images").unwrap(), limit);
    registered.now_or_never().expect("at once").unwrap().0
}

fn deadline() -> Instant {
    Instant::now() + 600 * SECOND
}

async fn admit(lane: &Lane) -> Result<Admission, Refused> {
    lane.turn().await.admit(Cost::one(1), deadline()).await
}

/// Lets a call in that has not to wait, and sends it.
fn send(lane: &Lane) -> Underway {
    admit(lane).now_or_never().expect("nothing to wait for").unwrap().depart().unwrap()
}

#[tokio::test]
async fn a_task_that_panics_gives_everything_back() {
    let door = door(1, 0);
    let semaphore = named(&door, 1);
    let account = account(&door, "a");
    let lane =
        Turnstile::new(Arc::clone(&door)).lane(Arc::clone(&account), Some(Arc::clone(&semaphore)));
    let admission = admit(&lane).await.unwrap();
    let reserved = || usage(&account)[RequestsPerMinute].reserved;
    assert_eq!((door.occupancy().in_flight, semaphore.standing().in_use, reserved()), (1, 1, 1));
    let task = tokio::spawn(async move {
        let _admission = admission;
        panic!("with the admission in its hands");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!((door.occupancy().in_flight, door.occupancy().available), (0, 1));
    assert_eq!(
        (semaphore.standing().in_use, semaphore.standing().available(), reserved()),
        (0, 1, 0)
    );
    assert_eq!(account.concurrency().semaphore().standing().in_use, 0);
}

/// The lock that a batch's items pass through one by one is not poisoned by one of them.
#[tokio::test]
async fn a_task_that_panics_in_the_queue_leaves_it_to_the_others() {
    let door = door(1, 10);
    let lane = lane(&door, "a");
    let held = admit(&lane).await.unwrap();
    let waits = Arc::clone(&lane);
    let task = tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = admit(&waits) => {}
            () = std::future::ready(()) => panic!("while it waits"),
        }
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(door.occupancy().waiting, 0);
    drop(held);
    assert!(admit(&lane).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_waits_for_its_quota_holds_up_no_other_of_its_request() {
    let door = one_a_second(10);
    let place = Turnstile::new(Arc::clone(&door));
    let slow = place.lane(account(&door, "slow"), None);
    let other = place.lane(account(&door, "other"), None);
    let _sent = send(&slow);
    let mut waits = Box::pin(admit(&slow));
    assert!((&mut waits).now_or_never().is_none());
    let _other = send(&other);
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_in_several_lanes_is_one_in_the_queue() {
    let door = one_a_second(10);
    let place = Turnstile::new(Arc::clone(&door));
    let lanes = ["a", "b", "c"].map(|model| place.lane(account(&door, model), None));
    let _sent = lanes.each_ref().map(send);
    let mut waits: Vec<_> = lanes.iter().map(|lane| Box::pin(admit(lane))).collect();
    for wait in &mut waits {
        assert!(wait.now_or_never().is_none());
        assert_eq!(door.occupancy().waiting, 1);
    }
    waits.truncate(1);
    assert_eq!(door.occupancy().waiting, 1);
    waits.clear();
    assert_eq!(door.occupancy().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_refused_in_one_lane_is_refused_in_all() {
    let door = Door::new(1, 0, QuotaPlan::default());
    let held = admit(&lane(&door, "a")).await.unwrap();
    let place = Turnstile::new(Arc::clone(&door));
    let lanes = ["a", "b"].map(|model| place.lane(account(&door, model), None));
    assert_eq!(admit(&lanes[0]).await.err(), Some(Refused::QueueFull));
    drop(held);
    assert_eq!(admit(&lanes[1]).await.err(), Some(Refused::QueueFull), "nothing of it is sent");
    assert_eq!((door.occupancy().in_flight, door.occupancy().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_narrow_semaphore_keep_no_quota_from_others() {
    let door = one_a_second(10);
    let semaphore = named(&door, 1);
    let narrow = || {
        let place = Turnstile::new(Arc::clone(&door));
        place.lane(account(&door, "a"), Some(Arc::clone(&semaphore)))
    };
    let (first, second) = (narrow(), narrow());
    let running = send(&first);
    let mut waits = Box::pin(admit(&second));
    assert!((&mut waits).now_or_never().is_none(), "the quota is used up");
    advance(2 * SECOND).await;
    assert!((&mut waits).now_or_never().is_none(), "the semaphore is taken");
    let _other = send(&lane(&door, "a"));

    drop(running);
    assert!((&mut waits).now_or_never().is_none(), "it waits for the quota again");
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_their_quota_keep_no_semaphore_from_others() {
    let door = one_a_second(10);
    let semaphore = named(&door, 1);
    let narrow = |model: &str| {
        let place = Turnstile::new(Arc::clone(&door));
        place.lane(account(&door, model), Some(Arc::clone(&semaphore)))
    };
    drop(send(&narrow("a")));
    let used_up = narrow("a");
    let mut waits = Box::pin(admit(&used_up));
    assert!((&mut waits).now_or_never().is_none());
    drop(send(&narrow("b")));
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_the_quota_and_then_for_a_semaphore_goes_next() {
    let door = one_a_second(10);
    let semaphore = named(&door, 1);
    let held = semaphore.acquire().await.unwrap();
    let narrow = Turnstile::new(Arc::clone(&door)).lane(account(&door, "a"), Some(semaphore));
    let mut first = Box::pin(admit(&narrow));
    assert!((&mut first).now_or_never().is_none(), "the semaphore is taken");
    let _sent = send(&lane(&door, "a"));
    let behind = lane(&door, "a");
    let mut second = Box::pin(admit(&behind));
    assert!((&mut second).now_or_never().is_none(), "the quota is used up");

    drop(held);
    assert!((&mut first).now_or_never().is_none(), "it waits for the quota, before the other");
    advance(1050 * SECOND / 1000).await;
    assert!((&mut second).now_or_never().is_none());
    let admitted = first.now_or_never().expect("it goes first").unwrap();
    let _sent = admitted.depart().unwrap();
    assert!((&mut second).now_or_never().is_none());
    advance(1050 * SECOND / 1000).await;
    assert!(second.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn one_whose_quota_is_used_up_gives_its_permit_to_another_key() {
    let door = one_a_second(10);
    let semaphore = named(&door, 1);
    let of_key = |key: u8| {
        let account = door.accounts().of(&[key; 32], &"a".into());
        Turnstile::new(Arc::clone(&door)).lane(account, Some(Arc::clone(&semaphore)))
    };
    let held = semaphore.acquire().await.unwrap();
    let (first, second, other) = (of_key(1), of_key(1), of_key(2));
    let mut waits: Vec<_> = [&first, &second, &other].map(|lane| Box::pin(admit(lane))).into();
    assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()), "the permit is taken");
    drop(held);
    let _sent = (&mut waits[0]).now_or_never().expect("it came first").unwrap().depart().unwrap();
    drop(_sent);
    assert!((&mut waits[1]).now_or_never().is_none(), "its quota is used up");
    let mut third = waits.pop().unwrap();
    let sent = (&mut third).now_or_never().expect("its quota is not").unwrap().depart().unwrap();

    // The quota comes back while the other call runs: the first in line takes the next permit.
    let last = of_key(2);
    let mut behind = Box::pin(admit(&last));
    advance(1050 * SECOND / 1000).await;
    assert!((&mut behind).now_or_never().is_none());
    assert!((&mut waits[1]).now_or_never().is_none(), "the permit is taken");
    drop(sent);
    assert!((&mut behind).now_or_never().is_none());
    let admitted = (&mut waits[1]).now_or_never().expect("it had a permit before").unwrap();
    drop(admitted.depart().unwrap());
    assert!(behind.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn those_whose_quota_is_used_up_go_in_the_order_in_which_they_came() {
    let door = one_a_second(20);
    let semaphore = named(&door, 1);
    let held = semaphore.acquire().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let key = if number % 3 == 2 { 2 } else { 1 };
            let account = door.accounts().of(&[key; 32], &"a".into());
            let place = Turnstile::new(Arc::clone(&door));
            let lane = place.lane(account, Some(Arc::clone(&semaphore)));
            let order = Arc::clone(&order);
            tokio::spawn(async move {
                let call = admit(&lane).await.unwrap().depart().unwrap();
                order.lock().unwrap().push(number);
                tokio::time::sleep(SECOND / 2).await;
                drop(call);
            })
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    drop(held);
    for call in calls {
        call.await.unwrap();
    }
    let order = order.lock().unwrap().clone();
    let of_key = |second: bool| {
        let of_key = order.iter().copied().filter(|number| (number % 3 == 2) == second);
        of_key.collect::<Vec<_>>()
    };
    assert_eq!((of_key(false), of_key(true)), (vec![0, 1, 3, 4], vec![2, 5]), "{order:?}");
    assert_eq!(semaphore.standing().in_use, 0);
    assert_eq!(door.occupancy().waiting, 0);
}

/// Others of the account take its quota each time it waits for the permit.
#[tokio::test(start_paused = true)]
async fn one_that_is_overtaken_for_its_quota_keeps_it_the_next_time() {
    let door = one_a_second(10);
    let semaphore = named(&door, 1);
    let held = semaphore.acquire().await.unwrap();
    let lane_of_permit =
        Turnstile::new(Arc::clone(&door)).lane(account(&door, "a"), Some(Arc::clone(&semaphore)));
    let plain = lane(&door, "a");
    let mut waits = Box::pin(admit(&lane_of_permit));
    assert!((&mut waits).now_or_never().is_none());
    drop(send(&plain));
    drop(held);
    assert!((&mut waits).now_or_never().is_none(), "it has the permit and no quota");
    let held = semaphore.acquire().now_or_never().expect("it gave it back").unwrap();
    advance(1050 * SECOND / 1000).await;
    assert!((&mut waits).now_or_never().is_none(), "it has the quota and no permit");
    advance(2 * MOMENT).await;
    assert!((&mut waits).now_or_never().is_none());
    drop(send(&plain));
    drop(held);
    assert!((&mut waits).now_or_never().is_none(), "another has taken the quota");
    let held = semaphore.acquire().now_or_never().expect("it gave it back again").unwrap();
    advance(1050 * SECOND / 1000).await;
    assert!((&mut waits).now_or_never().is_none());
    advance(2 * SECOND).await;
    assert!((&mut waits).now_or_never().is_none());
    let mut other = Box::pin(admit(&plain));
    assert!((&mut other).now_or_never().is_none(), "this time it keeps the quota");
    drop(held);
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn only_a_call_that_costs_too_much_at_the_very_least_is_too_large() {
    let door = door(10, 10);
    let account = account(&door, "a");
    account.correct(Quotas::default().with(InputTokensPerMinute, 1000));
    let admit = async |expected, at_least| {
        let lane = Turnstile::new(Arc::clone(&door)).lane(Arc::clone(&account), None);
        let cost = Estimate { cost: Cost::one(expected), at_least };
        lane.turn().await.admit(cost, deadline()).await
    };
    let refused = admit(5000, 1001).await.err();
    let too_large = Exhausted::TooLarge { kind: InputTokensPerMinute, cost: 5000, limit: 1000 };
    assert_eq!(refused, Some(Refused::Exhausted(too_large)));
    let admitted = admit(5000, 1000).await.unwrap();
    assert_eq!(usage(&account)[InputTokensPerMinute].reserved, 1000, "a whole minute's");
    let mut waits = Box::pin(admit(5000, 1));
    assert!((&mut waits).now_or_never().is_none());
    admitted.depart().unwrap().answered(Some(1));
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_none(), "a large call waits until the bucket is full");
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_when_another_account_is_charged_are_counted_there() {
    let door = one_a_second(10);
    let alias = lane(&door, "latest");
    let sent = send(&alias);
    assert_eq!(sent.account().model(), "latest");
    let mut waits = Box::pin(admit(&alias));
    assert!((&mut waits).now_or_never().is_none());
    door.accounts().alias(sent.account(), "real", NamedBy::Answer);
    // The one that was in flight is refused: that concerns the model that is charged.
    sent.refused(Instant::now() + 2 * SECOND, Quotas::default());
    let real = account(&door, "real");
    assert_eq!(usage(&real).paused_for, Some(2 * SECOND));
    advance(1050 * SECOND / 1000).await;
    assert!((&mut waits).now_or_never().is_none());
    advance(SECOND).await;
    let admitted = waits.now_or_never().expect("the pause is over").unwrap();
    let call = admitted.depart().unwrap();
    assert_eq!(call.account().model(), "latest");
    assert_eq!(usage(&real)[RequestsPerMinute].used, 2);
    assert_eq!(usage(&account(&door, "latest"))[RequestsPerMinute].used, 0);
    call.overloaded();
    assert_eq!(real.concurrency().limit(), 8, "load is the real model's too");
}

#[tokio::test(start_paused = true)]
async fn a_call_for_which_there_is_no_account_is_refused() {
    let door = door(1, 1);
    let none = Account::turned_away(crate::limits::Payer::Key([1; 32]), "a".into());
    let lane = Turnstile::new(Arc::clone(&door)).lane(Arc::new(none), None);
    assert_eq!(admit(&lane).await.err(), Some(Refused::TooManyAccounts));
}

#[tokio::test(start_paused = true)]
async fn one_refusal_of_a_burst_counts_and_the_refused_keep_their_turn() {
    let door = door(50, 100);
    let lane = lane(&door, "a");
    let named = Quotas::default().with(RequestsPerMinute, 60);
    let burst: Vec<_> = (0..50).map(|_| send(&lane)).collect();
    let until = Instant::now() + 20 * SECOND;
    for call in burst {
        call.refused(until, named);
    }
    let usage = usage(&account(&door, "a"));
    assert_eq!(usage.paused_for, Some(20 * SECOND));
    let requests = usage[RequestsPerMinute];
    assert_eq!((requests.limit, requests.used, requests.reserved), (Some(60), 0, 0));
    assert_eq!(account(&door, "a").concurrency().limit(), 50, "a quota says nothing of load");

    let mut waits = Box::pin(admit(&lane));
    assert!((&mut waits).now_or_never().is_none());
    let elsewhere = Turnstile::new(Arc::clone(&door)).lane(account(&door, "b"), None);
    let _other = send(&elsewhere);
    advance(20 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_keeps_back_those_too_who_had_only_the_slot_left_to_wait_for() {
    let door = door(1, 10);
    let lanes = [lane(&door, "a"), lane(&door, "a")];
    let running = send(&lanes[0]);
    let mut waits = Box::pin(admit(&lanes[1]));
    assert!((&mut waits).now_or_never().is_none());
    running.refused(Instant::now() + 20 * SECOND, Quotas::default());
    assert!((&mut waits).now_or_never().is_none());
    assert_eq!(door.occupancy().in_flight, 0, "it waits without the slot");
    advance(20 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_quota_without_a_number_lowers_how_many_run_at_once() {
    let door = door(40, 0);
    let lane = lane(&door, "a");
    send(&lane).refused(Instant::now() + SECOND, Quotas::default());
    assert_eq!(account(&door, "a").concurrency().limit(), 30);
}

#[tokio::test(start_paused = true)]
async fn load_lowers_how_many_run_at_once_once_for_a_burst() {
    let door = door(40, 0);
    let lane = lane(&door, "a");
    let burst: Vec<_> = (0..40).map(|_| send(&lane)).collect();
    burst.into_iter().for_each(Underway::overloaded);
    assert_eq!(account(&door, "a").concurrency().limit(), 30);
    assert_eq!(account(&door, "b").concurrency().limit(), 40);
    assert_eq!(door.occupancy().available, 40);
}

/// Notes how many slots of an account are out at the moment it is woken.
struct Notes {
    account: Arc<Account>,
    in_use: Mutex<Option<usize>>,
}

impl Wake for Notes {
    fn wake(self: Arc<Self>) {
        let in_use = self.account.concurrency().semaphore().standing().in_use;
        self.in_use.lock().unwrap().get_or_insert(in_use);
    }
}

#[test]
fn who_is_given_the_global_slot_finds_one_of_the_account() {
    let endings: [fn(Underway); 3] = [drop, |call| call.answered(None), Underway::overloaded];
    for (number, end) in endings.into_iter().enumerate() {
        let door = door(1, 10);
        let lanes = [lane(&door, "a"), lane(&door, "a")];
        let running = send(&lanes[0]);
        let notes = Arc::new(Notes { account: account(&door, "a"), in_use: Mutex::new(None) });
        let mut waits = Box::pin(admit(&lanes[1]));
        let waker = Arc::clone(&notes).into();
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        end(running);
        assert_eq!(*notes.in_use.lock().unwrap(), Some(0), "ending {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_fallen_limit_of_their_account_keep_no_slot_from_others() {
    let door = door(4, 10);
    let mut running: Vec<_> = (0..4).map(|_| send(&lane(&door, "a"))).collect();
    let waiting = [(); 3].map(|()| lane(&door, "a"));
    let mut waits: Vec<_> = waiting.iter().map(|lane| Box::pin(admit(lane))).collect();
    assert!(waits.iter_mut().all(|admission| admission.now_or_never().is_none()));
    running.pop().unwrap().overloaded();
    assert_eq!(account(&door, "a").concurrency().limit(), 3);
    assert!(waits.iter_mut().all(|admission| admission.now_or_never().is_none()));
    assert_eq!((door.occupancy().in_flight, door.occupancy().available), (3, 1));
    let elsewhere = lane(&door, "b");
    let _other = send(&elsewhere);

    drop(running);
    let admitted: Vec<_> = waits.into_iter().filter_map(FutureExt::now_or_never).collect();
    assert_eq!(admitted.len(), 3, "they have the slots that are free then");
}

#[tokio::test(start_paused = true)]
async fn a_used_up_day_refuses_at_once_also_those_who_wait() {
    let door = one_a_second(10);
    let lane = lane(&door, "a");
    let sent = send(&lane);
    let mut waits = Box::pin(admit(&lane));
    assert!((&mut waits).now_or_never().is_none());
    sent.refused_for_the_day(Quotas::default().with(RequestsPerDay, 250));
    for refused in [waits.await, admit(&self::lane(&door, "a")).await] {
        assert!(matches!(refused, Err(Refused::Exhausted(Exhausted::DayExhausted { .. }))));
    }
    assert_eq!(usage(&account(&door, "a"))[RequestsPerDay].limit, Some(250));
}

#[tokio::test(start_paused = true)]
async fn a_payer_without_funds_is_refused_for_every_model_also_those_who_wait() {
    let door = one_a_second(10);
    let sent = send(&lane(&door, "a"));
    let waiting = lane(&door, "a");
    let mut waits = Box::pin(admit(&waiting));
    assert!((&mut waits).now_or_never().is_none());
    sent.unfunded();
    for model in ["a", "b"] {
        let refused = admit(&lane(&door, model)).now_or_never().expect("at once");
        assert_eq!(refused.unwrap_err(), Refused::Unfunded, "{model}");
    }
    assert_eq!(waits.await.unwrap_err(), Refused::Unfunded);
    let other = door.accounts().of(&[8; 32], &"a".into());
    let other = Turnstile::new(Arc::clone(&door)).lane(other, None);
    assert!(admit(&other).await.is_ok());
    let counts_tokens = door.accounts().apart(&[7; 32], "a", "countTokens");
    let counts_tokens = Turnstile::new(Arc::clone(&door)).lane(counts_tokens, None);
    assert!(admit(&counts_tokens).await.is_ok(), "they may be free of charge");

    advance(PROBE_INTERVAL).await;
    let probe = send(&lane(&door, "b"));
    assert_eq!(admit(&lane(&door, "a")).await.unwrap_err(), Refused::Unfunded, "one at a time");
    probe.answered(None);
    assert!(admit(&lane(&door, "a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_a_quota_does_not_say_that_the_payer_has_funds_again() {
    let door = door(10, 10);
    let [first, second] = [(); 2].map(|()| send(&lane(&door, "a")));
    first.unfunded();
    second.refused(Instant::now(), Quotas::default().with(RequestsPerMinute, 60));
    assert_eq!(admit(&lane(&door, "a")).await.unwrap_err(), Refused::Unfunded);
}

#[tokio::test(start_paused = true)]
async fn a_model_without_quota_is_probed_every_few_minutes() {
    let door = door(10, 10);
    send(&lane(&door, "a")).without_quota();
    let refused = async || admit(&lane(&door, "a")).await.unwrap_err();
    for _ in 0..3 {
        assert_eq!(refused().await, Refused::Exhausted(Exhausted::NoQuota));
        assert!(admit(&lane(&door, "b")).await.is_ok(), "another model");
        advance(PROBE_INTERVAL).await;
        send(&lane(&door, "a")).without_quota();
    }
    advance(PROBE_INTERVAL).await;
    send(&lane(&door, "a")).answered(None);
    assert!(admit(&lane(&door, "a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_0_is_of_the_account_that_is_charged() {
    let door = door(10, 10);
    let sent = send(&lane(&door, "latest"));
    door.accounts().alias(sent.account(), "real", NamedBy::Answer);
    sent.without_quota();
    for model in ["latest", "real"] {
        let refused = admit(&lane(&door, model)).await.unwrap_err();
        assert_eq!(refused, Refused::Exhausted(Exhausted::NoQuota), "{model}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_calls_give_their_day_back_to_the_account_that_is_charged() {
    let door = door(10, 10);
    let [answered, refused, declined] = [(); 3].map(|()| send(&lane(&door, "latest")));
    advance(SECOND).await;
    door.accounts().alias(answered.account(), "real", NamedBy::Answer);
    assert_eq!(usage(&account(&door, "real"))[RequestsPerDay].used, 3);
    answered.answered(None);
    refused.refused(Instant::now(), Quotas::default());
    declined.declined();
    assert_eq!(usage(&account(&door, "real"))[RequestsPerDay].used, 1);
}

#[tokio::test(start_paused = true)]
async fn what_one_model_costs_too_much_pauses_those_of_the_payer_that_gemini_serves() {
    let door = door(10, 10);
    send(&lane(&door, "served")).answered(None);
    let never_served = account(&door, "never served");
    let refused = send(&lane(&door, "refused"));
    door.accounts().pause_payer(refused.account(), Instant::now() + 20 * SECOND);
    refused.refused_alone();
    for model in ["served", "refused"] {
        assert!(account(&door, model).budget().is_paused(), "{model}");
    }
    assert!(!never_served.budget().is_paused());
    assert_eq!(account(&door, "refused").concurrency().limit(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_declined_request_counts_in_its_minute_and_one_that_was_never_written_nowhere() {
    let door = door(10, 10);
    let spent = || {
        let usage = usage(&account(&door, "a"));
        (usage[RequestsPerMinute].used, usage[RequestsPerDay].used)
    };
    send(&lane(&door, "a")).declined();
    assert_eq!(spent(), (1, 0));
    send(&lane(&door, "a")).unsent();
    assert_eq!(spent(), (1, 0));
    drop(send(&lane(&door, "a")));
    assert_eq!(spent(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_settles_what_was_estimated() {
    let door = door(10, 0);
    let lane = lane(&door, "a");
    let call = lane.turn().await.admit(Cost::one(100), deadline()).await.unwrap().depart().unwrap();
    let used = || usage(&account(&door, "a"))[InputTokensPerMinute].used;
    assert_eq!(used(), 100);
    call.answered(Some(80));
    assert_eq!(used(), 80);
}

/// The order in which a batch and two requests that come while it waits are let in by `free`.
async fn order_beside_a_batch(door: &Arc<Door>, free: impl AsyncFn(Vec<Underway>)) -> Vec<usize> {
    let batch = Turnstile::for_many(Arc::clone(door)).lane(account(door, "a"), None);
    let singles = [lane(door, "a"), lane(door, "a")];
    let mut running = vec![send(&batch)];
    let mut waits = vec![Some(Box::pin(admit(&batch)))];
    waits.extend(singles.iter().map(|single| Some(Box::pin(admit(single)))));
    let mut order = Vec::new();
    while order.len() < waits.len() {
        for _ in 0..3 {
            for (number, wait) in waits.iter_mut().enumerate() {
                if let Some(admitted) = wait.as_mut().and_then(FutureExt::now_or_never) {
                    order.push(number);
                    *wait = None;
                    running.push(admitted.unwrap().depart().unwrap());
                }
            }
        }
        free(std::mem::take(&mut running)).await;
    }
    order
}

#[tokio::test(start_paused = true)]
async fn a_batch_lets_those_who_come_meanwhile_have_the_next_slot() {
    let one_slot = door(1, 10);
    let order = order_beside_a_batch(&one_slot, async |running| drop(running)).await;
    assert_eq!(order, [1, 2, 0]);
    assert_eq!((one_slot.occupancy().in_flight, one_slot.occupancy().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_lets_those_who_come_meanwhile_have_the_next_request_of_the_quota() {
    let quota = one_a_second(10);
    let order = order_beside_a_batch(&quota, async |running| {
        drop(running);
        advance(1050 * SECOND / 1000).await;
    });
    assert_eq!(order.await, [1, 2, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_finds_others_waiting_keeps_its_turn() {
    let door = door(1, 10);
    let held = send(&lane(&door, "a"));
    let (before, after) = (lane(&door, "a"), lane(&door, "a"));
    let batch = Turnstile::for_many(Arc::clone(&door)).lane(account(&door, "a"), None);
    let mut first = Box::pin(admit(&before));
    assert!((&mut first).now_or_never().is_none());
    let mut second = Box::pin(admit(&batch));
    assert!((&mut second).now_or_never().is_none());
    let mut third = Box::pin(admit(&after));
    assert!((&mut third).now_or_never().is_none());
    drop(held);
    drop(first.now_or_never().expect("it came first"));
    assert!((&mut third).now_or_never().is_none());
    assert!(second.now_or_never().is_some());
}
