//! The page with its form.

use std::sync::Arc;

use axum::response::Response;
use maud::{Markup, html};

use super::input::{Input, KINDS};
use crate::api::Asked;
use crate::dashboard::access::View;
use crate::dashboard::failure::PageError;
use crate::dashboard::layout::{self, Nav, Shell, csrf};
use crate::gemini::ServiceTier;

/// How many semaphores and models are offered.
const MOST_OFFERED: usize = 100;

/// What surrounds the page.
pub(super) fn shell(view: &View) -> Shell<'_> {
    Shell { title: "Playground", nav: Nav::Playground, view, live: None }
}

/// The page with a form that was not sent.
pub(super) fn unsent(view: &View, form: &Markup) -> Response {
    layout::page(&shell(view), html! { (form) })
}

/// The page with a form that was refused.
pub(super) fn refused(view: &View, form: &Markup, error: &PageError) -> Response {
    let alert = html! { p.alert role="alert" { (error.message()) } };
    let mut response = layout::page(&shell(view), html! { (form) (alert) });
    error.mark(&mut response);
    response
}

/// The form of a kind, with what was entered.
pub(super) fn form(asked: Asked, entered: &Input, view: &View) -> Markup {
    let gateway = &view.site.gateway;
    let default = match asked {
        Asked::Chat => &gateway.defaults.chat_model,
        Asked::Structured | Asked::Story => &gateway.defaults.structured_model,
    };
    let name = KINDS.iter().find(|(kind, ..)| *kind == asked).map_or("", |(_, name, _)| name);
    let (prompt, task) = match asked {
        Asked::Chat => ("Prompt", "System prompt"),
        Asked::Structured => ("Content", "Task"),
        Asked::Story => ("What the story is made from", "How it is told"),
    };
    html! {
        section.card {
            nav.choice aria-label="What is generated" {
                @for (kind, name, label) in KINDS {
                    a href={ "/dashboard/playground?kind=" (name) }
                        aria-current=[(kind == asked).then_some("true")] { (label) }
                }
            }
            form.stacked method="post" action="/dashboard/playground#run" data-once="Sending…" {
                (csrf(&view.session))
                input type="hidden" name="kind" value=(name);
                label for="prompt" { (prompt) }
                textarea #prompt name="prompt" required rows="4" { (entered.prompt) }
                label for="system-prompt" { (task) }
                textarea #system-prompt name="system_prompt" rows="2" required[asked != Asked::Chat] {
                    (entered.system_prompt)
                }
                @if asked == Asked::Structured {
                    label for="schema" { "JSON Schema" }
                    textarea.mono #schema name="schema" required rows="10" spellcheck="false" {
                        (entered.schema)
                    }
                }
                @if asked == Asked::Story {
                    label for="voices" { "Voices, separated by commas" }
                    input #voices name="voices" value=(entered.voices) placeholder="voice-amber, voice-basil";
                }
                div.fields {
                    div {
                        label for="model" { "Model" }
                        input #model name="model" value=(entered.model) placeholder=(default) list="models"
                            spellcheck="false" autocomplete="off";
                        datalist #models { @for model in models(view) { option value=(model) {} } }
                    }
                    div {
                        label for="tier" { "Service tier" }
                        select #tier name="tier" {
                            option value="" { "Default" }
                            @for tier in ServiceTier::ALL {
                                option value=(tier.name()) selected[entered.tier == tier.name()] {
                                    (tier.name())
                                }
                            }
                        }
                    }
                    div {
                        label for="semaphore" { "Semaphore" }
                        select #semaphore name="semaphore" {
                            option value="" { "None" }
                            @for (id, _) in gateway.limiter.store().named().iter().take(MOST_OFFERED) {
                                option value=(id.as_str()) selected[entered.semaphore == id.as_str()] {
                                    (id.as_str())
                                }
                            }
                        }
                    }
                }
                div.actions { button.primary type="submit" { "Send" } }
                p.hint { "The server's key pays. The request waits for admission like any other." }
            }
        }
    }
}

/// Models that were used.
fn models(view: &View) -> Vec<Arc<str>> {
    let accounts = view.site.gateway.history.accounts();
    let mut models: Vec<_> = accounts.into_iter().map(|account| account.model).collect();
    models.sort();
    models.dedup();
    models.truncate(MOST_OFFERED);
    models
}
