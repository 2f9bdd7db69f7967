//! Charts over time, as SVG.
//!
//! They are drawn here because plotters and its relatives write colours, fonts and sizes into every
//! element: their charts have one colour scheme, and their text shrinks with the screen. Here style comes
//! from the style sheet, so that charts follow the colour scheme, and all text is HTML beside the drawing.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

use super::format;

/// The size of the drawing, in units that are stretched to its place.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;

/// How many points are drawn at most. More would be less than a pixel apart.
const MAX_POINTS: usize = 360;

/// A gap between two points of more steps than this is not drawn over.
const GAP: f64 = 3.5;

/// What is drawn.
pub(super) struct Chart<'a> {
    pub title: &'a str,
    /// What a value means, written after the title.
    pub unit: &'a str,
    pub span: Span,
    /// How values are written.
    pub text: fn(f64) -> String,
    pub lines: Vec<Line<'a>>,
    /// A limit, if there is one that holds for what is drawn.
    pub limit: Option<Line<'a>>,
}

/// The stretch of time that a chart shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub until: Timestamp,
    pub length: Duration,
    /// The time between two points.
    pub step: Duration,
}

/// A value over time.
pub(super) struct Line<'a> {
    pub name: &'a str,
    /// Oldest first.
    pub points: Vec<(Timestamp, f64)>,
}

impl Span {
    /// Where a moment is on the axis: 0 for its beginning and 1 for its end.
    fn share(self, at: Timestamp) -> f64 {
        let age = self.until.duration_since(at).as_secs_f64();
        1.0 - age / self.length.as_secs_f64()
    }

    /// The labels of the axis, from left to right.
    fn labels(self) -> [String; 4] {
        [3, 2, 1, 0].map(|thirds| match thirds {
            0 => "now".to_owned(),
            thirds => format!("−{}", format::duration(self.length * thirds / 3)),
        })
    }
}

impl Line<'_> {
    fn latest(&self) -> Option<f64> {
        self.points.last().map(|(_, value)| *value)
    }

    fn highest(&self) -> f64 {
        self.points
            .iter()
            .map(|(_, value)| *value)
            .filter(|value| value.is_finite())
            .fold(0.0, f64::max)
    }

    /// The highest of each few points, so that no peak is lost.
    fn thinned(&self) -> Vec<(Timestamp, f64)> {
        let group = self.points.len().div_ceil(MAX_POINTS).max(1);
        let groups = self.points.chunks(group).filter_map(|group| {
            let (at, _) = *group.last()?;
            Some((at, group.iter().map(|(_, value)| *value).fold(0.0, f64::max)))
        });
        groups.collect()
    }

    /// The path of the line, in pieces between gaps. `top` is the value at the upper edge.
    fn path(&self, span: Span, top: f64) -> Vec<Vec<(f64, f64)>> {
        let points = self.thinned();
        let group = self.points.len().div_ceil(MAX_POINTS).max(1);
        let widest = GAP * group as f64 * span.step.as_secs_f64() / span.length.as_secs_f64();
        let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
        let mut last = f64::NEG_INFINITY;
        for (at, value) in points {
            let share = span.share(at);
            if !(0.0..=1.001).contains(&share) || !value.is_finite() {
                continue;
            }
            if share - last > widest || pieces.is_empty() {
                pieces.push(Vec::new());
            }
            last = share;
            let y = HEIGHT - (value / top).clamp(0.0, 1.0) * HEIGHT;
            if let Some(piece) = pieces.last_mut() {
                piece.push((share.min(1.0) * WIDTH, y));
            }
        }
        pieces
    }
}

/// The commands that draw a piece.
fn commands(piece: &[(f64, f64)]) -> String {
    let mut path = String::with_capacity(piece.len() * 12);
    for (index, (x, y)) in piece.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        write!(path, "{command}{x:.1} {y:.1}").expect("a text is written to memory");
    }
    if let [(x, y)] = piece {
        write!(path, "L{:.1} {y:.1}", x + 1.0).expect("a text is written to memory");
    }
    path
}

/// The same as an area down to the axis.
fn area(piece: &[(f64, f64)]) -> String {
    let (Some((first, _)), Some((last, _))) = (piece.first(), piece.last()) else {
        return String::new();
    };
    format!("{}L{last:.1} {HEIGHT}L{first:.1} {HEIGHT}Z", commands(piece))
}

/// A round number that is at least as large, of which the half is round too.
fn round_up(value: f64) -> f64 {
    if !(value > 0.0 && value.is_finite()) {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.iter().map(|step| step * power).find(|round| *round >= value * 0.999).unwrap_or(value)
}

impl Chart<'_> {
    /// Draws the chart.
    pub fn render(&self) -> Markup {
        let all = self.lines.iter().chain(&self.limit);
        // A line at the upper edge would be cut.
        let top = round_up(all.map(Line::highest).fold(0.0, f64::max) * 1.04);
        let text = self.text;
        let is_empty = self.lines.iter().all(|line| line.points.is_empty());
        html! {
            figure.chart {
                figcaption { h3 { (self.title) } span.note { (self.unit) } }
                (self.legend())
                div.plot {
                    ol.axis.y aria-hidden="true" {
                        @for share in [1.0, 0.5, 0.0] { li { (text(top * share)) } }
                    }
                    (self.drawing(top))
                    @if is_empty { p.none { "Nothing yet" } }
                }
                ol.axis.x aria-hidden="true" { @for label in self.span.labels() { li { (label) } } }
            }
        }
    }

    fn drawing(&self, top: f64) -> Markup {
        let pieces = |line: &Line<'_>| line.path(self.span, top);
        html! {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                aria-label=(self.description()) {
                path.rule d={ "M0 0H" (WIDTH) "M0 " (HEIGHT / 2.0) "H" (WIDTH) "M0 " (HEIGHT) "H" (WIDTH) } {}
                @if let [only] = &*self.lines {
                    @for piece in pieces(only) { path.area d=(area(&piece)) {} }
                }
                @for (index, line) in self.lines.iter().enumerate() {
                    @for piece in pieces(line) {
                        path class={ "line series-" (index + 1) } d=(commands(&piece)) {}
                    }
                }
                @if let Some(line) = &self.limit {
                    @for piece in pieces(line) { path.line.limit d=(commands(&piece)) {} }
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        let value = |line: &Line<'_>| line.latest().map_or_else(|| "–".to_owned(), self.text);
        html! {
            ul.legend {
                @for (index, line) in self.lines.iter().enumerate() {
                    li class={ "series-" (index + 1) } { (line.name) " " strong { (value(line)) } }
                }
                @if let Some(line) = &self.limit { li.limit { (line.name) " " strong { (value(line)) } } }
            }
        }
    }

    /// What the drawing shows, in words.
    fn description(&self) -> String {
        let mut text = format!("{}, last {}", self.title, format::duration(self.span.length));
        for line in self.lines.iter().chain(&self.limit) {
            let latest = line.latest().map_or_else(|| "unknown".to_owned(), self.text);
            let highest = (self.text)(line.highest());
            write!(text, "; {} now {latest}, at most {highest}", line.name)
                .expect("a text is written to memory");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    const SPAN: Span = Span {
        until: Timestamp::constant(1_000_100, 0),
        length: Duration::from_secs(100),
        step: Duration::from_secs(10),
    };

    #[test]
    fn a_line_is_drawn_from_left_to_right_with_its_gaps() {
        let points =
            vec![(at(-50), 9.0), (at(0), 0.0), (at(10), 5.0), (at(20), 10.0), (at(90), 10.0)];
        let line = Line { name: "x", points };
        let pieces = line.path(SPAN, 10.0);
        assert_eq!(pieces.len(), 2, "{pieces:?}");
        assert_eq!(commands(&pieces[0]), "M0.0 100.0L60.0 50.0L120.0 0.0");
        assert_eq!(commands(&pieces[1]), "M540.0 0.0L541.0 0.0");
        assert_eq!(area(&pieces[0]), "M0.0 100.0L60.0 50.0L120.0 0.0L120.0 100L0.0 100Z");
    }

    #[test]
    fn each_line_has_the_stroke_of_its_series() {
        let line = |name| Line { name, points: vec![(at(0), 1.0), (at(10), 2.0)] };
        let chart = Chart {
            title: "Latency",
            unit: "",
            span: SPAN,
            text: |value| value.to_string(),
            lines: vec![line("p50"), line("p95")],
            limit: Some(line("limit")),
        };
        let drawing = chart.drawing(2.0).into_string();
        // A browser reads only the first attribute of a name.
        for class in ["line series-1", "line series-2", "line limit"] {
            assert!(drawing.contains(&format!("<path class=\"{class}\" d=")), "{drawing}");
        }
    }

    #[test]
    fn many_points_become_few_without_losing_a_peak() {
        let points = (0..1440).map(|n| (at(n), if n == 701 { 50.0 } else { 1.0 }));
        let line = Line { name: "x", points: points.collect() };
        let thinned = line.thinned();
        assert_eq!(thinned.len(), MAX_POINTS);
        assert!(thinned.iter().any(|(_, value)| *value == 50.0));
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (value, round) in [
            (0.0, 1.0),
            (0.3, 0.3),
            (1.0, 1.0),
            (1.1, 1.2),
            (2.2, 2.4),
            (62.0, 80.0),
            (2080.0, 2400.0),
            (f64::NAN, 1.0),
        ] {
            assert!((round_up(value) - round).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }

    #[test]
    fn a_chart_says_in_words_what_it_shows_and_escapes_names() {
        let line = Line { name: "<b>", points: vec![(at(90), 3.0), (at(100), 2.0)] };
        let limit = Some(Line { name: "Limit", points: vec![(at(100), 5.0)] });
        let text = format::short;
        let chart = Chart { title: "Calls", unit: "", span: SPAN, text, lines: vec![line], limit };
        let svg = chart.render().into_string();
        assert!(svg.contains(
            "aria-label=\"Calls, last 1 min 40 s; &lt;b&gt; now 2, at most 3; Limit now 5, at most 5\""
        ), "{svg}");
        assert!(!svg.contains("<b>") && !svg.contains("style="));
    }
}
