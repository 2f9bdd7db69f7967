//! What is done to the processes while the clients work.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::calls::{Ask, Flag, Payer, Surface};
use crate::clients::{Client, Crowd};
use crate::record::{Claim, Record};
use crate::redis::Redis;
use crate::replicas::Replica;
use crate::settings::{Arguments, Kind, LEASE, LIMIT, RECOVERY, REPLICAS};

/// How often each thing is done in a run of a million calls.
const DECK: [(Kind, u64); 11] = [
    (Kind::Kill, 100),
    (Kind::Pause, 24),
    (Kind::ReplicaClock, 12),
    (Kind::RedisKept, 4),
    (Kind::RedisStale, 3),
    (Kind::RedisEmpty, 4),
    (Kind::Flush, 6),
    (Kind::RedisPause, 3),
    (Kind::RedisCut, 4),
    (Kind::RedisForward, 4),
    (Kind::RedisBack, 4),
];

const MILLION: u64 = 1_000_000;

/// The longest time until the next disturbance, even if no calls are made meanwhile.
const LONGEST_GAP: Duration = Duration::from_secs(15);

/// Clock steps in seconds: moments, hours and days.
const STEPS: [i64; 8] = [2, -2, 600, -600, 3600, -3600, 100_000, -100_000];

pub struct Storm {
    pub record: Arc<Record>,
    pub crowd: Arc<Crowd>,
    pub redis: Arc<Redis>,
    pub replicas: Vec<Arc<Replica>>,
    /// Held for reading while a replica is disturbed, and for writing while the test checks whether
    /// all replicas serve.
    gate: RwLock<()>,
    /// How far the clock of Redis is ahead, in seconds.
    redis_offset: AtomicI64,
}

/// Disturbances that follow each other, spread evenly over the calls.
struct Sequence {
    deck: Vec<Kind>,
    from: u64,
    to: u64,
}

impl Storm {
    pub fn new(
        (record, replicas): (Arc<Record>, Vec<Arc<Replica>>),
        crowd: Arc<Crowd>,
        redis: Arc<Redis>,
    ) -> Arc<Self> {
        let (gate, redis_offset) = (RwLock::default(), AtomicI64::default());
        Arc::new(Self { record, crowd, redis, replicas, gate, redis_offset })
    }

    /// Disturbs everything while the calls advance from one number to another.
    pub async fn run(self: &Arc<Self>, arguments: &Arguments, from: u64, to: u64, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let sequence = |kinds: &dyn Fn(Kind) -> bool, random: &mut Rng| {
            let mut deck = Vec::new();
            for (kind, count) in DECK {
                if arguments.has(kind) && kinds(kind) {
                    let count = (count * arguments.times * arguments.calls).div_ceil(MILLION);
                    deck.extend(std::iter::repeat_n(kind, count as usize));
                }
            }
            random.shuffle(&mut deck);
            Sequence { deck, from, to }
        };
        let of_replicas = |kind| matches!(kind, Kind::Kill | Kind::Pause | Kind::ReplicaClock);
        let of_redis = |kind| !of_replicas(kind);
        let sequences = [sequence(&of_replicas, &mut random), sequence(&of_redis, &mut random)];
        let mut tasks = JoinSet::new();
        for sequence in sequences {
            tasks.spawn(Arc::clone(self).run_sequence(sequence, random.fork()));
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("the storm does not panic");
        }
    }

    async fn run_sequence(self: Arc<Self>, sequence: Sequence, mut random: Rng) {
        let Sequence { deck, from, to } = sequence;
        let count = deck.len() as u64;
        // A disturbed replica recovers while the next disturbance begins.
        let mut recovering = JoinSet::new();
        for (index, kind) in deck.into_iter().enumerate() {
            let due = from + (to - from) * index as u64 / count;
            let since = Instant::now();
            while self.crowd.made() < due && since.elapsed() < LONGEST_GAP {
                sleep(Duration::from_millis(20)).await;
            }
            match kind {
                Kind::Kill | Kind::Pause | Kind::ReplicaClock => {
                    let storm = Arc::clone(&self);
                    let random = random.fork();
                    recovering.spawn(async move { storm.disturb_replica(kind, random).await });
                    while recovering.len() >= REPLICAS {
                        recovering.join_next().await;
                    }
                    sleep(Duration::from_millis(200)).await;
                }
                _ => self.disturb_redis(kind, &mut random).await,
            }
        }
        while recovering.join_next().await.is_some() {}
    }

    async fn disturb_replica(&self, kind: Kind, mut random: Rng) {
        let _gate = self.gate.read().await;
        // The first one is never killed: its memory is compared.
        let first = usize::from(kind == Kind::Kill);
        let replica = &self.replicas[random.usize(first..REPLICAS)];
        let surge = if random.u8(..4) == 0 { self.surge() } else { JoinSet::new() };
        sleep(Duration::from_millis(random.u64(..300))).await;
        self.record.note(format!("{} {}", kind.text(), replica.slot));
        match kind {
            Kind::Kill => replica.kill_and_start().await,
            Kind::Pause => {
                let longest = LEASE.as_millis() as u64 * 3 / 2;
                replica.pause(Duration::from_millis(random.u64(50..longest))).await;
            }
            _ => replica.clock.set(STEPS[random.usize(..STEPS.len())]),
        }
        let took = self.until_serving(replica.slot, kind).await;
        self.record.disturbed(kind.text(), took);
        surge.join_all().await;
    }

    async fn disturb_redis(&self, kind: Kind, random: &mut Rng) {
        let surge = self.surge();
        sleep(Duration::from_millis(random.u64(..600))).await;
        self.record.note(kind.text().to_owned());
        self.record.redis_is_disturbed();
        let gone = Duration::from_millis(random.u64(..1500));
        match kind {
            Kind::RedisKept => {
                self.redis.stop(Signal::TERM).await;
                sleep(gone).await;
                self.redis.start().await;
            }
            Kind::RedisStale | Kind::RedisEmpty => {
                self.redis.stop(Signal::KILL).await;
                if kind == Kind::RedisEmpty {
                    self.redis.wipe();
                }
                sleep(gone).await;
                self.redis.start().await;
            }
            Kind::Flush => {
                let command = if random.bool() { "FLUSHALL" } else { "FLUSHALL ASYNC" };
                self.redis.execute(command).await;
            }
            Kind::RedisPause => {
                let longest = LEASE.as_millis() as u64 * 3 / 2;
                self.redis.pause(Duration::from_millis(random.u64(200..longest))).await;
            }
            Kind::RedisCut => self.redis.execute("CLIENT KILL TYPE normal").await,
            Kind::RedisForward => self.step_redis(STEPS[random.usize(..4) * 2]),
            _ => self.step_redis(STEPS[random.usize(..4) * 2 + 1]),
        }
        // Before the result is known, a replica may be disturbed next.
        sleep(Duration::from_millis(random.u64(..1500))).await;
        let _gate = self.gate.write().await;
        self.record.redis_is_disturbed();
        let mut longest = Duration::ZERO;
        for replica in &self.replicas {
            longest = longest.max(self.until_serving(replica.slot, kind).await);
        }
        self.record.disturbed(kind.text(), longest);
        surge.join_all().await;
    }

    /// Sends twice as many long calls as there are permits, so that all permits are held and many
    /// calls wait at every replica when something happens.
    fn surge(&self) -> JoinSet<()> {
        let client = Arc::new(Client::new(Arc::clone(&self.crowd), Rng::new()));
        let mut calls = JoinSet::new();
        for number in 0..LIMIT * 2 {
            let (client, id) = (Arc::clone(&client), self.crowd.ids(1).start);
            let (payer, slot) = (Payer::Steady((number % 8) as u8), number % REPLICAS);
            let ask = Ask::one(&mut Rng::new(), id, Surface::Chat, payer, Flag::Hold);
            calls.spawn(async move { _ = client.ask(slot, &ask).await });
        }
        calls
    }

    fn step_redis(&self, seconds: i64) {
        let before = self.redis_offset.fetch_add(seconds, Ordering::Relaxed);
        self.redis.clock.set(before + seconds);
    }

    /// Waits until a replica answers a call well, within the recovery time. If it does not,
    /// everything restarts with an empty Redis, so that the rest of the run is meaningful.
    async fn until_serving(&self, slot: usize, after: Kind) -> Duration {
        let mut client = Client::new(Arc::clone(&self.crowd), Rng::new());
        let since = Instant::now();
        while since.elapsed() < RECOVERY {
            if client.probe(slot).await {
                return since.elapsed();
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.record.violated(Claim::Recovery, || {
            let last = self.record.last_disturbances(RECOVERY * 2);
            format!(
                "replica {slot} after \"{}\": not in {RECOVERY:?}; before: {last}",
                after.text()
            )
        });
        self.restart_redis().await;
        RECOVERY
    }

    async fn restart_redis(&self) {
        self.record.note("begun again".to_owned());
        self.record.redis_is_disturbed();
        self.calm();
        self.redis.stop(Signal::KILL).await;
        self.redis.wipe();
        self.redis.start().await;
        sleep(LEASE * 2).await;
    }

    /// Sets all clocks right.
    pub fn calm(&self) {
        self.redis_offset.store(0, Ordering::Relaxed);
        self.redis.clock.set(0);
        self.replicas.iter().for_each(|replica| replica.clock.set(0));
    }

    /// Waits until all replicas serve after the last disturbance.
    pub async fn until_all_serve(&self) {
        for replica in &self.replicas {
            self.until_serving(replica.slot, Kind::Kill).await;
        }
    }
}
