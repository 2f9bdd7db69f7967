//! What is sent when a job has ended.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::jobs::{Job, JobState};

/// One message. It is the same for each attempt, except for what the job says about itself.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// The job's URL, as its owner wrote it.
    pub url: String,
    /// The value of `webhook-id`: one for each end of a job, so that receivers can drop repetitions. It
    /// contains no full stop, which would make the signed text ambiguous.
    pub id: String,
    /// JSON.
    pub body: Bytes,
}

impl Message {
    /// The message about the end of a job at a time. `data` is the job as its owner sees it.
    pub fn new(job: &Job, url: &str, ended_at: Timestamp, data: Value) -> Self {
        let kind = match job.state {
            JobState::Cancelled => "job.cancelled",
            _ => "job.completed",
        };
        let body = json!({"type": kind, "timestamp": ended_at.to_string(), "data": data});
        Self {
            url: url.to_owned(),
            id: format!("{}_{}", job.id, ended_at.as_millisecond()),
            body: body.to_string().into(),
        }
    }
}
