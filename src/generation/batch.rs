//! Many generations in one request: each answer in its own ticket, one ticket in the queue.

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
use super::{Failure, Generation, generate_admitted};
use crate::dispatch::{CallError, CallQueue, Dispatcher};
use crate::gemini::{ApiKey, Model};
use crate::limits::{Refused, Semaphore};

/// One generation of a batch, and who pays for it.
#[derive(Debug)]
pub struct Item<G> {
    /// What is generated.
    pub generation: G,
    /// Whose key pays.
    pub key: ApiKey,
    /// The semaphore its calls hold in addition to the global one.
    pub semaphore: Option<Arc<dyn Semaphore>>,
}

/// What came of one generation of a batch.
#[derive(Debug)]
pub struct Outcome<Output> {
    /// The model that was asked, or would have been.
    pub model: Model,
    /// The output, or why there is none.
    pub result: Result<Output, Failure>,
}

/// Generates every item and returns what came of each, in the order of the items, whenever it
/// was ready. Items of one key, model and semaphore are let in one after the other and then run
/// beside each other; those of another do not wait for them. Each has `timeout` from its turn in
/// the queue on. Dropping the future cancels them all.
///
/// # Errors
/// [`Refused::QueueFull`] when the batch finds no place in the queue, [`Refused::StoreUnavailable`] when
/// there is none to be found: nothing was sent then.
pub async fn generate_all<G: Generation>(
    dispatcher: &Arc<Dispatcher>,
    offload: &Arc<Offload>,
    items: Vec<Item<G>>,
    timeout: Duration,
) -> Result<Vec<Outcome<G::Output>>, Refused> {
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

/// A batch under way, which its runners share.
struct Batch<G: Generation> {
    dispatcher: Arc<Dispatcher>,
    offload: Arc<Offload>,
    accounts: Vec<AccountItems<G>>,
    timeout: Duration,
    /// In the order of the items. One whose runner never tells how it ended has failed.
    outcomes: Mutex<Vec<Outcome<G::Output>>>,
    runners: TaskTracker,
    cancelled: CancellationToken,
    /// Why it found no place in the queue.
    refused: OnceLock<Refused>,
}

/// The items that go the same way: those that have not gone yet, each with its index.
struct AccountItems<G> {
    queue: Arc<CallQueue>,
    items: Mutex<VecDeque<(usize, G)>>,
    /// How many runners wait for the one whose turn it is.
    standing_by: AtomicUsize,
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
            outcomes.push(Outcome { model: model.clone(), result: Err(Failure::Internal) });
            let way = (*key.sha256(), model.clone(), semaphore.as_ref().map(|own| own.number()));
            let account = *known.entry(way).or_insert_with(|| {
                let queue = dispatcher.queue(&ticket, G::KIND, key, model, semaphore);
                accounts.push(AccountItems {
                    queue: Arc::new(queue),
                    items: Mutex::default(),
                    standing_by: 0.into(),
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
        self.accounts[account].standing_by.fetch_add(1, Ordering::Relaxed);
        // Boxed, for all that is wrapped around it would hold it several times over and move it.
        let runner = Box::pin(Arc::clone(self).run(account));
        let runner = self.cancelled.clone().run_until_cancelled_owned(runner);
        self.runners.spawn(runner.in_current_span());
    }

    /// Takes item after item from a account, waits for it to be let in, and generates it. Whoever is
    /// let in sees to it that another one stands in the queue meanwhile, so that there are as many
    /// runners as items under way, and one.
    async fn run(self: Arc<Self>, account: usize) {
        let AccountItems { queue, items, standing_by } = &self.accounts[account];
        loop {
            let head = queue.head().await;
            standing_by.fetch_sub(1, Ordering::Relaxed);
            let Some((index, generation)) = lock(items).pop_front() else { return };
            let call = queue.call(generation.input(), Instant::now() + self.timeout);
            let result = match self.dispatcher.admit_at_head(&call, head).await {
                Ok(admission) => {
                    if standing_by.load(Ordering::Relaxed) == 0 && !lock(items).is_empty() {
                        self.start_runner(account);
                    }
                    let generation = Arc::new(generation);
                    let (dispatcher, offload) = (&*self.dispatcher, &*self.offload);
                    generate_admitted(dispatcher, offload, &call, &generation, admission).await
                }
                Err(CallError::Refused(
                    refused @ (Refused::QueueFull | Refused::StoreUnavailable(_)),
                )) => {
                    // Another account may have been first to say so.
                    let _ = self.refused.set(refused);
                    self.cancelled.cancel();
                    return;
                }
                Err(failure) => Err(failure.into()),
            };
            lock(&self.outcomes)[index].result = result;
            // One is enough: items that are sent again would wait behind all others.
            if standing_by.fetch_add(1, Ordering::Relaxed) > 0 {
                standing_by.fetch_sub(1, Ordering::Relaxed);
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
    use crate::gemini::{Answer, Client, GenerateContent, InputFeatures, Usage};
    use crate::generation::chat::ChatRequest;
    use crate::generation::{InvalidField, Misfit, Preparation, Unusable};
    use crate::limits::{Limiter, QuotaPlan};
    use crate::metrics::Metrics;
    use crate::schema::Work;
    use crate::simulator::{Options, Simulator};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A generation that may panic when it is answered.
    struct Fragile {
        model: Model,
        breaks: bool,
        prompt: String,
    }

    impl Generation for Fragile {
        const KIND: CallKind = CallKind::Chat;
        type Request = ChatRequest;
        type Output = String;

        fn prepare(_: ChatRequest, _: &Preparation<'_>) -> Result<Self, Vec<InvalidField>> {
            unreachable!("it is made by hand")
        }

        fn model(&self) -> &Model {
            &self.model
        }

        fn ask(&self) -> Bytes {
            GenerateContent::ask(&self.prompt).to_json()
        }

        fn input(&self) -> InputFeatures {
            InputFeatures::of(&self.prompt)
        }

        fn read(&self, answer: Answer, _: &Work) -> Result<String, Unusable<String>> {
            assert!(!self.breaks, "as it was told to");
            Ok(answer.text)
        }

        fn ask_again(&self, _: &Misfit<String>) -> Bytes {
            unreachable!("every answer will do")
        }

        fn charge(_: &mut String, _: Usage) {}
    }

    #[tokio::test]
    async fn an_item_whose_task_panics_fails_in_its_place_and_costs_no_slot() {
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
                breaks: n % 3 == 1,
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
                Ok(text) => assert_eq!(text, format!("Simulated answer to: item {n}")),
                Err(failure) => assert!(matches!(failure, Failure::Internal) && n % 3 == 1),
            }
        }
        assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().available), (0, 2));
    }
}
