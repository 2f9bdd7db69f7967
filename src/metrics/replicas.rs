//! The replicas that share the limits, as each of them reports itself through Redis.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::failures::Failure;
use super::history::{AccountState, MAX_ACCOUNTS};
use super::totals::Counts;

/// How many failures of each replica the others show.
const MAX_REPORTED_FAILURES: usize = 25;

/// The longest report, in bytes. Redis keeps no longer one.
const MAX_REPORT: usize = 65_536;

/// The longest name of a replica, a host, a payer or a model that is read, in bytes.
const MAX_NAME: usize = 256;

/// A replica that has not reported for so many seconds has a gap in its figures.
const GAP_SECONDS: i64 = 35;

/// Whose figures are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This process is the only one: the limits are in its memory.
    Alone,
    /// Those of all replicas.
    Replicas {
        /// How many report, this one included.
        count: usize,
    },
    /// Those of this process only, although there may be other replicas: Redis, which has their reports,
    /// has been unavailable since then.
    Unreachable {
        /// Since when.
        since: Timestamp,
    },
}

/// A replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    /// Identifies the process. It is chosen at its start.
    pub id: Arc<str>,
    /// The name of its machine, pod or container.
    pub host: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// When it was started.
    pub since: Timestamp,
    /// When this process last had a new report of it; now for itself.
    pub last_seen: Timestamp,
    /// The calls that it has in flight.
    pub in_flight: usize,
    /// The requests that wait there.
    pub waiting: usize,
    /// Whether it is this process.
    pub is_this: bool,
}

/// What a replica reports about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    pub id: Arc<str>,
    pub host: Arc<str>,
    pub version: Arc<str>,
    pub since: Timestamp,
}

/// A report as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    identity: Identity,
    /// The number of the report.
    number: u64,
    in_flight: usize,
    waiting: usize,
    /// Apart, so that a replica of another version is shown even if its figures cannot be read.
    figures: Option<Box<RawValue>>,
}

/// What a replica has counted, and the state of its accounts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Calls in flight in the last interval, on average.
    pub in_flight: f64,
    /// Requests waiting in the last interval, on average.
    pub waiting: f64,
    /// Counted since the replica was started.
    pub counts: Counts,
    pub accounts: Vec<AccountState>,
    /// The latest first.
    pub failures: Vec<Failure>,
}

/// What is reported of this process.
#[derive(Debug)]
pub(super) struct OwnReport<'a> {
    pub identity: &'a Identity,
    pub number: u64,
    pub in_flight: usize,
    pub waiting: usize,
    pub figures: Figures,
}

impl OwnReport<'_> {
    /// The report as it is sent: without accounts or failures if it were too long with them.
    pub fn text(mut self) -> String {
        self.figures.failures.truncate(MAX_REPORTED_FAILURES);
        loop {
            let figures = serde_json::value::to_raw_value(&self.figures).ok();
            let sent = Sent {
                identity: self.identity.clone(),
                number: self.number,
                in_flight: self.in_flight,
                waiting: self.waiting,
                figures,
            };
            let text = serde_json::to_string(&sent).unwrap_or_default();
            if text.len() <= MAX_REPORT {
                return text;
            }
            let accounts = self.figures.accounts.len() / 2;
            if accounts == 0 {
                self.figures.failures.clear();
            }
            self.figures.accounts.truncate(accounts);
        }
    }
}

/// The other replicas.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<Arc<str>, Peer>,
    /// Whether it is known which replicas there were at the last exchange. What a replica had counted
    /// before is in the past that is kept in Redis; what a new one has counted is not.
    is_current: bool,
}

/// Another replica, by its last report.
#[derive(Debug)]
struct Peer {
    identity: Identity,
    number: u64,
    in_flight: usize,
    waiting: usize,
    last_seen: Timestamp,
    figures: Figures,
}

/// What the other replicas have done since the last reports.
#[derive(Debug, Default)]
pub(super) struct PeersInterval {
    pub in_flight: f64,
    pub waiting: f64,
    pub counts: Counts,
    /// Counted over more than the interval: its cost only counts in the day.
    pub late: Counts,
}

impl Peers {
    /// Takes over the reports of all replicas, and returns what the others have done since the last ones.
    /// Replicas without a report are gone.
    pub fn update(&mut self, texts: &[String], this: &Identity, now: Timestamp) -> PeersInterval {
        let mut before = std::mem::take(&mut self.known);
        let mut interval = PeersInterval::default();
        for text in texts {
            let Some(sent) = read::<Sent>(text) else { continue };
            let mut peer = Peer::read(sent, now);
            // A replica that connects again reports as two members for a moment.
            let is_older = |known: &Peer| known.number >= peer.number;
            let again = self.known.get(&peer.identity.id);
            if peer.identity.id == this.id || again.is_some_and(is_older) {
                continue;
            }
            let known = before.remove(&peer.identity.id);
            if let Some(known) = known.as_ref().filter(|known| known.number >= peer.number) {
                peer.last_seen = known.last_seen;
            }
            let is_new = self.is_current && known.is_none();
            peer.add_to(&mut interval, known.as_ref(), is_new, now);
            self.known.insert(Arc::clone(&peer.identity.id), peer);
        }
        self.is_current = true;
        interval
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// Forgets them, because it is unknown whether they still exist.
    pub fn clear(&mut self) {
        self.known.clear();
        self.is_current = false;
    }

    /// The calls in flight and the requests that wait there.
    pub fn occupancy(&self) -> (usize, usize) {
        self.known.values().fold((0, 0), |(in_flight, waiting), peer| {
            (in_flight.saturating_add(peer.in_flight), waiting.saturating_add(peer.waiting))
        })
    }

    pub fn accounts(&self) -> impl Iterator<Item = &AccountState> {
        self.known.values().flat_map(|peer| &peer.figures.accounts)
    }

    /// Their failures, with the replica's id.
    pub fn failures(&self) -> impl Iterator<Item = (&Arc<str>, &Failure)> {
        self.known.values().flat_map(|peer| {
            peer.figures.failures.iter().map(|failure| (&peer.identity.id, failure))
        })
    }

    /// The replicas, in the order in which they were started.
    pub fn replicas(&self) -> Vec<Replica> {
        let mut replicas: Vec<_> = self.known.values().map(Peer::replica).collect();
        replicas.sort_by_key(|replica| replica.since);
        replicas
    }
}

impl Peer {
    /// Takes a report over. Numbers and texts are bounded: another program may have written it.
    fn read(sent: Sent, now: Timestamp) -> Self {
        let Sent { identity, number, in_flight, waiting, figures } = sent;
        let figures = figures.and_then(|figures| read::<Figures>(figures.get()));
        let mut figures = figures.unwrap_or_default();
        let average = |number: f64| number.clamp(0.0, 1e9);
        figures.in_flight = average(figures.in_flight);
        figures.waiting = average(figures.waiting);
        figures.accounts.truncate(MAX_ACCOUNTS);
        figures.accounts.retain(|account| is_name(&account.payer) && is_name(&account.model));
        figures.failures.truncate(MAX_REPORTED_FAILURES);
        for failure in &mut figures.failures {
            failure.at = failure.at.min(now);
        }
        let Identity { id, host, version, since } = identity;
        let identity = Identity {
            id: bounded(id),
            host: bounded(host),
            version: bounded(version),
            since: since.min(now),
        };
        Self { identity, number, in_flight, waiting, last_seen: now, figures }
    }

    /// Adds what the replica has done since the report that was `known` before, or since its start if it
    /// is new.
    fn add_to(
        &self,
        interval: &mut PeersInterval,
        known: Option<&Self>,
        is_new: bool,
        now: Timestamp,
    ) {
        interval.in_flight += self.figures.in_flight;
        interval.waiting += self.figures.waiting;
        let age = |since: Timestamp| now.duration_since(since).as_secs();
        match known {
            Some(known) => {
                let counts = self.figures.counts.since(&known.figures.counts);
                let is_late = age(known.last_seen) > GAP_SECONDS;
                let sum = if is_late { &mut interval.late } else { &mut interval.counts };
                sum.add(&counts);
            }
            None if is_new && age(self.identity.since) <= GAP_SECONDS => {
                interval.counts.add(&self.figures.counts);
            }
            None => {}
        }
    }

    fn replica(&self) -> Replica {
        let Identity { id, host, version, since } = self.identity.clone();
        let Self { last_seen, in_flight, waiting, .. } = *self;
        Replica { id, host, version, since, last_seen, in_flight, waiting, is_this: false }
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    let read = serde_json::from_str(text);
    read.inspect_err(|error| tracing::debug!(%error, "a replica's report is unreadable")).ok()
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
}

fn bounded(text: Arc<str>) -> Arc<str> {
    if is_name(&text) { text } else { text[..text.floor_char_boundary(MAX_NAME)].into() }
}
