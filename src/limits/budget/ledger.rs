//! What is spent of all quotas, and who may spend more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::allowance::Allowance;
use super::day::Day;
use super::minute::Minute;
use super::{BudgetUsage, Cost, Exhausted, QuotaUsage, Quotas, Spent, Window};
use crate::limits::plan::PlannedQuotas;
use crate::pacific::WallClock;

/// What is waiting, reserved and sent: plain accounts, of which a budget is the lock.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What the account is called in logs.
    name: Arc<str>,
    /// What the settings say, which counts again when the day is over in which Gemini said
    /// otherwise.
    planned: Quotas,
    /// The lowest that was set by hand for the account, or for one that is charged here.
    by_hand: Quotas,
    /// What Gemini named.
    learned: Quotas,
    requests: Allowance,
    tokens: Allowance,
    day: Day,
    requests_per_day: Option<u64>,
    paused_until: Instant,
    /// When the clock was last read.
    looked_at: Instant,
    /// What those who return ask for.
    returning: Cost,
}

/// Where a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Behind all who asked before.
    Queue,
    /// There too; but who finds nobody waiting lets those who come meanwhile go first, once.
    Courteous,
    /// Behind those who return as it does, and before the queue.
    Returning,
}

/// What the first in the queue has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Nothing: it has reserved.
    Now,
    /// That moment, if nothing is given back before.
    At(Instant),
    /// The departure or return of what others have reserved.
    OnChange,
    /// Those who wait behind it: it could go, and lets them go first.
    AfterYou,
}

impl Ledger {
    /// A ledger with nothing in it.
    pub fn new(
        name: Arc<str>,
        planned: PlannedQuotas,
        minute: Duration,
        clock: Arc<dyn WallClock>,
    ) -> Self {
        let now = Instant::now();
        let minute = Minute::new(minute, now);
        let quotas = Quotas::from(planned);
        Self {
            name,
            planned: quotas,
            by_hand: planned.by_hand(),
            learned: Quotas::default(),
            requests: Allowance::new(quotas.requests_per_minute, minute),
            tokens: Allowance::new(quotas.input_tokens_per_minute, minute),
            day: Day::new(clock, now),
            requests_per_day: quotas.requests_per_day,
            paused_until: now,
            looked_at: now,
            returning: Cost::default(),
        }
    }

    /// Lets go of what no longer counts, and says what time it is.
    pub fn expire(&mut self) -> Instant {
        let now = Instant::now();
        self.looked_at = now;
        self.requests.expire(now);
        self.tokens.expire(now);
        if self.day.expire(now) && self.learned != Quotas::default() {
            tracing::info!(account = %self.name, "a new day: limits named by Gemini are dropped");
            self.learned = Quotas::default();
            self.apply(now);
        }
        now
    }

    /// Takes a place at the end of a line, unless it is certain to be of no use.
    pub fn join(&mut self, line: Line, cost: Cost, deadline: Instant) -> Result<(), Exhausted> {
        let now = self.expire();
        let ahead = match line {
            Line::Queue | Line::Courteous => self.all_waiting(),
            Line::Returning => self.returning,
        };
        self.opens_before(deadline, ahead, cost, now)?;
        self.requests.join(cost.requests);
        self.tokens.join(cost.tokens);
        if line == Line::Returning {
            self.returning += cost;
        }
        Ok(())
    }

    /// Reserves for one who asks now, if there is room and nobody waits.
    pub fn try_reserve(&mut self, cost: Cost, deadline: Instant) -> Result<bool, Exhausted> {
        let now = self.expire();
        let opens_at = self.opens_before(deadline, self.all_waiting(), cost, now)?;
        let fits = !self.is_waited_for() && opens_at <= now;
        if fits {
            self.reserve(cost);
        }
        Ok(fits)
    }

    /// Reserves for the first in a line if there is room.
    pub fn advance(
        &mut self,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> Result<Opening, Exhausted> {
        let now = self.expire();
        let ahead = match line {
            Line::Queue | Line::Courteous => self.returning,
            Line::Returning => Cost::default(),
        };
        let opens_at = self.opens_before(deadline, ahead, cost, now)?;
        if opens_at <= now {
            let others_wait = self.requests.waiting() > cost.requests;
            if line == Line::Courteous && others_wait && now < deadline {
                return Ok(Opening::AfterYou);
            }
            self.leave(line, cost);
            self.reserve(cost);
            return Ok(Opening::Now);
        }
        if self.requests.is_held_up(cost.requests) || self.tokens.is_held_up(cost.tokens) {
            return Ok(Opening::OnChange);
        }
        Ok(Opening::At(opens_at))
    }

    /// Leaves the queue at the deadline.
    pub fn give_up(&mut self, line: Line, cost: Cost) -> Exhausted {
        let now = self.expire();
        self.leave(line, cost);
        match self.opens_at(self.all_waiting(), cost, now) {
            Ok(opens_at) => Exhausted::NotBefore { retry_after: opens_at - now },
            Err(exhausted) => exhausted,
        }
    }

    fn reserve(&mut self, cost: Cost) {
        self.requests.reserve(cost.requests);
        self.tokens.reserve(cost.tokens);
    }

    /// Gives up a place in the queue.
    pub fn leave(&mut self, line: Line, cost: Cost) {
        self.requests.leave_queue(cost.requests);
        self.tokens.leave_queue(cost.tokens);
        if line == Line::Returning {
            self.returning -= cost;
        }
    }

    /// Whether anybody waits.
    pub fn is_waited_for(&self) -> bool {
        self.requests.waiting() > 0
    }

    /// What all who wait ask for.
    fn all_waiting(&self) -> Cost {
        Cost { requests: self.requests.waiting(), tokens: self.tokens.waiting() }
    }

    /// Gives back what was reserved and has not left.
    pub fn give_back(&mut self, cost: Cost) {
        self.requests.give_back(cost.requests);
        self.tokens.give_back(cost.tokens);
    }

    /// What was reserved leaves now.
    pub fn depart(&mut self, cost: Cost, now: Instant) {
        self.requests.depart(cost.requests, now);
        self.tokens.depart(cost.tokens, now);
        self.day.depart(cost.requests);
    }

    /// What left at `left_at` cost `actual` tokens instead of the `estimated`.
    pub fn settle(&mut self, left_at: Instant, estimated: u64, actual: u64, now: Instant) {
        self.tokens.correct(left_at, estimated, actual, now);
    }

    /// What left at `left_at` does not count.
    pub fn take_back(&mut self, left_at: Instant, cost: Cost, now: Instant) {
        self.requests.correct(left_at, cost.requests, 0, now);
        self.tokens.correct(left_at, cost.tokens, 0, now);
        self.day.take_back(left_at, cost.requests);
    }

    /// So many requests that left at `left_at` do not count in their day.
    pub fn take_back_of_day(&mut self, left_at: Instant, requests: u64) {
        self.day.take_back(left_at, requests);
    }

    /// Gemini said that the day is used up in which this left.
    pub fn close_day(&mut self, left_at: Instant) {
        self.day.close(left_at);
    }

    /// Nothing new goes until then.
    pub fn pause_until(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(until);
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Instant) {
        self.paused_until = now;
    }

    /// Whether nothing new goes yet.
    pub fn is_paused(&self) -> bool {
        // A pause that was over at the last look needs no other.
        self.paused_until > self.looked_at && self.paused_until > Instant::now()
    }

    /// The settings have changed: they count, whatever Gemini said before.
    pub fn set(&mut self, quotas: Quotas, now: Instant) {
        (self.planned, self.learned) = (quotas, Quotas::default());
        self.apply(now);
    }

    /// Gemini named these quotas, which count until the day is over.
    pub fn learn(&mut self, named: Quotas, now: Instant) {
        self.learned = named.or(self.learned);
        if self.apply(now) {
            let quotas = self.quotas();
            tracing::info!(account = %self.name, ?quotas, "limits corrected by Gemini");
        }
    }

    /// Drops what Gemini said: its quotas, a pause and a used-up day.
    pub fn forget(&mut self, now: Instant) {
        self.learned = Quotas::default();
        self.apply(now);
        self.resume(now);
        self.day.reopen(now);
        tracing::info!(account = %self.name, "limits reset to the settings");
    }

    /// Whether a new ledger would be as good.
    pub fn is_blank(&mut self) -> bool {
        let now = self.expire();
        let counted =
            [&self.requests, &self.tokens].map(|of| of.sent() + of.unsent() + of.waiting());
        counted == [0, 0]
            && self.day.sent() == 0
            && self.day.closed_until() <= now
            && self.paused_until <= now
            && self.learned == Quotas::default()
    }

    /// Takes out what is spent, for the account that turns out to be charged.
    pub fn hand_over(&mut self) -> Spent {
        self.expire();
        let unsent = self.requests.unsent();
        Spent {
            requests: self.requests.take_spent(),
            tokens: self.tokens.take_spent(),
            today: self.day.take_sent() + unsent,
            since: self.day.began(),
            paused_until: self.paused_until,
            closed_until: self.day.closed_until(),
            by_hand: self.by_hand,
            learned: std::mem::take(&mut self.learned),
        }
    }

    /// Counts what another account has spent, under the limits of both.
    pub fn take_over(&mut self, spent: Spent, now: Instant) {
        self.by_hand = self.by_hand.lower(spent.by_hand);
        self.learned = self.learned.or(spent.learned);
        self.apply(now);
        self.requests.count(spent.requests, now);
        self.tokens.count(spent.tokens, now);
        self.day.take_over(spent.today, spent.since);
        self.pause_until(spent.paused_until);
        self.day.close_until(spent.closed_until);
    }

    fn quotas(&self) -> Quotas {
        Quotas {
            requests_per_minute: self.requests.limit(),
            input_tokens_per_minute: self.tokens.limit(),
            requests_per_day: self.requests_per_day,
        }
    }

    /// Keeps to the quotas that count: what Gemini named, within what was set by hand; else what was
    /// set by hand, else what the tier says. Says whether they are others than before.
    fn apply(&mut self, now: Instant) -> bool {
        let before = self.quotas();
        let quotas = self.learned.within(self.by_hand).or(self.by_hand).or(self.planned);
        self.requests.set_limit(quotas.requests_per_minute, now);
        self.tokens.set_limit(quotas.input_tokens_per_minute, now);
        self.requests_per_day = quotas.requests_per_day;
        quotas != before
    }

    /// What is spent now.
    pub fn usage(&mut self) -> BudgetUsage {
        let now = self.expire();
        let per_minute = |allowance: &Allowance| QuotaUsage {
            limit: allowance.limit(),
            used: allowance.sent(),
            reserved: allowance.unsent(),
        };
        let next_free_in = match self.opens_at(self.all_waiting(), Cost::one(1), now) {
            Ok(opens_at) => Some(opens_at - now),
            Err(Exhausted::DayExhausted { retry_after }) => Some(retry_after),
            Err(_) => None,
        };
        BudgetUsage {
            requests_per_minute: per_minute(&self.requests),
            input_tokens_per_minute: per_minute(&self.tokens),
            requests_per_day: QuotaUsage {
                limit: self.requests_per_day,
                used: self.day.sent(),
                reserved: self.requests.unsent(),
            },
            waiting: self.requests.waiting(),
            next_free_in,
            paused_for: (self.paused_until > now).then(|| self.paused_until - now),
        }
    }

    fn opens_before(
        &self,
        deadline: Instant,
        ahead: Cost,
        cost: Cost,
        now: Instant,
    ) -> Result<Instant, Exhausted> {
        let opens_at = self.opens_at(ahead, cost, now)?;
        if opens_at > deadline {
            return Err(Exhausted::NotBefore { retry_after: opens_at - now });
        }
        Ok(opens_at)
    }

    /// The first moment at which a call could be reserved that has so much ahead of it in the
    /// queue: `now` if at once.
    fn opens_at(&self, ahead: Cost, cost: Cost, now: Instant) -> Result<Instant, Exhausted> {
        self.ensure_possible(ahead.requests, cost, now)?;
        let start = now.max(self.paused_until);
        let requests = self.requests.opens_at(ahead.requests, cost.requests, start, now);
        Ok(requests.max(self.tokens.opens_at(ahead.tokens, cost.tokens, start, now)))
    }

    /// Refuses what no waiting helps, or only waiting for the next day.
    fn ensure_possible(
        &self,
        requests_ahead: u64,
        Cost { requests, tokens }: Cost,
        now: Instant,
    ) -> Result<(), Exhausted> {
        let limits = [self.requests.limit(), self.tokens.limit(), self.requests_per_day];
        if limits.contains(&Some(0)) {
            return Err(Exhausted::NoQuota);
        }
        if let Some(limit) = self.tokens.limit().filter(|limit| tokens > *limit) {
            return Err(Exhausted::TooLarge { tokens, limit });
        }
        for (window, limit) in
            [(Window::Minute, self.requests.limit()), (Window::Day, self.requests_per_day)]
        {
            if let Some(limit) = limit.filter(|limit| requests > *limit) {
                return Err(Exhausted::TooManyRequests { requests, limit, window });
            }
        }
        let today = self.day.sent() + self.requests.unsent() + requests_ahead + requests;
        let is_used_up = self.requests_per_day.is_some_and(|limit| today > limit);
        let reopens_at = if is_used_up { self.day.ends() } else { now };
        let reopens_at = reopens_at.max(self.day.closed_until());
        if reopens_at > now {
            return Err(Exhausted::DayExhausted { retry_after: reopens_at - now });
        }
        Ok(())
    }
}
