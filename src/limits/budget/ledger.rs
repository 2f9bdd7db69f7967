//! What is spent of all quotas, and who may spend more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::day::Day;
use super::minute::Minute;
use super::rolling::Rolling;
use super::{BudgetUsage, Cost, Exhausted, QuotaUsage, Spent};
use crate::limits::plan::PlannedQuotas;
use crate::limits::quota::{PerKind, QuotaKind, Quotas, Resource, Window};
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
    /// What counts now.
    quotas: Quotas,
    /// Those of them that have a limit: a kind without one takes no time.
    limits: Vec<(QuotaKind, u64)>,
    rolling: Rolling,
    day: Day,
    paused_until: Instant,
    /// When the clock was last read.
    looked_at: Instant,
    /// What is reserved and has not left.
    unsent: Cost,
    /// What all that wait ask for.
    waiting: Cost,
    /// What those of them ask for that return.
    returning: Cost,
}

/// Where a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Behind all who asked before.
    Queue,
    /// There too; but who finds nobody waiting lets those who come meanwhile go first, once.
    YieldOnce,
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
    /// The started or return of what others have reserved.
    OnChange,
    /// Those who wait behind it: it could go, and lets them go first.
    Yield,
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
            quotas,
            limits: limits(quotas),
            rolling: Rolling::new(quotas, minute),
            day: Day::new(clock, now),
            paused_until: now,
            looked_at: now,
            unsent: Cost::default(),
            waiting: Cost::default(),
            returning: Cost::default(),
        }
    }

    /// Lets go of what no longer counts, and says what time it is.
    pub fn expire(&mut self) -> Instant {
        let now = Instant::now();
        self.looked_at = now;
        self.rolling.expire(now);
        if self.day.expire(now) && self.learned.is_any() {
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
            Line::Queue | Line::YieldOnce => self.waiting,
            Line::Returning => self.returning,
        };
        self.opens_before(deadline, ahead, cost, now)?;
        self.waiting += cost;
        if line == Line::Returning {
            self.returning += cost;
        }
        Ok(())
    }

    /// Reserves for one who asks now, if there is room and nobody waits.
    pub fn try_reserve(&mut self, cost: Cost, deadline: Instant) -> Result<bool, Exhausted> {
        let now = self.expire();
        let opens_at = self.opens_before(deadline, self.waiting, cost, now)?;
        let fits = !self.is_waited_for() && opens_at <= now;
        if fits {
            self.unsent += cost;
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
            Line::Queue | Line::YieldOnce => self.returning,
            Line::Returning => Cost::default(),
        };
        let opens_at = self.opens_before(deadline, ahead, cost, now)?;
        if opens_at <= now {
            let others_wait = self.waiting[Resource::Requests] > cost[Resource::Requests];
            if line == Line::YieldOnce && others_wait && now < deadline {
                return Ok(Opening::Yield);
            }
            self.leave(line, cost);
            self.unsent += cost;
            return Ok(Opening::Now);
        }
        let is_held_up = self.rolling.is_held_up(self.unsent, cost);
        Ok(if is_held_up { Opening::OnChange } else { Opening::At(opens_at) })
    }

    /// Leaves the queue at the deadline.
    pub fn give_up(&mut self, line: Line, cost: Cost) -> Exhausted {
        let now = self.expire();
        self.leave(line, cost);
        match self.opens_at(self.waiting, cost, now) {
            Ok(opens_at) => Exhausted::NotBefore { retry_after: opens_at - now },
            Err(exhausted) => exhausted,
        }
    }

    /// Gives up a place in the queue.
    pub fn leave(&mut self, line: Line, cost: Cost) {
        self.waiting -= cost;
        if line == Line::Returning {
            self.returning -= cost;
        }
    }

    /// Whether anybody waits.
    pub fn is_waited_for(&self) -> bool {
        self.waiting[Resource::Requests] > 0
    }

    /// Gives back what was reserved and has not left.
    pub fn give_back(&mut self, cost: Cost) {
        self.unsent -= cost;
    }

    /// What was reserved leaves now.
    pub fn start(&mut self, cost: Cost, now: Instant) {
        self.unsent -= cost;
        self.rolling.start(cost, now);
        self.day.start(cost);
    }

    /// What left at `left_at` and was counted as `counted` turns out to be `actual`.
    pub fn correct(&mut self, left_at: Instant, counted: Cost, actual: Cost, now: Instant) {
        self.rolling.correct(left_at, counted, actual, now);
        self.day.correct(left_at, counted, actual);
    }

    /// What left at `left_at` does not count in its day.
    pub fn take_back_of_day(&mut self, left_at: Instant, cost: Cost) {
        self.day.correct(left_at, cost, Cost::default());
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
            let quotas = self.quotas;
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
        let nothing = Cost::default();
        (self.unsent, self.waiting, self.day.sent()) == (nothing, nothing, nothing)
            && self.rolling.sent() == nothing
            && self.day.closed_until() <= now
            && self.paused_until <= now
            && !self.learned.is_any()
    }

    /// Takes out what is spent, for the account that turns out to be charged.
    pub fn hand_over(&mut self) -> Spent {
        self.expire();
        Spent {
            minute: self.rolling.take_sent() + self.unsent,
            today: self.day.take_sent() + self.unsent,
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
        self.rolling.count(spent.minute, now);
        self.day.take_over(spent.today, spent.since);
        self.pause_until(spent.paused_until);
        self.day.close_until(spent.closed_until);
    }

    /// Keeps to the quotas that count: what Gemini named, within what was set by hand; else what was
    /// set by hand, else what the tier says. Says whether they are others than before.
    fn apply(&mut self, now: Instant) -> bool {
        let quotas = self.learned.within(self.by_hand).or(self.by_hand).or(self.planned);
        let is_changed = quotas != self.quotas;
        (self.quotas, self.limits) = (quotas, limits(quotas));
        self.rolling.set_limits(quotas, now);
        is_changed
    }

    /// What is spent now.
    pub fn usage(&mut self) -> BudgetUsage {
        let now = self.expire();
        let next_free_in = match self.opens_at(self.waiting, Cost::one(1), now) {
            Ok(opens_at) => Some(opens_at - now),
            Err(Exhausted::DayExhausted { retry_after }) => Some(retry_after),
            Err(_) => None,
        };
        BudgetUsage {
            quotas: PerKind::from_fn(|kind| {
                let sent = match kind.window() {
                    Window::Minute => self.rolling.sent(),
                    Window::Day => self.day.sent(),
                };
                let (limit, reserved) = (self.quotas[kind], self.unsent[kind.resource()]);
                QuotaUsage { limit, used: sent[kind.resource()], reserved }
            }),
            waiting: self.waiting[Resource::Requests],
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
        self.ensure_possible(ahead, cost, now)?;
        let start = now.max(self.paused_until);
        Ok(self.rolling.opens_at(self.unsent, ahead, cost, start, now))
    }

    /// Refuses what no waiting helps, or only waiting for the next day.
    fn ensure_possible(&self, ahead: Cost, cost: Cost, now: Instant) -> Result<(), Exhausted> {
        let asked = self.limits.iter().filter(|(kind, _)| cost[kind.resource()] > 0);
        let mut reopens_at = self.day.closed_until();
        for &(kind, limit) in asked.clone() {
            let resource = kind.resource();
            if cost[resource] > limit {
                let is_none = asked.clone().any(|(_, limit)| *limit == 0);
                let too_large = Exhausted::TooLarge { kind, cost: cost[resource], limit };
                return Err(if is_none { Exhausted::NoQuota } else { too_large });
            }
            if kind.window() == Window::Day {
                let today = self.day.sent() + self.unsent + ahead + cost;
                if today[resource] > limit {
                    reopens_at = reopens_at.max(self.day.ends());
                }
            }
        }
        if reopens_at > now {
            return Err(Exhausted::DayExhausted { retry_after: reopens_at - now });
        }
        Ok(())
    }
}

/// The quotas that have a limit, and which.
fn limits(quotas: Quotas) -> Vec<(QuotaKind, u64)> {
    quotas.iter().filter_map(|(kind, limit)| Some((kind, (*limit)?))).collect()
}
