//! All figures, and how a sample changes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::account_rings::AccountRings;
use super::past::PastPoint;
use super::rings::Rings;
use super::{AccountState, PayerState, Point, Spent, Window};
use crate::limits::Reports;
use crate::metrics::failures::Failure;
use crate::metrics::replicas::{Figures, Identity, OwnReport, Peers, Scope};
use crate::metrics::totals::Counts;
use crate::pacific::{last_midnight, until_midnight};
use crate::prices::NanoDollars;

/// The time over which spend is shown.
const TEN_MINUTES: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct State {
    own: Summed,
    /// Of all replicas, if the limits are shared.
    all: Option<Summed>,
    pub accounts: Vec<AccountState>,
    pub payers: Vec<PayerState>,
    pub account_rings: AccountRings,
    pub peers: Peers,
    /// Since when Redis has been unavailable, if it is.
    unreachable_since: Option<Timestamp>,
    /// Whether the points of all replicas that were there before this process have been read.
    has_past: bool,
    /// New points of all replicas that go to Redis, by window.
    pub unsent: BTreeMap<&'static str, String>,
    interval: Interval,
    reports: u64,
}

/// Points and what was spent on this day.
#[derive(Debug)]
struct Summed {
    rings: Rings,
    today: Today,
}

/// What was spent on a day of Google's.
#[derive(Debug, Clone, Copy)]
struct Today {
    since: Timestamp,
    ends: Timestamp,
    cost: NanoDollars,
}

/// The interval that is not over.
#[derive(Debug)]
struct Interval {
    began: Instant,
    /// What was counted before it.
    before: Counts,
    /// How often the calls in flight were read, and their sum.
    reads: u32,
    in_flight: f64,
    waiting: f64,
}

impl State {
    pub fn new(now: Instant, since: Timestamp, is_shared: bool) -> Self {
        Self {
            own: Summed::new(since),
            all: is_shared.then(|| Summed::new(since)),
            accounts: Vec::new(),
            payers: Vec::new(),
            account_rings: AccountRings::default(),
            peers: Peers::default(),
            unreachable_since: None,
            has_past: false,
            unsent: BTreeMap::new(),
            interval: Interval::new(now, Counts::default()),
            reports: 0,
        }
    }

    /// Whose figures are summed.
    pub fn scope(&self) -> Scope {
        match (&self.all, self.unreachable_since) {
            (None, _) => Scope::Alone,
            (Some(_), Some(since)) => Scope::Unreachable { since },
            (Some(_), None) => Scope::Replicas { count: 1 + self.peers.count() },
        }
    }

    /// The points that are shown.
    pub fn shown(&self) -> &Rings {
        &self.shown_sum().rings
    }

    fn shown_sum(&self) -> &Summed {
        self.all.as_ref().filter(|_| self.unreachable_since.is_none()).unwrap_or(&self.own)
    }

    /// What calls have cost until now.
    pub fn spent(&self, now: Timestamp) -> Spent {
        let Summed { rings, today } = self.shown_sum();
        let points = rings.since(Window::Hour, now - TEN_MINUTES, now);
        let add = |sum: NanoDollars, point: &Arc<Point>| sum.saturating_add(point.counts.cost);
        let today = today.at(now);
        Spent {
            ten_minutes: points.fold(NanoDollars::default(), add),
            today: today.cost,
            today_since: today.since,
        }
    }

    /// Notes how many calls are in flight and how many requests wait.
    pub fn watch(&mut self, in_flight: usize, waiting: usize) {
        self.interval.reads += 1;
        self.interval.in_flight += in_flight as f64;
        self.interval.waiting += waiting as f64;
    }

    /// Ends the interval and adds its point.
    pub fn end_interval(
        &mut self,
        now: Instant,
        at: Timestamp,
        counts: Counts,
        limit: usize,
    ) -> Arc<Point> {
        let next = Interval::new(now, counts.clone());
        let ended = std::mem::replace(&mut self.interval, next);
        let reads = f64::from(ended.reads.max(1));
        let point = Point {
            at,
            duration: now.duration_since(ended.began).max(Duration::from_millis(1)),
            in_flight: ended.in_flight / reads,
            limit,
            waiting: ended.waiting / reads,
            counts: counts.since(&ended.before),
        };
        self.own.push(point, NanoDollars::default()).0
    }

    /// The report of this process after an interval.
    pub fn report(
        &mut self,
        identity: &Identity,
        in_flight: usize,
        waiting: usize,
        point: &Point,
        failures: Vec<Failure>,
    ) -> String {
        self.reports += 1;
        let figures = Figures {
            in_flight: point.in_flight,
            waiting: point.waiting,
            counts: self.interval.before.clone(),
            accounts: self.accounts.clone(),
            failures,
        };
        OwnReport { identity, number: self.reports, in_flight, waiting, figures }.text()
    }

    /// Takes over the reports of all replicas, if Redis has answered, and adds the point of all. Returns
    /// whether their past is to be read.
    pub fn take_reports(
        &mut self,
        reports: Option<Reports>,
        this: &Identity,
        own: &Point,
        at: Timestamp,
    ) -> bool {
        let Some(all) = &mut self.all else { return false };
        let Some(reports) = reports else {
            self.unreachable_since.get_or_insert(at);
            self.peers.clear();
            all.push(own.clone(), NanoDollars::default());
            return false;
        };
        self.unreachable_since = None;
        let others = self.peers.update(&reports.texts, this, at);
        let mut point = own.clone();
        point.in_flight += others.in_flight;
        point.waiting += others.waiting;
        point.counts.add(&others.counts);
        let (point, minute) = all.push(point, others.late.cost);
        if reports.is_first && self.has_past {
            let Today { since, cost, .. } = all.today;
            let text = |point: &Point| PastPoint::text(point, cost, since);
            self.unsent.insert(Window::Hour.key(), text(&point));
            self.unsent.extend(minute.map(|minute| (Window::Day.key(), text(&minute))));
        }
        !self.has_past
    }

    /// Puts the points that were read from Redis before the own ones.
    pub fn fill(&mut self, read: &[(Window, Vec<String>)], now: Timestamp) {
        let Some(all) = self.all.as_mut().filter(|_| !self.has_past) else { return };
        for (window, texts) in read {
            let (points, today) = PastPoint::read(texts, *window, now);
            all.rings.fill(*window, points);
            if let Some((cost, since)) = today.filter(|_| *window == Window::Hour) {
                all.today.add_earlier(cost, since);
            }
        }
        self.has_past = true;
    }
}

impl Interval {
    fn new(began: Instant, before: Counts) -> Self {
        Self { began, before, reads: 0, in_flight: 0.0, waiting: 0.0 }
    }
}

impl Summed {
    fn new(since: Timestamp) -> Self {
        Self { rings: Rings::default(), today: Today::new(since) }
    }

    /// Adds a point of ten seconds, and a cost that only counts in the day. Returns it, and the point of the
    /// minute that it completes.
    fn push(&mut self, point: Point, late: NanoDollars) -> (Arc<Point>, Option<Arc<Point>>) {
        self.today = self.today.at(point.at);
        let cost = point.counts.cost.saturating_add(late);
        self.today.cost = self.today.cost.saturating_add(cost);
        self.rings.push(point)
    }
}

impl Today {
    fn new(since: Timestamp) -> Self {
        Self { since, ends: since + until_midnight(since), cost: NanoDollars::default() }
    }

    /// The same at another time: another day if `now` is not on this one. The clock may also be set back.
    fn at(self, now: Timestamp) -> Self {
        let ends = now + until_midnight(now);
        if ends == self.ends {
            return self;
        }
        // Nothing is known of an earlier day.
        let since = if now < self.ends { now } else { last_midnight(now) };
        Self { since, ends, cost: NanoDollars::default() }
    }

    /// Adds what was spent on the same day before this process knew of it.
    fn add_earlier(&mut self, cost: NanoDollars, since: Timestamp) {
        if since < self.since && since + until_midnight(since) == self.ends {
            self.cost = self.cost.saturating_add(cost);
            self.since = since;
        }
    }
}
