//! The quota of requests per day.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::pacific::Calendar;

/// By how much this machine's clock may be ahead of Google's.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// What left since midnight in California, where Gemini's day begins.
#[derive(Debug)]
pub(super) struct Day {
    calendar: Calendar,
    began: Instant,
    ends: Instant,
    sent: u64,
    closed_until: Instant,
}

impl Day {
    /// The day that is when it is `wall` at `now`.
    pub fn new(wall: Timestamp, now: Instant) -> Self {
        let calendar = Calendar { wall, instant: now };
        let ends = calendar.midnight_after(now);
        Self { calendar, began: now, ends, sent: 0, closed_until: now }
    }

    /// Begins a new day when the old one is over.
    pub fn expire(&mut self, now: Instant) {
        if now >= self.ends {
            self.began = self.ends;
            self.ends = self.calendar.midnight_after(now);
            self.sent = 0;
        }
    }

    /// How many requests left today.
    pub fn sent(&self) -> u64 {
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

    /// So many requests leave now.
    pub fn depart(&mut self, requests: u64) {
        self.sent += requests;
    }

    /// So many requests that left at `left_at` do not count.
    pub fn take_back(&mut self, left_at: Instant, requests: u64) {
        if left_at >= self.began {
            self.sent = self.sent.saturating_sub(requests);
        }
    }

    /// Gemini refused what left at `left_at` because that day was used up.
    pub fn close(&mut self, left_at: Instant) {
        self.closed_until = self.closed_until.max(end_of_used_up(self.calendar, left_at));
    }
}

/// Until when nothing goes if Gemini refused what left at `left_at` because the day was used up.
pub fn end_of_used_up(calendar: Calendar, left_at: Instant) -> Instant {
    // What left in the first seconds of a day may have arrived in the last of the one before: a
    // whole day must not be closed for it.
    let midnight = calendar.midnight_after(left_at - CLOCK_SKEW);
    if midnight > left_at { midnight } else { midnight + CLOCK_SKEW }
}
