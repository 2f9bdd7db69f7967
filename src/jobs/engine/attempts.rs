//! The attempts at an item's call, as far as a crash would repeat them.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::time::Instant;

use super::in_doubt::CallInDoubt;
use super::unrecorded::Unrecorded;
use crate::dispatch::{CallEvent, CallObserver};
use crate::gemini::TraceContext;
use crate::metrics::TraceId;

/// Follows the attempts at an item's call. The call is in doubt while an attempt is at Gemini, and not
/// while it waits to be sent again: then it holds nothing, and others must not wait for it.
#[derive(Debug)]
pub(super) struct Attempts {
    unrecorded: Arc<Unrecorded>,
    state: Mutex<State>,
    /// Follows the calls of the item, too.
    beside: OnceLock<Arc<dyn CallObserver>>,
}

#[derive(Debug, Default)]
struct State {
    in_doubt: Option<CallInDoubt>,
    /// When the attempt was sent that is at Gemini.
    sent_at: Option<Instant>,
}

impl Attempts {
    pub fn new(unrecorded: Arc<Unrecorded>) -> Arc<Self> {
        Arc::new(Self { unrecorded, state: Mutex::default(), beside: OnceLock::new() })
    }

    /// Passes everything on to another observer.
    pub fn observed_by(&self, beside: Arc<dyn CallObserver>) {
        // There is one for each item.
        let _ = self.beside.set(beside);
    }

    /// The call is in doubt from now on.
    pub fn begin(&self, call: CallInDoubt) {
        self.state().in_doubt = Some(call);
    }

    /// The call has its result, which is to be recorded.
    pub fn end(&self) -> Option<CallInDoubt> {
        self.state().in_doubt.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallObserver for Attempts {
    fn observe(&self, event: &CallEvent<'_>) {
        match event {
            CallEvent::Sent(_) => {
                let mut state = self.state();
                state.in_doubt.get_or_insert_with(|| self.unrecorded.begin_again());
                state.sent_at = Some(Instant::now());
            }
            CallEvent::Ended(_) => {
                let sent_at = self.state().sent_at.take();
                if let Some(sent_at) = sent_at {
                    self.unrecorded.note_call(sent_at.elapsed());
                }
            }
            CallEvent::RetryAt(_) | CallEvent::Enqueued(_) => drop(self.end()),
            CallEvent::Admitted { .. } | CallEvent::Refused(_) | CallEvent::Accepted { .. } => {}
        }
        if let Some(beside) = self.beside.get() {
            beside.observe(event);
        }
    }

    fn trace_context(&self) -> Option<Box<TraceContext>> {
        self.beside.get()?.trace_context()
    }

    fn trace_id(&self) -> Option<TraceId> {
        self.beside.get()?.trace_id()
    }

    fn item(&self, index: u64) -> Option<Arc<dyn CallObserver>> {
        self.beside.get()?.item(index)
    }
}
