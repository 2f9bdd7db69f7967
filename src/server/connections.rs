//! Bounds the number of connections and closes one to make room for another.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(any(target_os = "linux", target_os = "android"))]
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::state::State;

/// How long accepting pauses if no connection ends, to avoid a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long handshakes that have begun may take before the listener is closed: longer than a round trip
/// to most clients.
const HANDSHAKE: Duration = Duration::from_millis(100);

/// A program of the Berkeley Packet Filter that discards TCP packets with SYN and without ACK. The flags
/// are in byte 13 (RFC 9293, section 3.1); ACK is 0x10 and SYN 0x02. The codes are those of Linux's
/// `filter.h`.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NO_SYN: [SockFilter; 5] = {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
};

/// How long there must be room before it is logged.
const CALM: Duration = Duration::from_secs(1);

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    max: usize,
    open: Mutex<OpenConnections>,
    /// Notified when a connection ends, or a request over HTTP/2.
    ended: Notify,
}

#[derive(Debug, Default)]
struct OpenConnections {
    connections: HashMap<u64, Arc<State>>,
    /// The requests over HTTP/2 beyond the first of each connection. Each takes as much memory as a
    /// connection.
    streams: usize,
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    connections: Arc<Connections>,
    id: u64,
    /// The state of the connection.
    pub(super) state: Arc<State>,
}

/// Counts a request over HTTP/2 until it is answered or abandoned.
#[derive(Debug)]
pub(super) struct RequestGuard {
    connections: Arc<Connections>,
    state: Arc<State>,
    /// Whether its body is still being read.
    in_body: Arc<AtomicBool>,
}

/// Accepts connections and makes room for them.
pub(super) struct Acceptor {
    listener: TcpListener,
    connections: Arc<Connections>,
    /// When room last had to be made; cleared once the log reports that there is room again.
    exhausted: Option<Instant>,
    accepted: u64,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, max: usize) -> Self {
        let connections = Connections { max, open: Mutex::default(), ended: Notify::new() };
        Self { listener, connections: Arc::new(connections), exhausted: None, accepted: 0 }
    }

    /// Waits for a client and for room for its connection. If the future is dropped, at most one
    /// client that had no room is lost.
    pub(super) async fn accept(&mut self) -> (TcpStream, ConnectionGuard) {
        loop {
            let calm = self.exhausted.map(|last| last + CALM);
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = sleep_until(calm.unwrap_or_else(Instant::now)), if calm.is_some() => {
                    self.exhausted = None;
                    tracing::info!("there is room again: no connection is closed for a new one");
                    continue;
                }
            };
            match accepted {
                Ok((socket, _)) => {
                    while self.connections.are_full() {
                        self.make_room("the limit of open connections is reached").await;
                    }
                    self.accepted += 1;
                    return (socket, Connections::add(&self.connections, self.accepted));
                }
                // The client gave up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // No file descriptors or no memory left.
                Err(error) => self.make_room(&error.to_string()).await,
            }
        }
    }

    /// Accepts the connections that clients believe to be established, and no others.
    pub(super) fn into_last(self) -> LastConnections {
        // Clients whose handshake has begun complete it. Without the filter, only the completed ones
        // are found.
        let open = self.refuse_handshakes().map_or(Duration::ZERO, |()| HANDSHAKE);
        LastConnections { acceptor: self, until: Instant::now() + open }
    }

    /// Discards the packets that begin a handshake. Their clients send them again, and find the listener
    /// closed.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn refuse_handshakes(&self) -> io::Result<()> {
        SockRef::from(&self.listener).attach_filter(&NO_SYN)
    }

    /// Other systems cannot do that.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn refuse_handshakes(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn make_room(&mut self, reason: &str) {
        if self.exhausted.replace(Instant::now()).is_none() {
            tracing::warn!(
                reason,
                open = self.connections.open().count(),
                "no room for a new connection: for each, one that waits for its client is closed"
            );
        }
        self.connections.close_one();
        let _ = timeout(ACCEPT_PAUSE, self.connections.ended.notified()).await;
    }
}

/// The last connections of a listener.
///
/// Closing a listener resets the connections that are established and not accepted yet. Their clients
/// may have sent a request by then, and cannot know whether it was read.
pub(super) struct LastConnections {
    acceptor: Acceptor,
    until: Instant,
}

impl LastConnections {
    /// The next one; `None` if there is no other.
    pub(super) async fn accept(&mut self) -> Option<(TcpStream, ConnectionGuard)> {
        timeout_at(self.until, self.acceptor.accept()).await.ok()
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are_full(&self) -> bool {
        self.open().count() >= self.max
    }

    fn add(self: &Arc<Self>, id: u64) -> ConnectionGuard {
        let state = Arc::new(State::new());
        self.open().connections.insert(id, Arc::clone(&state));
        ConnectionGuard { connections: Arc::clone(self), id, state }
    }

    fn close_one(&self) {
        self.open().close_one();
    }
}

impl OpenConnections {
    fn count(&self) -> usize {
        self.connections.len() + self.streams
    }

    /// Closes the most expendable connection, if there is one.
    fn close_one(&self) {
        let now = Instant::now();
        let states = self.connections.values();
        let candidates = states.filter_map(|state| Some((state.expendability(now)?, state)));
        if let Some((_, state)) = candidates.min_by_key(|(order, _)| *order) {
            state.ask_to_close();
        }
    }
}

impl ConnectionGuard {
    /// Registers a request over HTTP/2. If there is no room, makes some for the next request and
    /// returns `None`.
    pub(super) fn stream(&self, has_body: bool) -> Option<RequestGuard> {
        let mut open = self.connections.open();
        if self.state.streams() > 0 {
            if open.count() >= self.connections.max {
                open.close_one();
                return None;
            }
            open.streams += 1;
        }
        self.state.stream_began(has_body);
        Some(RequestGuard {
            connections: Arc::clone(&self.connections),
            state: Arc::clone(&self.state),
            in_body: Arc::new(AtomicBool::new(has_body)),
        })
    }
}

impl RequestGuard {
    /// A callback for when the body was read to its end or is abandoned.
    pub(super) fn on_body_over(&self) -> impl Fn() + Send + Unpin + 'static {
        let (state, in_body) = (Arc::clone(&self.state), Arc::clone(&self.in_body));
        move || state.stream_body_over(&in_body)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.open().connections.remove(&self.id);
        self.connections.ended.notify_one();
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        self.state.stream_ended(&self.in_body);
        if self.state.streams() > 0 {
            open.streams -= 1;
            self.connections.ended.notify_one();
        }
    }
}
