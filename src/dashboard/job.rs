//! One job, and what can be done with it.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_DISPOSITION;
use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

use super::access::{Action, View};
use super::failure::PageError;
use super::format;
use super::jobs::{JobsPage, kind, name, progress, rate, state, time_left};
use super::layout::{Nav, csrf};
use super::page::{Address, Fragment, Notice, Page, outcome};
use super::parts::{Confirmed, button, facts, outside, when};
use crate::api::jobs::{JobStatus, ResultQuery, ResultReader, Viewer, apply, lines};
use crate::api::{ApiError, Code};
use crate::jobs::{Failures, FailuresToRetry, Job, JobId, JobState, Order};

/// Of how many error codes an example is shown.
const MOST_CODES: usize = 10;

/// The longest result of which an error is shown, in bytes.
const MAX_EXAMPLE: usize = 64 * 1024;

/// One job.
pub(super) struct JobPage {
    id: JobId,
}

impl Page for JobPage {
    fn at(address: &Address) -> Option<Self> {
        Some(Self { id: JobId::parse(address.name("id")?)? })
    }

    fn nav(&self) -> Nav {
        Nav::Jobs
    }

    fn title(&self) -> String {
        "Job".to_owned()
    }

    fn path(&self) -> String {
        format!("/dashboard/jobs/{}", self.id)
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let gateway = &view.site.gateway;
        let job = Viewer::Admin.job(self.id.as_str(), gateway).await.map_err(PageError::of_page)?;
        let status = JobStatus::of(&job, gateway);
        let examples = examples(&job, view).await?;
        Ok(vec![
            Fragment::new("summary", summary(&job, &status)),
            Fragment::new("actions", self.actions(&job, view)),
            Fragment::new("facts", details(&job, &status)),
            Fragment::new("failures", failures(&examples)),
        ])
    }
}

fn summary(job: &Job, status: &JobStatus) -> Markup {
    html! {
        section.card.summary aria-label="Progress" {
            div.row {
                h2 { (name(job)) }
                div role="status" { (state(job)) }
            }
            (progress(job))
            div.tiles.small {
                (figure("Running", html! { (format::whole(status.running)) }))
                (figure("Waiting", html! { (format::whole(status.waiting)) }))
                (figure("Rate", rate(status)))
                (figure("Time left", time_left(status)))
                (figure("Cost", html! { (format::dollars(job.progress.cost.dollars())) }))
            }
        }
    }
}

fn figure(label: &str, value: Markup) -> Markup {
    html! { div.tile { p.label { (label) } p.value { (value) } } }
}

fn details(job: &Job, status: &JobStatus) -> Markup {
    let now = Timestamp::now();
    let moment = |time: Option<Timestamp>| match time {
        Some(time) => when(time, now),
        None => html! { "–" },
    };
    let optional = |text: &Option<String>| match text {
        Some(text) => outside(text),
        None => html! { "–" },
    };
    html! {
        section.card {
            h2 { "Details" }
            (facts(&[
                ("Id", html! { code.break { (job.id) } }),
                ("Kind", html! { (kind(job.spec.kind)) }),
                ("Model", optional(&job.spec.model)),
                ("Semaphore", optional(&job.spec.external_semaphore_id)),
                ("Service tier", optional(&job.spec.service_tier)),
                ("Items", html! { (format::whole(job.total)) " (" (format::bytes(job.bytes)) ")" }),
                ("Input tokens", html! { (format::whole(job.progress.input_tokens)) }),
                ("Output tokens", html! { (format::whole(job.progress.output_tokens)) }),
                ("Accepted", when(job.created_at, now)),
                ("Started", moment(job.started_at)),
                ("Ended", moment(job.ended_at)),
                ("Kept until", match &status.expires_at {
                    Some(time) => html! { time datetime=(time) { (time) } },
                    None => html! { "–" },
                }),
            ]))
        }
    }
}

impl JobPage {
    fn actions(&self, job: &Job, view: &View) -> Markup {
        let (session, path) = (&view.session, self.path());
        let action = |name: &str| format!("{path}/{name}");
        let has_ended = job.state.has_ended();
        let cancel = Confirmed {
            action: &action("cancel"),
            fields: &[],
            summary: "Cancel…",
            question: "Items without a result get none. Results that are there stay.",
            label: "Cancel the job",
        };
        let delete = Confirmed {
            action: &action("delete"),
            fields: &[],
            summary: "Delete…",
            question: "The job's prompts and answers are removed from the disk.",
            label: "Delete the job",
        };
        html! {
            div.actions role="group" aria-label="Actions" {
                @if matches!(job.state, JobState::Queued | JobState::Running) {
                    (button(session, &action("pause"), "", "Pause"))
                }
                @if job.state == JobState::Paused {
                    (button(session, &action("resume"), "primary", "Resume"))
                }
                @if let Some((retryable, all)) = retries(job) {
                    form.inline method="post" action=(action("retry")) data-key="retry" {
                        (csrf(session))
                        button.primary type="submit" name="which" value="retryable" { (retryable) }
                        @if let Some(all) = all {
                            button type="submit" name="which" value="all" { (all) }
                        }
                    }
                }
                a.button href=(action("results")) download data-key="results" { "Download results" }
                @if job.progress.failed > 0 {
                    a.button href={ (action("results")) "?only=failed" } download data-key="failed" {
                        "Download failures"
                    }
                }
                @if !has_ended {
                    (cancel.render(session))
                }
                (delete.render(session))
            }
        }
    }
}

/// What can be sent again of a job: what may succeed, and besides it all that failed. A cancelled job has
/// items without a result, too.
fn retries(job: &Job) -> Option<(&'static str, Option<&'static str>)> {
    let has_failed = job.progress.failed > 0;
    match job.state {
        JobState::Cancelled => {
            Some(("Send the rest", has_failed.then_some("Send the rest and all failed")))
        }
        JobState::Completed if has_failed => {
            Some(("Retry what may succeed", Some("Retry all failed")))
        }
        _ => None,
    }
}

/// An error code of failed items.
struct Example {
    code: String,
    failures: Failures,
    /// What went wrong with one of them.
    message: Option<String>,
}

/// The failed items by error code, most first.
async fn examples(job: &Job, view: &View) -> Result<Vec<Example>, PageError> {
    let mut codes: Vec<_> = job.progress.failures.iter().collect();
    codes.sort_by_key(|(_, failures)| std::cmp::Reverse(failures.count));
    let store = view.site.gateway.jobs.store();
    let mut examples = Vec::new();
    for (index, (code, failures)) in codes.into_iter().enumerate() {
        let mut message = None;
        if index < MOST_CODES {
            let after = failures.example;
            let page = store.results(job.number, Order::Input, true, after, 1, MAX_EXAMPLE);
            let page = page.await.map_err(ApiError::from)?;
            let line = page.results.first().filter(|result| result.index == after);
            message = line.and_then(|result| error_message(&result.line));
        }
        examples.push(Example { code: code.clone(), failures: *failures, message });
    }
    Ok(examples)
}

/// What a result says about its error, whatever its format.
fn error_message(line: &[u8]) -> Option<String> {
    if line.len() > MAX_EXAMPLE {
        return None;
    }
    let result: Value = serde_json::from_slice(line).ok()?;
    let places = ["/error/message", "/response/body/error/message", "/error"];
    match places.iter().find_map(|place| result.pointer(place))? {
        Value::String(text) => Some(text.clone()),
        Value::Array(fields) => {
            let messages: Vec<_> =
                fields.iter().filter_map(|field| field["msg"].as_str()).collect();
            Some(messages.join("; "))
        }
        _ => None,
    }
}

fn failures(examples: &[Example]) -> Markup {
    html! {
        @if !examples.is_empty() {
            section.card {
                h2 { "Failures" }
                table.stack {
                    thead { tr {
                        th scope="col" { "Code" } th.number scope="col" { "Items" }
                        th scope="col" { "Meaning" } th scope="col" { "Example" }
                    } }
                    tbody {
                        @for Example { code, failures, message } in examples {
                            tr data-key=(code) {
                                th scope="row" { code { (format::outside(code)) } }
                                td.number data-label="Items" { (format::whole(failures.count)) }
                                td data-label="Meaning" {
                                    @if let Some(code) = Code::named(code) { (meaning(code)) }
                                }
                                td data-label="Example" {
                                    span {
                                        "Item " (format::whole(failures.example))
                                        @if let Some(message) = message { ": " (outside(message)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The beginning of what the table of errors says about a code.
pub(super) fn meaning(code: Code) -> String {
    code.meaning().split(';').next().unwrap_or_default().replace('`', "")
}

async fn changed(action: Action, id: &str, notice: Notice, done: Result<(), ApiError>) -> Response {
    let Some(id) = JobId::parse(id) else { return PageError::not_found().into_response() };
    outcome(JobPage { id }, &action.view, done.map(|()| notice)).await
}

/// Pauses the job.
pub(super) async fn pause(Path(id): Path<String>, action: Action) -> Response {
    let done = apply::pause(&Viewer::Admin, &id, &action.view.site.gateway).await;
    changed(action, &id, Notice::JOB_PAUSED, done.map(drop)).await
}

/// Resumes the job.
pub(super) async fn resume(Path(id): Path<String>, action: Action) -> Response {
    let done = apply::resume(&Viewer::Admin, &id, &action.view.site.gateway).await;
    changed(action, &id, Notice::JOB_RESUMED, done.map(drop)).await
}

/// Cancels the job.
pub(super) async fn cancel(Path(id): Path<String>, action: Action) -> Response {
    let done = apply::cancel(&Viewer::Admin, &id, &action.view.site.gateway).await;
    changed(action, &id, Notice::JOB_CANCELLED, done.map(drop)).await
}

/// Sends failed items again.
pub(super) async fn retry(Path(id): Path<String>, action: Action) -> Response {
    let which = match action.form.get("which") {
        "all" => FailuresToRetry::All,
        _ => FailuresToRetry::Retryable,
    };
    let done = apply::retry(&Viewer::Admin, &id, which, &action.view.site.gateway).await;
    let notice = match &done {
        Ok(job) if job.state == JobState::Completed => Notice::NOTHING_TO_RETRY,
        _ => Notice::JOB_RESUMED,
    };
    changed(action, &id, notice, done.map(drop)).await
}

/// Deletes the job.
pub(super) async fn delete(Path(id): Path<String>, action: Action) -> Response {
    match apply::delete(&Viewer::Admin, &id, &action.view.site.gateway).await {
        Ok(()) => {
            let deleted = Ok::<_, PageError>(Notice::JOB_DELETED);
            outcome(JobsPage::newest(), &action.view, deleted).await
        }
        Err(error) => changed(action, &id, Notice::JOB_DELETED, Err(error)).await,
    }
}

/// Downloads the results that are there, or the failures among them.
pub(super) async fn results(
    Path(id): Path<String>,
    address: Address,
    view: View,
) -> Result<Response, PageError> {
    let gateway = &view.site.gateway;
    let job = Viewer::Admin.job(&id, gateway).await?;
    let only_failed = address.parameter("only") == Some("failed");
    let query = ResultQuery { only_failed, ..ResultQuery::default() };
    let mut response = lines(ResultReader::of(&job, query, gateway));
    let what = if only_failed { "failures" } else { "results" };
    let name = format!("attachment; filename=\"{}-{what}.jsonl\"", job.id);
    let name = HeaderValue::try_from(name).expect("an id is ASCII");
    response.headers_mut().insert(CONTENT_DISPOSITION, name);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_result_is_found_in_every_format() {
        for (line, message) in [
            (r#"{"success": false, "error": "No.", "error_code": "x"}"#, Some("No.")),
            (r#"{"error": [{"msg": "No."}, {"msg": "Never."}]}"#, Some("No.; Never.")),
            (r#"{"key": "a", "error": {"message": "No.", "status": "X"}}"#, Some("No.")),
            (
                r#"{"response": {"body": {"error": {"message": "No."}}}, "error": null}"#,
                Some("No."),
            ),
            (r#"{"response": {}}"#, None),
            ("[", None),
        ] {
            assert_eq!(error_message(line.as_bytes()).as_deref(), message, "{line}");
        }
    }

    #[test]
    fn meanings_are_short() {
        for code in Code::ALL {
            assert!(!meaning(*code).is_empty() && meaning(*code).len() < 250, "{code}");
        }
    }
}
