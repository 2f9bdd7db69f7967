//! Batches that are stored as jobs: those that are answered later, and those that can be sent again.

use std::future::pending;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use futures_util::stream::try_unfold;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use super::lines::line;
use super::wanted::{PREFERENCE_APPLIED, RESPOND_ASYNC, Wanted};
use super::{BatchTotals, TotalUsage};
use crate::api::error::ApiError;
use crate::api::jobs::{
    Accepted, JobOptions, NDJSON, ResultQuery, ResultReader, ResultsEnded, begin_batch, report,
    resume_failing,
};
use crate::gateway::Gateway;
use crate::gemini::Usage;
use crate::jobs::{Job, JobKind, JobState, Order, PauseReason, ResultPage};
use crate::prices::PriceTier;

/// Stores a batch as a job, and answers at once, or with the results as soon as they are there.
///
/// # Errors
/// 409 if the idempotency key was used for another content, or the job is cancelled or paused meanwhile;
/// the errors of the items; those of the store.
pub(super) async fn answer_stored(
    gateway: &Gateway,
    kind: JobKind,
    wanted: Wanted,
    request: Request,
) -> Result<Response, ApiError> {
    let options = JobOptions::of_batch(kind, request.headers());
    let accepted = begin_batch(gateway, options, request).await?;
    if wanted.later {
        let status = if accepted.is_known { StatusCode::OK } else { StatusCode::ACCEPTED };
        let mut answer = accepted.answer_with(status, gateway);
        answer.headers_mut().insert(PREFERENCE_APPLIED, RESPOND_ASYNC);
        return Ok(answer);
    }
    let job = match accepted {
        // Whoever sends it again wants it to go on.
        Accepted { job, is_known: true } => resume_failing(job, gateway).await?,
        Accepted { job, .. } => job,
    };
    if wanted.lines {
        return Ok(stream_lines(job, gateway));
    }
    let job = ended(job, gateway).await?;
    Ok(whole(job, gateway))
}

/// Waits until a job is completed.
///
/// # Errors
/// 409 if it is cancelled or paused, 404 if it is deleted, the error of its items if it is paused for
/// that, and those of the store.
async fn ended(mut job: Job, gateway: &Gateway) -> Result<Job, ApiError> {
    let mut watch = gateway.jobs.watch(job.number);
    loop {
        match (job.state, &job.reason) {
            (JobState::Completed, _) => return Ok(job),
            (JobState::Cancelled, _) => {
                let detail = format!("The batch was cancelled: see /jobs/{}.", job.id);
                return Err(ApiError::job_state_conflict(detail));
            }
            (JobState::Paused, reason) => {
                let reason = match reason {
                    Some(PauseReason::Failing(code)) => code,
                    Some(PauseReason::KeyNeeded) => "key_needed",
                    _ => "requested",
                };
                return Err(ApiError::job_paused(job.id.as_str(), reason));
            }
            // The connection breaks at the end of the grace period, and the client sends the batch again.
            (JobState::Queued | JobState::Running, _) if watch.is_over() => pending().await,
            (JobState::Queued | JobState::Running, _) => watch.changed().await,
        }
        let now = gateway.jobs.store().job(job.id.clone()).await?;
        job = now.ok_or_else(ApiError::unknown_job)?;
    }
}

/// The totals of a batch, from its results.
#[derive(Default)]
struct Totals {
    succeeded: usize,
    failed: usize,
    usage: TotalUsage,
}

/// What the totals need to know of a result.
#[derive(Deserialize)]
struct Spent {
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: u64,
    output_tokens: u64,
    thinking_tokens: u64,
    total_tokens: u64,
    cached_tokens: u64,
    tool_tokens: u64,
    service_tier: Option<String>,
}

impl Totals {
    fn add(&mut self, page: &ResultPage) {
        for result in &page.results {
            let read = serde_json::from_slice::<Spent>(&result.line);
            let Some(tokens) = read.ok().and_then(|result| result.usage) else {
                self.failed += 1;
                continue;
            };
            self.succeeded += 1;
            let Tokens { prompt_tokens, output_tokens, thinking_tokens, total_tokens, .. } = tokens;
            let Tokens { cached_tokens, tool_tokens, service_tier, .. } = tokens;
            self.usage.add(Usage {
                prompt_tokens,
                output_tokens,
                thinking_tokens,
                total_tokens,
                cached_tokens,
                tool_tokens,
                service_tier: service_tier.as_deref().and_then(PriceTier::from_name),
                ..Usage::default()
            });
        }
    }

    /// The totals, with what failed items have spent, which only the job knows.
    fn of(&self, job: &Job) -> BatchTotals {
        let sum = self.usage.sum();
        let spent = |known: u64, read: u64| known.saturating_sub(read);
        let input = spent(job.progress.input_tokens, sum.prompt_tokens + sum.tool_tokens);
        let output = spent(job.progress.output_tokens, sum.output_tokens + sum.thinking_tokens);
        let usage = Usage {
            prompt_tokens: sum.prompt_tokens + input,
            output_tokens: sum.output_tokens + output,
            total_tokens: sum.total_tokens + input + output,
            cost: job.progress.cost,
            ..sum
        };
        BatchTotals {
            total_requests: self.succeeded + self.failed,
            successful_requests: self.succeeded,
            failed_requests: self.failed,
            usage,
        }
    }
}

/// How far an answer is.
enum Place {
    Begin,
    Results,
    Over,
}

/// The answer of a batch without a job, page by page.
fn whole(job: Job, gateway: &Gateway) -> Response {
    let reader = ResultReader::of(&job, ResultQuery::default(), gateway);
    let state = (reader, job, Totals::default(), Place::Begin);
    let pieces = try_unfold(state, async |(mut reader, job, mut totals, place)| {
        let is_first = match place {
            Place::Begin => true,
            Place::Results => false,
            Place::Over => return Ok(None),
        };
        let mut piece = BytesMut::new();
        if is_first {
            piece.put_slice(b"{\"results\":[");
        }
        let page = reader.next().await.inspect_err(report)?;
        let place = match page {
            Some(page) => {
                totals.add(&page);
                for (index, result) in page.results.iter().enumerate() {
                    if index > 0 || !is_first {
                        piece.put_u8(b',');
                    }
                    piece.put_slice(&result.line);
                }
                Place::Results
            }
            None => {
                let totals = serde_json::to_vec(&totals.of(&job)).unwrap_or_default();
                piece.put_slice(b"],");
                piece.put_slice(totals.strip_prefix(b"{").unwrap_or_default());
                Place::Over
            }
        };
        Ok::<_, ResultsEnded>(Some((piece.freeze(), (reader, job, totals, place))))
    });
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

/// The results as lines, as they come, and the totals at last.
fn stream_lines(job: Job, gateway: &Gateway) -> Response {
    let query = ResultQuery { order: Order::Completion, follows: true, ..ResultQuery::default() };
    let reader = ResultReader::of(&job, query, gateway);
    let state = (reader, job, Totals::default(), gateway.clone(), false);
    let lines = try_unfold(state, async |(mut reader, job, mut totals, gateway, is_over)| {
        if is_over {
            return Ok(None);
        }
        let (piece, job, is_over) = match reader.next().await.inspect_err(report)? {
            Some(page) => {
                totals.add(&page);
                (reader.joined(&page), job, false)
            }
            None => {
                let now = gateway.jobs.store().job(job.id.clone()).await?;
                let job = now.ok_or(ResultsEnded::Deleted)?;
                (line(&totals.of(&job)), job, true)
            }
        };
        Ok::<_, ResultsEnded>(Some((piece, (reader, job, totals, gateway, is_over))))
    });
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}
