//! The clients: what they send, how they disconnect, and what they accept as an answer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::calls::{Ask, Flag, Payer, Surface, free_body};
use crate::record::{Claim, Record};
use crate::replicas::Replica;
use crate::settings::UPSTREAM_TIMEOUT;

/// How long a client waits for an answer: longer than the service may take, whatever happens to it
/// meanwhile.
const SINGLE: Duration = Duration::from_secs(60);
const BATCH: Duration = Duration::from_secs(240);

/// How long a call that generates nothing may take beyond the upstream's time.
const FREE: Duration = Duration::from_secs(20);

/// All clients.
pub struct Crowd {
    pub record: Arc<Record>,
    pub replicas: Vec<Arc<Replica>>,
    pub hang_ups: bool,
    largest_batch: u64,
    next: AtomicU64,
    /// See [`Crowd::made`].
    made: AtomicU64,
    /// The clients stop when this many calls were made.
    goal: AtomicU64,
    is_over: AtomicBool,
}

/// What a kind of client does.
#[derive(Debug, Clone, Copy)]
enum Role {
    Batches,
    Singles,
    Shaky,
    Doomed,
    Leaving,
    Free,
}

/// How many clients there are of each kind.
const ROLES: [(Role, usize); 6] = [
    (Role::Batches, 12),
    (Role::Singles, 64),
    (Role::Shaky, 4),
    (Role::Doomed, 2),
    (Role::Leaving, 4),
    (Role::Free, 1),
];

impl Crowd {
    pub fn new(
        (record, replicas): (Arc<Record>, Vec<Arc<Replica>>),
        hang_ups: bool,
        largest_batch: u64,
    ) -> Arc<Self> {
        let largest_batch = largest_batch.max(100);
        let [next, made, goal] = [1, 0, 0].map(AtomicU64::new);
        let is_over = AtomicBool::new(false);
        Arc::new(Self { record, replicas, hang_ups, largest_batch, next, made, goal, is_over })
    }

    /// Numbers for new calls.
    pub fn ids(&self, calls: u64) -> Range<u64> {
        let first = self.next.fetch_add(calls, Ordering::Relaxed);
        first..first + calls
    }

    /// How many calls were made. Calls that were refused at once, with 429 or 503, do not count,
    /// nor do those that were lost with their replica.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Records the outcome of calls.
    fn record_outcome(&self, to: &str, calls: u64) {
        self.record.outcome(to, calls);
        self.add(calls);
    }

    fn add(&self, calls: u64) {
        self.made.fetch_add(calls, Ordering::Relaxed);
    }

    /// Starts the clients. They work until this many calls were made or [`Crowd::end`].
    pub fn start(self: &Arc<Self>, goal: u64, seed: u64) -> JoinSet<()> {
        self.goal.store(goal, Ordering::Relaxed);
        self.is_over.store(false, Ordering::Relaxed);
        let mut random = Rng::with_seed(seed);
        let mut clients = JoinSet::new();
        for (role, count) in ROLES {
            if matches!(role, Role::Leaving) && !self.hang_ups {
                continue;
            }
            for _ in 0..count {
                let client = Client::new(Arc::clone(self), random.fork());
                clients.spawn(client.work(role));
            }
        }
        clients
    }

    /// Stops the clients once they have the answers that they wait for.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.made() >= self.goal.load(Ordering::Relaxed)
    }
}

/// One client, which sends one request after the other.
pub struct Client {
    crowd: Arc<Crowd>,
    random: Rng,
    http: reqwest::Client,
}

/// The answer to a request.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(crowd: Arc<Crowd>, random: Rng) -> Self {
        let http =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        Self { crowd, random, http: http.build().expect("a client") }
    }

    async fn work(mut self, role: Role) {
        while !self.crowd.is_over() {
            match role {
                Role::Batches => self.batch(50..self.crowd.largest_batch).await,
                Role::Singles => {
                    let payer = Payer::steady(&mut self.random);
                    self.single(payer).await;
                }
                Role::Shaky => {
                    let payer = Payer::Shaky(self.random.u8(..8));
                    self.single(payer).await;
                }
                Role::Doomed => {
                    let payer = Payer::Doomed(self.random.u8(..64));
                    self.single(payer).await;
                }
                Role::Leaving => self.disconnect().await,
                Role::Free => self.free().await,
            }
        }
    }

    async fn batch(&mut self, sizes: Range<u64>) {
        let random = &mut self.random;
        let payer = Payer::steady(random);
        let surface = if random.u8(..5) == 0 { Surface::Structured } else { Surface::Chat };
        let calls = random.u64(sizes);
        let ids = self.crowd.ids(calls);
        let ask = Ask::batch(&mut self.random, ids, surface, payer, Flag::None);
        let slot = self.slot();
        self.ask(slot, &ask).await;
    }

    async fn single(&mut self, payer: Payer) {
        let random = &mut self.random;
        let surface = Surface::ALL[random.usize(..Surface::ALL.len())];
        let flag = if random.u8(..10) == 0 { Flag::Tight } else { Flag::None };
        let id = self.crowd.ids(1).start;
        let ask = Ask::one(&mut self.random, id, surface, payer, flag);
        let slot = self.slot();
        self.ask(slot, &ask).await;
    }

    fn slot(&mut self) -> usize {
        self.random.usize(..self.crowd.replicas.len())
    }

    /// Sends a request and checks the answer. Returns whether it was good.
    pub async fn ask(&self, slot: usize, ask: &Ask) -> bool {
        let record = &self.crowd.record;
        let limit = if ask.is_batch() { BATCH } else { SINGLE };
        let Some(reply) = self.send(slot, ask, limit).await else {
            sleep(Duration::from_millis(100)).await;
            return false;
        };
        if reply.status == 200 {
            ask.check(record, &reply.body);
            self.crowd.add(ask.calls());
            return true;
        }
        let code = code(&reply);
        if code == "internal_error" {
            record.violated(Claim::Answered, || {
                format!("{}: {}", ask.path, String::from_utf8_lossy(&reply.body))
            });
        }
        // Refusals cost nothing and would soon be most of the calls.
        if matches!(reply.status, 429 | 503) {
            record.outcome(&format!("{code}, at once"), ask.calls());
            sleep(Duration::from_millis(200)).await;
        } else {
            self.crowd.record_outcome(&code, ask.calls());
        }
        false
    }

    /// Sends a request, and searches the answer for keys. `None` if no complete answer arrived.
    async fn send(&self, slot: usize, ask: &Ask, limit: Duration) -> Option<Reply> {
        let record = &self.crowd.record;
        let sent = Instant::now();
        let url = format!("http://127.0.0.1:{}{}", self.crowd.replicas[slot].port, ask.path);
        let mut request = self.http.post(url).timeout(limit);
        request = request.header("content-type", "application/json");
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        match read(record, &ask.path, request.body(ask.body.clone())).await {
            Ok(reply) => Some(reply),
            Err(error) if error.is_timeout() => {
                self.crowd.record_outcome("no answer", ask.calls());
                record.violated(Claim::Answered, || {
                    format!("{} {:?}: nothing from replica {slot} in {limit:?}", ask.path, ask.ids)
                });
                None
            }
            Err(error) => {
                // A kill may be recorded a moment later than it takes effect.
                sleep(Duration::from_millis(50)).await;
                let is_known = record.was_down_since(slot, sent);
                if is_known {
                    record.outcome("its replica was killed", ask.calls());
                } else if ask.is_relayed() {
                    self.crowd.record_outcome("cut off like the upstream's answer", ask.calls());
                } else {
                    self.crowd.record_outcome("connection broke", ask.calls());
                    record.violated(Claim::Answered, || {
                        format!("{} {:?}: replica {slot}: {error:?}", ask.path, ask.ids)
                    });
                }
                None
            }
        }
    }

    /// Sends a request and disconnects: before it is completely sent, while waiting, or during the
    /// answer. Some clients send one byte too many before.
    async fn disconnect(&mut self) {
        let random = &mut self.random;
        let payer = Payer::steady(random);
        let (is_batch, stays) = (random.u8(..3) == 0, Duration::from_millis(random.u64(..400)));
        let (is_half, has_more) = (random.u8(..6) == 0, random.bool());
        let surface = Surface::ALL[random.usize(..Surface::ALL.len())];
        let ids = self.crowd.ids(if is_batch { 40 } else { 1 });
        let ask = if is_batch {
            Ask::batch(random, ids, Surface::Chat, payer, Flag::Leaving)
        } else {
            Ask::one(random, ids.start, surface, payer, Flag::Leaving)
        };
        let slot = self.slot();
        let replica = &self.crowd.replicas[slot];
        let life = replica.life();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", replica.port)).await else {
            return sleep(Duration::from_millis(100)).await;
        };
        let request = raw(&ask);
        let length = if is_half { request.len() - ask.body.len() / 2 - 1 } else { request.len() };
        _ = stream.write_all(&request[..length]).await;
        if has_more && !is_half {
            _ = stream.write_all(b"\r\n").await;
        }
        sleep(stays).await;
        ask.ids.clone().for_each(|id| self.crowd.record.disconnected(id, life));
        drop(stream);
        self.crowd.record_outcome("hung up", ask.calls());
    }

    /// Sends a call that generates nothing, which the upstream may leave unanswered.
    async fn free(&mut self) {
        let (record, slot) = (Arc::clone(&self.crowd.record), self.slot());
        let port = self.crowd.replicas[slot].port;
        let url = format!("http://127.0.0.1:{port}/v1beta/cachedContents");
        let limit = UPSTREAM_TIMEOUT + FREE;
        let request = self.http.post(url).timeout(limit).body(free_body());
        let request = request.header("content-type", "application/json");
        if let Err(error) = read(&record, "cachedContents", request).await
            && error.is_timeout()
        {
            record.violated(Claim::Answered, || {
                format!("POST /v1beta/cachedContents: nothing from replica {slot} in {limit:?}")
            });
        }
        sleep(Duration::from_millis(self.random.u64(..500))).await;
    }

    /// Gets a page of a replica.
    pub async fn get_page(&self, slot: usize, path: &str) -> Option<Reply> {
        let port = self.crowd.replicas[slot].port;
        let request = self.http.get(format!("http://127.0.0.1:{port}{path}"));
        let request = request.timeout(Duration::from_secs(10));
        let request = request.header("admin-api-key", crate::settings::ADMIN_KEY);
        read(&self.crowd.record, path, request).await.ok()
    }

    /// Sends JSON as the administrator.
    pub async fn administer(&self, slot: usize, path: &str, body: String) -> Option<Reply> {
        let port = self.crowd.replicas[slot].port;
        let request = self.http.post(format!("http://127.0.0.1:{port}{path}")).body(body);
        let request = request.header("admin-api-key", crate::settings::ADMIN_KEY);
        let request = request.header("content-type", "application/json");
        let request = request.timeout(Duration::from_secs(10));
        read(&self.crowd.record, path, request).await.ok()
    }

    /// Sends a call that must succeed if the service works. Returns whether it did.
    pub async fn probe(&mut self, slot: usize) -> bool {
        let payer = Payer::Steady(self.random.u8(..8));
        let id = self.crowd.ids(1).start;
        let ask = Ask::one(&mut self.random, id, Surface::Chat, payer, Flag::Plain);
        let reply = self.send(slot, &ask, Duration::from_secs(25));
        match reply.await {
            Some(reply) if reply.status == 200 => {
                ask.check(&self.crowd.record, &reply.body);
                true
            }
            _ => false,
        }
    }
}

/// Sends a request, reads the complete answer and searches it for keys.
async fn read(
    record: &Record,
    place: &str,
    request: reqwest::RequestBuilder,
) -> Result<Reply, reqwest::Error> {
    let mut response = request.send().await?;
    for (name, value) in response.headers() {
        record.search(&format!("the header {name} of {place}"), value.as_bytes());
    }
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.inspect_err(|_| {
        record.search(&format!("the broken answer to {place}"), &body);
    })? {
        body.extend_from_slice(&piece);
    }
    record.search(&format!("the answer to {place}"), &body);
    Ok(Reply { status, body })
}

/// A request as raw bytes.
fn raw(ask: &Ask) -> Vec<u8> {
    let mut head = format!(
        "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        ask.path,
        ask.body.len()
    );
    for (name, value) in &ask.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    head += &ask.body;
    head.into_bytes()
}

/// The code of an error, in any format.
fn code(reply: &Reply) -> String {
    #[derive(Deserialize)]
    struct Ours {
        code: String,
    }
    #[derive(Deserialize)]
    struct Theirs {
        error: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        status: Option<String>,
        code: Option<serde_json::Value>,
    }
    if let Ok(Ours { code }) = serde_json::from_slice(&reply.body) {
        return code;
    }
    match serde_json::from_slice::<Theirs>(&reply.body) {
        Ok(Theirs { error: Status { status: Some(status), .. } }) => format!("relayed {status}"),
        Ok(Theirs { error: Status { code: Some(code), .. } }) => format!("relayed {code}"),
        _ => format!("status {}", reply.status),
    }
}
