//! Many generations in one request. The batch holds one position in the queue, and results keep the
//! order of the items.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::offload::Offload;
use super::{Generated, Generation, GenerationError, generate_admitted};
use crate::dispatch::{CallError, CallQueue, Dispatcher};
use crate::gemini::{ApiKey, Model};
use crate::limits::{Refused, Semaphore};

/// One generation of a batch, and the key that pays for it.
#[derive(Debug)]
pub struct Item<G> {
    /// What is generated.
    pub generation: G,
    /// The key that pays.
    pub key: ApiKey,
    /// The semaphore that its calls hold in addition to the global limit.
    pub semaphore: Option<Arc<dyn Semaphore>>,
}

/// The result of one generation of a batch.
#[derive(Debug)]
pub struct Outcome<T> {
    /// The model of the item, even if no call was sent.
    pub model: Model,
    /// What was generated, or why nothing was.
    pub result: Result<Generated<T>, GenerationError>,
}

/// Generates every item and returns the outcomes in the order of the items. Items with the same key,
/// model and semaphore are admitted one after the other and then run concurrently; other items do
/// not wait for them. Each item has `timeout`, counted from when it reaches the head of the queue.
/// Dropping the future cancels all items.
///
/// # Errors
/// [`Refused::QueueFull`] if the queue is full, and [`Refused::StoreUnavailable`] if the shared limits
/// are unavailable.
pub async fn generate_all<G: Generation>(
    dispatcher: &Arc<Dispatcher>,
    offload: &Arc<Offload>,
    items: Vec<Item<G>>,
    timeout: Duration,
) -> Result<Vec<Outcome<G::Value>>, Refused> {
    let batch = Arc::new(Batch::new(dispatcher, offload, items, timeout));
    let _cancelled_on_drop = batch.cancelled.clone().drop_guard();
    (0..batch.accounts.len()).for_each(|account| batch.start_runner(account));
    batch.runners.close();
    batch.runners.wait().await;
    if let Some(refused) = batch.refused.get() {
        return Err(*refused);
    }
    Ok(mem::take(&mut *lock(&batch.outcomes)))
}

/// A running batch. Its runners share it.
struct Batch<G: Generation> {
    dispatcher: Arc<Dispatcher>,
    offload: Arc<Offload>,
    accounts: Vec<AccountItems<G>>,
    timeout: Duration,
    /// In the order of the items. Each is an internal error until its runner reports the result.
    outcomes: Mutex<Vec<Outcome<G::Value>>>,
    runners: TaskTracker,
    cancelled: CancellationToken,
    /// Why the batch was refused.
    refused: OnceLock<Refused>,
}

/// The items with the same key, model and semaphore that have not been admitted yet, each with its
/// index.
struct AccountItems<G> {
    queue: Arc<CallQueue>,
    items: Mutex<VecDeque<(usize, G)>>,
    /// How many runners wait for admission.
    waiting_runners: AtomicUsize,
}

impl<G: Generation> Batch<G> {
    fn new(
        dispatcher: &Arc<Dispatcher>,
        offload: &Arc<Offload>,
        items: Vec<Item<G>>,
        timeout: Duration,
    ) -> Self {
        let ticket = dispatcher.enqueue_batch();
        let mut outcomes = Vec::with_capacity(items.len());
        let mut accounts: Vec<AccountItems<G>> = Vec::new();
        let mut known = HashMap::new();
        for (index, Item { generation, key, semaphore }) in items.into_iter().enumerate() {
            let model = generation.model().clone();
            outcomes.push(Outcome { model: model.clone(), result: Err(GenerationError::Internal) });
            let group = (*key.sha256(), model.clone(), semaphore.as_ref().map(|own| own.number()));
            let account = *known.entry(group).or_insert_with(|| {
                let queue = dispatcher.queue(&ticket, G::KIND, key, model, semaphore);
                accounts.push(AccountItems {
                    queue: Arc::new(queue),
                    items: Mutex::default(),
                    waiting_runners: 0.into(),
                });
                accounts.len() - 1
            });
            let items = accounts[account].items.get_mut().unwrap_or_else(PoisonError::into_inner);
            items.push_back((index, generation));
        }
        Self {
            dispatcher: Arc::clone(dispatcher),
            offload: Arc::clone(offload),
            accounts,
            timeout,
            outcomes: Mutex::new(outcomes),
            runners: TaskTracker::new(),
            cancelled: CancellationToken::new(),
            refused: OnceLock::new(),
        }
    }

    fn start_runner(self: &Arc<Self>, account: usize) {
        self.accounts[account].waiting_runners.fetch_add(1, Ordering::Relaxed);
        // Boxed, because each wrapper around it would otherwise hold a copy of its size.
        let runner = Box::pin(Arc::clone(self).run(account));
        let runner = self.cancelled.clone().run_until_cancelled_owned(runner);
        self.runners.spawn(runner.in_current_span());
    }

    /// Takes items of an account one after the other, waits until each is admitted, and generates it.
    /// A runner whose item is admitted starts another runner for the next item if none is waiting, so
    /// there is one runner for each item in flight, and one that waits.
    async fn run(self: Arc<Self>, account: usize) {
        let AccountItems { queue, items, waiting_runners } = &self.accounts[account];
        loop {
            let head = queue.head().await;
            waiting_runners.fetch_sub(1, Ordering::Relaxed);
            let Some((index, generation)) = lock(items).pop_front() else { return };
            let call = queue.call(generation.input(), Instant::now() + self.timeout);
            let result = match self.dispatcher.admit_at_head(&call, head).await {
                Ok(admission) => {
                    if waiting_runners.load(Ordering::Relaxed) == 0 && !lock(items).is_empty() {
                        self.start_runner(account);
                    }
                    let generation = Arc::new(generation);
                    let (dispatcher, offload) = (&*self.dispatcher, &*self.offload);
                    generate_admitted(dispatcher, offload, &call, &generation, admission).await
                }
                Err(CallError::Refused(
                    refused @ (Refused::QueueFull | Refused::StoreUnavailable(_)),
                )) => {
                    // Another account may have set it first.
                    let _ = self.refused.set(refused);
                    self.cancelled.cancel();
                    return;
                }
                Err(failure) => Err(failure.into()),
            };
            lock(&self.outcomes)[index].result = result;
            // One waiting runner is enough. More would only make retried items wait longer.
            if waiting_runners.fetch_add(1, Ordering::Relaxed) > 0 {
                waiting_runners.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use tokio::net::TcpListener;

    use super::*;
    use crate::dispatch::{CallKind, RetryPolicy};
    use crate::gemini::{Answer, Client, GenerateContent, InputFeatures};
    use crate::generation::{Mismatch, ReadError};
    use crate::limits::{Limiter, QuotaPlan};
    use crate::metrics::Metrics;
    use crate::schema::Work;
    use crate::simulator::{Options, Simulator};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A generation that may panic when its answer is read.
    struct Fragile {
        model: Model,
        panics: bool,
        prompt: String,
    }

    impl Generation for Fragile {
        const KIND: CallKind = CallKind::Chat;
        type Value = String;

        fn model(&self) -> &Model {
            &self.model
        }

        fn body(&self) -> Bytes {
            GenerateContent::ask(&self.prompt).to_json()
        }

        fn input(&self) -> InputFeatures {
            InputFeatures::of(&self.prompt)
        }

        fn read(&self, answer: Answer, _: &Work) -> Result<Generated<String>, ReadError<Self>> {
            assert!(!self.panics, "this item panics");
            let Answer { text, finish_reason, usage, .. } = answer;
            Ok(Generated { value: text, model: self.model.clone(), finish_reason, usage })
        }

        fn correction(&self, _: &Mismatch<String>) -> Bytes {
            unreachable!("every answer is accepted")
        }
    }

    #[tokio::test]
    async fn an_item_whose_task_panics_fails_alone_and_releases_its_slot() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let simulator = Simulator::new(Options::default()).router();
        tokio::spawn(async { axum::serve(listener, simulator).await });
        let limiter = Limiter::new(2, 10, QuotaPlan::default());
        let dispatcher = Arc::new(Dispatcher::new(
            Client::new(&base_url).unwrap(),
            Arc::clone(&limiter),
            Arc::new(Metrics::new(Arc::clone(&limiter))),
            RetryPolicy::new(1, Duration::from_secs(30)),
        ));
        let item = |n: usize| Item {
            generation: Fragile {
                model: Model::parse("gemini-3.5-flash-lite").unwrap(),
                panics: n % 3 == 1,
                prompt: format!("item {n}"),
            },
            key: ApiKey::new("a-key").unwrap(),
            semaphore: None,
        };

        let items = (0..8).map(item).collect();
        let (offload, timeout) = (Arc::new(Offload::new(TIMEOUT)), TIMEOUT);
        let outcomes = generate_all(&dispatcher, &offload, items, timeout).await.unwrap();
        assert_eq!(outcomes.len(), 8);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match outcome.result {
                Ok(reply) => assert_eq!(reply.value, format!("Simulated answer to: item {n}")),
                Err(failure) => assert!(matches!(failure, GenerationError::Internal) && n % 3 == 1),
            }
        }
        assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().available), (0, 2));
    }
}
