//! All connections together: how many there may be, and which of them makes room for another.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::state::State;

/// How long accepting pauses where no connection ends: a loop without a pause would take a whole
/// core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long there must be room before the log says so.
const CALM: Duration = Duration::from_secs(1);

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    open: Mutex<AllOpen>,
    /// One of them, or a request of one, has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct AllOpen {
    connections: HashMap<u64, Arc<State>>,
    /// The requests over HTTP/2 beyond the first of each connection: each takes as much as a
    /// connection.
    streams: usize,
}

/// One of the connections that are open, until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    connections: Arc<Connections>,
    id: u64,
    /// What it is doing.
    pub(super) state: Arc<State>,
}

/// A request over HTTP/2, until it is answered or is wanted no more.
#[derive(Debug)]
pub(super) struct OpenStream {
    connections: Arc<Connections>,
    state: Arc<State>,
    /// Whether its body is still being read.
    in_body: Arc<AtomicBool>,
}

/// Accepts connections, and makes room for them.
pub(super) struct Acceptor {
    listener: TcpListener,
    connections: Arc<Connections>,
    /// When room had to be made last, for as long as the log calls it exhausted.
    exhausted: Option<Instant>,
    accepted: u64,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, max: usize) -> Self {
        let connections = Connections { max, open: Mutex::default(), ended: Notify::new() };
        Self { listener, connections: Arc::new(connections), exhausted: None, accepted: 0 }
    }

    /// Waits for a client, and for room for its connection. Dropping the future loses at most a
    /// client for which there was none.
    pub(super) async fn accept(&mut self) -> (TcpStream, Open) {
        loop {
            let calm = self.exhausted.map(|last| last + CALM);
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = sleep_until(calm.unwrap_or_else(Instant::now)), if calm.is_some() => {
                    self.exhausted = None;
                    tracing::info!("connections are accepted without closing others again");
                    continue;
                }
            };
            match accepted {
                Ok((socket, _)) => {
                    while self.connections.are_full() {
                        self.make_room("as many connections are open as there may be").await;
                    }
                    self.accepted += 1;
                    return (socket, Connections::add(&self.connections, self.accepted));
                }
                // The client gave up before it was accepted: nothing is wrong here.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // File descriptors have run out, or memory.
                Err(error) => self.make_room(&error.to_string()).await,
            }
        }
    }

    async fn make_room(&mut self, reason: &str) {
        if self.exhausted.replace(Instant::now()).is_none() {
            tracing::warn!(
                reason,
                open = self.connections.open().count(),
                "no connection can be accepted; for each new one, one is closed that waits for its \
                 client"
            );
        }
        self.connections.close_one();
        let _ = timeout(ACCEPT_PAUSE, self.connections.ended.notified()).await;
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, AllOpen> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are_full(&self) -> bool {
        self.open().count() >= self.max
    }

    fn add(self: &Arc<Self>, id: u64) -> Open {
        let state = Arc::new(State::new());
        self.open().connections.insert(id, Arc::clone(&state));
        Open { connections: Arc::clone(self), id, state }
    }

    fn close_one(&self) {
        self.open().close_one();
    }
}

impl AllOpen {
    fn count(&self) -> usize {
        self.connections.len() + self.streams
    }

    /// Closes the connection that can best be spared, if any can.
    fn close_one(&self) {
        let now = Instant::now();
        let states = self.connections.values();
        let spared = states.filter_map(|state| Some((state.expendability(now)?, state)));
        if let Some((_, state)) = spared.min_by_key(|(order, _)| *order) {
            state.ask_to_leave();
        }
    }
}

impl Open {
    /// Takes up a request over HTTP/2; `None` where there is no room. Room is made for the next
    /// one then, if it can be.
    pub(super) fn stream(&self, has_body: bool) -> Option<OpenStream> {
        let mut open = self.connections.open();
        if self.state.streams() > 0 {
            if open.count() >= self.connections.max {
                open.close_one();
                return None;
            }
            open.streams += 1;
        }
        self.state.stream_began(has_body);
        Some(OpenStream {
            connections: Arc::clone(&self.connections),
            state: Arc::clone(&self.state),
            in_body: Arc::new(AtomicBool::new(has_body)),
        })
    }
}

impl OpenStream {
    /// What is to be called when the body is read to its end, or is wanted no more.
    pub(super) fn on_body_over(&self) -> impl Fn() + Send + Unpin + 'static {
        let (state, in_body) = (Arc::clone(&self.state), Arc::clone(&self.in_body));
        move || state.stream_body_over(&in_body)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.open().connections.remove(&self.id);
        self.connections.ended.notify_one();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        self.state.stream_ended(&self.in_body);
        if self.state.streams() > 0 {
            open.streams -= 1;
            self.connections.ended.notify_one();
        }
    }
}
