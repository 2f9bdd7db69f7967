//! One quota per minute, of requests or of tokens.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::minute::Minute;

/// What may be spent in a minute and what is spent of it, in requests or in tokens.
///
/// An amount *waits* (in the queue), is *unsent* (reserved; it does not age), and is *sent* (it
/// counts for one window from the moment it left).
#[derive(Debug)]
pub(super) struct Allowance {
    minute: Minute,
    limit: Option<u64>,
    /// What left within the last window, oldest first: at most one entry a cell of the grid.
    departures: VecDeque<Departures>,
    /// The sum of `departures`.
    sent: u64,
    unsent: u64,
    waiting: u64,
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
    amount: u64,
}

impl Allowance {
    /// An allowance of which nothing is spent.
    pub fn new(limit: Option<u64>, minute: Minute) -> Self {
        Self {
            minute,
            limit,
            departures: VecDeque::new(),
            sent: 0,
            unsent: 0,
            waiting: 0,
            drained_at: minute.start - minute.jitter,
        }
    }

    /// What may be spent in a minute; without end where there is none.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// What left within the last window.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What is reserved and has not left.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// What is asked for in the queue.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Changes the limit. What has left counts against the new one, but the backlog is never
    /// more than a minute's: nothing that left earlier counts anywhere.
    pub fn set_limit(&mut self, limit: Option<u64>, now: Instant) {
        if limit == self.limit {
            return;
        }
        self.limit = limit;
        self.drained_at = self.drained_after(0).min(now + self.minute.window);
    }

    /// The first moment at which `cost` can be reserved by one who has `ahead` before it in the
    /// queue: now or earlier if at once. None of those in the queue goes before `start`.
    ///
    /// It is the earliest moment possible, as if all that is unsent left now and all that is
    /// ahead as soon as it may: only what is given back can bring it nearer.
    pub fn opens_at(&self, ahead: u64, cost: u64, start: Instant, now: Instant) -> Instant {
        if self.limit.is_none() {
            return start;
        }
        let mut drained_at = self.drained_at;
        if self.unsent > 0 {
            drained_at = drained_at.max(now) + self.time_for(self.unsent);
        }
        if ahead > 0 {
            drained_at = drained_at.max(start) + self.time_for(ahead);
        }
        let (tolerance, jitter) = self.tolerance_and_jitter(cost);
        start.max(self.window_opens_at(ahead, cost, now)).max(drained_at + jitter - tolerance)
    }

    /// Whether what is unsent leaves no room for `cost`, so that only its departure or return
    /// can help, and no passing of time.
    pub fn is_held_up(&self, cost: u64) -> bool {
        let Some(limit) = self.limit else { return false };
        let (tolerance, jitter) = self.tolerance_and_jitter(cost);
        self.unsent > 0
            && (self.unsent + cost > limit || self.time_for(self.unsent) + jitter > tolerance)
    }

    /// Takes a place in the queue.
    pub fn join(&mut self, cost: u64) {
        self.waiting += cost;
    }

    /// Gives up a place in the queue.
    pub fn leave_queue(&mut self, cost: u64) {
        self.waiting -= cost;
    }

    /// Reserves, whatever there is room for.
    pub fn reserve(&mut self, cost: u64) {
        self.unsent += cost;
    }

    /// Gives back what was reserved and has not left.
    pub fn give_back(&mut self, cost: u64) {
        self.unsent -= cost;
    }

    /// What was reserved leaves now.
    pub fn depart(&mut self, cost: u64, now: Instant) {
        self.unsent -= cost;
        self.sent += cost;
        // What was reserved under a higher limit must not close the quota for long.
        let drained_at = self.drained_at.max(now) + self.time_for(cost);
        self.drained_at = drained_at.min(now + 2 * self.minute.window);
        let cell = self.minute.cell(now);
        match self.departures.back_mut() {
            Some(departures) if departures.cell == cell => {
                departures.last = now;
                departures.amount += cost;
            }
            _ => self.departures.push_back(Departures { cell, last: now, amount: cost }),
        }
    }

    /// Counts what was sent by others a short while ago as if it left now. As after a change of the
    /// limit, the backlog is never more than a minute's.
    pub fn count(&mut self, cost: u64, now: Instant) {
        let most = self.drained_at.max(now + self.minute.window);
        self.reserve(cost);
        self.depart(cost, now);
        self.drained_at = self.drained_at.min(most);
    }

    /// Takes out what left within the last window and what is unsent. What is unsent stays
    /// reserved until it leaves or is given back.
    pub fn take_spent(&mut self) -> u64 {
        self.departures.clear();
        std::mem::take(&mut self.sent) + self.unsent
    }

    /// What left at `left_at` and was counted as `counted` turns out to be `actual`. Without
    /// effect when it no longer counts.
    pub fn correct(&mut self, left_at: Instant, counted: u64, actual: u64, now: Instant) {
        let cell = self.minute.cell(left_at);
        let Ok(index) = self.departures.binary_search_by_key(&cell, |of| of.cell) else { return };
        let departures = &mut self.departures[index];
        // It may have been taken out, and something else have left in the same cell since.
        let before = departures.amount;
        departures.amount = before.saturating_sub(counted) + actual;
        self.sent = self.sent - before + departures.amount;
        if actual > counted {
            let late = self.drained_at + self.time_for(actual - counted);
            // Estimates that are far too low must not close the quota for longer than a minute.
            self.drained_at = late.min(now + self.minute.window).max(self.drained_at);
        } else {
            // A bucket that was full in between has not kept what is given back now: the backlog
            // is at least what those who left since would have made alone.
            let less = self.drained_at - self.time_for(counted - actual);
            self.drained_at = less.max(self.drained_after(index)).min(self.drained_at);
        }
    }

    /// Lets go of what left more than a window ago.
    pub fn expire(&mut self, now: Instant) {
        while let Some(departures) = self.departures.front()
            && departures.last + self.minute.window <= now
        {
            self.sent -= departures.amount;
            self.departures.pop_front();
        }
    }

    /// When the window has room: a lower bound where room is to be made by what has not left yet.
    fn window_opens_at(&self, ahead: u64, cost: u64, now: Instant) -> Instant {
        let limit = self.limit.unwrap_or(u64::MAX);
        let excess = (self.sent + self.unsent + ahead + cost).saturating_sub(limit);
        if excess == 0 {
            return now;
        }
        if excess > self.sent {
            return now + self.minute.window;
        }
        let mut freed = 0;
        let last = self.departures.iter().find(|departures| {
            freed += departures.amount;
            freed >= excess
        });
        last.map_or(now, |departures| departures.last) + self.minute.window
    }

    /// When the backlog is drained if nothing had left before the departures at `index`.
    fn drained_after(&self, index: usize) -> Instant {
        let fresh = self.minute.start - self.minute.jitter;
        self.departures.range(index..).fold(fresh, |drained_at, departures| {
            drained_at.max(departures.last) + self.time_for(departures.amount)
        })
    }

    /// In what time an amount flows in: in whole microseconds, as Redis's clock counts, so that
    /// replicas that share a budget count as one alone does.
    fn time_for(&self, amount: u64) -> Duration {
        let limit = self.limit.unwrap_or(u64::MAX).max(1);
        let micros = self.minute.window_micros * (amount as f64 / limit as f64);
        Duration::from_micros(micros.ceil() as u64)
    }

    /// How long the backlog may take to drain when `cost` leaves, and what of that is to be kept
    /// free for the jitter: see [`Minute`].
    fn tolerance_and_jitter(&self, cost: u64) -> (Duration, Duration) {
        let burst = self.minute.burst.max(self.time_for(1));
        let tolerance = burst.saturating_sub(self.time_for(cost));
        (tolerance, self.minute.jitter.max(tolerance / 2))
    }
}
