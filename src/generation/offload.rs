//! Work that takes long, kept away from the threads that serve connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::schema::Work;

/// The SHA-256 of the key that pays for a request.
pub type Caller = [u8; 32];

/// Threads for long work, few at a time, so that the serving threads keep their cores. A caller has
/// one of them at a time, so that callers take turns.
#[derive(Debug)]
pub struct Offload {
    slots: Arc<Semaphore>,
    /// One permit for each caller with work to do.
    callers: Mutex<HashMap<Caller, Weak<Semaphore>>>,
    limit: Duration,
}

/// Work that has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfinished {
    /// The request's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// It took longer than any such work may.
    #[error("it took longer than {0:?}")]
    TooLong(Duration),
    /// It panicked.
    #[error("it panicked")]
    Panicked,
}

/// What work holds until it ends.
struct Slot {
    _shared: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Offload {
    /// Half the cores for work that takes `limit` at most.
    pub fn new(limit: Duration) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        let slots = Arc::new(Semaphore::new((cores / 2).max(1)));
        Self { slots, callers: Mutex::default(), limit }
    }

    /// Runs a job in its caller's turn. The job is told to stop when the deadline or its own limit
    /// passes, or when the future is dropped; it holds its slot until it has stopped.
    ///
    /// # Errors
    /// [`Unfinished`] where the job gave no result in time.
    pub async fn run<T: Send + 'static>(
        &self,
        caller: &Caller,
        deadline: Instant,
        job: impl FnOnce(&Work) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let slot = timeout_at(deadline, self.slot(caller));
        let slot = slot.await.map_err(|_| Unfinished::Deadline)?;
        let own_deadline = Instant::now() + self.limit;
        let cancelled = CancellationToken::new();
        let _cancelled_on_drop = cancelled.clone().drop_guard();
        let job = spawn_blocking(move || {
            let _until_the_end = slot;
            job(&Work::until(cancelled))
        });
        match timeout_at(deadline.min(own_deadline), job).await {
            Ok(result) => result.map_err(|_| Unfinished::Panicked),
            Err(_) if own_deadline < deadline => Err(Unfinished::TooLong(self.limit)),
            Err(_) => Err(Unfinished::Deadline),
        }
    }

    async fn slot(&self, caller: &Caller) -> Slot {
        const OPEN: &str = "these semaphores are never closed";
        let own = self.turns_of(caller).acquire_owned().await.expect(OPEN);
        let shared = Arc::clone(&self.slots).acquire_owned().await.expect(OPEN);
        Slot { _shared: shared, _own: own }
    }

    fn turns_of(&self, caller: &Caller) -> Arc<Semaphore> {
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
