//! The list of jobs.

use jiff::Timestamp;
use maud::{Markup, html};

use super::access::View;
use super::failure::PageError;
use super::format;
use super::layout::Nav;
use super::page::{Address, Fragment, Page};
use super::parts::{Tone, bar, chip, empty, outside, when};
use crate::api::ApiError;
use crate::api::jobs::JobStatus;
use crate::jobs::{Job, JobId, JobKind, JobState, PauseReason};

/// How many jobs a page has.
const PAGE: u32 = 25;

/// A page of the list, newest first.
pub(super) struct JobsPage {
    /// The last job of the page before.
    after: Option<JobId>,
}

impl JobsPage {
    /// The newest jobs.
    pub fn newest() -> Self {
        Self { after: None }
    }
}

impl Page for JobsPage {
    fn at(address: &Address) -> Option<Self> {
        let after = match address.parameter("after") {
            Some(id) => Some(JobId::parse(id)?),
            None => None,
        };
        Some(Self { after })
    }

    fn nav(&self) -> Nav {
        Nav::Jobs
    }

    fn title(&self) -> String {
        "Jobs".to_owned()
    }

    fn path(&self) -> String {
        "/dashboard/jobs".to_owned()
    }

    fn query(&self) -> String {
        self.after.as_ref().map(|after| format!("after={after}")).unwrap_or_default()
    }

    async fn fragments(&self, view: &View) -> Result<Vec<Fragment>, PageError> {
        let store = view.site.gateway.jobs.store();
        let before = match &self.after {
            Some(after) => store.job(after.clone()).await.map_err(ApiError::from)?,
            None => None,
        };
        let before = before.map(|job| job.number);
        let mut jobs = store.jobs(None, before, PAGE + 1).await.map_err(ApiError::from)?;
        let has_more = jobs.len() > PAGE as usize;
        jobs.truncate(PAGE as usize);
        let older = jobs.last().filter(|_| has_more).map(|job| job.id.clone());
        Ok(vec![Fragment::new("jobs", self.list(&jobs, older.as_ref(), view))])
    }
}

impl JobsPage {
    fn list(&self, jobs: &[Job], older: Option<&JobId>, view: &View) -> Markup {
        let now = Timestamp::now();
        html! {
            section.card aria-label="Jobs" {
                @if jobs.is_empty() {
                    (empty("No jobs", html! {
                        "Send a file to " code { "POST /jobs" } ", or a batch with "
                        code { "Prefer: respond-async" } "."
                    }))
                } @else {
                    table.stack {
                        thead { tr {
                            th scope="col" { "Job" } th scope="col" { "State" }
                            th scope="col" { "Progress" } th.number scope="col" { "Rate" }
                            th.number scope="col" { "Time left" } th.number scope="col" { "Cost" }
                            th scope="col" { "Accepted" }
                        } }
                        tbody { @for job in jobs { (row(job, view, now)) } }
                    }
                }
            }
            nav.pages aria-label="Pages of the list" {
                @if self.after.is_some() { a.button href="/dashboard/jobs" { "Newest" } }
                @if let Some(older) = older {
                    a.button href={ "/dashboard/jobs?after=" (older) } { "Older" }
                }
            }
        }
    }
}

fn row(job: &Job, view: &View, now: Timestamp) -> Markup {
    let status = JobStatus::of(job, &view.site.gateway);
    html! {
        tr data-key=(job.id) {
            th scope="row" {
                a href={ "/dashboard/jobs/" (job.id) } { (name(job)) }
                span.sub { (kind(job.spec.kind)) }
            }
            td data-label="State" { (state(job)) }
            td data-label="Progress" { (progress(job)) }
            td.number data-label="Rate" { (rate(&status)) }
            td.number data-label="Time left" { (time_left(&status)) }
            td.number data-label="Cost" { (format::dollars(job.progress.cost.dollars())) }
            td data-label="Accepted" { (when(job.created_at, now)) }
        }
    }
}

/// The name of a job, or its id.
pub(super) fn name(job: &Job) -> Markup {
    match &job.spec.name {
        Some(name) => outside(name),
        None => html! { code { (job.id.beginning()) "…" } },
    }
}

/// The kind of a job in words.
pub(super) fn kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Chat => "Chat",
        JobKind::StructuredOutput => "Structured output",
        JobKind::CinematicStoryDesign => "Stories",
        JobKind::Gemini => "Gemini's format",
        JobKind::OpenAi => "OpenAI's format",
    }
}

/// The state of a job, and why it is paused.
pub(super) fn state(job: &Job) -> Markup {
    let tone = match job.state {
        JobState::Queued | JobState::Cancelled => Tone::Idle,
        JobState::Running => Tone::Busy,
        JobState::Paused => Tone::Warn,
        JobState::Completed if job.progress.failed > 0 => Tone::Warn,
        JobState::Completed => Tone::Good,
    };
    html! {
        (chip(tone, &job.state.to_string()))
        @match &job.reason {
            None => {}
            Some(PauseReason::Requested) => { span.sub { "on request" } }
            Some(PauseReason::KeyNeeded) => { span.sub { "waits for its owner's key" } }
            Some(PauseReason::Failing(code)) => { span.sub { code { (format::outside(code)) } } }
        }
    }
}

/// How much of a job is done, as a bar and in words.
pub(super) fn progress(job: &Job) -> Markup {
    let done = job.progress.succeeded + job.progress.failed;
    let percent = format::percent(done, job.total);
    let parts = [("ok", job.progress.succeeded), ("failed", job.progress.failed)];
    let text = format!("{} of {} ({percent} %)", format::whole(done), format::whole(job.total));
    html! {
        div.progress {
            (bar("Progress", &text, &parts, job.total))
            span.sub {
                (text)
                @if job.progress.failed > 0 { ", " (format::whole(job.progress.failed)) " failed" }
            }
        }
    }
}

/// Items that end each second.
pub(super) fn rate(status: &JobStatus) -> Markup {
    html! {
        @if status.items_per_second > 0.0 { (format::short(status.items_per_second)) " /s" }
        @else { "–" }
    }
}

/// The time until a job ends.
pub(super) fn time_left(status: &JobStatus) -> Markup {
    html! {
        @if let Some(seconds) = status.eta_seconds { (format::seconds(seconds)) } @else { "–" }
    }
}
