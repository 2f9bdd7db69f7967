//! A stand-in for Gemini that counts the calls in flight and fails in every way.
//!
//! It is a single thread, so that its counts have one order, and as cheap as possible: a million
//! calls share two cores with the service. It parses no JSON, only the number of a call in its
//! body.

mod count;
mod faults;
mod script;
mod words;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream as Socket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::calls::number;
use crate::record::{Life, Record, find};
pub use count::Figures;
use count::{Arrival, Count};
use script::{Form, Request, Script, Step, script};

/// How long a call takes whose prompt asks for it.
pub const HOLD: Duration = Duration::from_millis(700);

/// Commands to the upstream from the rest of the test.
enum Order {
    /// Ends the calls that a stopped process has disconnected. Its other calls count until their
    /// end, whatever happens to the process.
    Kill(Life, oneshot::Sender<()>),
    /// Returns what was counted since the last time.
    Figures(oneshot::Sender<Figures>),
}

/// A handle to the upstream for the rest of the test.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    orders: mpsc::UnboundedSender<Order>,
}

impl Upstream {
    /// Starts it on its own thread, which ends with the process.
    pub fn start(record: Arc<Record>, seed: u64, has_faults: bool) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let shared = Rc::new(Shared {
                count: Count::new(record),
                random: Rng::with_seed(seed).into(),
                has_faults,
                fates: Default::default(),
            });
            let work = run(listener, shared, received);
            LocalSet::new().block_on(&runtime.expect("a runtime"), work);
        });
        Self { address, orders }
    }

    /// Must be called when a process is stopped and about to be killed.
    pub async fn kill(&self, life: Life) {
        let (done, waits) = oneshot::channel();
        _ = self.orders.send(Order::Kill(life, done));
        waits.await.expect("the upstream runs");
    }

    /// What was counted since the last time.
    pub async fn figures(&self) -> Figures {
        let (done, waits) = oneshot::channel();
        _ = self.orders.send(Order::Figures(done));
        waits.await.expect("the upstream runs")
    }
}

struct Shared {
    count: Count,
    random: std::cell::RefCell<Rng>,
    has_faults: bool,
    fates: std::cell::RefCell<BTreeMap<&'static str, u64>>,
}

async fn run(
    listener: std::net::TcpListener,
    shared: Rc<Shared>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    let mut ghosts = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let Ok((stream, _)) = connection else { continue };
                tokio::task::spawn_local(serve_connection(stream, Rc::clone(&shared)));
            }
            order = orders.recv() => match order {
                Some(Order::Kill(life, done)) => {
                    shared.count.kill(life);
                    _ = done.send(());
                }
                Some(Order::Figures(done)) => {
                    let fates = std::mem::take(&mut *shared.fates.borrow_mut());
                    _ = done.send(shared.count.figures(fates));
                }
                None => return,
            },
            _ = ghosts.tick() => shared.count.report_ghosts(),
        }
    }
}

/// Serves a connection until it is closed.
async fn serve_connection(stream: TcpStream, shared: Rc<Shared>) {
    // Shows whether the peer has closed the connection, before the runtime knows.
    let Some((stream, probe)) = with_probe(stream) else { return };
    let mut connection = Connection { stream, received: BytesMut::new() };
    let probe = Rc::new(probe);
    while let Some(request) = connection.request().await {
        let script = shared.fate(&request);
        let call = request.is_counted.then(|| {
            shared.count.arrive(Arrival {
                request: &request,
                longest: script.duration(),
                probe: Rc::clone(&probe),
            })
        });
        let end = connection.perform(script, || {
            if let Some(call) = call {
                shared.count.end(call);
            }
        });
        match end.await {
            End::Kept => {}
            End::Closed => return,
            End::Gone => {
                if let Some(call) = call {
                    shared.count.gone(call).await;
                }
                return;
            }
        }
    }
}

fn with_probe(stream: TcpStream) -> Option<(TcpStream, Socket)> {
    stream.set_nodelay(true).ok()?;
    let stream = stream.into_std().ok()?;
    let probe = stream.try_clone().ok()?;
    Some((TcpStream::from_std(stream).ok()?, probe))
}

impl Shared {
    fn fate(&self, request: &Request) -> Script {
        let script =
            script(&mut self.random.borrow_mut(), request, self.has_faults, self.count.in_flight());
        *self.fates.borrow_mut().entry(script.name).or_default() += 1;
        script
    }
}

/// How an exchange ended.
enum End {
    /// The connection can be reused.
    Kept,
    /// The upstream closed the connection.
    Closed,
    /// The peer closed it before the end.
    Gone,
}

struct Connection {
    stream: TcpStream,
    received: BytesMut,
}

impl Connection {
    /// Reads the next request completely; `None` if there is none.
    async fn request(&mut self) -> Option<Request> {
        let head = loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                break self.received.split_to(end + 4).freeze();
            }
            self.receive().await?;
        };
        let body = match header(&head, b"content-length:") {
            Some(length) => {
                let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
                while self.received.len() < length {
                    self.receive().await?;
                }
                self.received.split_to(length).freeze()
            }
            None if header(&head, b"transfer-encoding:").is_some() => loop {
                if let Some(end) = find(&self.received, b"0\r\n\r\n") {
                    break self.received.split_to(end + 5).freeze();
                }
                self.receive().await?;
            },
            None => Bytes::new(),
        };
        Some(read(&head, &body))
    }

    async fn receive(&mut self) -> Option<()> {
        self.received.reserve(16 << 10);
        let read = self.stream.read_buf(&mut self.received).await.ok()?;
        (read > 0).then_some(())
    }

    /// Performs a script. Calls `ended` when the call is over: before its last bytes are sent,
    /// since another call can start as soon as they arrive.
    async fn perform(&mut self, script: Script, ended: impl Fn()) -> End {
        for step in script.steps {
            match step {
                Step::Wait(time) => {
                    tokio::select! {
                        () = sleep(time) => {}
                        () = self.until_closed() => return End::Gone,
                    }
                }
                Step::Send(bytes) => {
                    if self.stream.write_all(&bytes).await.is_err() {
                        return End::Gone;
                    }
                }
                Step::Last(bytes) => {
                    ended();
                    let sent = self.stream.write_all(&bytes).await;
                    return if sent.is_ok() { End::Kept } else { End::Closed };
                }
                Step::Silence => {
                    self.until_closed().await;
                    return End::Gone;
                }
                Step::Close => {
                    ended();
                    _ = self.stream.shutdown().await;
                    return End::Closed;
                }
                Step::Reset => {
                    ended();
                    _ = self.stream.set_zero_linger();
                    return End::Closed;
                }
            }
        }
        End::Closed
    }

    /// Waits until the peer has closed the connection.
    async fn until_closed(&self) {
        let mut byte = [0];
        loop {
            match self.stream.peek(&mut byte).await {
                // A pipelined request, which the service never sends.
                Ok(1..) => sleep(Duration::from_millis(20)).await,
                _ => return,
            }
            _ = self.stream.ready(Interest::READABLE).await;
        }
    }
}

/// The value of a header. The name is in lower case and includes the colon.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (start, value) = line.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

/// Parses a request such as `POST /life/12/v1beta/models/…`.
fn read(head: &[u8], body: &[u8]) -> Request {
    let has = |text: &[u8], what: &str| find(text, what.as_bytes()).is_some();
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let life = find(line, b"/life/").map_or(b"".as_slice(), |at| &line[at + 6..]);
    let digits = life.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let life = std::str::from_utf8(&life[..digits]).ok().and_then(|life| life.parse().ok());
    let form = if has(line, "/openai/chat/completions") {
        if has(body, r#""stream":true"#) { Form::OpenAiStream } else { Form::OpenAi }
    } else if has(line, ":streamGenerateContent") {
        Form::Stream
    } else if has(line, ":generateContent") {
        Form::Whole
    } else {
        Form::Free
    };
    let asked = find(body, b"q#").map(|at| &body[at + 2..]).unwrap_or_default();
    let id = number(asked);
    let flags = asked.splitn(3, |byte| *byte == b'#').nth(1).unwrap_or_default();
    let key = header(head, b"x-goog-api-key:").or_else(|| {
        header(head, b"authorization:").and_then(|value| value.strip_prefix(b"Bearer "))
    });
    Request {
        life: life.unwrap_or(usize::MAX),
        form,
        is_counted: form != Form::Free,
        is_structured: has(line, "structured"),
        id: id.unwrap_or(0),
        is_tight: flags.contains(&b't'),
        is_plain: flags.contains(&b'p') || flags.contains(&b'h'),
        holds: flags.contains(&b'h'),
        is_left: flags.contains(&b'u'),
        key: String::from_utf8_lossy(key.unwrap_or_default()).into_owned(),
        arrived: Instant::now(),
    }
}
