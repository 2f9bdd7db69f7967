//! What happened to the calls of one request, kept for showing it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{CallEvent, CallObserver, EndedAttempt, SentAttempt};
use crate::gemini::{Model, ServiceTier, TraceContext, Usage};
use crate::limits::HeldBy;
use crate::metrics::TraceId;

/// The most entries that are kept of one request. Each attempt has four at most.
const MAX_ENTRIES: usize = 1000;

/// Records what happens to the calls of one request.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    entries: Mutex<Vec<TimelineEntry>>,
    /// Notified after each entry.
    added: Notify,
    /// An observer that is told the same.
    beside: Option<Arc<dyn CallObserver>>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct TimelineEntry {
    /// How long after the request began.
    pub after: Duration,
    /// What happened.
    pub event: TimelineEvent,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum TimelineEvent {
    /// It waits for admission.
    Enqueued {
        /// The kind of the call, as in metrics.
        kind: &'static str,
        /// The model that is asked.
        model: Model,
        /// The service tier that is asked for.
        tier: ServiceTier,
    },
    /// It was admitted.
    Admitted {
        /// The limit that it waited for the longest, if it waited.
        held_by: Option<HeldBy>,
    },
    /// It was not admitted.
    Refused {
        /// The code of the error.
        code: &'static str,
    },
    /// An attempt was sent to Gemini.
    Sent {
        /// The number of the attempt in its tier, from 1.
        attempt: usize,
        /// The service tier that is asked for.
        tier: ServiceTier,
    },
    /// Gemini took the attempt up: the whole answer has come, or the first piece of it.
    Accepted,
    /// The attempt has ended.
    Ended {
        /// `success`, `cancelled`, or the code of the error.
        outcome: &'static str,
        /// The status of an answer with an error.
        status: Option<StatusCode>,
        /// The model that answered, where Gemini names it.
        answered_by: Option<Model>,
        /// The tokens, with what they cost.
        usage: Usage,
    },
    /// The call is enqueued again after this wait.
    RetryIn(Duration),
}

impl Timeline {
    /// A timeline of a request that begins now. It passes everything on to the observer `beside` it.
    pub fn new(beside: Option<Arc<dyn CallObserver>>) -> Arc<Self> {
        let (entries, added) = (Mutex::default(), Notify::new());
        Arc::new(Self { began: Instant::now(), entries, added, beside })
    }

    /// What has happened so far, in order.
    pub fn entries(&self) -> Vec<TimelineEntry> {
        self.lock().clone()
    }

    /// The same after the first `known` entries.
    pub fn entries_after(&self, known: usize) -> Vec<TimelineEntry> {
        self.lock().get(known..).unwrap_or_default().to_vec()
    }

    /// Waits until more than the first `known` entries are there. Only one task can wait.
    pub async fn is_longer_than(&self, known: usize) {
        while self.lock().len() <= known {
            self.added.notified().await;
        }
    }

    /// How long the request has lasted.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The tokens of all attempts so far, with what they cost.
    pub fn usage(&self) -> Usage {
        let mut total = Usage::default();
        for entry in &*self.lock() {
            if let TimelineEvent::Ended { usage, .. } = entry.event {
                total += usage;
            }
        }
        total
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TimelineEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallObserver for Timeline {
    fn observe(&self, event: &CallEvent<'_>) {
        let after = self.began.elapsed();
        let mut entries = self.lock();
        if entries.len() < MAX_ENTRIES {
            entries.push(TimelineEntry { after, event: event.into() });
        }
        drop(entries);
        self.added.notify_one();
        if let Some(beside) = &self.beside {
            beside.observe(event);
        }
    }

    fn trace_context(&self) -> Option<Box<TraceContext>> {
        self.beside.as_ref()?.trace_context()
    }

    fn trace_id(&self) -> Option<TraceId> {
        self.beside.as_ref()?.trace_id()
    }
}

impl From<&CallEvent<'_>> for TimelineEvent {
    fn from(event: &CallEvent<'_>) -> Self {
        match *event {
            CallEvent::Enqueued(call) => Self::Enqueued {
                kind: call.kind().label(),
                model: call.model().clone(),
                tier: call.tier(),
            },
            CallEvent::Admitted { held_by, .. } => Self::Admitted { held_by },
            CallEvent::Refused(error) => Self::Refused { code: error.code() },
            CallEvent::Sent(SentAttempt { call, attempt, .. }) => {
                Self::Sent { attempt, tier: call.tier() }
            }
            CallEvent::Accepted { .. } => Self::Accepted,
            CallEvent::Ended(EndedAttempt { outcome, status, answered_by, usage, .. }) => {
                let answered_by = answered_by.cloned();
                Self::Ended { outcome, status: *status, answered_by, usage: *usage }
            }
            CallEvent::RetryAt(at) => Self::RetryIn(at.saturating_duration_since(Instant::now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use tokio::net::TcpListener;

    use super::TimelineEvent::*;
    use super::*;
    use crate::dispatch::{Call, CallKind, CallRequest, Dispatcher, RetryPolicy, TierChoice};
    use crate::gemini::{ApiKey, Client, Forward, GenerateContent, InputFeatures};
    use crate::limits::{Limiter, QuotaPlan};
    use crate::metrics::Metrics;
    use crate::simulator::{Options, Simulator};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A dispatcher to a simulator, with this many slots and no room in the queue.
    async fn dispatcher(limit: usize) -> Arc<Dispatcher> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let simulator = Simulator::new(Options::default()).router();
        tokio::spawn(async { axum::serve(listener, simulator).await });
        let limiter = Limiter::new(limit, 0, QuotaPlan::default());
        let metrics = Arc::new(Metrics::new(Arc::clone(&limiter)));
        let client = Client::new(&base_url).unwrap();
        let policy = RetryPolicy::new(2, TIMEOUT);
        Arc::new(Dispatcher::new(client, limiter, metrics, policy, Arc::default()))
    }

    /// A call, and the timeline that it is told to.
    fn call(dispatcher: &Dispatcher) -> (Call, Arc<Timeline>) {
        let timeline = Timeline::new(None);
        let call = dispatcher.enqueue(CallRequest {
            kind: CallKind::Chat,
            key: ApiKey::new("a-key").unwrap(),
            model: Model::parse("gemini-3.5-flash-lite").unwrap(),
            semaphore: None,
            size: InputFeatures::of("prompt").into(),
            tier: TierChoice::default(),
            deadline: Instant::now() + TIMEOUT,
            observer: Some(Arc::<Timeline>::clone(&timeline)),
        });
        (call, timeline)
    }

    fn body(prompt: &str) -> Bytes {
        GenerateContent::ask(prompt).to_json()
    }

    fn events(timeline: &Timeline) -> Vec<TimelineEvent> {
        let entries = timeline.entries();
        assert!(entries.is_sorted_by_key(|entry| entry.after));
        entries.into_iter().map(|entry| entry.event).collect()
    }

    #[tokio::test]
    async fn a_timeline_has_each_wait_each_attempt_and_what_it_cost() {
        let dispatcher = dispatcher(1).await;
        let (call, timeline) = call(&dispatcher);
        let prompt = body("Hello [[simulate:status=503,fail_times=1]]");
        dispatcher.generate(&call, prompt).await.unwrap();
        let events = events(&timeline);
        let [
            Enqueued { kind: "chat", model, tier: ServiceTier::Standard },
            Admitted { held_by: None },
            Sent { attempt: 1, .. },
            Ended { outcome: "upstream_unavailable", status, .. },
            RetryIn(wait),
            Enqueued { .. },
            Admitted { .. },
            Sent { attempt: 2, .. },
            Accepted,
            Ended { outcome: "success", status: None, usage, .. },
        ] = &*events
        else {
            panic!("{events:?}");
        };
        assert_eq!(
            (model.as_str(), *status),
            ("gemini-3.5-flash-lite", Some(StatusCode::SERVICE_UNAVAILABLE))
        );
        assert!(*wait <= Duration::from_millis(500), "{wait:?}");
        assert!(usage.prompt_tokens > 0 && usage.cost.0 > 0, "{usage:?}");
        assert_eq!(timeline.usage().cost, usage.cost);
    }

    #[tokio::test]
    async fn a_timeline_of_a_call_that_is_refused_ends_with_the_code() {
        let dispatcher = dispatcher(1).await;
        let (first, _) = call(&dispatcher);
        let held = dispatcher.admit(&first).await.unwrap();
        let (second, timeline) = call(&dispatcher);
        assert!(dispatcher.generate(&second, body("Hello")).await.is_err());
        drop(held);
        let [Enqueued { .. }, Refused { code: "queue_full" }] = &*events(&timeline) else {
            panic!("{timeline:?}");
        };
    }

    #[tokio::test]
    async fn a_stream_ends_in_the_timeline_when_its_client_hangs_up() {
        let dispatcher = dispatcher(1).await;
        let (call, timeline) = call(&dispatcher);
        let request = Forward::stream(call.model());
        let prompt = body("Hello [[simulate:chunks=3,stall_after=1]]");
        let answer = dispatcher.forward(&call, &request, prompt, TIMEOUT).await.unwrap();
        assert!(matches!(&*events(&timeline), [.., Sent { .. }, Accepted]), "{timeline:?}");
        drop(answer);
        let [.., Ended { outcome: "cancelled", .. }] = &*events(&timeline) else {
            panic!("{timeline:?}");
        };
    }
}
