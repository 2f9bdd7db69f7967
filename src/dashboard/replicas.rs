//! The replicas.

use jiff::Timestamp;
use maud::{Markup, html};

use super::access::View;
use super::failure::PageError;
use super::format;
use super::history::scope;
use super::layout::Nav;
use super::page::{Address, Fragment, Page};
use super::parts::{Tone, chip, outside, when};
use crate::metrics::{Replica, Scope};

/// After how many seconds without a report a replica is marked.
const SILENT: i64 = 25;

/// The page of the replicas.
pub(super) struct ReplicasPage;

impl Page for ReplicasPage {
    fn at(_: &Address) -> Option<Self> {
        Some(Self)
    }

    fn nav(&self) -> Nav {
        Nav::Replicas
    }

    fn title(&self) -> String {
        "Replicas".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard/replicas".to_owned()
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let history = &view.site.gateway.history;
        let all = table(&history.replicas(), history.scope());
        Ok(vec![Fragment::new("replicas", all)])
    }
}

fn table(replicas: &[Replica], sums: Scope) -> Markup {
    let now = Timestamp::now();
    html! {
        p.note { (scope(sums)) }
        section.card aria-label="Replicas" {
            table.stack {
                thead { tr {
                    th scope="col" { "Host" } th scope="col" { "State" }
                    th.number scope="col" { "In flight" } th.number scope="col" { "Waiting" }
                    th scope="col" { "Version" } th scope="col" { "Running for" }
                    th scope="col" { "Last report" }
                } }
                tbody { @for replica in replicas { (row(replica, now)) } }
            }
        }
        @if sums == Scope::Alone {
            p.hint {
                "Several replicas share their limits through Redis, if " code { "REDIS_URL" } " is set."
            }
        }
    }
}

fn row(replica: &Replica, now: Timestamp) -> Markup {
    let is_silent = now.duration_since(replica.last_seen).as_secs() > SILENT;
    let running = now.duration_since(replica.since).as_secs().max(0).unsigned_abs();
    html! {
        tr {
            th scope="row" {
                (outside(&replica.host))
                span.sub { code { (outside(&replica.id)) } @if replica.is_this { ", this one" } }
            }
            td data-label="State" {
                @if is_silent { (chip(Tone::Warn, "silent")) } @else { (chip(Tone::Good, "running")) }
            }
            td.number data-label="In flight" { (format::whole(replica.in_flight as u64)) }
            td.number data-label="Waiting" { (format::whole(replica.waiting as u64)) }
            td data-label="Version" { (outside(&replica.version)) }
            td data-label="Running for" { (format::duration(std::time::Duration::from_secs(running))) }
            td data-label="Last report" {
                @if replica.is_this { "now" } @else { (when(replica.last_seen, now)) }
            }
        }
    }
}
