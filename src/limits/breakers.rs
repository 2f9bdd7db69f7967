//! Circuit breakers: which calls Gemini is certain to refuse for now, whatever time passes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::account::Payer;

/// How long calls are refused here before one is let through, to find out whether Gemini still
/// refuses them: short beside the time in which somebody pays or raises a quota, and long enough
/// that Gemini is hardly asked in vain.
pub(in crate::limits) const PROBE_INTERVAL: Duration = Duration::from_secs(3 * 60);

/// More than this are forgotten, and found out anew.
const MAX_TRIPPED: usize = 4096;

/// Why Gemini is certain to refuse a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tripped {
    /// The payer has nothing left to pay with.
    Unfunded,
    /// A quota of the account is 0.
    NoQuota,
}

/// The breakers of all accounts. Each process finds out by itself what Gemini refuses.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// Whether any is tripped, so that calls need no lock as long as none is.
    any: AtomicBool,
    tripped: Mutex<HashMap<Breaker, State>>,
}

/// A breaker that is tripped.
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
    /// Since when: Gemini refused the first such call then.
    pub since: Timestamp,
    /// In how long the next call is let through, to find out whether Gemini still refuses; zero where
    /// the next one is.
    pub next_probe_in: Duration,
}

/// What a breaker is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Breaker {
    /// Every model of a payer that has nothing left to pay with.
    Payer(Payer),
    /// One model of a payer, of which a quota is 0.
    Model(Payer, Arc<str>),
}

impl Breakers {
    /// Gemini refused a call for good: from now on calls are refused here. Tells whether that is
    /// news.
    pub fn trip(&self, breaker: Breaker) -> bool {
        let now = Instant::now();
        let mut tripped = self.tripped();
        if tripped.len() >= MAX_TRIPPED {
            tripped.retain(|_, state| state.probe_at > now);
        }
        if tripped.len() >= MAX_TRIPPED {
            tripped.clear();
        }
        let before = tripped.get(&breaker).copied();
        let since = before.map_or_else(Timestamp::now, |before| before.since);
        tripped.insert(breaker, State { since, probe_at: now + PROBE_INTERVAL });
        self.any.store(true, Ordering::Relaxed);
        before.is_none()
    }

    /// Gemini answered a call. Tells whether it had refused such calls before.
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

    /// Refuses a call of which Gemini is certain to refuse the like, unless a probe is due.
    ///
    /// # Errors
    /// [`Tripped`].
    pub fn check(&self, breakers: &[Breaker]) -> Result<(), Tripped> {
        ensure_due(&self.tripped(), breakers, Instant::now())
    }

    /// The same for a call that is about to start: where a probe is due it is this one, and no
    /// other until the next.
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

    /// The one of these that is tripped and lets calls through last.
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
    async fn one_call_at_a_time_finds_out_whether_it_is_over() {
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
    fn they_are_bounded() {
        let breakers = Breakers::default();
        for number in 0..2 * MAX_TRIPPED {
            let model = number.to_string().into();
            breakers.trip(Breaker::Model(Payer::Key([1; 32]), model));
            assert!(breakers.tripped().len() <= MAX_TRIPPED);
        }
    }
}
