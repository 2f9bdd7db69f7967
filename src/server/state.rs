//! What one connection is doing: its timeouts, and how soon it is closed to make room for another,
//! depend on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;

/// Headers that take no longer than this are not suspicious.
const PROMPT_HEADERS: Duration = Duration::from_secs(1);

/// What a connection is doing. Over HTTP/2, with several requests, it is the last of these that is
/// true of any of them.
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
    /// Wakes the connection when a body is read to its end, which can be in another task.
    body_read: AtomicWaker,
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
    /// Whether the body of the request is read to its end.
    is_read: bool,
    /// Whether the rest of a body is kept.
    keeps_rest: bool,
    rest: Option<Incoming>,
    lingers: bool,
    /// Over HTTP/2, the requests that are not answered yet.
    streams: Option<Streams>,
}

/// How many requests of a connection over HTTP/2 are not answered yet.
#[derive(Debug, Default)]
struct Streams {
    /// Those whose body is still being read.
    in_body: usize,
    /// The others.
    in_answer: usize,
}

impl State {
    /// The state of a connection that has just been accepted.
    pub(super) fn new() -> Self {
        let current = Current {
            phase: Phase::Headers,
            since: Instant::now(),
            blocked: false,
            leaving: false,
            is_read: false,
            keeps_rest: false,
            rest: None,
            lingers: false,
            streams: None,
        };
        Self {
            current: Mutex::new(current),
            asked_to_leave: Notify::new(),
            body_read: AtomicWaker::new(),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have come from the client.
    pub(super) fn received(&self) {
        let mut current = self.current();
        match current.phase {
            // Over HTTP/2 it need not be a request.
            Phase::Idle if current.streams.is_none() => current.enter(Phase::Headers),
            Phase::Body => current.since = Instant::now(),
            Phase::Idle | Phase::Headers | Phase::Answer | Phase::Lingering => {}
        }
    }

    /// Bytes were sent to the client, or could not be sent yet.
    pub(super) fn sent(&self, blocked: bool) {
        let mut current = self.current();
        current.blocked = blocked;
        // Over HTTP/1, an answer that is handed over for sending is not sent yet.
        if current.phase == Phase::Idle && current.streams.is_none() {
            current.since = Instant::now();
        }
    }

    /// The headers of a request have come.
    pub(super) fn request(&self, has_body: bool) {
        let mut current = self.current();
        current.enter(if has_body { Phase::Body } else { Phase::Answer });
        current.is_read = !has_body;
        current.keeps_rest = has_body;
    }

    /// A body is read to its end, or is wanted no more, with this rest.
    pub(super) fn body_over(&self, rest: Option<Incoming>) {
        let mut current = self.current();
        if current.phase == Phase::Body {
            current.enter(Phase::Answer);
        }
        current.is_read = rest.is_none();
        if current.keeps_rest {
            current.rest = rest;
        }
        self.body_read.wake();
    }

    /// Whether all of a request is read, and its answer is being made or sent. The waker is woken
    /// when that begins.
    pub(super) fn is_answering(&self, waker: &Waker) -> bool {
        self.body_read.register(waker);
        let current = self.current();
        current.phase == Phase::Answer && current.is_read
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

    /// The connection goes on in another protocol. As one whose answer is being made, it has no
    /// deadline here and makes no room.
    pub(super) fn upgraded(&self) {
        self.current().enter(Phase::Answer);
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

    /// The connection is one over HTTP/2.
    pub(super) fn set_http2(&self) {
        self.current().streams = Some(Streams::default());
    }

    /// How many requests over HTTP/2 are not answered yet.
    pub(super) fn streams(&self) -> usize {
        self.current().streams.as_ref().map_or(0, |streams| streams.in_body + streams.in_answer)
    }

    /// The headers of a request over HTTP/2 have come.
    pub(super) fn stream_began(&self, has_body: bool) {
        self.count_streams(|streams| match has_body {
            true => streams.in_body += 1,
            false => streams.in_answer += 1,
        });
    }

    /// The body of a request over HTTP/2 is read to its end, or is wanted no more. `in_body` tells
    /// whether it was not yet.
    pub(super) fn stream_body_over(&self, in_body: &AtomicBool) {
        self.count_streams(|streams| {
            if in_body.swap(false, Ordering::Relaxed) {
                streams.in_body -= 1;
                streams.in_answer += 1;
            }
        });
    }

    /// A request over HTTP/2 is answered, or is wanted no more.
    pub(super) fn stream_ended(&self, in_body: &AtomicBool) {
        self.count_streams(|streams| match in_body.swap(false, Ordering::Relaxed) {
            true => streams.in_body -= 1,
            false => streams.in_answer -= 1,
        });
    }

    fn count_streams(&self, count: impl FnOnce(&mut Streams)) {
        let mut current = self.current();
        let Some(streams) = &mut current.streams else { return };
        count(streams);
        let phase = match streams {
            Streams { in_answer: 1.., .. } => Phase::Answer,
            Streams { in_body: 1.., .. } => Phase::Body,
            Streams { .. } => Phase::Idle,
        };
        if phase != current.phase {
            current.enter(phase);
        }
    }

    /// Since when the connection waits for a request, if it does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let current = self.current();
        matches!(current.phase, Phase::Headers | Phase::Idle).then_some(current.since)
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
    async fn over_http2_the_phase_is_that_of_all_requests() {
        let (state, start) = (State::new(), Instant::now());
        let due = || state.deadline(&limits()).map(|deadline| deadline - start);
        let class = || state.expendability(Instant::now()).map(|(class, _)| class);
        state.set_http2();
        assert_eq!(due(), Some(Duration::from_secs(60)), "for the first request");
        let [body, other] = [AtomicBool::new(true), AtomicBool::new(false)];
        state.stream_began(true);
        assert_eq!((class(), due(), state.streams()), (Some(4), None, 1));
        state.stream_began(false);
        assert_eq!((class(), due(), state.streams()), (None, None, 2));
        state.stream_ended(&other);
        assert_eq!((class(), state.streams()), (Some(4), 1));
        state.stream_body_over(&body);
        state.stream_body_over(&body);
        assert_eq!((class(), state.streams()), (None, 1));
        advance(Duration::from_secs(10)).await;
        state.stream_ended(&body);
        assert_eq!((class(), due(), state.streams()), (Some(2), Some(Duration::from_secs(85)), 0));
        advance(Duration::from_secs(10)).await;
        state.received();
        state.sent(false);
        assert_eq!(due(), Some(Duration::from_secs(85)), "a ping is not a request");
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
