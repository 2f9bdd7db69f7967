//! Budgets in Redis: the script in a real Redis, on a clock that the tests set.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use redis::{Connection, PubSub, Script};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use super::SCRIPT;
use crate::limits::budget::{
    Budget as _, BudgetAdmin as _, NotReserved, Reservation, Sent, TryReserve,
};
use crate::limits::local::LocalBudget;
use crate::limits::local::budget_tests::*;
use crate::limits::model::{
    BudgetUsage, Cost, Exhausted, Line, PerKind, QuotaKind, QuotaUsage, Quotas, Resource,
};
use crate::limits::redis::test_server::RedisServer;

mod equivalence;
mod replicas;
mod upkeep;

/// When a test begins, in microseconds: at the start of a cell of the grid, for a minute or a second.
const START: u64 = 1_764_000_000_000_000 / 234_375 * 234_375;

const ACCOUNT: &str = "an account";

/// The run of Redis in all tests.
const RUN: &str = "the only";

/// What `redis.call('TIME')` becomes: seconds, and microseconds of any number.
const TEST_TIME: &str = "{0, ARGV[5]}";

/// The outcome of a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    #[serde(rename = "reserved")]
    Granted {
        account: String,
        cost: Cost,
    },
    NoQuota {
        kind: Option<QuotaKind>,
    },
    TooLarge {
        kind: QuotaKind,
        cost: u64,
        limit: u64,
    },
    NotBefore {
        kind: Option<QuotaKind>,
        retry_after_us: u64,
    },
    DayExhausted {
        kind: Option<QuotaKind>,
        retry_after_us: u64,
    },
    Unavailable,
    Unopened,
    #[serde(other)]
    OfSemaphore,
}

impl Verdict {
    fn granted(tokens: u64) -> Self {
        Self::granted_cost(Cost::one(tokens))
    }

    /// Whether it is the same up to a microsecond: reservations and waiting requests are rounded up
    /// separately, and of two calls served in the same instant one can be answered before the other
    /// has moved.
    fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::NotBefore { kind, retry_after_us: a },
                Self::NotBefore { kind: other, retry_after_us: b },
            ) => kind == other && a.abs_diff(*b) <= 1,
            _ => self == other,
        }
    }

    fn granted_cost(cost: Cost) -> Self {
        Self::Granted { account: ACCOUNT.to_owned(), cost }
    }
}

impl From<Exhausted> for Verdict {
    fn from(reason: Exhausted) -> Self {
        match reason {
            Exhausted::NoQuota { kind } => Self::NoQuota { kind },
            Exhausted::TooLarge { kind, cost, limit } => Self::TooLarge { kind, cost, limit },
            Exhausted::NotBefore { kind, retry_after } => {
                Self::NotBefore { kind, retry_after_us: micros(retry_after) }
            }
            Exhausted::NoRoom { .. } => unreachable!("no budget keeps enqueued tokens"),
            Exhausted::DayExhausted { kind, retry_after } => {
                Self::DayExhausted { kind, retry_after_us: micros(retry_after) }
            }
        }
    }
}

/// Rounded up, as the script does.
fn micros(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1000) as u64
}

/// As the script returns it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Usage {
    quotas: PerKind<Option<QuotaUsage>>,
    waiting: u64,
    next_free_in_us: Option<u64>,
    paused_for_us: Option<u64>,
}

impl std::ops::Index<QuotaKind> for Usage {
    type Output = QuotaUsage;

    fn index(&self, kind: QuotaKind) -> &QuotaUsage {
        self.quotas[kind].as_ref().expect("the script reports every kind")
    }
}

impl From<BudgetUsage> for Usage {
    fn from(usage: BudgetUsage) -> Self {
        Self {
            // The script does not keep enqueued tokens.
            quotas: PerKind::from_fn(|kind| Some(usage[kind]))
                .with(QuotaKind::EnqueuedTokens, None),
            waiting: usage.waiting,
            next_free_in_us: usage.next_free_in.map(micros),
            paused_for_us: usage.paused_for.map(micros),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    ticket: u64,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Debug, Deserialize)]
struct Reply {
    #[serde(default)]
    expired: bool,
    #[serde(default)]
    results: BTreeMap<usize, Value>,
    #[serde(default)]
    answers: Vec<Answer>,
    check_again_in_us: Option<u64>,
    opens_in_us: Option<u64>,
    stepped_us: Option<f64>,
    other_format: Option<String>,
}

impl Reply {
    /// The outcome of the only ticket.
    fn verdict(mut self) -> Verdict {
        assert_eq!(self.answers.len(), 1, "{self:?}");
        self.answers.remove(0).verdict
    }
}

/// The shared limits and the time.
struct Shared {
    connection: Connection,
    script: Script,
    /// The prefix of the keys.
    prefix: String,
    /// The time of Redis's clock, in microseconds.
    now: u64,
    lease: Duration,
    /// When each member called last, by its own clock.
    last_calls: BTreeMap<String, u64>,
    /// How far Redis's clock is ahead of the members'.
    ahead: i64,
}

impl Shared {
    fn new(server: &RedisServer, prefix: impl Into<String>) -> Self {
        let source = SCRIPT.replace("redis.call('TIME')", TEST_TIME);
        assert_ne!(source, *SCRIPT, "the script reads the clock in another way");
        let mut shared = Self {
            connection: connect(server),
            script: Script::new(&source),
            prefix: prefix.into(),
            now: START,
            lease: 30 * SECOND,
            last_calls: BTreeMap::new(),
            ahead: 0,
        };
        shared.set("run", RUN);
        shared
    }

    fn set(&mut self, name: &str, value: &str) {
        let key = format!("{}:{name}", self.prefix);
        let () = redis::cmd("SET").arg(key).arg(value).query(&mut self.connection).unwrap();
    }

    fn send(&mut self, member: &str, operations: &[Value]) -> Reply {
        let last_call = self.last_calls.insert(member.to_owned(), self.now);
        let quiet =
            last_call.map(|last_call| (self.now - last_call).to_string()).unwrap_or_default();
        let reply: String = self
            .script
            .key(&self.prefix)
            .arg(member)
            .arg(self.lease.as_micros() as u64)
            .arg(serde_json::to_string(operations).unwrap())
            .arg(quiet)
            .arg(self.now as i64 + self.ahead)
            .invoke(&mut self.connection)
            .unwrap_or_else(|error| panic!("{operations:?}: {error}"));
        serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{reply}: {error}"))
    }

    /// Makes a member that opens the account.
    fn join(&mut self, member: &str, quotas: Quotas) -> Reply {
        self.send(member, &[join(), open(quotas)])
    }

    fn advance(&mut self, time: Duration) {
        self.now += time.as_micros() as u64;
    }

    fn usage(&mut self, member: &str) -> Usage {
        let mut reply = self.send(member, &[usage()]);
        serde_json::from_value(reply.results.remove(&0).expect("it is open")).unwrap()
    }
}

fn connect(server: &RedisServer) -> Connection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_connection().expect("the server runs")
}

/// What is published to members.
struct Notifications<'a> {
    subscription: PubSub<'a>,
    prefix: String,
}

impl<'a> Notifications<'a> {
    fn of(shared: &Shared, listener: &'a mut Connection) -> Self {
        let mut subscription = listener.as_pubsub();
        subscription.psubscribe(format!("{}:*", shared.prefix)).unwrap();
        Self { subscription, prefix: shared.prefix.clone() }
    }

    /// The messages since the last call: receiver and message.
    fn receive(&mut self, shared: &mut Shared) -> Vec<(String, Value)> {
        let last = format!("{}:last", self.prefix);
        let published = redis::cmd("PUBLISH").arg(&last).arg("").query(&mut shared.connection);
        let () = published.unwrap();
        let mut notifications = Vec::new();
        loop {
            let message = self.subscription.get_message().unwrap();
            let channel = message.get_channel_name();
            if channel == last {
                return notifications;
            }
            let (_, member) = channel.rsplit_once(':').unwrap();
            let received: String = message.get_payload().unwrap();
            notifications.push((member.to_owned(), serde_json::from_str(&received).unwrap()));
        }
    }

    /// All answers, to the sender and to others: receiver, ticket and verdict.
    fn received_by(
        &mut self,
        shared: &mut Shared,
        sender: &str,
        reply: Reply,
    ) -> Vec<(String, u64, Verdict)> {
        let published =
            self.receive(shared).into_iter().filter_map(|(member, mut notifications)| {
                let answers = notifications.get_mut("answers")?.take();
                Some((member, serde_json::from_value(answers).unwrap()))
            });
        let own = std::iter::once((sender.to_owned(), reply.answers));
        own.chain(published)
            .flat_map(|(member, answers)| {
                answers.into_iter().map(move |of| (member.clone(), of.ticket, of.verdict))
            })
            .collect()
    }
}

/// Without unlimited kinds, for which the script accepts no null.
fn limits(quotas: Quotas) -> Value {
    json!(quotas)
}

/// Longer than any test except those of the day.
const MIDNIGHT_US: u64 = 80_000_000_000;

fn join() -> Value {
    json!({
        "op": "join", "run": RUN, "limit": 10, "starts": true, "known": [], "longest_us": 0,
    })
}

fn open(quotas: Quotas) -> Value {
    json!({
        "op": "open_budget", "proven": false, "account": ACCOUNT, "planned": limits(quotas),
        "minute_us": MINUTE.as_micros() as u64, "midnight_us": MIDNIGHT_US,
    })
}

/// A request without a tight deadline.
fn ask(ticket: u64, tokens: u64) -> Value {
    json!({
        "op": "reserve", "account": ACCOUNT, "ticket": ticket, "cost": Cost::one(tokens),
        "line": "queue", "waited_us": 0, "time_limit_us": MIDNIGHT_US, "midnight_us": MIDNIGHT_US, "wait": true,
    })
}

fn ask_in(line: &str, ticket: u64, tokens: u64) -> Value {
    with(ask(ticket, tokens), "line", json!(line))
}

fn with(mut operation: Value, name: &str, value: Value) -> Value {
    operation[name] = value;
    operation
}

fn start_call(ticket: u64, tokens: u64) -> Value {
    json!({
        "op": "start_call", "account": ACCOUNT, "ticket": ticket, "cost": Cost::one(tokens),
        "midnight_us": MIDNIGHT_US,
    })
}

fn give_back(tokens: u64) -> Value {
    json!({"op": "give_back_budget", "account": ACCOUNT, "cost": Cost::one(tokens)})
}

fn usage() -> Value {
    json!({"op": "budget_usage", "account": ACCOUNT, "midnight_us": MIDNIGHT_US})
}

/// Admits all waiting requests one after the other, and sends each. Returns their order.
fn drain(
    shared: &mut Shared,
    notifications: &mut Notifications<'_>,
    sender: &str,
) -> Vec<(String, u64)> {
    let mut order = Vec::new();
    for _ in 0..100 {
        let checked = shared.send(sender, &[usage()]);
        let (check_again, waiting) =
            (checked.check_again_in_us, checked.results[&0]["waiting"].clone());
        let mut received = notifications.received_by(shared, sender, checked);
        if received.is_empty() && waiting == 0 {
            return order;
        }
        if received.is_empty() {
            shared.now += check_again.expect("somebody waits").min(10_000_000);
        }
        while let Some((member, ticket, verdict)) = received.pop() {
            assert!(matches!(verdict, Verdict::Granted { .. }), "{member} {ticket}: {verdict:?}");
            let reply = shared.send(&member, &[start_call(ticket, 1)]);
            received.extend(notifications.received_by(shared, &member, reply));
            order.push((member, ticket));
        }
    }
    panic!("not all were admitted: {order:?}");
}

fn in_order(of: &[(&str, u64)]) -> Vec<(String, u64)> {
    of.iter().map(|(member, ticket)| ((*member).to_owned(), *ticket)).collect()
}

fn start_server() -> RedisServer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(RedisServer::start())
}

fn listening_server() -> (RedisServer, Connection) {
    let server = start_server();
    let listener = connect(&server);
    (server, listener)
}

/// With the number that no call has, only the day is corrected.
#[test]
fn a_call_taken_out_of_its_day_stays_in_its_minute() {
    let server = start_server();
    let mut shared = Shared::new(&server, "declined");
    shared.join("m", requests(600));
    let _ = shared.send("m", &[ask(1, 5), start_call(1, 5)]);
    let spent = |usage: Usage| (usage[RequestsPerMinute].used, usage[RequestsPerDay].used);
    assert_eq!(spent(shared.usage("m")), (1, 1));
    let take_back = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 0, "counted": Cost::one(0), "actual": {},
        "sent_us_ago": 0,
        "midnight_us": MIDNIGHT_US,
    });
    let _ = shared.send("m", &[take_back]);
    assert_eq!(spent(shared.usage("m")), (1, 0));
}

#[test]
fn requests_are_served_in_order_and_returning_ones_first() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "order");
    let mut notifications = Notifications::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.send("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    shared.advance(SECOND / 2);
    shared.send("a", &[ask(1, 1)]);
    shared.advance(SECOND / 1000);
    shared.send("b", &[ask(1, 1)]);
    shared.advance(SECOND / 1000);
    shared.send("a", &[ask(2, 1), ask_in("returning", 3, 1)]);
    // The third member's request was delayed on its way: it was made before all others.
    shared.join("c", requests(60));
    shared.send("c", &[with(ask(1, 1), "waited_us", json!(400_000))]);
    let expected = in_order(&[("a", 3), ("c", 1), ("a", 1), ("b", 1), ("a", 2)]);
    assert_eq!(drain(&mut shared, &mut notifications, "b"), expected);
}

#[test]
fn a_request_that_yields_once_lets_new_requests_on_every_replica_go_first() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "courtesy");
    let mut notifications = Notifications::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.send("a", &[ask(1, 1), start_call(1, 1)]);
    shared.send("a", &[ask_in("yields_once", 2, 1)]);
    shared.send("b", &[ask(1, 1), ask_in("yields_once", 2, 1)]);
    let expected = in_order(&[("b", 1), ("b", 2), ("a", 2)]);
    assert_eq!(drain(&mut shared, &mut notifications, "a"), expected);
}

#[test]
fn an_ended_member_loses_its_requests_and_its_reservations_count_as_sent() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "death");
    let mut notifications = Notifications::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, tokens(1000));
    }
    assert_eq!(shared.send("a", &[ask(1, 600)]).verdict(), Verdict::granted(600));
    shared.send("a", &[ask(2, 900)]);
    shared.advance(20 * SECOND);
    let reply = shared.send("b", &[ask(1, 400)]);
    assert_eq!(shared.usage("b").waiting, 2);

    // Only the end of the first member can make room, so that is the next check.
    let check_again = reply.check_again_in_us.unwrap();
    assert_eq!(check_again, 10_000_000);
    shared.now += check_again;
    shared.send("b", &[]);
    let usage = shared.usage("b");
    assert_eq!((usage.waiting, usage[RequestsPerMinute].reserved), (1, 0));
    assert_eq!(usage[InputTokensPerMinute].used, 600);
    assert_eq!(usage[RequestsPerDay].used, 1);
    // Of 1000 a minute, 600 become available within 36.18 s; and a large call waits for the jitter.
    let ended_at = shared.now;
    assert_eq!(drain(&mut shared, &mut notifications, "b"), in_order(&[("b", 1)]));
    assert_eq!(shared.now - ended_at, 36_210_000);
    assert!(shared.send("a", &[]).expired);
}

#[test]
fn a_new_member_claims_what_it_held_and_requests_again() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "claim");
    shared.lease = HOUR;
    let mut notifications = Notifications::of(&shared, &mut listener);
    shared.join("before", tokens(1000));
    for (ticket, amount) in [(1, 3), (2, 4), (3, 1000), (4, 1)] {
        shared.send("before", &[ask(ticket, amount)]);
    }
    shared.send("before", &[start_call(2, 4)]);
    shared.join("other", tokens(1000));
    shared.advance(SECOND / 1000);
    shared.send("other", &[ask(1, 1)]);

    // It had reserved 3 and waited for 1000, and withdrew the 1.
    shared.join("after", tokens(1000));
    let claim = json!({
        "op": "claim_budget", "account": ACCOUNT, "cost": Cost::one(3), "from": "before",
    });
    let again = with(ask(3, 1000), "waited_us", json!(1_000_000));
    shared.send("after", &[claim, again, json!({"op": "retire", "member": "before"})]);
    let usage = shared.usage("after");
    let tokens = usage[InputTokensPerMinute];
    assert_eq!((usage.waiting, tokens.used, tokens.reserved), (2, 4, 3));

    // A call sent by one member is settled by the other.
    let settled = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 2, "counted": Cost::one(4),
        "actual": Cost::one(2), "sent_us_ago": 0, "midnight_us": MIDNIGHT_US, "by": "before",
    });
    shared.send("after", &[settled, give_back(3)]);
    let tokens = shared.usage("after")[InputTokensPerMinute];
    assert_eq!((tokens.used, tokens.reserved), (2, 0));
    let order = drain(&mut shared, &mut notifications, "other");
    assert_eq!(order, in_order(&[("after", 3), ("other", 1)]), "it kept its position");
}

#[test]
fn reservations_that_are_not_claimed_count_as_sent() {
    let server = start_server();
    let mut shared = Shared::new(&server, "unclaimed");
    shared.join("before", requests(600));
    shared.send("before", &[ask(1, 10), ask(2, 20)]);
    shared.join("after", requests(600));
    let claim = json!({
        "op": "claim_budget", "account": ACCOUNT, "cost": Cost::one(20), "from": "before",
    });
    shared.send("after", &[claim, json!({"op": "retire", "member": "before"})]);
    let tokens = shared.usage("after")[InputTokensPerMinute];
    assert_eq!((tokens.used, tokens.reserved), (10, 20));
}

#[test]
fn learned_quotas_hold_for_all_until_a_setting_changes() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "quotas");
    let mut notifications = Notifications::of(&shared, &mut listener);
    let opened = |reply: Reply| reply.results[&1].clone();
    assert_eq!(opened(shared.join("a", per_minute(60, 1000))), json!({"rpm": 60, "tpm": 1000}));
    notifications.receive(&mut shared);
    let learn =
        json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 20, "tpm": 1000}});
    shared.send("a", &[learn.clone(), learn]);
    let learned = json!({"rpm": 20, "tpm": 1000});
    let corrected =
        json!({"corrected": {"account": ACCOUNT, "quotas": learned, "learned": learned}});
    assert_eq!(notifications.receive(&mut shared), [("all".to_owned(), corrected)], "once");

    assert_eq!(opened(shared.join("b", per_minute(60, 1000))), json!({"rpm": 20, "tpm": 1000}));
    let opened_later = opened(shared.join("c", requests(100)));
    assert_eq!(opened_later, json!({"rpm": 20, "tpm": 1000}), "the others' limits are lower");
    let received = |quotas: Value| json!({"account": ACCOUNT, "quotas": quotas, "learned": {}});
    notifications.receive(&mut shared);
    assert_eq!(opened(shared.join("d", requests(50))), json!({"rpm": 50, "tpm": 1000}));
    assert_eq!(shared.usage("a")[RequestsPerMinute].limit, Some(50));
    let corrected = received(json!({"rpm": 50, "tpm": 1000}));
    let differs = with(corrected.clone(), "settings_differ", json!(true));
    let notifications = notifications.receive(&mut shared);
    let expected =
        [corrected, differs].map(|received| ("all".to_owned(), json!({"corrected": received})));
    assert_eq!(notifications, expected);
}

#[test]
fn only_the_quotas_that_gemini_names_are_learned() {
    let server = start_server();
    let mut shared = Shared::new(&server, "partial");
    shared.join("a", requests(60));
    let learn = |quotas: Value| json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": quotas});
    shared.send("a", &[learn(json!({"rpm": 20}))]);
    shared.join("b", requests(60));
    shared.send("b", &[learn(json!({"tpm": 1000}))]);
    let usage = shared.usage("a");
    assert_eq!(usage[RequestsPerMinute].limit, Some(20));
    assert_eq!(usage[InputTokensPerMinute].limit, Some(1000));

    let pause = json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000});
    let close = json!({"op": "close_day", "account": ACCOUNT, "for_us": 1_000_000});
    shared.send("a", &[pause, close, json!({"op": "forget_quotas", "account": ACCOUNT})]);
    let usage = shared.usage("a");
    assert_eq!(usage[RequestsPerMinute].limit, Some(60));
    assert_eq!(usage[InputTokensPerMinute].limit, None);
    assert_eq!((usage.paused_for_us, usage.next_free_in_us), (None, Some(0)));
}

#[test]
fn learned_quotas_are_restored_only_if_redis_lost_the_account() {
    let server = start_server();
    let mut shared = Shared::new(&server, "again");
    let opened = |reply: Reply| reply.results[&0].clone();
    let knows = |limit: u64| with(open(requests(60)), "learned", json!({"rpm": limit}));
    shared.send("a", &[join()]);
    assert_eq!(opened(shared.send("a", &[knows(20)])), json!({"rpm": 20}));
    assert_eq!(opened(shared.send("a", &[knows(7)])), json!({"rpm": 20}), "it knows better");
}

/// Opens the account as a replica whose settings have these requests a minute, from the tier or set by
/// hand.
fn open_with(tier: Option<u64>, by_hand: Option<u64>) -> Value {
    let by_hand = Quotas::default().with(RequestsPerMinute, by_hand);
    let planned = by_hand.or(Quotas::default().with(RequestsPerMinute, tier));
    with(open(planned), "by_hand", limits(by_hand))
}

fn requests_per_minute(shared: &mut Shared, member: &str) -> Option<u64> {
    shared.usage(member)[RequestsPerMinute].limit
}

#[test]
fn the_lowest_of_differing_settings_of_live_members_holds() {
    let server = start_server();
    for (number, (a, b, both)) in [
        ((None, Some(100)), (None, Some(60)), 60),
        ((None, Some(60)), (None, Some(100)), 60),
        ((Some(300), None), (Some(300), Some(1000)), 300),
        ((Some(300), Some(1000)), (Some(300), None), 300),
        ((None, None), (None, Some(60)), 60),
        ((None, Some(60)), (None, None), 60),
    ]
    .into_iter()
    .enumerate()
    {
        for is_silent in [false, true] {
            let mut shared = Shared::new(&server, format!("differing {number} {is_silent}"));
            shared.send("a", &[join(), open_with(a.0, a.1)]);
            shared.send("b", &[join(), open_with(b.0, b.1)]);
            for member in ["a", "b"] {
                assert_eq!(requests_per_minute(&mut shared, member), Some(both), "{number}");
            }
            // It sends the same again, for example after a new session.
            shared.send("a", &[open_with(a.0, a.1)]);
            assert_eq!(requests_per_minute(&mut shared, "b"), Some(both), "{number}");
            if is_silent {
                shared.advance(20 * SECOND);
                shared.send("b", &[]);
                assert_eq!(requests_per_minute(&mut shared, "b"), Some(both), "{number}");
                shared.advance(20 * SECOND);
            } else {
                shared.send("a", &[json!({"op": "retire"})]);
            }
            let alone = b.1.or(b.0);
            assert_eq!(requests_per_minute(&mut shared, "b"), alone, "{number} {is_silent}");
        }
    }
}

#[test]
fn learned_quotas_hold_within_the_lowest_limit_set_by_hand_by_any_member() {
    let server = start_server();
    let mut shared = Shared::new(&server, "differing and learned");
    shared.send("a", &[join(), open_with(Some(300), Some(100))]);
    shared.send("b", &[join(), open_with(Some(300), None)]);
    shared.send("b", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 500}})]);
    assert_eq!(requests_per_minute(&mut shared, "b"), Some(100));
    shared.send("b", &[open_with(Some(300), None)]);
    shared.send("b", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 50}})]);
    shared.send("b", &[open_with(Some(300), None)]);
    assert_eq!(requests_per_minute(&mut shared, "a"), Some(50), "the settings are the same");
    shared.send("a", &[open_with(Some(300), Some(200))]);
    assert_eq!(requests_per_minute(&mut shared, "a"), Some(200), "they have changed");
}

#[test]
fn the_lowest_of_differing_alias_limits_of_live_members_holds() {
    let server = start_server();
    let mut shared = Shared::new(&server, "differing aliases");
    let real = |operation: Value| with(operation, "account", json!("real"));
    let joins = |limit: u64| {
        json!({
            "op": "transfer_budget", "account": "real", "from": ACCOUNT, "by_hand": {"rpm": limit},
            "midnight_us": MIDNIGHT_US,
        })
    };
    for (member, limit) in [("a", 50), ("b", 70)] {
        let own = open_with(None, Some(limit));
        shared.send(member, &[join(), own, real(open_with(Some(300), None)), joins(limit)]);
    }
    let limit = |shared: &mut Shared| {
        shared.send("b", &[real(usage())]).results[&0]["quotas"]["rpm"]["limit"].clone()
    };
    assert_eq!(limit(&mut shared), 50);
    shared.send("b", &[joins(70)]);
    assert_eq!(limit(&mut shared), 50, "whichever member sent last");
    shared.send("a", &[json!({"op": "retire"})]);
    assert_eq!(limit(&mut shared), 70);
}

#[test]
fn every_member_is_notified_when_settings_differ() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "differing notifications");
    let mut notifications = Notifications::of(&shared, &mut listener);
    let mut warnings = |shared: &mut Shared| {
        let notifications = notifications.receive(shared).into_iter();
        let warns = |to: &str, received: &Value| {
            to == "all" && received["corrected"]["settings_differ"] == true
        };
        notifications.filter(|(to, received)| warns(to, received)).count()
    };
    for member in ["a", "b"] {
        shared.send(member, &[join(), open_with(Some(300), Some(100))]);
    }
    assert_eq!(warnings(&mut shared), 0, "they are the same");
    shared.send("c", &[join(), open_with(Some(300), Some(60))]);
    assert_eq!(warnings(&mut shared), 1);
    shared.send("c", &[json!({"op": "retire"})]);
    shared.send("d", &[join(), open_with(Some(300), Some(100))]);
    assert_eq!(warnings(&mut shared), 0, "they are the same again");
}

#[test]
fn settings_of_ended_members_are_removed_from_redis() {
    let server = start_server();
    let mut shared = Shared::new(&server, "settings");
    let size = |shared: &mut Shared| -> u64 {
        let key = format!("settings:budget:{ACCOUNT}");
        redis::cmd("STRLEN").arg(key).query(&mut shared.connection).unwrap()
    };
    let mut first = 0;
    for number in 0..50 {
        let member = format!("{number:02}");
        shared.join(&member, requests(60));
        first = if number == 0 { size(&mut shared) } else { first };
        shared.send(&member, &[json!({"op": "retire"})]);
    }
    assert!(size(&mut shared) <= first);
}

#[test]
fn learned_quotas_hold_in_redis_until_the_day_ends() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "aging");
    shared.lease = 100 * HOUR;
    let mut notifications = Notifications::of(&shared, &mut listener);
    shared.join("a", requests(60));
    shared.send("a", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 20}})]);
    notifications.receive(&mut shared);
    shared.now += MIDNIGHT_US;
    let next_day = with(usage(), "midnight_us", json!(24 * HOUR.as_micros() as u64));
    let received = shared.send("a", &[next_day]);
    assert_eq!(received.results[&0]["quotas"]["rpm"]["limit"], 60);
    let corrected =
        json!({"corrected": {"account": ACCOUNT, "quotas": {"rpm": 60}, "learned": {}}});
    assert_eq!(notifications.receive(&mut shared), [("all".to_owned(), corrected)]);
}

#[test]
fn an_aliass_spending_moves_once_to_the_charged_account() {
    let server = start_server();
    let mut shared = Shared::new(&server, "alias");
    shared.join("a", Quotas::default());
    let real = |operation: Value| with(operation, "account", json!("real"));
    shared.send("a", &[real(open(Quotas::default()))]);
    shared.send("a", &[ask(1, 100), start_call(1, 100), real(ask(2, 1)), real(start_call(2, 1))]);
    shared.send("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    let joins = json!({
        "op": "transfer_budget", "account": "real", "from": ACCOUNT, "midnight_us": MIDNIGHT_US,
    });
    shared.send("a", &[joins.clone(), joins]);
    let mut received = shared.send("a", &[real(usage())]);
    let received: Usage = serde_json::from_value(received.results.remove(&0).unwrap()).unwrap();
    assert_eq!((received[RequestsPerMinute].used, received[RequestsPerDay].used), (2, 2));
    assert_eq!(received[InputTokensPerMinute].used, 101);
    assert_eq!(received.paused_for_us, Some(1_000_000));
    let alias = shared.usage("a");
    assert_eq!((alias[RequestsPerMinute].used, alias[RequestsPerDay].used), (0, 0));
}

#[test]
fn reservations_count_once_when_accounts_are_joined() {
    let server = start_server();
    let mut shared = Shared::new(&server, "reserved");
    shared.join("a", Quotas::default());
    shared.join("b", Quotas::default());
    let real = |operation: Value| with(operation, "account", json!("real"));
    shared.send("a", &[real(open(Quotas::default()))]);
    let joins = json!({
        "op": "transfer_budget", "account": "real", "from": ACCOUNT, "midnight_us": MIDNIGHT_US,
    });
    shared.send("b", &[ask(1, 100), ask(2, 10)]);
    shared.send("a", &[joins.clone(), joins.clone()]);
    shared.send(
        "b",
        &[start_call(1, 100), joins.clone(), ask(3, 1), start_call(3, 1), start_call(2, 10), joins],
    );
    let mut received = shared.send("a", &[real(usage())]);
    let received: Usage = serde_json::from_value(received.results.remove(&0).unwrap()).unwrap();
    assert_eq!((received[RequestsPerMinute].used, received[RequestsPerDay].used), (3, 3));
    assert_eq!(received[InputTokensPerMinute].used, 111);
}

#[test]
fn an_account_unknown_to_redis_admits_nothing() {
    let server = start_server();
    let mut shared = Shared::new(&server, "unknown");
    shared.join("a", requests(60));
    let elsewhere = |operation: Value| with(operation, "account", json!("another"));
    assert_eq!(shared.send("a", &[elsewhere(ask(1, 1))]).verdict(), Verdict::Unopened);
    let others = [start_call(1, 1), give_back(1), usage()].map(elsewhere);
    assert!(shared.send("a", &others).results.is_empty());
}

#[test]
fn a_replica_whose_clock_is_behind_does_not_begin_the_day_again() {
    let server = start_server();
    let mut shared = Shared::new(&server, "clocks");
    shared.lease = 100 * HOUR;
    shared.join("a", per_day(2));
    let ends_in = |us: u64, operation: Value| with(operation, "midnight_us", json!(us));
    shared.now += MIDNIGHT_US;
    let (day, behind) = (24 * HOUR.as_micros() as u64, 2_000_000);
    let day_exhausted = |retry_after_us| Verdict::DayExhausted {
        kind: Some(QuotaKind::RequestsPerDay),
        retry_after_us,
    };
    shared.send("a", &[ends_in(day, ask(1, 1)), ends_in(day, start_call(1, 1))]);
    shared.send("a", &[ends_in(behind, ask(2, 1)), ends_in(behind, start_call(2, 1))]);
    let reply = shared.send("a", &[ends_in(day, ask(3, 1))]);
    assert_eq!(reply.verdict(), day_exhausted(day));
    shared.now += behind;
    let reply = shared.send("a", &[ends_in(day, ask(4, 1))]);
    assert_eq!(reply.verdict(), day_exhausted(day - behind));
}

#[test]
fn expired_calls_are_removed_from_redis() {
    let server = start_server();
    let mut shared = Shared::new(&server, "room");
    shared.join("a", Quotas::default());
    for ticket in 0..5000 {
        shared.send("a", &[ask(ticket, 1), start_call(ticket, 1)]);
        shared.now += 100_000;
    }
    let mut size = |command: &str, name: &str| -> u64 {
        let key = format!("room:{name}:{ACCOUNT}");
        redis::cmd(command).arg(key).query(&mut shared.connection).unwrap()
    };
    // 10 a second, for a minute and its margin.
    assert_eq!(size("ZCARD", "budget_left"), 603);
    assert!(size("STRLEN", "budget_departures") < 603 * 20);
    assert!(size("STRLEN", "budget") < 1000);
    for name in ["budget", "budget_departures", "budget_left"] {
        assert!(size("PTTL", name) > 0, "{name} ends");
    }
}

#[test]
fn evicted_requests_block_no_others() {
    let server = start_server();
    let mut shared = Shared::new(&server, "evicted");
    shared.join("a", requests(60));
    shared.send("a", &[ask(1, 1), start_call(1, 1)]);
    shared.send("a", &[ask(2, 1)]);
    for name in ["budget_waiters", "budget_queue"] {
        shared.send("a", &[ask(3, 1)]);
        let key = format!("evicted:{name}:{ACCOUNT}");
        let () = redis::cmd("DEL").arg(key).query(&mut shared.connection).unwrap();
        shared.send(
            "a",
            &[ask(4, 1), json!({"op": "cancel_reserve", "account": ACCOUNT, "ticket": 4})],
        );
        assert_eq!(shared.usage("a").waiting, 0);
    }
    shared.advance(2 * SECOND);
    assert_eq!(shared.send("a", &[ask(5, 1)]).verdict(), Verdict::granted(1));
}

#[test]
fn a_new_request_waits_behind_earlier_ones() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "first come");
    let mut notifications = Notifications::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.send("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    shared.send("b", &[ask(1, 1)]);
    // There is room for one, and no call of the script since.
    shared.advance(2 * SECOND);
    let asked = [with(ask(1, 1), "wait", json!(false)), ask(2, 1)];
    let reply = shared.send("a", &asked);
    let received = notifications.received_by(&mut shared, "a", reply);
    assert_eq!(
        received,
        [("a".to_owned(), 1, Verdict::Unavailable), ("b".to_owned(), 1, Verdict::granted(1))]
    );
}

#[test]
fn later_requests_that_arrived_first_do_not_refuse_an_earlier_one() {
    let server = start_server();
    for later in [0, 1, 90, 150] {
        let mut shared = Shared::new(&server, format!("later {later}"));
        for member in ["a", "b"] {
            shared.join(member, requests(60));
        }
        shared.send("b", &[ask(0, 1), start_call(0, 1)]);
        shared.advance(SECOND / 10);
        for ticket in 1..=later {
            shared.send("b", &[ask(ticket, 1)]);
        }
        let unhurried = with(ask(1, 1), "time_limit_us", json!(1_500_000));
        let reply = shared.send("a", &[with(unhurried.clone(), "waited_us", json!(50_000))]);
        assert!(reply.answers.is_empty(), "{later}: {reply:?}");
        // A request that was made last is behind them.
        let reply = shared.send("b", &[with(unhurried, "ticket", json!(1000))]);
        assert!(matches!(reply.verdict(), Verdict::NotBefore { .. }), "{later}");
    }
}

#[test]
fn a_call_is_settled_once() {
    let server = start_server();
    let mut shared = Shared::new(&server, "once");
    shared.join("a", Quotas::default().with(InputTokensPerDay, 1000));
    shared.send("a", &[ask(1, 100), start_call(1, 100), ask(2, 100), start_call(2, 100)]);
    let settled = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 1, "counted": Cost::one(100),
        "actual": Cost::one(30), "sent_us_ago": 0, "midnight_us": MIDNIGHT_US,
    });
    shared.send("a", &[settled.clone(), settled]);
    assert_eq!(shared.usage("a")[InputTokensPerMinute].used, 130);
    assert_eq!(shared.usage("a")[InputTokensPerDay].used, 130);
}
