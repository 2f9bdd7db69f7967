//! How busy the gateway is.

use maud::{Markup, html};

use super::access::View;
use super::failure::PageError;
use super::format;
use super::layout::Nav;
use super::page::{Address, Fragment, Page};
use super::parts::{Tone, bar, chip, tile};

/// The first page.
pub(super) struct OverviewPage;

impl Page for OverviewPage {
    fn at(_: &Address) -> Option<Self> {
        Some(Self)
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

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        Ok(vec![Fragment::new("now", now(view))])
    }
}

fn now(view: &View) -> Markup {
    let limiter = &view.site.gateway.limiter;
    let occupancy = limiter.occupancy();
    let (in_flight, limit) = (occupancy.in_flight as u64, occupancy.limit as u64);
    let of_limit = format!("of {}", format::whole(limit));
    let state = match limiter.store().reach() {
        Ok(()) => chip(Tone::Good, "healthy"),
        Err(_) => chip(Tone::Bad, "the shared limits are unavailable"),
    };
    html! {
        div.tiles {
            (tile("In flight", html! { (format::whole(in_flight)) small { (of_limit) } }, html! {
                (bar("In flight", &of_limit, &[("busy", in_flight)], limit))
            }))
            (tile("Waiting", html! { (format::whole(occupancy.waiting as u64)) }, html! { "requests" }))
            (tile("State", state, html! {}))
        }
    }
}
