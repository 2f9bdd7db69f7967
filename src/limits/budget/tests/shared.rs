//! Budgets that are kept in Redis, by the script in a real one, on a clock that the tests set.

use std::collections::BTreeMap;

use redis::{Connection, PubSub, Script};
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::limits::shared::test_server::RedisServer;
use crate::limits::shared::wire::SCRIPT;

mod equivalence;
mod replicas;
mod upkeep;

/// When a test begins, in microseconds: where a cell of the grid begins, of a minute or a second.
const START: u64 = 1_764_000_000_000_000 / 234_375 * 234_375;

const ACCOUNT: &str = "an account";

/// The run of Redis that all of them find.
const RUN: &str = "the only";

/// What `redis.call('TIME')` becomes: seconds, and microseconds of any number.
const TEST_TIME: &str = "{0, ARGV[5]}";

/// What a ticket comes to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    #[serde(rename = "reserved")]
    Granted {
        account: String,
        cost: Cost,
    },
    NoQuota,
    TooLarge {
        kind: QuotaKind,
        cost: u64,
        limit: u64,
    },
    NotBefore {
        retry_after_us: u64,
    },
    DayExhausted {
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

    /// Whether it is the same, but for a microsecond: what is reserved and what waits are rounded up
    /// apart, and of two calls that are served in the same instant the one can be told before the
    /// other has moved.
    fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotBefore { retry_after_us: a }, Self::NotBefore { retry_after_us: b }) => {
                a.abs_diff(*b) <= 1
            }
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
            Exhausted::NoQuota => Self::NoQuota,
            Exhausted::TooLarge { kind, cost, limit } => Self::TooLarge { kind, cost, limit },
            Exhausted::NotBefore { retry_after } => {
                Self::NotBefore { retry_after_us: micros(retry_after) }
            }
            Exhausted::DayExhausted { retry_after } => {
                Self::DayExhausted { retry_after_us: micros(retry_after) }
            }
        }
    }
}

/// Rounded up, as the script does.
fn micros(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1000) as u64
}

/// As the script tells it.
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
        self.quotas[kind].as_ref().expect("the script tells of every kind")
    }
}

impl From<BudgetUsage> for Usage {
    fn from(usage: BudgetUsage) -> Self {
        Self {
            quotas: PerKind::from_fn(|kind| Some(usage[kind])),
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
    look_again_in_us: Option<u64>,
    opens_in_us: Option<u64>,
    stepped_us: Option<f64>,
    other_format: Option<String>,
}

impl Reply {
    /// What became of the only ticket.
    fn verdict(mut self) -> Verdict {
        assert_eq!(self.answers.len(), 1, "{self:?}");
        self.answers.remove(0).verdict
    }
}

/// What replicas share, and what time it is.
struct Shared {
    connection: Connection,
    script: Script,
    /// What keys begin with.
    prefix: String,
    /// In microseconds, of the clock in Redis.
    now: u64,
    tenure: Duration,
    /// When each member spoke last, by its own clock.
    spoke: BTreeMap<String, u64>,
    /// By how much Redis's clock is ahead of theirs.
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
            tenure: 30 * SECOND,
            spoke: BTreeMap::new(),
            ahead: 0,
        };
        shared.set("run", RUN);
        shared
    }

    fn set(&mut self, name: &str, value: &str) {
        let key = format!("{}:{name}", self.prefix);
        let () = redis::cmd("SET").arg(key).arg(value).query(&mut self.connection).unwrap();
    }

    fn say(&mut self, member: &str, operations: &[Value]) -> Reply {
        let spoke = self.spoke.insert(member.to_owned(), self.now);
        let quiet = spoke.map(|spoke| (self.now - spoke).to_string()).unwrap_or_default();
        let reply: String = self
            .script
            .key(&self.prefix)
            .arg(member)
            .arg(self.tenure.as_micros() as u64)
            .arg(serde_json::to_string(operations).unwrap())
            .arg(quiet)
            .arg(self.now as i64 + self.ahead)
            .invoke(&mut self.connection)
            .unwrap_or_else(|error| panic!("{operations:?}: {error}"));
        serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{reply}: {error}"))
    }

    /// Makes a member, for which the account is open.
    fn join(&mut self, member: &str, quotas: Quotas) -> Reply {
        self.say(member, &[join(), open(quotas)])
    }

    fn advance(&mut self, time: Duration) {
        self.now += time.as_micros() as u64;
    }

    fn usage(&mut self, member: &str) -> Usage {
        let mut reply = self.say(member, &[usage()]);
        serde_json::from_value(reply.results.remove(&0).expect("it is open")).unwrap()
    }
}

fn connect(server: &RedisServer) -> Connection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_connection().expect("the server runs")
}

/// What members are told that do not speak.
struct News<'a> {
    subscription: PubSub<'a>,
    prefix: String,
}

impl<'a> News<'a> {
    fn of(shared: &Shared, listener: &'a mut Connection) -> Self {
        let mut subscription = listener.as_pubsub();
        subscription.psubscribe(format!("{}:*", shared.prefix)).unwrap();
        Self { subscription, prefix: shared.prefix.clone() }
    }

    /// All that was told since this was asked last: to whom, what.
    fn hear(&mut self, shared: &mut Shared) -> Vec<(String, Value)> {
        let last = format!("{}:last", self.prefix);
        let published = redis::cmd("PUBLISH").arg(&last).arg("").query(&mut shared.connection);
        let () = published.unwrap();
        let mut news = Vec::new();
        loop {
            let message = self.subscription.get_message().unwrap();
            let channel = message.get_channel_name();
            if channel == last {
                return news;
            }
            let (_, member) = channel.rsplit_once(':').unwrap();
            let told: String = message.get_payload().unwrap();
            news.push((member.to_owned(), serde_json::from_str(&told).unwrap()));
        }
    }

    /// All answers, to the speaker and to others: to whom, to which ticket, and which.
    fn heard_by(
        &mut self,
        shared: &mut Shared,
        speaker: &str,
        reply: Reply,
    ) -> Vec<(String, u64, Verdict)> {
        let published = self.hear(shared).into_iter().filter_map(|(member, mut news)| {
            let answers = news.get_mut("answers")?.take();
            Some((member, serde_json::from_value(answers).unwrap()))
        });
        let own = std::iter::once((speaker.to_owned(), reply.answers));
        own.chain(published)
            .flat_map(|(member, answers)| {
                answers.into_iter().map(move |of| (member.clone(), of.ticket, of.verdict))
            })
            .collect()
    }
}

/// Without what is not limited: the script takes no null for it.
fn limits(quotas: Quotas) -> Value {
    json!(quotas)
}

/// Longer than any test but those of the day.
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

/// One who has all the time in the world.
fn ask(ticket: u64, tokens: u64) -> Value {
    json!({
        "op": "reserve", "account": ACCOUNT, "ticket": ticket, "cost": Cost::one(tokens),
        "line": "queue", "waited_us": 0, "patience_us": MIDNIGHT_US, "midnight_us": MIDNIGHT_US, "wait": true,
    })
}

fn ask_in(line: &str, ticket: u64, tokens: u64) -> Value {
    with(ask(ticket, tokens), "line", json!(line))
}

fn with(mut operation: Value, name: &str, value: Value) -> Value {
    operation[name] = value;
    operation
}

fn depart(ticket: u64, tokens: u64) -> Value {
    json!({
        "op": "depart", "account": ACCOUNT, "ticket": ticket, "cost": Cost::one(tokens),
        "midnight_us": MIDNIGHT_US,
    })
}

fn give_back(tokens: u64) -> Value {
    json!({"op": "give_back_budget", "account": ACCOUNT, "cost": Cost::one(tokens)})
}

fn usage() -> Value {
    json!({"op": "budget_usage", "account": ACCOUNT, "midnight_us": MIDNIGHT_US})
}

/// Lets all who wait in, one after the other, and what was let in leave. Who it was, in order.
fn drain(shared: &mut Shared, news: &mut News<'_>, speaker: &str) -> Vec<(String, u64)> {
    let mut order = Vec::new();
    for _ in 0..100 {
        let looked = shared.say(speaker, &[usage()]);
        let (look_again, waiting) =
            (looked.look_again_in_us, looked.results[&0]["waiting"].clone());
        let mut told = news.heard_by(shared, speaker, looked);
        if told.is_empty() && waiting == 0 {
            return order;
        }
        if told.is_empty() {
            shared.now += look_again.expect("somebody waits").min(10_000_000);
        }
        while let Some((member, ticket, verdict)) = told.pop() {
            assert!(matches!(verdict, Verdict::Granted { .. }), "{member} {ticket}: {verdict:?}");
            let reply = shared.say(&member, &[depart(ticket, 1)]);
            told.extend(news.heard_by(shared, &member, reply));
            order.push((member, ticket));
        }
    }
    panic!("not all were let in: {order:?}");
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

/// By the number that no call leaves by, only the day is taken back.
#[test]
fn what_is_taken_back_of_the_day_stands_in_its_minute() {
    let server = start_server();
    let mut shared = Shared::new(&server, "declined");
    shared.join("m", requests(600));
    let _ = shared.say("m", &[ask(1, 5), depart(1, 5)]);
    let spent = |usage: Usage| (usage[RequestsPerMinute].used, usage[RequestsPerDay].used);
    assert_eq!(spent(shared.usage("m")), (1, 1));
    let take_back = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 0, "counted": Cost::one(0), "actual": {},
        "left_us_ago": 0,
        "midnight_us": MIDNIGHT_US,
    });
    let _ = shared.say("m", &[take_back]);
    assert_eq!(spent(shared.usage("m")), (1, 0));
}

#[test]
fn members_are_served_in_the_order_in_which_they_asked_but_those_who_return_before() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "order");
    let mut news = News::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.say("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    shared.advance(SECOND / 2);
    shared.say("a", &[ask(1, 1)]);
    shared.advance(SECOND / 1000);
    shared.say("b", &[ask(1, 1)]);
    shared.advance(SECOND / 1000);
    shared.say("a", &[ask(2, 1), ask_in("returning", 3, 1)]);
    // What a third says was long under way: it asked before all others.
    shared.join("c", requests(60));
    shared.say("c", &[with(ask(1, 1), "waited_us", json!(400_000))]);
    let expected = in_order(&[("a", 3), ("c", 1), ("a", 1), ("b", 1), ("a", 2)]);
    assert_eq!(drain(&mut shared, &mut news, "b"), expected);
}

#[test]
fn who_is_courteous_lets_those_go_first_who_come_meanwhile_wherever_they_come() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "courtesy");
    let mut news = News::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.say("a", &[ask(1, 1), depart(1, 1)]);
    shared.say("a", &[ask_in("yields_once", 2, 1)]);
    shared.say("b", &[ask(1, 1), ask_in("yields_once", 2, 1)]);
    let expected = in_order(&[("b", 1), ("b", 2), ("a", 2)]);
    assert_eq!(drain(&mut shared, &mut news, "a"), expected);
}

#[test]
fn of_a_member_that_ended_the_places_are_void_and_what_it_had_reserved_has_left() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "death");
    let mut news = News::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, tokens(1000));
    }
    assert_eq!(shared.say("a", &[ask(1, 600)]).verdict(), Verdict::granted(600));
    shared.say("a", &[ask(2, 900)]);
    shared.advance(20 * SECOND);
    let reply = shared.say("b", &[ask(1, 400)]);
    assert_eq!(shared.usage("b").waiting, 2);

    // Nobody but the end of the first can make room: that is when it is looked for.
    let look_again = reply.look_again_in_us.unwrap();
    assert_eq!(look_again, 10_000_000);
    shared.now += look_again;
    shared.say("b", &[]);
    let usage = shared.usage("b");
    assert_eq!((usage.waiting, usage[RequestsPerMinute].reserved), (1, 0));
    assert_eq!(usage[InputTokensPerMinute].used, 600);
    assert_eq!(usage[RequestsPerDay].used, 1);
    // Of 1000 a minute, 600 flow in within 36.18 s; and a large call waits for the jitter.
    let ended_at = shared.now;
    assert_eq!(drain(&mut shared, &mut news, "b"), in_order(&[("b", 1)]));
    assert_eq!(shared.now - ended_at, 36_210_000);
    assert!(shared.say("a", &[]).expired);
}

#[test]
fn a_new_member_takes_over_what_it_held_and_its_places() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "claim");
    shared.tenure = HOUR;
    let mut news = News::of(&shared, &mut listener);
    shared.join("before", tokens(1000));
    for (ticket, amount) in [(1, 3), (2, 4), (3, 1000), (4, 1)] {
        shared.say("before", &[ask(ticket, amount)]);
    }
    shared.say("before", &[depart(2, 4)]);
    shared.join("other", tokens(1000));
    shared.advance(SECOND / 1000);
    shared.say("other", &[ask(1, 1)]);

    // It had reserved 3 and waited for 1000, and gave up the 1.
    shared.join("after", tokens(1000));
    let claim = json!({
        "op": "claim_budget", "account": ACCOUNT, "cost": Cost::one(3), "from": "before",
    });
    let again = with(ask(3, 1000), "waited_us", json!(1_000_000));
    shared.say("after", &[claim, again, json!({"op": "retire", "member": "before"})]);
    let usage = shared.usage("after");
    let tokens = usage[InputTokensPerMinute];
    assert_eq!((usage.waiting, tokens.used, tokens.reserved), (2, 4, 3));

    // What left as the one is settled as the other.
    let settled = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 2, "counted": Cost::one(4),
        "actual": Cost::one(2), "left_us_ago": 0, "midnight_us": MIDNIGHT_US, "by": "before",
    });
    shared.say("after", &[settled, give_back(3)]);
    let tokens = shared.usage("after")[InputTokensPerMinute];
    assert_eq!((tokens.used, tokens.reserved), (2, 0));
    let order = drain(&mut shared, &mut news, "other");
    assert_eq!(order, in_order(&[("after", 3), ("other", 1)]), "it kept its place");
}

#[test]
fn what_is_not_claimed_has_left() {
    let server = start_server();
    let mut shared = Shared::new(&server, "unclaimed");
    shared.join("before", requests(600));
    shared.say("before", &[ask(1, 10), ask(2, 20)]);
    shared.join("after", requests(600));
    let claim = json!({
        "op": "claim_budget", "account": ACCOUNT, "cost": Cost::one(20), "from": "before",
    });
    shared.say("after", &[claim, json!({"op": "retire", "member": "before"})]);
    let tokens = shared.usage("after")[InputTokensPerMinute];
    assert_eq!((tokens.used, tokens.reserved), (10, 20));
}

#[test]
fn what_gemini_taught_counts_for_all_until_a_setting_changes() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "quotas");
    let mut news = News::of(&shared, &mut listener);
    let opened = |reply: Reply| reply.results[&1].clone();
    assert_eq!(opened(shared.join("a", per_minute(60, 1000))), json!({"rpm": 60, "tpm": 1000}));
    news.hear(&mut shared);
    let learnt =
        json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 20, "tpm": 1000}});
    shared.say("a", &[learnt.clone(), learnt]);
    let learned = json!({"rpm": 20, "tpm": 1000});
    let corrected =
        json!({"corrected": {"account": ACCOUNT, "quotas": learned, "learned": learned}});
    assert_eq!(news.hear(&mut shared), [("all".to_owned(), corrected)], "once");

    assert_eq!(opened(shared.join("b", per_minute(60, 1000))), json!({"rpm": 20, "tpm": 1000}));
    let opened_later = opened(shared.join("c", requests(100)));
    assert_eq!(opened_later, json!({"rpm": 20, "tpm": 1000}), "the others' limits are lower");
    let told = |quotas: Value| json!({"account": ACCOUNT, "quotas": quotas, "learned": {}});
    news.hear(&mut shared);
    assert_eq!(opened(shared.join("d", requests(50))), json!({"rpm": 50, "tpm": 1000}));
    assert_eq!(shared.usage("a")[RequestsPerMinute].limit, Some(50));
    let corrected = told(json!({"rpm": 50, "tpm": 1000}));
    let differs = with(corrected.clone(), "settings_differ", json!(true));
    let news = news.hear(&mut shared);
    let ought = [corrected, differs].map(|told| ("all".to_owned(), json!({"corrected": told})));
    assert_eq!(news, ought);
}

#[test]
fn gemini_teaches_the_quotas_that_it_names_and_no_others() {
    let server = start_server();
    let mut shared = Shared::new(&server, "partial");
    shared.join("a", requests(60));
    let learn = |quotas: Value| json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": quotas});
    shared.say("a", &[learn(json!({"rpm": 20}))]);
    shared.join("b", requests(60));
    shared.say("b", &[learn(json!({"tpm": 1000}))]);
    let usage = shared.usage("a");
    assert_eq!(usage[RequestsPerMinute].limit, Some(20));
    assert_eq!(usage[InputTokensPerMinute].limit, Some(1000));

    let pause = json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000});
    let close = json!({"op": "close_day", "account": ACCOUNT, "for_us": 1_000_000});
    shared.say("a", &[pause, close, json!({"op": "forget_quotas", "account": ACCOUNT})]);
    let usage = shared.usage("a");
    assert_eq!(usage[RequestsPerMinute].limit, Some(60));
    assert_eq!(usage[InputTokensPerMinute].limit, None);
    assert_eq!((usage.paused_for_us, usage.next_free_in_us), (None, Some(0)));
}

#[test]
fn what_gemini_taught_is_said_again_to_a_redis_that_has_forgotten_it_and_to_no_other() {
    let server = start_server();
    let mut shared = Shared::new(&server, "again");
    let opened = |reply: Reply| reply.results[&0].clone();
    let knows = |limit: u64| with(open(requests(60)), "learned", json!({"rpm": limit}));
    shared.say("a", &[join()]);
    assert_eq!(opened(shared.say("a", &[knows(20)])), json!({"rpm": 20}));
    assert_eq!(opened(shared.say("a", &[knows(7)])), json!({"rpm": 20}), "it knows better");
}

/// The account is opened by a replica whose settings name these requests a minute, as the tier's or
/// set by hand.
fn open_with(tier: Option<u64>, by_hand: Option<u64>) -> Value {
    let by_hand = Quotas::default().with(RequestsPerMinute, by_hand);
    let planned = by_hand.or(Quotas::default().with(RequestsPerMinute, tier));
    with(open(planned), "by_hand", limits(by_hand))
}

fn requests_per_minute(shared: &mut Shared, member: &str) -> Option<u64> {
    shared.usage(member)[RequestsPerMinute].limit
}

#[test]
fn of_settings_that_differ_the_lowest_of_the_living_members_counts() {
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
            shared.say("a", &[join(), open_with(a.0, a.1)]);
            shared.say("b", &[join(), open_with(b.0, b.1)]);
            for member in ["a", "b"] {
                assert_eq!(requests_per_minute(&mut shared, member), Some(both), "{number}");
            }
            // It says the same again, for example after a new session.
            shared.say("a", &[open_with(a.0, a.1)]);
            assert_eq!(requests_per_minute(&mut shared, "b"), Some(both), "{number}");
            if is_silent {
                shared.advance(20 * SECOND);
                shared.say("b", &[]);
                assert_eq!(requests_per_minute(&mut shared, "b"), Some(both), "{number}");
                shared.advance(20 * SECOND);
            } else {
                shared.say("a", &[json!({"op": "retire"})]);
            }
            let alone = b.1.or(b.0);
            assert_eq!(requests_per_minute(&mut shared, "b"), alone, "{number} {is_silent}");
        }
    }
}

#[test]
fn what_gemini_taught_counts_within_the_lowest_limit_that_any_member_set_by_hand() {
    let server = start_server();
    let mut shared = Shared::new(&server, "differing and taught");
    shared.say("a", &[join(), open_with(Some(300), Some(100))]);
    shared.say("b", &[join(), open_with(Some(300), None)]);
    shared.say("b", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 500}})]);
    assert_eq!(requests_per_minute(&mut shared, "b"), Some(100));
    shared.say("b", &[open_with(Some(300), None)]);
    shared.say("b", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 50}})]);
    shared.say("b", &[open_with(Some(300), None)]);
    assert_eq!(requests_per_minute(&mut shared, "a"), Some(50), "the settings are the same");
    shared.say("a", &[open_with(Some(300), Some(200))]);
    assert_eq!(requests_per_minute(&mut shared, "a"), Some(200), "they have changed");
}

#[test]
fn of_limits_of_an_alias_that_differ_the_lowest_of_the_living_members_counts() {
    let server = start_server();
    let mut shared = Shared::new(&server, "differing aliases");
    let real = |operation: Value| with(operation, "account", json!("real"));
    let joins = |limit: u64| {
        json!({
            "op": "take_over_budget", "account": "real", "from": ACCOUNT, "by_hand": {"rpm": limit},
            "midnight_us": MIDNIGHT_US,
        })
    };
    for (member, limit) in [("a", 50), ("b", 70)] {
        let own = open_with(None, Some(limit));
        shared.say(member, &[join(), own, real(open_with(Some(300), None)), joins(limit)]);
    }
    let limit = |shared: &mut Shared| {
        shared.say("b", &[real(usage())]).results[&0]["quotas"]["rpm"]["limit"].clone()
    };
    assert_eq!(limit(&mut shared), 50);
    shared.say("b", &[joins(70)]);
    assert_eq!(limit(&mut shared), 50, "whoever spoke last");
    shared.say("a", &[json!({"op": "retire"})]);
    assert_eq!(limit(&mut shared), 70);
}

#[test]
fn every_member_is_told_that_settings_differ() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "differing news");
    let mut news = News::of(&shared, &mut listener);
    let mut warnings = |shared: &mut Shared| {
        let news = news.hear(shared).into_iter();
        let warns =
            |to: &str, told: &Value| to == "all" && told["corrected"]["settings_differ"] == true;
        news.filter(|(to, told)| warns(to, told)).count()
    };
    for member in ["a", "b"] {
        shared.say(member, &[join(), open_with(Some(300), Some(100))]);
    }
    assert_eq!(warnings(&mut shared), 0, "they are the same");
    shared.say("c", &[join(), open_with(Some(300), Some(60))]);
    assert_eq!(warnings(&mut shared), 1);
    shared.say("c", &[json!({"op": "retire"})]);
    shared.say("d", &[join(), open_with(Some(300), Some(100))]);
    assert_eq!(warnings(&mut shared), 0, "they are the same again");
}

#[test]
fn settings_of_members_that_have_ended_take_no_room_in_redis() {
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
        shared.say(&member, &[json!({"op": "retire"})]);
    }
    assert!(size(&mut shared) <= first);
}

#[test]
fn what_gemini_taught_counts_in_redis_until_the_day_is_over() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "aging");
    shared.tenure = 100 * HOUR;
    let mut news = News::of(&shared, &mut listener);
    shared.join("a", requests(60));
    shared.say("a", &[json!({"op": "learn_quotas", "account": ACCOUNT, "quotas": {"rpm": 20}})]);
    news.hear(&mut shared);
    shared.now += MIDNIGHT_US;
    let next_day = with(usage(), "midnight_us", json!(24 * HOUR.as_micros() as u64));
    let told = shared.say("a", &[next_day]);
    assert_eq!(told.results[&0]["quotas"]["rpm"]["limit"], 60);
    let corrected =
        json!({"corrected": {"account": ACCOUNT, "quotas": {"rpm": 60}, "learned": {}}});
    assert_eq!(news.hear(&mut shared), [("all".to_owned(), corrected)]);
}

#[test]
fn what_an_alias_has_spent_moves_once_to_the_account_that_is_charged() {
    let server = start_server();
    let mut shared = Shared::new(&server, "alias");
    shared.join("a", Quotas::default());
    let real = |operation: Value| with(operation, "account", json!("real"));
    shared.say("a", &[real(open(Quotas::default()))]);
    shared.say("a", &[ask(1, 100), depart(1, 100), real(ask(2, 1)), real(depart(2, 1))]);
    shared.say("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    let joins = json!({
        "op": "take_over_budget", "account": "real", "from": ACCOUNT, "midnight_us": MIDNIGHT_US,
    });
    shared.say("a", &[joins.clone(), joins]);
    let mut told = shared.say("a", &[real(usage())]);
    let told: Usage = serde_json::from_value(told.results.remove(&0).unwrap()).unwrap();
    assert_eq!((told[RequestsPerMinute].used, told[RequestsPerDay].used), (2, 2));
    assert_eq!(told[InputTokensPerMinute].used, 101);
    assert_eq!(told.paused_for_us, Some(1_000_000));
    let alias = shared.usage("a");
    assert_eq!((alias[RequestsPerMinute].used, alias[RequestsPerDay].used), (0, 0));
}

#[test]
fn what_is_reserved_while_accounts_are_joined_counts_once_at_the_one_that_is_charged() {
    let server = start_server();
    let mut shared = Shared::new(&server, "reserved");
    shared.join("a", Quotas::default());
    shared.join("b", Quotas::default());
    let real = |operation: Value| with(operation, "account", json!("real"));
    shared.say("a", &[real(open(Quotas::default()))]);
    let joins = json!({
        "op": "take_over_budget", "account": "real", "from": ACCOUNT, "midnight_us": MIDNIGHT_US,
    });
    shared.say("b", &[ask(1, 100), ask(2, 10)]);
    shared.say("a", &[joins.clone(), joins.clone()]);
    shared
        .say("b", &[depart(1, 100), joins.clone(), ask(3, 1), depart(3, 1), depart(2, 10), joins]);
    let mut told = shared.say("a", &[real(usage())]);
    let told: Usage = serde_json::from_value(told.results.remove(&0).unwrap()).unwrap();
    assert_eq!((told[RequestsPerMinute].used, told[RequestsPerDay].used), (3, 3));
    assert_eq!(told[InputTokensPerMinute].used, 111);
}

#[test]
fn of_an_account_that_redis_does_not_know_nothing_is_let_in() {
    let server = start_server();
    let mut shared = Shared::new(&server, "unknown");
    shared.join("a", requests(60));
    let elsewhere = |operation: Value| with(operation, "account", json!("another"));
    assert_eq!(shared.say("a", &[elsewhere(ask(1, 1))]).verdict(), Verdict::Unopened);
    let others = [depart(1, 1), give_back(1), usage()].map(elsewhere);
    assert!(shared.say("a", &others).results.is_empty());
}

#[test]
fn a_replica_whose_clock_is_behind_does_not_begin_the_day_again() {
    let server = start_server();
    let mut shared = Shared::new(&server, "clocks");
    shared.tenure = 100 * HOUR;
    shared.join("a", per_day(2));
    let ends_in = |us: u64, operation: Value| with(operation, "midnight_us", json!(us));
    shared.now += MIDNIGHT_US;
    let (day, behind) = (24 * HOUR.as_micros() as u64, 2_000_000);
    shared.say("a", &[ends_in(day, ask(1, 1)), ends_in(day, depart(1, 1))]);
    shared.say("a", &[ends_in(behind, ask(2, 1)), ends_in(behind, depart(2, 1))]);
    let reply = shared.say("a", &[ends_in(day, ask(3, 1))]);
    assert_eq!(reply.verdict(), Verdict::DayExhausted { retry_after_us: day });
    shared.now += behind;
    let reply = shared.say("a", &[ends_in(day, ask(4, 1))]);
    assert_eq!(reply.verdict(), Verdict::DayExhausted { retry_after_us: day - behind });
}

#[test]
fn what_counts_no_more_takes_no_room_in_redis() {
    let server = start_server();
    let mut shared = Shared::new(&server, "room");
    shared.join("a", Quotas::default());
    for ticket in 0..5000 {
        shared.say("a", &[ask(ticket, 1), depart(ticket, 1)]);
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
fn places_that_redis_has_thrown_away_hold_nobody_up() {
    let server = start_server();
    let mut shared = Shared::new(&server, "evicted");
    shared.join("a", requests(60));
    shared.say("a", &[ask(1, 1), depart(1, 1)]);
    shared.say("a", &[ask(2, 1)]);
    for name in ["budget_waiters", "budget_queue"] {
        shared.say("a", &[ask(3, 1)]);
        let key = format!("evicted:{name}:{ACCOUNT}");
        let () = redis::cmd("DEL").arg(key).query(&mut shared.connection).unwrap();
        shared
            .say("a", &[ask(4, 1), json!({"op": "leave_budget", "account": ACCOUNT, "ticket": 4})]);
        assert_eq!(shared.usage("a").waiting, 0);
    }
    shared.advance(2 * SECOND);
    assert_eq!(shared.say("a", &[ask(5, 1)]).verdict(), Verdict::granted(1));
}

#[test]
fn who_asks_when_there_is_room_lets_those_go_first_who_wait() {
    let (server, mut listener) = listening_server();
    let mut shared = Shared::new(&server, "first come");
    let mut news = News::of(&shared, &mut listener);
    for member in ["a", "b"] {
        shared.join(member, requests(60));
    }
    shared.say("a", &[json!({"op": "pause", "account": ACCOUNT, "for_us": 1_000_000})]);
    shared.say("b", &[ask(1, 1)]);
    // There is room for one, and nobody has looked since.
    shared.advance(2 * SECOND);
    let asked = [with(ask(1, 1), "wait", json!(false)), ask(2, 1)];
    let reply = shared.say("a", &asked);
    let told = news.heard_by(&mut shared, "a", reply);
    assert_eq!(
        told,
        [("a".to_owned(), 1, Verdict::Unavailable), ("b".to_owned(), 1, Verdict::granted(1))]
    );
}

#[test]
fn those_who_asked_later_make_nobody_hopeless_who_was_heard_after_them() {
    let server = start_server();
    for later in [0, 1, 90, 150] {
        let mut shared = Shared::new(&server, format!("heard {later}"));
        for member in ["a", "b"] {
            shared.join(member, requests(60));
        }
        shared.say("b", &[ask(0, 1), depart(0, 1)]);
        shared.advance(SECOND / 10);
        for ticket in 1..=later {
            shared.say("b", &[ask(ticket, 1)]);
        }
        let patient = with(ask(1, 1), "patience_us", json!(1_500_000));
        let reply = shared.say("a", &[with(patient.clone(), "waited_us", json!(50_000))]);
        assert!(reply.answers.is_empty(), "{later}: {reply:?}");
        // One who came last is behind them.
        let reply = shared.say("b", &[with(patient, "ticket", json!(1000))]);
        assert!(matches!(reply.verdict(), Verdict::NotBefore { .. }), "{later}");
    }
}

#[test]
fn what_has_left_is_settled_once() {
    let server = start_server();
    let mut shared = Shared::new(&server, "once");
    shared.join("a", Quotas::default().with(InputTokensPerDay, 1000));
    shared.say("a", &[ask(1, 100), depart(1, 100), ask(2, 100), depart(2, 100)]);
    let settled = json!({
        "op": "settle", "account": ACCOUNT, "ticket": 1, "counted": Cost::one(100),
        "actual": Cost::one(30), "left_us_ago": 0, "midnight_us": MIDNIGHT_US,
    });
    shared.say("a", &[settled.clone(), settled]);
    assert_eq!(shared.usage("a")[InputTokensPerMinute].used, 130);
    assert_eq!(shared.usage("a")[InputTokensPerDay].used, 130);
}
