//! Random histories of a semaphore compared with a model.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::limits::model::SemaphoreId;
use crate::limits::semaphore::{
    Acquire, NotGranted, Permit, PermitRequest, Semaphore, SemaphoreUsage, WaitMode,
};
use crate::limits::store::Store;

/// The expected outcome of a request whose result was not read yet.
type Outcome = Option<Result<(), NotGranted>>;

/// The model: requests are served in order, none waits for free permits, and no permit is lost or
/// granted twice.
struct Rules {
    limit: usize,
    out: usize,
    /// The permits of each request, and its expected outcome.
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

/// Random requests, cancellations, releases, reads and changes of the limit.
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
            // Without this, tokio's cooperative budget would make ready futures appear pending.
            tokio::task::yield_now().await;
            self.rules.settle();
            let Rules { limit, out, .. } = self.rules;
            let expected = SemaphoreUsage { limit, in_use: out, waiting: self.rules.waiting() };
            self.store.refresh().await.unwrap();
            assert_eq!(self.semaphore.usage(), expected);
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
                let expected = if permits > limit {
                    Err(NotGranted::MoreThanLimit { limit })
                } else if self.rules.waiting() == 0 && self.rules.out + permits <= limit {
                    self.rules.out += permits;
                    Ok(())
                } else {
                    Err(NotGranted::NoneFree)
                };
                let answer = Arc::clone(&self.semaphore).request(permits, WaitMode::None).await;
                assert_eq!(answer.as_ref().map(drop).map_err(|reason| *reason), expected);
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

    /// Reads the results of all requests.
    fn look_up(&mut self) {
        for which in (0..self.asking.len()).rev() {
            let answer = (&mut self.asking[which]).now_or_never();
            let (_, expected) = self.rules.asked[which];
            let came = answer.as_ref().map(|answer| answer.as_ref().map(drop).map_err(|e| *e));
            assert_eq!(came, expected);
            if let Some(answer) = answer {
                drop(self.asking.remove(which));
                self.rules.asked.remove(which);
                self.held.extend(answer);
            }
        }
    }
}
