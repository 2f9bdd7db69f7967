//! The playground: sends a chat, a structured output or a story, and shows what happens to it.
//!
//! The answer is one page that is written while the calls are made: a step is sent as soon as it has
//! happened. So nothing is kept between requests, and whoever leaves the page cancels its calls.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use maud::{Markup, html};
use serde_json::{Map, Value};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::Site;
use super::access::{Action, View};
use super::failure::PageError;
use super::form::Form;
use super::format;
use super::layout::{self, Nav, Shell, csrf};
use super::page::Address;
use super::story::story;
use super::timeline::{outcome, step, summary};
use crate::api::{ApiError, Asked, Reply, ask, observer};
use crate::dispatch::{CallObserver, Timeline};
use crate::gemini::ServiceTier;
use crate::generation::Generated;
use crate::request_id;

/// How often it is looked for new steps.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many semaphores and models are offered.
const MOST_OFFERED: usize = 100;

/// Where a page is cut in two, to write in between.
const CUT: &str = "<hr data-key=\"cut\">";

/// What surrounds the steps.
const STEPS: &str = "<section class=\"card\" id=\"run\" aria-label=\"Steps\" aria-live=\"polite\">\
                     <h2>Steps</h2><ol class=\"steps\">";
const AFTER_STEPS: &str = "</ol></section>";

/// Asks nginx to pass each step on as soon as it is there.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The kinds, as parameters, with their names.
const KINDS: [(Asked, &str, &str); 3] = [
    (Asked::Chat, "chat", "Chat"),
    (Asked::Structured, "structured", "Structured output"),
    (Asked::Story, "story", "Story"),
];

fn kind_named(name: &str) -> Asked {
    let known = KINDS.iter().find(|(_, known, _)| *known == name);
    known.map_or(Asked::Chat, |(asked, ..)| *asked)
}

/// What was entered.
#[derive(Debug, Default)]
struct Entered {
    prompt: String,
    system_prompt: String,
    schema: String,
    voices: String,
    model: String,
    tier: String,
    semaphore: String,
}

impl Entered {
    /// An example of a kind.
    fn example(asked: Asked) -> Self {
        let (prompt, system_prompt, schema) = match asked {
            Asked::Chat => ("Why is the sky blue?", "Answer in one sentence.", ""),
            Asked::Structured => (
                "Anna is 31 and lives in Lisbon.",
                "Extract the person.",
                "{\n  \"type\": \"object\",\n  \"required\": [\"name\", \"age\"],\n  \"properties\": {\n    \
                 \"name\": {\"type\": \"string\"},\n    \"age\": {\"type\": \"integer\", \"minimum\": 0}\n  }\n}",
            ),
            Asked::Story => (
                "A lighthouse keeper's daughter befriends a storm.",
                "Design a story for children in five scenes.",
                "",
            ),
        };
        let [prompt, system_prompt, schema] = [prompt, system_prompt, schema].map(str::to_owned);
        Self { prompt, system_prompt, schema, ..Self::default() }
    }

    fn of(form: &Form) -> Self {
        let field = |name| form.get(name).replace("\r\n", "\n");
        Self {
            prompt: field("prompt"),
            system_prompt: field("system_prompt"),
            schema: field("schema"),
            voices: field("voices"),
            model: field("model"),
            tier: field("tier"),
            semaphore: field("semaphore"),
        }
    }

    /// The body of the request, as the endpoint of the kind takes it.
    ///
    /// # Errors
    /// If the schema is not JSON.
    fn body(&self, asked: Asked) -> Result<Vec<u8>, PageError> {
        let mut body = Map::new();
        let mut add = |name: &str, value: &str| {
            if !value.trim().is_empty() {
                body.insert(name.to_owned(), Value::from(value));
            }
        };
        add("model", self.model.trim());
        add("service_tier", &self.tier);
        add("external_semaphore_id", &self.semaphore);
        add("system_prompt", &self.system_prompt);
        // Without it, the error names the field.
        let prompt = if asked == Asked::Chat { "prompt" } else { "user_content" };
        body.insert(prompt.to_owned(), Value::from(&*self.prompt));
        match asked {
            Asked::Chat => {}
            Asked::Structured => {
                let schema: Value = serde_json::from_str(&self.schema)
                    .map_err(|error| PageError::not_json(&error))?;
                body.insert("json_schema".to_owned(), schema);
            }
            Asked::Story => {
                let voices =
                    self.voices.split(',').map(str::trim).filter(|voice| !voice.is_empty());
                body.insert("voice_id_list".to_owned(), voices.map(Value::from).collect());
            }
        }
        Ok(Value::Object(body).to_string().into_bytes())
    }
}

/// The page with the form.
pub(super) async fn show(address: Address, view: View) -> Response {
    let asked = kind_named(address.parameter("kind").unwrap_or_default());
    page(&view, &form(asked, &Entered::example(asked), &view), html! {})
}

fn page(view: &View, form: &Markup, rest: Markup) -> Response {
    layout::page(&shell(view), html! { (form) (rest) })
}

fn shell(view: &View) -> Shell<'_> {
    Shell { title: "Playground", nav: Nav::Playground, view, live: None }
}

fn form(asked: Asked, entered: &Entered, view: &View) -> Markup {
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
                p.hint { "The server's key pays. The request waits for its turn as every other." }
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

/// Sends what was entered, and writes what happens.
pub(super) async fn send(State(site): State<Site>, head: Head, action: Action) -> Response {
    let Action { view, form: fields } = action;
    let asked = kind_named(fields.get("kind"));
    let entered = Entered::of(&fields);
    let form = form(asked, &entered, &view);
    let body = match entered.body(asked) {
        Ok(body) => body,
        Err(error) => return failed_page(&view, &form, &error),
    };
    let timeline = Timeline::new(head.observer);
    let told = Arc::<Timeline>::clone(&timeline);
    let gateway = site.gateway.clone();
    let asking = async move { ask(asked, &body, told, &gateway).await };
    // In a task of its own, so that the calls belong to this request.
    let task = match request_id::current() {
        Some(id) => tokio::spawn(request_id::handling(id, asking)),
        None => tokio::spawn(asking),
    };
    let mut run = Run { task: AbortOnDropHandle::new(task), timeline, shown: 0, reply: None };
    let first = run.look().await;
    if run.shown == 0
        && let Some(Err(error)) = run.reply.take_if(|reply| reply.is_err())
    {
        return failed_page(&view, &form, &error.into());
    }
    written(&view, &form, first, run)
}

fn failed_page(view: &View, form: &Markup, error: &PageError) -> Response {
    let alert = html! { p.alert role="alert" { (error.message()) } };
    let mut response = page(view, form, alert);
    error.mark(&mut response);
    response
}

/// What of the head of a request its calls need.
pub(super) struct Head {
    observer: Option<Arc<dyn CallObserver>>,
}

impl FromRequestParts<Site> for Head {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Parts, _: &Site) -> Result<Self, Infallible> {
        Ok(Self { observer: observer(&head.extensions) })
    }
}

/// A generation under way.
struct Run {
    task: AbortOnDropHandle<Result<Reply, ApiError>>,
    timeline: Arc<Timeline>,
    /// How many steps were written.
    shown: usize,
    /// What was generated, once it is.
    reply: Option<Result<Reply, ApiError>>,
}

impl Run {
    /// Waits for new steps or for the end, and gives the steps.
    async fn look(&mut self) -> Markup {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.reply.is_none() {
            tokio::select! {
                biased;
                ended = &mut self.task => {
                    self.reply = Some(ended.unwrap_or_else(|_| Err(ApiError::internal())));
                }
                _ = looks.tick() => {
                    if self.timeline.entries().len() > self.shown {
                        break;
                    }
                }
            }
        }
        let entries = self.timeline.entries();
        let new = &entries[self.shown.min(entries.len())..];
        self.shown = entries.len();
        html! { @for entry in new { (step(entry)) } }
    }
}

/// What is to be written next.
enum Part {
    Head(String),
    Steps,
    Nothing,
}

/// The page, written while the calls are made.
fn written(view: &View, form: &Markup, first: Markup, run: Run) -> Response {
    let whole = layout::text(&shell(view), html! { (form) hr data-key="cut"; });
    let (head, tail) = whole.split_once(CUT).unwrap_or((&whole, ""));
    let (head, tail) = (format!("{head}{STEPS}{}", first.into_string()), tail.to_owned());
    let pieces = unfold((Part::Head(head), run), move |(part, mut run)| {
        let tail = tail.clone();
        async move {
            let (piece, next) = match part {
                Part::Head(head) => (head, Part::Steps),
                Part::Steps if run.reply.is_none() => (run.look().await.into_string(), Part::Steps),
                Part::Steps => {
                    (format!("{AFTER_STEPS}{}{tail}", run.result().into_string()), Part::Nothing)
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

impl Run {
    /// What was generated, and how.
    fn result(&self) -> Markup {
        let (entries, end) = (self.timeline.entries(), self.timeline.elapsed());
        let summary = summary(&entries, end, &self.timeline.usage());
        let (state, content) = match &self.reply {
            Some(Ok(reply)) => (outcome(None), reply_of(reply)),
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

fn failure(error: ApiError) -> Markup {
    let wait = error.retry_after();
    html! {
        p.alert role="alert" {
            (format::outside(&error.into_text()))
            @if let Some(wait) = wait { " Another attempt may succeed in " (format::duration(wait)) "." }
        }
    }
}

fn reply_of(reply: &Reply) -> Markup {
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

/// JSON with line breaks, as the model wrote it if it cannot be read.
fn pretty(json: &str) -> String {
    let value: Result<Value, _> = serde_json::from_str(json);
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value));
    format::long(pretty.as_deref().unwrap_or(json))
}
