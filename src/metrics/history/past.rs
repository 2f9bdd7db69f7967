//! The form in which the points of all replicas are kept in Redis, for replicas that start later.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Point, Window};
use crate::metrics::totals::Counts;
use crate::prices::NanoDollars;

/// A point, with what all replicas have spent on its day by then.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PastPoint {
    at: Timestamp,
    millis: u64,
    in_flight: f64,
    limit: usize,
    waiting: f64,
    counts: Counts,
    today: u64,
    today_since: Timestamp,
}

impl PastPoint {
    /// The text of a point.
    pub fn text(point: &Point, today: NanoDollars, today_since: Timestamp) -> String {
        let past = Self {
            at: point.at,
            millis: u64::try_from(point.duration.as_millis()).unwrap_or(u64::MAX),
            in_flight: point.in_flight,
            limit: point.limit,
            waiting: point.waiting,
            counts: point.counts.clone(),
            today: today.0,
            today_since,
        };
        serde_json::to_string(&past).unwrap_or_default()
    }

    /// Reads the points of a window. Unreadable ones and those outside of it are skipped, and numbers are
    /// bounded: another program may have written them. Returns also what the last one says of its day.
    pub fn read(
        texts: &[String],
        window: Window,
        now: Timestamp,
    ) -> (Vec<Point>, Option<(NanoDollars, Timestamp)>) {
        let mut points: Vec<Point> = Vec::new();
        let mut today = None;
        let begins = now - window.length();
        for text in texts {
            let Ok(past) = serde_json::from_str::<Self>(text) else { continue };
            let last = points.last().map_or(begins, |point| point.at);
            if past.at <= last || past.at > now {
                continue;
            }
            let average = |number: f64| number.clamp(0.0, 1e9);
            points.push(Point {
                at: past.at,
                // At least a millisecond, so that rates are finite.
                duration: Duration::from_millis(past.millis.clamp(1, 86_400_000)),
                in_flight: average(past.in_flight),
                limit: past.limit,
                waiting: average(past.waiting),
                counts: past.counts,
            });
            today = Some((NanoDollars(past.today), past.today_since.min(now)));
        }
        (points, today)
    }
}
