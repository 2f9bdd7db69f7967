//! The playground: sends a chat, a structured output or a story, and shows what happens to it.
//!
//! The answer is one page that is written while the calls are made: a step is sent as soon as it has
//! happened. So nothing is kept between requests, and leaving the page cancels its calls.
//!
//! | file | what is in it |
//! |---|---|
//! | `input` | what was entered |
//! | `page` | the page with its form |
//! | `run` | a generation under way |
//! | `timeline` | what happened to its calls, as steps and as bars |
//! | `result`, `story` | what was generated |

mod input;
mod page;
mod result;
mod run;
mod story;
mod timeline;

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;

use super::Site;
use super::access::{Action, View};
use super::page::Address;
use crate::api::observer;
use crate::dispatch::CallObserver;
use input::{Input, kind_named};
use run::Run;

/// The page with the form.
pub(super) async fn show(address: Address, view: View) -> Response {
    let asked = kind_named(address.parameter("kind").unwrap_or_default());
    page::unsent(&view, &page::form(asked, &Input::example(asked), &view))
}

/// Sends what was entered, and writes what happens.
pub(super) async fn send(Observer(observer): Observer, action: Action) -> Response {
    let Action { view, form } = action;
    let asked = kind_named(form.get("kind"));
    let input = Input::of(&form);
    let form = page::form(asked, &input, &view);
    let body = match input.body(asked) {
        Ok(body) => body,
        Err(error) => return page::refused(&view, &form, &error),
    };
    let mut run = Run::start(asked, body, observer, view.site.gateway.clone());
    let first = run.steps().await;
    match run.refusal() {
        Some(error) => page::refused(&view, &form, &error.into()),
        None => run.page(&view, &form, first),
    }
}

/// The observer of the request's calls, if the request is traced.
pub(super) struct Observer(Option<Arc<dyn CallObserver>>);

impl FromRequestParts<Site> for Observer {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Parts, _: &Site) -> Result<Self, Infallible> {
        Ok(Self(observer(&head.extensions)))
    }
}
