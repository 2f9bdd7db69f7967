//! Announces the ends of jobs, and repeats what failed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::delivery::{Deliver, Outcome, WebhookSender};
use super::message::Message;
use super::schedule::next_attempt;
use super::url::origin;
use crate::jobs::{Job, JobStore};
use crate::pacific::{SystemClock, WallClock};

/// How many messages are sent at once. A receiver that does not answer holds one of them for 15 s.
const MAX_DELIVERIES: usize = 64;

/// How long others leave a claimed announcement alone: longer than an attempt takes.
const LEASE: Duration = Duration::from_secs(60);

/// How often the store is asked for announcements that this process does not know of: those of before a
/// restart, and those of other replicas.
const POLL: Duration = Duration::from_secs(60);

/// Writes a job as its owner sees it: as `GET /jobs/{id}` shows it, without prompts and answers.
pub type Render = Arc<dyn Fn(&Job) -> Value + Send + Sync>;

/// Announces the ends of jobs in the background. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Announcer {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// What the task of an [`Announcer`] works with.
struct Announcements {
    store: Arc<dyn JobStore>,
    sender: Arc<dyn Deliver>,
    render: Render,
    clock: Arc<dyn WallClock>,
}

impl Announcer {
    /// Starts to announce. `ended` is notified with [`Notify::notify_one`] whenever a job has ended. If
    /// the sender has no secret, nothing is announced until a process has one.
    pub fn start(
        store: Arc<dyn JobStore>,
        sender: WebhookSender,
        ended: Arc<Notify>,
        render: Render,
    ) -> Self {
        if !sender.has_secret() {
            let stop = CancellationToken::new();
            return Self { stop, task: AbortOnDropHandle::new(tokio::spawn(async {})) };
        }
        Self::with_clock(store, Arc::new(sender), ended, render, Arc::new(SystemClock))
    }

    pub(super) fn with_clock(
        store: Arc<dyn JobStore>,
        sender: Arc<dyn Deliver>,
        ended: Arc<Notify>,
        render: Render,
        clock: Arc<dyn WallClock>,
    ) -> Self {
        let stop = CancellationToken::new();
        let announcements = Arc::new(Announcements { store, sender, render, clock });
        let task = tokio::spawn(announcements.run(ended, stop.clone()));
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    /// Starts no further attempts, and waits for those in progress until `ends_now`. An attempt that is
    /// cut off is repeated when its claim has ended.
    pub async fn stop(self, ends_now: impl Future<Output = ()>) {
        self.stop.cancel();
        tokio::select! {
            _ = self.task => {}
            () = ends_now => {}
        }
    }
}

impl Announcements {
    async fn run(self: Arc<Self>, ended: Arc<Notify>, stop: CancellationToken) {
        let mut attempts = JoinSet::new();
        // When this process has to look for failed announcements again.
        let mut repeats = BTreeSet::new();
        let mut is_store_available = true;
        loop {
            let now = self.now();
            repeats = repeats.split_off(&now);
            repeats.remove(&now);
            let free = MAX_DELIVERIES - attempts.len();
            if free > 0 {
                match self.store.due_announcements(now, LEASE, free as u32).await {
                    Ok(due) => {
                        is_store_available = true;
                        for (job, failed) in due {
                            attempts.spawn(Arc::clone(&self).announce(job, failed));
                        }
                    }
                    Err(error) => {
                        if is_store_available {
                            tracing::warn!(%error, "cannot look for webhooks to send");
                        }
                        is_store_available = false;
                    }
                }
            }
            let next = repeats.first().map(|next: &Timestamp| next.duration_since(now));
            let wait = next.and_then(|wait| wait.try_into().ok()).unwrap_or(POLL).min(POLL);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(repeat) = attempts.join_next() => repeats.extend(repeat.ok().flatten()),
                () = ended.notified() => {}
                () = sleep(wait) => {}
            }
        }
        while attempts.join_next().await.is_some() {}
    }

    /// Makes one attempt and records what became of it. Returns when the next one is due.
    async fn announce(self: Arc<Self>, job: Job, failed: u32) -> Option<Timestamp> {
        let ended_at = job.ended_at?;
        let url = job.spec.webhook_url.as_deref()?;
        let message = Message::new(&job, url, ended_at, (self.render)(&job));
        let outcome = self.sender.deliver(message, self.now()).await;
        let (job_id, to) = (job.id.beginning(), origin(url));
        let next = match &outcome {
            Outcome::Delivered => {
                tracing::debug!(job_id, to, "webhook delivered");
                None
            }
            Outcome::Unwanted => {
                tracing::info!(job_id, to, "webhook given up: the receiver answered 410");
                None
            }
            Outcome::Failed { reason, wait } => {
                let next = next_attempt(failed, *wait, self.now());
                match next {
                    Some(next) => {
                        tracing::info!(job_id, to, %reason, %next, "webhook failed");
                    }
                    None => tracing::warn!(job_id, to, %reason, "webhook given up"),
                }
                next
            }
        };
        match self.store.announced(job.number, ended_at, next).await {
            Ok(()) => next,
            Err(error) => {
                tracing::warn!(job_id, %error, "a webhook's outcome cannot be recorded");
                None
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.at(Instant::now())
    }
}
