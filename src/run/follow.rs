//! Follows a job to its end: writes its results in order, and shows how far it is. Where the connection or
//! the service breaks, it goes on after the last result.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use memchr::memchr;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use super::failure::{RunFailure, UNAVAILABLE};
use super::output::{Output, OutputError};
use super::progress::Progress;
use super::result::{ItemFailure, ItemResult};
use super::service::{Action, JobService, Status};
use crate::client::ClientError;
use crate::jobs::JobKind;

/// How often it is asked how far the job is.
const POLL: Duration = Duration::from_secs(1);

/// The pause after the first failure, and the longest: each is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a service that was reachable may be away.
pub(super) const ABSENCE: Duration = Duration::from_secs(15 * 60);

/// A connection over which no result came for this long may be dead, and is replaced.
const SILENCE: Duration = Duration::from_secs(60);

/// The longest result that is read, in bytes.
const MAX_LINE: usize = 256 << 20;

/// How many failed items are listed.
const LISTED_FAILURES: usize = 20;

/// An item without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedItem {
    pub index: u64,
    pub custom_id: Option<String>,
    pub failure: ItemFailure,
}

/// How the results of a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Each item has its result.
    Complete,
    /// The job was cancelled, and further items have none.
    Cancelled,
}

/// Writes the results of a job.
#[derive(Debug)]
pub struct Follower<'a> {
    service: &'a JobService,
    id: &'a str,
    kind: JobKind,
    output: Output<'a>,
    /// The index of the next result.
    next: u64,
    /// The first failed items.
    failed: Vec<FailedItem>,
}

/// Pauses that become longer.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSE)
    }
}

impl Backoff {
    /// Waits, up to a fifth longer by chance, so that clients do not all come at once.
    pub(super) async fn pause(&mut self) {
        sleep(self.0.mul_f64(1.0 + fastrand::f64() / 5.0)).await;
        self.0 = (2 * self.0).min(LONGEST_PAUSE);
    }
}

/// Why reading ended before the end.
enum Interruption {
    Service(ClientError),
    Output(OutputError),
    Malformed(String),
}

impl<'a> Follower<'a> {
    /// Will write the results from the first on.
    pub fn new(service: &'a JobService, id: &'a str, kind: JobKind, output: Output<'a>) -> Self {
        Self { service, id, kind, output, next: 0, failed: Vec::new() }
    }

    /// Writes all results.
    ///
    /// # Errors
    /// [`RunFailure`] if the output cannot be written, or the service refuses the results. An absence of
    /// the service is not an error.
    pub async fn follow(&mut self, total: u64) -> Result<End, RunFailure> {
        let mut backoff = Backoff::default();
        loop {
            let before = self.next;
            match self.read().await {
                Ok(()) if self.next >= total => return Ok(End::Complete),
                Ok(()) => match self.service.job(self.id).await {
                    Ok(job) if job.status == Status::Cancelled => return Ok(End::Cancelled),
                    Err(error) if !error.is_transient() => return Err(error.into()),
                    Ok(_) | Err(_) => {}
                },
                Err(Interruption::Service(error)) if error.is_transient() => {}
                Err(Interruption::Service(error)) => return Err(error.into()),
                Err(Interruption::Output(error)) => return Err(error.into()),
                Err(Interruption::Malformed(message)) => {
                    return Err(RunFailure::new(UNAVAILABLE, message));
                }
            }
            if self.next > before {
                backoff = Backoff::default();
            }
            backoff.pause().await;
        }
    }

    /// The first failed items, and the output, which is not complete.
    pub fn into_parts(self) -> (Vec<FailedItem>, Output<'a>) {
        (self.failed, self.output)
    }

    /// Writes results until the service ends them.
    async fn read(&mut self) -> Result<(), Interruption> {
        let query = format!("follow=true&after={}", self.next);
        let opened = timeout(SILENCE, self.service.results(self.id, &query)).await;
        let late = |_| ClientError::Broken("no answer".to_owned());
        let opened = opened.map_err(late).and_then(|opened| opened);
        let mut body: Body = opened.map_err(Interruption::Service)?;
        let broken = |reason: &str| Interruption::Service(ClientError::Broken(reason.to_owned()));
        let mut start = Vec::new();
        loop {
            let frame = timeout(SILENCE, body.frame()).await;
            let frame = frame.map_err(|_| broken("no result for a while"))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| broken(&error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            // The output may be a pipe that nobody reads.
            block_in_place(|| self.take(&mut start, data))?;
        }
        if start.is_empty() { Ok(()) } else { Err(broken("a result is incomplete")) }
    }

    /// Writes the lines in what has come, and keeps the start of a line that is not complete.
    fn take(&mut self, start: &mut Vec<u8>, mut data: Bytes) -> Result<(), Interruption> {
        while let Some(end) = memchr(b'\n', &data) {
            let rest = data.split_to(end + 1);
            if start.is_empty() {
                self.line(&rest[..end])?;
            } else {
                start.extend_from_slice(&rest[..end]);
                self.line(start)?;
                start.clear();
            }
        }
        if start.len() + data.len() > MAX_LINE {
            let message = format!("a result is longer than {MAX_LINE} bytes");
            return Err(Interruption::Malformed(message));
        }
        start.extend_from_slice(&data);
        self.output.flush().map_err(Interruption::Output)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Interruption> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let result = ItemResult::read(self.kind, line).map_err(|error| {
            Interruption::Malformed(format!("the result {} cannot be read: {error}", self.next))
        })?;
        self.output.add(line, &result).map_err(Interruption::Output)?;
        let index = result.index.unwrap_or(self.next);
        self.next = index + 1;
        if let Err(failure) = result.answer
            && self.failed.len() < LISTED_FAILURES
        {
            let custom_id = result.custom_id.map(|id| id.into_owned());
            self.failed.push(FailedItem { index, custom_id, failure });
        }
        Ok(())
    }
}

/// Shows how far a job is, as long as it goes on. Returns why it does not.
pub async fn watch(service: &JobService, id: &str, progress: &Progress) -> RunFailure {
    let (mut reached, mut was_away) = (Instant::now(), false);
    loop {
        match service.job(id).await {
            Ok(job) => {
                reached = Instant::now();
                progress.show(&job);
                if std::mem::take(&mut was_away) && job.status == Status::Running {
                    // If it was restarted, it does not know the caller's key. This request has it.
                    drop(service.act(id, Action::Resume).await);
                }
                if job.status == Status::Paused {
                    match job.reason.as_deref().unwrap_or("requested") {
                        "key_needed" => drop(service.act(id, Action::Resume).await),
                        reason => return RunFailure::paused(reason),
                    }
                }
            }
            Err(error) if error.is_transient() && reached.elapsed() < ABSENCE => {
                was_away = true;
                progress.waits(&error.to_string());
            }
            Err(error) => return error.into(),
        }
        sleep(POLL).await;
    }
}
