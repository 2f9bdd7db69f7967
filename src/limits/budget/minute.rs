//! The minute as it is counted here: a little longer than Gemini's.

use std::time::Duration;

use tokio::time::Instant;

/// A minute and the margins around it, all in proportion to its length.
///
/// Google does not say how it counts. What leaves here is never refused by a window that slides,
/// by minutes that start on the clock, nor by a token bucket that saves up one second's worth
/// (`C`, in requests or tokens; the quota's rate is `r`), although a call is under way for a
/// time that differs from call to call by a jitter of up to `J`:
///
/// * *Windows.* Two calls that arrive within a minute left within a minute and `J`. So what left
///   counts for [`window`](Self::window), 0.5 % longer than a minute: 300 ms, far more than `J`.
///   A minute on the clock is one of the windows that slide.
/// * *Bucket.* Let `X` be the backlog, what has left and has not drained yet at the rate `r`; it
///   is known here. What arrived can be ahead of that by `J`, so that Google's bucket lacks at
///   most `X + r·J`. It takes a call of cost `c` while it lacks no more than `C − min(c, C)`. So a
///   call leaves when `X ≤ C − min(c, C) − r·J`; a large one when the backlog has been gone for
///   `J`. The backlog drains here at the window's rate, 0.5 % slower than at Google's.
///
/// `J` is [`jitter`](Self::jitter), 30 ms, or half of what a call leaves of the second, whichever
/// is more: at 1000 requests a minute 470 ms. That costs nothing, for it makes bursts smaller
/// and not the rate lower; the other half of the second makes up for calls that leave late.
///
/// What can be used is limit / window, 60 / 60.3 = 99.5 % of the quota, where a call costs less
/// than a second's worth. One that costs about that or more, as every request does where 60 or
/// fewer a minute are allowed, has to wait for `J` as well: of 5 requests a minute one leaves
/// every 12.06 + 0.03 s (99.3 %), of 60 one every 1.005 + 0.03 s (96.6 %, the least). Of tokens, a
/// window can have some left in which the next call does not fit, half a call's on average, as at
/// Google's end: with calls of up to 4 % of the quota 96.5 % are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Minute {
    /// For how long what has left counts.
    pub window: Duration,
    /// The same in microseconds.
    window_micros: f64,
    /// The time in which what can be saved up flows in: a second of the window.
    pub burst: Duration,
    /// By how much less than others a call can be under way, at least.
    pub jitter: Duration,
    /// What leaves within one cell of a grid of this width is counted as one.
    cell: Duration,
    /// Where the grid begins.
    pub start: Instant,
}

impl Minute {
    /// The minute that takes `length`, counted from `start`.
    pub fn new(length: Duration, start: Instant) -> Self {
        let window = length + length / 200;
        Self {
            window,
            window_micros: window.as_micros() as f64,
            burst: window / 60,
            jitter: length / 2000,
            cell: (length / 1024).max(Duration::from_nanos(1)),
            start,
        }
    }

    /// In what time an amount flows in at a limit: in whole microseconds, as Redis's clock counts, so
    /// that replicas that share a budget count as one alone does.
    pub fn time_for(&self, amount: u64, limit: u64) -> Duration {
        let share = amount as f64 / limit.max(1) as f64;
        let micros = self.window_micros * share;
        Duration::from_micros(micros.ceil() as u64)
    }

    /// The number of the cell an instant lies in.
    pub fn cell(&self, at: Instant) -> u128 {
        at.saturating_duration_since(self.start).as_nanos() / self.cell.as_nanos()
    }
}
