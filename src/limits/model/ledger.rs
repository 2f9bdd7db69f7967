//! All quotas of one account: what is queued, reserved and sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::day::Day;
use super::minute::Minute;
use super::plan::PlannedQuotas;
use super::quota::{PerKind, QuotaKind, Quotas, Resource, Window};
use super::rolling::{Opens, Rolling};
use super::{BudgetUsage, Cost, Exhausted, QuotaUsage};
use crate::pacific::WallClock;

/// What is queued, reserved and sent. A budget holds it behind a lock.
#[derive(Debug)]
pub(in crate::limits) struct Ledger {
    /// The account's name in logs.
    name: Arc<str>,
    /// The quotas of the settings. They hold again when the day of learned quotas ends.
    planned: Quotas,
    /// The lowest limits set by hand for the account or for those that are charged here.
    by_hand: Quotas,
    /// The quotas that Gemini named.
    learned: Quotas,
    /// The quotas that hold now.
    quotas: Quotas,
    /// The limited ones among them. Unlimited kinds take no time.
    limits: Vec<(QuotaKind, u64)>,
    rolling: Rolling,
    day: Day,
    paused_until: Instant,
    /// The quota for which Gemini paused the account, if it is known.
    paused_for: Option<QuotaKind>,
    /// When the clock was last read.
    checked_at: Instant,
    /// What is reserved and not sent.
    unsent: Cost,
    /// What all waiting calls request.
    waiting: Cost,
    /// What the returning ones among them request.
    returning: Cost,
}

/// The line in which a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Behind all earlier calls.
    Queue,
    /// The same. If no other call waits, calls that arrive meanwhile are admitted first, once.
    YieldOnce,
    /// Behind earlier returning calls, and before the queue.
    Returning,
}

/// What the head of the queue has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limits) enum Opening {
    /// Nothing: the cost is reserved.
    Now,
    /// That moment, unless something is given back earlier.
    At(Instant),
    /// Until another reservation is sent or given back.
    OnChange,
    /// The calls behind it: it fits, and lets them go first.
    Yield,
}

impl Ledger {
    /// An empty ledger.
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
            paused_for: None,
            checked_at: now,
            unsent: Cost::default(),
            waiting: Cost::default(),
            returning: Cost::default(),
        }
    }

    /// Drops what no longer counts. Returns the time.
    pub fn expire(&mut self) -> Instant {
        let now = Instant::now();
        self.checked_at = now;
        self.rolling.expire(now);
        if self.day.expire(now) && self.learned.is_any() {
            tracing::info!(account = %self.name, "a new day: limits named by Gemini are dropped");
            self.learned = Quotas::default();
            self.apply(now);
        }
        now
    }

    /// Joins the end of a line, unless the call cannot be sent in time. Returns the line: a call behind
    /// others yields to none.
    pub fn join(&mut self, line: Line, cost: Cost, deadline: Instant) -> Result<Line, Exhausted> {
        let line = if self.is_waited_for() && line == Line::YieldOnce { Line::Queue } else { line };
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
        Ok(line)
    }

    /// Reserves if there is room and no call waits.
    pub fn try_reserve(&mut self, cost: Cost, deadline: Instant) -> Result<bool, Exhausted> {
        let is_open = self.is_unlimited() || {
            let now = self.expire();
            self.opens_before(deadline, self.waiting, cost, now)?.at <= now
        };
        let fits = is_open && !self.is_waited_for();
        if fits {
            self.unsent += cost;
        }
        Ok(fits)
    }

    /// Whether nothing limits the account, so the clock need not be read. What was over at the last check
    /// needs no new one.
    fn is_unlimited(&self) -> bool {
        let closed_until = self.paused_until.max(self.day.closed_until());
        self.limits.is_empty() && closed_until <= self.checked_at
    }

    /// Reserves for the head of a line if there is room.
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
        let Opens { at: opens_at, .. } = self.opens_before(deadline, ahead, cost, now)?;
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
            Ok(opens) => opens.too_late(now),
            Err(exhausted) => exhausted,
        }
    }

    /// Leaves the queue.
    pub fn leave(&mut self, line: Line, cost: Cost) {
        self.waiting -= cost;
        if line == Line::Returning {
            self.returning -= cost;
        }
    }

    /// Whether any call waits.
    pub fn is_waited_for(&self) -> bool {
        self.waiting[Resource::Requests] > 0
    }

    /// Gives back a reservation that was not sent.
    pub fn give_back(&mut self, cost: Cost) {
        self.unsent -= cost;
    }

    /// Counts a reservation as sent now.
    pub fn start(&mut self, cost: Cost, now: Instant) {
        self.unsent -= cost;
        self.rolling.start(cost, now);
        self.day.start(cost);
    }

    /// Replaces what was `counted` for a call sent at `sent_at` by its `actual` cost.
    pub fn correct(&mut self, sent_at: Instant, counted: Cost, actual: Cost, now: Instant) {
        self.rolling.correct(sent_at, counted, actual, now);
        self.day.correct(sent_at, counted, actual);
    }

    /// Takes a call sent at `sent_at` out of its day.
    pub fn take_back_of_day(&mut self, sent_at: Instant, cost: Cost) {
        self.day.correct(sent_at, cost, Cost::default());
    }

    /// Gemini said that the day in which the call was sent is used up.
    pub fn close_day(&mut self, sent_at: Instant) {
        self.day.close(sent_at);
    }

    /// Starts no call until then, because Gemini refused one for the quota.
    pub fn pause_until(&mut self, until: Instant, quota: Option<QuotaKind>) {
        if until > self.paused_until {
            (self.paused_until, self.paused_for) = (until, quota);
        }
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Instant) {
        (self.paused_until, self.paused_for) = (now, None);
    }

    /// Whether the account is paused.
    pub fn is_paused(&self) -> bool {
        // A pause that was over at the last check needs no new one.
        self.paused_until > self.checked_at && self.paused_until > Instant::now()
    }

    /// Changes the quotas of the settings and drops learned ones.
    pub fn set(&mut self, quotas: Quotas, now: Instant) {
        (self.planned, self.learned) = (quotas, Quotas::default());
        self.apply(now);
    }

    /// Takes over new settings, including the limits set by hand for accounts that are charged here. If
    /// they differ from the known ones, drops learned quotas.
    pub fn plan(&mut self, planned: PlannedQuotas, now: Instant) {
        let (quotas, by_hand) = (Quotas::from(planned), planned.by_hand());
        if (quotas, by_hand) != (self.planned, self.by_hand) {
            self.by_hand = by_hand;
            self.set(quotas, now);
        }
    }

    /// Takes over quotas that Gemini named. They hold until the day ends.
    pub fn learn(&mut self, named: Quotas, now: Instant) {
        self.learned = named.or(self.learned);
        if self.apply(now) {
            let quotas = self.quotas;
            tracing::info!(account = %self.name, ?quotas, "limits corrected by Gemini");
        }
    }

    /// Drops learned quotas, a pause and a used-up day.
    pub fn forget(&mut self, now: Instant) {
        self.learned = Quotas::default();
        self.apply(now);
        self.resume(now);
        self.day.reopen(now);
        tracing::info!(account = %self.name, "limits reset to the settings");
    }

    /// Whether a new ledger would behave the same. What was sent counts only for quotas that have a limit.
    pub fn is_blank(&mut self) -> bool {
        let now = self.expire();
        let nothing = Cost::default();
        let are_any = |is_daily| {
            self.limits.iter().any(|(kind, _)| (kind.window() == Window::Day) == is_daily)
        };
        (self.unsent, self.waiting) == (nothing, nothing)
            && (self.day.sent() == nothing || !are_any(true))
            && (self.rolling.sent() == nothing || !are_any(false))
            && self.day.closed_until() <= now
            && self.paused_until <= now
            && !self.learned.is_any()
    }

    /// Takes out what is spent, for the account that is charged.
    pub fn hand_over(&mut self) -> Spent {
        self.expire();
        Spent {
            minute: self.rolling.take_sent() + self.unsent,
            today: self.day.take_sent() + self.unsent,
            since: self.day.began(),
            paused_until: self.paused_until,
            paused_for: self.paused_for,
            closed_until: self.day.closed_until(),
            by_hand: self.by_hand,
            learned: std::mem::take(&mut self.learned),
        }
    }

    /// Adds what another account has spent. The limits of both hold.
    pub fn take_over(&mut self, spent: Spent, now: Instant) {
        self.by_hand = self.by_hand.lower(spent.by_hand);
        self.learned = self.learned.or(spent.learned);
        self.apply(now);
        self.rolling.count(spent.minute, now);
        self.day.take_over(spent.today, spent.since);
        self.pause_until(spent.paused_until, spent.paused_for);
        self.day.close_until(spent.closed_until);
    }

    /// Applies the quotas that hold: those that Gemini named, within those set by hand; or else those
    /// set by hand; or else the tier's. Returns whether they changed.
    fn apply(&mut self, now: Instant) -> bool {
        let quotas = self.learned.within(self.by_hand).or(self.by_hand).or(self.planned);
        let is_changed = quotas != self.quotas;
        (self.quotas, self.limits) = (quotas, limits(quotas));
        self.rolling.set_limits(quotas, now);
        is_changed
    }

    /// The usage now.
    pub fn usage(&mut self) -> BudgetUsage {
        let now = self.expire();
        let next_free_in = match self.opens_at(self.waiting, Cost::one(1), now) {
            Ok(opens) => Some(opens.at - now),
            Err(Exhausted::DayExhausted { retry_after, .. }) => Some(retry_after),
            Err(_) => None,
        };
        BudgetUsage {
            quotas: PerKind::from_fn(|kind| {
                let sent = match kind.window() {
                    Window::Minute | Window::TenMinutes => self.rolling.sent(),
                    Window::Day => self.day.sent(),
                    Window::Outstanding => return QuotaUsage::default(),
                };
                let (limit, reserved) = (self.quotas[kind], self.unsent[kind.resource()]);
                QuotaUsage { limit, used: sent[kind.resource()], reserved }
            }),
            waiting: self.waiting[Resource::Requests],
            next_free_in,
            paused_for: (self.paused_until > now).then(|| self.paused_until - now),
            paused_quota: self.paused_for.filter(|_| self.paused_until > now),
            day_closed_for: self
                .day
                .closed_until()
                .checked_duration_since(now)
                .filter(|left| !left.is_zero()),
        }
    }

    fn opens_before(
        &self,
        deadline: Instant,
        ahead: Cost,
        cost: Cost,
        now: Instant,
    ) -> Result<Opens, Exhausted> {
        let opens = self.opens_at(ahead, cost, now)?;
        if opens.at > deadline { Err(opens.too_late(now)) } else { Ok(opens) }
    }

    /// The first moment at which a call can be reserved with `ahead` before it in the queue: `now` if
    /// at once.
    fn opens_at(&self, ahead: Cost, cost: Cost, now: Instant) -> Result<Opens, Exhausted> {
        self.ensure_possible(ahead, cost, now)?;
        let start = match self.paused_until > now {
            true => Opens { at: self.paused_until, quota: self.paused_for },
            false => Opens { at: now, quota: None },
        };
        Ok(self.rolling.opens_at(self.unsent, ahead, cost, start, now))
    }

    /// Refuses a call if waiting does not help, or only waiting for the next day.
    fn ensure_possible(&self, ahead: Cost, cost: Cost, now: Instant) -> Result<(), Exhausted> {
        let asked = self.limits.iter().filter(|(kind, _)| cost[kind.resource()] > 0);
        let (mut reopens_at, mut used_up) = (self.day.closed_until(), None);
        for &(kind, limit) in asked.clone() {
            let resource = kind.resource();
            if cost[resource] > limit {
                let none = asked.clone().find(|(_, limit)| *limit == 0);
                let too_large = Exhausted::TooLarge { kind, cost: cost[resource], limit };
                let no_quota =
                    |(kind, _): &(QuotaKind, u64)| Exhausted::NoQuota { kind: Some(*kind) };
                return Err(none.map_or(too_large, no_quota));
            }
            if kind.window() == Window::Day {
                let today = self.day.sent() + self.unsent + ahead + cost;
                if today[resource] > limit {
                    reopens_at = reopens_at.max(self.day.ends());
                    used_up = used_up.or(Some(kind));
                }
            }
        }
        if reopens_at > now {
            return Err(Exhausted::DayExhausted { kind: used_up, retry_after: reopens_at - now });
        }
        Ok(())
    }
}

/// The limited quotas.
fn limits(quotas: Quotas) -> Vec<(QuotaKind, u64)> {
    quotas.iter().filter_map(|(kind, limit)| Some((kind, (*limit)?))).collect()
}

/// What an account of this process has spent, to be moved to the account that Gemini charges.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Sent within the last minute, and reserved.
    pub(in crate::limits) minute: Cost,
    /// Sent today, and reserved.
    pub(in crate::limits) today: Cost,
    /// Since when `today` is counted.
    pub(in crate::limits) since: Instant,
    /// When a pause ends; in the past if there is none.
    pub(in crate::limits) paused_until: Instant,
    /// The quota for which Gemini paused the account, if it is known.
    pub(in crate::limits) paused_for: Option<QuotaKind>,
    /// When a used-up day ends; in the past if the day is not used up.
    pub(in crate::limits) closed_until: Instant,
    /// The limits set by hand.
    pub(in crate::limits) by_hand: Quotas,
    /// The quotas that Gemini named.
    pub(in crate::limits) learned: Quotas,
}
