//! What goes wrong when spans are exported. It is counted always, and logged once until it is over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::metrics::Metrics;

/// What became of spans.
#[derive(Debug)]
pub(super) struct Trouble {
    metrics: Arc<Metrics>,
    /// How many spans wait for their export.
    waiting: AtomicUsize,
    /// The most that may wait.
    most: usize,
    is_failing: AtomicBool,
    is_full: AtomicBool,
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
            is_full: AtomicBool::new(false),
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
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                length = self.most,
                "spans are dropped: more end than can be exported; the metric spans counts them"
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
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Spans were exported.
    pub fn exported(&self, spans: usize) {
        self.metrics.spans("exported", spans);
        if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!("spans are exported again");
            self.is_full.store(false, Ordering::Relaxed);
        }
    }

    /// Spans were not exported, and are lost.
    pub fn failed(&self, spans: usize) {
        self.metrics.spans("export_failed", spans);
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "spans cannot be exported, and are dropped until they can");
        }
    }
}
