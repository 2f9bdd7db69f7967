//! What must hold after the disturbances, when all clients have hung up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::calls::{Ask, Flag, Payer, Surface};
use crate::clients::{Client, Crowd};
use crate::record::{Claim, Record};
use crate::settings::{LEASE, LIMIT, SEMAPHORE, SEMAPHORE_LIMIT};
use crate::upstream::Upstream;

/// The memory by which a replica may grow after the warm-up: pages that its allocator keeps, and
/// accounts of keys seen since.
const MORE_MEMORY: u64 = 24 << 20;
const MORE_MEMORY_PERCENT: u64 = 25;

/// How long it may take until all permits are free, once no client waits for anything.
const QUIET: Duration = Duration::from_secs(30);

/// The longest time in seconds for which a quota other than a day's may pause an account: whatever
/// Gemini reports for a minute, the service waits for two at most.
const LONGEST_PAUSE: f64 = 121.0;

pub struct Aftermath {
    pub record: Arc<Record>,
    pub crowd: Arc<Crowd>,
    pub upstream: Upstream,
}

impl Aftermath {
    /// Waits until nothing is in flight anywhere and every permit is free.
    pub async fn until_quiet(&self) {
        let since = Instant::now();
        loop {
            let busy = self.busy().await;
            match busy {
                None => return,
                Some(busy) if since.elapsed() > QUIET + LEASE => {
                    return self.record.violated(Claim::Permits, || format!("never freed: {busy}"));
                }
                Some(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// What is still held, if anything.
    async fn busy(&self) -> Option<String> {
        let client = self.client();
        let in_flight = self.upstream.figures().await.in_flight;
        if in_flight > 0 {
            return Some(format!("{in_flight} in flight at the upstream"));
        }
        for slot in 0..self.crowd.replicas.len() {
            let health = client.get_page(slot, "/").await;
            let health: Option<Value> =
                health.and_then(|reply| serde_json::from_slice(&reply.body).ok());
            let status = &health.unwrap_or_default()["concurrency_status"];
            let is_free = status["in_flight"] == 0
                && status["waiting"] == 0
                && status["current_available_slots"] == LIMIT;
            if !is_free {
                return Some(format!("replica {slot} says {status}"));
            }
        }
        None
    }

    /// Acquires every permit: exactly as many as before are available.
    pub async fn use_all(&self) {
        self.fill(Flag::Hold, LIMIT).await;
        let most = self.upstream.figures().await.most;
        if most < LIMIT {
            self.record.violated(Claim::Permits, || format!("only {most} of {LIMIT} were in use"));
        }
        if !self.has_semaphore().await {
            return;
        }
        self.fill(Flag::TightHold, SEMAPHORE_LIMIT).await;
        let most = self.upstream.figures().await.most_tight;
        if most < SEMAPHORE_LIMIT {
            self.record.violated(Claim::Permits, || {
                format!("only {most} of the semaphore's {SEMAPHORE_LIMIT} were in use")
            });
        }
    }

    /// Sends three times as many calls as there are permits, through all replicas.
    async fn fill(&self, flag: Flag, permits: usize) {
        // Discards what was counted before.
        self.upstream.figures().await;
        let mut calls = JoinSet::new();
        for number in 0..permits * 3 {
            let (mut random, client) = (Rng::new(), self.client());
            let id = self.crowd.ids(1).start;
            let payer = Payer::Steady((number % 8) as u8);
            let ask = Ask::one(&mut random, id, Surface::Chat, payer, flag);
            let slot = number % self.crowd.replicas.len();
            calls.spawn(async move { client.ask(slot, &ask).await });
        }
        let failed = calls.join_all().await.into_iter().filter(|answered| !answered).count();
        if failed > 0 {
            self.record.violated(Claim::Recovery, || format!("{failed} calls fail in the calm"));
        }
    }

    /// Whether all replicas know the named semaphore, with no permit in use.
    async fn has_semaphore(&self) -> bool {
        let client = self.client();
        for slot in 0..self.crowd.replicas.len() {
            let list = client.get_page(slot, "/_admin/semaphores").await;
            let list: Value =
                list.and_then(|reply| serde_json::from_slice(&reply.body).ok()).unwrap_or_default();
            let all = list["semaphores"].as_array().cloned().unwrap_or_default();
            let is_free = all.iter().any(|semaphore| {
                semaphore["semaphore_id"] == SEMAPHORE && semaphore["in_use"] == 0
            });
            if !is_free {
                self.record.violated(Claim::Permits, || format!("replica {slot} says {list}"));
                return false;
            }
        }
        true
    }

    /// Checks that no account is paused for longer than its quota's window allows. Also called
    /// during the storm.
    pub async fn check_pauses(&self) {
        let client = self.client();
        for slot in 0..self.crowd.replicas.len() {
            let Some(reply) = client.get_page(slot, "/_admin/limits").await else { continue };
            let limits: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            for account in limits["limits"].as_array().into_iter().flatten() {
                if account["paused_for_seconds"].as_f64().is_some_and(|wait| wait > LONGEST_PAUSE) {
                    self.record.violated(Claim::Pauses, || format!("replica {slot}: {account}"));
                }
            }
        }
    }

    /// Checks that pages which need no calls show no key.
    pub async fn check_pages(&self) {
        let client = self.client();
        for slot in 0..self.crowd.replicas.len() {
            for page in ["/", "/metrics", "/_admin/semaphores", "/openapi.json"] {
                client.get_page(slot, page).await;
            }
        }
    }

    /// The resident memory of each replica, in bytes.
    pub async fn memory(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for replica in &self.crowd.replicas {
            all.push(replica.memory().await.unwrap_or_default());
        }
        all
    }

    /// Compares the memory with that after the warm-up.
    pub fn check_memory(&self, before: &[u64], after: &[u64]) {
        for (slot, (before, after)) in before.iter().zip(after).enumerate() {
            let bound = before + (before * MORE_MEMORY_PERCENT / 100).max(MORE_MEMORY);
            if *after > bound {
                let mib = |bytes: &u64| bytes >> 20;
                self.record.violated(Claim::Memory, || {
                    let (before, after, bound) = (mib(before), mib(after), mib(&bound));
                    format!("replica {slot}: {before} MiB, then {after} MiB, more than {bound} MiB")
                });
            }
        }
    }

    fn client(&self) -> Client {
        Client::new(Arc::clone(&self.crowd), Rng::new())
    }
}
