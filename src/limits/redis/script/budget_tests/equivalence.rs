//! The script and the ledger agree on random histories: they admit the same calls, answer the others
//! alike, and count the same usage.

use std::pin::Pin;

use jiff::Timestamp;
use tokio::task::coop::unconstrained;

use super::*;
use crate::limits::model::end_of_used_up;
use crate::pacific::Calendar;

const STEPS: usize = 300;

const MEMBER: &str = "only";

type Reserving = Pin<Box<dyn Future<Output = Result<Reservation, Exhausted>>>>;

/// A request that waits here and, with the same ticket, in Redis.
struct Waiting {
    ticket: u64,
    cost: Cost,
    line: Line,
    deadline: Instant,
    reserving: Reserving,
}

/// One history of a budget here and of one in Redis.
struct History {
    random: fastrand::Rng,
    start: Instant,
    calendar: Calendar,
    budget: Arc<LocalBudget>,
    shared: Shared,
    last_ticket: u64,
    waiting: Vec<Waiting>,
    reserved: Vec<(u64, Reservation)>,
    sent: Vec<(u64, Sent)>,
    /// The answers of the budget here, and of the one in Redis, since the last comparison.
    here: Vec<(u64, Verdict)>,
    there: Vec<(u64, Verdict)>,
    /// When the script is to be called again, as it replied.
    check_again: Instant,
    /// How often each verdict was given.
    seen: BTreeMap<String, usize>,
}

impl History {
    fn new(server: &RedisServer, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let walls = ["2026-07-01T06:30:00Z", "2026-11-01T06:30:00Z", "2026-03-08T07:59:00Z"];
        let wall: Timestamp = walls[random.usize(..walls.len())].parse().unwrap();
        let quotas = quotas(&mut random);
        let budget = starting_at(quotas, wall);
        let start = Instant::now();
        let calendar = Calendar { wall, instant: start };
        let mut shared = Shared::new(server, seed.to_string());
        shared.lease = 1000 * HOUR;
        shared.send(MEMBER, &[join()]);
        let mut history = Self {
            random,
            start,
            calendar,
            budget,
            shared,
            last_ticket: 0,
            waiting: Vec::new(),
            reserved: Vec::new(),
            sent: Vec::new(),
            here: Vec::new(),
            there: Vec::new(),
            check_again: start,
            seen: BTreeMap::new(),
        };
        let opened = history.of_account(
            "open_budget",
            json!({
                "planned": limits(quotas), "minute_us": MINUTE.as_micros() as u64,
            }),
        );
        history.send(&[opened]);
        history
    }

    async fn step(&mut self) {
        // Requests of the same microsecond have no order.
        self.pass(Duration::from_micros(50)).await;
        let operation = match self.random.u32(..100) {
            0..35 => Some(self.reserve()),
            35..40 => Some(self.try_reserve()),
            40..60 => self.start(),
            60..64 => self.give_back(),
            64..68 => self.leave(),
            68..80 => self.end_call(),
            80 => Some(self.pause()),
            81 => Some(self.set()),
            _ => {
                let time = self.some_time();
                self.pass(time).await;
                None
            }
        };
        self.compare(operation);
    }

    /// An operation with the common fields.
    fn of_account(&self, name: &str, mut fields: Value) -> Value {
        let now = Instant::now();
        fields["op"] = json!(name);
        fields["account"] = json!(ACCOUNT);
        fields["midnight_us"] = json!(micros(self.calendar.midnight_after(now) - now));
        fields
    }

    fn send(&mut self, operations: &[Value]) -> Reply {
        self.shared.now = START + micros(self.start.elapsed());
        let mut reply = self.shared.send(MEMBER, operations);
        let answers = std::mem::take(&mut reply.answers);
        self.there.extend(answers.into_iter().map(|of| (of.ticket, of.verdict)));
        let check_again = reply.check_again_in_us.unwrap_or(1_000_000);
        self.check_again = Instant::now() + Duration::from_micros(check_again);
        reply
    }

    /// What a call costs: most count as one request.
    fn cost(&mut self) -> Cost {
        let limit = self.budget.usage_now()[RequestsPerMinute].limit.unwrap_or(100);
        let requests = match self.random.u32(..50) {
            0 => self.random.u64(1..=limit + limit / 5 + 1),
            1..8 => self.random.u64(2..=4),
            _ => 1,
        };
        let images = if self.random.u32(..3) == 0 { self.random.u64(..=4) } else { 0 };
        let spend = if self.random.bool() { self.spend() } else { 0 };
        let cost = Cost::of(requests, self.tokens()).with(Resource::Images, images);
        cost.with(Resource::Spend, spend)
    }

    fn spend(&mut self) -> u64 {
        let spend = self.budget.usage_now()[SpendPerTenMinutes].limit.unwrap_or(1_000_000);
        let most = if self.random.u32(..20) == 0 { spend + spend / 5 } else { spend / 50 };
        self.random.u64(1..=most.max(1))
    }

    fn tokens(&mut self) -> u64 {
        let tokens = self.budget.usage_now()[InputTokensPerMinute].limit.unwrap_or(1000);
        let most = if self.random.u32(..20) == 0 { tokens + tokens / 5 } else { tokens / 10 };
        self.random.u64(1..=most.max(1))
    }

    fn reserve(&mut self) -> Value {
        let cost = self.cost();
        // tokio's timers count whole milliseconds; and no two deadlines coincide.
        let now = self.start.elapsed().as_millis() as u64;
        let most = if self.random.u32(..10) == 0 { 30_000_000 } else { 60_000 };
        let deadline = loop {
            let millis = now + self.random.u64(1..most);
            let deadline = self.start + Duration::from_millis(millis);
            if self.waiting.iter().all(|waiting| waiting.deadline != deadline) {
                break deadline;
            }
        };
        let line = [Line::Queue, Line::Queue, Line::YieldOnce, Line::Returning];
        let line = line[self.random.usize(..4)];
        let budget = Arc::clone(&self.budget);
        let reserving: Reserving =
            match line {
                Line::Queue => Box::pin(async move {
                    Arc::clone(&budget).reserve(Line::Queue, cost, deadline).await
                }),
                Line::YieldOnce => {
                    Box::pin(async move { budget.reserve(Line::YieldOnce, cost, deadline).await })
                }
                Line::Returning => {
                    Box::pin(async move { budget.reserve(Line::Returning, cost, deadline).await })
                }
            };
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let mut waiting = Waiting { ticket, cost, line, deadline, reserving };
        if !self.is_answered(&mut waiting) {
            self.waiting.push(waiting);
        }
        let name = match line {
            Line::Queue => "queue",
            Line::YieldOnce => "yields_once",
            Line::Returning => "returning",
        };
        self.of_account(
            "reserve",
            json!({
                "ticket": ticket, "cost": cost,
                "line": name, "waited_us": 0,
                "time_limit_us": micros(deadline - Instant::now()), "wait": true,
            }),
        )
    }

    fn at_once(&self, cost: Cost, deadline: Instant) -> Result<Option<Reservation>, Exhausted> {
        match Arc::clone(&self.budget).try_reserve(cost, deadline) {
            TryReserve::Ready(answer) => answer.map_err(|reason| match reason {
                NotReserved::Exhausted(reason) => reason,
                NotReserved::StoreUnavailable(reason) => panic!("{reason}"),
            }),
            TryReserve::Pending(_) => panic!("it is kept here"),
        }
    }

    fn try_reserve(&mut self) -> Value {
        // The script serves waiting requests first, which matters when amounts are rounded.
        self.serve();
        let cost = self.cost();
        let time_limit = Duration::from_micros(self.random.u64(..20_000_000));
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let verdict = match self.at_once(cost, Instant::now() + time_limit) {
            Ok(Some(reservation)) => {
                self.reserved.push((ticket, reservation));
                Verdict::granted_cost(cost)
            }
            Ok(None) => Verdict::Unavailable,
            Err(reason) => reason.into(),
        };
        self.here.push((ticket, verdict));
        self.of_account(
            "reserve",
            json!({
                "ticket": ticket, "cost": cost,
                "line": "queue", "waited_us": 0,
                "time_limit_us": micros(time_limit), "wait": false,
            }),
        )
    }

    fn start(&mut self) -> Option<Value> {
        let (ticket, reservation) = any(&mut self.random, &mut self.reserved)?;
        let cost = reservation.cost;
        self.sent.push((ticket, reservation.start()));
        let left = json!({"ticket": ticket, "cost": cost});
        Some(self.of_account("start_call", left))
    }

    fn give_back(&mut self) -> Option<Value> {
        let (_, reservation) = any(&mut self.random, &mut self.reserved)?;
        let cost = reservation.cost;
        drop(reservation);
        let back = json!({"cost": cost});
        Some(self.of_account("give_back_budget", back))
    }

    fn leave(&mut self) -> Option<Value> {
        let Waiting { ticket, reserving, .. } = any(&mut self.random, &mut self.waiting)?;
        drop(reserving);
        Some(self.of_account("cancel_reserve", json!({"ticket": ticket})))
    }

    fn end_call(&mut self) -> Option<Value> {
        let (ticket, sent) = any(&mut self.random, &mut self.sent)?;
        let (cost, left_at) = (sent.cost, sent.started.at);
        let of_spend = cost[Resource::Spend] > 0 && self.random.bool();
        let resource = if of_spend { Resource::Spend } else { Resource::InputTokens };
        let counted = cost[resource];
        let sent_us_ago = micros(left_at.elapsed());
        match self.random.u32(..40) {
            0 => {
                self.budget.close_day(left_at);
                let until = end_of_used_up(self.calendar, left_at);
                let now = Instant::now();
                let for_us = micros(until - now) as i64 - micros(now - until) as i64;
                Some(self.of_account("close_day", json!({"for_us": for_us})))
            }
            1..8 => {
                sent.take_back();
                Some(self.of_account(
                    "settle",
                    json!({
                        "ticket": ticket, "counted": cost, "actual": {}, "sent_us_ago": sent_us_ago,
                    }),
                ))
            }
            8 => None,
            how => {
                let most = if how < 11 { 50 * counted } else { counted };
                let actual = self.random.u64(..=most);
                sent.settle_at(resource, actual);
                let actual = cost.with(resource, actual);
                let settled = json!({
                    "ticket": ticket, "counted": cost, "actual": actual, "sent_us_ago": sent_us_ago,
                });
                Some(self.of_account("settle", settled))
            }
        }
    }

    fn pause(&mut self) -> Value {
        let time = Duration::from_micros(self.random.u64(..20_000_000));
        let kind = QuotaKind::ALL.get(self.random.usize(..2 * QuotaKind::ALL.len())).copied();
        self.budget.pause_until(Instant::now() + time, kind);
        let mut paused = self.of_account("pause", json!({"for_us": micros(time)}));
        if let Some(kind) = kind {
            paused["kind"] = json!(kind);
        }
        paused
    }

    fn set(&mut self) -> Value {
        let quotas = quotas(&mut self.random);
        self.budget.set(quotas);
        self.of_account(
            "open_budget",
            json!({"planned": limits(quotas), "minute_us": MINUTE.as_micros() as u64}),
        )
    }

    fn some_time(&mut self) -> Duration {
        let now = Instant::now();
        let micros = Duration::from_micros;
        match self.random.u32(..100) {
            0..45 => self.check_again - now,
            45..55 => (self.check_again - now).saturating_sub(micros(1)),
            55..90 => micros(self.random.u64(..5_000_000)),
            90..99 => micros(self.random.u64(..90_000_000)),
            _ => micros(self.random.u64(..100_000_000_000)),
        }
    }

    /// Lets time pass, but not beyond a deadline.
    async fn pass(&mut self, time: Duration) {
        let now = Instant::now();
        let deadline = self.waiting.iter().map(|waiting| waiting.deadline).min();
        let until = deadline.map_or(now + time, |deadline| deadline.min(now + time));
        advance(until - now).await;
        let Some(late) = self.waiting.iter().position(|waiting| waiting.deadline == until) else {
            return;
        };
        let mut late = self.waiting.remove(late);
        self.send(&[self.of_account("pause", json!({"for_us": 0}))]);
        let was_first = self.there.iter().any(|(ticket, _)| *ticket == late.ticket);
        // Of all requests that can be answered at this moment, it is the last. But if it is the first
        // of the returning ones, the queue comes after it.
        self.budget.pause_until(Instant::now(), None);
        self.serve_line(true);
        if late.line != Line::Returning || !was_first {
            self.serve_line(false);
        }
        assert!(self.is_answered(&mut late), "its time is over");
        if !was_first {
            let ticket = late.ticket;
            let left =
                self.of_account("cancel_reserve", json!({"ticket": ticket, "give_up": true}));
            let verdict = self.send(&[left]).results.remove(&0).expect("it waits there too");
            self.there.push((ticket, serde_json::from_value(verdict).unwrap()));
        }
    }

    /// Whether a request that waits here is answered. Records the answer.
    fn is_answered(&mut self, waiting: &mut Waiting) -> bool {
        let Some(received) = unconstrained(&mut waiting.reserving).now_or_never() else {
            return false;
        };
        let verdict = match received {
            Ok(reservation) => {
                self.reserved.push((waiting.ticket, reservation));
                Verdict::granted_cost(waiting.cost)
            }
            Err(reason) => reason.into(),
        };
        self.here.push((waiting.ticket, verdict));
        true
    }

    /// Makes all requests here check again, as the script does in every call.
    fn serve(&mut self) {
        self.budget.pause_until(Instant::now(), None);
        self.serve_line(true);
        self.serve_line(false);
    }

    /// Serves the returning requests, or the queue.
    fn serve_line(&mut self, returning: bool) {
        let mut idle = 0;
        // A request that yields gets no answer.
        while idle < 2 {
            let before = self.waiting.len();
            for mut waiting in std::mem::take(&mut self.waiting) {
                let is_asked = (waiting.line == Line::Returning) == returning;
                if !is_asked || !self.is_answered(&mut waiting) {
                    self.waiting.push(waiting);
                }
            }
            idle = if self.waiting.len() == before { idle + 1 } else { 0 };
        }
    }

    fn compare(&mut self, operation: Option<Value>) {
        self.serve();
        let mut commands: Vec<_> = operation.into_iter().collect();
        commands.push(self.of_account("pause", json!({"for_us": 0})));
        self.send(&commands);
        let mut reply = self.send(&[self.of_account("budget_usage", json!({}))]);
        let usage = reply.results.remove(&0).expect("the account is open");
        let usage: Usage = serde_json::from_value(usage).unwrap();

        self.here.sort_by_key(|(ticket, _)| *ticket);
        self.there.sort_by_key(|(ticket, _)| *ticket);
        let is_same = |((a, here), (b, there)): (&(u64, Verdict), &(u64, Verdict))| {
            a == b && here.is_as(there)
        };
        let all_same = self.here.iter().zip(&self.there).all(is_same);
        assert!(
            self.here.len() == self.there.len() && all_same,
            "{:?} here and {:?} there, after {}",
            self.here,
            self.there,
            commands[0]
        );
        assert_eq!(
            Usage::from(self.budget.usage_now()),
            usage,
            "here and there, after {}",
            commands[0]
        );
        for (_, verdict) in self.here.drain(..) {
            let name = format!("{verdict:?}");
            let name = name.split_whitespace().next().unwrap();
            *self.seen.entry(name.to_owned()).or_default() += 1;
        }
        self.there.clear();
    }
}

/// A random element.
fn any<T>(random: &mut fastrand::Rng, of: &mut Vec<T>) -> Option<T> {
    (!of.is_empty()).then(|| of.remove(random.usize(..of.len())))
}

fn quotas(random: &mut fastrand::Rng) -> Quotas {
    let mut limit = |ranges: [std::ops::RangeInclusive<u64>; 3]| {
        let range = ranges.get(random.usize(..4))?.clone();
        // Sometimes none.
        Some(if random.u32(..50) == 0 { 0 } else { random.u64(range) })
    };
    Quotas::default()
        .with(RequestsPerMinute, limit([1..=10, 10..=100, 100..=2000]))
        .with(InputTokensPerMinute, limit([100..=1000, 1000..=100_000, 1_000_000..=4_000_000]))
        .with(RequestsPerDay, limit([10..=100, 1000..=20_000, 1000..=20_000]))
        .with(
            InputTokensPerDay,
            limit([10_000..=100_000, 1_000_000..=20_000_000, 20_000_000..=200_000_000]),
        )
        .with(ImagesPerMinute, limit([1..=10, 10..=100, 100..=1000]))
        .with(
            SpendPerTenMinutes,
            limit([1_000_000..=10_000_000, 100_000_000..=1_000_000_000, 1..=10_000_000_000]),
        )
}

#[test]
fn the_script_counts_as_the_ledger_does() {
    let server = start_server();
    let mut seen = BTreeMap::new();
    for seed in 0..60 {
        println!("seed {seed}");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(&server, seed);
            for _ in 0..STEPS {
                history.step().await;
            }
            for (verdict, times) in history.seen {
                *seen.entry(verdict).or_insert(0) += times;
            }
        });
    }
    println!("{seen:?}");
    for verdict in ["Granted", "NoQuota", "TooLarge", "NotBefore", "DayExhausted", "Unavailable"] {
        assert!(seen.get(verdict).is_some_and(|times| *times > 20), "{verdict}: {seen:?}");
    }
}
