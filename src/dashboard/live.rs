//! The changes of a page, as server-sent events.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use http::StatusCode;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::access::View;
use super::failure::PageError;
use super::page::{Address, Fragment, Page};

/// The time between two looks at what is shown.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same after an error.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// After how much time without an event a comment is sent, so that no proxy closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A page that is kept up to date.
struct Live<P> {
    page: P,
    view: View,
    /// The hashes of the fragments that were sent last.
    sent: HashMap<Cow<'static, str>, u64>,
    next: Instant,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

/// Sends the fragments of a page that have changed, until its session ends.
pub(super) async fn live<P: Page>(address: Address, view: View) -> Response {
    let Some(page) = P::at(&address) else { return PageError::not_found().into_response() };
    let Ok(permit) = view.site.dashboard.streams.clone().try_acquire_owned() else {
        let message = "Too many pages are kept up to date. Close some of them.";
        return PageError::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    };
    let live = Live {
        page,
        view,
        sent: HashMap::new(),
        next: Instant::now(),
        is_over: false,
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(live.events()).keep_alive(keep_alive).into_response()
}

/// Changes that end at once, for this reason.
pub(super) fn ended(reason: &'static str) -> Response {
    Sse::new(stream::iter([Ok::<_, Infallible>(end(reason))])).into_response()
}

fn end(reason: &'static str) -> Event {
    Event::default().event("end").data(reason)
}

impl<P: Page> Live<P> {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        let batches = stream::unfold(self, async |mut live| {
            let events = live.changes().await?;
            Some((stream::iter(events), live))
        });
        batches.flatten().map(Ok)
    }

    /// What has changed since the last look; `None` after the end.
    async fn changes(&mut self) -> Option<Vec<Event>> {
        if self.is_over {
            return None;
        }
        if let Some(reason) = self.wait().await {
            self.is_over = true;
            return Some(vec![end(reason)]);
        }
        let fragments = self.page.fragments(&self.view).await;
        let pause = if fragments.is_ok() { INTERVAL } else { AFTER_ERROR };
        self.next = Instant::now() + pause;
        Some(match fragments {
            Ok(fragments) => fragments.into_iter().filter_map(|one| self.changed(one)).collect(),
            Err(error) => {
                self.sent.clear();
                vec![Event::default().event("trouble").data(error.message())]
            }
        })
    }

    /// Waits until the next look. Returns why there is none, if there is none.
    async fn wait(&self) -> Option<&'static str> {
        let dashboard = &self.view.site.dashboard;
        tokio::select! {
            () = sleep_until(self.next) => {}
            () = self.view.session.ended() => return Some("session"),
            () = dashboard.shutdown.cancelled() => return Some("shutdown"),
        }
        let store = self.view.site.gateway.limiter.store();
        let is_open = dashboard.sessions.is_open(&self.view.session, store).await;
        (!is_open).then_some("session")
    }

    fn changed(&mut self, Fragment { id, markup }: Fragment) -> Option<Event> {
        let html = markup.into_string();
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        let hash = hasher.finish();
        let data = json!({"id": id, "html": html});
        if self.sent.insert(id, hash) == Some(hash) {
            return None;
        }
        Some(Event::default().event("fragment").data(data.to_string()))
    }
}
