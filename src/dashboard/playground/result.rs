//! What was generated, or why nothing was.

use maud::{Markup, html};
use serde_json::Value;

use super::story::story;
use crate::api::{ApiError, Reply};
use crate::dashboard::format;
use crate::generation::Generated;

/// Why nothing was generated.
pub(super) fn failure(error: ApiError) -> Markup {
    let wait = error.retry_after();
    html! {
        p.alert role="alert" {
            (format::outside(&error.into_text()))
            @if let Some(wait) = wait { " Another attempt may succeed in " (format::duration(wait)) "." }
        }
    }
}

/// What was generated.
pub(super) fn reply(reply: &Reply) -> Markup {
    match reply {
        Reply::Chat(generated) => answer("Reply", generated, |text| {
            html! { div.answer dir="auto" { (format::long(text)) } }
        }),
        Reply::Structured(generated) => answer(
            "Output",
            generated,
            |json| html! { pre.answer tabindex="0" { (pretty(json.get())) } },
        ),
        Reply::Story(generated) => answer("Story", generated, |checked| {
            let json = serde_json::to_string_pretty(&checked.story).unwrap_or_default();
            html! {
                (story(checked))
                details.json {
                    summary { "As JSON" }
                    pre.answer tabindex="0" { (format::long(&json)) }
                }
            }
        }),
    }
}

fn answer<T>(title: &str, generated: &Generated<T>, shown: impl Fn(&T) -> Markup) -> Markup {
    let Generated { value, model, model_version, finish_reason, .. } = generated;
    html! {
        section.card {
            div.row {
                h2 { (title) }
                span.note {
                    (model)
                    @if let Some(version) = model_version { ", answered by " (version) }
                    @if generated.is_truncated() { ", incomplete: " code { (format::outside(finish_reason)) } }
                }
            }
            (shown(value))
        }
    }
}

/// JSON with line breaks, or as the model wrote it if it cannot be parsed.
fn pretty(json: &str) -> String {
    let value: Result<Value, _> = serde_json::from_str(json);
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value));
    format::long(pretty.as_deref().unwrap_or(json))
}
