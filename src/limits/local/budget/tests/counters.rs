//! Every way of counting accepts the calls that are sent, and nearly all of the quota is used.

use std::collections::VecDeque;

use super::*;

/// How much faster than others a call can arrive.
const JITTER: Duration = Duration::from_millis(20);

/// A quota as Google may count it: whether it accepts calls that arrive in order, at `at` seconds.
trait Counter {
    fn takes(&mut self, amount: f64, at: f64) -> bool;
}

struct SlidingWindow {
    limit: f64,
    taken: VecDeque<(f64, f64)>,
    used: f64,
}

impl Counter for SlidingWindow {
    fn takes(&mut self, amount: f64, at: f64) -> bool {
        while let Some((_, amount)) =
            self.taken.pop_front_if(|(taken_at, _)| at - *taken_at >= 60.0)
        {
            self.used -= amount;
        }
        self.taken.push_back((at, amount));
        self.used += amount;
        self.used <= self.limit
    }
}

struct FixedMinute {
    limit: f64,
    offset: f64,
    number: f64,
    used: f64,
}

impl Counter for FixedMinute {
    fn takes(&mut self, amount: f64, at: f64) -> bool {
        let number = ((at + self.offset) / 60.0).floor();
        if number != self.number {
            (self.number, self.used) = (number, 0.0);
        }
        self.used += amount;
        self.used <= self.limit
    }
}

/// A bucket that holds one second's worth. A larger call is accepted when it is full.
struct TokenBucket {
    limit: f64,
    level: f64,
    updated: f64,
}

impl Counter for TokenBucket {
    fn takes(&mut self, amount: f64, at: f64) -> bool {
        let size = (self.limit / 60.0).max(1.0);
        self.level = (self.level + (at - self.updated) * self.limit / 60.0).min(size);
        self.updated = at;
        let is_enough = self.level + 1e-9 >= amount.min(size);
        self.level -= amount;
        is_enough
    }
}

fn counters(limit: f64, random: &mut fastrand::Rng) -> [Box<dyn Counter>; 3] {
    [
        Box::new(SlidingWindow { limit, taken: VecDeque::new(), used: 0.0 }),
        Box::new(FixedMinute { limit, offset: 60.0 * random.f64(), number: -1.0, used: 0.0 }),
        Box::new(TokenBucket { limit, level: (limit / 60.0).max(1.0), updated: 0.0 }),
    ]
}

/// A load of more calls than the quotas admit.
pub(in crate::limits) struct Load {
    pub(in crate::limits) quotas: Quotas,
    /// What a call costs, at random.
    pub(in crate::limits) tokens: std::ops::Range<u64>,
    /// The longest time between a call's reservation and its start.
    pub(in crate::limits) held: Duration,
    /// The largest fraction by which a call costs less than estimated.
    pub(in crate::limits) overestimated: f64,
    pub(in crate::limits) minutes: u32,
}

/// The calls that were sent, in seconds and tokens.
#[derive(Clone, Copy)]
pub(in crate::limits) struct Started {
    pub(in crate::limits) left_at: f64,
    pub(in crate::limits) tokens: u64,
}

impl Load {
    /// Runs 50 clients for the load's minutes. Returns what was sent when.
    async fn run(&self, seed: u64) -> Vec<Started> {
        let budget = budget(self.quotas);
        let start = Instant::now();
        let departures = Mutex::new(Vec::new());
        let client = async |number: u64| {
            let mut random = fastrand::Rng::with_seed(seed << 8 | number);
            while start.elapsed() < self.minutes * MINUTE {
                let estimate = random.u64(self.tokens.clone());
                let actual = estimate as f64 * (1.0 - self.overestimated * random.f64());
                let reservation = reserve(&budget, estimate).await;
                if !self.held.is_zero() {
                    sleep(self.held.mul_f64(random.f64())).await;
                }
                let sent = reservation.start();
                let left_at = sent.started.at.duration_since(start).as_secs_f64();
                departures.lock().unwrap().push(Started { left_at, tokens: actual as u64 });
                sleep(SECOND.mul_f64(3.0 * random.f64())).await;
                sent.settle(actual as u64);
            }
        };
        join_all((0..50).map(client)).await;
        departures.into_inner().unwrap()
    }

    /// The share of the tighter quota that was used from the second minute on.
    fn utilisation(&self, departures: &[Started]) -> f64 {
        let steady =
            |started: &&Started| (60.0..60.0 * f64::from(self.minutes)).contains(&started.left_at);
        let minutes = f64::from(self.minutes - 1);
        let (mut requests, mut tokens) = (0, 0);
        for started in departures.iter().filter(steady) {
            requests += 1;
            tokens += started.tokens;
        }
        let share = |used: u64, limit: Option<u64>| {
            limit.map_or(0.0, |limit| used as f64 / minutes / limit as f64)
        };
        share(requests, self.quotas[RequestsPerMinute])
            .max(share(tokens, self.quotas[InputTokensPerMinute]))
    }
}

/// Sends the calls to every counter, each delayed at random.
fn arrive(departures: &[Started], quotas: Quotas, seed: u64) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut arrivals: Vec<_> = departures
        .iter()
        .map(|started| {
            let jitter = JITTER.as_secs_f64() * random.f64();
            (started.left_at + jitter, started.tokens)
        })
        .collect();
    arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
    for number in 0..3 {
        let mut counter =
            |limit: u64| counters(limit as f64, &mut random).into_iter().nth(number).unwrap();
        let mut requests = quotas[RequestsPerMinute].map(&mut counter);
        let mut tokens = quotas[InputTokensPerMinute].map(&mut counter);
        for (at, cost) in &arrivals {
            let takes = |counter: &mut Option<Box<dyn Counter>>, amount: u64| {
                counter.as_mut().is_none_or(|counter| counter.takes(amount as f64, *at))
            };
            if !takes(&mut requests, 1) || !takes(&mut tokens, *cost) {
                return Err(format!("counter {number} refused {cost} tokens at {at:.3} s"));
            }
        }
    }
    Ok(())
}

async fn assert_never_refused(load: Load, at_least: f64) {
    let departures = load.run(1).await;
    assert_taken(&load, &departures, at_least);
}

/// No counter refuses a call, and nearly all of the quota is used.
pub(in crate::limits) fn assert_taken(load: &Load, departures: &[Started], at_least: f64) {
    for seed in 0..8 {
        assert_eq!(arrive(departures, load.quotas, seed), Ok(()));
    }
    let utilisation = load.utilisation(departures);
    println!("{:?}: {:.1} %", load.quotas, 100.0 * utilisation);
    assert!(utilisation >= at_least, "{:?}: {utilisation:.3}", load.quotas);
}

#[tokio::test(start_paused = true)]
async fn no_counter_refuses_requests() {
    for (limit, minutes, at_least) in [
        (5, 60, 0.98),
        (10, 30, 0.97),
        (60, 10, 0.96),
        (61, 10, 0.96),
        (65, 10, 0.97),
        (100, 10, 0.99),
        (300, 10, 0.99),
        (1000, 5, 0.99),
    ] {
        let load = Load {
            quotas: requests(limit),
            tokens: 1..2,
            held: Duration::ZERO,
            overestimated: 0.0,
            minutes,
        };
        assert_never_refused(load, at_least).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_counter_refuses_tokens() {
    // The larger the calls, the more of a window stays unused because the next does not fit.
    for (largest, at_least) in [(5000, 0.98), (40_000, 0.95), (500_000, 0.6)] {
        let load = Load {
            quotas: per_minute(1000, 1_000_000),
            tokens: 1..largest,
            held: Duration::ZERO,
            overestimated: 0.0,
            minutes: 10,
        };
        assert_never_refused(load, at_least).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_counter_refuses_calls_that_a_semaphore_delayed() {
    for (limit, held_ms, at_least) in [(100, 200, 0.97), (300, 400, 0.97), (1000, 400, 0.97)] {
        let load = Load {
            quotas: per_minute(limit, 4000 * limit),
            tokens: 1..6000,
            held: Duration::from_millis(held_ms),
            overestimated: 0.0,
            minutes: 10,
        };
        assert_never_refused(load, at_least).await;
    }
}

#[tokio::test(start_paused = true)]
async fn high_estimates_slow_calls_down_and_cause_no_refusals() {
    let load = Load {
        quotas: per_minute(1000, 1_000_000),
        tokens: 1..8000,
        held: Duration::from_millis(100),
        overestimated: 0.05,
        minutes: 10,
    };
    assert_never_refused(load, 0.95).await;
    let load = Load {
        quotas: per_minute(1000, 1_000_000),
        tokens: 1..100_000,
        held: Duration::from_millis(300),
        overestimated: 1.0,
        minutes: 10,
    };
    assert_never_refused(load, 0.4).await;
}
