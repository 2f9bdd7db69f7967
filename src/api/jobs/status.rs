//! A job as clients see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::gateway::Gateway;
use crate::jobs::webhook::Render;
use crate::jobs::{Failures, Job, JobKind, JobState, PauseReason, Progress};

/// A job, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct JobStatus {
    /// The id of the job.
    #[schema(example = "job_6f1c0b7f2f5e4a0f9b1d3c5e7a9b0d2f")]
    job_id: String,
    /// `chat`, `structured-output`, `cinematic-story-design`, `gemini` or `openai`.
    #[schema(value_type = String)]
    kind: JobKind,
    /// Its name, if it was given one.
    job_name: Option<String>,
    /// `queued`, `running`, `paused`, `completed` or `cancelled`.
    #[schema(value_type = String)]
    status: JobState,
    /// Why it is paused: `requested`; `key_needed`, until its owner resumes it with the same key; or the
    /// error code of all of its items, such as `invalid_api_key`.
    #[schema(value_type = Option<String>)]
    reason: Option<PauseReason>,
    /// How many items it has.
    total: u64,
    /// Items that were answered.
    succeeded: u64,
    /// Items that failed for good.
    failed: u64,
    /// Items in flight, never more than the concurrency limit. Of those that other replicas have taken up it
    /// is an estimate.
    pub running: u64,
    /// Items that wait, without those that are being sent.
    pub waiting: u64,
    /// The failed items by their error code.
    #[schema(value_type = BTreeMap<String, FailedItems>)]
    failures: BTreeMap<String, FailedItems>,
    /// Tokens of all prompts.
    input_tokens: u64,
    /// Tokens of all answers, with their thoughts.
    output_tokens: u64,
    /// What all calls cost in US dollars; 0 where the prices are unknown.
    cost_usd: f64,
    /// How many items end each second, averaged over about a minute.
    pub items_per_second: f64,
    /// In how many seconds the job ends if it goes on like this; null if that cannot be told.
    pub eta_seconds: Option<f64>,
    /// The bytes of its items.
    bytes: u64,
    /// When it was accepted, in UTC.
    #[schema(format = DateTime, example = "2026-07-28T09:30:00.000Z")]
    created_at: String,
    /// When its first item was taken up.
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// When it was completed or cancelled.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// When it is deleted, if it has ended.
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
}

/// The failed items of one error code.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
struct FailedItems {
    /// How many there are.
    count: u64,
    /// The index of one of them.
    example: u64,
}

/// Jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct JobList {
    /// The jobs.
    pub jobs: Vec<JobStatus>,
    /// The id to send as `after` for the next page; null on the last page.
    pub next: Option<String>,
}

/// Shows jobs in webhooks as `GET /jobs/{job_id}` does.
pub fn job_shown(gateway: Gateway) -> Render {
    Arc::new(move |job| json!(JobStatus::of(job, &gateway)))
}

impl JobStatus {
    /// How a job is now.
    pub(crate) fn of(job: &Job, gateway: &Gateway) -> Self {
        let retention = gateway.config.job_retention;
        let retention = retention.and_then(|kept| SignedDuration::try_from(kept).ok());
        let now = Timestamp::now();
        let Progress { succeeded, failed, .. } = job.progress;
        let unanswered = job.unanswered();
        // A job that is paused may have calls in flight yet.
        let in_flight = gateway.jobs.in_flight(job, gateway.dispatcher.concurrency_limit());
        let running = if job.state.has_ended() { 0 } else { in_flight.min(unanswered) };
        let waiting = if job.state.has_ended() { 0 } else { unanswered - running };
        let rate = match job.state {
            JobState::Running => job.progress.rate.per_second(now),
            _ => 0.0,
        };
        let expires_at = job.ended_at.zip(retention);
        let expires_at = expires_at.and_then(|(ended, kept)| ended.checked_add(kept).ok());
        Self {
            job_id: job.id.to_string(),
            kind: job.spec.kind,
            job_name: job.spec.name.clone(),
            status: job.state,
            reason: job.reason.clone(),
            total: job.total,
            succeeded,
            failed,
            running,
            waiting,
            failures: job.progress.failures.iter().map(failed_items).collect(),
            input_tokens: job.progress.input_tokens,
            output_tokens: job.progress.output_tokens,
            cost_usd: job.progress.cost.dollars(),
            items_per_second: rounded(rate),
            eta_seconds: (rate > 0.0).then(|| rounded(unanswered as f64 / rate)),
            bytes: job.bytes,
            created_at: text(job.created_at),
            started_at: job.started_at.map(text),
            ended_at: job.ended_at.map(text),
            expires_at: expires_at.map(text),
        }
    }
}

fn failed_items((code, failures): (&String, &Failures)) -> (String, FailedItems) {
    let Failures { count, example } = *failures;
    (code.clone(), FailedItems { count, example })
}

fn text(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// With three decimals: more are noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
