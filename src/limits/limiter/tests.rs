mod spend;

use std::sync::Mutex;
use std::task::{Context, Wake};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, advance};

use super::reserve::BRIEF_HOLD;
use super::*;
use crate::limits::accounts::{Account, NamedBy, PROBE_INTERVAL};
use crate::limits::model::{
    BudgetUsage, Cost, Estimate, Limit, LimitScope, Limits, QuotaKind::*, Quotas, SemaphoreId,
};
use crate::limits::semaphore::Acquire as _;

const SECOND: Duration = Duration::from_secs(1);

fn limiter(limit: usize, max_waiting: usize) -> Arc<Limiter> {
    Limiter::new(limit, max_waiting, QuotaPlan::default())
}

/// A limiter that admits one call a second for each account.
fn one_a_second(limit: usize) -> Arc<Limiter> {
    let mut plan = QuotaPlan::default();
    let limits = Limits::default().with(RequestsPerMinute, Limit::AtMost(60));
    plan.add_limits(LimitScope { label: None, model: None }, limits).unwrap();
    Limiter::new(limit, 10, plan)
}

fn account(limiter: &Limiter, model: &str) -> Arc<Account> {
    limiter.accounts().of(&[7; 32], &model.into())
}

/// The usage of a budget of this process.
fn usage(account: &Account) -> BudgetUsage {
    account.budget().usage().now_or_never().expect("at once").unwrap()
}

fn queue(limiter: &Arc<Limiter>, model: &str) -> Arc<AccountQueue> {
    Arc::new(QueueTicket::new(Arc::clone(limiter)).queue(account(limiter, model), None))
}

fn named(limiter: &Limiter, limit: usize) -> Arc<dyn Semaphore> {
    let registered = limiter.store().register(SemaphoreId::parse("images").unwrap(), limit);
    registered.now_or_never().expect("at once").unwrap().0
}

fn deadline() -> Instant {
    Instant::now() + 600 * SECOND
}

async fn admit(queue: &AccountQueue) -> Result<Admission, Refused> {
    queue.head().await.admit(Cost::one(1), deadline()).await
}

/// Admits a call that does not have to wait, and sends it.
fn send(queue: &AccountQueue) -> InFlightCall {
    admit(queue).now_or_never().expect("nothing to wait for").unwrap().start().unwrap()
}

#[tokio::test]
async fn a_call_that_waits_for_admission_takes_at_most_700_bytes() {
    let limiter = limiter(1, 1);
    let queue = queue(&limiter, "a");
    let waiting = async { queue.head().await.admit(Cost::one(1), deadline()).await };
    assert!(size_of_val(&waiting) <= 700, "{}", size_of_val(&waiting));
}

#[tokio::test]
async fn a_task_that_panics_gives_everything_back() {
    let limiter = limiter(1, 0);
    let semaphore = named(&limiter, 1);
    let account = account(&limiter, "a");
    let queue = QueueTicket::new(Arc::clone(&limiter))
        .queue(Arc::clone(&account), Some(Arc::clone(&semaphore)));
    let admission = admit(&queue).await.unwrap();
    let reserved = || usage(&account)[RequestsPerMinute].reserved;
    assert_eq!((limiter.occupancy().in_flight, semaphore.usage().in_use, reserved()), (1, 1, 1));
    let task = tokio::spawn(async move {
        let _admission = admission;
        panic!("with the admission in its hands");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().available), (0, 1));
    assert_eq!((semaphore.usage().in_use, semaphore.usage().available(), reserved()), (0, 1, 0));
    assert_eq!(account.concurrency().semaphore().usage().in_use, 0);
}

/// A panicking item does not poison the lock that a batch's items take one by one.
#[tokio::test]
async fn a_task_that_panics_in_the_queue_leaves_the_queue() {
    let limiter = limiter(1, 10);
    let queue = queue(&limiter, "a");
    let held = admit(&queue).await.unwrap();
    let waits = Arc::clone(&queue);
    let task = tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = admit(&waits) => {}
            () = std::future::ready(()) => panic!("while it waits"),
        }
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(limiter.occupancy().waiting, 0);
    drop(held);
    assert!(admit(&queue).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_account_queue_that_waits_for_quota_delays_no_other_of_its_request() {
    let limiter = one_a_second(10);
    let ticket = QueueTicket::new(Arc::clone(&limiter));
    let slow = ticket.queue(account(&limiter, "slow"), None);
    let other = ticket.queue(account(&limiter, "other"), None);
    let _sent = send(&slow);
    let mut waits = Box::pin(admit(&slow));
    assert!((&mut waits).now_or_never().is_none());
    let _other = send(&other);
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_in_several_account_queues_counts_once() {
    let limiter = one_a_second(10);
    let ticket = QueueTicket::new(Arc::clone(&limiter));
    let queues = ["a", "b", "c"].map(|model| ticket.queue(account(&limiter, model), None));
    let _sent = queues.each_ref().map(send);
    let mut waits: Vec<_> = queues.iter().map(|queue| Box::pin(admit(queue))).collect();
    for wait in &mut waits {
        assert!(wait.now_or_never().is_none());
        assert_eq!(limiter.occupancy().waiting, 1);
    }
    waits.truncate(1);
    assert_eq!(limiter.occupancy().waiting, 1);
    waits.clear();
    assert_eq!(limiter.occupancy().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_refused_in_one_account_queue_is_refused_in_all() {
    let limiter = Limiter::new(1, 0, QuotaPlan::default());
    let held = admit(&queue(&limiter, "a")).await.unwrap();
    let ticket = QueueTicket::new(Arc::clone(&limiter));
    let queues = ["a", "b"].map(|model| ticket.queue(account(&limiter, model), None));
    assert_eq!(admit(&queues[0]).await.err(), Some(Refused::QueueFull));
    drop(held);
    assert_eq!(admit(&queues[1]).await.err(), Some(Refused::QueueFull), "nothing of it is sent");
    assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_semaphore_hold_no_quota() {
    let limiter = one_a_second(10);
    let semaphore = named(&limiter, 1);
    let narrow = || {
        let ticket = QueueTicket::new(Arc::clone(&limiter));
        ticket.queue(account(&limiter, "a"), Some(Arc::clone(&semaphore)))
    };
    let (first, second) = (narrow(), narrow());
    let running = send(&first);
    let mut waits = Box::pin(admit(&second));
    assert!((&mut waits).now_or_never().is_none(), "the quota is used up");
    advance(2 * SECOND).await;
    assert!((&mut waits).now_or_never().is_none(), "the semaphore is taken");
    let _other = send(&queue(&limiter, "a"));

    drop(running);
    assert!((&mut waits).now_or_never().is_none(), "it waits for the quota again");
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_quota_hold_no_semaphore() {
    let limiter = one_a_second(10);
    let semaphore = named(&limiter, 1);
    let narrow = |model: &str| {
        let ticket = QueueTicket::new(Arc::clone(&limiter));
        ticket.queue(account(&limiter, model), Some(Arc::clone(&semaphore)))
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
async fn a_call_that_waited_for_quota_and_then_for_a_semaphore_is_admitted_next() {
    let limiter = one_a_second(10);
    let semaphore = named(&limiter, 1);
    let held = semaphore.acquire().await.unwrap();
    let narrow =
        QueueTicket::new(Arc::clone(&limiter)).queue(account(&limiter, "a"), Some(semaphore));
    let mut first = Box::pin(admit(&narrow));
    assert!((&mut first).now_or_never().is_none(), "the semaphore is taken");
    let _sent = send(&queue(&limiter, "a"));
    let behind = queue(&limiter, "a");
    let mut second = Box::pin(admit(&behind));
    assert!((&mut second).now_or_never().is_none(), "the quota is used up");

    drop(held);
    assert!((&mut first).now_or_never().is_none(), "it waits for the quota, before the other");
    advance(1050 * SECOND / 1000).await;
    assert!((&mut second).now_or_never().is_none());
    let admitted = first.now_or_never().expect("it goes first").unwrap();
    let _sent = admitted.start().unwrap();
    assert!((&mut second).now_or_never().is_none());
    advance(1050 * SECOND / 1000).await;
    assert!(second.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_quota_gives_its_permit_to_another_key() {
    let limiter = one_a_second(10);
    let semaphore = named(&limiter, 1);
    let of_key = |key: u8| {
        let account = limiter.accounts().of(&[key; 32], &"a".into());
        QueueTicket::new(Arc::clone(&limiter)).queue(account, Some(Arc::clone(&semaphore)))
    };
    let held = semaphore.acquire().await.unwrap();
    let (first, second, other) = (of_key(1), of_key(1), of_key(2));
    let mut waits: Vec<_> = [&first, &second, &other].map(|queue| Box::pin(admit(queue))).into();
    assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()), "the permit is taken");
    drop(held);
    let _sent = (&mut waits[0]).now_or_never().expect("it came first").unwrap().start().unwrap();
    drop(_sent);
    assert!((&mut waits[1]).now_or_never().is_none(), "its quota is used up");
    let mut third = waits.pop().unwrap();
    let sent = (&mut third).now_or_never().expect("its quota is not").unwrap().start().unwrap();

    // The quota comes back while the other call runs, and the head of the line takes the next permit.
    let last = of_key(2);
    let mut behind = Box::pin(admit(&last));
    advance(1050 * SECOND / 1000).await;
    assert!((&mut behind).now_or_never().is_none());
    assert!((&mut waits[1]).now_or_never().is_none(), "the permit is taken");
    drop(sent);
    assert!((&mut behind).now_or_never().is_none());
    let admitted = (&mut waits[1]).now_or_never().expect("it had a permit before").unwrap();
    drop(admitted.start().unwrap());
    assert!(behind.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn calls_without_quota_keep_their_order() {
    let limiter = one_a_second(20);
    let semaphore = named(&limiter, 1);
    let held = semaphore.acquire().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let key = if number % 3 == 2 { 2 } else { 1 };
            let account = limiter.accounts().of(&[key; 32], &"a".into());
            let ticket = QueueTicket::new(Arc::clone(&limiter));
            let queue = ticket.queue(account, Some(Arc::clone(&semaphore)));
            let order = Arc::clone(&order);
            tokio::spawn(async move {
                let call = admit(&queue).await.unwrap().start().unwrap();
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
    assert_eq!(semaphore.usage().in_use, 0);
    assert_eq!(limiter.occupancy().waiting, 0);
}

/// Other calls of the account take its quota each time it waits for the permit.
#[tokio::test(start_paused = true)]
async fn a_call_that_lost_its_quota_once_keeps_it_the_next_time() {
    let limiter = one_a_second(10);
    let semaphore = named(&limiter, 1);
    let held = semaphore.acquire().await.unwrap();
    let lane_of_permit = QueueTicket::new(Arc::clone(&limiter))
        .queue(account(&limiter, "a"), Some(Arc::clone(&semaphore)));
    let plain = queue(&limiter, "a");
    let mut waits = Box::pin(admit(&lane_of_permit));
    assert!((&mut waits).now_or_never().is_none());
    drop(send(&plain));
    drop(held);
    assert!((&mut waits).now_or_never().is_none(), "it has the permit and no quota");
    let held = semaphore.acquire().now_or_never().expect("it gave it back").unwrap();
    advance(1050 * SECOND / 1000).await;
    assert!((&mut waits).now_or_never().is_none(), "it has the quota and no permit");
    advance(2 * BRIEF_HOLD).await;
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
async fn only_a_call_whose_least_cost_exceeds_the_quota_is_too_large() {
    let limiter = limiter(10, 10);
    let account = account(&limiter, "a");
    account.correct(Quotas::default().with(InputTokensPerMinute, 1000));
    let admit = async |expected, at_least| {
        let queue = QueueTicket::new(Arc::clone(&limiter)).queue(Arc::clone(&account), None);
        let cost = Estimate { cost: Cost::one(expected), at_least, spend: 0 };
        queue.head().await.admit(cost, deadline()).await
    };
    let refused = admit(5000, 1001).await.err();
    let too_large = Exhausted::TooLarge { kind: InputTokensPerMinute, cost: 5000, limit: 1000 };
    assert_eq!(refused, Some(Refused::Exhausted(too_large)));
    let admitted = admit(5000, 1000).await.unwrap();
    assert_eq!(usage(&account)[InputTokensPerMinute].reserved, 1000, "a whole minute's");
    let mut waits = Box::pin(admit(5000, 1));
    assert!((&mut waits).now_or_never().is_none());
    admitted.start().unwrap().answered(Some(1));
    advance(2 * SECOND).await;
    assert!(waits.now_or_never().is_none(), "a large call waits until the bucket is full");
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_count_in_the_account_that_becomes_charged() {
    let limiter = one_a_second(10);
    let alias = queue(&limiter, "latest");
    let sent = send(&alias);
    assert_eq!(sent.account().model(), "latest");
    let mut waits = Box::pin(admit(&alias));
    assert!((&mut waits).now_or_never().is_none());
    limiter.accounts().alias(sent.account(), "real", NamedBy::Answer);
    // The call in flight is refused, which affects the charged model.
    sent.refused(Instant::now() + 2 * SECOND, Quotas::default());
    let real = account(&limiter, "real");
    assert_eq!(usage(&real).paused_for, Some(2 * SECOND));
    advance(1050 * SECOND / 1000).await;
    assert!((&mut waits).now_or_never().is_none());
    advance(SECOND).await;
    let admitted = waits.now_or_never().expect("the pause is over").unwrap();
    let call = admitted.start().unwrap();
    assert_eq!(call.account().model(), "latest");
    assert_eq!(usage(&real)[RequestsPerMinute].used, 2);
    assert_eq!(usage(&account(&limiter, "latest"))[RequestsPerMinute].used, 0);
    call.overloaded();
    assert_eq!(real.concurrency().limit(), 8, "load is the real model's too");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_account_is_refused() {
    let limiter = limiter(1, 1);
    let none = Account::rejected(crate::limits::Payer::Key([1; 32]), "a".into());
    let queue = QueueTicket::new(Arc::clone(&limiter)).queue(Arc::new(none), None);
    assert_eq!(admit(&queue).await.err(), Some(Refused::TooManyAccounts));
}

#[tokio::test(start_paused = true)]
async fn one_refusal_of_a_burst_counts_and_refused_calls_keep_their_position() {
    let limiter = limiter(50, 100);
    let queue = queue(&limiter, "a");
    let named = Quotas::default().with(RequestsPerMinute, 60);
    let burst: Vec<_> = (0..50).map(|_| send(&queue)).collect();
    let until = Instant::now() + 20 * SECOND;
    for call in burst {
        call.refused(until, named);
    }
    let usage = usage(&account(&limiter, "a"));
    assert_eq!(usage.paused_for, Some(20 * SECOND));
    let requests = usage[RequestsPerMinute];
    assert_eq!((requests.limit, requests.used, requests.reserved), (Some(60), 0, 0));
    assert_eq!(
        account(&limiter, "a").concurrency().limit(),
        50,
        "a refusal for a quota is not for load"
    );

    let mut waits = Box::pin(admit(&queue));
    assert!((&mut waits).now_or_never().is_none());
    let elsewhere = QueueTicket::new(Arc::clone(&limiter)).queue(account(&limiter, "b"), None);
    let _other = send(&elsewhere);
    advance(20 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_also_pauses_calls_that_wait_only_for_a_slot() {
    let limiter = limiter(1, 10);
    let queues = [queue(&limiter, "a"), queue(&limiter, "a")];
    let running = send(&queues[0]);
    let mut waits = Box::pin(admit(&queues[1]));
    assert!((&mut waits).now_or_never().is_none());
    running.refused(Instant::now() + 20 * SECOND, Quotas::default());
    assert!((&mut waits).now_or_never().is_none());
    assert_eq!(limiter.occupancy().in_flight, 0, "it waits without the slot");
    advance(20 * SECOND).await;
    assert!(waits.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_a_quota_value_lowers_the_concurrency() {
    let limiter = limiter(40, 0);
    let queue = queue(&limiter, "a");
    send(&queue).refused(Instant::now() + SECOND, Quotas::default());
    assert_eq!(account(&limiter, "a").concurrency().limit(), 30);
}

#[tokio::test(start_paused = true)]
async fn load_lowers_the_concurrency_once_for_a_burst() {
    let limiter = limiter(40, 0);
    let queue = queue(&limiter, "a");
    let burst: Vec<_> = (0..40).map(|_| send(&queue)).collect();
    burst.into_iter().for_each(InFlightCall::overloaded);
    assert_eq!(account(&limiter, "a").concurrency().limit(), 30);
    assert_eq!(account(&limiter, "b").concurrency().limit(), 40);
    assert_eq!(limiter.occupancy().available, 40);
}

/// Records how many slots of an account are in use when it is woken.
struct Notes {
    account: Arc<Account>,
    in_use: Mutex<Option<usize>>,
}

impl Wake for Notes {
    fn wake(self: Arc<Self>) {
        let in_use = self.account.concurrency().semaphore().usage().in_use;
        self.in_use.lock().unwrap().get_or_insert(in_use);
    }
}

#[test]
fn the_call_that_gets_the_global_slot_finds_an_account_slot() {
    let endings: [fn(InFlightCall); 3] =
        [drop, |call| call.answered(None), InFlightCall::overloaded];
    for (number, end) in endings.into_iter().enumerate() {
        let limiter = limiter(1, 10);
        let queues = [queue(&limiter, "a"), queue(&limiter, "a")];
        let running = send(&queues[0]);
        let notes = Arc::new(Notes { account: account(&limiter, "a"), in_use: Mutex::new(None) });
        let mut waits = Box::pin(admit(&queues[1]));
        let waker = Arc::clone(&notes).into();
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        end(running);
        assert_eq!(*notes.in_use.lock().unwrap(), Some(0), "ending {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_lowered_account_limit_hold_no_global_slot() {
    let limiter = limiter(4, 10);
    let mut running: Vec<_> = (0..4).map(|_| send(&queue(&limiter, "a"))).collect();
    let waiting = [(); 3].map(|()| queue(&limiter, "a"));
    let mut waits: Vec<_> = waiting.iter().map(|queue| Box::pin(admit(queue))).collect();
    assert!(waits.iter_mut().all(|admission| admission.now_or_never().is_none()));
    running.pop().unwrap().overloaded();
    assert_eq!(account(&limiter, "a").concurrency().limit(), 3);
    assert!(waits.iter_mut().all(|admission| admission.now_or_never().is_none()));
    assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().available), (3, 1));
    let elsewhere = queue(&limiter, "b");
    let _other = send(&elsewhere);

    drop(running);
    let admitted: Vec<_> = waits.into_iter().filter_map(FutureExt::now_or_never).collect();
    assert_eq!(admitted.len(), 3, "they have the slots that are free then");
}

#[tokio::test(start_paused = true)]
async fn a_used_up_day_refuses_new_and_waiting_calls_at_once() {
    let limiter = one_a_second(10);
    let queue = queue(&limiter, "a");
    let sent = send(&queue);
    let mut waits = Box::pin(admit(&queue));
    assert!((&mut waits).now_or_never().is_none());
    sent.refused_for_the_day(Quotas::default().with(RequestsPerDay, 250));
    for refused in [waits.await, admit(&self::queue(&limiter, "a")).await] {
        assert!(matches!(refused, Err(Refused::Exhausted(Exhausted::DayExhausted { .. }))));
    }
    assert_eq!(usage(&account(&limiter, "a"))[RequestsPerDay].limit, Some(250));
}

#[tokio::test(start_paused = true)]
async fn a_payer_without_funds_is_refused_for_every_model_including_waiting_calls() {
    let limiter = one_a_second(10);
    let sent = send(&queue(&limiter, "a"));
    let waiting = queue(&limiter, "a");
    let mut waits = Box::pin(admit(&waiting));
    assert!((&mut waits).now_or_never().is_none());
    sent.unfunded();
    for model in ["a", "b"] {
        let refused = admit(&queue(&limiter, model)).now_or_never().expect("at once");
        assert_eq!(refused.unwrap_err(), Refused::Unfunded, "{model}");
    }
    assert_eq!(waits.await.unwrap_err(), Refused::Unfunded);
    let other = limiter.accounts().of(&[8; 32], &"a".into());
    let other = QueueTicket::new(Arc::clone(&limiter)).queue(other, None);
    assert!(admit(&other).await.is_ok());
    let counts_tokens = limiter.accounts().apart(&[7; 32], "a", "countTokens");
    let counts_tokens = QueueTicket::new(Arc::clone(&limiter)).queue(counts_tokens, None);
    assert!(admit(&counts_tokens).await.is_ok(), "they may be free of charge");

    advance(PROBE_INTERVAL).await;
    let probe = send(&queue(&limiter, "b"));
    assert_eq!(admit(&queue(&limiter, "a")).await.unwrap_err(), Refused::Unfunded, "one at a time");
    probe.answered(None);
    assert!(admit(&queue(&limiter, "a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_a_quota_does_not_clear_the_payer() {
    let limiter = limiter(10, 10);
    let [first, second] = [(); 2].map(|()| send(&queue(&limiter, "a")));
    first.unfunded();
    second.refused(Instant::now(), Quotas::default().with(RequestsPerMinute, 60));
    assert_eq!(admit(&queue(&limiter, "a")).await.unwrap_err(), Refused::Unfunded);
}

#[tokio::test(start_paused = true)]
async fn a_model_without_quota_is_probed_every_few_minutes() {
    let limiter = limiter(10, 10);
    send(&queue(&limiter, "a")).without_quota();
    let refused = async || admit(&queue(&limiter, "a")).await.unwrap_err();
    for _ in 0..3 {
        assert_eq!(refused().await, Refused::Exhausted(Exhausted::NoQuota { kind: None }));
        assert!(admit(&queue(&limiter, "b")).await.is_ok(), "another model");
        advance(PROBE_INTERVAL).await;
        send(&queue(&limiter, "a")).without_quota();
    }
    advance(PROBE_INTERVAL).await;
    send(&queue(&limiter, "a")).answered(None);
    assert!(admit(&queue(&limiter, "a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_0_is_of_the_account_that_is_charged() {
    let limiter = limiter(10, 10);
    let sent = send(&queue(&limiter, "latest"));
    limiter.accounts().alias(sent.account(), "real", NamedBy::Answer);
    sent.without_quota();
    for model in ["latest", "real"] {
        let refused = admit(&queue(&limiter, model)).await.unwrap_err();
        assert_eq!(refused, Refused::Exhausted(Exhausted::NoQuota { kind: None }), "{model}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_calls_give_their_day_back_to_the_charged_account() {
    let limiter = limiter(10, 10);
    let [answered, refused, declined] = [(); 3].map(|()| send(&queue(&limiter, "latest")));
    advance(SECOND).await;
    limiter.accounts().alias(answered.account(), "real", NamedBy::Answer);
    assert_eq!(usage(&account(&limiter, "real"))[RequestsPerDay].used, 3);
    answered.answered(None);
    refused.refused(Instant::now(), Quotas::default());
    declined.declined();
    assert_eq!(usage(&account(&limiter, "real"))[RequestsPerDay].used, 1);
}

#[tokio::test(start_paused = true)]
async fn a_spend_refusal_pauses_the_models_that_gemini_serves_for_the_payer() {
    let limiter = limiter(10, 10);
    send(&queue(&limiter, "served")).answered(None);
    let never_served = account(&limiter, "never served");
    let refused = send(&queue(&limiter, "refused"));
    limiter.accounts().pause_payer(refused.account(), Instant::now() + 20 * SECOND);
    refused.refused_alone();
    for model in ["served", "refused"] {
        assert!(account(&limiter, model).budget().is_paused(), "{model}");
    }
    assert!(!never_served.budget().is_paused());
    assert_eq!(account(&limiter, "refused").concurrency().limit(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_declined_request_counts_in_its_minute_and_an_unsent_one_nowhere() {
    let limiter = limiter(10, 10);
    let spent = || {
        let usage = usage(&account(&limiter, "a"));
        (usage[RequestsPerMinute].used, usage[RequestsPerDay].used)
    };
    send(&queue(&limiter, "a")).declined();
    assert_eq!(spent(), (1, 0));
    send(&queue(&limiter, "a")).unsent();
    assert_eq!(spent(), (1, 0));
    drop(send(&queue(&limiter, "a")));
    assert_eq!(spent(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_settles_the_estimate() {
    let limiter = limiter(10, 0);
    let queue = queue(&limiter, "a");
    let call = queue.head().await.admit(Cost::one(100), deadline()).await.unwrap().start().unwrap();
    let used = || usage(&account(&limiter, "a"))[InputTokensPerMinute].used;
    assert_eq!(used(), 100);
    call.answered(Some(80));
    assert_eq!(used(), 80);
}

/// The order in which a batch and two requests that arrive while it waits are admitted by `free`.
async fn order_beside_a_batch(
    limiter: &Arc<Limiter>,
    free: impl AsyncFn(Vec<InFlightCall>),
) -> Vec<usize> {
    let batch = QueueTicket::for_many(Arc::clone(limiter)).queue(account(limiter, "a"), None);
    let singles = [queue(limiter, "a"), queue(limiter, "a")];
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
                    running.push(admitted.unwrap().start().unwrap());
                }
            }
        }
        free(std::mem::take(&mut running)).await;
    }
    order
}

#[tokio::test(start_paused = true)]
async fn a_batch_yields_the_next_slot_to_new_requests() {
    let one_slot = limiter(1, 10);
    let order = order_beside_a_batch(&one_slot, async |running| drop(running)).await;
    assert_eq!(order, [1, 2, 0]);
    assert_eq!((one_slot.occupancy().in_flight, one_slot.occupancy().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_yields_the_next_request_of_the_quota_to_new_requests() {
    let quota = one_a_second(10);
    let order = order_beside_a_batch(&quota, async |running| {
        drop(running);
        advance(1050 * SECOND / 1000).await;
    });
    assert_eq!(order.await, [1, 2, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_behind_others_keeps_its_position() {
    let limiter = limiter(1, 10);
    let held = send(&queue(&limiter, "a"));
    let (before, after) = (queue(&limiter, "a"), queue(&limiter, "a"));
    let batch = QueueTicket::for_many(Arc::clone(&limiter)).queue(account(&limiter, "a"), None);
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

#[tokio::test(start_paused = true)]
async fn an_admission_names_the_limit_that_the_call_waited_for_the_longest() {
    let limiter = one_a_second(1);
    let free = queue(&limiter, "free");
    let admission = admit(&free).now_or_never().unwrap().unwrap();
    assert_eq!((admission.held_by, admission.waited), (None, Duration::ZERO));

    let behind = queue(&limiter, "behind");
    let mut waits = Box::pin(admit(&behind));
    assert!((&mut waits).now_or_never().is_none(), "the only slot is taken");
    advance(SECOND).await;
    drop(admission);
    let admission = waits.now_or_never().unwrap().unwrap();
    assert_eq!(admission.held_by, Some(HeldBy::ConcurrencyLimit));
    assert_eq!(admission.waited, SECOND);
    drop(admission.start());

    let again = queue(&limiter, "behind");
    let mut waits = Box::pin(admit(&again));
    assert!((&mut waits).now_or_never().is_none(), "the quota is used up");
    advance(2 * SECOND).await;
    let admission = waits.now_or_never().unwrap().unwrap();
    assert_eq!(admission.held_by, Some(HeldBy::Quota));
    drop(admission);

    let semaphore = named(&limiter, 1);
    let held = semaphore.acquire().await.unwrap();
    let narrow =
        QueueTicket::new(Arc::clone(&limiter)).queue(account(&limiter, "named"), Some(semaphore));
    let mut waits = Box::pin(admit(&narrow));
    assert!((&mut waits).now_or_never().is_none(), "the semaphore is taken");
    advance(SECOND).await;
    drop(held);
    let admission = waits.now_or_never().unwrap().unwrap();
    assert_eq!(admission.held_by, Some(HeldBy::Semaphore));
}

#[tokio::test]
async fn the_last_places_in_the_queue_are_for_accounts_that_gemini_has_accepted() {
    let limiter = limiter(1, 8);
    let _held = admit(&queue(&limiter, "known")).await.unwrap();
    account(&limiter, "known").prove();
    let unknown = (0..8).map(|n| queue(&limiter, &format!("unknown-{n}"))).collect::<Vec<_>>();
    let mut waits = unknown.iter().map(|queue| Box::pin(admit(queue))).collect::<Vec<_>>();
    let mut outcomes = waits.iter_mut().map(|wait| wait.as_mut().now_or_never());
    assert!(outcomes.by_ref().take(7).all(|outcome| outcome.is_none()), "seven wait");
    assert!(matches!(outcomes.next(), Some(Some(Err(Refused::QueueFull)))));
    let known = [(); 2].map(|()| queue(&limiter, "known"));
    let mut first = Box::pin(admit(&known[0]));
    assert!(first.as_mut().now_or_never().is_none(), "it waits");
    assert!(matches!(admit(&known[1]).now_or_never(), Some(Err(Refused::QueueFull))));
}
