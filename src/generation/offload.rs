//! Runs long computations on threads of their own, so that the threads that serve connections stay
//! responsive.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{Builder, available_parallelism};
use std::time::Duration;

use rustix::process::setpriority_process;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::schema::Work;

/// Identifies a caller: the SHA-256 of the key that pays for a request.
pub type CallerId = [u8; 32];

/// A bounded number of threads for long computations, so that the serving threads keep their cores.
/// Each caller has at most one of them at a time, so callers take turns.
#[derive(Debug)]
pub struct Offload {
    slots: Arc<Semaphore>,
    size: usize,
    /// One permit for each caller that has jobs.
    callers: Mutex<HashMap<CallerId, Weak<Semaphore>>>,
    limit: Duration,
}

/// Why a job has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The deadline of the request passed.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The job took longer than the time limit of all jobs.
    #[error("it took longer than {0:?}")]
    TimeLimit(Duration),
    /// The job panicked, or no thread could be started.
    #[error("it panicked")]
    Panicked,
}

/// The permits that a job holds until it ends.
struct Slot {
    _shared: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Offload {
    /// Uses half the cores, for jobs that take at most `limit`.
    pub fn new(limit: Duration) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::sized((cores / 2).max(1), limit)
    }

    fn sized(size: usize, limit: Duration) -> Self {
        let slots = Arc::new(Semaphore::new(size));
        Self { slots, size, callers: Mutex::default(), limit }
    }

    /// Runs a job when it is its caller's turn. The job is asked to stop when the deadline or the time
    /// limit passes, or when the future is dropped. It holds its slot until it has stopped.
    ///
    /// # Errors
    /// [`OffloadError`] if the job has no result in time, or panics.
    pub async fn run<T: Send + 'static>(
        &self,
        caller: &CallerId,
        deadline: Instant,
        job: impl FnOnce(&Work) -> T + Send + 'static,
    ) -> Result<T, OffloadError> {
        let slot = timeout_at(deadline, self.slot(caller));
        let slot = slot.await.map_err(|_| OffloadError::DeadlineExceeded)?;
        let own_deadline = Instant::now() + self.limit;
        let cancelled = CancellationToken::new();
        let _cancelled_on_drop = cancelled.clone().drop_guard();
        let (done, result) = oneshot::channel();
        let run = move || {
            let _until_the_end = slot;
            lower_priority();
            // The receiver may be gone.
            let _ = done.send(job(&Work::until(cancelled)));
        };
        let thread = Builder::new().name("offload".to_owned()).spawn(run);
        thread.map_err(|_| OffloadError::Panicked)?;
        match timeout_at(deadline.min(own_deadline), result).await {
            Ok(result) => result.map_err(|_| OffloadError::Panicked),
            Err(_) if own_deadline < deadline => Err(OffloadError::TimeLimit(self.limit)),
            Err(_) => Err(OffloadError::DeadlineExceeded),
        }
    }

    /// How many jobs run, including those that were asked to stop and have not stopped yet.
    pub fn running(&self) -> usize {
        self.size - self.slots.available_permits()
    }

    async fn slot(&self, caller: &CallerId) -> Slot {
        const OPEN: &str = "these semaphores are never closed";
        let own = self.caller_permit(caller).acquire_owned().await.expect(OPEN);
        let shared = Arc::clone(&self.slots).acquire_owned().await.expect(OPEN);
        Slot { _shared: shared, _own: own }
    }

    fn caller_permit(&self, caller: &CallerId) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = callers.get(caller).and_then(Weak::upgrade) {
            return turns;
        }
        callers.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(1));
        callers.insert(*caller, Arc::downgrade(&turns));
        turns
    }
}

/// Lowers the priority of this thread, so that the serving threads get the processor first. The thread
/// ends with its job, because a thread cannot raise its priority again.
fn lower_priority() {
    const NICE: i32 = 10;
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!(%error, "the priority of a thread could not be lowered");
    }
}

/// A value that is dropped on a blocking thread if it is so large that dropping it takes long.
#[derive(Debug)]
pub struct DeferredDrop<T: Send + 'static> {
    /// `None` only while it is dropped.
    value: Option<T>,
    is_large: bool,
}

impl<T: Send + 'static> DeferredDrop<T> {
    /// Wraps a value.
    pub fn new(value: T, is_large: bool) -> Self {
        Self { value: Some(value), is_large }
    }
}

impl<T: Send + 'static> Deref for DeferredDrop<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("the value is present until it is dropped")
    }
}

impl<T: Send + 'static> Drop for DeferredDrop<T> {
    fn drop(&mut self) {
        if self.is_large
            && let Ok(runtime) = Handle::try_current()
        {
            let value = self.value.take();
            runtime.spawn_blocking(move || drop(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::task::{JoinSet, yield_now};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const ALICE: CallerId = [1; 32];
    const BOB: CallerId = [2; 32];

    /// Runs until it is asked to stop.
    fn endless(work: &Work) {
        while work.spend(1).is_ok() {}
    }

    fn in_an_hour() -> Instant {
        Instant::now() + LONG
    }

    async fn until(is: impl Fn() -> bool) {
        while !is() {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_job_does_not_run_on_the_serving_thread() {
        let offload = Offload::new(LONG);
        let serving = thread::current().id();
        let job = |_: &Work| thread::current().id();
        assert_ne!(offload.run(&ALICE, in_an_hour(), job).await, Ok(serving));
    }

    /// There is a single serving thread, which would be blocked if the job ran on it.
    #[tokio::test]
    async fn a_job_stops_when_its_future_is_dropped() {
        let offload = Arc::new(Offload::new(LONG));
        let (started, starts) = oneshot::channel();
        let job = move |work: &Work| {
            started.send(()).expect("the test waits for it");
            endless(work);
        };
        let waits = Arc::clone(&offload);
        let waits = tokio::spawn(async move { waits.run(&ALICE, in_an_hour(), job).await });
        starts.await.expect("it starts");
        assert_eq!(offload.running(), 1);
        waits.abort();
        until(|| offload.running() == 0).await;
    }

    #[tokio::test]
    async fn a_job_stops_at_the_deadline_and_at_the_time_limit() {
        let now = Instant::now;
        for (limit, deadline, reason) in [
            (LONG, Duration::ZERO, OffloadError::DeadlineExceeded),
            (Duration::ZERO, LONG, OffloadError::TimeLimit(Duration::ZERO)),
        ] {
            let offload = Offload::new(limit);
            assert_eq!(offload.run(&ALICE, now() + deadline, endless).await, Err(reason));
            until(|| offload.running() == 0).await;
        }
    }

    #[tokio::test]
    async fn a_caller_with_many_jobs_takes_turns_with_other_callers() {
        let offload = Arc::new(Offload::sized(1, LONG));
        let taken = Arc::clone(&offload.slots).acquire_owned().await.expect("open");
        let done = Arc::new(Mutex::new(Vec::new()));
        let jobs = [(ALICE, "alice's first"), (ALICE, "alice's second"), (BOB, "bob's")];
        let jobs: JoinSet<_> = jobs
            .into_iter()
            .map(|(caller, name)| {
                let (offload, done) = (Arc::clone(&offload), Arc::clone(&done));
                let job = move |_: &Work| done.lock().expect("no job panics").push(name);
                async move { offload.run(&caller, in_an_hour(), job).await }
            })
            .collect();
        until(|| offload.callers.lock().expect("nothing panics").len() == 2).await;
        drop(taken);
        assert_eq!(jobs.join_all().await, [Ok(()); 3]);
        let done = done.lock().expect("no job panics");
        assert_eq!(*done, ["alice's first", "bob's", "alice's second"]);
    }

    #[tokio::test]
    async fn a_large_value_is_not_dropped_on_the_serving_thread() {
        struct ReportsDrop(Option<oneshot::Sender<thread::ThreadId>>);
        impl Drop for ReportsDrop {
            fn drop(&mut self) {
                let sender = self.0.take().expect("it is dropped once");
                sender.send(thread::current().id()).expect("the test waits for it");
            }
        }
        for is_large in [true, false] {
            let (sender, dropped) = oneshot::channel();
            drop(DeferredDrop::new(ReportsDrop(Some(sender)), is_large));
            let here = thread::current().id();
            assert_eq!(dropped.await.expect("it is dropped") != here, is_large);
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_releases_its_slot() {
        let offload = Offload::new(LONG);
        let broken = offload.run(&ALICE, in_an_hour(), |_| panic!("this job panics")).await;
        assert_eq!(broken, Err::<(), _>(OffloadError::Panicked));
        until(|| offload.running() == 0).await;
    }
}
