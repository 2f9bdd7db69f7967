//! The minute that is counted here. It is a little longer than Gemini's.

use std::time::Duration;

use tokio::time::Instant;

/// A minute and its margins, all in proportion to its length.
///
/// Google does not document how it counts. Calls that are sent by these rules are accepted by a
/// sliding window, by minutes of the clock, and by a token bucket that holds one second's worth (`C`,
/// in requests or tokens; the quota's rate is `r`). This holds although the time from here to
/// Google varies between calls by a jitter of up to `J`:
///
/// * *Windows.* Two calls that arrive within a minute were sent within a minute and `J`. So a call
///   counts for [`window`](Self::window), which is 0.5 % (300 ms) longer than a minute, far more than
///   `J`. A minute of the clock is one position of a sliding window.
/// * *Bucket.* Let `X` be the backlog: what was sent and has not drained at the rate `r`. It is known
///   here. Arrivals can be ahead of it by `J`, so Google's bucket lacks at most `X + r·J`. The
///   bucket accepts a call of cost `c` while it lacks at most `C − min(c, C)`. So a call is sent when
///   `X ≤ C − min(c, C) − r·J`; a call larger than `C` when the backlog has been zero for `J`. The
///   backlog drains here at the window's rate, 0.5 % slower than at Google.
///
/// `J` is [`jitter`](Self::jitter), 30 ms, or half of what a call leaves of the second, whichever is
/// more: 470 ms at 1000 requests a minute. The larger margin costs nothing, because it makes bursts
/// smaller and leaves the rate. The other half of the second compensates for calls that are sent
/// late.
///
/// The usable share is limit / window, 60 / 60.3 = 99.5 % of the quota, for calls that cost less than a
/// second's worth. A call that costs about that or more, as every request does at 60 or fewer a
/// minute, also waits for `J`: at 5 requests a minute one is sent every 12.06 + 0.03 s (99.3 %), at
/// 60 one every 1.005 + 0.03 s (96.6 %, the least). Of tokens, a window can have a rest into which the
/// next call does not fit, half a call on average, as at Google. With calls of up to 4 % of the quota
/// 96.5 % are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Minute {
    /// How long a call counts after it is sent.
    pub window: Duration,
    /// The same in microseconds.
    window_micros: f64,
    /// The time in which a full burst becomes available: a second of the window.
    pub burst: Duration,
    /// The least jitter to allow for: how much faster than others a call can arrive.
    pub jitter: Duration,
    /// The width of the grid's cells. Calls of one cell are counted together.
    cell: Duration,
    /// The start of the grid.
    pub start: Instant,
}

impl Minute {
    /// A minute of this length, on a grid that begins at `start`.
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

    /// The time in which an amount becomes available at a limit, in whole microseconds as Redis's clock
    /// counts. So replicas that share a budget count as one process does.
    pub fn time_for(&self, amount: u64, limit: u64) -> Duration {
        let share = amount as f64 / limit.max(1) as f64;
        let micros = self.window_micros * share;
        Duration::from_micros(micros.ceil() as u64)
    }

    /// The number of the cell that contains an instant.
    pub fn cell(&self, at: Instant) -> u128 {
        at.saturating_duration_since(self.start).as_nanos() / self.cell.as_nanos()
    }
}
