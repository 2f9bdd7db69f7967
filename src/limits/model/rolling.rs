//! The quotas per minute, and what was sent within the last minute. The budget of a payer's spend
//! counts in the same way, and its minute has ten minutes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::minute::Minute;
use super::quota::{QuotaKind, Quotas, Resource, Window};
use super::{Cost, Exhausted};

/// What was *sent* within the last minute. A call counts for one window from the moment it is sent.
/// Reservations (*unsent*) do not age; the ledger keeps them and what waits.
#[derive(Debug)]
pub(super) struct Rolling {
    minute: Minute,
    /// What was sent within the last window, oldest first: at most one entry for each cell.
    departures: VecDeque<Departures>,
    /// The sum of `departures`.
    sent: Cost,
    /// The limited kinds per minute, in the order of [`QuotaKind::ALL`]. Unlimited kinds take no time.
    allowances: Vec<Allowance>,
}

/// One limited quota per minute.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    kind: QuotaKind,
    /// The resource that the kind counts.
    resource: Resource,
    limit: u64,
    /// The time in which one unit becomes available.
    time_for_one: Duration,
    /// When the backlog is drained and the bucket is full: the theoretical arrival time of the generic
    /// cell rate algorithm.
    drained_at: Instant,
}

/// When a call can be reserved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opens {
    /// The moment.
    pub at: Instant,
    /// The quota that has no room before; `None` if it is not known which, or has room now.
    pub quota: Option<QuotaKind>,
}

/// What was sent within one cell of the grid.
#[derive(Debug)]
struct Departures {
    cell: u128,
    /// When the last of it was sent. The others count until this is a window ago: a little too long,
    /// never too short.
    last: Instant,
    cost: Cost,
}

/// The kinds with a sliding window. No budget has kinds with windows of different lengths.
fn kinds() -> impl Iterator<Item = QuotaKind> {
    QuotaKind::ALL.into_iter().filter(|kind| kind.window() != Window::Day)
}

impl Rolling {
    /// A minute without any call.
    pub fn new(quotas: Quotas, minute: Minute) -> Self {
        let allowance = |kind| Some(Allowance::new(kind, quotas[kind]?, &minute));
        let allowances = kinds().filter_map(allowance).collect();
        Self { minute, departures: VecDeque::new(), sent: Cost::default(), allowances }
    }

    /// What was sent within the last window.
    pub fn sent(&self) -> Cost {
        self.sent
    }

    /// Changes the limits. What was sent counts against the new ones, but the backlog is never more
    /// than a minute's: earlier calls count nowhere.
    pub fn set_limits(&mut self, quotas: Quotas, now: Instant) {
        let allowance = |kind| {
            let limit = quotas[kind]?;
            let mut known = self.allowances.iter().filter(|of| of.kind == kind);
            if let Some(unchanged) = known.find(|of| of.limit == limit) {
                return Some(*unchanged);
            }
            let fresh = Allowance::new(kind, limit, &self.minute);
            let drained_at = fresh.drained_after(self.departures.iter(), &self.minute);
            Some(Allowance { drained_at: drained_at.min(now + self.minute.window), ..fresh })
        };
        self.allowances = kinds().filter_map(allowance).collect();
    }

    /// The first moment at which `cost` can be reserved with `ahead` before it in the queue: now or
    /// earlier if at once. No call in the queue is sent before `start`. Of several quotas that have no
    /// room until then, the first is named.
    ///
    /// It is the earliest possible moment: it assumes that all reservations are sent now, and all calls
    /// ahead as soon as possible. Only what is given back can make it earlier.
    pub fn opens_at(
        &self,
        unsent: Cost,
        ahead: Cost,
        cost: Cost,
        start: Opens,
        now: Instant,
    ) -> Opens {
        let opens = |allowance: &Allowance| {
            let resource = allowance.resource;
            let (unsent, ahead, cost) = (unsent[resource], ahead[resource], cost[resource]);
            let mut drained_at = allowance.drained_at;
            if unsent > 0 {
                drained_at = drained_at.max(now) + allowance.time_for(unsent, &self.minute);
            }
            if ahead > 0 {
                drained_at = drained_at.max(start.at) + allowance.time_for(ahead, &self.minute);
            }
            let (tolerance, jitter) = allowance.tolerance_and_jitter(cost, &self.minute);
            let window = self.window_opens_at(allowance, unsent + ahead + cost, now);
            let at = window.max(drained_at + jitter - tolerance);
            Opens { at, quota: Some(allowance.kind) }
        };
        let asked = self.allowances.iter().filter(|allowance| cost[allowance.resource] > 0);
        asked.map(opens).fold(start, |last, next| if next.at > last.at { next } else { last })
    }

    /// Whether reservations leave no room for `cost`, so that only sending or returning them helps,
    /// and time does not.
    pub fn is_held_up(&self, unsent: Cost, cost: Cost) -> bool {
        self.allowances.iter().any(|allowance| {
            let (unsent, cost) = (unsent[allowance.resource], cost[allowance.resource]);
            let is_full = || {
                let (tolerance, jitter) = allowance.tolerance_and_jitter(cost, &self.minute);
                unsent + cost > allowance.limit
                    || allowance.time_for(unsent, &self.minute) + jitter > tolerance
            };
            unsent > 0 && cost > 0 && is_full()
        })
    }

    /// Counts a cost as sent now.
    pub fn start(&mut self, cost: Cost, now: Instant) {
        self.sent += cost;
        for allowance in &mut self.allowances {
            let amount = cost[allowance.resource];
            if amount > 0 {
                // What was reserved under a higher limit must not block the quota for long.
                let drained_at =
                    allowance.drained_at.max(now) + allowance.time_for(amount, &self.minute);
                allowance.drained_at = drained_at.min(now + 2 * self.minute.window);
            }
        }
        let cell = self.minute.cell(now);
        match self.departures.back_mut() {
            Some(departures) if departures.cell == cell => {
                departures.last = now;
                departures.cost += cost;
            }
            _ => self.departures.push_back(Departures { cell, last: now, cost }),
        }
    }

    /// Counts what another account sent recently as sent now. As after a change of the limit, the
    /// backlog is never more than a minute's.
    pub fn count(&mut self, cost: Cost, now: Instant) {
        let before = self.allowances.clone();
        self.start(cost, now);
        for (allowance, before) in self.allowances.iter_mut().zip(before) {
            let latest = before.drained_at.max(now + self.minute.window);
            allowance.drained_at = allowance.drained_at.min(latest);
        }
    }

    /// Removes and returns what was sent within the last window.
    pub fn take_sent(&mut self) -> Cost {
        self.departures.clear();
        std::mem::take(&mut self.sent)
    }

    /// Replaces what was `counted` for a call sent at `sent_at` by its `actual` cost, unless it no
    /// longer counts.
    pub fn correct(&mut self, sent_at: Instant, counted: Cost, actual: Cost, now: Instant) {
        let cell = self.minute.cell(sent_at);
        let Ok(index) = self.departures.binary_search_by_key(&cell, |of| of.cell) else { return };
        let departures = &mut self.departures[index];
        // It may have been taken out, and another call have been sent in the same cell since.
        let before = departures.cost;
        departures.cost = before.saturating_sub(counted) + actual;
        self.sent = (self.sent + departures.cost).saturating_sub(before);
        for allowance in &mut self.allowances {
            let (counted, actual) = (counted[allowance.resource], actual[allowance.resource]);
            let drained_at = allowance.drained_at;
            if actual > counted {
                let late = drained_at + allowance.time_for(actual - counted, &self.minute);
                // Estimates that are far too low must not block the quota for longer than a minute.
                allowance.drained_at = late.min(now + self.minute.window).max(drained_at);
            } else if actual < counted {
                // A bucket that was full in between did not keep what is given back now. So the
                // backlog is at least that of the later calls alone.
                let less = drained_at - allowance.time_for(counted - actual, &self.minute);
                let least = allowance.drained_after(self.departures.range(index..), &self.minute);
                allowance.drained_at = less.max(least).min(drained_at);
            }
        }
    }

    /// Drops what was sent more than a window ago.
    pub fn expire(&mut self, now: Instant) {
        while let Some(departures) = self.departures.front()
            && departures.last + self.minute.window <= now
        {
            self.sent -= departures.cost;
            self.departures.pop_front();
        }
    }

    /// When the window has room: a lower bound if calls that are not yet sent have to make the room.
    fn window_opens_at(&self, allowance: &Allowance, unsent: u64, now: Instant) -> Instant {
        let resource = allowance.resource;
        let sent = self.sent[resource];
        let excess = (sent + unsent).saturating_sub(allowance.limit);
        if excess == 0 {
            return now;
        }
        if excess > sent {
            return now + self.minute.window;
        }
        let mut freed = 0;
        let last = self.departures.iter().find(|departures| {
            freed += departures.cost[resource];
            freed >= excess
        });
        last.map_or(now, |departures| departures.last) + self.minute.window
    }
}

impl Opens {
    /// Why a call cannot be reserved before its deadline.
    pub fn too_late(self, now: Instant) -> Exhausted {
        Exhausted::NotBefore { kind: self.quota, retry_after: self.at - now }
    }
}

impl Allowance {
    /// A quota of which nothing is spent.
    fn new(kind: QuotaKind, limit: u64, minute: &Minute) -> Self {
        Self {
            kind,
            resource: kind.resource(),
            limit,
            time_for_one: minute.time_for(1, limit),
            drained_at: minute.start - minute.jitter,
        }
    }

    /// When the backlog would be drained if nothing had been sent before these entries.
    fn drained_after<'a>(
        &self,
        departures: impl Iterator<Item = &'a Departures>,
        minute: &Minute,
    ) -> Instant {
        let amounts =
            departures.map(|departures| (departures.last, departures.cost[self.resource]));
        let fresh = minute.start - minute.jitter;
        amounts.filter(|(_, amount)| *amount > 0).fold(fresh, |drained_at, (last, amount)| {
            drained_at.max(last) + self.time_for(amount, minute)
        })
    }

    /// The time in which an amount becomes available. The time for one unit, the requests of most calls,
    /// is stored.
    fn time_for(&self, amount: u64, minute: &Minute) -> Duration {
        if amount == 1 { self.time_for_one } else { minute.time_for(amount, self.limit) }
    }

    /// How long the backlog may take to drain when `cost` is sent, and which part of that is kept free
    /// for jitter: see [`Minute`].
    fn tolerance_and_jitter(&self, cost: u64, minute: &Minute) -> (Duration, Duration) {
        let burst = (minute.burst * self.kind.burst()).max(self.time_for_one);
        let tolerance = burst.saturating_sub(self.time_for(cost, minute));
        (tolerance, minute.jitter.max(tolerance / 2))
    }
}
