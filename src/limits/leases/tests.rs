use std::pin::Pin;

use jiff::Timestamp;
use tokio::time::{Instant, advance};

use super::*;
use crate::limits::model::{NoSuchLease, QuotaPlan, SemaphoreId};
use crate::limits::semaphore::Acquire as _;
use crate::limits::store::Store;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

type Answer = Result<(Lease, bool), NoLease>;

/// A semaphore and its leases.
struct Bench {
    leases: Arc<Leases>,
    semaphore: Arc<dyn Semaphore>,
}

/// The result of a local store, which is ready at once.
fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("nothing to wait for")
}

fn id() -> SemaphoreId {
    SemaphoreId::parse("images").unwrap()
}

fn terms(permits: usize) -> LeaseTerms {
    LeaseTerms { holder: "render-7".into(), permits, ttl: TTL }
}

impl Bench {
    fn new(limit: usize) -> Self {
        Self::with_queue(limit, 100)
    }

    fn with_queue(limit: usize, max_waiting: usize) -> Self {
        let limiter = Limiter::new(100, max_waiting, QuotaPlan::default());
        let (semaphore, _) = now(limiter.store().register(id(), limit)).unwrap();
        Self { leases: Leases::new(limiter), semaphore }
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.leases.limiter.store()
    }

    fn register(&self, id: SemaphoreId, limit: usize) -> Arc<dyn Semaphore> {
        now(self.store().register(id, limit)).unwrap().0
    }

    fn delete(&self) -> bool {
        now(self.store().delete(&id())).unwrap()
    }

    /// The leases of a semaphore.
    fn of(&self, semaphore: &Arc<dyn Semaphore>) -> Vec<Lease> {
        now(self.store().leases(semaphore)).unwrap()
    }

    async fn request(&self, permits: usize, key: Option<&str>, wait: Duration) -> Answer {
        self.leases.acquire(id(), &self.semaphore, terms(permits), key, wait).await
    }

    /// A lease that is granted at once.
    fn take(&self, permits: usize) -> Lease {
        let taken = self.request(permits, None, Duration::ZERO).now_or_never();
        taken.expect("without a wait").expect("as many are free").0
    }

    /// A request that waits.
    fn wait(&self, permits: usize) -> Pin<Box<impl Future<Output = Answer>>> {
        self.wait_with(permits, None, MINUTE)
    }

    fn wait_with<'a>(
        &'a self,
        permits: usize,
        key: Option<&'a str>,
        wait: Duration,
    ) -> Pin<Box<impl Future<Output = Answer>>> {
        let mut request = Box::pin(self.request(permits, key, wait));
        assert!((&mut request).now_or_never().is_none(), "it has to wait");
        request
    }

    fn renew(&self, lease: &Lease, ttl: Option<Duration>) -> Result<Lease, NoSuchLease> {
        now(self.store().renew_lease(&id(), &lease.id, ttl)).unwrap()
    }

    fn release(&self, lease: &Lease) {
        now(self.store().release_lease(&id(), &lease.id)).unwrap().unwrap();
    }

    fn waiting(&self) -> (usize, usize) {
        (self.semaphore.usage().waiting, self.leases.limiter.occupancy().waiting)
    }
}

/// The result of a request that is served.
fn granted(request: Pin<Box<impl Future<Output = Answer>>>) -> Lease {
    request.now_or_never().expect("its turn has come").expect("a lease").0
}

/// Advances the clock and lets waiting tasks run.
async fn pass(time: Duration) {
    advance(time).await;
    tokio::task::yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn leases_and_calls_take_turns() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    let mut call = Box::pin(bench.semaphore.acquire());
    assert!((&mut call).now_or_never().is_none());
    let mut second = bench.wait(1);
    let mut other_call = Box::pin(bench.semaphore.acquire());
    assert!((&mut other_call).now_or_never().is_none());

    bench.release(&lease);
    assert!((&mut second).now_or_never().is_none(), "the call asked before");
    drop(call.now_or_never().expect("the call's turn"));
    assert!((&mut other_call).now_or_never().is_none(), "the lease asked before");
    let second = granted(second);
    bench.release(&second);
    assert!(other_call.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_several_permits_waits_until_all_are_free() {
    let bench = Bench::new(3);
    let (one, two) = (bench.take(1), bench.take(2));
    let several = bench.wait(3);
    let mut later = bench.wait(1);
    bench.release(&two);
    assert!((&mut later).now_or_never().is_none(), "nobody overtakes");
    bench.release(&one);
    let several = granted(several);
    assert_eq!((several.terms.permits, bench.semaphore.usage().in_use), (3, 3));
    bench.release(&several);
    granted(later);
}

#[tokio::test(start_paused = true)]
async fn a_lease_expires_at_its_time() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    let next = bench.wait(1);
    pass(TTL - Duration::from_millis(1)).await;
    assert_eq!(bench.of(&bench.semaphore), std::slice::from_ref(&lease));
    assert_eq!(bench.semaphore.usage().waiting, 1);

    pass(Duration::from_millis(1)).await;
    let next = granted(next);
    assert_eq!(bench.of(&bench.semaphore), [next]);
    assert_eq!(bench.renew(&lease, None), Err(NoSuchLease), "it does not come back");
    bench.release(&lease);
    assert_eq!(bench.semaphore.usage().in_use, 1, "nothing is given back twice");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_extends_a_lease() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    for _ in 0..5 {
        pass(TTL - SECOND).await;
        let renewed = bench.renew(&lease, None).unwrap();
        assert_eq!(renewed.expires, Instant::now() + TTL);
        assert_eq!(renewed.fencing_token, lease.fencing_token);
    }
    pass(TTL).await;
    assert_eq!(bench.semaphore.usage().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_can_change_the_time_to_live() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    bench.renew(&lease, Some(2 * SECOND)).unwrap();
    pass(SECOND).await;
    bench.renew(&lease, None).unwrap();
    pass(2 * SECOND - Duration::from_millis(1)).await;
    assert_eq!(bench.semaphore.usage().in_use, 1);
    pass(Duration::from_millis(1)).await;
    assert_eq!(bench.semaphore.usage().in_use, 0, "sooner than it was to end at first");
}

#[tokio::test(start_paused = true)]
async fn releasing_twice_gives_back_once() {
    let bench = Bench::new(2);
    let (lease, _other) = (bench.take(1), bench.take(1));
    bench.release(&lease);
    bench.release(&lease);
    assert_eq!((bench.semaphore.usage().in_use, bench.semaphore.usage().available()), (1, 1));
    assert_eq!(bench.renew(&lease, None), Err(NoSuchLease));
}

#[tokio::test(start_paused = true)]
async fn a_lease_belongs_to_one_semaphore() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    let other = SemaphoreId::parse("audio").unwrap();
    let store = bench.store();
    assert_eq!(now(store.renew_lease(&other, &lease.id, None)), Ok(Err(NoSuchLease)));
    assert_eq!(now(store.release_lease(&other, &lease.id)), Ok(Err(NoSuchLease)));
    assert_eq!(bench.semaphore.usage().in_use, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_the_queue() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    let leaver = bench.wait(1);
    let next = bench.wait(1);
    assert_eq!(bench.waiting(), (2, 2));
    // The permit is sent before the leaver is dropped, which does not receive it.
    bench.release(&lease);
    drop(leaver);
    assert_eq!(bench.waiting(), (0, 1), "the next has it and has not looked yet");
    granted(next);
    assert_eq!((bench.waiting(), bench.semaphore.usage().in_use), ((0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_its_time_is_over() {
    let bench = Bench::new(1);
    let _lease = bench.take(1);
    let unavailable = Err(NoLease::Unavailable);
    assert_eq!(bench.request(1, None, Duration::ZERO).now_or_never(), Some(unavailable.clone()));
    let mut request = bench.wait_with(1, None, 10 * SECOND);
    pass(10 * SECOND - Duration::from_millis(1)).await;
    assert!((&mut request).now_or_never().is_none());
    pass(Duration::from_millis(1)).await;
    assert_eq!(request.now_or_never(), Some(unavailable));
    assert_eq!(bench.waiting(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_requests_that_would_wait() {
    let bench = Bench::with_queue(1, 1);
    let _lease = bench.take(1);
    let _waits = bench.wait(1);
    let full = Err(NoLease::Refused(Refused::QueueFull));
    assert_eq!(bench.request(1, None, MINUTE).now_or_never(), Some(full));
    let unavailable = Err(NoLease::Unavailable);
    assert_eq!(bench.request(1, None, Duration::ZERO).now_or_never(), Some(unavailable));
}

#[tokio::test(start_paused = true)]
async fn a_lease_above_the_limit_is_refused_at_once_and_when_the_limit_falls() {
    let bench = Bench::new(3);
    let refused = |limit| Some(Err(NoLease::Refused(Refused::MoreThanLimit { limit })));
    for wait in [Duration::ZERO, MINUTE] {
        assert_eq!(bench.request(4, None, wait).now_or_never(), refused(3));
    }
    let held = bench.take(3);
    let (three, two) = (bench.wait(3), bench.wait(2));
    bench.register(id(), 2);
    assert_eq!(three.now_or_never(), refused(2));
    assert_eq!((bench.semaphore.usage().in_use, bench.semaphore.usage().limit), (3, 2));
    bench.release(&held);
    granted(two);
}

#[tokio::test(start_paused = true)]
async fn deleting_a_semaphore_ends_waits_and_keeps_leases() {
    let bench = Bench::new(1);
    let lease = bench.take(1);
    let waits = bench.wait(1);
    assert!(bench.delete());
    let deleted = Err(NoLease::Refused(Refused::SemaphoreDeleted));
    assert_eq!(waits.now_or_never(), Some(deleted));

    let anew = bench.register(id(), 1);
    assert_eq!(bench.of(&anew), []);
    assert!(bench.renew(&lease, None).is_ok(), "its holder can finish");
    assert_eq!(bench.semaphore.usage().in_use, 1);
    bench.release(&lease);
    assert_eq!((bench.semaphore.usage().in_use, anew.usage().in_use), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn fencing_tokens_grow_across_semaphores_and_restarts() {
    let before = u64::try_from(Timestamp::now().as_microsecond()).unwrap();
    let bench = Bench::new(1000);
    let other = bench.register(SemaphoreId::parse("b").unwrap(), 1000);
    let mut last = before - 1;
    for _ in 0..200 {
        let there = bench.leases.acquire(id(), &other, terms(1), None, Duration::ZERO);
        for lease in [bench.take(1), there.await.unwrap().0] {
            assert!(lease.fencing_token > last, "{} after {last}", lease.fencing_token);
            last = lease.fencing_token;
        }
    }
    let anew = Bench::new(1);
    // Faster than one a microsecond, so the tokens are ahead of the clock.
    while u64::try_from(Timestamp::now().as_microsecond()).unwrap() <= last {}
    assert!(anew.take(1).fencing_token > last);
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_returns_the_same_lease_while_it_lives() {
    let bench = Bench::new(3);
    let key = Some("order-66");
    let (lease, new) = bench.request(1, key, Duration::ZERO).await.unwrap();
    assert!(new);
    for wait in [Duration::ZERO, MINUTE] {
        assert_eq!(bench.request(1, key, wait).await, Ok((lease.clone(), false)));
    }
    assert_eq!(bench.request(2, key, MINUTE).await, Err(NoLease::KeyReused), "other terms");
    assert_eq!(bench.semaphore.usage().in_use, 1);

    bench.release(&lease);
    let (second, new) = bench.request(2, key, Duration::ZERO).await.unwrap();
    assert!(new && second.id != lease.id);
    pass(TTL).await;
    let (third, new) = bench.request(1, key, Duration::ZERO).await.unwrap();
    assert!(new && third.id != second.id);
    assert_eq!(bench.semaphore.usage().in_use, 1);
    bench.release(&third);
    assert_eq!(bench.leases.waiting().len(), 0, "nothing is kept of what is over");
}

#[tokio::test(start_paused = true)]
async fn requests_with_the_same_key_share_one_queue_position() {
    let bench = Bench::new(1);
    let held = bench.take(1);
    let key = Some("order-66");
    let first = bench.wait_with(1, key, MINUTE);
    let other = bench.wait(1);
    let second = bench.wait_with(1, key, MINUTE);
    assert_eq!(bench.waiting(), (2, 2));
    let reused = Err(NoLease::KeyReused);
    assert_eq!(bench.request(2, key, MINUTE).now_or_never(), Some(reused));

    drop(first);
    assert_eq!(bench.waiting(), (2, 2));
    let third = bench.wait_with(1, key, MINUTE);
    bench.release(&held);
    let (lease, new) = second.now_or_never().expect("the position of the first request").unwrap();
    assert!(!new);
    assert_eq!(third.now_or_never(), Some(Ok((lease.clone(), false))));
    assert_eq!(bench.semaphore.usage().in_use, 1);
    bench.release(&lease);
    granted(other);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_forgotten_when_no_request_waits_with_it() {
    let bench = Bench::new(1);
    let held = bench.take(1);
    let key = Some("order-66");
    let (first, second) = (bench.wait_with(1, key, MINUTE), bench.wait_with(1, key, MINUTE));
    drop((first, second));
    assert_eq!((bench.waiting(), bench.leases.waiting().len()), ((0, 0), 0));
    bench.release(&held);
    let (_, new) = bench.request(1, key, Duration::ZERO).await.unwrap();
    assert!(new);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_a_deleted_semaphore_is_unknown_to_a_new_one_of_its_name() {
    let bench = Bench::new(1);
    let key = Some("order-66");
    let (lease, _) = bench.request(1, key, Duration::ZERO).await.unwrap();
    bench.delete();
    let anew = bench.register(id(), 1);
    let asked = bench.leases.acquire(id(), &anew, terms(1), key, Duration::ZERO).await;
    let (other, new) = asked.unwrap();
    assert!(new && other.id != lease.id);
    bench.release(&lease);
    let asked = bench.leases.acquire(id(), &anew, terms(1), key, Duration::ZERO).await;
    assert_eq!(asked, Ok((other, false)), "the end of the old one is not the end of the new");
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_are_listed_until_they_have_a_lease_or_give_up() {
    let bench = Bench::new(2);
    let other = bench.register(SemaphoreId::parse("other").unwrap(), 1);
    let held = bench.take(2);
    let mut first = bench.wait(1);
    assert!(first.as_mut().now_or_never().is_none());
    advance(SECOND).await;
    let mut second = bench.wait(2);
    assert!(second.as_mut().now_or_never().is_none());
    let listed = |semaphore, most| {
        let (waits, all) = bench.leases.waits(semaphore, most);
        let waits = waits
            .iter()
            .map(|wait| (wait.holder.to_string(), wait.permits, wait.since.elapsed().as_secs()));
        (waits.collect::<Vec<_>>(), all)
    };
    let holder = || "render-7".to_owned();
    assert_eq!(listed(&bench.semaphore, 9), (vec![(holder(), 1, 1), (holder(), 2, 0)], 2));
    assert_eq!(listed(&bench.semaphore, 1), (vec![(holder(), 1, 1)], 2));
    assert_eq!(listed(&other, 9), (vec![], 0));
    drop(second);
    assert_eq!(listed(&bench.semaphore, 9).1, 1, "one gave up");
    bench.release(&held);
    assert!(first.await.is_ok());
    assert_eq!(listed(&bench.semaphore, 9).1, 0, "one has its lease");
}
