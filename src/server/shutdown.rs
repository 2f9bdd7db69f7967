//! The steps of a shutdown.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Signals the steps of a shutdown.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Serve as before, but close each connection after its next answer, so that clients go elsewhere.
    pub announced: CancellationToken,
    /// Stop accepting, and let work in flight finish within the grace period.
    pub begins: CancellationToken,
    /// End the grace period.
    pub ends_now: CancellationToken,
}

impl Shutdown {
    /// A shutdown that is announced on SIGTERM, which container runtimes send, or SIGINT (Ctrl-C), and
    /// begins after a delay. A second signal ends the delay and the grace period.
    ///
    /// # Errors
    /// If the system refuses to deliver the signals.
    pub fn on_signals(delay: Duration) -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let Self { announced, begins, ends_now } = shutdown.clone();
        let mut next = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::spawn(async move {
            next().await;
            tracing::info!(delay_seconds = delay.as_secs_f64(), "shutting down");
            announced.cancel();
            if timeout(delay, next()).await.is_err() {
                begins.cancel();
                next().await;
            }
            tracing::info!("stopping at once");
            begins.cancel();
            ends_now.cancel();
        });
        Ok(shutdown)
    }
}

impl From<CancellationToken> for Shutdown {
    fn from(begins: CancellationToken) -> Self {
        Self { announced: begins.clone(), begins, ..Self::default() }
    }
}
