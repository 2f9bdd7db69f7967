//! Begins the job of a run, or continues it.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::failure::{RunFailure, USAGE};
use super::follow::{ABSENCE, Backoff};
use super::plan::Plan;
use super::progress::Progress;
use super::service::{Action, JobService, JobStatus, Status};
use super::upload::Upload;
use crate::client::ClientError;

/// Sends the job unless it was accepted before, and lets it go on if it is paused.
pub(super) async fn begin(
    service: &JobService,
    upload: &Arc<Upload>,
    plan: &mut Plan,
    progress: &Progress,
) -> Result<JobStatus, RunFailure> {
    let mut job = None;
    if let Some(id) = plan.job_id() {
        job = match persistently(progress, Contact::First, async || service.job(id).await).await {
            // It was deleted, or its time was over.
            Err(ClientError::Refused(refusal)) if refusal.status() == StatusCode::NOT_FOUND => None,
            found => Some(found?),
        };
    }
    let job = match job {
        Some(job) => job,
        None => {
            let (job, is_known) = submit(service, upload, plan, progress).await?;
            plan.accepted(&job.job_id)?;
            if is_known {
                plan.found();
            }
            job
        }
    };
    let action = match job.status {
        Status::Paused => Some(Action::Resume),
        Status::Completed if job.failed > 0 => plan.retry(),
        Status::Cancelled => plan.retry(),
        _ => None,
    };
    let Some(action) = action else { return Ok(job) };
    plan.accepted(&job.job_id)?;
    let act = async || service.act(&job.job_id, action).await;
    match persistently(progress, Contact::Later, act).await {
        // It goes on already, or there is nothing to ask again.
        Err(ClientError::Refused(refusal)) if refusal.status() == StatusCode::CONFLICT => {
            let job = async || service.job(&job.job_id).await;
            Ok(persistently(progress, Contact::Later, job).await?)
        }
        changed => Ok(changed?),
    }
}

async fn submit(
    service: &JobService,
    upload: &Arc<Upload>,
    plan: &Plan,
    progress: &Progress,
) -> Result<(JobStatus, bool), RunFailure> {
    let (measure, key) = (plan.measure(), plan.idempotency_key());
    let submitted = persistently(progress, Contact::First, async || {
        progress.sends(measure.bytes);
        let bar = progress.clone();
        let submitted = service.submit(upload, measure, &key, move |bytes| bar.sent(bytes)).await;
        // Sent again, it would be refused again, or wait again for a service that does not answer.
        Ok(match submitted {
            Err(error @ ClientError::Silent { .. }) => Err(error),
            Err(error) if error.is_transient() && !upload.has_changed() => return Err(error),
            submitted => submitted,
        })
    });
    match submitted.await.and_then(|submitted| submitted) {
        Ok(submitted) => Ok(submitted),
        Err(_) if upload.has_changed() => {
            let name = upload.input().name();
            Err(RunFailure::new(USAGE, format!("{name} changed while it was read")))
        }
        Err(error) => Err(RunFailure::of_upload(error, upload)),
    }
}

/// Whether a service has answered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contact {
    First,
    Later,
}

/// Repeats a request after transient errors, if the service was reachable once. A full disk is not waited
/// for.
pub(super) async fn persistently<T>(
    progress: &Progress,
    contact: Contact,
    mut attempt: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let (mut backoff, begun, mut was_reached) =
        (Backoff::default(), Instant::now(), contact == Contact::Later);
    loop {
        let error = match attempt().await {
            Err(error) if error.is_transient() => error,
            outcome => return outcome,
        };
        was_reached |=
            !matches!(error, ClientError::Unreachable { .. } | ClientError::Silent { .. });
        if !was_reached || error.is_full() || begun.elapsed() >= ABSENCE {
            return Err(error);
        }
        progress.waits(&error.to_string());
        backoff.pause().await;
    }
}
