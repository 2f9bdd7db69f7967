//! What happened to the calls of a generation, as steps in words while it happens, and as bars afterwards.

use std::time::Duration;

use maud::{Markup, html};

use crate::dashboard::format;
use crate::dashboard::parts::{Tone, chip};
use crate::dispatch::{TimelineEntry, TimelineEvent};
use crate::gemini::Usage;
use crate::limits::HeldBy;

/// A step in words.
pub(super) fn step(entry: &TimelineEntry) -> Markup {
    let (tone, text) = match &entry.event {
        TimelineEvent::Enqueued { model, tier, .. } => {
            (Tone::Idle, format!("Waits for admission: {model}, {} tier", tier.name()))
        }
        TimelineEvent::Admitted { held_by: None } => (Tone::Good, "Admitted".to_owned()),
        TimelineEvent::Admitted { held_by: Some(limit) } => {
            (Tone::Good, format!("Admitted; it waited for {}", limit_name(*limit)))
        }
        TimelineEvent::Refused { code } => (Tone::Bad, format!("Not admitted: {code}")),
        TimelineEvent::Sent { attempt, .. } => (Tone::Busy, format!("Attempt {attempt} is sent")),
        TimelineEvent::Accepted => (Tone::Good, "Gemini answers".to_owned()),
        TimelineEvent::Ended { outcome: "success", usage, .. } => {
            (Tone::Good, format!("The answer is complete: {}", tokens(usage)))
        }
        TimelineEvent::Ended { outcome, status, .. } => {
            let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
            (Tone::Bad, format!("The attempt failed: {outcome}{status}"))
        }
        TimelineEvent::RetryIn(wait) => {
            (Tone::Warn, format!("It is sent again in {}", format::duration(*wait)))
        }
    };
    html! {
        li.(tone.class()) {
            span.time { (format::duration(entry.after)) }
            span { (format::outside(&text)) }
        }
    }
}

fn limit_name(limit: HeldBy) -> &'static str {
    match limit {
        HeldBy::Quota => "a quota",
        HeldBy::Semaphore => "the semaphore",
        HeldBy::AdaptiveLimit => "the adaptive limit",
        HeldBy::ConcurrencyLimit => "the concurrency limit",
    }
}

fn tokens(usage: &Usage) -> String {
    let output = usage.output_tokens.saturating_add(usage.thinking_tokens);
    format!("{} tokens in, {} out", format::whole(usage.prompt_tokens), format::whole(output))
}

/// A stretch of time in which one thing happened.
#[derive(Debug, PartialEq)]
struct Stretch {
    label: String,
    tone: Tone,
    from: Duration,
    until: Duration,
}

/// The stretches of a timeline: waits, attempts, and pauses before the next attempt.
fn stretches(entries: &[TimelineEntry], end: Duration) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    let mut attempts = 0;
    for entry in entries {
        let label = match &entry.event {
            TimelineEvent::Enqueued { .. } => "Queue".to_owned(),
            TimelineEvent::Sent { .. } => {
                attempts += 1;
                format!("Attempt {attempts}")
            }
            TimelineEvent::RetryIn(_) => "Pause".to_owned(),
            TimelineEvent::Admitted { .. } | TimelineEvent::Refused { .. } => {
                close(&mut all, entry.after, None);
                continue;
            }
            TimelineEvent::Ended { outcome, .. } => {
                let tone = if *outcome == "success" { Tone::Good } else { Tone::Bad };
                close(&mut all, entry.after, Some(tone));
                continue;
            }
            TimelineEvent::Accepted => continue,
        };
        // A pause ends when the call is enqueued again.
        close(&mut all, entry.after, None);
        let tone = match entry.event {
            TimelineEvent::Sent { .. } => Tone::Busy,
            _ => Tone::Warn,
        };
        all.push(Stretch { label, tone, from: entry.after, until: Duration::MAX });
    }
    close(&mut all, end, None);
    all
}

fn close(all: &mut [Stretch], at: Duration, tone: Option<Tone>) {
    if let Some(last) = all.last_mut().filter(|last| last.until == Duration::MAX) {
        last.until = at;
        last.tone = tone.unwrap_or(last.tone);
    }
}

/// The timeline of a generation that has ended, and what it cost.
pub(super) fn summary(entries: &[TimelineEntry], end: Duration, usage: &Usage) -> Markup {
    let all = stretches(entries, end);
    let waited: Duration =
        all.iter().filter(|one| one.label == "Queue").map(|one| one.until - one.from).sum();
    let attempts = entries.iter().filter(|one| matches!(one.event, TimelineEvent::Sent { .. }));
    let retries = entries.iter().filter(|one| matches!(one.event, TimelineEvent::RetryIn(_)));
    let figure = |label: &str, value: String| {
        html! { div.tile { p.label { (label) } p.value { (value) } } }
    };
    html! {
        div.tiles.small {
            (figure("Total", format::duration(end)))
            (figure("Queue wait", format::duration(waited)))
            (figure("Attempts", attempts.count().to_string()))
            (figure("Retries", retries.count().to_string()))
            (figure("Tokens in", format::whole(usage.prompt_tokens)))
            (figure("Tokens out",
                format::whole(usage.output_tokens.saturating_add(usage.thinking_tokens))))
            (figure("Cost", format::dollars(usage.cost.dollars())))
        }
        ol.timeline aria-label="Timeline" {
            @for stretch in &all { (bar(stretch, end)) }
        }
    }
}

fn bar(stretch: &Stretch, end: Duration) -> Markup {
    let Stretch { label, tone, from, until } = stretch;
    let share = |time: Duration| time.as_secs_f64() / end.as_secs_f64().max(1e-6) * 100.0;
    let width = share(until.saturating_sub(*from)).max(0.4);
    let from_left = share(*from).min(100.0 - width);
    html! {
        li {
            span.name { (label) }
            svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                rect class=(tone.class()) x=(format!("{from_left:.2}")) y="0"
                    width=(format!("{width:.2}")) height="1" {}
            }
            span.time { (format::duration(until.saturating_sub(*from))) }
        }
    }
}

/// How a generation ended, in a word.
pub(super) fn outcome(error: Option<&str>) -> Markup {
    match error {
        None => chip(Tone::Good, "answered"),
        Some(code) => chip(Tone::Bad, code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemini::{Model, ServiceTier};

    fn at(millis: u64, event: TimelineEvent) -> TimelineEntry {
        TimelineEntry { after: Duration::from_millis(millis), event }
    }

    fn enqueued() -> TimelineEvent {
        let model = Model::parse("gemini-3.5-flash-lite").unwrap();
        TimelineEvent::Enqueued { kind: "chat", model, tier: ServiceTier::Standard }
    }

    fn ended(outcome: &'static str) -> TimelineEvent {
        TimelineEvent::Ended { outcome, status: None, answered_by: None, usage: Usage::default() }
    }

    #[test]
    fn waits_attempts_and_pauses_follow_each_other() {
        let sent = |attempt| TimelineEvent::Sent { attempt, tier: ServiceTier::Standard };
        let entries = [
            at(0, enqueued()),
            at(100, TimelineEvent::Admitted { held_by: Some(HeldBy::Quota) }),
            at(110, sent(1)),
            at(300, ended("upstream_unavailable")),
            at(300, TimelineEvent::RetryIn(Duration::from_millis(500))),
            at(800, enqueued()),
            at(800, TimelineEvent::Admitted { held_by: None }),
            at(810, sent(2)),
            at(900, TimelineEvent::Accepted),
            at(1000, ended("success")),
        ];
        let found = stretches(&entries, Duration::from_millis(1010));
        let found: Vec<_> = found
            .iter()
            .map(|one| (&*one.label, one.tone, one.from.as_millis(), one.until.as_millis()))
            .collect();
        assert_eq!(
            found,
            [
                ("Queue", Tone::Warn, 0, 100),
                ("Attempt 1", Tone::Bad, 110, 300),
                ("Pause", Tone::Warn, 300, 800),
                ("Queue", Tone::Warn, 800, 800),
                ("Attempt 2", Tone::Good, 810, 1000),
            ]
        );
        let html = summary(&entries, Duration::from_millis(1010), &Usage::default()).into_string();
        for text in ["1.0 s", "100 ms", "Attempt 2", "width=\"49.50\""] {
            assert!(html.contains(text), "{text}: {html}");
        }
    }

    #[test]
    fn what_is_under_way_lasts_until_now() {
        let found = stretches(&[at(0, enqueued())], Duration::from_secs(2));
        assert_eq!(found[0].until, Duration::from_secs(2));
        let refused = [at(0, enqueued()), at(5, TimelineEvent::Refused { code: "queue_full" })];
        let found = stretches(&refused, Duration::from_secs(2));
        assert_eq!(found[0].until, Duration::from_millis(5));
    }
}
