//! What pages are made of. The classes are those of `assets/dashboard.css`.

use jiff::Timestamp;
use maud::{Markup, html};

use super::format;
use super::layout::csrf;
use super::sessions::Session;

/// How a state is to be seen. The colour says nothing that is not written too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
    Idle,
}

impl Tone {
    /// The class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Idle => "idle",
        }
    }

    /// The tone of a share in percent: the fuller, the worse.
    pub fn of_share(percent: u64) -> Self {
        match percent {
            0..80 => Self::Good,
            80..100 => Self::Warn,
            _ => Self::Bad,
        }
    }
}

/// A state in a word.
pub(super) fn chip(tone: Tone, text: &str) -> Markup {
    html! { span.chip.(tone.class()) { (text) } }
}

/// A figure with its name.
pub(super) fn tile(label: &str, value: Markup, note: Markup) -> Markup {
    html! {
        div.tile {
            p.label { (label) }
            p.value { (value) }
            p.note { (note) }
        }
    }
}

/// A part of a bar: its class, and its share of the whole.
pub(super) type Share = (&'static str, u64);

/// A horizontal bar of parts of a whole. `text` says what it shows.
pub(super) fn bar(label: &str, text: &str, parts: &[Share], whole: u64) -> Markup {
    let whole = whole.max(1) as f64;
    let mut from = 0.0;
    let parts = parts.iter().map(|(class, part)| {
        let width = (*part as f64 / whole * 100.0).min(100.0 - from);
        from += width;
        (*class, format!("{:.2}", from - width), format!("{width:.2}"))
    });
    let parts: Vec<_> = parts.collect();
    html! {
        div.bar role="meter" aria-label=(label) aria-valuemin="0" aria-valuemax="100"
            aria-valuenow=(format!("{from:.0}")) aria-valuetext=(text) {
            svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                @for (class, x, width) in &parts {
                    rect class=(class) x=(x) y="0" width=(width) height="1" {}
                }
            }
        }
    }
}

/// What is shown where there is nothing yet.
pub(super) fn empty(title: &str, text: Markup) -> Markup {
    html! {
        div.empty {
            svg.icon viewBox="0 0 24 24" aria-hidden="true" focusable="false" {
                path d="M4 13h4l2 3h4l2-3h4M4 13l3-8h10l3 8v6H4z" {}
            }
            p.title { (title) }
            p { (text) }
        }
    }
}

/// Names with values.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts { div { dt { (name) } dd { (value) } } }
        }
    }
}

/// A button that sends a form without other fields.
pub(super) fn button(session: &Session, action: &str, class: &str, label: &str) -> Markup {
    html! {
        form method="post" action=(action) data-key=(action) {
            (csrf(session))
            button class=(class) type="submit" { (label) }
        }
    }
}

/// A button that asks first.
pub(super) struct Confirmed<'a> {
    /// Where the form is sent.
    pub action: &'a str,
    /// Its hidden fields.
    pub fields: &'a [(&'a str, &'a str)],
    /// What the button says.
    pub summary: &'a str,
    /// What is asked.
    pub question: &'a str,
    /// What the button behind the question says.
    pub label: &'a str,
}

impl Confirmed<'_> {
    /// The button.
    pub fn render(&self, session: &Session) -> Markup {
        html! {
            details.confirm data-key=(self.action) {
                summary { (self.summary) }
                form.popover method="post" action=(self.action) {
                    p { (self.question) }
                    (csrf(session))
                    @for (name, value) in self.fields {
                        input type="hidden" name=(name) value=(value);
                    }
                    button.danger type="submit" { (self.label) }
                }
            }
        }
    }
}

/// Links to the pages before and after page `number` of a list, whose addresses `address` writes.
pub(super) fn pages(number: usize, has_more: bool, address: impl Fn(usize) -> String) -> Markup {
    html! {
        nav.pages aria-label="Pages of the list" {
            @if number > 0 { a.button href=(address(number - 1)) { "Previous" } }
            @if has_more { a.button href=(address(number + 1)) { "Next" } }
        }
    }
}

/// The parameters of page `number` of a list, after its other parameters and without a question mark.
pub(super) fn list_query(others: &str, number: usize) -> String {
    match (others, number) {
        (others, 0) => others.to_owned(),
        ("", number) => format!("page={number}"),
        (others, number) => format!("{others}&page={number}"),
    }
}

/// A moment, and how long ago it was.
pub(super) fn when(time: Timestamp, now: Timestamp) -> Markup {
    html! {
        time datetime=(time) title=(format::moment(time)) { (format::ago(time, now)) }
    }
}

/// A text from outside.
pub(super) fn outside(text: &str) -> Markup {
    html! { bdi { (format::outside(text)) } }
}
