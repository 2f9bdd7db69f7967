//! What a page is: parts that are kept up to date, and what stays around them.

use std::borrow::Cow;
use std::future::Future;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::response::{IntoResponse, Redirect, Response};
use http::request::Parts;
use maud::{Markup, Render, html};
use url::form_urlencoded;

use super::Site;
use super::access::View;
use super::failure::PageError;
use super::layout::{self, Nav, Shell};

/// The longest value of a parameter that is read, in bytes.
const MAX_VALUE: usize = 256;

/// The parameter that names what an action has done.
const DONE: &str = "done";

/// A page.
pub(super) trait Page: Send + Sync + Sized + 'static {
    /// The page at an address; `None` if there is none.
    fn at(address: &Address) -> Option<Self>;

    /// The entry of the navigation to which the page belongs.
    fn nav(&self) -> Nav;

    /// The title.
    fn title(&self) -> String;

    /// The path, without parameters.
    fn path(&self) -> String;

    /// The parameters, without a question mark.
    fn query(&self) -> String {
        String::new()
    }

    /// The parts that are kept up to date.
    ///
    /// # Errors
    /// Why the page cannot be shown.
    fn fragments(
        &self,
        view: &View,
    ) -> impl Future<Output = Result<Vec<Fragment>, PageError>> + Send;

    /// The page around its fragments.
    fn body(&self, _: &View, fragments: &[Fragment]) -> Markup {
        html! { @for fragment in fragments { (fragment) } }
    }
}

/// A part of a page that is replaced when it has changed.
#[derive(Debug)]
pub(super) struct Fragment {
    pub id: Cow<'static, str>,
    pub markup: Markup,
}

impl Fragment {
    /// A part with an id that is unique in its page.
    pub fn new(id: impl Into<Cow<'static, str>>, markup: Markup) -> Self {
        Self { id: id.into(), markup }
    }
}

impl Render for Fragment {
    fn render(&self) -> Markup {
        html! { div.fragment id=(self.id) { (self.markup) } }
    }
}

/// What an action has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notice {
    name: &'static str,
    text: &'static str,
}

/// Defines the notices.
macro_rules! notices {
    ($($notice:ident = $name:literal, $text:literal;)*) => {
        impl Notice {
            $(pub const $notice: Self = Self { name: $name, text: $text };)*
            const ALL: &[Self] = &[$(Self::$notice),*];
        }
    };
}

notices! {
    JOB_PAUSED = "job-paused", "The job is paused. Calls in flight end.";
    JOB_RESUMED = "job-resumed", "The job goes on.";
    JOB_CANCELLED = "job-cancelled", "The job is cancelled.";
    NOTHING_TO_RETRY = "nothing-to-retry", "No failed item may succeed later: nothing is sent again.";
    JOB_DELETED = "job-deleted", "The job is deleted.";
    SEMAPHORE_CREATED = "semaphore-created", "The semaphore is registered.";
    SEMAPHORE_CHANGED = "semaphore-changed", "The semaphore has the new limit.";
    SEMAPHORE_DELETED = "semaphore-deleted", "The semaphore is deleted.";
    LEASE_RELEASED = "lease-released", "The lease is released.";
    LIMITS_RESET = "limits-reset", "What was learned about the account is forgotten.";
}

/// Where a page is: the names in its path, and its parameters.
#[derive(Debug)]
pub(super) struct Address {
    names: Vec<(String, String)>,
    parameters: Vec<(String, String)>,
}

impl FromRequestParts<Site> for Address {
    type Rejection = PageError;

    async fn from_request_parts(head: &mut Parts, site: &Site) -> Result<Self, PageError> {
        let names = RawPathParams::from_request_parts(head, site).await;
        let names = names.map_err(|_| PageError::not_found())?;
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let query = head.uri.query().unwrap_or_default();
        let parameters = form_urlencoded::parse(query.as_bytes()).into_owned().take(8);
        let parameters = parameters.filter(|(_, value)| value.len() <= MAX_VALUE).collect();
        Ok(Self { names: names.iter().map(owned).collect(), parameters })
    }
}

impl Address {
    /// A name in the path.
    pub fn name(&self, name: &str) -> Option<&str> {
        self.names.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// A parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// Which page of a list is asked for, from 0; `None` if there is none beyond `most` pages.
    pub fn page(&self, most: usize) -> Option<usize> {
        match self.parameter("page") {
            Some(number) => number.parse().ok().filter(|number| *number < most),
            None => Some(0),
        }
    }

    fn notice(&self) -> Option<Notice> {
        let done = self.parameter(DONE)?;
        Notice::ALL.iter().copied().find(|notice| notice.name == done)
    }
}

/// Shows a page.
pub(super) async fn show<P: Page>(address: Address, view: View) -> Response {
    let Some(page) = P::at(&address) else { return PageError::not_found().into_response() };
    let notice = address.notice();
    let notice =
        html! { @if let Some(notice) = notice { p.notice role="status" { (notice.text) } } };
    rendered(&page, &view, notice).await
}

/// The answer to an action: leads to a page that says what was done, or shows the page with the error.
pub(super) async fn outcome<P: Page>(
    page: P,
    view: &View,
    done: Result<Notice, impl Into<PageError>>,
) -> Response {
    let error = match done.map_err(Into::into) {
        Ok(notice) => {
            let mut query = page.query();
            let separator = if query.is_empty() { "" } else { "&" };
            query.push_str(separator);
            let address = format!("{}?{query}{DONE}={}", page.path(), notice.name);
            return Redirect::to(&address).into_response();
        }
        Err(error) => error,
    };
    let alert = html! { p.alert role="alert" { (error.message()) } };
    let mut response = rendered(&page, view, alert).await;
    error.mark(&mut response);
    response
}

/// A page with a message above it.
async fn rendered<P: Page>(page: &P, view: &View, message: Markup) -> Response {
    let title = page.title();
    let (path, query) = (page.path(), page.query());
    let separator = if query.is_empty() { "" } else { "?" };
    let live = format!("{path}/live{separator}{query}");
    let shell = Shell { title: &title, nav: page.nav(), view, live: Some(&live) };
    match page.fragments(view).await {
        Ok(fragments) => {
            let body = page.body(view, &fragments);
            layout::page(&shell, html! { (message) (body) })
        }
        Err(error) => {
            let shell = Shell { live: None, ..shell };
            let alert = html! { p.alert role="alert" { (error.message()) } };
            let mut response = layout::page(&shell, html! { (message) (alert) });
            error.mark(&mut response);
            response
        }
    }
}
