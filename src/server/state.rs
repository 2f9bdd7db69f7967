//! What one connection is doing: its timeouts, and how soon it is closed to make room for another,
//! depend on it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;

/// Headers that take no longer than this are not suspicious.
const PROMPT_HEADERS: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has connected, or has begun to send the headers of a request.
    Headers,
    /// The client sends the body of a request.
    Body,
    /// The client has sent a request, and its answer is being made or sent.
    Answer,
    /// All requests are answered.
    Idle,
    /// The last answer is sent, and what the client still sends is thrown away.
    Lingering,
}

/// What is left of the body of a request that has its answer.
#[derive(Debug)]
pub(super) enum Rest {
    /// Nothing.
    Read,
    /// Some, which nobody wants.
    Unread(Incoming),
    /// Some, which is still being read.
    Reading,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct State {
    current: Mutex<Current>,
    asked_to_leave: Notify,
}

#[derive(Debug)]
struct Current {
    phase: Phase,
    /// When the phase began; of a body, when its last piece came.
    since: Instant,
    /// Whether the client does not take what is being sent to it. The time for that is the
    /// writer's.
    blocked: bool,
    /// Whether the connection is to close in order to make room.
    leaving: bool,
    /// Whether the rest of a body is kept.
    keeps_rest: bool,
    rest: Option<Incoming>,
    lingers: bool,
}

impl State {
    /// The state of a connection that has just been accepted.
    pub(super) fn new() -> Self {
        let current = Current {
            phase: Phase::Headers,
            since: Instant::now(),
            blocked: false,
            leaving: false,
            keeps_rest: false,
            rest: None,
            lingers: false,
        };
        Self { current: Mutex::new(current), asked_to_leave: Notify::new() }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have come from the client.
    pub(super) fn received(&self) {
        let mut current = self.current();
        match current.phase {
            Phase::Idle => current.enter(Phase::Headers),
            Phase::Body => current.since = Instant::now(),
            Phase::Headers | Phase::Answer | Phase::Lingering => {}
        }
    }

    /// Bytes were sent to the client, or could not be sent yet.
    pub(super) fn sent(&self, blocked: bool) {
        let mut current = self.current();
        current.blocked = blocked;
        // An answer that is handed over for sending is not sent yet.
        if current.phase == Phase::Idle {
            current.since = Instant::now();
        }
    }

    /// The headers of a request have come.
    pub(super) fn request(&self, has_body: bool) {
        let mut current = self.current();
        current.enter(if has_body { Phase::Body } else { Phase::Answer });
        current.keeps_rest = has_body;
    }

    /// A body is read to its end, or is wanted no more, with this rest.
    pub(super) fn body_over(&self, rest: Option<Incoming>) {
        let mut current = self.current();
        if current.phase == Phase::Body {
            current.enter(Phase::Answer);
        }
        if current.keeps_rest {
            current.rest = rest;
        }
    }

    /// What is left of the body of the request that is answered now. A rest that is given up later
    /// is not kept.
    pub(super) fn take_rest(&self) -> Rest {
        let mut current = self.current();
        current.keeps_rest = false;
        match current.rest.take() {
            Some(rest) => Rest::Unread(rest),
            None if current.phase == Phase::Body => Rest::Reading,
            None => Rest::Read,
        }
    }

    /// All of the answer is sent, or handed over for sending.
    pub(super) fn answered(&self) {
        self.current().enter(Phase::Idle);
    }

    /// What the client still sends is thrown away when the connection ends.
    pub(super) fn will_linger(&self) {
        self.current().lingers = true;
    }

    /// Whether it will.
    pub(super) fn lingers(&self) -> bool {
        self.current().lingers
    }

    /// The last answer is sent.
    pub(super) fn linger(&self) {
        self.current().enter(Phase::Lingering);
    }

    /// Whether the client waits for an answer.
    pub(super) fn has_request(&self) -> bool {
        matches!(self.current().phase, Phase::Body | Phase::Answer)
    }

    /// When the connection is closed unless the client does something.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let current = self.current();
        match current.phase {
            Phase::Headers => Some(current.since + limits.client_timeout),
            Phase::Idle if !current.blocked => Some(current.since + limits.keep_alive),
            Phase::Idle | Phase::Body | Phase::Answer | Phase::Lingering => None,
        }
    }

    /// Orders connections by how soon they are closed to make room for another; `None` for those
    /// that are not. Whoever takes long to send headers is first, and whoever takes long to send a
    /// body is last, after those between two requests.
    pub(super) fn expendability(&self, now: Instant) -> Option<(u8, Instant)> {
        let current = self.current();
        let class = match current.phase {
            _ if current.leaving => return None,
            Phase::Answer => return None,
            Phase::Idle if current.blocked => return None,
            Phase::Lingering => 0,
            Phase::Headers if now.duration_since(current.since) >= PROMPT_HEADERS => 1,
            Phase::Idle => 2,
            Phase::Headers => 3,
            Phase::Body => 4,
        };
        Some((class, current.since))
    }

    /// Asks the connection to close, unless it has a request to answer by then.
    pub(super) fn ask_to_leave(&self) {
        let mut current = self.current();
        if current.phase != Phase::Answer {
            current.leaving = true;
            self.asked_to_leave.notify_one();
        }
    }

    /// Waits until the connection is asked to close.
    pub(super) async fn asked_to_leave(&self) {
        loop {
            self.asked_to_leave.notified().await;
            if self.current().leaving {
                return;
            }
        }
    }
}

impl Current {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        // Its request is read: it stays.
        self.leaving &= phase != Phase::Answer;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limits() -> Limits {
        let config = crate::config::Config::default();
        let (client_timeout, keep_alive) = (Duration::from_secs(60), Duration::from_secs(75));
        Limits { client_timeout, keep_alive, ..Limits::of(&config) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_own_time() {
        let (state, start) = (State::new(), Instant::now());
        let due = || state.deadline(&limits()).map(|deadline| deadline - start);
        assert_eq!(due(), Some(Duration::from_secs(60)), "for the first headers");
        state.request(true);
        assert_eq!(due(), None);
        state.body_over(None);
        assert_eq!(due(), None);
        advance(Duration::from_secs(10)).await;
        state.answered();
        assert_eq!(due(), Some(Duration::from_secs(85)), "for the next request");
        state.sent(true);
        assert_eq!(due(), None, "the answer is not sent yet");
        advance(Duration::from_secs(10)).await;
        state.sent(false);
        assert_eq!(due(), Some(Duration::from_secs(95)));
        advance(Duration::from_secs(10)).await;
        state.received();
        assert_eq!(due(), Some(Duration::from_secs(90)), "for its headers");
        advance(Duration::from_secs(10)).await;
        state.received();
        assert_eq!(due(), Some(Duration::from_secs(90)), "however they trickle");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_longest_for_their_client_make_room_first() {
        let [slow, idle, body, prompt, answering, lingering] = [(); 6].map(|()| State::new());
        idle.answered();
        body.request(true);
        answering.request(false);
        lingering.linger();
        advance(Duration::from_secs(2)).await;
        prompt.answered();
        prompt.received();
        let now = Instant::now();
        let in_order = [&lingering, &slow, &idle, &prompt, &body];
        let ranks = in_order.map(|state| state.expendability(now).expect("it can be spared"));
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(answering.expendability(now), None);

        slow.ask_to_leave();
        assert_eq!(slow.expendability(now), None, "it is asked only once");
        slow.asked_to_leave().await;
        idle.ask_to_leave();
        idle.request(false);
        idle.answered();
        assert!(idle.expendability(now).is_some(), "its request came first");
    }
}
