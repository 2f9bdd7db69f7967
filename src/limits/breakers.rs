//! Circuit breakers: which calls Gemini is certain to refuse for now, whatever time passes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
pub(super) enum Tripped {
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
    probes: Mutex<HashMap<Breaker, Instant>>,
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
        let mut probes = self.probes();
        if probes.len() >= MAX_TRIPPED {
            probes.retain(|_, probe_at| *probe_at > now);
        }
        if probes.len() >= MAX_TRIPPED {
            probes.clear();
        }
        let is_news = probes.insert(breaker, now + PROBE_INTERVAL).is_none();
        self.any.store(true, Ordering::Relaxed);
        is_news
    }

    /// Gemini answered a call. Tells whether it had refused such calls before.
    pub fn reset(&self, breakers: &[Breaker]) -> bool {
        let mut probes = self.probes();
        let mut was_tripped = false;
        for breaker in breakers {
            was_tripped |= probes.remove(breaker).is_some();
        }
        self.any.store(!probes.is_empty(), Ordering::Relaxed);
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
        ensure_due(&self.probes(), breakers, Instant::now())
    }

    /// The same for a call that is about to start: where a probe is due it is this one, and no
    /// other until the next.
    ///
    /// # Errors
    /// [`Tripped`].
    pub fn start(&self, breakers: &[Breaker]) -> Result<(), Tripped> {
        let (mut probes, now) = (self.probes(), Instant::now());
        ensure_due(&probes, breakers, now)?;
        for breaker in breakers {
            if let Some(probe_at) = probes.get_mut(breaker) {
                *probe_at = now + PROBE_INTERVAL;
            }
        }
        Ok(())
    }

    fn probes(&self) -> MutexGuard<'_, HashMap<Breaker, Instant>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ensure_due(
    probes: &HashMap<Breaker, Instant>,
    breakers: &[Breaker],
    now: Instant,
) -> Result<(), Tripped> {
    let is_refused = |breaker: &&Breaker| probes.get(breaker).is_some_and(|at| *at > now);
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
        assert!(breakers.reset(&of));
        assert_eq!((breakers.any(), breakers.start(&of)), (false, Ok(())));
    }

    #[test]
    fn they_are_bounded() {
        let breakers = Breakers::default();
        for number in 0..2 * MAX_TRIPPED {
            let model = number.to_string().into();
            breakers.trip(Breaker::Model(Payer::Key([1; 32]), model));
            assert!(breakers.probes().len() <= MAX_TRIPPED);
        }
    }
}
