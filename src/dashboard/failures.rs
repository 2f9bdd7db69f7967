//! The calls that failed last. There is no prompt, no answer and no key among what is known of them.

use jiff::Timestamp;
use maud::{Markup, html};

use super::access::View;
use super::failure::PageError;
use super::format;
use super::job::meaning;
use super::layout::Nav;
use super::page::{Address, Fragment, Page};
use super::parts::{Tone, chip, empty, outside, when};
use crate::api::Code;
use crate::metrics::Failure;

/// How many are shown.
const MOST_SHOWN: usize = 100;

/// The page of recent failures.
pub(super) struct FailuresPage;

impl Page for FailuresPage {
    fn at(_: &Address) -> Option<Self> {
        Some(Self)
    }

    fn nav(&self) -> Nav {
        Nav::Failures
    }

    fn title(&self) -> String {
        "Recent failures".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard/failures".to_owned()
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let failures = view.site.gateway.history.failures(MOST_SHOWN);
        let failures = failures.iter().map(|(replica, failure)| (&**replica, failure));
        Ok(vec![Fragment::new("failures", table(&failures.collect::<Vec<_>>()))])
    }
}

fn table(failures: &[(&str, &Failure)]) -> Markup {
    let now = Timestamp::now();
    let has_several = failures.iter().any(|(replica, _)| *replica != failures[0].0);
    html! {
        section.card aria-label="Recent failures" {
            @if failures.is_empty() {
                (empty("No failures", html! { "Every call since the start had an answer." }))
            } @else {
                table.stack {
                    thead { tr {
                        th scope="col" { "Code" } th scope="col" { "When" }
                        th scope="col" { "Model" } th scope="col" { "Account" }
                        th scope="col" { "Kind" } th scope="col" { "Request id" }
                        @if has_several { th scope="col" { "Replica" } }
                    } }
                    tbody {
                        @for (replica, failure) in failures {
                            (row(has_several.then_some(*replica), failure, now))
                        }
                    }
                }
            }
        }
    }
}

fn row(replica: Option<&str>, failure: &Failure, now: Timestamp) -> Markup {
    html! {
        tr {
            th scope="row" {
                code { (outside(&failure.code)) }
                @if failure.count > 1 { " " (chip(Tone::Idle, &format!("× {}", format::whole(failure.count)))) }
                @if failure.retried { " " (chip(Tone::Idle, "sent again")) }
                @if let Some(code) = Code::named(&failure.code) { span.sub { (meaning(code)) } }
            }
            td data-label="When" { (when(failure.at, now)) }
            td data-label="Model" { (outside(&failure.model)) }
            td data-label="Account" { (outside(&failure.payer)) }
            td data-label="Kind" { (format::outside(&failure.kind)) }
            td data-label="Request id" {
                @match &failure.request_id {
                    Some(id) => { code.break { (outside(id)) } }
                    None => { "–" }
                }
            }
            @if let Some(replica) = replica { td data-label="Replica" { code { (outside(replica)) } } }
        }
    }
}
