//! The state of one connection, from which its timeouts follow, and how early it is closed to make room
//! for another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ServerLimits;

/// Clients that send headers within this time are not suspected of sending slowly on purpose.
const PROMPT_HEADERS: Duration = Duration::from_secs(1);

/// The phase of a connection. With several requests over HTTP/2, the first of `Answer`, `Body` and `Idle`
/// that applies to any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has connected, or has started to send the headers of a request.
    Headers,
    /// The client is sending the body of a request.
    Body,
    /// The client has sent a request, and the answer is being made or sent.
    Answer,
    /// All requests are answered.
    Idle,
    /// The last answer is sent, and further input is discarded.
    Lingering,
}

/// The rest of the body of a request that was answered.
#[derive(Debug)]
pub(super) enum RemainingBody {
    /// Everything was read.
    Read,
    /// This part was not read.
    Unread(Incoming),
    /// It is still being read.
    Reading,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct State {
    current: Mutex<Current>,
    close_requested: Notify,
    /// Wakes the connection when a body was read to its end, possibly by another task.
    body_read: AtomicWaker,
}

#[derive(Debug)]
struct Current {
    phase: Phase,
    /// When the phase began; for a body, when its last piece arrived.
    since: Instant,
    /// Whether the client does not accept what is sent to it. The writer has its own timeout for
    /// this.
    blocked: bool,
    /// Whether the connection must close to make room.
    closing: bool,
    /// Whether the body of the request was read to its end.
    is_read: bool,
    /// Whether the unread rest of a body is kept.
    keeps_rest: bool,
    rest: Option<Incoming>,
    lingers: bool,
    /// When the client connected, until its first request.
    connected_at: Option<Instant>,
    /// Over HTTP/2, the requests in progress.
    streams: Option<Streams>,
}

/// The number of requests in progress over HTTP/2.
#[derive(Debug, Default)]
struct Streams {
    /// Requests whose body is still being read.
    in_body: usize,
    /// All others.
    in_answer: usize,
}

impl State {
    /// The state of a new connection.
    pub(super) fn new() -> Self {
        let current = Current {
            phase: Phase::Headers,
            since: Instant::now(),
            blocked: false,
            closing: false,
            is_read: false,
            keeps_rest: false,
            rest: None,
            lingers: false,
            connected_at: Some(Instant::now()),
            streams: None,
        };
        Self {
            current: Mutex::new(current),
            close_requested: Notify::new(),
            body_read: AtomicWaker::new(),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that bytes arrived from the client.
    pub(super) fn received(&self) {
        let mut current = self.current();
        match current.phase {
            // Over HTTP/2 the bytes may be something other than a request.
            Phase::Idle if current.streams.is_none() => current.enter(Phase::Headers),
            Phase::Body => current.since = Instant::now(),
            Phase::Idle | Phase::Headers | Phase::Answer | Phase::Lingering => {}
        }
    }

    /// Records that bytes were sent to the client, or could not be sent yet.
    pub(super) fn sent(&self, blocked: bool) {
        let mut current = self.current();
        current.blocked = blocked;
        // Over HTTP/1, an answer that was handed over may still be in the send buffer.
        if current.phase == Phase::Idle && current.streams.is_none() {
            current.since = Instant::now();
        }
    }

    /// Records that the headers of a request arrived.
    pub(super) fn request(&self, has_body: bool) {
        let mut current = self.current();
        current.connected_at = None;
        current.enter(if has_body { Phase::Body } else { Phase::Answer });
        current.is_read = !has_body;
        current.keeps_rest = has_body;
    }

    /// Records that a body was read to its end, or was abandoned with this rest.
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

    /// Whether a request was read completely and its answer is being made or sent. The waker is
    /// called when that begins.
    pub(super) fn is_answering(&self, waker: &Waker) -> bool {
        self.body_read.register(waker);
        let current = self.current();
        current.phase == Phase::Answer && current.is_read
    }

    /// Takes the rest of the body of the request that is being answered. A rest that is abandoned
    /// later is not kept.
    pub(super) fn take_rest(&self) -> RemainingBody {
        let mut current = self.current();
        current.keeps_rest = false;
        match current.rest.take() {
            Some(rest) => RemainingBody::Unread(rest),
            None if current.phase == Phase::Body => RemainingBody::Reading,
            None => RemainingBody::Read,
        }
    }

    /// Records that the whole answer was sent or handed over.
    pub(super) fn answered(&self) {
        self.current().enter(Phase::Idle);
    }

    /// The connection has switched to another protocol. Like one whose request is being answered, it
    /// has no deadline and is not closed to make room.
    pub(super) fn upgraded(&self) {
        self.current().enter(Phase::Answer);
    }

    /// Requests that further input is discarded when the connection ends.
    pub(super) fn will_linger(&self) {
        self.current().lingers = true;
    }

    /// Whether further input is discarded when the connection ends.
    pub(super) fn lingers(&self) -> bool {
        self.current().lingers
    }

    /// Records that the last answer is sent.
    pub(super) fn linger(&self) {
        self.current().enter(Phase::Lingering);
    }

    /// Whether the client waits for an answer.
    pub(super) fn has_request(&self) -> bool {
        matches!(self.current().phase, Phase::Body | Phase::Answer)
    }

    /// When the connection is closed unless the client does something.
    pub(super) fn deadline(&self, limits: &ServerLimits) -> Option<Instant> {
        let current = self.current();
        match current.phase {
            Phase::Headers => Some(current.since + limits.client_timeout),
            Phase::Idle if !current.blocked => Some(current.since + limits.keep_alive),
            Phase::Idle | Phase::Body | Phase::Answer | Phase::Lingering => None,
        }
    }

    /// Orders connections by how early they are closed to make room for another; `None` if a
    /// connection is never closed for that. Clients that are slow to send headers come first, then
    /// idle connections, and those that are sending a body last.
    pub(super) fn expendability(&self, now: Instant) -> Option<(u8, Instant)> {
        let current = self.current();
        let class = match current.phase {
            _ if current.closing => return None,
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

    /// Asks the connection to close, unless it gets a request to answer before that.
    pub(super) fn ask_to_close(&self) {
        let mut current = self.current();
        if current.phase != Phase::Answer {
            current.closing = true;
            self.close_requested.notify_one();
        }
    }

    /// Marks the connection as using HTTP/2.
    pub(super) fn set_http2(&self) {
        self.current().streams = Some(Streams::default());
    }

    /// The number of requests in progress over HTTP/2.
    pub(super) fn streams(&self) -> usize {
        self.current().streams.as_ref().map_or(0, |streams| streams.in_body + streams.in_answer)
    }

    /// Records that the headers of a request over HTTP/2 arrived.
    pub(super) fn stream_began(&self, has_body: bool) {
        self.count_streams(|streams| match has_body {
            true => streams.in_body += 1,
            false => streams.in_answer += 1,
        });
    }

    /// Records that the body of a request over HTTP/2 was read to its end or abandoned. `in_body`
    /// says whether it counted as being read.
    pub(super) fn stream_body_over(&self, in_body: &AtomicBool) {
        self.count_streams(|streams| {
            if in_body.swap(false, Ordering::Relaxed) {
                streams.in_body -= 1;
                streams.in_answer += 1;
            }
        });
    }

    /// Records that a request over HTTP/2 was answered or abandoned.
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

    /// Since when the connection has been waiting for a request, if it is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let current = self.current();
        matches!(current.phase, Phase::Headers | Phase::Idle).then_some(current.since)
    }

    /// When the client connected, if it has not sent a request since.
    pub(super) fn connected_at(&self) -> Option<Instant> {
        self.current().connected_at
    }

    /// Waits until the connection is asked to close.
    pub(super) async fn close_requested(&self) {
        loop {
            self.close_requested.notified().await;
            if self.current().closing {
                return;
            }
        }
    }
}

impl Current {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        // A connection with a request to answer stays.
        self.closing &= phase != Phase::Answer;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limits() -> ServerLimits {
        let config = crate::config::Config::default();
        let (client_timeout, keep_alive) = (Duration::from_secs(60), Duration::from_secs(75));
        ServerLimits { client_timeout, keep_alive, ..ServerLimits::of(&config) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_own_timeout() {
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
    async fn over_http2_the_phase_depends_on_all_requests() {
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
    async fn connections_that_wait_longest_for_their_client_make_room_first() {
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
        let ranks = in_order.map(|state| state.expendability(now).expect("it may be closed"));
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(answering.expendability(now), None);

        slow.ask_to_close();
        assert_eq!(slow.expendability(now), None, "it is asked only once");
        slow.close_requested().await;
        idle.ask_to_close();
        idle.request(false);
        idle.answered();
        assert!(idle.expendability(now).is_some(), "its request came first");
    }
}
