//! The usage of the quotas per day.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cost;
use crate::pacific::{Calendar, WallClock};

/// How far this machine's clock may be ahead of Google's.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// How often the wall clock is read, and how far it may deviate before the day follows it.
const RECHECK: Duration = Duration::from_secs(1);

/// What was sent since midnight in California, when Gemini's day begins (Gemini API docs, rate limits).
///
/// Times are kept on tokio's clock, which stops while the machine is suspended and is never set. So the
/// wall clock is read once a second while the day is in use, and the day follows it.
#[derive(Debug)]
pub(super) struct Day {
    clock: Arc<dyn WallClock>,
    /// The wall clock when the day last followed it.
    calendar: Calendar,
    /// When the wall clock was last read.
    read_at: Instant,
    began: Instant,
    ends: Instant,
    sent: Cost,
    closed_until: Instant,
}

impl Day {
    /// The day of the wall clock at `now`.
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

    /// Begins a new day if the old one is over. Returns whether it did.
    pub fn expire(&mut self, now: Instant) -> bool {
        if now < self.ends && now.saturating_duration_since(self.read_at) < RECHECK {
            return false;
        }
        let was_set = self.follow_clock(now);
        if now < self.ends {
            return false;
        }
        // Calls sent before the clock was seen to be ahead were counted in the previous day.
        self.began = if was_set { now } else { self.ends };
        self.ends = self.calendar.midnight_after(now);
        self.sent = Cost::default();
        true
    }

    /// Moves the end of the day, and of a used-up day, by as much as the wall clock was set or advanced
    /// while the machine was suspended. Returns whether it did.
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
            // What was sent still counts: it may have been today.
            let was_closed = self.closed_until > now;
            self.ends = self.calendar.midnight_after(now);
            self.closed_until = if was_closed { self.ends } else { now };
        }
        true
    }

    /// What was sent today.
    pub fn sent(&self) -> Cost {
        self.sent
    }

    /// When the day ends.
    pub fn ends(&self) -> Instant {
        self.ends
    }

    /// When the day that Gemini reported as used up ends; in the past if there is none.
    pub fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// Counts a cost as sent.
    pub fn start(&mut self, cost: Cost) {
        self.sent += cost;
    }

    /// Replaces what was `counted` for a call sent at `sent_at` by its `actual` cost.
    pub fn correct(&mut self, sent_at: Instant, counted: Cost, actual: Cost) {
        if sent_at >= self.began {
            self.sent = (self.sent + actual).saturating_sub(counted);
        }
    }

    /// Gemini refused a call sent at `sent_at` because that day is used up.
    pub fn close(&mut self, sent_at: Instant) {
        self.close_until(end_of_used_up(self.calendar, sent_at));
    }

    /// Refuses calls until then.
    pub fn close_until(&mut self, until: Instant) {
        self.closed_until = self.closed_until.max(until);
    }

    /// Forgets that the day is used up.
    pub fn reopen(&mut self, now: Instant) {
        self.closed_until = self.closed_until.min(now);
    }

    /// When this day began to be counted.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Adds what another account has sent today since then.
    pub fn take_over(&mut self, spent: Cost, since: Instant) {
        self.start(spent);
        self.began = self.began.min(since);
    }

    /// Removes and returns what was sent today.
    pub fn take_sent(&mut self) -> Cost {
        std::mem::take(&mut self.sent)
    }
}

/// When calls are sent again after Gemini refused one sent at `sent_at` because the day was used up.
pub(in crate::limits) fn end_of_used_up(calendar: Calendar, sent_at: Instant) -> Instant {
    // A call sent in the first seconds of a day may have arrived in the last of the previous day. It
    // must not close the whole new day.
    let midnight = calendar.midnight_after(sent_at - CLOCK_SKEW);
    if midnight > sent_at { midnight } else { midnight + CLOCK_SKEW }
}
