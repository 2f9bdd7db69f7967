//! Random histories of the script compared with a model: members that join, request, hold, fall silent
//! and join again; leases that are granted, renewed, released and expire.

use std::collections::{BTreeMap, BTreeSet};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use super::SCRIPT;
use crate::limits::redis::test_server::RedisServer;

/// The lease of members, in microseconds.
const LEASE_US: u64 = 1000;

/// When the clock begins, in microseconds, and the generation of the first semaphore.
const BEGINNING: u64 = 1_800_000_000_000_000;
const SEMAPHORE: u64 = BEGINNING / 1000;

/// The script with a clock that the test sets, and with lists that record what is published.
pub(super) fn script_under_test() -> redis::Script {
    let clock = "redis.call('TIME')";
    let publish = "redis.call('PUBLISH', ";
    assert!(SCRIPT.contains(clock) && SCRIPT.contains(publish));
    let script = SCRIPT.replace(clock, "redis.call('LRANGE', KEYS[1] .. ':test-clock', 0, 1)");
    redis::Script::new(&script.replace(publish, "redis.call('RPUSH', "))
}

/// The expected state.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    limit: u64,
    members: BTreeMap<String, Member>,
    /// The waiting requests in order: member, ticket, permits.
    queue: Vec<(String, u64, u64)>,
    leases: BTreeMap<String, Lease>,
    last_token: u64,
    last_number: u64,
}

#[derive(Debug, Default)]
struct Member {
    ends: u64,
    /// The permits of each ticket that was granted.
    held: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Lease {
    permits: u64,
    ends: u64,
    ttl: u64,
}

impl Model {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Drops expired leases, members that were silent for too long, and everything that belongs to
    /// them.
    fn end_expired_members(&mut self) {
        let now = self.now;
        self.leases.retain(|_, lease| lease.ends > now);
        self.members.retain(|_, member| member.ends > now);
        self.queue.retain(|(member, ..)| self.members.contains_key(member));
    }

    fn out(&self) -> u64 {
        let held = self.members.values().flat_map(|member| member.held.values());
        held.sum::<u64>() + self.leased()
    }

    fn leased(&self) -> u64 {
        self.leases.values().map(|lease| lease.permits).sum()
    }

    /// Grants free permits. Returns the tickets that are answered.
    fn serve(&mut self) -> BTreeSet<(u64, String)> {
        let mut answers = BTreeSet::new();
        let limit = self.limit;
        self.queue.retain(|(_, ticket, permits)| {
            if *permits > limit {
                answers.insert((*ticket, "more_than_limit".to_owned()));
            }
            *permits <= limit
        });
        while let Some((member, ticket, permits)) = self.queue.first().cloned()
            && self.out() + permits <= limit
        {
            self.queue.remove(0);
            answers.insert((ticket, "granted".to_owned()));
            let member = self.members.get_mut(&member).expect("it is in the queue");
            member.held.insert(ticket, permits);
        }
        answers
    }
}

struct History {
    connection: MultiplexedConnection,
    script: redis::Script,
    prefix: String,
    /// When each member called last.
    last_calls: BTreeMap<String, u64>,
    model: Model,
    random: fastrand::Rng,
}

impl History {
    async fn new(server: &RedisServer, number: usize, random: fastrand::Rng) -> Self {
        let mut history = Self {
            connection: server.connection().await,
            script: script_under_test(),
            prefix: format!("{{history-{number}}}"),
            last_calls: BTreeMap::new(),
            model: Model { limit: 3, ..Model::default() },
            random,
        };
        history.advance(BEGINNING).await;
        let run = format!("{}:run", history.prefix);
        let _: () = history.connection.set(run, "run").await.unwrap();
        history.join(None).await;
        let member = history.some_member().expect("one has joined");
        history.send(&member, json!([{"op": "register", "name": "s", "limit": 3}])).await;
        history
    }

    async fn advance(&mut self, by: u64) {
        self.model.now += by;
        let clock = format!("{}:test-clock", self.prefix);
        let (seconds, micros) = (self.model.now / 1_000_000, self.model.now % 1_000_000);
        let mut set = redis::pipe();
        set.del(&clock).rpush(&clock, &[seconds, micros]);
        let _: () = set.query_async(&mut self.connection).await.unwrap();
    }

    fn some_member(&mut self) -> Option<String> {
        let names: Vec<_> = self.model.members.keys().cloned().collect();
        self.random.choice(names)
    }

    /// Makes one call as a member. Returns the reply.
    async fn send(&mut self, member: &str, ops: Value) -> Value {
        let mut call = self.script.key(&self.prefix);
        let last_call = self.last_calls.insert(member.to_owned(), self.model.now);
        let quiet =
            last_call.map(|last_call| (self.model.now - last_call).to_string()).unwrap_or_default();
        call.arg(member).arg(LEASE_US).arg(ops.to_string()).arg(quiet);
        let reply: String = call.invoke_async(&mut self.connection).await.unwrap();
        serde_json::from_str(&reply).unwrap()
    }

    /// What was published to the members since the last call.
    async fn published(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        for member in self.model.members.keys() {
            let list = format!("{}:to:{member}", self.prefix);
            let messages: Vec<String> = self.connection.lrange(&list, 0, -1).await.unwrap();
            let _: () = self.connection.del(&list).await.unwrap();
            for message in messages {
                let mut message: Value = serde_json::from_str(&message).unwrap();
                all.append(message["answers"].as_array_mut().unwrap());
            }
        }
        all
    }

    /// Sends commands as a member, and checks that the script and the model agree afterwards. `change` is
    /// the change of the model.
    async fn step(
        &mut self,
        member: &str,
        op: Value,
        change: impl FnOnce(&mut Model, &str),
    ) -> Option<Value> {
        let reply = self.send(member, json!([op, {"op": "refresh", "semaphore": SEMAPHORE}])).await;
        self.model.end_expired_members();
        let is_member = op["op"] == "join" || self.model.members.contains_key(member);
        if is_member {
            let sender = self.model.members.entry(member.to_owned()).or_default();
            sender.ends = self.model.now + LEASE_US;
            change(&mut self.model, member);
        } else {
            // What has ended is granted to others all the same.
            assert_eq!(reply, json!({"expired": true}), "{op}");
        }
        let expected = self.model.serve();
        let mut answers = self.published().await;
        answers.extend(reply["answers"].as_array().cloned().unwrap_or_default());
        let came: BTreeSet<_> = answers
            .iter()
            .map(|answer| {
                (answer["ticket"].as_u64().unwrap(), answer["verdict"].as_str().unwrap().to_owned())
            })
            .collect();
        assert_eq!(came, expected, "{op} of {member}: {:?}", self.model);
        if let usage @ Value::Object(_) = &reply["semaphores"][SEMAPHORE.to_string()] {
            let Model { limit, queue, .. } = &self.model;
            let (out, leased) = (self.model.out(), self.model.leased());
            let expected = json!({
                "limit": limit, "in_use": out, "leased": leased, "waiting": queue.len(),
            });
            assert_eq!(*usage, expected, "{op} of {member}: {:?}", self.model);
        }
        is_member.then(|| reply["results"]["0"].clone())
    }

    async fn join(&mut self, instead_of: Option<&str>) {
        let name = format!("m{}", self.model.number());
        let join = json!({
            "op": "join", "run": "run", "limit": 10, "starts": true, "known": [],
            "longest_us": LEASE_US,
        });
        self.step(&name, join, |_, _| {}).await;
        let Some(before) = instead_of else { return };
        // The new member takes over permits and requests. Until the old one is removed, its permits
        // count twice.
        let Some(old) = self.model.members.get(before) else { return };
        let held = old.held.clone();
        let claim = json!({"op": "claim_permits", "semaphore": SEMAPHORE, "permits": held.values().sum::<u64>()});
        self.step(&name, claim, |model, name| {
            model.members.get_mut(name).expect("it has joined").held = held;
        })
        .await;
        let retire = json!({"op": "retire", "member": before});
        self.step(&name, retire, |model, _| {
            model.members.remove(before);
            model.queue.retain(|(member, ..)| member != before);
        })
        .await;
    }

    async fn request(&mut self, member: &str) {
        let (ticket, permits) = (self.model.number(), self.random.u64(1..=4));
        let ask = json!({
            "op": "request_permits", "semaphore": SEMAPHORE, "ticket": ticket, "permits": permits, "waited_us": 0,
            "wait": true,
        });
        self.step(member, ask, |model, member| {
            model.queue.push((member.to_owned(), ticket, permits));
        })
        .await;
    }

    async fn lease(&mut self, member: &str, ticket: u64, permits: u64) {
        let (id, ttl) = (format!("l{}", self.model.number()), self.random.u64(1..3 * LEASE_US));
        let lease = json!({
            "op": "lease", "semaphore": SEMAPHORE, "name": "s", "id": id, "holder": "h",
            "permits": permits, "ttl_us": ttl,
        });
        let result = self
            .step(member, lease, |model, member| {
                model.members.get_mut(member).expect("it is registered").held.remove(&ticket);
                let ends = model.now + ttl;
                model.leases.insert(id.clone(), Lease { permits, ends, ttl });
            })
            .await;
        let Some(result) = result else { return };
        assert_eq!((&result["new"], &result["lease"]["ends_in_us"]), (&json!(true), &json!(ttl)));
        let token = result["lease"]["fencing_token"].as_str().unwrap().parse().unwrap();
        assert!(token > self.model.last_token, "{token} after {}", self.model.last_token);
        self.model.last_token = token;
    }

    async fn renew(&mut self, member: &str, id: &str) {
        let renew = json!({"op": "renew_lease", "name": "s", "id": id});
        let result = self
            .step(member, renew, |model, _| {
                let now = model.now;
                if let Some(lease) = model.leases.get_mut(id) {
                    lease.ends = now + lease.ttl;
                }
            })
            .await;
        if let Some(result) = result {
            assert_eq!(result.is_null(), !self.model.leases.contains_key(id), "it is over or not");
        }
    }

    /// Makes a random change.
    async fn happen(&mut self) {
        let Some(member) = self.some_member() else { return self.join(None).await };
        let held: Vec<_> = self.model.members[&member].held.clone().into_iter().collect();
        let held = self.random.choice(held);
        let leases: Vec<_> = self.model.leases.keys().cloned().collect();
        let lease = self.random.choice(leases);
        match (self.random.u8(0..20), held, lease) {
            // A call of the script removes at most 25 items of dead members.
            (0..6, ..) if self.model.queue.len() < 15 => self.request(&member).await,
            (6..9, Some((ticket, permits)), _) => {
                let back =
                    json!({"op": "release_permits", "semaphore": SEMAPHORE, "permits": permits});
                self.step(&member, back, |model, member| {
                    model.members.get_mut(member).expect("it is registered").held.remove(&ticket);
                })
                .await;
            }
            (9..11, Some((ticket, permits)), _) => self.lease(&member, ticket, permits).await,
            (11..13, _, Some(id)) => self.renew(&member, &id).await,
            (13, _, Some(id)) => {
                let release = json!({"op": "release_lease", "name": "s", "id": id});
                self.step(&member, release, |model, _| {
                    model.leases.remove(&id);
                })
                .await;
            }
            (14, ..) => {
                let waits = self.model.queue.iter().find(|(name, ..)| *name == member).cloned();
                let Some((_, ticket, permits)) = waits else { return };
                let leave = json!({
                    "op": "cancel_request", "semaphore": SEMAPHORE, "ticket": ticket, "permits": permits,
                });
                self.step(&member, leave, |model, _| {
                    model.queue.retain(|(_, number, _)| *number != ticket);
                })
                .await;
            }
            (15, ..) => {
                let limit = self.random.u64(1..6);
                let register = json!({"op": "register", "name": "s", "limit": limit});
                self.step(&member, register, |model, _| model.limit = limit).await;
            }
            (16, ..) if self.model.members.len() < 4 => self.join(None).await,
            (16, ..) => self.join(Some(&member)).await,
            // A member that is silent for longer than that has ended.
            (17.., ..) => {
                let by = self.random.u64(1..LEASE_US / 2);
                self.advance(by).await;
            }
            _ => {}
        }
    }

    /// In the end everything is given back or has ended, and all permits can be granted.
    async fn end(mut self) {
        self.advance(4 * LEASE_US).await;
        self.join(None).await;
        assert_eq!(self.model.out(), 0);
        let member = self.some_member().expect("one has joined");
        let (ticket, limit) = (self.model.number(), self.model.limit);
        let ask = json!({
            "op": "request_permits", "semaphore": SEMAPHORE, "ticket": ticket, "permits": limit, "waited_us": 0,
            "wait": true,
        });
        self.step(&member, ask, |model, member| {
            model.queue.push((member.to_owned(), ticket, limit));
        })
        .await;
        assert_eq!(self.model.out(), limit, "all of it was free");
    }
}

#[tokio::test]
async fn permits_never_exceed_the_limit_and_none_is_lost() {
    let server = RedisServer::start().await;
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    for number in 0..20 {
        let random = fastrand::Rng::with_seed(seed + number as u64);
        let mut history = History::new(&server, number, random).await;
        for _ in 0..200 {
            // Requests of the same microsecond have no order.
            history.advance(1).await;
            history.happen().await;
        }
        history.end().await;
    }
}
