//! One job, from its first claim to its last result.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Result as Caught;
use std::time::Duration;

use futures_util::future::{BoxFuture, pending};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::item::{Ended, JobItem, Returned, Unrecorded};
use super::lease::Renewed;
use super::record::Record;
use super::window::Window;
use super::{Shared, backoff};
use crate::gemini::ApiKey;
use crate::generation::bulk::Bulk;
use crate::jobs::item::{ItemOutcome, PreparedItem};
use crate::jobs::model::{Answered, Block, Change, Job, JobState, PauseReason};
use crate::jobs::observer::RunObserver;
use crate::jobs::store::{StoreError, Stored};

/// The most bytes of items in memory, over all jobs. Each job may have one block more.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// The most items of a job that are put off and still in memory.
const MAX_LATER: usize = 4096;

/// How many items are prepared at a time.
const MAX_PREPARING: usize = 32;

/// How many outcomes are taken at a time.
const TAKEN: usize = 256;

/// How long to wait at most before a claim is tried again that found nothing: blocks of a process that
/// ended come free, unless it gave them back, when their lease ends.
const NOTHING_TO_CLAIM: Duration = Duration::from_secs(15);

/// What a run is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Send items.
    Send,
    /// Send nothing more, let the calls in flight finish, and end.
    WindDown,
    /// Drop the calls in flight, and end.
    Abort,
}

/// What a preparation gives, unless it panics.
type Prepared = Caught<Result<PreparedItem, ItemOutcome>>;

/// A job that is queued or running, as this process sends its items.
pub(super) struct Run {
    engine: Arc<Shared>,
    observer: Option<Arc<dyn RunObserver>>,
    job: Arc<Job>,
    key: ApiKey,
    orders: watch::Receiver<Order>,
    order: Order,
    renewals: watch::Receiver<Arc<Renewed>>,
    window: Window,
    preparing: FuturesUnordered<BoxFuture<'static, (u64, Prepared)>>,
    /// Where runners put outcomes, and where they are taken.
    returned: Returned,
    outcomes: mpsc::UnboundedReceiver<(u64, Ended)>,
    bulk: Option<Bulk<JobItem, Returned>>,
    /// Whether the bulk was stopped. Once it has finished, there may be a new one.
    is_stopped: bool,
    /// How often the queue was full in a row, and when it is tried again.
    refused: u32,
    send_again_at: Option<Instant>,
    claim: Claim,
    record: Record,
    failing: Option<Failing>,
    /// Blocks that the last renewal showed and that are not in the window.
    stray: HashSet<u64>,
}

/// Claims of further blocks.
#[derive(Default)]
struct Claim {
    pending: Option<Stored<Vec<Block>>>,
    /// How often there was nothing in a row, or it failed.
    in_vain: u32,
    again_at: Option<Instant>,
}

/// The job is to be paused because its items fail without hope.
struct Failing {
    code: &'static str,
    pending: Option<Stored<Option<Job>>>,
    failed: u32,
    again_at: Option<Instant>,
}

impl Run {
    pub fn new(engine: Arc<Shared>, job: Job, key: ApiKey, orders: watch::Receiver<Order>) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let renewals = engine.renewals.subscribe();
        let unrecorded = Arc::new(Unrecorded::new(engine.unrecorded));
        let observer = engine.observer.as_ref().map(|observer| observer.begins(&job));
        Self {
            engine,
            observer,
            job: Arc::new(job),
            key,
            orders,
            order: Order::Send,
            renewals,
            window: Window::default(),
            preparing: FuturesUnordered::new(),
            returned: Returned { outcomes: sender, unrecorded },
            outcomes,
            bulk: None,
            is_stopped: false,
            refused: 0,
            send_again_at: None,
            claim: Claim::default(),
            record: Record::default(),
            failing: None,
            stray: HashSet::new(),
        }
    }

    /// Runs until the job has ended, is paused, or this process stops. Then it holds no claims.
    pub async fn run(mut self) {
        let mut outcomes = Vec::new();
        loop {
            self.order = self.order.max(*self.orders.borrow_and_update());
            self.advance(Instant::now());
            if self.order == Order::Abort {
                self.drop_calls().await;
                break;
            }
            if self.has_wound_down() {
                break;
            }
            let wakes_at = self.wakes_at(Instant::now());
            tokio::select! {
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        self.order = Order::Abort;
                    }
                }
                _ = self.outcomes.recv_many(&mut outcomes, TAKEN) => {
                    outcomes.drain(..).for_each(|(index, ended)| self.take(index, ended));
                }
                Some((index, prepared)) = self.preparing.next() => self.prepared(index, prepared),
                blocks = ready(&mut self.claim.pending) => self.claimed(blocks),
                recorded = self.record.done() => self.recorded(recorded),
                paused = ready_of(&mut self.failing) => self.paused(paused),
                () = finished(&self.bulk) => self.bulk_finished(),
                Ok(()) = self.renewals.changed() => self.renewed(),
                () = sleep_until(wakes_at) => {}
            }
        }
        let (store, replica) = (self.engine.jobs.store(), self.engine.jobs.replica().clone());
        if let Err(error) = store.release(replica, Some(self.job.number)).await {
            self.engine.writing.failed(&error);
        }
    }

    /// Begins everything that can begin now.
    fn advance(&mut self, now: Instant) {
        self.window.wake(now);
        let (store, number) = (self.engine.jobs.store(), self.job.number);
        self.record.begin(&**store, number, now);
        if let Some(failing) = &mut self.failing
            && failing.pending.is_none()
            && failing.again_at.is_none_or(|at| at <= now)
        {
            let change = Change::Pause(PauseReason::Failing(failing.code.to_owned()));
            failing.pending = Some(store.change(number, change, Timestamp::now()));
        }
        if !self.may_send(now) {
            return self.stop_sending();
        }
        if self.is_stopped {
            return;
        }
        if self.bulk.is_none() {
            self.bulk = Some(Bulk::new(&self.engine.dispatcher, self.returned.clone()));
        }
        if self.wants_blocks() && self.claim.again_at.is_none_or(|at| at <= now) {
            self.claim_blocks();
        }
        while self.preparing.len() < MAX_PREPARING
            && let Some((index, line)) = self.window.send_next()
        {
            let (job, key) = (Arc::clone(&self.job), self.key.clone());
            let format = Arc::clone(&self.engine.format);
            let prepared = async move { format.prepare(&job, &key, index, line).await };
            let prepared = AssertUnwindSafe(prepared).catch_unwind();
            self.preparing.push(prepared.map(move |prepared| (index, prepared)).boxed());
        }
    }

    /// Whether items may be sent now.
    fn may_send(&self, now: Instant) -> bool {
        self.order == Order::Send
            && self.failing.is_none()
            && !self.record.is_failing()
            && self.engine.lease.is_in_force()
            && self.send_again_at.is_none_or(|at| at <= now)
    }

    /// Lets the calls in flight finish. Items that were not sent come back once that has happened.
    fn stop_sending(&mut self) {
        if let Some(bulk) = &self.bulk {
            self.is_stopped = true;
            bulk.stop();
        }
    }

    /// How many bytes this job may have in memory.
    fn share(&self) -> usize {
        MAX_BYTES / self.engine.runs.load(Ordering::Relaxed).max(1)
    }

    fn wants_blocks(&self) -> bool {
        self.claim.pending.is_none()
            && self.window.active() <= self.engine.window / 2
            && self.window.later() < MAX_LATER
            && (self.window.bytes() < self.share() || self.window.is_empty())
    }

    fn claim_blocks(&mut self) {
        let items = self.engine.window.saturating_sub(self.window.active());
        let bytes = self.share().saturating_sub(self.window.bytes());
        let jobs = &self.engine.jobs;
        self.claim.pending = Some(jobs.store().claim(
            self.job.number,
            jobs.replica().clone(),
            u32::try_from(items).unwrap_or(u32::MAX),
            bytes,
            self.engine.lease.length(),
        ));
    }

    fn claimed(&mut self, blocks: Result<Vec<Block>, StoreError>) {
        let claim = &mut self.claim;
        claim.pending = None;
        let wait = match blocks {
            Ok(blocks) if blocks.is_empty() => backoff::again(claim.in_vain).min(NOTHING_TO_CLAIM),
            Ok(blocks) => {
                (claim.in_vain, claim.again_at) = (0, None);
                self.engine.writing.ended();
                self.window.add(blocks, self.engine.lease.round());
                if self.job.state == JobState::Queued {
                    self.engine.jobs.notify_watchers(self.job.number);
                }
                return;
            }
            Err(error) => {
                self.engine.writing.failed(&error);
                backoff::again(claim.in_vain)
            }
        };
        claim.in_vain += 1;
        claim.again_at = Some(Instant::now() + wait);
    }

    fn prepared(&mut self, index: u64, prepared: Prepared) {
        match (prepared, &self.bulk) {
            (Ok(Ok(item)), Some(bulk)) => {
                let lease = Arc::clone(&self.engine.lease);
                let (route, item) = JobItem::new(item, self.key.clone(), lease);
                let item = item.observed_by(self.observer.as_ref(), index);
                bulk.add(index, route, item);
            }
            // It is prepared again when items may be sent.
            (Ok(Ok(_)), None) => self.window.take_back(index),
            (Ok(Err(outcome)), _) => self.returned.put(index, Ended::With(outcome)),
            (Err(_), _) => self.returned.put(index, Ended::Panicked),
        }
    }

    /// Takes the outcome of an item.
    fn take(&mut self, index: u64, ended: Ended) {
        let now = Instant::now();
        let outcome = match ended {
            Ended::With(outcome) => outcome,
            Ended::NotSent => return self.window.take_back(index),
            Ended::Panicked => {
                let Some(line) = self.window.line(index) else { return };
                let answered = self.engine.format.internal_error(&self.job, index, &line);
                self.returned.unrecorded.add(answered.line.len());
                ItemOutcome::Done(answered)
            }
        };
        self.refused = 0;
        match outcome {
            ItemOutcome::Done(answered) => self.answer(index, answered),
            ItemOutcome::Repeat(answered) => {
                let at = |before| Some(now + backoff::repeat(before)?);
                if self.window.repeat(index, at) {
                    self.returned.unrecorded.subtract(answered.line.len());
                    self.engine.metrics.job_item("repeated");
                } else {
                    self.answer(index, answered);
                }
            }
            ItemOutcome::Later(told) => {
                self.window.put_off(index, |before| now + backoff::put_off(before, told));
            }
            ItemOutcome::Hopeless(code) => {
                self.window.take_back(index);
                self.failing.get_or_insert(Failing {
                    code,
                    pending: None,
                    failed: 0,
                    again_at: None,
                });
            }
        }
    }

    fn answer(&mut self, index: u64, answered: Answered) {
        if self.window.answered(index) {
            // The index is the one under which the item was claimed, whatever its format says.
            self.record.add(Answered { index, ..answered });
        } else {
            self.returned.unrecorded.subtract(answered.line.len());
        }
    }

    fn recorded(&mut self, recorded: Result<(Vec<Answered>, Option<Job>), StoreError>) {
        let (results, job) = match recorded {
            Ok(recorded) => recorded,
            Err(error) => return self.engine.writing.failed(&error),
        };
        self.engine.writing.ended();
        for Answered { index, line, failure, .. } in results {
            self.window.recorded(index);
            self.returned.unrecorded.subtract(line.len());
            let outcome = if failure.is_none() { "succeeded" } else { "failed" };
            self.engine.metrics.job_item(outcome);
        }
        self.engine.jobs.notify_watchers(self.job.number);
        if let (Some(observer), Some(job)) = (&self.observer, &job) {
            observer.progressed(job);
        }
        match job.map(|job| job.state) {
            Some(JobState::Queued | JobState::Running) => {}
            // The supervisor knows what was changed last.
            Some(JobState::Paused) => self.engine.jobs.wake_engine(),
            Some(JobState::Completed | JobState::Cancelled) | None => {
                self.engine.jobs.ended().notify_one();
                self.order = Order::Abort;
            }
        }
    }

    /// The store was asked to pause the job.
    fn paused(&mut self, paused: Result<Option<Job>, StoreError>) {
        let Some(failing) = &mut self.failing else { return };
        failing.pending = None;
        match paused {
            Ok(_) => {
                let (job, code) = (&self.job.id, failing.code);
                tracing::warn!(%job, code, "a job is paused: all of its items would fail");
                // The run ends even if the job is resumed at once. Another one follows then.
                (self.failing, self.order) = (None, self.order.max(Order::WindDown));
                self.engine.jobs.wake(self.job.number);
            }
            Err(error) => {
                self.engine.writing.failed(&error);
                failing.again_at = Some(Instant::now() + backoff::again(failing.failed));
                failing.failed += 1;
            }
        }
    }

    /// The bulk was stopped or refused, and no call is in flight.
    fn bulk_finished(&mut self) {
        let refused = self.bulk.take().and_then(|bulk| bulk.refused());
        self.is_stopped = false;
        self.preparing.clear();
        while let Ok((index, ended)) = self.outcomes.try_recv() {
            self.take(index, ended);
        }
        self.window.take_back_all();
        if let Some(reason) = refused {
            tracing::debug!(job = %self.job.id, %reason, "a job could not join the queue");
            self.send_again_at = Some(Instant::now() + backoff::again(self.refused));
            self.refused += 1;
        }
    }

    fn renewed(&mut self) {
        let renewed = Arc::clone(&self.renewals.borrow_and_update());
        let none = HashSet::new();
        let held = renewed.held.get(&self.job.number).unwrap_or(&none);
        if self.window.keep(held, renewed.round) {
            tracing::warn!(job = %self.job.id, "claims of a job were lost; others may send its items");
            // Those of their items that wait for admission are not to be sent.
            self.stop_sending();
        }
        // A claim whose answer was lost is held by nobody. It is given back with the others.
        let stray = self.window.strangers(held);
        if self.claim.pending.is_none() && stray.iter().any(|first| self.stray.contains(first)) {
            self.order = self.order.max(Order::WindDown);
        }
        self.stray = stray;
    }

    /// Drops the calls in flight, and records what is answered if the store takes it at once.
    async fn drop_calls(&mut self) {
        if let Some(bulk) = &self.bulk {
            bulk.cancel();
            bulk.finished().await;
            self.bulk_finished();
        }
        self.record.try_now();
        let mut fails = false;
        while !self.record.is_empty() && !fails {
            self.record.begin(&**self.engine.jobs.store(), self.job.number, Instant::now());
            let recorded = self.record.done().await;
            fails = recorded.is_err();
            self.recorded(recorded);
        }
        if let Some(claiming) = self.claim.pending.take() {
            // What it claims is given back.
            let _ = claiming.await;
        }
    }

    /// Whether nothing is left to do before the claims are given back.
    fn has_wound_down(&self) -> bool {
        self.order == Order::WindDown
            && self.bulk.is_none()
            && self.record.is_empty()
            && self.failing.is_none()
            && self.claim.pending.is_none()
    }

    /// When something is to be done that no event announces.
    fn wakes_at(&self, now: Instant) -> Instant {
        let claim = self.claim.again_at.filter(|_| self.wants_blocks());
        let failing = self.failing.as_ref().and_then(|failing| failing.again_at);
        let lease = Some(self.engine.lease.ends_at());
        let times = [self.window.wakes_at(), claim, failing, lease, self.send_again_at];
        let times = times.into_iter().chain([self.record.again_at()]).flatten();
        times.filter(|at| *at > now).min().unwrap_or(now + self.engine.lease.length())
    }
}

/// Waits until an operation is done. Never ready while there is none.
async fn ready<T>(operation: &mut Option<Stored<T>>) -> Result<T, StoreError> {
    match operation {
        Some(operation) => operation.await,
        None => pending().await,
    }
}

async fn ready_of(failing: &mut Option<Failing>) -> Result<Option<Job>, StoreError> {
    match failing {
        Some(failing) => ready(&mut failing.pending).await,
        None => pending().await,
    }
}

async fn finished(bulk: &Option<Bulk<JobItem, Returned>>) {
    match bulk {
        Some(bulk) => bulk.finished().await,
        None => pending().await,
    }
}
