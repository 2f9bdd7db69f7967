use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;
use crate::limits::semaphore::Acquire as _;

/// The number of clients.
const CLIENTS: u64 = 100;

/// A Gemini that refuses calls above its capacity, and some at random.
struct Upstream {
    capacity: AtomicUsize,
    in_flight: AtomicUsize,
    latency_ms: Range<u64>,
    /// How long a refusal takes.
    refusal_ms: u64,
    random_refusals: f64,
    succeeded: AtomicUsize,
    refused: AtomicUsize,
}

impl Upstream {
    fn new(capacity: usize, latency_ms: u64) -> Self {
        Self {
            capacity: AtomicUsize::new(capacity),
            in_flight: AtomicUsize::new(0),
            latency_ms: latency_ms * 4 / 5..latency_ms * 6 / 5,
            refusal_ms: 0,
            random_refusals: 0.0,
            succeeded: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }

    /// Whether the call was answered.
    async fn call(&self, random: &mut fastrand::Rng) -> bool {
        if self.in_flight.load(Relaxed) >= self.capacity.load(Relaxed)
            || random.f64() < self.random_refusals
        {
            self.refused.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(self.refusal_ms)).await;
            return false;
        }
        self.in_flight.fetch_add(1, Relaxed);
        sleep(Duration::from_millis(random.u64(self.latency_ms.clone()))).await;
        self.in_flight.fetch_sub(1, Relaxed);
        self.succeeded.fetch_add(1, Relaxed);
        true
    }
}

/// Starts the clients. Each calls until the test ends.
fn start_clients(limit: &Arc<AdaptiveLimit>, upstream: &Arc<Upstream>, seed: u64) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (limit, upstream) = (Arc::clone(limit), Arc::clone(upstream));
        let mut random = fastrand::Rng::with_seed(seed * CLIENTS + client);
        clients.spawn(async move {
            loop {
                let slot = limit.enter(limit.semaphore().acquire().await.unwrap());
                if upstream.call(&mut random).await {
                    slot.succeeded();
                } else {
                    slot.overloaded();
                    sleep(Duration::from_millis(random.u64(0..500))).await;
                }
            }
        });
    }
    clients
}

/// The limit, ten times a second.
async fn sample(limit: &AdaptiveLimit, seconds: u64) -> Vec<usize> {
    let start = Instant::now();
    let mut samples = Vec::new();
    for tenth in 1..=seconds * 10 {
        sleep_until(start + Duration::from_millis(tenth * 100)).await;
        samples.push(limit.limit());
    }
    samples
}

fn mean(samples: &[usize]) -> f64 {
    samples.iter().sum::<usize>() as f64 / samples.len() as f64
}

/// Lets Gemini's capacity fall and rise, and compares with a limit that always equals the capacity.
async fn assert_follows_the_capacity(
    latency_ms: u64,
    refusal_ms: u64,
    most_refused: f64,
    seed: u64,
) {
    const PHASE_SECONDS: u64 = 120;
    let limit = AdaptiveLimit::new(100);
    let upstream = Arc::new(Upstream { refusal_ms, ..Upstream::new(60, latency_ms) });
    let _clients = start_clients(&limit, &upstream, seed);
    let mut ideal = 0.0;
    for capacity in [60, 20, 60] {
        upstream.capacity.store(capacity, Relaxed);
        let samples = sample(&limit, PHASE_SECONDS).await;
        ideal += (capacity as u64 * PHASE_SECONDS * 1000) as f64 / latency_ms as f64;

        let outside = |limit: &usize| limit.abs_diff(capacity) * 10 > capacity;
        let settled = samples.iter().rposition(outside).map_or(0, |last| last + 1);
        println!(
            "{latency_ms} ms, capacity {capacity}: within 10 % after {:.1} s, mean limit {:.1}",
            settled as f64 / 10.0,
            mean(&samples)
        );
        assert!(settled <= 600, "outside 10 % a minute after the change");
    }
    let succeeded = upstream.succeeded.load(Relaxed) as f64;
    let refused = upstream.refused.load(Relaxed) as f64;
    let (throughput, refused) = (succeeded / ideal, refused / (succeeded + refused));
    println!(
        "{latency_ms} ms: throughput {:.1} % of the ideal, {:.2} % refused",
        throughput * 100.0,
        refused * 100.0
    );
    assert!(throughput >= 0.9);
    assert!(refused < most_refused);
}

#[tokio::test(start_paused = true)]
async fn it_follows_a_capacity_that_falls_and_rises() {
    for seed in 0..3 {
        assert_follows_the_capacity(200, 0, 0.005, seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_follows_a_capacity_when_calls_are_slow() {
    for seed in 0..3 {
        assert_follows_the_capacity(1000, 0, 0.005, seed).await;
    }
}

/// Calls in flight at the first refusal are refused too, so there are more refusals than above.
#[tokio::test(start_paused = true)]
async fn it_follows_a_capacity_when_refusals_take_as_long_as_answers() {
    for seed in 0..3 {
        assert_follows_the_capacity(200, 200, 0.01, seed).await;
        assert_follows_the_capacity(1000, 1000, 0.02, seed).await;
    }
}

/// The mean and the lowest limit, out of 50, when that share of all calls is refused by chance.
async fn limit_under_chance(random_refusals: f64) -> (f64, usize) {
    let limit = AdaptiveLimit::new(50);
    let upstream = Arc::new(Upstream { random_refusals, ..Upstream::new(usize::MAX, 200) });
    let _clients = start_clients(&limit, &upstream, 1);
    let samples = sample(&limit, 1200).await;
    let lowest = *samples.iter().min().unwrap();
    println!("{random_refusals} refused: mean limit {:.1}, lowest {lowest}", mean(&samples));
    (mean(&samples), lowest)
}

/// Halving with each refusal and adding one a round would give √(4/p) for a share p refused.
#[tokio::test(start_paused = true)]
async fn random_refusals_do_not_erode_the_limit() {
    let (mean, lowest) = limit_under_chance(0.001).await;
    assert!(mean > 45.0 && lowest > 25, "one in a thousand");
    let (mean, lowest) = limit_under_chance(0.01).await;
    assert!(mean > 25.0 && lowest > 5, "one in a hundred");
    let (mean, lowest) = limit_under_chance(0.05).await;
    assert!(mean > 8.0 && lowest > 1, "one in twenty");
}

fn enter(limit: &Arc<AdaptiveLimit>) -> Slot {
    limit.enter(limit.semaphore().try_acquire().expect("a permit is free"))
}

fn enter_all(limit: &Arc<AdaptiveLimit>) -> Vec<Slot> {
    (0..limit.limit()).map(|_| enter(limit)).collect()
}

#[test]
fn calls_refused_together_lower_the_limit_once() {
    let limit = AdaptiveLimit::new(50);
    for slot in enter_all(&limit) {
        slot.overloaded();
    }
    assert_eq!((limit.limit(), limit.broke_at(), limit.ceiling()), (38, Some(50), 50));
    assert_eq!((limit.semaphore().usage().limit, limit.semaphore().usage().available()), (38, 38));
}

/// Permits of a raised limit are granted to waiting requests at once, and received one by one.
#[tokio::test]
async fn the_outcome_of_a_call_from_before_the_limit_fell_is_ignored() {
    let limit = AdaptiveLimit::new(8);
    let mut slots = enter_all(&limit);
    let granted = [limit.semaphore().acquire(), limit.semaphore().acquire()].map(Box::pin);
    let mut granted = futures_util::future::join_all(granted);
    assert!(futures_util::poll!(&mut granted).is_pending());
    slots.truncate(6);
    slots.remove(0).overloaded();
    assert_eq!(limit.limit(), 6);
    for permit in granted.await {
        let slot = limit.enter(permit.unwrap());
        // The limit would forgive one.
        slot.overloaded();
    }
    assert_eq!(limit.limit(), 6);
}

#[test]
fn a_quiet_service_raises_nothing() {
    let limit = AdaptiveLimit::new(8);
    enter(&limit).overloaded();
    assert_eq!(limit.limit(), 6);
    for _ in 0..1000 {
        enter(&limit).succeeded();
    }
    assert_eq!(limit.limit(), 6, "one call at a time does not test a limit of six");
    for slot in enter_all(&limit) {
        slot.succeeded();
    }
    assert_eq!(limit.limit(), 6, "the first of six ended while it was full, the others did not");
    let _others = enter_all(&limit).split_off(1);
    for _ in 0..6 {
        enter(&limit).succeeded();
    }
    assert_eq!(limit.limit(), 7);
}

#[test]
fn a_dropped_slot_is_given_back_and_changes_nothing() {
    let limit = AdaptiveLimit::new(4);
    enter(&limit).overloaded();
    let slots = enter_all(&limit);
    assert_eq!((slots.len(), limit.semaphore().usage().available()), (3, 0));
    drop(slots);
    assert_eq!((limit.limit(), limit.broke_at()), (3, Some(4)));
    assert_eq!(limit.semaphore().usage().available(), 3);
}

#[test]
fn a_holder_that_panics_gives_its_slot_back() {
    let limit = AdaptiveLimit::new(1);
    let slot = enter(&limit);
    let holder = std::thread::spawn(move || {
        let _slot = slot;
        panic!("the call went wrong");
    });
    assert!(holder.join().is_err());
    assert_eq!((limit.limit(), limit.semaphore().usage().available()), (1, 1));
}

#[test]
fn a_success_takes_no_lock_while_nothing_is_wrong() {
    let limit = AdaptiveLimit::new(4);
    let slots = enter_all(&limit);
    let locked = limit.search();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        slots.into_iter().for_each(Slot::succeeded);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(10)).expect("no success waits for the lock");
    drop(locked);
    assert_eq!(limit.semaphore().usage().available(), 4);
}

#[test]
fn a_ceiling_of_zero_is_one() {
    let limit = AdaptiveLimit::new(0);
    enter(&limit).overloaded();
    assert_eq!((limit.limit(), limit.ceiling(), limit.broke_at()), (1, 1, Some(1)));
    enter(&limit).succeeded();
    assert_eq!((limit.limit(), limit.broke_at()), (1, None));
}

#[test]
fn the_limit_stays_between_one_and_the_ceiling() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limit = AdaptiveLimit::new(random.usize(1..40));
        // From nearly never to nearly always, so that the limit reaches both ends.
        let refusals = random.f64();
        let mut slots = Vec::new();
        for _ in 0..2000 {
            if random.bool() {
                slots.extend(limit.semaphore().try_acquire().map(|permit| limit.enter(permit)));
            } else if !slots.is_empty() {
                let slot = slots.swap_remove(random.usize(0..slots.len()));
                match random.f64() {
                    share if share < 0.1 => drop(slot),
                    share if share < 0.1 + refusals * refusals => slot.overloaded(),
                    _ => slot.succeeded(),
                }
            }
            assert!((1..=limit.ceiling()).contains(&limit.limit()), "seed {seed}");
            assert!(limit.broke_at().is_none_or(|at| (1..=limit.ceiling()).contains(&at)));
            assert_eq!(limit.semaphore().usage().limit, limit.limit());
            assert_eq!(limit.semaphore().usage().in_use, slots.len());
        }
    }
}
