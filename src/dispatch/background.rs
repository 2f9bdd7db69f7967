//! Interactions that run on at Gemini after their answer.
//!
//! Such a run is booked once, when it is created. It keeps its reservation and its slots until it is
//! settled. That is learned from what its owner reads of it. As long as nobody reads it, it is polled,
//! less and less often. A run that is not settled in time gives its slots back, and the estimate of
//! its cost stands. One that is deleted before its end keeps them until then, too: to delete a run is to
//! forget it, and only to cancel it stops it. There are never more runs than slots, since each holds one.

mod conversations;
mod run;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

use super::attempt::Attempt;
use crate::gemini::{Client, Forward, InteractionPath, InteractionScanner, MaskedBody, Surface};
use conversations::Conversations;
use run::{Poller, Run};

/// How runs in the background are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundPolicy {
    /// How long a run that nobody reads is first left alone before it is polled. The wait doubles
    /// with each poll, up to a minute. `None`: runs are not polled.
    pub poll: Option<Duration>,
    /// How long a run keeps its slots at most.
    pub time_limit: Duration,
}

impl Default for BackgroundPolicy {
    /// Polls after 5 seconds and follows a run for an hour.
    fn default() -> Self {
        let (poll, time_limit) = (Duration::from_secs(5), Duration::from_secs(60 * 60));
        Self { poll: Some(poll), time_limit }
    }
}

/// The runs that are not settled, by the IDs that Gemini gave them, and the tokens of conversations.
///
/// A run is found by its ID alone: only Gemini says how it stands, and only to those who may read it.
#[derive(Debug, Default)]
pub(super) struct BackgroundRuns {
    policy: BackgroundPolicy,
    runs: Mutex<HashMap<String, Arc<Run>>>,
    conversations: Conversations,
}

/// What is needed to follow the run that a request creates.
#[derive(Debug, Clone)]
pub(super) struct Creation {
    runs: Arc<BackgroundRuns>,
    client: Client,
    path: InteractionPath,
    request: Forward,
}

impl Creation {
    /// For a request that creates an interaction; `None` for all others.
    pub fn of(request: &Forward, runs: &Arc<BackgroundRuns>, client: &Client) -> Option<Self> {
        let path = path_of(request).filter(|path| path.id.is_none())?;
        let (runs, client) = (Arc::clone(runs), client.clone());
        Some(Self { runs, client, path, request: request.clone() })
    }

    /// Whether this call may have created a run whose ID has not been seen yet.
    pub fn lacks_id(&self, seen: &InteractionScanner) -> bool {
        self.request.runs_on && seen.id().is_none()
    }

    /// Whether this call created a run that has not come to its end, as far as `seen` says.
    pub fn runs_on(&self, seen: &InteractionScanner, is_stream: bool) -> bool {
        // The stream of an interaction in the foreground ends with it, whatever its last status.
        let may_run_on = self.request.runs_on || (!is_stream && seen.status().is_some());
        may_run_on && seen.id().is_some() && !seen.is_settled()
    }

    /// Notes the tokens of a conversation that has come to the end of a turn.
    pub fn remember(&self, seen: &InteractionScanner, attempt: &Attempt) {
        self.runs.remember(seen, &attempt.call);
    }

    /// Follows the run until it is settled. It keeps what the attempt holds.
    pub fn follow(self, seen: &InteractionScanner, attempt: Attempt) {
        let request = seen.id().and_then(|id| Some((id, self.path.with_id(id)?)));
        let (Some((id, path)), Ok(runtime)) = (request, Handle::try_current()) else { return };
        let request = self.request.reading(path);
        let poller = Poller { client: self.client, request };
        let run = Arc::new(Run::new(id, attempt, poller));
        self.runs.lock().insert(id.to_owned(), Arc::clone(&run));
        runtime.spawn(self.runs.follow(run));
    }
}

/// The interaction that a request is about.
fn path_of(request: &Forward) -> Option<InteractionPath> {
    let is_interaction = request.surface == Surface::Interactions;
    is_interaction.then(|| InteractionPath::of(request.path.path())).flatten()
}

impl BackgroundRuns {
    pub fn new(policy: BackgroundPolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// The tokens that a payer's conversation is known to have up to this interaction.
    pub fn conversation(&self, payer: &[u8; 32], id: &str) -> u64 {
        self.conversations.tokens(payer, id)
    }

    fn remember(&self, seen: &InteractionScanner, call: &super::Call) {
        if let Some(id) = seen.id() {
            let tokens = call.conversation(seen.usage().unwrap_or_default());
            self.conversations.remember(call.payer(), id, tokens);
        }
    }

    /// The run that a request is about, if it is followed.
    pub fn run(&self, request: &Forward) -> Option<Arc<Run>> {
        let id = path_of(request)?.id?;
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a run until it is settled or its time is over.
    fn follow(self: Arc<Self>, run: Arc<Run>) -> impl Future<Output = ()> + Send + 'static {
        let followed = Followed { runs: self, run };
        async move {
            let Followed { runs, run } = &followed;
            run.follow(runs).await;
        }
    }

    /// An answer about a run: what passes of it says how the run stands. Until it does, the run does
    /// not count as read.
    pub fn observe(
        self: &Arc<Self>,
        run: Option<Arc<Run>>,
        method: &Method,
        body: MaskedBody<Incoming>,
    ) -> Observed {
        let seen = run.map(|run| {
            if *method == Method::POST {
                run.is_cancelled();
            }
            Box::new(Reading {
                runs: Arc::clone(self),
                run,
                scanner: InteractionScanner::default(),
                is_noted: false,
            })
        });
        Observed { body, seen }
    }
}

/// A run that a task follows. Dropping it, as at shutdown, gives back what the run holds.
struct Followed {
    runs: Arc<BackgroundRuns>,
    run: Arc<Run>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.run.abandon();
        let mut runs = self.runs.lock();
        // Another run may have the ID by now.
        if runs.get(self.run.id()).is_some_and(|run| Arc::ptr_eq(run, &self.run)) {
            runs.remove(self.run.id());
        }
    }
}

/// An answer that costs nothing, and tells how a run stands if it is about one.
pub struct Observed {
    body: MaskedBody<Incoming>,
    seen: Option<Box<Reading>>,
}

/// What has passed of an answer about a run.
struct Reading {
    runs: Arc<BackgroundRuns>,
    run: Arc<Run>,
    scanner: InteractionScanner,
    /// Whether the run counts as read.
    is_noted: bool,
}

impl Reading {
    fn scan(&mut self, data: &[u8]) {
        self.scanner.scan(data);
        if !self.is_noted && self.scanner.status().is_some() {
            self.is_noted = true;
            self.run.is_read();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if self.scanner.is_settled() {
            self.run.settle(&self.runs, &self.scanner);
        }
    }
}

impl Body for Observed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let (Some(Ok(frame)), Some(seen)) = (&frame, &mut self.seen)
            && let Some(data) = frame.data_ref()
        {
            seen.scan(data);
        }
        // What is known at the end is known before the caller has read it.
        if frame.is_none() || self.body.is_end_stream() {
            self.seen = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
