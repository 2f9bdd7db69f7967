//! What is spent in a day.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cost;
use crate::pacific::{Calendar, WallClock};

/// By how much this machine's clock may be ahead of Google's.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// How often the wall clock is read, and by how much it may differ from what was expected before
/// the day follows it.
const RECHECK: Duration = Duration::from_secs(1);

/// What left since midnight in California, where Gemini's day begins.
///
/// Moments are kept on tokio's clock, which stands still while the machine is suspended and is not
/// set. So the wall clock is read once a second while the day is used, and the day follows it.
#[derive(Debug)]
pub(super) struct Day {
    clock: Arc<dyn WallClock>,
    /// What the wall clock showed when the day last followed it.
    calendar: Calendar,
    /// When the wall clock was last read.
    read_at: Instant,
    began: Instant,
    ends: Instant,
    sent: Cost,
    closed_until: Instant,
}

impl Day {
    /// The day that it is by the wall clock at `now`.
    pub fn new(clock: Arc<dyn WallClock>, now: Instant) -> Self {
        let calendar = Calendar { wall: clock.at(now), instant: now };
        let ends = calendar.midnight_after(now);
        Self {
            clock,
            calendar,
            read_at: now,
            began: now,
            ends,
            sent: Cost::default(),
            closed_until: now,
        }
    }

    /// Begins a new day when the old one is over, and says whether it has.
    pub fn expire(&mut self, now: Instant) -> bool {
        if now < self.ends && now.saturating_duration_since(self.read_at) < RECHECK {
            return false;
        }
        let was_set = self.follow_clock(now);
        if now < self.ends {
            return false;
        }
        // What left before the clock was seen to be ahead was counted in the day before.
        self.began = if was_set { now } else { self.ends };
        self.ends = self.calendar.midnight_after(now);
        self.sent = Cost::default();
        true
    }

    /// Moves the ends of the day and of its closing by as much as the wall clock was set, or went
    /// on while the machine was suspended. Says whether it did.
    fn follow_clock(&mut self, now: Instant) -> bool {
        self.read_at = now;
        let wall = self.clock.at(now);
        let ahead = wall.duration_since(self.calendar.wall_at(now));
        let step = ahead.unsigned_abs();
        if step < RECHECK {
            return false;
        }
        tracing::debug!(seconds = ahead.as_secs(), "the wall clock was set, or the machine slept");
        self.calendar = Calendar { wall, instant: now };
        if ahead.is_positive() {
            let earlier = |at: Instant| at.checked_sub(step).unwrap_or(now).max(self.began);
            (self.ends, self.closed_until) = (earlier(self.ends), earlier(self.closed_until));
        } else {
            // What was sent counts on: it may have been today.
            let was_closed = self.closed_until > now;
            self.ends = self.calendar.midnight_after(now);
            self.closed_until = if was_closed { self.ends } else { now };
        }
        true
    }

    /// What left today.
    pub fn sent(&self) -> Cost {
        self.sent
    }

    /// When the day ends.
    pub fn ends(&self) -> Instant {
        self.ends
    }

    /// Until when nothing goes because Gemini said that the day is used up; in the past where
    /// it did not.
    pub fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// So much leaves now.
    pub fn start(&mut self, cost: Cost) {
        self.sent += cost;
    }

    /// What left at `left_at` and was counted as `counted` turns out to be `actual`.
    pub fn correct(&mut self, left_at: Instant, counted: Cost, actual: Cost) {
        if left_at >= self.began {
            self.sent = (self.sent + actual).saturating_sub(counted);
        }
    }

    /// Gemini refused what left at `left_at` because that day was used up.
    pub fn close(&mut self, left_at: Instant) {
        self.close_until(end_of_used_up(self.calendar, left_at));
    }

    /// Nothing goes until then.
    pub fn close_until(&mut self, until: Instant) {
        self.closed_until = self.closed_until.max(until);
    }

    /// Takes Gemini's word back that the day is used up.
    pub fn reopen(&mut self, now: Instant) {
        self.closed_until = self.closed_until.min(now);
    }

    /// Since when this day is counted.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Counts what another account has sent since then, today.
    pub fn take_over(&mut self, spent: Cost, since: Instant) {
        self.start(spent);
        self.began = self.began.min(since);
    }

    /// Takes out what was sent today.
    pub fn take_sent(&mut self) -> Cost {
        std::mem::take(&mut self.sent)
    }
}

/// Until when nothing goes if Gemini refused what left at `left_at` because the day was used up.
pub(in crate::limits) fn end_of_used_up(calendar: Calendar, left_at: Instant) -> Instant {
    // What left in the first seconds of a day may have arrived in the last of the one before: a
    // whole day must not be closed for it.
    let midnight = calendar.midnight_after(left_at - CLOCK_SKEW);
    if midnight > left_at { midnight } else { midnight + CLOCK_SKEW }
}
