//! The progress of a job, as server-sent events.

use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::try_unfold;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use super::results::ResultsEnded;
use super::status::JobStatus;
use crate::gateway::Gateway;
use crate::jobs::{Job, Watch};

/// The least time between two events.
const INTERVAL: Duration = Duration::from_millis(500);

/// After how much time without an event a comment is sent, so that no proxy closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) const EXAMPLE: &str = "event: progress\n\
    data: {\"job_id\":\"job_…\",\"status\":\"running\",\"total\":2,\"succeeded\":1, …}\n\n\
    event: end\n\
    data: {\"job_id\":\"job_…\",\"status\":\"completed\",\"total\":2,\"succeeded\":2, …}\n\n";

/// An event of a job.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct JobEvent {
    /// `progress` when something has changed, and at last `end`.
    event: String,
    /// JSON: the job, as `GET /jobs/{job_id}` shows it. If the job was deleted, the last event has only
    /// its id and the status `deleted`.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What was sent last, and when.
struct Progress {
    gateway: Gateway,
    /// As it was sent.
    job: Job,
    /// When the next event may be sent; `None` before the first.
    next: Option<Instant>,
    is_over: bool,
    watch: Watch,
}

/// Answers with an event at each change of a job, until it has ended.
pub(super) fn stream(job: Job, gateway: Gateway) -> Response {
    let watch = gateway.jobs.watch(job.number);
    let progress = Progress { gateway, job, next: None, is_over: false, watch };
    let events = try_unfold(progress, async |mut progress| {
        if progress.is_over {
            return Ok(None);
        }
        let event = progress.event().await.inspect_err(|error| {
            tracing::warn!(%error, "the events of a job ended early");
        })?;
        Ok::<_, ResultsEnded>(event.map(|event| (event, progress)))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(events).keep_alive(keep_alive).into_response()
}

impl Progress {
    /// The next event; `None` if the job has not ended and this process ends.
    async fn event(&mut self) -> Result<Option<Event>, ResultsEnded> {
        if let Some(next) = self.next {
            sleep_until(next).await;
            loop {
                let is_over = self.watch.is_over();
                match self.gateway.jobs.store().job(self.job.id.clone()).await? {
                    None => return Ok(Some(self.deleted())),
                    Some(job) if job != self.job => {
                        self.job = job;
                        break;
                    }
                    Some(_) if is_over => return Ok(None),
                    Some(_) => self.watch.changed().await,
                }
            }
        }
        self.next = Some(Instant::now() + INTERVAL);
        self.is_over = self.job.state.has_ended();
        let name = if self.is_over { "end" } else { "progress" };
        let status = JobStatus::of(&self.job, &self.gateway);
        Ok(Some(Event::default().event(name).json_data(status).unwrap_or_default()))
    }

    fn deleted(&mut self) -> Event {
        self.is_over = true;
        let data = json!({"job_id": self.job.id.as_str(), "status": "deleted"});
        Event::default().event("end").json_data(data).unwrap_or_default()
    }
}
