//! Which limit a call waited for the longest.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;

/// A shorter wait is none.
const MILLISECOND: Duration = Duration::from_millis(1);

/// The limit that a call waited for the longest before it was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// The account's quotas, or what its payer may spend.
    Quota,
    /// The named semaphore.
    Semaphore,
    /// The account's adaptive limit on concurrent calls.
    AdaptiveLimit,
    /// The global limit on concurrent calls.
    ConcurrencyLimit,
}

impl HeldBy {
    /// Its name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Semaphore => "semaphore",
            Self::AdaptiveLimit => "adaptive_limit",
            Self::ConcurrencyLimit => "concurrency_limit",
        }
    }
}

/// Since when the call at the head of an account queue has been waiting for anything but a global slot.
#[derive(Debug)]
pub(super) struct HeldUpSince {
    /// The start of the limiter.
    origin: Instant,
    /// In microseconds after `origin`; [`NOT_HELD_UP`] if there is no such call.
    micros: AtomicU64,
}

const NOT_HELD_UP: u64 = u64::MAX;

impl HeldUpSince {
    /// No call is held up. `origin` is a moment before all waits.
    pub fn after(origin: Instant) -> Self {
        Self { origin, micros: NOT_HELD_UP.into() }
    }

    /// `None` if there is no such call.
    pub fn get(&self) -> Option<Instant> {
        let micros = self.micros.load(Ordering::Relaxed);
        (micros != NOT_HELD_UP).then(|| self.origin + Duration::from_micros(micros))
    }

    fn begin(&self, now: Instant) {
        let micros = u64::try_from((now - self.origin).as_micros()).unwrap_or(NOT_HELD_UP);
        self.micros.store(micros, Ordering::Relaxed);
    }

    fn end(&self) {
        self.micros.store(NOT_HELD_UP, Ordering::Relaxed);
    }
}

/// The waits of a call for one limit after the other. The clock is read only for a call that waits: most
/// find room everywhere.
#[derive(Debug)]
pub(super) struct Waits<'a> {
    held_up_since: &'a HeldUpSince,
    /// When the wait began that has not ended.
    since: Option<Instant>,
    total: Duration,
    longest: Duration,
    held_by: Option<HeldBy>,
}

impl<'a> Waits<'a> {
    /// None yet. An account queue is told of those that come.
    pub fn new(held_up_since: &'a HeldUpSince) -> Self {
        let (total, longest) = (Duration::ZERO, Duration::ZERO);
        Self { held_up_since, since: None, total, longest, held_by: None }
    }

    /// Completes as `wait` does, and notes for how long that was not ready.
    pub fn during<F: Future>(&mut self, limit: HeldBy, wait: F) -> During<'_, 'a, F> {
        During { wait, limit, waits: self }
    }

    /// How long the call waited in all.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The limit that was waited for the longest; `None` if there was no wait of a millisecond.
    pub fn held_by(&self) -> Option<HeldBy> {
        self.held_by
    }

    fn begin(&mut self, limit: HeldBy) {
        let now = Instant::now();
        self.since = Some(now);
        if limit != HeldBy::ConcurrencyLimit {
            self.held_up_since.begin(now);
        }
    }

    fn end(&mut self, limit: HeldBy, since: Instant) {
        self.since = None;
        if limit != HeldBy::ConcurrencyLimit {
            self.held_up_since.end();
        }
        let waited = since.elapsed();
        self.total += waited;
        if waited >= MILLISECOND && waited > self.longest {
            (self.longest, self.held_by) = (waited, Some(limit));
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if self.since.is_some() {
            self.held_up_since.end();
        }
    }
}

pin_project! {
    /// A wait for a limit.
    pub(super) struct During<'w, 'a, F> {
        #[pin]
        wait: F,
        limit: HeldBy,
        waits: &'w mut Waits<'a>,
    }
}

impl<F: Future> Future for During<'_, '_, F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = this.wait.poll(context);
        match (&result, this.waits.since) {
            (Poll::Pending, None) => this.waits.begin(*this.limit),
            (Poll::Ready(_), Some(since)) => this.waits.end(*this.limit, since),
            (Poll::Pending, Some(_)) | (Poll::Ready(_), None) => {}
        }
        result
    }
}
