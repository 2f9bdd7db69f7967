//! One run in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::BackgroundRuns;
use crate::dispatch::Call;
use crate::dispatch::attempt::{Attempt, Outcome};
use crate::gemini::{Client, Error, ErrorKind, Forward, InteractionScanner, Payload, SendContext};
use crate::metrics::CountedRun;

/// The longest wait between two polls.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long one poll may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// A run that is not settled, with what it holds.
#[derive(Debug)]
pub(in crate::dispatch) struct Run {
    id: String,
    call: Call,
    poller: Poller,
    /// Until it is settled.
    held: Mutex<Option<(Attempt, CountedRun)>>,
    /// It is settled, or nothing more can be learned of it.
    is_over: CancellationToken,
    /// Somebody has asked how it stands.
    was_read: Notify,
    /// Whether it is to be cancelled, which takes Gemini a moment.
    is_cancelled: AtomicBool,
}

/// Asks Gemini how a run stands.
#[derive(Debug)]
pub(super) struct Poller {
    pub client: Client,
    pub request: Forward,
}

impl Run {
    pub(super) fn new(id: &str, attempt: Attempt, poller: Poller) -> Self {
        let counted = attempt.counted_run();
        Self {
            id: id.to_owned(),
            call: attempt.call.clone(),
            poller,
            held: Mutex::new(Some((attempt, counted))),
            is_over: CancellationToken::new(),
            was_read: Notify::new(),
            is_cancelled: AtomicBool::new(false),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Somebody has read how the run stands.
    pub(super) fn is_read(&self) {
        self.was_read.notify_one();
    }

    /// Somebody cancels the run.
    pub(super) fn is_cancelled(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        self.was_read.notify_one();
    }

    /// The run has come to its end: it is booked, once, and gives back what it holds.
    pub(super) fn settle(&self, runs: &BackgroundRuns, seen: &InteractionScanner) {
        let Some(attempt) = self.take() else { return };
        runs.remember(seen, &self.call);
        let is_cancelled = seen.status() == Some("cancelled");
        let outcome = if is_cancelled { Outcome::Cancelled } else { Outcome::Answered(None) };
        attempt.end(&outcome, seen.usage().unwrap_or_default());
    }

    /// Asks once more how the run stands, before it is deleted.
    pub(in crate::dispatch) async fn settle_before_deletion(&self, runs: &BackgroundRuns) {
        if let Err(error) = self.poll(runs).await {
            let (model, code) = (self.call.model(), error.kind.code());
            tracing::debug!(%model, code, "a run in the background cannot be read before it is deleted");
        }
    }

    /// The run is deleted. If its end was not seen, it keeps what it holds until its time is over: Gemini
    /// forgets it and works on.
    pub(in crate::dispatch) fn is_deleted(&self) {
        if !self.is_over.is_cancelled() {
            let model = self.call.model();
            tracing::warn!(%model, "a run in the background is deleted before its end was seen");
        }
    }

    /// Nothing more can be learned of the run. It gives back what it holds, and the estimate of its
    /// cost stands.
    pub(super) fn abandon(&self) {
        drop(self.take());
    }

    fn take(&self) -> Option<Attempt> {
        self.is_over.cancel();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map(|(attempt, _)| attempt)
    }

    /// Waits until the run is settled, and polls it while nobody else reads it.
    pub(super) async fn follow(&self, runs: &BackgroundRuns) {
        let (policy, started) = (runs.policy, Instant::now());
        let ends = started + policy.time_limit;
        let mut wait = policy.poll;
        loop {
            let poll_at = wait.map_or(ends, |wait| ends.min(Instant::now() + wait));
            tokio::select! {
                biased;
                () = self.is_over.cancelled() => return,
                () = sleep_until(poll_at) => {}
                () = self.was_read.notified() => {
                    if self.is_cancelled.swap(false, Ordering::Relaxed) {
                        wait = wait.and(policy.poll);
                    }
                    continue;
                }
            }
            if poll_at == ends {
                let (model, time_limit) = (self.call.model(), policy.time_limit);
                tracing::warn!(%model, ?time_limit, "a run in the background was not settled in time");
                return;
            }
            wait = match self.poll(runs).await {
                Err(error) if is_for_good(&error) => {
                    let (model, code) = (self.call.model(), error.kind.code());
                    tracing::warn!(%model, code, "a run in the background cannot be polled");
                    None
                }
                Ok(()) | Err(_) => wait.map(|wait| (wait * 2).min(LONGEST_WAIT.max(wait))),
            };
        }
    }

    /// Asks Gemini once how the run stands.
    async fn poll(&self, runs: &BackgroundRuns) -> Result<(), Error> {
        let seen = self.poller.poll(&self.call).await?;
        if seen.is_settled() {
            self.settle(runs, &seen);
        }
        Ok(())
    }
}

/// Whether a run cannot be read at all: it was deleted, or its key may create runs and not read them,
/// for which users report a 400. The run keeps its slots until its time is over, since Gemini works on
/// it.
fn is_for_good(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::InvalidRequest
            | ErrorKind::InvalidKey
            | ErrorKind::PermissionDenied
            | ErrorKind::ModelNotFound
    )
}

impl Poller {
    async fn poll(&self, call: &Call) -> Result<InteractionScanner, Error> {
        let read = async {
            let payload = Payload::Buffered(Full::new(Bytes::new()));
            let passed = self
                .client
                .pass(&self.request, Some(call.key()), payload, SendContext::default())
                .await;
            let mut body = passed.map_err(|rejected| rejected.error)?.into_body();
            let mut seen = InteractionScanner::default();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Error::new(ErrorKind::BrokenOff, "it broke off"))?;
                seen.scan(frame.data_ref().map_or(&[][..], |data| data));
            }
            Ok(seen)
        };
        let timed_out = || Err(Error::timed_out(POLL_TIMEOUT));
        timeout(POLL_TIMEOUT, read).await.unwrap_or_else(|_| timed_out())
    }
}
