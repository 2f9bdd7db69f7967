//! Circuit breakers: calls that Gemini is certain to refuse until somebody pays or raises a quota.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::limits::model::Payer;

/// How long calls are refused here before a probe is sent to Gemini. Short beside the time in which
/// somebody pays or raises a quota, and long enough that few calls are sent in vain.
pub(in crate::limits) const PROBE_INTERVAL: Duration = Duration::from_secs(3 * 60);

/// How many tripped breakers are kept. Others are forgotten, and trip again at the next refusal.
const MAX_TRIPPED: usize = 4096;

/// Why Gemini is certain to refuse a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tripped {
    /// The payer has no funds.
    Unfunded,
    /// A quota of the account is 0.
    NoQuota,
}

/// The breakers of all accounts. Each replica has its own.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// Whether any is tripped. While none is, calls take no lock.
    any: AtomicBool,
    tripped: Mutex<HashMap<Breaker, State>>,
}

/// The state of a tripped breaker.
#[derive(Debug, Clone, Copy)]
struct State {
    since: Timestamp,
    /// Calls are refused until then.
    probe_at: Instant,
}

/// Calls that are refused here because Gemini is certain to refuse them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedHere {
    /// Why.
    pub reason: Tripped,
    /// When Gemini refused the first such call.
    pub since: Timestamp,
    /// When the next probe is sent to Gemini; zero if the next call is the probe.
    pub next_probe_in: Duration,
}

/// What a breaker is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Breaker {
    /// Every model of a payer that has no funds.
    Payer(Payer),
    /// One model of a payer, of which a quota is 0.
    Model(Payer, Arc<str>),
}

impl Breakers {
    /// Refuses calls here from now on. Returns whether the breaker was not tripped before.
    pub fn trip(&self, breaker: Breaker) -> bool {
        let now = Instant::now();
        let mut tripped = self.tripped();
        if tripped.len() >= MAX_TRIPPED {
            tripped.retain(|_, state| state.probe_at > now);
        }
        if tripped.len() >= MAX_TRIPPED {
            tripped.clear();
        }
        let previous = tripped.get(&breaker).copied();
        let since = previous.map_or_else(Timestamp::now, |previous| previous.since);
        tripped.insert(breaker, State { since, probe_at: now + PROBE_INTERVAL });
        self.any.store(true, Ordering::Relaxed);
        previous.is_none()
    }

    /// Lets calls through again. Returns whether any of the breakers was tripped.
    pub fn reset(&self, breakers: &[Breaker]) -> bool {
        let mut tripped = self.tripped();
        let mut was_tripped = false;
        for breaker in breakers {
            was_tripped |= tripped.remove(breaker).is_some();
        }
        self.any.store(!tripped.is_empty(), Ordering::Relaxed);
        was_tripped
    }

    /// Whether any breaker is tripped.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Refuses a call of a tripped breaker, unless a probe is due.
    ///
    /// # Errors
    /// [`Tripped`].
    pub fn check(&self, breakers: &[Breaker]) -> Result<(), Tripped> {
        ensure_due(&self.tripped(), breakers, Instant::now())
    }

    /// The same for a call that is about to start. If a probe is due, this call is it, and others are
    /// refused until the next probe.
    ///
    /// # Errors
    /// [`Tripped`].
    pub fn start(&self, breakers: &[Breaker]) -> Result<(), Tripped> {
        let (mut tripped, now) = (self.tripped(), Instant::now());
        ensure_due(&tripped, breakers, now)?;
        for breaker in breakers {
            if let Some(state) = tripped.get_mut(breaker) {
                state.probe_at = now + PROBE_INTERVAL;
            }
        }
        Ok(())
    }

    /// The tripped breaker whose next probe is last.
    pub fn refused(&self, breakers: &[Breaker]) -> Option<RefusedHere> {
        let (tripped, now) = (self.tripped(), Instant::now());
        let states = breakers.iter().filter_map(|breaker| Some((breaker, tripped.get(breaker)?)));
        let (breaker, state) = states.max_by_key(|(_, state)| state.probe_at)?;
        Some(RefusedHere {
            reason: breaker.tripped(),
            since: state.since,
            next_probe_in: state.probe_at.saturating_duration_since(now),
        })
    }

    fn tripped(&self) -> MutexGuard<'_, HashMap<Breaker, State>> {
        self.tripped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ensure_due(
    tripped: &HashMap<Breaker, State>,
    breakers: &[Breaker],
    now: Instant,
) -> Result<(), Tripped> {
    let is_refused =
        |breaker: &&Breaker| tripped.get(breaker).is_some_and(|state| state.probe_at > now);
    breakers.iter().find(is_refused).map_or(Ok(()), |breaker| Err(breaker.tripped()))
}

impl Breaker {
    fn tripped(&self) -> Tripped {
        match self {
            Self::Payer(_) => Tripped::Unfunded,
            Self::Model(..) => Tripped::NoQuota,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payer(number: u8) -> Breaker {
        Breaker::Payer(Payer::Key([number; 32]))
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_is_sent_in_each_interval() {
        let breakers = Breakers::default();
        let of = [payer(1)];
        assert_eq!((breakers.any(), breakers.start(&of)), (false, Ok(())));
        assert!(breakers.trip(payer(1)));
        assert!(!breakers.trip(payer(1)), "it is known");
        for _ in 0..3 {
            assert_eq!(breakers.start(&of), Err(Tripped::Unfunded));
            assert_eq!(breakers.start(&[payer(2)]), Ok(()), "others are served");
            tokio::time::advance(PROBE_INTERVAL).await;
            assert_eq!(breakers.check(&of), Ok(()));
            assert_eq!(breakers.start(&of), Ok(()), "the probe");
        }
        assert_eq!(breakers.start(&of), Err(Tripped::Unfunded));
        tokio::time::advance(Duration::from_secs(60)).await;
        let refused = breakers.refused(&of).expect("it is tripped");
        assert_eq!(refused.reason, Tripped::Unfunded);
        assert_eq!(refused.next_probe_in, PROBE_INTERVAL - Duration::from_secs(60));
        assert!(!breakers.trip(payer(1)));
        let again = breakers.refused(&of).expect("it is tripped");
        assert_eq!((again.since, again.next_probe_in), (refused.since, PROBE_INTERVAL));
        assert!(breakers.reset(&of));
        assert_eq!(breakers.refused(&of), None);
        assert_eq!((breakers.any(), breakers.start(&of)), (false, Ok(())));
    }

    #[test]
    fn the_number_of_tripped_breakers_is_bounded() {
        let breakers = Breakers::default();
        for number in 0..2 * MAX_TRIPPED {
            let model = number.to_string().into();
            breakers.trip(Breaker::Model(Payer::Key([1; 32]), model));
            assert!(breakers.tripped().len() <= MAX_TRIPPED);
        }
    }
}
