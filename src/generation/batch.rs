//! Many generations in one request. The batch holds one position in the queue, and results keep the
//! order of the items.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::bulk::{Bulk, BulkItem, Outcomes, Route, TimeLimit};
use super::offload::Offload;
use super::{Generated, Generation, GenerationError, generate_admitted};
use crate::dispatch::{Admitted, Call, CallError, CallObserver, CallSize, Dispatcher, TierChoice};
use crate::gemini::{ApiKey, Model, Usage};
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
    /// The service tier of its calls.
    pub tier: TierChoice,
    /// How long it may take, counted from when it reaches the head of the queue. The same for all
    /// items in one tier.
    pub timeout: Duration,
    /// The observer of the batch.
    pub observer: Option<Arc<dyn CallObserver>>,
}

/// The result of one generation of a batch.
#[derive(Debug)]
pub struct Outcome<T> {
    /// The model of the item, even if no call was sent.
    pub model: Model,
    /// What was generated, or why nothing was.
    pub result: Result<Generated<T>, GenerationError>,
}

impl<T> Outcome<T> {
    /// The tokens that were spent on the item.
    pub fn usage(&self) -> Usage {
        match &self.result {
            Ok(generated) => generated.usage,
            Err(error) => error.usage(),
        }
    }
}

/// Generates every item and returns the outcomes in the order of the items. Items with the same key,
/// model, service tier and semaphore are admitted one after the other and then run concurrently;
/// other items do not wait for them. Dropping the future cancels all items.
///
/// # Errors
/// [`Refused::QueueFull`] if the queue is full, and [`Refused::StoreUnavailable`] if the shared limits
/// are unavailable.
pub async fn generate_all<G: Generation>(
    dispatcher: &Arc<Dispatcher>,
    offload: &Arc<Offload>,
    items: Vec<Item<G>>,
) -> Result<Vec<Outcome<G::Value>>, Refused> {
    let models = items.iter().map(|item| item.generation.model().clone());
    let failed = |model| Outcome { model, result: Err(GenerationError::Internal) };
    let bulk = Bulk::new(dispatcher, Collected(Mutex::new(models.map(failed).collect())));
    add_all(&bulk, offload, items);
    bulk.finished().await;
    match bulk.refused() {
        Some(refused) => Err(refused),
        None => Ok(mem::take(&mut *bulk.outcomes().lock())),
    }
}

/// The same, but each outcome can be read as soon as it is there, in the order in which they come.
/// While `unread` outcomes are not read, no further item is admitted: only those in flight finish.
pub fn generate_each<G: Generation>(
    dispatcher: &Arc<Dispatcher>,
    offload: &Arc<Offload>,
    items: Vec<Item<G>>,
    unread: usize,
) -> EachOutcome<G> {
    let models = items.iter().map(|item| item.generation.model().clone()).collect();
    let (sender, outcomes) = mpsc::channel(unread.max(1));
    let bulk = Bulk::new(dispatcher, PassedOn { models, outcomes: sender });
    add_all(&bulk, offload, items);
    EachOutcome { bulk, outcomes }
}

/// The outcomes of a batch as they come. Dropping it cancels the items that have none yet.
pub struct EachOutcome<G: Generation> {
    bulk: Bulk<Generating<G>, PassedOn<G::Value>>,
    outcomes: mpsc::Receiver<(usize, Outcome<G::Value>)>,
}

impl<G: Generation> EachOutcome<G> {
    /// The next outcome and the index of its item; `None` after the last one. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// As for [`generate_all`], instead of the first outcome.
    pub async fn next(&mut self) -> Result<Option<(usize, Outcome<G::Value>)>, Refused> {
        let next = tokio::select! {
            biased;
            next = self.outcomes.recv() => next,
            // The channel stays open, because the bulk holds a sender.
            () = self.bulk.finished() => self.outcomes.try_recv().ok(),
        };
        match self.bulk.refused() {
            Some(refused) if next.is_none() => Err(refused),
            _ => Ok(next),
        }
    }
}

fn add_all<G: Generation, O: Outcomes<Result<Generated<G::Value>, GenerationError>>>(
    bulk: &Bulk<Generating<G>, O>,
    offload: &Arc<Offload>,
    items: Vec<Item<G>>,
) {
    for (index, item) in (0..).zip(items) {
        let Item { generation, key, semaphore, tier, timeout, observer } = item;
        let model = generation.model().clone();
        let route = Route { kind: G::KIND, key, model, semaphore, tier };
        let observer = observer.map(|batch| (batch, index));
        let offload = Arc::clone(offload);
        bulk.add(index, route, Generating { generation, offload, timeout, observer });
    }
    bulk.close();
}

/// One generation of a batch on its way.
struct Generating<G> {
    generation: G,
    offload: Arc<Offload>,
    timeout: Duration,
    /// The observer of the batch, and the index of the item.
    observer: Option<(Arc<dyn CallObserver>, u64)>,
}

impl<G: Generation> BulkItem for Generating<G> {
    type Outcome = Result<Generated<G::Value>, GenerationError>;

    fn size(&self) -> CallSize {
        self.generation.input().into()
    }

    fn time_limit(&self) -> TimeLimit {
        TimeLimit::FromHead(self.timeout)
    }

    fn observer(&self) -> Option<Arc<dyn CallObserver>> {
        let (batch, index) = self.observer.as_ref()?;
        batch.item(*index)
    }

    async fn send(self, dispatcher: &Dispatcher, call: Call, admitted: Admitted) -> Self::Outcome {
        let generation = Arc::new(self.generation);
        generate_admitted(dispatcher, &self.offload, &call, &generation, admitted).await
    }

    fn refused(self, error: CallError) -> Self::Outcome {
        Err(error.into())
    }

    fn panicked() -> Self::Outcome {
        Err(GenerationError::Internal)
    }
}

/// The outcomes of a batch in the order of its items. Each is an internal error until the result is
/// there.
struct Collected<T>(Mutex<Vec<Outcome<T>>>);

impl<T> Collected<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<Outcome<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Outcomes<Result<Generated<T>, GenerationError>> for Collected<T> {
    async fn take(&self, index: u64, result: Result<Generated<T>, GenerationError>) {
        self.lock()[index as usize].result = result;
    }
}

/// Passes the outcomes of a batch on to their reader.
struct PassedOn<T> {
    /// Of the items, in their order.
    models: Vec<Model>,
    outcomes: mpsc::Sender<(usize, Outcome<T>)>,
}

impl<T: Send + 'static> Outcomes<Result<Generated<T>, GenerationError>> for PassedOn<T> {
    async fn room(&self) {
        // Runners that finish share the room that is there now. It is exceeded by no more than the
        // items in flight.
        drop(self.outcomes.reserve().await);
    }

    async fn take(&self, index: u64, result: Result<Generated<T>, GenerationError>) {
        let index = index as usize;
        let outcome = Outcome { model: self.models[index].clone(), result };
        // It fails once nobody reads, when all is cancelled.
        let _ = self.outcomes.send((index, outcome)).await;
    }
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
            let Answer { text, finish_reason, usage, model_version, .. } = answer;
            let model = self.model.clone();
            Ok(Generated { value: text, model, model_version, finish_reason, usage })
        }

        fn correction(&self, _: &Mismatch<String>) -> Bytes {
            unreachable!("every answer is accepted")
        }
    }

    /// A dispatcher to a simulator, with room for two calls at a time.
    async fn dispatcher() -> (Arc<Dispatcher>, Arc<Limiter>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let simulator = Simulator::new(Options::default()).router();
        tokio::spawn(async { axum::serve(listener, simulator).await });
        let limiter = Limiter::new(2, 10, QuotaPlan::default());
        let dispatcher = Dispatcher::new(
            Client::new(&base_url).unwrap(),
            Arc::clone(&limiter),
            Arc::new(Metrics::new(Arc::clone(&limiter))),
            RetryPolicy::new(1, Duration::from_secs(30)),
            Arc::default(),
        );
        (Arc::new(dispatcher), limiter)
    }

    /// Items of which every third panics, from the second on.
    fn items(items: usize) -> Vec<Item<Fragile>> {
        let item = |n: usize| Item {
            generation: Fragile {
                model: Model::parse("gemini-3.5-flash-lite").unwrap(),
                panics: n % 3 == 1,
                prompt: format!("item {n}"),
            },
            key: ApiKey::new("a-key").unwrap(),
            semaphore: None,
            tier: TierChoice::default(),
            timeout: TIMEOUT,
            observer: None,
        };
        (0..items).map(item).collect()
    }

    fn is_as_expected(n: usize, outcome: &Outcome<String>) -> bool {
        match &outcome.result {
            Ok(reply) => reply.value == format!("Simulated answer to: item {n}"),
            Err(failure) => matches!(failure, GenerationError::Internal) && n % 3 == 1,
        }
    }

    #[tokio::test]
    async fn an_item_whose_task_panics_fails_alone_and_releases_its_slot() {
        let (dispatcher, limiter) = dispatcher().await;
        let offload = Arc::new(Offload::new(TIMEOUT));
        let outcomes = generate_all(&dispatcher, &offload, items(8)).await.unwrap();
        assert_eq!(outcomes.len(), 8);
        assert!(outcomes.iter().enumerate().all(|(n, outcome)| is_as_expected(n, outcome)));
        assert_eq!((limiter.occupancy().in_flight, limiter.occupancy().available), (0, 2));
    }

    #[tokio::test]
    async fn outcomes_that_nobody_reads_hold_no_slot_and_stop_the_batch() {
        let (dispatcher, limiter) = dispatcher().await;
        let offload = Arc::new(Offload::new(TIMEOUT));
        let mut each = generate_each(&dispatcher, &offload, items(100), 3);
        let mut read = vec![each.next().await.unwrap().unwrap()];
        // Other requests get through: the batch that waits for its reader holds nothing.
        for _ in 0..20 {
            generate_all(&dispatcher, &offload, items(1)).await.unwrap();
        }
        while limiter.occupancy().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        let sender = &each.bulk.outcomes().outcomes;
        assert_eq!((sender.capacity(), each.outcomes.len()), (0, 3));
        while let Some(outcome) = each.next().await.unwrap() {
            read.push(outcome);
        }
        assert!(read.iter().all(|(n, outcome)| is_as_expected(*n, outcome)));
        let mut indices: Vec<_> = read.iter().map(|(n, _)| *n).collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_batch_that_cannot_join_the_queue_is_refused_before_its_first_outcome() {
        let offload = Arc::new(Offload::new(TIMEOUT));
        let full = Limiter::new(1, 0, QuotaPlan::default());
        let dispatcher = Arc::new(Dispatcher::new(
            Client::new("http://127.0.0.1:9").unwrap(),
            Arc::clone(&full),
            Arc::new(Metrics::new(Arc::clone(&full))),
            RetryPolicy::new(1, TIMEOUT),
            Arc::default(),
        ));
        let global = full.store().global();
        let _slot = crate::limits::Acquire::acquire(&global).await.unwrap();
        let mut each = generate_each(&dispatcher, &offload, items(3), 3);
        assert_eq!(each.next().await.err(), Some(Refused::QueueFull));
    }
}
