//! The semaphores, and one of them with its leases.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use tokio::time::Instant;

use super::access::{Action, View};
use super::failure::PageError;
use super::format;
use super::layout::{Nav, csrf};
use super::page::{Address, Fragment, Notice, Page, outcome};
use super::parts::{Confirmed, Tone, bar, empty, list_query, outside, pages};
use crate::api::{ApiError, register, registered, release, unregister};
use crate::limits::{Lease, LeaseWait, Semaphore, SemaphoreId, SemaphoreUsage, Store};

/// How many semaphores a page has.
const PAGE: usize = 50;

/// How many leases of a semaphore are shown.
const MOST_LEASES: usize = 200;

/// How soon the usage of all semaphores is asked for again. With shared limits, Redis is asked for each.
const REFRESH_AFTER: Duration = Duration::from_millis(500);

/// When the usage of all semaphores was last asked for, for all pages of this process.
#[derive(Debug, Default)]
pub(super) struct Refreshed(Mutex<Option<Instant>>);

impl Refreshed {
    /// Whether it is time to ask again. The caller then does so.
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= REFRESH_AFTER);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Updates the usage of all semaphores, unless another page has just done so.
async fn refresh(view: &View) -> Result<(), ApiError> {
    if view.site.dashboard.refreshed.is_due() {
        view.site.gateway.limiter.store().refresh().await?;
    }
    Ok(())
}

/// A page of the semaphores, by name.
pub(super) struct SemaphoresPage {
    /// How many pages are before it.
    number: usize,
}

impl Page for SemaphoresPage {
    fn at(address: &Address) -> Option<Self> {
        Some(Self { number: address.page(usize::MAX / PAGE)? })
    }

    fn nav(&self) -> Nav {
        Nav::Semaphores
    }

    fn title(&self) -> String {
        "Semaphores".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard/semaphores".to_owned()
    }

    fn query(&self) -> String {
        list_query("", self.number)
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        refresh(view).await?;
        let store = view.site.gateway.limiter.store();
        let all = store.named();
        if self.number > 0 && all.len() <= self.number.saturating_mul(PAGE) {
            return Err(PageError::not_found());
        }
        Ok(vec![Fragment::new("semaphores", self.list(&all, &**store))])
    }

    fn body(&self, view: &View, fragments: &[Fragment]) -> Markup {
        html! {
            @for fragment in fragments { (fragment) }
            section.card {
                h2 { "New semaphore" }
                form.fields method="post" action="/dashboard/semaphores" {
                    (csrf(&view.session))
                    div {
                        label for="name" { "Name" }
                        input #name name="semaphore_id" required maxlength="128" spellcheck="false"
                            autocomplete="off" pattern="[A-Za-z0-9._:\\-]{1,128}"
                            title="1 to 128 of A-Z a-z 0-9 . _ : -";
                    }
                    div {
                        label for="limit" { "Permits" }
                        input #limit name="limit" type="number" required min="1" max="1000" value="5";
                    }
                    button.primary type="submit" { "Create" }
                }
            }
        }
    }
}

impl SemaphoresPage {
    const FIRST: Self = Self { number: 0 };

    fn list(&self, all: &[(SemaphoreId, Arc<dyn Semaphore>)], store: &dyn Store) -> Markup {
        let before = self.number * PAGE;
        let address = |number| format!("{}?{}", self.path(), list_query("", number));
        html! {
            section.card aria-label="Semaphores" {
                @if all.is_empty() {
                    (empty("No semaphores", html! {
                        "A semaphore limits how many calls and leases run at once, across services."
                    }))
                } @else {
                    table.stack {
                        thead { tr {
                            th scope="col" { "Name" } th scope="col" { "Permits in use" }
                            th.number scope="col" { "Leased" } th.number scope="col" { "Available" }
                            th.number scope="col" { "Waiting" }
                        } }
                        tbody {
                            @for (id, semaphore) in all.iter().skip(before).take(PAGE) {
                                (row(id, semaphore.usage(), store.leased(id)))
                            }
                        }
                    }
                }
            }
            (pages(self.number, all.len() > before + PAGE, address))
        }
    }
}

fn row(id: &SemaphoreId, usage: SemaphoreUsage, leased: usize) -> Markup {
    html! {
        tr data-key=(id.as_str()) {
            th scope="row" { a href={ "/dashboard/semaphores/" (id.as_str()) } { (id.as_str()) } }
            td data-label="Permits in use" { (permits(usage)) }
            td.number data-label="Leased" { (leased) }
            td.number data-label="Available" { (usage.available()) }
            td.number data-label="Waiting" { (usage.waiting) }
        }
    }
}

fn permits(usage: SemaphoreUsage) -> Markup {
    let (used, limit) = (usage.in_use as u64, usage.limit as u64);
    let text = format!("{used} of {limit}");
    let is_short = usage.waiting > 0 || usage.in_use > usage.limit;
    let tone = if is_short { Tone::Warn } else { Tone::Busy };
    html! {
        div.progress {
            (bar("Permits in use", &text, &[(tone.class(), used)], limit))
            span.sub { (text) }
        }
    }
}

/// One semaphore.
pub(super) struct SemaphorePage {
    id: SemaphoreId,
}

impl Page for SemaphorePage {
    fn at(address: &Address) -> Option<Self> {
        Some(Self { id: SemaphoreId::parse(address.name("id")?).ok()? })
    }

    fn nav(&self) -> Nav {
        Nav::Semaphores
    }

    fn title(&self) -> String {
        self.id.as_str().to_owned()
    }

    fn path(&self) -> String {
        format!("/dashboard/semaphores/{}", self.id.as_str())
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let gateway = &view.site.gateway;
        let semaphore = registered(gateway, self.id.as_str()).await;
        let (_, semaphore) = semaphore.map_err(PageError::of_page)?;
        refresh(view).await?;
        let leases = gateway.limiter.store().leases(&semaphore).await.map_err(ApiError::from)?;
        let usage = semaphore.usage();
        let leased = leases.iter().map(|lease| lease.terms.permits).sum::<usize>();
        let (waits, waiting_here) = gateway.leases.waits(&semaphore, MOST_LEASES);
        let others = Others {
            leases: waiting_here - waits.len(),
            rest: usage.waiting.saturating_sub(waiting_here),
            is_shared: gateway.limiter.store().is_shared(),
        };
        Ok(vec![
            Fragment::new("usage", self.usage(usage, leased)),
            Fragment::new("leases", self.leases(&leases, view)),
            Fragment::new("waiting", waiting(&waits, &others)),
        ])
    }

    fn body(&self, view: &View, fragments: &[Fragment]) -> Markup {
        let path = self.path();
        let semaphores = view.site.gateway.limiter.store().named();
        let this = semaphores.iter().find(|(id, _)| *id == self.id);
        let limit = this.map(|(_, semaphore)| semaphore.usage().limit);
        let delete = Confirmed {
            action: &format!("{path}/delete"),
            fields: &[],
            summary: "Delete…",
            question: "Requests and leases that wait for it fail. Those that hold it are not affected.",
            label: "Delete the semaphore",
        };
        html! {
            @for fragment in fragments { (fragment) }
            section.card {
                h2 { "Change" }
                form.fields method="post" action={ (path) "/limit" } {
                    (csrf(&view.session))
                    div {
                        label for="limit" { "Permits" }
                        input #limit name="limit" type="number" required min="1" max="1000" value=[limit];
                    }
                    button.primary type="submit" { "Set the limit" }
                }
                p.hint { "A new limit holds at once, also while permits are in use." }
                (delete.render(&view.session))
            }
        }
    }
}

impl SemaphorePage {
    fn usage(&self, usage: SemaphoreUsage, leased: usize) -> Markup {
        let calls = usage.in_use.saturating_sub(leased);
        html! {
            section.card aria-label="Use" {
                (permits(usage))
                div.tiles.small {
                    div.tile { p.label { "Held by calls" } p.value { (calls) } }
                    div.tile { p.label { "Held by leases" } p.value { (leased) } }
                    div.tile { p.label { "Available" } p.value { (usage.available()) } }
                    div.tile { p.label { "Waiting" } p.value { (usage.waiting) } }
                }
            }
        }
    }

    fn leases(&self, leases: &[Lease], view: &View) -> Markup {
        html! {
            section.card {
                h2 { "Leases" }
                @if leases.is_empty() {
                    (empty("No leases", html! { "No program outside the gateway holds permits." }))
                } @else {
                    table.stack {
                        thead { tr {
                            th scope="col" { "Holder" } th.number scope="col" { "Permits" }
                            th.number scope="col" { "Ends in" }
                            th.number scope="col" { "Fencing token" }
                            th scope="col" { span.hidden { "Actions" } }
                        } }
                        tbody {
                            @for lease in leases.iter().take(MOST_LEASES) { (self.lease(lease, view)) }
                        }
                    }
                    @if leases.len() > MOST_LEASES {
                        p.hint { "The oldest " (MOST_LEASES) " of " (leases.len()) " are shown." }
                    }
                }
            }
        }
    }

    fn lease(&self, lease: &Lease, view: &View) -> Markup {
        let left = whole_seconds(lease.expires.saturating_duration_since(Instant::now()));
        let release = Confirmed {
            action: &format!("{}/leases/{}/release", self.path(), lease.id),
            fields: &[],
            summary: "Release…",
            question: "Its permits become free at once, although the holder may still work.",
            label: "Release the lease",
        };
        html! {
            tr data-key=(lease.id) {
                th scope="row" { (outside(&lease.terms.holder)) }
                td.number data-label="Permits" { (lease.terms.permits) }
                td.number data-label="Ends in" { (format::duration(left)) }
                td.number data-label="Fencing token" { (lease.fencing_token) }
                td {
                    (release.render(&view.session))
                }
            }
        }
    }
}

/// What waits for a semaphore and is not listed.
struct Others {
    /// Requests for leases at this replica.
    leases: usize,
    /// Calls, and requests for leases at other replicas.
    rest: usize,
    /// Whether there may be other replicas.
    is_shared: bool,
}

/// The requests for leases that wait, and what else does.
fn waiting(waits: &[LeaseWait], others: &Others) -> Markup {
    html! {
        section.card {
            h2 { "Waiting" }
            @if waits.is_empty() && others.rest == 0 {
                (empty("Nothing waits", html! { "Permits are granted in the order of the requests." }))
            }
            @if !waits.is_empty() {
                table.stack {
                    thead { tr {
                        th scope="col" { "Lease for" } th.number scope="col" { "Permits" }
                        th.number scope="col" { "Waiting for" }
                    } }
                    tbody {
                        @for wait in waits {
                            tr {
                                th scope="row" { (outside(&wait.holder)) }
                                td.number data-label="Permits" { (wait.permits) }
                                td.number data-label="Waiting for" {
                                    (format::duration(whole_seconds(wait.since.elapsed())))
                                }
                            }
                        }
                    }
                }
            }
            @if others.leases > 0 {
                p.hint { "Further requests for leases: " (others.leases) }
            }
            @if others.rest > 0 {
                p.hint {
                    "Calls"
                    @if others.is_shared { ", and requests for leases at other replicas" }
                    ": " (others.rest)
                }
            }
        }
    }
}

/// A time without fractions of a second, which would change with each look.
fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

/// Creates a semaphore, unless there is one with this name: its limit is changed on its own page.
pub(super) async fn create(action: Action) -> Response {
    let Action { view, form } = action;
    let id = form.get("semaphore_id").trim();
    let done = async {
        if registered(&view.site.gateway, id).await.is_ok() {
            return Err(PageError::semaphore_exists());
        }
        Ok(set(&view, id, form.get("limit")).await?)
    };
    match done.await {
        Ok((id, notice)) => outcome(SemaphorePage { id }, &view, Ok::<_, PageError>(notice)).await,
        Err(error) => outcome(SemaphoresPage::FIRST, &view, Err(error)).await,
    }
}

/// Changes the limit of a semaphore.
pub(super) async fn change(Path(id): Path<String>, action: Action) -> Response {
    let Action { view, form } = action;
    let Ok(id) = SemaphoreId::parse(&id) else { return PageError::not_found().into_response() };
    let done = async {
        registered(&view.site.gateway, id.as_str()).await?;
        set(&view, id.as_str(), form.get("limit")).await
    };
    let done = done.await.map(|(_, notice)| notice);
    outcome(SemaphorePage { id }, &view, done).await
}

async fn set(view: &View, id: &str, limit: &str) -> Result<(SemaphoreId, Notice), ApiError> {
    // 0 is out of range, so what is not a number is refused like it.
    let limit = limit.trim().parse().unwrap_or(0);
    let (id, _, new) = register(&view.site.gateway, id, limit).await?;
    Ok((id, if new { Notice::SEMAPHORE_CREATED } else { Notice::SEMAPHORE_CHANGED }))
}

/// Deletes a semaphore.
pub(super) async fn delete(Path(id): Path<String>, action: Action) -> Response {
    let view = action.view;
    let done = unregister(&view.site.gateway, &id).await;
    outcome(SemaphoresPage::FIRST, &view, done.map(|()| Notice::SEMAPHORE_DELETED)).await
}

/// Releases a lease.
pub(super) async fn release_lease(
    Path((id, lease)): Path<(String, String)>,
    action: Action,
) -> Response {
    let view = action.view;
    let Ok(id) = SemaphoreId::parse(&id) else { return PageError::not_found().into_response() };
    let done = release(&view.site.gateway, id.as_str(), &lease).await;
    outcome(SemaphorePage { id }, &view, done.map(|()| Notice::LEASE_RELEASED)).await
}
