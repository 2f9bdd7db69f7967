//! What goes wrong when spans are exported. It is always counted, and logged once until it is over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// How long no span must have been dropped before the log says so. Under a constant load the queue is full
/// again and again.
const CALM: Duration = Duration::from_secs(60);

/// What became of spans.
#[derive(Debug)]
pub(super) struct Trouble {
    metrics: Arc<Metrics>,
    /// How many spans wait for their export.
    waiting: AtomicUsize,
    /// The most that may wait.
    most: usize,
    is_failing: AtomicBool,
    /// When a span was last dropped because too many waited, until that is over.
    dropped: Mutex<Option<Instant>>,
    reason: Mutex<Option<String>>,
}

impl Trouble {
    /// None yet. At most `most` spans wait.
    pub fn new(metrics: Arc<Metrics>, most: usize) -> Self {
        Self {
            metrics,
            waiting: AtomicUsize::new(0),
            most,
            is_failing: AtomicBool::new(false),
            dropped: Mutex::default(),
            reason: Mutex::default(),
        }
    }

    /// Counts a span as waiting. Returns whether there is room for it; otherwise it is dropped.
    pub fn has_room(&self) -> bool {
        let one_more = |waiting| (waiting < self.most).then_some(waiting + 1);
        let waits = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if waits.is_ok() {
            return true;
        }
        self.metrics.spans("queue_full", 1);
        if lock(&self.dropped).replace(Instant::now()).is_none() {
            // It is not about the request whose span is dropped.
            tracing::warn!(
                parent: None,
                length = self.most,
                "spans are dropped, because more end than can be exported; spans_total counts them"
            );
        }
        false
    }

    /// Spans are being exported, and wait no more.
    pub fn begins(&self, spans: usize) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Why the export that is under way fails.
    pub fn because(&self, reason: String) {
        *lock(&self.reason) = Some(reason);
    }

    /// Spans were exported.
    pub fn exported(&self, spans: usize) {
        self.metrics.spans("exported", spans);
        if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!("spans are exported again");
        }
        if lock(&self.dropped).take_if(|at| at.elapsed() >= CALM).is_some() {
            tracing::info!("no span has been dropped for a minute");
        }
    }

    /// Spans were not exported, and are lost.
    pub fn failed(&self, spans: usize) {
        self.metrics.spans("export_failed", spans);
        let reason = lock(&self.reason).take();
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "spans cannot be exported, and are dropped until they can");
        }
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
