//! The frame of every page.

use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::access::{CSRF_FIELD, View};
use super::sessions::Session;

/// The name in the title of every page.
const PRODUCT: &str = "Gemini gateway";

/// An entry of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nav {
    Overview,
    Accounts,
    Jobs,
    Semaphores,
    Replicas,
    Failures,
    Playground,
}

impl Nav {
    const ALL: [Self; 7] = [
        Self::Overview,
        Self::Accounts,
        Self::Jobs,
        Self::Semaphores,
        Self::Replicas,
        Self::Failures,
        Self::Playground,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Overview => "/dashboard",
            Self::Jobs => "/dashboard/jobs",
            Self::Accounts => "/dashboard/accounts",
            Self::Semaphores => "/dashboard/semaphores",
            Self::Replicas => "/dashboard/replicas",
            Self::Failures => "/dashboard/failures",
            Self::Playground => "/dashboard/playground",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Jobs => "Jobs",
            Self::Accounts => "Accounts",
            Self::Semaphores => "Semaphores",
            Self::Replicas => "Replicas",
            Self::Failures => "Failures",
            Self::Playground => "Playground",
        }
    }

    /// The paths of the icon, in a square of 24.
    fn icon(self) -> &'static str {
        match self {
            Self::Overview => "M4 19V9M10 19V5M16 19v-7M4 19h17",
            Self::Jobs => "M4 6h10M4 12h16M4 18h7M17 4l3 2-3 2",
            Self::Accounts => "M14 14a5 5 0 1 0-4-4L3 17v4h4v-3h3v-3zM16.5 7.5v.01",
            Self::Replicas => "M4 4h16v6H4zM4 14h16v6H4zM8 7v.01M8 17v.01",
            Self::Playground => "M5 5h14v10H11l-4 4v-4H5zM9 9h6M9 12h3",
            Self::Failures => "M12 4 2.5 20h19zM12 10v4M12 17v.01",
            Self::Semaphores => "M8 3h8v18H8zM12 7.5v.01M12 12v.01M12 16.5v.01",
        }
    }
}

/// What surrounds a page.
pub(super) struct Shell<'a> {
    pub title: &'a str,
    pub nav: Nav,
    pub view: &'a View,
    /// Where the changes of the page come from.
    pub live: Option<&'a str>,
}

/// The hidden field with which a form shows that a page of its session has sent it.
pub(super) fn csrf(session: &Session) -> Markup {
    html! { input type="hidden" name=(CSRF_FIELD) value=(session.csrf()); }
}

/// An icon that says nothing which is not written beside it.
fn icon(path: &str) -> Markup {
    html! {
        svg.icon viewBox="0 0 24 24" aria-hidden="true" focusable="false" { path d=(path) {} }
    }
}

/// The mark of the product.
fn brand() -> Markup {
    html! {
        svg.mark viewBox="0 0 24 24" aria-hidden="true" focusable="false" {
            path d="M12 1.5c.9 5.9 4.6 9.6 10.5 10.5C16.6 12.9 12.9 16.6 12 22.5 11.1 16.6 7.4 12.9 1.5 12 7.4 11.1 11.1 7.4 12 1.5z" {}
        }
        span { (PRODUCT) }
    }
}

fn head(title: &str, more: Markup) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="robots" content="noindex";
            title { (title) " · " (PRODUCT) }
            link rel="icon" href="/dashboard/assets/icon.svg" type="image/svg+xml";
            link rel="stylesheet" href="/dashboard/assets/dashboard.css";
            script src="/dashboard/assets/dashboard.js" defer {}
            (more)
        }
    }
}

fn answer(markup: Markup) -> Response {
    Html(markup.into_string()).into_response()
}

/// A page of a session.
pub(super) fn page(shell: &Shell<'_>, body: Markup) -> Response {
    Html(text(shell, body)).into_response()
}

/// A page of a session, as text.
pub(super) fn text(shell: &Shell<'_>, body: Markup) -> String {
    let Shell { title, nav, view, live } = shell;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, html! {}))
            body data-live=[live] {
                a.skip href="#main" { "Skip to content" }
                header.side {
                    a.brand href="/dashboard" { (brand()) }
                    nav aria-label="Pages" {
                        ul {
                            @for entry in Nav::ALL {
                                li {
                                    a href=(entry.path()) aria-current=[(entry == *nav).then_some("page")] {
                                        (icon(entry.icon())) span { (entry.label()) }
                                    }
                                }
                            }
                        }
                    }
                    form.logout method="post" action="/dashboard/logout" {
                        (csrf(&view.session))
                        button type="submit" { "Sign out" }
                    }
                }
                main #main tabindex="-1" {
                    div.heading {
                        h1 { (title) }
                        div.state {
                            @if view.site.gateway.simulated {
                                span.chip.warn title="Answers come from a simulator, not from Gemini" { "Simulated" }
                            }
                            p.live #live-state role="status" hidden {}
                        }
                    }
                    (body)
                }
            }
        }
    };
    markup.into_string()
}

/// A page without a session: the login and errors.
pub(super) fn bare(title: &str, more: Markup, body: Markup) -> Response {
    answer(html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, more))
            body.bare {
                main #main {
                    p.brand { (brand()) }
                    h1 { (title) }
                    (body)
                }
            }
        }
    })
}
