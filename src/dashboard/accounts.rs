//! The accounts: each key and model with its quotas, its adaptive limit, and what holds it back.

use std::cmp::Reverse;

use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};

use super::access::{Action, View};
use super::chart::{Chart, Line};
use super::failure::PageError;
use super::format;
use super::history::{PerSample, choice, query, scope, span, window_at};
use super::layout::Nav;
use super::page::{Address, Fragment, Notice, Page, outcome};
use super::parts::{Confirmed, Tone, bar, chip, empty, facts, list_query, outside, pages};
use crate::api::ApiError;
use crate::limits::{QuotaKind, QuotaUsage, Resource, Source, Window as QuotaWindow};
use crate::metrics::{
    AccountSeries, AccountState, Concurrency, MAX_ACCOUNTS, PauseReason, Paused, PayerState, Window,
};
use crate::prices::NanoDollars;

/// How many accounts a page has.
const PAGE: usize = 10;

/// How many payers are shown with their spend.
const PAYERS: usize = 12;

/// A page of the accounts.
pub(super) struct AccountsPage {
    window: Window,
    /// How many pages are before it.
    number: usize,
    charts: PerSample,
}

impl AccountsPage {
    fn new(window: Window, number: usize) -> Self {
        Self { window, number, charts: PerSample::default() }
    }
}

impl Page for AccountsPage {
    fn at(address: &Address) -> Option<Self> {
        Some(Self::new(window_at(address), address.page(MAX_ACCOUNTS)?))
    }

    fn nav(&self) -> Nav {
        Nav::Accounts
    }

    fn title(&self) -> String {
        "Accounts".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard/accounts".to_owned()
    }

    fn query(&self) -> String {
        list_query(query(self.window), self.number)
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let history = &view.site.gateway.history;
        let mut accounts = history.accounts();
        // The server's own come before those of callers, of which there may be many.
        accounts.sort_by_key(|account| !has_label(&account.payer));
        let shown = accounts.iter().skip(self.number * PAGE).take(PAGE);
        let shown: Vec<_> = shown.collect();
        let mut fragments = vec![
            Fragment::new("payers", payers(&history.payers())),
            Fragment::new("none", html! { @if shown.is_empty() { (no_accounts()) } }),
        ];
        // Each by itself, because most of them change seldom.
        fragments.extend((0..PAGE).map(|index| {
            let account = shown.get(index).map(|account| self.account(account, view));
            Fragment::new(format!("account-{index}"), account.unwrap_or_default())
        }));
        let has_more = accounts.len() > (self.number + 1) * PAGE;
        let address =
            |number| format!("{}?{}", self.path(), list_query(query(self.window), number));
        fragments.push(Fragment::new("pages", pages(self.number, has_more, address)));
        Ok(fragments)
    }

    fn body(&self, view: &View, fragments: &[Fragment]) -> Markup {
        html! {
            div.heading {
                p.note { (scope(view.site.gateway.history.scope())) " Figures are up to ten seconds old." }
                (choice("/dashboard/accounts", self.window))
            }
            @for fragment in fragments { (fragment) }
        }
    }
}

fn no_accounts() -> Markup {
    html! {
        section.card {
            (empty("No accounts yet", html! {
                "An account is a key with a model. It is listed once Gemini has answered it."
            }))
        }
    }
}

/// Whether a payer is shown by a label, and not by the beginning of its key's SHA-256.
fn has_label(payer: &str) -> bool {
    payer.len() != 8 || !payer.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What payers with a limit on their spend have spent: those that are closest to it.
fn payers(payers: &[PayerState]) -> Markup {
    let mut closest: Vec<_> = payers.iter().collect();
    closest.sort_by_key(|payer| {
        let QuotaUsage { limit, used, reserved } = payer.spend;
        let share = format::percent(used.saturating_add(reserved), limit.unwrap_or_default());
        Reverse((payer.paused_until.is_some(), share))
    });
    let hidden = closest.len().saturating_sub(PAYERS);
    html! {
        @if !payers.is_empty() {
            section.card {
                h2 { "Spend of ten minutes, over all models" }
                div.gauges {
                    @for payer in closest.into_iter().take(PAYERS) {
                        div {
                            (gauge(QuotaKind::SpendPerTenMinutes, &payer.spend, Some(&payer.payer)))
                            @if payer.waiting > 0 { span.sub { (payer.waiting) " wait for it" } }
                            @if let Some(until) = payer.paused_until {
                                span.sub { "Paused for " (left(until)) ", until " (moment(until)) }
                            }
                        }
                    }
                }
                @if hidden > 0 { p.hint { (hidden) " more payers have spent less of their limit." } }
            }
        }
    }
}

/// How much of a quota is used and reserved.
pub(super) fn gauge(kind: QuotaKind, usage: &QuotaUsage, name: Option<&str>) -> Markup {
    let QuotaUsage { limit, used, reserved } = *usage;
    let amount = |amount: u64| match kind.resource() {
        Resource::Spend => format::dollars(NanoDollars(amount).dollars()),
        _ => format::short(amount as f64),
    };
    let all = used.saturating_add(reserved);
    let label = name.map_or_else(|| label(kind), format::outside);
    let text = match limit {
        Some(limit) => format!("{} of {}", amount(all), amount(limit)),
        None => format!("{}, no limit known", amount(all)),
    };
    let percent = limit.map(|limit| format::percent(all, limit));
    let tone = Tone::of_share(percent.unwrap_or_default());
    html! {
        div.gauge {
            p.row {
                span.label { (label) }
                @if let Some(percent) = percent { strong.(tone.class()) { (percent) " %" } }
            }
            @if let Some(limit) = limit {
                (bar(&label, &text, &[(tone.class(), used), ("reserved", reserved)], limit))
            }
            span.sub {
                (text)
                @if reserved > 0 { ", " (amount(reserved)) " of it reserved" }
            }
        }
    }
}

/// A quota in words.
fn label(kind: QuotaKind) -> String {
    let resource = match kind.resource() {
        Resource::Requests => "Requests",
        Resource::InputTokens => "Input tokens",
        Resource::Images => "Images",
        Resource::Spend => "Spend",
    };
    let window = match kind.window() {
        QuotaWindow::Minute => "a minute",
        QuotaWindow::TenMinutes => "in ten minutes",
        QuotaWindow::Day => "a day",
        QuotaWindow::Outstanding => "in batch jobs",
    };
    format!("{resource} {window}")
}

fn moment(time: Timestamp) -> Markup {
    html! { time datetime=(time) { (format::moment(time)) } }
}

/// The time until a moment.
fn left(until: Timestamp) -> String {
    let left = until.duration_since(Timestamp::now()).as_secs().max(0);
    format::duration(std::time::Duration::from_secs(left.unsigned_abs()))
}

impl AccountsPage {
    fn account(&self, account: &AccountState, view: &View) -> Markup {
        let AccountState { payer, model, .. } = account;
        let name = format!("{payer} {model}");
        let series = view.site.gateway.history.account(payer, model, self.window);
        let charts = series.map(|series| {
            let sample = series.points.last().map(|point| point.at);
            self.charts.get(sample, &name, || charts(&series))
        });
        html! {
            article.card data-key=(name) {
                div.row {
                    h2 { (outside(model)) " " span.note { (outside(payer)) } }
                    (state(account))
                }
                @if !account.aliases.is_empty() {
                    p.hint {
                        "Also charged for " @for (index, alias) in account.aliases.iter().enumerate() {
                            @if index > 0 { ", " } (outside(alias))
                        } "."
                    }
                }
                (quotas(account))
                @if let Some(charts) = &charts { (charts) }
                (details(account))
                div.actions { (reset(account, view)) }
            }
        }
    }
}

/// Whether calls are sent, and if not, why and until when.
fn state(account: &AccountState) -> Markup {
    html! {
        div {
            @match &account.paused {
                Some(Paused { until, reason }) => {
                    (chip(Tone::Bad, "paused"))
                    span.sub {
                        (pause_reason(*reason))
                        @match until {
                            Some(until) => { "; for " (left(*until)) ", until " (moment(*until)) }
                            None => { "; the next call tries again" }
                        }
                    }
                }
                None if account.waiting > 0 => {
                    (chip(Tone::Warn, &format!("{} waiting", format::whole(account.waiting))))
                }
                None => { (chip(Tone::Good, "sending")) }
            }
        }
    }
}

fn pause_reason(reason: PauseReason) -> String {
    match reason {
        PauseReason::Refused(Some(kind)) => {
            format!("Gemini refused a call for the quota: {}", label(kind).to_lowercase())
        }
        PauseReason::Refused(None) => "Gemini refused a call for a quota".to_owned(),
        PauseReason::DayUsedUp => "Gemini says that the quota of the day is used up".to_owned(),
        PauseReason::Unfunded => "Gemini says that the account has no funds".to_owned(),
        PauseReason::NoQuota => "Gemini says that a quota is 0".to_owned(),
    }
}

fn quotas(account: &AccountState) -> Markup {
    let shown = account.quotas.iter().filter(|(kind, usage)| {
        !kind.is_of_payer() && (usage.limit.is_some() || usage.used > 0 || usage.reserved > 0)
    });
    html! {
        div.gauges {
            @for (kind, usage) in shown {
                div {
                    (gauge(kind, usage, None))
                    @if let Some(source) = account.sources[kind] { span.sub { (source_text(source)) } }
                }
            }
        }
    }
}

fn source_text(source: Source) -> &'static str {
    match source {
        Source::Tier => "Limit of the tier",
        Source::Setting => "Limit of the settings",
        Source::Gemini => "Limit that Gemini named",
    }
}

fn charts(series: &AccountSeries) -> Markup {
    let latest = series.points.last().map(|point| point.at);
    let span = span(series.window, latest);
    let of = |name, value: fn(&crate::metrics::AccountPoint) -> f64| Line {
        name,
        points: series.points.iter().map(|point| (point.at, value(point))).collect(),
    };
    let concurrency = Chart {
        title: "Concurrency",
        unit: "calls at once",
        span,
        text: format::short,
        lines: vec![of("in use", |point| point.in_use as f64)],
        limit: Some(of("adaptive limit", |point| point.concurrency_limit as f64)),
    };
    let quotas = [QuotaKind::RequestsPerMinute, QuotaKind::InputTokensPerMinute].map(|kind| {
        let limits = series.points.iter().filter_map(|point| Some((point.at, point.limits[kind]?)));
        let limits: Vec<_> = limits.collect();
        let used = series.points.iter().map(|point| (point.at, point.used[kind])).collect();
        let title = label(kind);
        let limit = (!limits.is_empty()).then_some(Line { name: "quota", points: limits });
        let lines = vec![Line { name: "used", points: used }];
        Chart { title: &title, unit: "", span, text: format::short, lines, limit }.render()
    });
    html! {
        div.grid.three { (concurrency.render()) @for quota in quotas { (quota) } }
    }
}

fn details(account: &AccountState) -> Markup {
    let now = Timestamp::now();
    let next = match account.next_slot_at {
        Some(at) if at <= now => "now".to_owned(),
        Some(at) => format!("in {}", left(at)),
        None => "never".to_owned(),
    };
    let limit = |of: &Concurrency| {
        html! {
            (of.in_use) " of " (of.limit)
            @if of.limit < of.ceiling { " (at most " (of.ceiling) ")" }
            @if of.waiting > 0 { ", " (of.waiting) " wait" }
            @if let Some(broke_at) = of.broke_at { span.sub { "Gemini refused for load at " (broke_at) } }
        }
    };
    facts(&[
        ("Concurrent calls", limit(&account.concurrency)),
        ("Concurrent flex calls", limit(&account.flex_concurrency)),
        ("Waiting for quota", html! { (format::whole(account.waiting)) }),
        ("Next free slot", html! { (next) }),
    ])
}

/// Forgets what was learned, after a question.
fn reset(account: &AccountState, view: &View) -> Markup {
    let confirmed = Confirmed {
        action: "/dashboard/accounts/reset",
        fields: &[("key", &account.payer), ("model", &account.model)],
        summary: "Reset what was learned…",
        question: "Limits, pauses and the adaptive limit that Gemini's answers led to are forgotten. \
                   What is used stays.",
        label: "Reset",
    };
    confirmed.render(&view.session)
}

/// Forgets what was learned about an account.
pub(super) async fn reset_limits(action: Action) -> Response {
    let Action { view, form } = action;
    let (key, model) = (form.get("key"), form.get("model"));
    let (limiter, history) = (&view.site.gateway.limiter, &view.site.gateway.history);
    let done = if limiter.accounts().forget(key, model) {
        Ok(Notice::LIMITS_RESET)
    } else if history.accounts().iter().any(|known| (&*known.payer, &*known.model) == (key, model))
    {
        Err(PageError::of_other_replica())
    } else {
        Err(ApiError::unknown_account(key, model).into())
    };
    outcome(AccountsPage::new(Window::Hour, 0), &view, done).await
}
