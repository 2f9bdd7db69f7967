//! Whether this replica can take requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::jobs::{Jobs, StoreError};
use crate::limits::Limiter;

/// How long the answer of the job store is used again, so that probes are no load on it, and how long it
/// may take.
const FRESH: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Finds out whether this replica can take requests.
#[derive(Debug)]
pub struct Readiness {
    /// Cancelled when a shutdown is announced.
    shutdown: CancellationToken,
    limiter: Arc<Limiter>,
    jobs: Arc<Jobs>,
    /// When the job store was asked last, and whether it could be used. One request asks at a time.
    checked: Mutex<Option<(Instant, bool)>>,
}

/// Why a replica cannot take requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// It is shutting down.
    ShuttingDown,
    /// The limits that it shares with others are unavailable.
    LimitsUnavailable,
    /// The job store is unavailable.
    JobStoreUnavailable,
}

impl Readiness {
    pub(super) fn new(
        limiter: Arc<Limiter>,
        jobs: Arc<Jobs>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { shutdown, limiter, jobs, checked: Mutex::default() })
    }

    /// Why this replica cannot take requests; nothing if it can.
    pub async fn reasons(&self) -> Vec<NotReady> {
        let shuts_down = self.shutdown.is_cancelled().then_some(NotReady::ShuttingDown);
        let no_limits = self.limiter.store().reach().err().map(|_| NotReady::LimitsUnavailable);
        let no_jobs = (!self.has_jobs().await).then_some(NotReady::JobStoreUnavailable);
        shuts_down.into_iter().chain(no_limits).chain(no_jobs).collect()
    }

    async fn has_jobs(&self) -> bool {
        let mut checked = self.checked.lock().await;
        if let Some((at, usable)) = *checked
            && at.elapsed() < FRESH
        {
            return usable;
        }
        let usable = match timeout(CHECK_TIMEOUT, self.jobs.store().check()).await {
            // New jobs are refused, and everything else goes on.
            Ok(Ok(()) | Err(StoreError::Full(_))) => true,
            Ok(Err(_)) | Err(_) => false,
        };
        *checked = Some((Instant::now(), usable));
        usable
    }
}
