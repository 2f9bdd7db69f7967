//! Changes jobs, for the endpoints and for the dashboard.

use jiff::Timestamp;

use super::owner::{Viewer, change};
use crate::api::error::ApiError;
use crate::gateway::Gateway;
use crate::jobs::{Change, FailuresToRetry, Job, JobState, Owner, PauseReason};

/// Pauses a job.
///
/// # Errors
/// 404 if the viewer has no such job; 409 if it cannot be paused in its state; 503 if the store is
/// unavailable.
pub(crate) async fn pause(viewer: &Viewer, id: &str, gateway: &Gateway) -> Result<Job, ApiError> {
    let job = viewer.job(id, gateway).await?;
    let job = change(job.number, Change::Pause(PauseReason::Requested), gateway).await?;
    changed(job, |state| state == JobState::Paused, "paused")
}

/// Resumes a job.
///
/// # Errors
/// As for [`pause`]; 409 if the job waits for its owner's key and the viewer does not bring it.
pub(crate) async fn resume(viewer: &Viewer, id: &str, gateway: &Gateway) -> Result<Job, ApiError> {
    let job = viewer.job(id, gateway).await?;
    if matches!((viewer, &job.owner), (Viewer::Admin, Owner::Key(_))) && is_keyless(&job, gateway) {
        let detail = "The job waits for its owner's key: its owner has to resume it with that key.";
        return Err(ApiError::job_state_conflict(detail.to_owned()));
    }
    viewer.brings_key(&job, gateway);
    let job = change(job.number, Change::Resume, gateway).await?;
    forget_unneeded(&job, gateway);
    changed(job, |state| matches!(state, JobState::Queued | JobState::Running), "resumed")
}

/// Cancels a job.
///
/// # Errors
/// As for [`pause`].
pub(crate) async fn cancel(viewer: &Viewer, id: &str, gateway: &Gateway) -> Result<Job, ApiError> {
    let job = viewer.job(id, gateway).await?;
    let job = change(job.number, Change::Cancel, gateway).await?;
    changed(job, |state| state == JobState::Cancelled, "cancelled")
}

/// Sends the failed items of a job that has ended again.
///
/// # Errors
/// As for [`pause`].
pub(crate) async fn retry(
    viewer: &Viewer,
    id: &str,
    which: FailuresToRetry,
    gateway: &Gateway,
) -> Result<Job, ApiError> {
    let job = viewer.job(id, gateway).await?;
    if !job.state.has_ended() {
        return Err(conflict(&job, "retried"));
    }
    viewer.brings_key(&job, gateway);
    let retried = gateway.jobs.store().retry(job.number, which, Timestamp::now()).await?;
    gateway.jobs.wake(job.number);
    let job = retried.ok_or_else(ApiError::unknown_job)?;
    forget_unneeded(&job, gateway);
    Ok(job)
}

/// Deletes a job.
///
/// # Errors
/// 404 if the viewer has no such job; 503 if the store is unavailable.
pub(crate) async fn delete(viewer: &Viewer, id: &str, gateway: &Gateway) -> Result<(), ApiError> {
    let job = viewer.job(id, gateway).await?;
    gateway.jobs.store().delete(job.number).await?;
    gateway.jobs.wake(job.number);
    Ok(())
}

/// Whether no process has the key of a job's owner, as far as that is known here.
fn is_keyless(job: &Job, gateway: &Gateway) -> bool {
    let jobs = &gateway.jobs;
    let is_alone = !jobs.store().is_shared();
    job.reason == Some(PauseReason::KeyNeeded) || (is_alone && jobs.key_of(job.number).is_none())
}

/// Forgets the key of a job that has ended.
fn forget_unneeded(job: &Job, gateway: &Gateway) {
    if job.state.has_ended() {
        gateway.jobs.forget_key(job.number);
    }
}

/// A job after a change.
///
/// # Errors
/// 409 if the change did not apply.
fn changed(job: Job, is: impl Fn(JobState) -> bool, what: &str) -> Result<Job, ApiError> {
    if is(job.state) { Ok(job) } else { Err(conflict(&job, what)) }
}

fn conflict(job: &Job, what: &str) -> ApiError {
    ApiError::job_state_conflict(format!("The job is {}: it cannot be {what}.", job.state))
}
