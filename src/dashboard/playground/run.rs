//! A generation under way, and the page that is written meanwhile.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use maud::{Markup, html};
use tokio_util::task::AbortOnDropHandle;

use super::page::shell;
use super::result::{failure, reply};
use super::timeline::{outcome, step, summary};
use crate::api::{ApiError, Asked, Reply, ask};
use crate::dashboard::access::View;
use crate::dashboard::layout;
use crate::dispatch::{CallObserver, Timeline};
use crate::gateway::Gateway;
use crate::request_id;

/// Where the page is cut in two, to write in between. Texts that were entered cannot contain it: they are
/// escaped.
const CUT: &str = "<hr data-key=\"cut\">";

/// What surrounds the steps.
const STEPS: &str = "<section class=\"card\" id=\"run\" aria-label=\"Steps\" aria-live=\"polite\">\
                     <h2>Steps</h2><ol class=\"steps\">";
const AFTER_STEPS: &str = "</ol></section>";

/// Asks nginx to pass each step on as soon as it is there.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A generation under way. Dropping it cancels its calls.
pub(super) struct Run {
    task: AbortOnDropHandle<Result<Reply, ApiError>>,
    timeline: Arc<Timeline>,
    /// How many steps were shown.
    shown: usize,
    /// What was generated, once it is.
    reply: Option<Result<Reply, ApiError>>,
}

/// What is written next.
enum Part {
    Head(String),
    Steps,
    Nothing,
}

impl Run {
    /// Begins to generate what a body asks for. The observer `beside` is told what happens, too.
    pub fn start(
        asked: Asked,
        body: Vec<u8>,
        beside: Option<Arc<dyn CallObserver>>,
        gateway: Gateway,
    ) -> Self {
        let timeline = Timeline::new(beside);
        let observer = Arc::<Timeline>::clone(&timeline);
        let asking = async move { ask(asked, &body, observer, &gateway).await };
        // The task handles this request, so that its calls belong to it.
        let task = match request_id::current() {
            Some(id) => tokio::spawn(request_id::handling(id, asking)),
            None => tokio::spawn(asking),
        };
        Self { task: AbortOnDropHandle::new(task), timeline, shown: 0, reply: None }
    }

    /// Waits for further steps or for the end, and returns the steps.
    pub async fn steps(&mut self) -> Markup {
        if self.reply.is_none() {
            tokio::select! {
                biased;
                ended = &mut self.task => {
                    self.reply = Some(ended.unwrap_or_else(|_| Err(ApiError::internal())));
                }
                () = self.timeline.is_longer_than(self.shown) => {}
            }
        }
        let new = self.timeline.entries_after(self.shown);
        self.shown += new.len();
        html! { @for entry in &new { (step(entry)) } }
    }

    /// The error, if the request was refused before any step.
    pub fn refusal(&self) -> Option<ApiError> {
        match &self.reply {
            Some(Err(error)) if self.shown == 0 => Some(error.clone()),
            _ => None,
        }
    }

    /// The page, written while the calls are made, after the `first` steps.
    pub fn page(self, view: &View, form: &Markup, first: Markup) -> Response {
        let whole = layout::text(&shell(view), html! { (form) hr data-key="cut"; });
        let (head, tail) = whole.split_once(CUT).unwrap_or((&whole, ""));
        let (head, tail) = (format!("{head}{STEPS}{}", first.into_string()), tail.to_owned());
        let pieces = unfold((Part::Head(head), self), move |(part, mut run)| {
            let tail = tail.clone();
            async move {
                let (piece, next) = match part {
                    Part::Head(head) => (head, Part::Steps),
                    Part::Steps if run.reply.is_none() => {
                        (run.steps().await.into_string(), Part::Steps)
                    }
                    Part::Steps => {
                        let result = run.result().into_string();
                        (format!("{AFTER_STEPS}{result}{tail}"), Part::Nothing)
                    }
                    Part::Nothing => return None,
                };
                Some((Ok::<_, Infallible>(piece), (next, run)))
            }
        });
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
            (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
        ];
        (headers, Body::from_stream(pieces)).into_response()
    }

    /// What was generated, and how.
    fn result(&self) -> Markup {
        let (entries, end) = (self.timeline.entries(), self.timeline.elapsed());
        let summary = summary(&entries, end, &self.timeline.usage());
        let (state, content) = match &self.reply {
            Some(Ok(generated)) => (outcome(None), reply(generated)),
            Some(Err(error)) => (outcome(Some(error.table_code().name())), failure(error.clone())),
            None => (html! {}, html! {}),
        };
        html! {
            section.card aria-label="Timeline" {
                div.row { h2 { "Timeline" } (state) }
                (summary)
            }
            (content)
        }
    }
}
