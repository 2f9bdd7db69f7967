//! What stays in Redis and for how long, steps of its clock, and loss of its data.

use super::*;

/// The bound of one call of the script: see `members.lua`.
const MAX_REMOVED: usize = 25;

const MINUTE_MS: i64 = 60_000;

impl Shared {
    fn ask_redis<T: redis::FromRedisValue>(&mut self, command: &str, name: &str) -> T {
        let key = format!("{}:{name}", self.prefix);
        redis::cmd(command).arg(key).query(&mut self.connection).unwrap()
    }

    /// The names of all keys without their prefix.
    fn keys(&mut self) -> Vec<String> {
        let pattern = format!("{}:*", self.prefix);
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(pattern).query(&mut self.connection).unwrap();
        let start = self.prefix.len() + 1;
        let mut keys: Vec<_> = keys.into_iter().map(|key| key[start..].to_owned()).collect();
        keys.sort();
        keys
    }

    fn flush(&mut self) {
        let () = redis::cmd("FLUSHALL").query(&mut self.connection).unwrap();
    }

    fn result(&mut self, member: &str, operation: Value) -> Value {
        self.send(member, &[operation]).results.remove(&0).unwrap_or_default()
    }
}

fn of(account: &str, operation: Value) -> Value {
    with(operation, "account", json!(account))
}

fn ask_permits(semaphore: &Value, ticket: u64) -> Value {
    json!({
        "op": "request_permits", "semaphore": semaphore, "ticket": ticket, "permits": 1, "waited_us": 0,
        "wait": true,
    })
}

#[test]
fn an_unproven_account_is_kept_for_minutes() {
    let server = start_server();
    let mut shared = Shared::new(&server, "unproven");
    shared.join("a", requests(60));
    shared.send("a", &[ask(1, 1)]);
    let kept = |shared: &mut Shared| -> i64 { shared.ask_redis("PTTL", "budget:an account") };
    assert!(kept(&mut shared) > 100 * MINUTE_MS, "a call is on its way");
    shared.send("a", &[start_call(1, 1)]);
    assert!((1..=10 * MINUTE_MS).contains(&kept(&mut shared)));
    let others = ["budget_departures:an account", "budget_left:an account"];
    for name in others {
        assert!(shared.ask_redis::<i64>("PTTL", name) <= 10 * MINUTE_MS, "{name}");
    }
    shared.send("a", &[json!({"op": "prove_budget", "account": ACCOUNT})]);
    assert!(kept(&mut shared) > 100 * MINUTE_MS);
    assert_eq!(shared.usage("a")[RequestsPerDay].used, 1);

    // Gemini knows the keys that it refuses for their quotas.
    for (account, operation) in [
        ("closed", json!({"op": "close_day", "for_us": 1_000_000})),
        ("corrected", json!({"op": "learn_quotas", "quotas": {"rpm": 7}})),
    ] {
        shared.send("a", &[of(account, open(requests(60))), of(account, operation)]);
        let kept: i64 = shared.ask_redis("PTTL", &format!("budget:{account}"));
        assert!(kept > 100 * MINUTE_MS, "{account}");
    }
}

#[test]
fn a_member_that_holds_nothing_leaves_no_keys() {
    let server = start_server();
    let mut shared = Shared::new(&server, "nothing");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    shared.send("a", &[ask(1, 1), ask(2, 1), ask_permits(&json!(0), 3)]);
    let left = |shared: &mut Shared| -> Vec<String> {
        let is_of_a = |key: &String| key.ends_with(":a") || key.contains(":a:");
        shared.keys().into_iter().filter(is_of_a).collect()
    };
    assert_eq!(left(&mut shared), ["budgets_of:a", "held:a", "places:a:an account"]);
    let give_back = json!({"op": "release_permits", "semaphore": 0, "permits": 1});
    let leave = json!({"op": "cancel_reserve", "account": ACCOUNT, "ticket": 2});
    shared.send("a", &[give_back, leave, start_call(1, 1)]);
    assert!(left(&mut shared).is_empty(), "{:?}", shared.keys());

    // It also leaves nothing when it has ended.
    shared.send("a", &[ask(4, 1), ask_permits(&json!(0), 5)]);
    shared.advance(20 * SECOND);
    shared.send("b", &[]);
    shared.advance(11 * SECOND);
    shared.send("b", &[]);
    assert!(left(&mut shared).is_empty(), "{:?}", shared.keys());
    for name in ["alive", "lease_lengths", "arrivals", "dead"] {
        let command = if name == "alive" { "ZSCORE" } else { "HEXISTS" };
        let command = if name == "dead" { "SISMEMBER" } else { command };
        let key = format!("nothing:{name}");
        for of in ["a", "a first", "a returning"] {
            let mut look = redis::cmd(command);
            let found: Option<f64> = look.arg(&key).arg(of).query(&mut shared.connection).unwrap();
            assert_eq!(found.unwrap_or_default(), 0.0, "{name}");
        }
    }
}

#[test]
fn the_last_member_that_retires_leaves_no_keys() {
    let server = start_server();
    let mut shared = Shared::new(&server, "last");
    shared.join("a", requests(60));
    shared.send("a", &[ask(1, 1), ask_permits(&json!(0), 2)]);
    let give_back = json!({"op": "release_permits", "semaphore": 0, "permits": 1});
    shared.send("a", &[give_back, start_call(1, 1), json!({"op": "retire"})]);
    assert_eq!(shared.ask_redis::<usize>("EXISTS", "dead"), 0);
    assert_eq!(shared.ask_redis::<usize>("EXISTS", "arrivals"), 0);

    // What a member still holds is removed with it.
    shared.join("b", requests(60));
    shared.send("b", &[ask(1, 1), ask_permits(&json!(0), 2), json!({"op": "retire"})]);
    let left: Vec<_> = shared.keys().into_iter().filter(|key| key.ends_with(":b")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(shared.ask_redis::<usize>("EXISTS", "dead"), 0);
}

#[test]
fn requests_in_a_members_last_call_are_removed() {
    let server = start_server();
    let mut shared = Shared::new(&server, "last words");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    let all = [ask_permits(&json!(0), 1), ask(2, 1), json!({"op": "retire"})];
    shared.send("a", &[&all[..], &[ask_permits(&json!(0), 3), ask(4, 1)]].concat());
    shared.send("b", &[]);
    let left: Vec<_> = shared.keys().into_iter().filter(|key| key.ends_with(":a")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(shared.usage("b")[RequestsPerMinute].reserved, 0);
    let ten = json!({
        "op": "request_permits", "semaphore": 0, "ticket": 1, "permits": 10, "waited_us": 0, "wait": true,
    });
    assert_eq!(shared.send("b", &[ten]).verdict(), Verdict::OfSemaphore);
}

#[test]
fn dead_members_are_removed_a_few_items_at_a_time() {
    let server = start_server();
    let mut shared = Shared::new(&server, "slices");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    for number in 0..250_u64 {
        let account = number.to_string();
        let asks = [ask(3 * number + 1, 1), ask(3 * number + 2, 1)].map(|ask| of(&account, ask));
        shared.send("a", &[of(&account, open(requests(60)))]);
        shared.send("a", &asks);
        shared.send("a", &[ask_permits(&json!(0), 3 * number + 3)]);
    }
    let left = |shared: &mut Shared| -> (usize, usize, usize) {
        let accounts = shared.ask_redis("SCARD", "budgets_of:a");
        let positions = shared.keys().iter().filter(|key| key.starts_with("places:a:")).count();
        (shared.ask_redis("SCARD", "waits:a"), positions, accounts)
    };
    assert_eq!(left(&mut shared), (240, 250, 250), "10 of 250 have a permit");
    shared.advance(20 * SECOND);
    shared.send("b", &[]);
    shared.advance(11 * SECOND);
    let mut before = left(&mut shared);
    let mut calls = 0;
    while before != (0, 0, 0) {
        let reply = shared.send("b", &[]);
        let after = left(&mut shared);
        let removed = before.0 + before.1 + before.2 - after.0 - after.1 - after.2;
        assert!((1..=MAX_REMOVED).contains(&removed), "{before:?} to {after:?}");
        if after != (0, 0, 0) {
            assert_eq!(reply.check_again_in_us, Some(0), "something is left");
        }
        before = after;
        calls += 1;
    }
    assert!(calls >= 28, "{calls}");
    shared.send("b", &[]);
    assert_eq!(shared.ask_redis::<usize>("EXISTS", "dead"), 0);
    // Its reservations count as sent, and its permits are free.
    let usage = shared.result("b", of("17", usage()));
    assert_eq!((&usage["waiting"], &usage["quotas"]["rpm"]["used"]), (&json!(0), &json!(1)));
    let all = json!({
        "op": "request_permits", "semaphore": 0, "ticket": 1, "permits": 10, "waited_us": 0, "wait": false,
    });
    let reply = shared.send("b", &[all]);
    assert!(reply.answers.len() == 1 && shared.ask_redis::<usize>("HLEN", "held:b") == 1);
}

#[test]
fn accounts_that_open_are_served_a_few_at_a_time() {
    let server = start_server();
    let mut shared = Shared::new(&server, "openings");
    shared.join("a", requests(60));
    for number in 0..120_u64 {
        let account = number.to_string();
        let pause = json!({"op": "pause", "account": account, "for_us": 1_000_000});
        let asked = of(&account, ask(number, 1));
        shared.send("a", &[of(&account, open(requests(60))), pause, asked]);
    }
    shared.advance(2 * SECOND);
    let mut answered = Vec::new();
    for _ in 0..5 {
        answered.push(shared.send("a", &[]).answers.len());
    }
    assert_eq!(answered, [25, 25, 25, 25, 20]);
}

#[test]
fn a_clock_set_back_delays_no_request() {
    let server = start_server();
    let mut shared = Shared::new(&server, "back");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    shared.send("a", &[ask(1, 1), start_call(1, 1)]);
    shared.ahead -= 3600 * 1_000_000;
    shared.advance(SECOND);
    let reply = shared.send("b", &[]);
    assert!(reply.stepped_us.is_some_and(|step| step < -3_590e6), "{reply:?}");
    shared.advance(2 * SECOND);
    assert_eq!(shared.send("b", &[ask(1, 1)]).verdict(), Verdict::granted(1));
    let reply = shared.send("a", &[]);
    assert!(!reply.expired && reply.stepped_us.is_none());
    shared.advance(29 * SECOND);
    assert!(!shared.send("b", &[start_call(1, 1)]).expired);
    shared.advance(29 * SECOND);
    assert_eq!(shared.usage("b")[RequestsPerMinute].used, 2);
    shared.advance(3 * SECOND);
    assert_eq!(shared.usage("b")[RequestsPerMinute].used, 1, "the first has aged");
    assert!(shared.send("a", &[]).expired, "it was silent for too long");
}

#[test]
fn a_clock_set_forward_ends_no_member() {
    let server = start_server();
    let mut shared = Shared::new(&server, "forward");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    shared.send("a", &[ask(1, 1), ask_permits(&json!(0), 2)]);
    shared.ahead += 3600 * 1_000_000;
    shared.advance(2 * SECOND);
    let reply = shared.send("b", &[]);
    assert_eq!(reply.stepped_us, Some(3600e6));
    assert!(!shared.send("a", &[]).expired);
    let usage = shared.usage("b")[RequestsPerMinute];
    assert_eq!((usage.used, usage.reserved), (0, 1));

    // A process that has just started cannot notice the step; live members get time for a call.
    shared.ahead += 3600 * 1_000_000;
    shared.advance(SECOND);
    shared.join("c", requests(60));
    shared.advance(SECOND);
    assert!(!shared.send("a", &[]).expired);
}

#[test]
fn after_data_loss_nothing_is_granted_for_the_longest_lease() {
    let server = start_server();
    let mut shared = Shared::new(&server, "loss");
    let joined = shared.send("a", &[join()]);
    assert_eq!(joined.opens_in_us, None);
    let lineage = joined.results[&0]["lineage"].clone();
    shared.lease = 300 * SECOND;
    shared.join("unhurried", requests(60));
    shared.lease = 30 * SECOND;
    let opens_in = |reply: &Reply| reply.opens_in_us.unwrap_or_default() / 1_000_000;

    // Another run with all the data.
    shared.advance(SECOND);
    let other_run = with(join(), "run", json!("another"));
    assert_eq!(opens_in(&shared.send("b", &[other_run])), 300);
    shared.set("run", RUN);
    shared.set("opens_at", "0");

    // All data is lost: a new member waits, and longer when a member returns that knows of longer leases.
    shared.flush();
    assert!(shared.send("a", &[]).expired);
    assert_eq!(opens_in(&shared.join("new", requests(60))), 30);
    let again = with(with(join(), "lineage", lineage), "longest_us", json!(300_000_000));
    let again = shared.send("again", &[with(again, "starts", json!(false))]);
    assert_eq!(opens_in(&again), 300);
    assert!(shared.send("new", &[ask_permits(&json!(0), 1)]).answers.is_empty());
    // A member that noticed before does not make the others wait again.
    let lineage = again.results[&0]["lineage"].clone();
    shared.advance(SECOND);
    let third = with(with(join(), "lineage", lineage), "longest_us", json!(300_000_000));
    assert_eq!(opens_in(&shared.send("third", &[third])), 299);
}

#[test]
fn replicas_of_another_format_are_refused() {
    let server = start_server();
    let mut shared = Shared::new(&server, "format");
    // The first format had a sorted set there.
    let mut members = redis::cmd("ZADD");
    members.arg("format:members").arg(START + 1_000_000).arg("old");
    let () = members.query(&mut shared.connection).unwrap();
    assert_eq!(shared.send("a", &[join()]).other_format.as_deref(), Some("1"));
    assert_eq!(shared.keys(), ["members", "run"], "nothing was done");
    shared.advance(2 * SECOND);
    assert_eq!(shared.join("a", requests(60)).other_format, None, "none of them is left");

    shared.set("members", "999");
    assert_eq!(shared.send("a", &[]).other_format.as_deref(), Some("999"));
    assert_eq!(shared.send("b", &[join()]).other_format.as_deref(), Some("999"));
}

#[test]
fn a_deleted_semaphore_leaves_no_keys() {
    let server = start_server();
    let mut shared = Shared::new(&server, "deleted");
    for member in ["a", "b"] {
        shared.send(member, &[join()]);
    }
    let everything = |shared: &mut Shared| -> Vec<(String, usize)> {
        let mut sizes = Vec::new();
        for key in shared.keys() {
            let size = match shared.ask_redis::<String>("TYPE", &key).as_str() {
                "hash" => shared.ask_redis("HLEN", &key),
                "zset" => shared.ask_redis("ZCARD", &key),
                "set" => shared.ask_redis("SCARD", &key),
                _ => 1,
            };
            sizes.push((key, size));
        }
        sizes
    };
    shared.send("a", &[json!({"op": "register", "name": "before", "limit": 1})]);
    shared.send("a", &[json!({"op": "delete", "name": "before"})]);
    let before = everything(&mut shared);

    let registered = shared.result("a", json!({"op": "register", "name": "s", "limit": 2}));
    let semaphore = registered["semaphore"].clone();
    shared.send("a", &[ask_permits(&semaphore, 1), ask_permits(&semaphore, 2)]);
    shared.send("b", &[ask_permits(&semaphore, 1)]);
    let lease = json!({
        "op": "lease", "semaphore": semaphore, "name": "s", "id": "l", "holder": "h",
        "permits": 1, "ttl_us": 1_000_000, "key": "k",
    });
    shared.send("a", &[lease]);
    assert_ne!(everything(&mut shared), before);
    shared.send("b", &[json!({"op": "delete", "name": "s"})]);
    // Later commands about it leave nothing either.
    let late = json!({"op": "release_permits", "semaphore": semaphore, "permits": 1});
    let claim = json!({"op": "claim_permits", "semaphore": semaphore, "permits": 1});
    shared.send("a", &[late, claim, ask_permits(&semaphore, 9)]);
    shared.advance(2 * SECOND);
    shared.send("a", &[]);
    let mut after = everything(&mut shared);
    after.retain(|(key, _)| !["last_token", "arrivals"].contains(&key.as_str()));
    assert_eq!(after, before);
}

#[test]
fn a_lease_that_no_request_found_can_be_taken_back() {
    let server = start_server();
    let mut shared = Shared::new(&server, "lost lease");
    shared.send("a", &[join()]);
    let registered = shared.result("a", json!({"op": "register", "name": "s", "limit": 5}));
    let semaphore = registered["semaphore"].clone();
    let release = json!({"op": "release_lease", "name": "s", "id": "l", "unless_found": true});
    let find = json!({"op": "find_lease", "semaphore": semaphore, "key": "k"});
    for found in [false, true] {
        let lease = json!({
            "op": "lease", "semaphore": semaphore, "name": "s", "id": "l", "holder": "h",
            "permits": 1, "ttl_us": 60_000_000, "key": "k",
        });
        shared.send(
            "a",
            &[ask_permits(&semaphore, 1), json!({"op": "refresh", "semaphore": semaphore})],
        );
        shared.send("a", &[lease]);
        if found {
            assert_ne!(shared.result("a", find.clone()), Value::Null);
        }
        shared.send("a", std::slice::from_ref(&release));
        let listed = shared.result("a", json!({"op": "list_leases", "semaphore": semaphore}));
        assert_eq!(listed["leases"].as_array().map_or(0, Vec::len), usize::from(found));
    }
}

/// How long the longest call takes with very many accounts; run it with `--ignored --nocapture`.
#[test]
#[ignore = "it takes minutes, and prints what depends on the machine"]
fn no_call_takes_long_with_very_many_accounts() {
    const ACCOUNTS: u64 = 1_000_000;
    let server = start_server();
    let mut shared = Shared::new(&server, "many");
    shared.join("a", requests(60));
    shared.join("b", requests(60));
    let mut longest = BTreeMap::new();
    let mut timed = |shared: &mut Shared, what: &'static str, member: &str, commands: &[Value]| {
        let began = std::time::Instant::now();
        let reply = shared.send(member, commands);
        let took: &mut Duration = longest.entry(what).or_default();
        *took = began.elapsed().max(*took);
        reply
    };
    for chunk in 0..ACCOUNTS / 32 {
        let account = |n: u64| format!("key/{:064x}/model", 32 * chunk + n);
        let opened: Vec<_> = (0..32).map(|n| of(&account(n), open(requests(60)))).collect();
        timed(&mut shared, "32 accounts opened", "a", &opened);
    }
    let account = |n: u64| format!("key/{n:064x}/model");
    for chunk in 0..40 {
        let asks: Vec<_> = (0..32).map(|n| 32 * chunk + n).collect();
        let asks: Vec<_> = asks.iter().map(|&n| of(&account(n), ask(n + 1, 1))).collect();
        timed(&mut shared, "32 reservations", "a", &asks);
        timed(&mut shared, "one reservation", "b", &[of(&account(chunk), ask(chunk, 1))]);
        timed(&mut shared, "one look", "b", &[]);
    }
    shared.advance(20 * SECOND);
    timed(&mut shared, "one look", "b", &[]);
    shared.advance(20 * SECOND);
    while shared.ask_redis::<usize>("SCARD", "budgets_of:a") > 0 {
        timed(&mut shared, "a slice of the dead", "b", &[]);
    }
    println!("with {ACCOUNTS} accounts: {longest:?}");
}
