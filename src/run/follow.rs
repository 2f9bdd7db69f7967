//! Follows a job to its end: writes its results in order, and shows how far it is. Where the connection or
//! the service breaks, it goes on after the last result.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::RunFailure;
use super::output::Output;
use super::progress::Progress;
use super::result::{ItemFailure, ItemResult};
use super::results::{self, Interruption, ResultSink};
use super::service::{Action, JobService, Status};
use crate::jobs::JobKind;

/// How often it is asked how far the job is.
const POLL: Duration = Duration::from_secs(1);

/// The pause after the first failure, and the longest: each is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a service that was reachable may be away.
pub(super) const ABSENCE: Duration = Duration::from_secs(15 * 60);

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
    written: Written<'a>,
}

/// What was written of the results.
#[derive(Debug)]
struct Written<'a> {
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

impl<'a> Follower<'a> {
    /// Will write the results from the first on.
    pub fn new(service: &'a JobService, id: &'a str, kind: JobKind, output: Output<'a>) -> Self {
        Self { service, id, written: Written { kind, output, next: 0, failed: Vec::new() } }
    }

    /// Writes all results.
    ///
    /// # Errors
    /// [`RunFailure`] if the output cannot be written, or the service refuses the results. An absence of
    /// the service is not an error.
    pub async fn follow(&mut self, total: u64) -> Result<End, RunFailure> {
        let mut backoff = Backoff::default();
        loop {
            let before = self.written.next;
            match self.read().await {
                Ok(()) if self.written.next >= total => return Ok(End::Complete),
                Ok(()) => match self.service.job(self.id).await {
                    Ok(job) if job.status == Status::Cancelled => return Ok(End::Cancelled),
                    Err(error) if !error.is_transient() => return Err(error.into()),
                    Ok(_) | Err(_) => {}
                },
                Err(Interruption::Service(error)) if error.is_transient() => {}
                Err(interruption) => return Err(interruption.into()),
            }
            if self.written.next > before {
                backoff = Backoff::default();
            }
            backoff.pause().await;
        }
    }

    /// The first failed items, and the output, which is not complete.
    pub fn into_parts(self) -> (Vec<FailedItem>, Output<'a>) {
        (self.written.failed, self.written.output)
    }

    /// Writes results until the service ends them.
    async fn read(&mut self) -> Result<(), Interruption> {
        let query = format!("follow=true&after={}", self.written.next);
        results::read(self.service, self.id, &query, &mut self.written).await
    }
}

impl ResultSink for Written<'_> {
    fn line(&mut self, line: &[u8]) -> Result<(), Interruption> {
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

    fn flush(&mut self) -> Result<(), Interruption> {
        self.output.flush().map_err(Interruption::Output)
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
