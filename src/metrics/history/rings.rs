//! Ring buffers of points.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Point, Window};
use crate::metrics::totals::Counts;

/// The points of both windows.
#[derive(Debug, Default)]
pub(super) struct Rings {
    hour: VecDeque<Arc<Point>>,
    day: VecDeque<Arc<Point>>,
    /// The minute that is not over.
    minute: Minute,
}

/// The points of a minute that is not over.
#[derive(Debug, Default)]
struct Minute {
    duration: Duration,
    /// In flight and waiting, each times the seconds.
    in_flight: f64,
    waiting: f64,
    counts: Counts,
}

impl Rings {
    /// Adds a point of ten seconds. Returns it, and the point of the minute that it completes.
    pub fn push(&mut self, point: Point) -> (Arc<Point>, Option<Arc<Point>>) {
        let minute = self.minute.add(&point);
        let point = Arc::new(point);
        push(&mut self.hour, Window::Hour, Arc::clone(&point));
        if let Some(minute) = &minute {
            push(&mut self.day, Window::Day, Arc::clone(minute));
        }
        (point, minute)
    }

    /// The points of a window, oldest first.
    pub fn points(&self, window: Window) -> Vec<Arc<Point>> {
        self.of(window).iter().cloned().collect()
    }

    /// The points of a window after a time, until `now`. Points may be later if the clock was set back.
    pub fn since(
        &self,
        window: Window,
        time: Timestamp,
        now: Timestamp,
    ) -> impl Iterator<Item = &Arc<Point>> {
        let newest = self.of(window).iter().rev();
        newest.take_while(move |point| point.at > time).filter(move |point| point.at <= now)
    }

    /// Puts points of another process before the own ones.
    pub fn fill(&mut self, window: Window, past: Vec<Point>) {
        let points = match window {
            Window::Hour => &mut self.hour,
            Window::Day => &mut self.day,
        };
        let begins = points.front().map(|point| point.at);
        let mut filled = VecDeque::with_capacity(window.points());
        let earlier = |point: &Point| begins.is_none_or(|begins| point.at < begins);
        past.into_iter()
            .filter(earlier)
            .for_each(|point| push(&mut filled, window, Arc::new(point)));
        points.drain(..).for_each(|point| push(&mut filled, window, point));
        *points = filled;
    }

    fn of(&self, window: Window) -> &VecDeque<Arc<Point>> {
        match window {
            Window::Hour => &self.hour,
            Window::Day => &self.day,
        }
    }
}

/// Adds to a ring of a window. The oldest value is dropped if the ring is full.
pub(super) fn push<T>(ring: &mut VecDeque<T>, window: Window, value: T) {
    if ring.is_empty() {
        ring.reserve_exact(window.points());
    }
    if ring.len() >= window.points() {
        ring.pop_front();
    }
    ring.push_back(value);
}

impl Minute {
    /// Adds a point. Returns the minute once it is over.
    fn add(&mut self, point: &Point) -> Option<Arc<Point>> {
        let seconds = point.duration.as_secs_f64();
        self.duration += point.duration;
        self.in_flight += point.in_flight * seconds;
        self.waiting += point.waiting * seconds;
        self.counts.add(&point.counts);
        if self.duration < Window::Day.step() {
            return None;
        }
        let Self { duration, in_flight, waiting, counts } = std::mem::take(self);
        let seconds = duration.as_secs_f64();
        Some(Arc::new(Point {
            at: point.at,
            duration,
            in_flight: in_flight / seconds,
            limit: point.limit,
            waiting: waiting / seconds,
            counts,
        }))
    }
}
