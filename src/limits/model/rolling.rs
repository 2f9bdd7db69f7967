//! What is spent within the last minute, and the quotas per minute.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Cost;
use super::minute::Minute;
use super::quota::{PerKind, QuotaKind, Quotas, Window};

/// What was *sent* within the last minute: that counts for one window from the moment it left. What
/// is *unsent* (reserved) does not age, and is the ledger's, as is what waits.
#[derive(Debug)]
pub(super) struct Rolling {
    minute: Minute,
    /// What left within the last window, oldest first: at most one entry a cell of the grid.
    departures: VecDeque<Departures>,
    /// The sum of `departures`.
    sent: Cost,
    /// Of the kinds that are per minute.
    allowances: PerKind<Option<Allowance>>,
}

/// One quota per minute.
#[derive(Debug)]
struct Allowance {
    limit: Option<u64>,
    /// When the backlog of what has left is drained and the bucket full: in the generic cell
    /// rate algorithm, the theoretical arrival time.
    drained_at: Instant,
}

/// What left within one cell of the grid.
#[derive(Debug)]
struct Departures {
    cell: u128,
    /// When the last of it left. The others count until it is a window old: a little too long,
    /// never too short.
    last: Instant,
    cost: Cost,
}

/// The kinds that are per minute.
fn kinds() -> impl Iterator<Item = QuotaKind> {
    QuotaKind::ALL.into_iter().filter(|kind| kind.window() == Window::Minute)
}

impl Rolling {
    /// A minute in which nothing is spent.
    pub fn new(quotas: Quotas, minute: Minute) -> Self {
        let drained_at = minute.start - minute.jitter;
        let mut allowances = PerKind::default();
        for kind in kinds() {
            allowances[kind] = Some(Allowance { limit: quotas[kind], drained_at });
        }
        Self { minute, departures: VecDeque::new(), sent: Cost::default(), allowances }
    }

    /// What left within the last window.
    pub fn sent(&self) -> Cost {
        self.sent
    }

    /// Changes the limits. What has left counts against the new ones, but the backlog is never
    /// more than a minute's: nothing that left earlier counts anywhere.
    pub fn set_limits(&mut self, quotas: Quotas, now: Instant) {
        for kind in kinds() {
            let limit = quotas[kind];
            if self.limit(kind) == limit {
                continue;
            }
            let drained_at = self.drained_after(0, kind, limit).min(now + self.minute.window);
            self.allowances[kind] = Some(Allowance { limit, drained_at });
        }
    }

    /// The first moment at which `cost` can be reserved with `ahead` before it in the queue: now or
    /// earlier if at once. Nothing in the queue goes before `start`.
    ///
    /// It is the earliest moment possible, as if all that is unsent left now and all that is
    /// ahead as soon as it may: only what is given back can bring it nearer.
    pub fn opens_at(
        &self,
        unsent: Cost,
        ahead: Cost,
        cost: Cost,
        start: Instant,
        now: Instant,
    ) -> Instant {
        let opens_at = |(kind, limit, mut drained_at): (QuotaKind, u64, Instant)| {
            let resource = kind.resource();
            let (unsent, ahead, cost) = (unsent[resource], ahead[resource], cost[resource]);
            if unsent > 0 {
                drained_at = drained_at.max(now) + self.time_for(unsent, limit);
            }
            if ahead > 0 {
                drained_at = drained_at.max(start) + self.time_for(ahead, limit);
            }
            let (tolerance, jitter) = self.tolerance_and_jitter(cost, limit);
            let window = self.window_opens_at(kind, limit, unsent + ahead + cost, now);
            window.max(drained_at + jitter - tolerance)
        };
        let asked = self.limited().filter(|(kind, ..)| cost[kind.resource()] > 0);
        asked.map(opens_at).fold(start, Instant::max)
    }

    /// Whether what is unsent leaves no room for `cost`, so that only its started or return
    /// can help, and no passing of time.
    pub fn is_held_up(&self, unsent: Cost, cost: Cost) -> bool {
        self.limited().any(|(kind, limit, _)| {
            let (unsent, cost) = (unsent[kind.resource()], cost[kind.resource()]);
            let (tolerance, jitter) = self.tolerance_and_jitter(cost, limit);
            let is_full =
                || unsent + cost > limit || self.time_for(unsent, limit) + jitter > tolerance;
            unsent > 0 && cost > 0 && is_full()
        })
    }

    /// So much leaves now.
    pub fn start(&mut self, cost: Cost, now: Instant) {
        self.sent += cost;
        for kind in kinds() {
            let amount = cost[kind.resource()];
            if let Some((limit, drained_at)) = self.allowance(kind).filter(|_| amount > 0) {
                // What was reserved under a higher limit must not close the quota for long.
                let drained_at = drained_at.max(now) + self.time_for(amount, limit);
                self.drain(kind, drained_at.min(now + 2 * self.minute.window));
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

    /// Counts what was sent by others a short while ago as if it left now. As after a change of the
    /// limit, the backlog is never more than a minute's.
    pub fn count(&mut self, cost: Cost, now: Instant) {
        let before = PerKind::from_fn(|kind| self.allowance(kind));
        self.start(cost, now);
        for kind in kinds() {
            if let (Some((_, before)), Some((_, after))) = (before[kind], self.allowance(kind)) {
                self.drain(kind, after.min(before.max(now + self.minute.window)));
            }
        }
    }

    /// Takes out what left within the last window.
    pub fn take_sent(&mut self) -> Cost {
        self.departures.clear();
        std::mem::take(&mut self.sent)
    }

    /// What left at `left_at` and was counted as `counted` turns out to be `actual`. Without
    /// effect when it no longer counts.
    pub fn correct(&mut self, left_at: Instant, counted: Cost, actual: Cost, now: Instant) {
        let cell = self.minute.cell(left_at);
        let Ok(index) = self.departures.binary_search_by_key(&cell, |of| of.cell) else { return };
        let departures = &mut self.departures[index];
        // It may have been taken out, and something else have left in the same cell since.
        let before = departures.cost;
        departures.cost = before.saturating_sub(counted) + actual;
        self.sent = (self.sent + departures.cost).saturating_sub(before);
        for kind in kinds() {
            let (counted, actual) = (counted[kind.resource()], actual[kind.resource()]);
            let Some((limit, drained_at)) = self.allowance(kind) else { continue };
            if actual > counted {
                let late = drained_at + self.time_for(actual - counted, limit);
                // Estimates that are far too low must not close the quota for longer than a minute.
                self.drain(kind, late.min(now + self.minute.window).max(drained_at));
            } else if actual < counted {
                // A bucket that was full in between has not kept what is given back now: the
                // backlog is at least what those who left since would have made alone.
                let less = drained_at - self.time_for(counted - actual, limit);
                let least = self.drained_after(index, kind, Some(limit));
                self.drain(kind, less.max(least).min(drained_at));
            }
        }
    }

    /// Lets go of what left more than a window ago.
    pub fn expire(&mut self, now: Instant) {
        while let Some(departures) = self.departures.front()
            && departures.last + self.minute.window <= now
        {
            self.sent -= departures.cost;
            self.departures.pop_front();
        }
    }

    fn limit(&self, kind: QuotaKind) -> Option<u64> {
        self.allowances[kind].as_ref()?.limit
    }

    /// A quota's limit, if it has one, and when its backlog is drained.
    fn allowance(&self, kind: QuotaKind) -> Option<(u64, Instant)> {
        let allowance = self.allowances[kind].as_ref()?;
        Some((allowance.limit?, allowance.drained_at))
    }

    /// All quotas that have a limit.
    fn limited(&self) -> impl Iterator<Item = (QuotaKind, u64, Instant)> {
        kinds().filter_map(|kind| {
            self.allowance(kind).map(|(limit, drained_at)| (kind, limit, drained_at))
        })
    }

    fn drain(&mut self, kind: QuotaKind, at: Instant) {
        if let Some(allowance) = &mut self.allowances[kind] {
            allowance.drained_at = at;
        }
    }

    /// When the window has room: a lower bound where room is to be made by what has not left yet.
    fn window_opens_at(&self, kind: QuotaKind, limit: u64, unsent: u64, now: Instant) -> Instant {
        let resource = kind.resource();
        let sent = self.sent[resource];
        let excess = (sent + unsent).saturating_sub(limit);
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

    /// When the backlog is drained if nothing had left before the departures at `index`.
    fn drained_after(&self, index: usize, kind: QuotaKind, limit: Option<u64>) -> Instant {
        let fresh = self.minute.start - self.minute.jitter;
        let Some(limit) = limit else { return fresh };
        let amounts = self.departures.range(index..);
        let amounts = amounts.map(|departures| (departures.last, departures.cost[kind.resource()]));
        amounts.filter(|(_, amount)| *amount > 0).fold(fresh, |drained_at, (last, amount)| {
            drained_at.max(last) + self.time_for(amount, limit)
        })
    }

    /// In what time an amount flows in: in whole microseconds, as Redis's clock counts, so that
    /// replicas that share a budget count as one alone does.
    fn time_for(&self, amount: u64, limit: u64) -> Duration {
        let share = amount as f64 / limit.max(1) as f64;
        let micros = self.minute.window_micros * share;
        Duration::from_micros(micros.ceil() as u64)
    }

    /// How long the backlog may take to drain when `cost` leaves, and what of that is to be kept
    /// free for the jitter: see [`Minute`].
    fn tolerance_and_jitter(&self, cost: u64, limit: u64) -> (Duration, Duration) {
        let burst = self.minute.burst.max(self.time_for(1, limit));
        let tolerance = burst.saturating_sub(self.time_for(cost, limit));
        (tolerance, self.minute.jitter.max(tolerance / 2))
    }
}
