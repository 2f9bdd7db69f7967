//! The engine over a store in memory. Calls are held for a while on a paused clock and answered by a
//! script, so that the tests neither wait nor depend on the machine.

mod fairness;
mod faults;
mod memory;
mod memory_store;
mod outcomes;
mod sqlite;
mod states;

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{Engine, EngineSettings};
use crate::dispatch::{
    Admitted, Call, CallError, CallEvent, CallKind, Dispatcher, EndedAttempt, RetryPolicy,
    SentAttempt, TierChoice,
};
use crate::gemini::{ApiKey, Client, InputFeatures, Model, Usage};
use crate::jobs::item::{ItemFormat, ItemOutcome, ItemReader, ItemSender, PreparedItem};
use crate::jobs::{
    Answered, Change, Committed, Job, JobId, JobKind, JobNumber, JobSpec, JobState, JobStore, Jobs,
    NewBlock, NewJob, Owner, SharedFields, Totals,
};
use crate::limits::{Limiter, QuotaPlan};
use crate::metrics::Metrics;
use crate::prices::NanoDollars;

pub(in crate::jobs) use memory_store::MemoryStore;

/// How long claims hold without a renewal.
const LEASE: Duration = Duration::from_secs(60);

/// How long a call takes.
const CALL: Duration = Duration::from_millis(20);

/// How many items a block has.
const BLOCK: u64 = 100;

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq)]
enum Action {
    Answer,
    Fail,
    Later(Option<Duration>),
    Repeat,
    Hopeless,
    Panic,
    /// It never ends.
    Hang,
    /// It is answered after a wait without a slot.
    BackOff(Duration),
    /// It ends like this before it is sent.
    Unprepared(Box<Action>),
}

/// Says what becomes of a call, given the line of its item and how often it was asked before.
type Rule = dyn Fn(&str, u32) -> Action + Send + Sync;

/// The format of items whose calls follow a rule.
struct Script {
    rule: Box<Rule>,
    /// How often each line was asked.
    asked: Mutex<HashMap<String, u32>>,
    /// The model of lines that begin with "slow", and that of all others.
    slow: Model,
    model: Model,
    /// How many items are prepared and not ended, and the most that were.
    held: AtomicUsize,
    most_held: AtomicUsize,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    fn new(rule: impl Fn(&str, u32) -> Action + Send + Sync + 'static) -> Arc<Self> {
        let (slow, model) = (Model::parse("slow").unwrap(), Model::parse("quick").unwrap());
        let (held, most_held) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self {
            rule: Box::new(rule),
            asked: Mutex::default(),
            slow,
            model,
            held,
            most_held,
        })
    }

    /// How often a line was asked.
    fn asked(&self, line: &str) -> u32 {
        self.asked.lock().unwrap().get(line).copied().unwrap_or_default()
    }

    fn calls(&self) -> u32 {
        self.asked.lock().unwrap().values().sum()
    }

    /// Counts a call and says what becomes of it.
    fn ask(&self, line: &str) -> Action {
        let mut asked = self.asked.lock().unwrap();
        let times = asked.entry(line.to_owned()).or_default();
        *times += 1;
        (self.rule)(line, *times - 1)
    }
}

fn answered(index: u64, line: impl Into<Bytes>, failure: Option<&str>) -> Answered {
    Answered {
        index,
        line: line.into(),
        failure: failure.map(str::to_owned),
        retryable: false,
        input_tokens: 1,
        output_tokens: 1,
        cost: NanoDollars::default(),
    }
}

fn ended(index: u64, line: &str, action: Action) -> ItemOutcome {
    match action {
        Action::Answer | Action::BackOff(_) => {
            ItemOutcome::Done(answered(index, format!("answer to {line}"), None))
        }
        Action::Fail => ItemOutcome::Done(answered(index, "failed", Some("invalid_request"))),
        Action::Later(after) => ItemOutcome::Later(after),
        Action::Repeat => ItemOutcome::Repeat(answered(index, "unavailable", Some("unavailable"))),
        Action::Hopeless => ItemOutcome::Hopeless("invalid_api_key"),
        Action::Panic => panic!("this item panics"),
        Action::Hang | Action::Unprepared(_) => unreachable!("it does not end like this"),
    }
}

#[derive(Debug)]
struct Asking {
    script: Arc<Script>,
    index: u64,
    line: String,
}

impl Asking {
    fn new(script: &Arc<Script>, index: u64, line: String) -> Self {
        let held = script.held.fetch_add(1, Ordering::Relaxed) + 1;
        script.most_held.fetch_max(held, Ordering::Relaxed);
        Self { script: Arc::clone(script), index, line }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.script.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An attempt at a call.
async fn attempt(call: &Call) {
    call.observe(CallEvent::Sent(SentAttempt { call, attempt: 1, streams: false, body: None }));
    sleep(CALL).await;
    let (usage, outcome) = (Usage::default(), "success");
    let ended = EndedAttempt { outcome, status: None, answered_by: None, usage, answer: None };
    call.observe(CallEvent::Ended(&ended));
}

impl ItemSender for Asking {
    fn send(self: Box<Self>, call: Call, admitted: Admitted) -> BoxFuture<'static, ItemOutcome> {
        async move {
            let action = self.script.ask(&self.line);
            if action == Action::Hang {
                pending::<()>().await;
            }
            attempt(&call).await;
            drop(admitted);
            if let Action::BackOff(wait) = action {
                call.observe(CallEvent::RetryAt(Instant::now() + wait));
                sleep(wait).await;
            }
            ended(self.index, &self.line, action)
        }
        .boxed()
    }

    fn refused(self: Box<Self>, error: CallError) -> ItemOutcome {
        ItemOutcome::Done(answered(self.index, error.to_string(), Some("refused")))
    }
}

impl ItemFormat for Arc<Script> {
    fn reader(&self, _: &Job, _: SharedFields) -> Arc<dyn ItemReader> {
        Arc::new(Arc::clone(self))
    }
}

impl ItemReader for Arc<Script> {
    fn prepare(
        &self,
        _: &ApiKey,
        index: u64,
        line: Bytes,
    ) -> BoxFuture<'static, Result<PreparedItem, ItemOutcome>> {
        // A large line is known by its beginning.
        let line = String::from_utf8(line[..line.len().min(64)].to_vec()).unwrap();
        if let Action::Unprepared(action) = (self.rule)(&line, self.asked(&line)) {
            return async move { Err(ended(index, &line, *action)) }.boxed();
        }
        let item = PreparedItem {
            kind: CallKind::Chat,
            model: if line.starts_with("slow") { &self.slow } else { &self.model }.clone(),
            semaphore: None,
            tier: TierChoice::default(),
            size: InputFeatures::of(&line).into(),
            timeout: Duration::from_secs(60),
            sender: Box::new(Asking::new(self, index, line)),
        };
        std::future::ready(Ok(item)).boxed()
    }

    fn internal_error(&self, index: u64, line: &[u8]) -> Answered {
        answered(index, line.to_vec(), Some("internal_error"))
    }
}

/// A process that runs jobs.
struct Process {
    store: MemoryStore,
    jobs: Arc<Jobs>,
    dispatcher: Arc<Dispatcher>,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    script: Arc<Script>,
    /// How long jobs are kept after their end.
    retention: Duration,
    engine: Option<Engine>,
}

impl Process {
    /// A process over a store that has room for `limit` calls at a time, without its engine.
    fn new(store: &MemoryStore, limit: usize, script: &Arc<Script>) -> Self {
        Self::with_queue(store, limit, 10, script)
    }

    fn with_queue(store: &MemoryStore, limit: usize, queue: usize, script: &Arc<Script>) -> Self {
        let limiter = Limiter::new(limit, queue, QuotaPlan::default());
        let metrics = Arc::new(Metrics::new(Arc::clone(&limiter)));
        Self {
            store: store.clone(),
            jobs: Jobs::new(Arc::new(store.clone())),
            dispatcher: dispatcher(&limiter, &metrics),
            limiter,
            metrics,
            script: Arc::clone(script),
            retention: Duration::from_secs(60 * 60),
            engine: None,
        }
    }

    /// A process with a store of its own and its engine.
    fn started(limit: usize, script: &Arc<Script>) -> Self {
        let mut process = Self::new(&MemoryStore::default(), limit, script);
        process.start();
        process
    }

    fn start(&mut self) {
        let settings = EngineSettings {
            lease: LEASE,
            retention: Some(self.retention),
            large_items: 32 << 20,
            metrics: Arc::clone(&self.metrics),
            observer: None,
        };
        self.engine = Some(Engine::start(
            Arc::clone(&self.jobs),
            Arc::clone(&self.dispatcher),
            Arc::new(Arc::clone(&self.script)),
            Some(key("server-key")),
            settings,
        ));
    }

    async fn stop(&mut self, ends_now: impl Future<Output = ()>) {
        self.engine.take().unwrap().stop(ends_now).await;
    }

    /// A new job of the administrator with so many items, `NAME 0`, `NAME 1`, ….
    async fn submit(&self, name: &str, items: u64) -> JobNumber {
        let job = begin(&self.jobs, Owner::Admin).await;
        commit(&self.jobs, job, name, items).await
    }

    async fn change(&self, job: JobNumber, change: Change) {
        self.store.change(job, change, Timestamp::now()).await.unwrap();
        self.jobs.wake(job);
    }

    /// Waits until something is true of a job.
    async fn until(&self, job: JobNumber, is_so: impl Fn(&Job) -> bool) -> Job {
        let mut watch = self.jobs.watch(job);
        loop {
            let current = self.store.get(job);
            if is_so(&current) {
                return current;
            }
            watch.changed().await;
        }
    }

    async fn until_completed(&self, job: JobNumber) -> Job {
        self.until(job, |job| job.state == JobState::Completed).await
    }

    /// The items in flight.
    fn in_flight(&self) -> usize {
        self.limiter.occupancy().in_flight
    }
}

/// A dispatcher whose calls are answered by scripts.
pub(super) fn dispatcher(limiter: &Arc<Limiter>, metrics: &Arc<Metrics>) -> Arc<Dispatcher> {
    Arc::new(Dispatcher::new(
        Client::new("http://127.0.0.1:9").unwrap(),
        Arc::clone(limiter),
        Arc::clone(metrics),
        RetryPolicy::new(1, Duration::from_secs(30)),
        Arc::default(),
    ))
}

fn key(text: &str) -> ApiKey {
    ApiKey::new(text).unwrap()
}

async fn begin(jobs: &Jobs, owner: Owner) -> JobNumber {
    begin_as(jobs, NewJob { owner, ..new_job() }).await
}

async fn begin_as(jobs: &Jobs, new: NewJob) -> JobNumber {
    jobs.store().begin(new, jobs.replica().clone()).await.unwrap()
}

/// Begins a job whose items all get some fields.
async fn begin_with(jobs: &Jobs, owner: Owner, shared: SharedFields) -> JobNumber {
    let shared_bytes = serde_json::to_vec(&shared).unwrap().len();
    let mut new = NewJob { owner, shared, ..new_job() };
    new.spec.shared_bytes = shared_bytes;
    begin_as(jobs, new).await
}

fn new_job() -> NewJob {
    let spec = JobSpec {
        kind: JobKind::Chat,
        name: None,
        model: None,
        external_semaphore_id: None,
        service_tier: None,
        webhook_url: None,
        shared_bytes: 0,
    };
    let (id, created_at) = (JobId::random(), Timestamp::now());
    let (owner, shared) = (Owner::Admin, SharedFields::new());
    NewJob { id, owner, spec, shared, idempotency_key: None, created_at }
}

async fn commit(jobs: &Jobs, job: JobNumber, name: &str, items: u64) -> JobNumber {
    let blocks: Vec<NewBlock> = (0..items.div_ceil(BLOCK))
        .map(|block| {
            let (first, end) = (block * BLOCK, items.min((block + 1) * BLOCK));
            let lines: String = (first..end).map(|index| format!("{name} {index}\n")).collect();
            NewBlock { first, lines: lines.into(), items: (end - first) as u32 }
        })
        .collect();
    commit_blocks(jobs, job, blocks).await
}

async fn commit_blocks(jobs: &Jobs, job: JobNumber, blocks: Vec<NewBlock>) -> JobNumber {
    let items = blocks.iter().map(|block| u64::from(block.items)).sum();
    let bytes = blocks.iter().map(|block| block.lines.len() as u64).sum();
    jobs.store().append(job, blocks).await.unwrap();
    let totals = Totals { items, bytes, content: [0; 32] };
    let committed = jobs.store().commit(job, totals).await.unwrap();
    assert!(matches!(committed, Committed::New(_)));
    jobs.wake(job);
    job
}

/// Whether each item of a job has its own answer.
fn are_all_answered(store: &MemoryStore, job: JobNumber, name: &str, items: u64) -> bool {
    let results = store.results_of(job);
    results.len() as u64 == items
        && (0..).zip(&results).all(|(index, result)| {
            result.index == index && result.line == format!("answer to {name} {index}")
        })
}
