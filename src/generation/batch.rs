//! Many generations in one request: each answer in its own place, one place in the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::Instrument;

use super::{Failure, Generation, generate};
use crate::dispatch::{self, Call, Dispatcher};
use crate::gemini::{ApiKey, Model};
use crate::limits::{Admission, Refused, Semaphore};

/// One generation of a batch, and who pays for it.
#[derive(Debug)]
pub struct Item<G> {
    /// What is generated.
    pub generation: G,
    /// Whose key pays.
    pub key: ApiKey,
    /// The semaphore its calls hold in addition to the global one.
    pub semaphore: Option<Arc<Semaphore>>,
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
/// was ready. Items are let in one after the other and then run beside each other; each has
/// `timeout` from its turn in the queue on. Dropping the future cancels them all.
///
/// # Errors
/// [`Refused::QueueFull`] when the batch finds no place in the queue: nothing was sent then.
pub async fn generate_all<G: Generation>(
    dispatcher: &Arc<Dispatcher>,
    items: Vec<Item<G>>,
    timeout: Duration,
) -> Result<Vec<Outcome<G::Output>>, Refused> {
    let place = dispatcher.place();
    let mut outcomes = Outcomes::new(&items);
    let mut running = JoinSet::new();
    for (index, Item { generation, key, semaphore }) in items.into_iter().enumerate() {
        let call = Call {
            kind: G::KIND,
            key,
            model: generation.model().clone(),
            semaphore,
            place: Arc::clone(&place),
            deadline: Instant::now() + timeout,
        };
        match dispatcher.admit(&call).await {
            Ok(admission) => {
                let dispatcher = Arc::clone(dispatcher);
                let task = run(dispatcher, index, call, generation, admission);
                running.spawn(task.in_current_span());
            }
            Err(dispatch::Failure::Refused(Refused::QueueFull)) => return Err(Refused::QueueFull),
            Err(failure) => outcomes.place(index, Err(failure.into())),
        }
        while let Some(done) = running.try_join_next() {
            outcomes.join(done);
        }
    }
    while let Some(done) = running.join_next().await {
        outcomes.join(done);
    }
    Ok(outcomes.in_order())
}

type Done<Output> = (usize, Result<Output, Failure>);

async fn run<G: Generation>(
    dispatcher: Arc<Dispatcher>,
    index: usize,
    call: Call,
    generation: G,
    admission: Admission,
) -> Done<G::Output> {
    (index, generate(&dispatcher, &call, &generation, admission).await)
}

/// The places of all outcomes, empty until each has come.
struct Outcomes<Output>(Vec<Outcome<Output>>);

impl<Output> Outcomes<Output> {
    /// A place for each item. One whose task never tells how it ended has failed.
    fn new<G: Generation<Output = Output>>(items: &[Item<G>]) -> Self {
        let unknown = |item: &Item<G>| Outcome {
            model: item.generation.model().clone(),
            result: Err(Failure::Internal),
        };
        Self(items.iter().map(unknown).collect())
    }

    fn place(&mut self, index: usize, result: Result<Output, Failure>) {
        self.0[index].result = result;
    }

    /// Takes what a task has come to. One that panicked leaves its place as it was: failed.
    fn join(&mut self, done: Result<Done<Output>, JoinError>) {
        if let Ok((index, result)) = done {
            self.place(index, result);
        }
    }

    fn in_order(self) -> Vec<Outcome<Output>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use tokio::net::TcpListener;

    use super::*;
    use crate::dispatch::RetryPolicy;
    use crate::gemini::{Answer, Client, GenerateContent, Usage};
    use crate::generation::chat::ChatRequest;
    use crate::generation::{InvalidField, Misfit, Preparation, Unusable};
    use crate::limits::Door;
    use crate::metrics::Metrics;
    use crate::simulator::{Options, Simulator};

    /// A generation that may panic when it is answered.
    struct Fragile {
        model: Model,
        breaks: bool,
        prompt: String,
    }

    impl Generation for Fragile {
        const KIND: &'static str = "fragile";
        type Request = ChatRequest;
        type Output = String;

        fn prepare(_: ChatRequest, _: &mut Preparation<'_>) -> Result<Self, Vec<InvalidField>> {
            unreachable!("it is made by hand")
        }

        fn model(&self) -> &Model {
            &self.model
        }

        fn ask(&self) -> Bytes {
            GenerateContent::ask(&self.prompt).to_json()
        }

        fn read(&self, answer: Answer) -> Result<String, Unusable<String>> {
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
        let door = Door::new(2, 10);
        let dispatcher = Arc::new(Dispatcher::new(
            Client::new(&base_url).unwrap(),
            Arc::clone(&door),
            Arc::new(Metrics::new(Arc::clone(&door))),
            RetryPolicy::new(1, Duration::from_secs(30)),
        ));
        let item = |n: usize| Item {
            generation: Fragile {
                model: Model::parse("gemini-2.5-flash").unwrap(),
                breaks: n % 3 == 1,
                prompt: format!("item {n}"),
            },
            key: ApiKey::new("a-key").unwrap(),
            semaphore: None,
        };

        let items = (0..8).map(item).collect();
        let outcomes = generate_all(&dispatcher, items, Duration::from_secs(30)).await.unwrap();
        assert_eq!(outcomes.len(), 8);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match outcome.result {
                Ok(text) => assert_eq!(text, format!("Simulated answer to: item {n}")),
                Err(failure) => assert!(matches!(failure, Failure::Internal) && n % 3 == 1),
            }
        }
        assert_eq!((door.occupancy().in_flight, door.occupancy().available), (0, 2));
    }
}
