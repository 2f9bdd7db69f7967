//! The last hour and the last day, in memory.
//!
//! A [`Sampler`](super::Sampler) takes a sample every ten seconds. The hour has a point for each, the day a
//! point for each minute. If the limits are shared, the replicas report to each other through Redis, and
//! their figures are summed. The points of all together are also kept in Redis, for replicas that start
//! later.
//!
//! | file | what is in it |
//! |---|---|
//! | `rings` | ring buffers of points |
//! | `accounts` | the state of the accounts |
//! | `account_rings` | ring buffers of the accounts |
//! | `past` | the form in which points are kept in Redis |
//! | `state` | all figures, and how a sample changes them |
//!
//! # Memory
//! A point takes about 900 bytes, so the own points and those of all replicas take 3.3 MB when a day is
//! over. An account takes 160 KB, and at most 64 are kept: 10 MB. All together at most 14 MB, and about 5 MB
//! with ten accounts.

mod account_rings;
mod accounts;
mod past;
mod rings;
mod state;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::failures::{Failure, Failures};
use super::replicas::{Identity, Replica, Scope};
use super::totals::{Counts, Totals};
use crate::limits::{Limiter, Report, StoreUnavailable};
use crate::pacific::WallClock;
use crate::prices::NanoDollars;
use state::State;

pub use accounts::{
    AccountPoint, AccountSeries, AccountState, Concurrency, MAX_ACCOUNTS, PauseReason, Paused,
    PayerState,
};

/// How long Redis may take for a part of a sample.
const STORE_TIMEOUT: Duration = Duration::from_secs(4);

/// A stretch of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// The last hour, in steps of ten seconds.
    Hour,
    /// The last day, in steps of a minute.
    Day,
}

impl Window {
    /// Both windows.
    pub const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// The length of an interval.
    pub const fn step(self) -> Duration {
        match self {
            Self::Hour => Duration::from_secs(10),
            Self::Day => Duration::from_secs(60),
        }
    }

    /// The most points.
    pub const fn points(self) -> usize {
        match self {
            Self::Hour => 360,
            Self::Day => 1440,
        }
    }

    /// The length of the window.
    const fn length(self) -> Duration {
        Duration::from_secs(self.step().as_secs() * self.points() as u64)
    }

    /// Its name in Redis.
    const fn key(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// The figures of a window.
#[derive(Debug, Clone)]
pub struct Series {
    /// The window.
    pub window: Window,
    /// Whose figures are summed.
    pub scope: Scope,
    /// The points, oldest first. There are fewer at first.
    pub points: Vec<Arc<Point>>,
}

/// The figures of an interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// When the interval ended.
    pub at: Timestamp,
    /// Its length, for rates. It is longer than the step if the process was suspended.
    pub duration: Duration,
    /// Calls in flight, on average.
    pub in_flight: f64,
    /// The most calls that may be in flight.
    pub limit: usize,
    /// Requests that wait for admission, on average. A batch counts as one.
    pub waiting: f64,
    /// What was counted in the interval.
    pub counts: Counts,
}

/// The figures of this moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Now {
    /// Whose figures are summed.
    pub scope: Scope,
    /// Calls in flight.
    pub in_flight: usize,
    /// The most calls that may be in flight.
    pub limit: usize,
    /// Requests that wait for admission. A batch counts as one.
    pub waiting: usize,
}

/// What calls have cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// In the last ten minutes.
    pub ten_minutes: NanoDollars,
    /// Since midnight in California, as far as it is known here.
    pub today: NanoDollars,
    /// Since when `today` counts: midnight, or the start of the first replica after it.
    pub today_since: Timestamp,
}

/// The past and the present of this process and, if the limits are shared, of all replicas.
#[derive(Debug)]
pub struct History {
    identity: Identity,
    limiter: Arc<Limiter>,
    totals: Arc<Totals>,
    failures: Arc<Failures>,
    clock: Arc<dyn WallClock>,
    state: Mutex<State>,
}

impl History {
    pub(super) fn new(
        limiter: Arc<Limiter>,
        totals: Arc<Totals>,
        failures: Arc<Failures>,
        clock: Arc<dyn WallClock>,
    ) -> Self {
        let now = Instant::now();
        let since = clock.at(now);
        let identity = Identity {
            id: format!("{:016x}", fastrand::u64(..)).into(),
            host: rustix::system::uname().nodename().to_string_lossy().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            since,
        };
        let state = Mutex::new(State::new(now, since, limiter.store().is_shared()));
        Self { identity, limiter, totals, failures, clock, state }
    }

    /// The figures of a window, summed over all replicas.
    pub fn series(&self, window: Window) -> Series {
        let state = self.state();
        Series { window, scope: state.scope(), points: state.shown().points(window) }
    }

    /// The figures of this moment. Those of other replicas are up to ten seconds old.
    pub fn now(&self) -> Now {
        let limit = self.limiter.occupancy().limit;
        let (in_flight, waiting) = self.occupancy();
        let state = self.state();
        let (others_in_flight, others_waiting) = state.peers.occupancy();
        Now {
            scope: state.scope(),
            in_flight: in_flight.saturating_add(others_in_flight),
            limit,
            waiting: waiting.saturating_add(others_waiting),
        }
    }

    /// What calls have cost.
    pub fn spent(&self) -> Spent {
        self.state().spent(self.clock.at(Instant::now()))
    }

    /// The accounts that Gemini has accepted, of all replicas, by payer and model. At most
    /// [`MAX_ACCOUNTS`].
    pub fn accounts(&self) -> Vec<AccountState> {
        let state = self.state();
        accounts::merge(&state.accounts, state.peers.accounts())
    }

    /// The same of this process alone.
    pub(super) fn own_accounts(&self) -> Vec<AccountState> {
        self.state().accounts.clone()
    }

    /// The payers with a limit on what they spend in ten minutes, as this process knows them. At most
    /// [`MAX_ACCOUNTS`].
    pub fn payers(&self) -> Vec<PayerState> {
        self.state().payers.clone()
    }

    /// The past of an account; `None` if the history does not have it.
    pub fn account(&self, payer: &str, model: &str, window: Window) -> Option<AccountSeries> {
        self.state().account_rings.series(payer, model, window)
    }

    /// At most `most` calls that failed, of all replicas, the latest first, each with the replica's id. Of
    /// other replicas, there are at most the latest 25.
    pub fn failures(&self, most: usize) -> Vec<(Arc<str>, Failure)> {
        let own = self.failures.latest(most).into_iter();
        let mut all: Vec<_> = own.map(|failure| (Arc::clone(&self.identity.id), failure)).collect();
        let state = self.state();
        all.extend(state.peers.failures().map(|(id, failure)| (Arc::clone(id), failure.clone())));
        drop(state);
        all.sort_by_key(|(_, failure)| Reverse(failure.at));
        all.truncate(most);
        all
    }

    /// The replicas, this process first, then those that were started first.
    pub fn replicas(&self) -> Vec<Replica> {
        let Identity { id, host, version, since } = self.identity.clone();
        let (in_flight, waiting) = self.occupancy();
        let last_seen = self.clock.at(Instant::now());
        let own =
            Replica { id, host, version, since, last_seen, in_flight, waiting, is_this: true };
        let others = self.state().peers.replicas();
        [own].into_iter().chain(others).collect()
    }

    /// Whose figures are summed.
    pub fn scope(&self) -> Scope {
        self.state().scope()
    }

    /// Reads how many calls are in flight and how many requests wait, for the averages of an interval.
    pub(super) fn watch(&self) {
        let (in_flight, waiting) = self.occupancy();
        self.state().watch(in_flight, waiting);
    }

    /// Ends an interval: adds its points, and exchanges reports with the other replicas. Trouble with Redis
    /// only means that the figures of others are missing. A [`Sampler`](super::Sampler) calls this every ten
    /// seconds.
    pub async fn sample(&self) {
        self.watch();
        let now = Instant::now();
        let at = self.clock.at(now);
        let (counts, limit) = (self.totals.read(), self.limiter.occupancy().limit);
        let point = self.state().end_interval(now, at, counts, limit);
        self.sample_accounts(at).await;
        if self.limiter.store().is_shared() {
            self.exchange_reports(at, &point).await;
        }
        let accounts = self.accounts();
        self.state().account_rings.push(&accounts, at, point.duration);
    }

    /// Updates the accounts of this process. What cannot be read stays as it was.
    async fn sample_accounts(&self, at: Timestamp) {
        let accounts = accounts::sample(&self.limiter, at);
        let sample = try_join(accounts, accounts::sample_payers(&self.limiter, at));
        if let Ok(Ok((accounts, payers))) = timeout(STORE_TIMEOUT, sample).await {
            let mut state = self.state();
            (state.accounts, state.payers) = (accounts, payers);
        }
    }

    async fn exchange_reports(&self, at: Timestamp, point: &Arc<Point>) {
        let (in_flight, waiting) = self.occupancy();
        let failures = self.failures.latest(usize::MAX);
        let report = {
            let mut state = self.state();
            let text = state.report(&self.identity, in_flight, waiting, point, failures);
            Report { text, points: std::mem::take(&mut state.unsent) }
        };
        let store = self.limiter.store();
        let reports = timeout(STORE_TIMEOUT, store.report(report)).await.ok().and_then(Result::ok);
        let lacks_past = self.state().take_reports(reports, &self.identity, point, at);
        if !lacks_past {
            return;
        }
        let read = Window::ALL.map(async |window| {
            Ok::<_, StoreUnavailable>((window, store.read_past(window.key()).await?))
        });
        if let Ok(Ok(read)) = timeout(STORE_TIMEOUT, try_join_all(read)).await {
            self.state().fill(&read, at);
        }
    }

    /// The calls that this process has in flight, and the requests that wait here.
    fn occupancy(&self) -> (usize, usize) {
        (self.limiter.store().held_here(), self.limiter.occupancy().waiting)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
