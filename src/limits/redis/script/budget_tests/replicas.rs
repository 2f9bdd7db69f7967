//! Every way of counting accepts the calls that several replicas send together.

use super::*;
use crate::limits::local::budget_tests::counters::{Load, Started, assert_taken};

const REPLICAS: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: usize = 48;

/// The longest time between two calls of a replica.
const RENEWAL: Duration = Duration::from_secs(10);

enum Event {
    /// A client requests a call.
    Asks(usize),
    /// Sends its call.
    Leaves(usize),
    /// Its call ends.
    Settles(usize),
    /// A replica checks again.
    Looks(usize),
}

/// The estimated and the actual cost of a client's call, in tokens.
#[derive(Clone, Copy, Default)]
struct Cost {
    estimated: u64,
    actual: u64,
}

/// A load on several replicas, on the clock that is in `shared`.
struct World<'a> {
    load: &'a Load,
    random: fastrand::Rng,
    shared: Shared,
    notifications: Notifications<'a>,
    /// By time, and in the order in which they were scheduled.
    agenda: BTreeMap<(u64, usize), Event>,
    decided: usize,
    /// For each replica, the number of its next check.
    looks: [usize; REPLICAS.len()],
    costs: [Cost; CLIENTS],
    departures: Vec<Started>,
}

impl World<'_> {
    fn at(&mut self, time: u64, event: Event) -> usize {
        self.decided += 1;
        self.agenda.insert((time, self.decided), event);
        self.decided
    }

    fn after(&mut self, most: Duration, event: Event) {
        let time = (most.as_micros() as f64 * self.random.f64()) as u64;
        self.at(self.shared.now + time, event);
    }

    /// A replica sends commands; all receive their answers.
    fn send(&mut self, replica: usize, operations: &[Value]) {
        let reply = self.shared.send(REPLICAS[replica], operations);
        assert!(!reply.expired);
        let check_again = reply.check_again_in_us.unwrap_or(u64::MAX);
        let check_again = check_again.min(RENEWAL.as_micros() as u64);
        self.looks[replica] = self.at(self.shared.now + check_again, Event::Looks(replica));
        let received = self.notifications.received_by(&mut self.shared, REPLICAS[replica], reply);
        for (_, ticket, verdict) in received {
            assert!(matches!(verdict, Verdict::Granted { .. }), "{verdict:?}");
            self.after(self.load.held, Event::Leaves(ticket as usize));
        }
    }

    fn happens(&mut self, number: usize, event: Event) {
        match event {
            Event::Asks(client) => {
                let estimated = self.random.u64(self.load.tokens.clone());
                let less = self.load.overestimated * self.random.f64();
                let actual = (estimated as f64 * (1.0 - less)) as u64;
                self.costs[client] = Cost { estimated, actual };
                self.send(client % REPLICAS.len(), &[ask(client as u64, estimated)]);
            }
            Event::Leaves(client) => {
                let Cost { estimated, actual } = self.costs[client];
                let left_at = (self.shared.now - START) as f64 / 1e6;
                self.departures.push(Started { left_at, tokens: actual });
                self.send(client % REPLICAS.len(), &[start_call(client as u64, estimated)]);
                self.after(3 * SECOND, Event::Settles(client));
            }
            Event::Settles(client) => {
                let Cost { estimated, actual } = self.costs[client];
                if actual != estimated {
                    let settled = json!({
                        "op": "settle", "account": ACCOUNT, "ticket": client,
                        "counted": {"requests": 1, "tokens": estimated},
                        "actual": {"requests": 1, "tokens": actual},
                        "sent_us_ago": 0, "midnight_us": MIDNIGHT_US,
                    });
                    self.send(client % REPLICAS.len(), &[settled]);
                }
                self.at(self.shared.now, Event::Asks(client));
            }
            Event::Looks(replica) if self.looks[replica] == number => self.send(replica, &[]),
            Event::Looks(_) => {}
        }
    }
}

/// Several replicas send more than the quotas admit, for the load's minutes.
fn run(load: &Load) -> Vec<Started> {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "replicas");
    let notifications = Notifications::of(&shared, &mut listener);
    for replica in REPLICAS {
        shared.join(replica, load.quotas);
    }
    let mut world = World {
        load,
        random: fastrand::Rng::with_seed(1),
        shared,
        notifications,
        agenda: BTreeMap::new(),
        decided: 0,
        looks: [0; REPLICAS.len()],
        costs: [Cost::default(); CLIENTS],
        departures: Vec::new(),
    };
    for client in 0..CLIENTS {
        world.after(SECOND, Event::Asks(client));
    }
    let end = START + u64::from(load.minutes) * MINUTE.as_micros() as u64;
    while let Some(((time, number), event)) = world.agenda.pop_first()
        && time < end
    {
        world.shared.now = time;
        world.happens(number, event);
    }
    world.departures
}

fn assert_never_refused(load: &Load, at_least: f64) {
    assert_taken(load, &run(load), at_least);
}

#[test]
fn no_counter_refuses_requests_of_several_replicas() {
    for (limit, held_ms, minutes) in [(5, 0, 20), (60, 0, 6), (300, 200, 4), (1000, 200, 3)] {
        let load = Load {
            quotas: requests(limit),
            tokens: 1..2,
            held: Duration::from_millis(held_ms),
            overestimated: 0.0,
            minutes,
        };
        assert_never_refused(&load, 0.95);
    }
}

#[test]
fn no_counter_refuses_tokens_of_several_replicas() {
    let load = Load {
        quotas: per_minute(1000, 1_000_000),
        tokens: 1..10_000,
        held: Duration::from_millis(50),
        overestimated: 0.05,
        minutes: 4,
    };
    assert_never_refused(&load, 0.95);
}
