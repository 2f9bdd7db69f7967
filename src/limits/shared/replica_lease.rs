//! For how long what this replica holds is its own.
//!
//! Redis keeps it for a *tenure* after the replica's last word. The replica itself counts on less:
//! it starts calls only for a fifth of the tenure after it last said something that was heard. So
//! a call that takes less than the other four fifths is over before anybody else can be given its
//! permit, whatever happened to the line, to Redis or to this process. The time in which the machine
//! is suspended counts, although tokio's clock stands still then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::limits::semaphore::StoreUnavailable;

/// The longest time without a word, however long the tenure: so soon a replica finds out that Redis
/// has forgotten it.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// The tenure of this replica.
#[derive(Debug)]
pub(super) struct ReplicaLease {
    length: Duration,
    began: Instant,
    /// For how long the machine has been suspended, and for how long it had been at the beginning.
    suspended: fn() -> Duration,
    suspended_before: Duration,
    /// Until when calls may start, in nanoseconds since it began.
    secure_until: AtomicU64,
    /// When that was said which was heard last; 0 for never.
    last_said: AtomicU64,
    /// How often it has lapsed: permits of a tenure that lapsed are not used any more.
    number: AtomicU64,
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
            secure_until: AtomicU64::new(0),
            last_said: AtomicU64::new(0),
            number: AtomicU64::new(0),
        }
    }

    /// For how long Redis keeps what this replica holds.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// After what time without a word something is said.
    pub fn heartbeat(&self) -> Duration {
        (self.length / 15).min(LONGEST_SILENCE)
    }

    /// How long an answer from Redis may take.
    pub fn timeout(&self) -> Duration {
        self.length / 5
    }

    /// What time it is, since it began.
    pub fn now(&self) -> Duration {
        self.began.elapsed() + (self.suspended)().saturating_sub(self.suspended_before)
    }

    /// What was said at that moment has been heard.
    pub fn renewed(&self, said_at: Duration) {
        self.secure_until.fetch_max(nanos(said_at + self.length / 5), Ordering::AcqRel);
        self.last_said.fetch_max(nanos(said_at).max(1), Ordering::AcqRel);
    }

    /// How long ago that was said which was heard last.
    pub fn quiet(&self) -> Option<Duration> {
        let last = self.last_said.load(Ordering::Acquire);
        (last > 0).then(|| self.now().saturating_sub(Duration::from_nanos(last)))
    }

    /// Begins another tenure if this one has lapsed, or `is_over` in Redis already: others may have
    /// been given what was held in it.
    pub fn begin_anew(&self, is_over: bool) {
        if is_over || !self.is_secure() {
            self.number.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Which tenure this is.
    pub fn current(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Whether a call may start with a permit of that tenure.
    pub fn is_in_force(&self, tenure: u64) -> bool {
        // In this order: a lapsed tenure is numbered anew before it is secure again.
        self.is_secure() && self.current() == tenure
    }

    /// # Errors
    /// [`StoreUnavailable`] where it is unknown whether this replica still holds what it does.
    pub fn reach(&self) -> Result<(), StoreUnavailable> {
        if self.is_secure() { Ok(()) } else { Err(self.unavailable()) }
    }

    pub fn unavailable(&self) -> StoreUnavailable {
        StoreUnavailable { retry_after: self.heartbeat().max(Duration::from_secs(1)) }
    }

    fn is_secure(&self) -> bool {
        nanos(self.now()) < self.secure_until.load(Ordering::Acquire)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// For how long this machine has been suspended since it was started.
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
    async fn calls_start_for_a_fifth_of_the_tenure_after_the_last_word() {
        let tenure = ReplicaLease::new(30 * SECOND);
        assert!(tenure.reach().is_err(), "nothing was heard yet");
        let said_at = tenure.now();
        tokio::time::advance(2 * SECOND).await;
        tenure.renewed(said_at);
        let number = tenure.current();
        tokio::time::advance(4 * SECOND - Duration::from_millis(1)).await;
        assert!(tenure.is_in_force(number));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!tenure.is_in_force(number));
        assert_eq!(tenure.reach().unwrap_err().retry_after, 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_the_machine_is_suspended_counts() {
        static SUSPENDED: AtomicU64 = AtomicU64::new(1000);
        let suspended = || Duration::from_secs(SUSPENDED.load(Ordering::Relaxed));
        let tenure = ReplicaLease::on(30 * SECOND, suspended);
        tokio::time::advance(SECOND).await;
        tenure.renewed(tenure.now());
        SUSPENDED.fetch_add(5, Ordering::Relaxed);
        assert!(tenure.is_in_force(tenure.current()));
        SUSPENDED.fetch_add(1, Ordering::Relaxed);
        assert!(!tenure.is_in_force(tenure.current()));
        assert_eq!(tenure.quiet(), Some(6 * SECOND));
    }

    #[test]
    fn a_replica_speaks_every_two_seconds_at_least() {
        assert_eq!(ReplicaLease::new(15 * SECOND).heartbeat(), SECOND);
        assert_eq!(ReplicaLease::new(3600 * SECOND).heartbeat(), 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_when_it_lapsed_does_not_come_back() {
        let tenure = ReplicaLease::new(30 * SECOND);
        tenure.renewed(tenure.now());
        tenure.begin_anew(false);
        let number = tenure.current();
        assert!(tenure.is_in_force(number), "it has not lapsed");
        tokio::time::advance(6 * SECOND).await;
        tenure.begin_anew(false);
        tenure.renewed(tenure.now());
        assert!(!tenure.is_in_force(number));
        assert!(tenure.is_in_force(tenure.current()));
        let number = tenure.current();
        tenure.begin_anew(true);
        assert!(!tenure.is_in_force(number), "Redis says that it is over");
    }
}
