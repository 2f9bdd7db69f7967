//! One job, from its first claim to its last result.

mod outcomes;

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::Result as Caught;
use std::time::Duration;

use futures_util::future::{BoxFuture, pending};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::claims::Claims;
use super::in_doubt::CallInDoubt;
use super::item::{Ended, JobItem, Returned};
use super::lease::Renewed;
use super::record::Record;
use super::unrecorded::Unrecorded;
use super::window::Window;
use super::{Shared, backoff};
use crate::gemini::ApiKey;
use crate::generation::bulk::Bulk;
use crate::jobs::handle::Load;
use crate::jobs::item::{ItemOutcome, ItemReader, PreparedItem};
use crate::jobs::model::{Change, Claimed, Job, JobState, PauseReason};
use crate::jobs::observer::RunObserver;
use crate::jobs::store::{StoreError, Stored};

use outcomes::Failing;

/// The most items of a job that are put off for about a minute or less: they may be sent as often.
const MAX_SOON: usize = 4096;

/// How often it is looked, while the window is full, whether its items wait for limits of their own.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);

/// How many items are prepared at a time.
const MAX_PREPARING: usize = 32;

/// How many outcomes are taken at a time.
const TAKEN: usize = 256;

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
    job: Job,
    reader: Arc<dyn ItemReader>,
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
    /// How often the queue was full in a row, and when it is tried again.
    refused: u32,
    send_again_at: Option<Instant>,
    claims: Claims,
    load: Arc<Load>,
    record: Record,
    /// The calls whose results are to be recorded, by the index of their item, and when they ended.
    in_doubt: HashMap<u64, (CallInDoubt, Instant)>,
    failing: Option<Failing>,
    /// Blocks that the last renewal showed and that are not in the window.
    stray: HashSet<u64>,
}

impl Run {
    pub fn new(
        engine: Arc<Shared>,
        job: Job,
        reader: Arc<dyn ItemReader>,
        key: ApiKey,
        orders: watch::Receiver<Order>,
    ) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let renewals = engine.renewals.subscribe();
        let observer = engine.observer.as_ref().map(|observer| observer.begins(&job));
        let load = engine.jobs.begin_run(job.number);
        let unrecorded = Unrecorded::new(&engine.dispatcher, &engine.memory, &engine.in_doubt);
        let unrecorded = Arc::new(unrecorded);
        let claims = Claims::new(Arc::clone(&engine), job.number, job.spec.shared_bytes);
        Self {
            engine,
            observer,
            job,
            reader,
            key,
            orders,
            order: Order::Send,
            renewals,
            window: Window::default(),
            preparing: FuturesUnordered::new(),
            returned: Returned { outcomes: sender, unrecorded },
            outcomes,
            bulk: None,
            refused: 0,
            send_again_at: None,
            claims,
            load,
            record: Record::default(),
            in_doubt: HashMap::new(),
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
                found = self.claims.progress() => {
                    if let Some(found) = found {
                        self.claimed(found);
                    }
                }
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
        if self.claims.is_due(now) {
            // Others get the memory of a block whose items cannot be sent yet. This run begins again.
            self.order = self.order.max(Order::WindDown);
        }
        self.load.claims(self.window.len());
        if !self.may_send(now) {
            return self.stop_sending();
        }
        if self.returned.unrecorded.is_stopped() {
            return;
        }
        if self.bulk.is_none() {
            let (in_flight, outcomes) = (self.load.in_flight(), self.returned.clone());
            self.bulk = Some(Bulk::counted(&self.engine.dispatcher, in_flight, outcomes));
        }
        self.claims.count(&self.window);
        if let Some(items) = self.room() {
            self.claims.begin(&self.window, items, now);
        }
        let most_sent = self.claims.most_sent(&self.window);
        while self.preparing.len() < MAX_PREPARING
            && self.window.out() < most_sent
            && let Some((index, line)) = self.window.send_next()
        {
            let (reader, key) = (Arc::clone(&self.reader), self.key.clone());
            let prepared = async move { reader.prepare(&key, index, line).await };
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
            self.returned.unrecorded.set_stopped(true);
            bulk.stop();
        }
    }

    /// How many items the window may take, if that is worth a claim. Items that wait for a limit of their
    /// own do not count, since others may be sent meanwhile.
    fn room(&self) -> Option<usize> {
        if self.window.soon() >= MAX_SOON {
            return None;
        }
        let (most, mut active) = (self.engine.window(), self.window.active());
        if active > most / 2 {
            active -= self.bulk.as_ref().map_or(0, Bulk::held_up).min(active);
        }
        (active <= most / 2).then(|| most - active)
    }

    fn claimed(&mut self, found: Result<Claimed, StoreError>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.engine.writing.failed(&error);
                return self.claims.failed();
            }
        };
        self.engine.writing.ended();
        let blocks = self.claims.found(found, &self.window);
        if blocks.is_empty() {
            return;
        }
        self.window.add(blocks, self.engine.lease.round());
        if self.job.state == JobState::Queued {
            self.engine.jobs.notify_watchers(self.job.number);
        }
    }

    /// The bulk was stopped or refused, and no call is in flight.
    fn bulk_finished(&mut self) {
        let refused = self.bulk.take().and_then(|bulk| bulk.refused());
        self.returned.unrecorded.set_stopped(false);
        self.preparing.clear();
        while let Ok((index, ended)) = self.outcomes.try_recv() {
            self.take(index, ended);
        }
        self.window.take_back_all();
        if let Some(reason) = refused {
            tracing::debug!(job_id = self.job.id.beginning(), %reason, "a job could not join the queue");
            self.send_again_at = Some(Instant::now() + backoff::again(self.refused));
            self.refused += 1;
        }
    }

    fn renewed(&mut self) {
        let renewed = Arc::clone(&self.renewals.borrow_and_update());
        let none = HashSet::new();
        let held = renewed.held.get(&self.job.number).unwrap_or(&none);
        if self.window.keep(held, renewed.round) {
            tracing::warn!(
                job_id = self.job.id.beginning(),
                "claims of a job were lost; others may send its items"
            );
            // Those of their items that wait for admission are not to be sent.
            self.stop_sending();
        }
        // A claim whose answer was lost is held by nobody. It is given back with the others.
        let stray = self.window.strangers(held);
        if !self.claims.is_pending() && stray.iter().any(|first| self.stray.contains(first)) {
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
        self.claims.finish().await;
    }

    /// Whether nothing is left to do before the claims are given back.
    fn has_wound_down(&self) -> bool {
        self.order == Order::WindDown
            && self.bulk.is_none()
            && self.record.is_empty()
            && self.failing.is_none()
            && !self.claims.is_pending()
    }

    /// When something is to be done that no event announces.
    fn wakes_at(&self, now: Instant) -> Instant {
        let claim = self.claims.again_at().filter(|_| self.room().is_some());
        // Which items wait for a limit of their own is not announced.
        let look = (self.window.active() > self.engine.window() / 2).then(|| now + LOOK_FOR_ROOM);
        let failing = self.failing.as_ref().and_then(|failing| failing.again_at);
        let lease = Some(self.engine.lease.ends_at());
        let times = [self.window.wakes_at(), claim, failing, lease, self.send_again_at];
        let others = [self.record.again_at(), self.claims.due_at(now), look];
        let times = times.into_iter().chain(others).flatten();
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
