//! The figures of the past, as charts need them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, PreEscaped, html};

use super::chart::{Line, Span};
use super::page::Address;
use crate::metrics::{Distribution, Point, Scope, Series, Window};

/// The time over which rates and quantiles are taken.
const SMOOTHED: Duration = Duration::from_secs(60);

/// Which stretch of the past a page shows.
pub(super) fn window_at(address: &Address) -> Window {
    match address.parameter("window") {
        Some("day") => Window::Day,
        _ => Window::Hour,
    }
}

/// The parameter of a page that shows a window.
pub(super) fn query(window: Window) -> &'static str {
    match window {
        Window::Hour => "",
        Window::Day => "window=day",
    }
}

/// Links to the same page with another window.
pub(super) fn choice(path: &str, window: Window) -> Markup {
    let link = |to: Window, address: &str, label: &str| {
        html! { a href=(address) aria-current=[(to == window).then_some("true")] { (label) } }
    };
    html! {
        div.choice role="group" aria-label="Time shown" {
            (link(Window::Hour, path, "Last hour"))
            (link(Window::Day, &format!("{path}?window=day"), "Last day"))
        }
    }
}

/// The stretch of time of a window that ends with its last point.
pub(super) fn span(window: Window, last: Option<Timestamp>) -> Span {
    Span {
        until: last.unwrap_or_else(Timestamp::now),
        length: window.step() * window.points() as u32,
        step: window.step(),
    }
}

/// Whose figures are summed, in words.
pub(super) fn scope(scope: Scope) -> String {
    match scope {
        Scope::Alone => "This process has its own limits.".to_owned(),
        Scope::Replicas { count: 1 } => "The only replica.".to_owned(),
        Scope::Replicas { count } => format!("{count} replicas together."),
        Scope::Unreachable { .. } => {
            "Only this replica: Redis, which has the figures of the others, is unavailable."
                .to_owned()
        }
    }
}

/// What is rendered anew only after each sample.
#[derive(Debug, Default)]
pub(super) struct PerSample(Mutex<(Option<Timestamp>, HashMap<String, String>)>);

impl PerSample {
    /// What was rendered under this name for the sample of this time, or what is rendered now.
    pub fn get(
        &self,
        sample: Option<Timestamp>,
        name: &str,
        render: impl FnOnce() -> Markup,
    ) -> Markup {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, rendered) = &mut *kept;
        if *of != sample {
            *of = sample;
            rendered.clear();
        }
        if let Some(html) = rendered.get(name) {
            return PreEscaped(html.clone());
        }
        let markup = render();
        if sample.is_some() {
            rendered.insert(name.to_owned(), markup.0.clone());
        }
        markup
    }
}

/// The points of a series, each with those of the minute before it.
fn minutes(series: &Series) -> impl Iterator<Item = &[Arc<Point>]> {
    let steps = (SMOOTHED.as_secs() / series.window.step().as_secs()).max(1) as usize;
    let points = &series.points;
    (1..=points.len()).map(move |end| &points[end.saturating_sub(steps)..end])
}

/// What was counted a minute.
pub(super) fn per_minute<'a>(
    name: &'a str,
    series: &Series,
    count: impl Fn(&Point) -> f64,
) -> Line<'a> {
    let points = minutes(series).filter_map(|points| {
        let time: f64 = points.iter().map(|point| point.duration.as_secs_f64()).sum();
        let counted: f64 = points.iter().map(|point| count(point)).sum();
        let last = points.last()?;
        (time > 0.0).then(|| (last.at, counted * 60.0 / time))
    });
    Line { name, points: points.collect() }
}

/// A value of each point.
pub(super) fn each<'a>(name: &'a str, series: &Series, value: impl Fn(&Point) -> f64) -> Line<'a> {
    Line { name, points: series.points.iter().map(|point| (point.at, value(point))).collect() }
}

/// A quantile of the durations of the last minute, in seconds. Where there were none, there is no point.
pub(super) fn quantile<'a>(
    name: &'a str,
    series: &Series,
    share: f64,
    durations: impl Fn(&Point) -> &Distribution,
) -> Line<'a> {
    let points = minutes(series).filter_map(|points| {
        let mut sum = Distribution::default();
        points.iter().for_each(|point| sum.add(durations(point)));
        Some((points.last()?.at, sum.quantile(share)?.as_secs_f64()))
    });
    Line { name, points: points.collect() }
}
