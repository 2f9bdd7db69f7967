//! The task that takes samples for the history.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::history::{History, Window};

/// How often the calls in flight are read for the averages of an interval.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Takes a sample every ten seconds until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the sampling"]
pub struct Sampler {
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Sampler {
    /// Starts to sample.
    pub fn start(history: &Arc<History>) -> Self {
        let watched = Arc::clone(history);
        let watch = async move {
            let mut ticks = ticks(WATCH_EVERY);
            loop {
                ticks.tick().await;
                watched.watch();
            }
        };
        let sampled = Arc::clone(history);
        let sample = async move {
            let mut ticks = ticks(Window::Hour.step());
            loop {
                ticks.tick().await;
                sampled.sample().await;
            }
        };
        let tasks = [tokio::spawn(watch), tokio::spawn(sample)];
        Self { _tasks: tasks.map(AbortOnDropHandle::new) }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
