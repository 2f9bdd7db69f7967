//! How long this replica may use what it holds.
//!
//! Redis keeps a replica's permits for the length of its *lease* after the replica's last command.
//! The replica itself relies on less: it starts calls only for a fifth of the lease after it sent the
//! last command that was executed. So a call that takes less than the other four fifths is over
//! before its permit can be granted to another one, whatever happens to the connection, to Redis or
//! to this process. Time in which the machine is suspended counts, although tokio's clock stops then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::limits::model::StoreUnavailable;

/// The longest time without a command, however long the lease. Within it, a replica finds out that
/// Redis has lost it.
const MAX_HEARTBEAT: Duration = Duration::from_secs(2);

/// The lease of this replica.
#[derive(Debug)]
pub(super) struct ReplicaLease {
    length: Duration,
    began: Instant,
    /// How long the machine has been suspended since boot.
    suspended: fn() -> Duration,
    /// The same when the lease began.
    suspended_before: Duration,
    /// Until when calls may start, in nanoseconds since the lease began.
    safe_until: AtomicU64,
    /// When the last executed command was sent, in nanoseconds; 0 for never.
    last_sent: AtomicU64,
    /// How often the lease has expired. Permits of an earlier epoch are not used any more.
    epoch: AtomicU64,
}

impl ReplicaLease {
    pub fn new(length: Duration) -> Self {
        Self::on(length, suspended)
    }

    fn on(length: Duration, suspended: fn() -> Duration) -> Self {
        Self {
            length,
            began: Instant::now(),
            suspended,
            suspended_before: suspended(),
            safe_until: AtomicU64::new(0),
            last_sent: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// How long Redis keeps what this replica holds.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// How long after a command the next one is sent at the latest.
    pub fn heartbeat(&self) -> Duration {
        (self.length / 15).min(MAX_HEARTBEAT)
    }

    /// How long a reply from Redis may take.
    pub fn timeout(&self) -> Duration {
        self.length / 5
    }

    /// The time since the lease began.
    pub fn now(&self) -> Duration {
        self.began.elapsed() + (self.suspended)().saturating_sub(self.suspended_before)
    }

    /// Notes that a command sent at that time was executed.
    pub fn renewed(&self, sent_at: Duration) {
        self.safe_until.fetch_max(nanos(sent_at + self.length / 5), Ordering::AcqRel);
        self.last_sent.fetch_max(nanos(sent_at).max(1), Ordering::AcqRel);
    }

    /// How long ago the last executed command was sent.
    pub fn since_last_command(&self) -> Option<Duration> {
        let last = self.last_sent.load(Ordering::Acquire);
        (last > 0).then(|| self.now().saturating_sub(Duration::from_nanos(last)))
    }

    /// Begins another epoch if the lease has expired here, or `is_over` in Redis: what was held may
    /// have been granted to others.
    pub fn renew_epoch(&self, is_over: bool) {
        if is_over || !self.is_safe() {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The number of the current epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether a call may start with a permit of this epoch.
    pub fn is_in_force(&self, epoch: u64) -> bool {
        // In this order: after expiry, the epoch changes before the lease is safe again.
        self.is_safe() && self.epoch() == epoch
    }

    /// Checks that this replica still holds what it holds.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that is unknown.
    pub fn reach(&self) -> Result<(), StoreUnavailable> {
        if self.is_safe() { Ok(()) } else { Err(self.unavailable()) }
    }

    pub fn unavailable(&self) -> StoreUnavailable {
        StoreUnavailable { retry_after: self.heartbeat().max(Duration::from_secs(1)) }
    }

    fn is_safe(&self) -> bool {
        nanos(self.now()) < self.safe_until.load(Ordering::Acquire)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How long this machine has been suspended since boot.
fn suspended() -> Duration {
    let [boot, monotonic] = [ClockId::Boottime, ClockId::Monotonic].map(|clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    });
    boot.saturating_sub(monotonic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn calls_start_for_a_fifth_of_the_lease_after_the_last_command() {
        let lease = ReplicaLease::new(30 * SECOND);
        assert!(lease.reach().is_err(), "no command was executed yet");
        let sent_at = lease.now();
        tokio::time::advance(2 * SECOND).await;
        lease.renewed(sent_at);
        let epoch = lease.epoch();
        tokio::time::advance(4 * SECOND - Duration::from_millis(1)).await;
        assert!(lease.is_in_force(epoch));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!lease.is_in_force(epoch));
        assert_eq!(lease.reach().unwrap_err().retry_after, 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn time_while_the_machine_is_suspended_counts() {
        static SUSPENDED: AtomicU64 = AtomicU64::new(1000);
        let suspended = || Duration::from_secs(SUSPENDED.load(Ordering::Relaxed));
        let lease = ReplicaLease::on(30 * SECOND, suspended);
        tokio::time::advance(SECOND).await;
        lease.renewed(lease.now());
        SUSPENDED.fetch_add(5, Ordering::Relaxed);
        assert!(lease.is_in_force(lease.epoch()));
        SUSPENDED.fetch_add(1, Ordering::Relaxed);
        assert!(!lease.is_in_force(lease.epoch()));
        assert_eq!(lease.since_last_command(), Some(6 * SECOND));
    }

    #[test]
    fn a_replica_sends_a_heartbeat_every_two_seconds_at_least() {
        assert_eq!(ReplicaLease::new(15 * SECOND).heartbeat(), SECOND);
        assert_eq!(ReplicaLease::new(3600 * SECOND).heartbeat(), 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn permits_of_an_expired_lease_stay_invalid() {
        let lease = ReplicaLease::new(30 * SECOND);
        lease.renewed(lease.now());
        lease.renew_epoch(false);
        let epoch = lease.epoch();
        assert!(lease.is_in_force(epoch), "it has not expired");
        tokio::time::advance(6 * SECOND).await;
        lease.renew_epoch(false);
        lease.renewed(lease.now());
        assert!(!lease.is_in_force(epoch));
        assert!(lease.is_in_force(lease.epoch()));
        let epoch = lease.epoch();
        lease.renew_epoch(true);
        assert!(!lease.is_in_force(epoch), "Redis ended it");
    }
}
