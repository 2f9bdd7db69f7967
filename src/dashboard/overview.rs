//! How busy the gateway is, and what it costs: now, and in the last hour or day.

use std::sync::Arc;

use jiff::Timestamp;
use maud::{Markup, html};

use super::access::View;
use super::accounts::gauge;
use super::chart::{Chart, Line};
use super::failure::PageError;
use super::format;
use super::history::{
    PerSample, choice, each, per_minute, quantile, query, scope, span, window_at,
};
use super::layout::Nav;
use super::page::{Address, Fragment, Page};
use super::parts::{Tone, bar, chip, empty, outside, tile, when};
use crate::limits::QuotaKind;
use crate::metrics::{AccountState, Distribution, Failure, OutcomeClass, Point, Series, Window};

/// How many accounts, and how many failures, the page shows.
const ACCOUNTS: usize = 6;
const FAILURES: usize = 5;

/// The time over which the tiles count, in steps of ten seconds.
const TEN_MINUTES: usize = 60;
const MINUTE: usize = 6;

/// The first page.
pub(super) struct OverviewPage {
    window: Window,
    charts: PerSample,
}

impl Page for OverviewPage {
    fn at(address: &Address) -> Option<Self> {
        Some(Self { window: window_at(address), charts: PerSample::default() })
    }

    fn nav(&self) -> Nav {
        Nav::Overview
    }

    fn title(&self) -> String {
        "Overview".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard".to_owned()
    }

    fn query(&self) -> String {
        query(self.window).to_owned()
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let history = &view.site.gateway.history;
        let hour = history.series(Window::Hour);
        let accounts = history.accounts();
        let failures = history.failures(FAILURES);
        let shown = match self.window {
            Window::Hour => hour.clone(),
            Window::Day => history.series(Window::Day),
        };
        let last_sample = shown.points.last().map(|point| point.at);
        Ok(vec![
            Fragment::new("now", now(view, &hour)),
            Fragment::new("quotas", quotas(&accounts)),
            Fragment::new("charts", self.charts.get(last_sample, "", || charts(&shown, &accounts))),
            Fragment::new("failures", latest(failures.iter().map(|(_, failure)| failure))),
        ])
    }

    fn body(&self, _: &View, fragments: &[Fragment]) -> Markup {
        let [now, quotas, charts, failures] = fragments else { return html! {} };
        html! {
            (now) (quotas)
            div.heading { h2 { "History" } (choice("/dashboard", self.window)) }
            (charts) (failures)
        }
    }
}

/// The points of the last steps.
fn last(series: &Series, steps: usize) -> &[Arc<Point>] {
    &series.points[series.points.len().saturating_sub(steps)..]
}

/// What was counted in all of these points. Figures of other replicas may be any number.
fn sum(points: &[Arc<Point>], count: impl Fn(&Point) -> u64) -> u64 {
    points.iter().fold(0, |sum, point| sum.saturating_add(count(point)))
}

fn now(view: &View, hour: &Series) -> Markup {
    let gateway = &view.site.gateway;
    let (now, spent) = (gateway.history.now(), gateway.history.spent());
    let state = match gateway.limiter.store().reach() {
        Ok(()) => chip(Tone::Good, "healthy"),
        Err(_) => chip(Tone::Bad, "shared limits unavailable"),
    };
    html! {
        p.state role="status" { (state) span.note { (scope(now.scope)) } }
        div.tiles {
            (in_flight(now.in_flight as u64, now.limit as u64))
            (tile("Waiting", html! { (format::whole(now.waiting as u64)) }, html! { "requests in the queue" }))
            (rates(hour))
            (refusals(hour))
            (durations("Queue wait", hour, |point| &point.counts.queue_wait))
            (durations("Latency", hour, |point| &point.counts.latency))
            (tile(
                "Spend today",
                html! { (format::dollars(spent.today.dollars())) },
                html! {
                    (format::dollars(spent.ten_minutes.dollars())) " in ten minutes; today since "
                    (format::clock(spent.today_since))
                },
            ))
        }
    }
}

fn in_flight(in_flight: u64, limit: u64) -> Markup {
    let of_limit = format!("of {}", format::whole(limit));
    let text = format!("{} {of_limit}", format::whole(in_flight));
    tile(
        "In flight",
        html! { (format::whole(in_flight)) small { (of_limit) } },
        bar("Calls in flight", &text, &[("busy", in_flight)], limit),
    )
}

/// Requests and tokens of the last minute.
fn rates(hour: &Series) -> Markup {
    let minute = last(hour, MINUTE);
    let calls = sum(minute, |point| point.counts.calls.total());
    let input = sum(minute, |point| point.counts.input_tokens);
    let output = sum(minute, |point| point.counts.output_tokens);
    html! {
        (tile("Calls a minute", html! { (format::whole(calls)) }, html! { "in the last minute" }))
        (tile(
            "Tokens a minute",
            html! { (format::short(input as f64)) small { "in" } },
            html! { (format::short(output as f64)) " out" },
        ))
    }
}

fn refusals(hour: &Series) -> Markup {
    let of = |class| sum(last(hour, TEN_MINUTES), |point| point.counts.calls.of(class));
    let (quota, load) = (of(OutcomeClass::RateLimited), of(OutcomeClass::Overloaded));
    tile(
        "Refusals, ten minutes",
        html! { (format::whole(quota.saturating_add(load))) },
        html! { (format::whole(quota)) " for quota, " (format::whole(load)) " for load" },
    )
}

/// Quantiles of the last ten minutes.
fn durations(name: &str, hour: &Series, of: fn(&Point) -> &Distribution) -> Markup {
    let mut sum = Distribution::default();
    last(hour, TEN_MINUTES).iter().for_each(|point| sum.add(of(point)));
    let text = |share| sum.quantile(share).map_or_else(|| "–".to_owned(), format::duration);
    tile(
        name,
        html! { (text(0.5)) small { "p50" } },
        html! { "p95 " (text(0.95)) ", p99 " (text(0.99)) },
    )
}

/// The quotas that are used most, of the accounts that use theirs most.
fn quotas(accounts: &[AccountState]) -> Markup {
    let mut fullest: Vec<_> = accounts.iter().collect();
    fullest.sort_by_key(|account| std::cmp::Reverse(fullness(account)));
    let hidden = fullest.len().saturating_sub(ACCOUNTS);
    html! {
        section.card {
            div.row { h2 { "Quotas" } a href="/dashboard/accounts" { "All accounts" } }
            @if fullest.is_empty() {
                (empty("No accounts yet", html! { "An account is listed once Gemini has answered it." }))
            } @else {
                ul.accounts {
                    @for account in fullest.into_iter().take(ACCOUNTS) { li { (quotas_of(account)) } }
                }
                @if hidden > 0 { p.hint { (hidden) " more accounts use less." } }
            }
        }
    }
}

fn quotas_of(account: &AccountState) -> Markup {
    let limited = account.quotas.iter().filter(|(_, usage)| usage.limit.is_some());
    let is_limited = limited.clone().next().is_some();
    html! {
        div.row {
            h3 { (outside(&account.model)) " " span.note { (outside(&account.payer)) } }
            @if account.paused.is_some() { (chip(Tone::Bad, "paused")) }
            @else if account.waiting > 0 { (chip(Tone::Warn, &format!("{} wait", account.waiting))) }
        }
        @if is_limited {
            div.gauges { @for (kind, usage) in limited { (gauge(kind, usage, None)) } }
        } @else {
            p.hint { "No quota is known: none is set, and Gemini has named none." }
        }
    }
}

/// How full the fullest quota is, in percent.
fn fullness(account: &AccountState) -> u64 {
    let shares = account.quotas.iter().filter_map(|(_, usage)| {
        Some(format::percent(usage.used.saturating_add(usage.reserved), usage.limit?))
    });
    shares.max().unwrap_or_default()
}

/// The sum of the limits of a quota over the accounts in use, if each has one, as a line. Paused accounts are
/// not in use, and if none is, all others count.
fn common_limit(
    accounts: &[AccountState],
    kind: QuotaKind,
    series: &Series,
) -> Option<Line<'static>> {
    let open = accounts.iter().filter(|account| account.paused.is_none());
    let is_in_use = |account: &&AccountState| account.quotas[kind].used > 0 || account.waiting > 0;
    let are_any_in_use = open.clone().any(|account| is_in_use(&account));
    let counted = open.filter(|account| is_in_use(account) || !are_any_in_use);
    let limits: Vec<_> = counted.map(|account| account.quotas[kind].limit).collect();
    let sum = limits.iter().map(|limit| limit.map(|limit| limit as f64)).sum::<Option<f64>>();
    let sum = sum.filter(|_| !limits.is_empty())?;
    Some(each("quota", series, |_| sum))
}

fn charts(series: &Series, accounts: &[AccountState]) -> Markup {
    let latest = series.points.last().map(|point| point.at);
    let span = span(series.window, latest);
    let limit = |kind| common_limit(accounts, kind, series);
    let chart =
        |title, unit, text, lines, limit| Chart { title, unit, span, text, lines, limit }.render();
    let quantiles = |of: fn(&Point) -> &Distribution| {
        [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)]
            .map(|(name, share)| quantile(name, series, share, of))
    };
    let calls = per_minute("calls", series, |point| point.counts.calls.total() as f64);
    let tokens = per_minute("input", series, |point| point.counts.input_tokens as f64);
    let output = per_minute("output", series, |point| point.counts.output_tokens as f64);
    let refused =
        |name, class| per_minute(name, series, move |point| point.counts.calls.of(class) as f64);
    let short: fn(f64) -> String = format::short;
    html! {
        div.grid {
            (chart("In flight", "calls", short, vec![each("in flight", series, |point| point.in_flight)],
                Some(each("limit", series, |point| point.limit as f64))))
            (chart("Queue", "requests that wait", short,
                vec![each("waiting", series, |point| point.waiting)], None))
            (chart("Calls", "a minute", short, vec![calls], limit(QuotaKind::RequestsPerMinute)))
            (chart("Tokens", "a minute", short, vec![tokens, output],
                limit(QuotaKind::InputTokensPerMinute)))
            (chart("Queue wait", "of calls in a minute", format::seconds,
                quantiles(|point| &point.counts.queue_wait).into(), None))
            (chart("Latency", "of calls in a minute", format::seconds,
                quantiles(|point| &point.counts.latency).into(), None))
            (chart("Refusals", "a minute", short, vec![
                refused("for quota", OutcomeClass::RateLimited),
                refused("for load", OutcomeClass::Overloaded),
            ], None))
            (chart("Spend", "a minute", format::dollars,
                vec![per_minute("spend", series, |point| point.counts.cost.dollars())], None))
        }
    }
}

fn latest<'a>(failures: impl Iterator<Item = &'a Failure>) -> Markup {
    let now = Timestamp::now();
    let failures: Vec<_> = failures.collect();
    html! {
        section.card {
            div.row { h2 { "Recent failures" } a href="/dashboard/failures" { "All failures" } }
            @if failures.is_empty() {
                (empty("No failures", html! { "Every call had an answer." }))
            } @else {
                ul.feed {
                    @for failure in failures {
                        li {
                            code { (outside(&failure.code)) }
                            @if failure.count > 1 { strong { "× " (format::whole(failure.count)) } }
                            span { (outside(&failure.model)) }
                            (when(failure.at, now))
                        }
                    }
                }
            }
        }
    }
}
