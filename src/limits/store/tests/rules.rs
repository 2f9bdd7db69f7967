//! Random histories of a semaphore beside what ought to be so.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::limits::named::SemaphoreId;
use crate::limits::semaphore::{
    Acquire, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};
use crate::limits::store::Store;

/// What is known of somebody who asked and has not looked for the answer since.
type Outcome = Option<Result<(), NotGranted>>;

/// What ought to be so, by the rules alone: who asked first goes first, nobody waits for what is
/// free, and nothing is lost or given twice.
struct Rules {
    limit: usize,
    out: usize,
    /// How many each asked for, and what ought to have become of it.
    asked: Vec<(usize, Outcome)>,
}

impl Rules {
    fn settle(&mut self) {
        let limit = self.limit;
        for (permits, outcome) in &mut self.asked {
            if outcome.is_none() && *permits > limit {
                *outcome = Some(Err(NotGranted::MoreThanLimit { limit }));
            }
        }
        for (permits, outcome) in self.asked.iter_mut().filter(|(_, outcome)| outcome.is_none()) {
            if self.out + *permits > limit {
                break;
            }
            self.out += *permits;
            *outcome = Some(Ok(()));
        }
    }

    fn waiting(&self) -> usize {
        self.asked.iter().filter(|(_, outcome)| outcome.is_none()).count()
    }
}

/// People come, go, give back, look up and change the limit, in whatever order.
pub(super) struct History<'a> {
    store: &'a Arc<dyn Store>,
    semaphore: Arc<dyn Semaphore>,
    id: SemaphoreId,
    rules: Rules,
    held: Vec<Permit>,
    asking: Vec<PermitRequest>,
}

impl<'a> History<'a> {
    pub(super) fn new(
        store: &'a Arc<dyn Store>,
        semaphore: Arc<dyn Semaphore>,
        id: SemaphoreId,
        limit: usize,
    ) -> Self {
        let rules = Rules { limit, out: 0, asked: Vec::new() };
        Self { store, semaphore, id, rules, held: Vec::new(), asking: Vec::new() }
    }

    pub(super) async fn run(mut self, random: &mut fastrand::Rng, steps: usize) {
        for _ in 0..steps {
            self.step(random).await;
            // A task that is never out of work would be told that nothing is ready.
            tokio::task::yield_now().await;
            self.rules.settle();
            let Rules { limit, out, .. } = self.rules;
            let ought = SemaphoreUsage { limit, in_use: out, waiting: self.rules.waiting() };
            self.store.refresh().await.unwrap();
            assert_eq!(self.semaphore.usage(), ought);
        }
        self.held.clear();
        self.asking.clear();
        self.store.refresh().await.unwrap();
        assert_eq!(self.semaphore.usage().available(), self.rules.limit);
    }

    async fn step(&mut self, random: &mut fastrand::Rng) {
        match random.u8(0..13) {
            0..4 => {
                let permits = random.usize(1..5);
                self.asking.push(self.semaphore.acquire_many(permits));
                self.rules.asked.push((permits, None));
            }
            4 => {
                let permits = random.usize(1..5);
                let limit = self.rules.limit;
                let ought = if permits > limit {
                    Err(NotGranted::MoreThanLimit { limit })
                } else if self.rules.waiting() == 0 && self.rules.out + permits <= limit {
                    self.rules.out += permits;
                    Ok(())
                } else {
                    Err(NotGranted::NoneFree)
                };
                let answer = Arc::clone(&self.semaphore).ask(permits, WaitMode::None).await;
                assert_eq!(answer.as_ref().map(drop).map_err(|reason| *reason), ought);
                self.held.extend(answer);
            }
            5..8 if !self.held.is_empty() => {
                let permit = self.held.swap_remove(random.usize(..self.held.len()));
                self.rules.out -= permit.permits();
            }
            8..10 if !self.asking.is_empty() => {
                let which = random.usize(..self.asking.len());
                drop(self.asking.remove(which));
                if let (permits, Some(Ok(()))) = self.rules.asked.remove(which) {
                    self.rules.out -= permits;
                }
            }
            10..12 => self.look_up(),
            12 => {
                self.rules.limit = random.usize(1..6);
                self.store.register(self.id.clone(), self.rules.limit).await.unwrap();
            }
            _ => {}
        }
    }

    /// Everybody who asked looks for an answer.
    fn look_up(&mut self) {
        for which in (0..self.asking.len()).rev() {
            let answer = (&mut self.asking[which]).now_or_never();
            let (_, ought) = self.rules.asked[which];
            let came = answer.as_ref().map(|answer| answer.as_ref().map(drop).map_err(|e| *e));
            assert_eq!(came, ought);
            if let Some(answer) = answer {
                drop(self.asking.remove(which));
                self.rules.asked.remove(which);
                self.held.extend(answer);
            }
        }
    }
}
