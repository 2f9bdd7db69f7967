//! One connection to Redis, from its making until it breaks, and the making of the next.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, PushInfo, PushKind, Script,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::link::{Link, Said};
use super::registry::Registry;
use super::wire::{
    Account, Charged, Corrected, Joined, Longest, News, Op, Paused, Reply, SCRIPT, micros,
};

/// How long a lost connection is left alone between two attempts to make another.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// All it takes to make a connection.
pub(super) struct Connector {
    pub redis: ConnectionInfo,
    /// What all keys begin with.
    pub prefix: String,
    /// How many calls are in flight at once, by this process's settings.
    pub limit: usize,
    pub link: Arc<Link>,
    pub registry: Arc<Registry>,
    pub script: Script,
}

/// Why a session is over, or did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Redis(#[from] redis::RedisError),
    #[error("the connection was closed")]
    Closed,
    #[error("the replica was silent for too long")]
    Expired,
    #[error("Redis gave an answer that cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the user of REDIS_URL may not ask for INFO server, or it lacks run_id")]
    NoInfo,
    #[error(
        "replicas of another version keep their limits there in format {theirs}, and this one in \
         format {ours}: stop them first, or set another REDIS_PREFIX"
    )]
    OtherFormat { theirs: String, ours: String },
}

/// A connection, and the member of those who share the limits that it is.
pub(super) struct Session {
    connection: MultiplexedConnection,
    news: mpsc::UnboundedReceiver<PushInfo>,
    pub member: String,
    due: Instant,
    /// In how long anything is granted at all.
    opens_in: Option<Duration>,
}

impl Connector {
    pub fn new(
        redis: ConnectionInfo,
        prefix: &str,
        limit: usize,
        link: Arc<Link>,
        registry: Arc<Registry>,
    ) -> Self {
        // In braces, so that all keys are in one slot of a cluster. What is published is heard in
        // all databases of a server, which share nothing else.
        let prefix = match redis.redis_settings().db() {
            0 => format!("{{{prefix}}}"),
            database => format!("{{{prefix}/{database}}}"),
        };
        Self { redis, prefix, limit, link, registry, script: Script::new(&SCRIPT) }
    }

    /// Connects and becomes a member, in the place of `previous`.
    pub async fn open(&self, previous: Option<&str>, is_over: bool) -> Result<Session, Broken> {
        let opened = self.open_at(self.redis.clone(), previous, is_over).await;
        let Err(Broken::Redis(error)) = &opened else { return opened };
        // A node of a cluster tells which other one has the slot.
        let Some((node, _)) = error.redirect_node() else { return opened };
        match redirected(&self.redis, node) {
            Some(there) => self.open_at(there, previous, is_over).await,
            None => opened,
        }
    }

    async fn open_at(
        &self,
        redis: ConnectionInfo,
        previous: Option<&str>,
        is_over: bool,
    ) -> Result<Session, Broken> {
        let tenure = &self.link.tenure;
        let (sender, news) = mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(tenure.timeout()))
            .set_response_timeout(Some(tenure.timeout()))
            .set_push_sender(sender);
        let mut connection =
            Client::open(redis)?.get_multiplexed_async_connection_with_config(&config).await?;
        let member = format!("{:032x}", fastrand::u128(..));
        connection.subscribe(format!("{}:all", self.prefix)).await?;
        connection.subscribe(format!("{}:to:{member}", self.prefix)).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let run = run_id(&info).ok_or(Broken::NoInfo)?;

        tenure.begin_anew(is_over);
        let (joined, answered) = oneshot::channel();
        let join = Said {
            op: Op::Join {
                run,
                limit: self.limit,
                starts: previous.is_none(),
                known: self.registry.known(),
                lineage: self.link.lineage(),
                longest_us: self.link.longest_us(),
            },
            result: Some(joined),
        };
        self.link.start_over(join, previous);
        let mut session = Session { connection, news, member, due: Instant::now(), opens_in: None };
        session.exchange(self).await?;
        if let Some(opens_in) = session.opens_in {
            tracing::warn!(
                seconds = opens_in.as_secs_f64().ceil(),
                "Redis may have forgotten who holds what: calls start when all that may have run \
                 before is over"
            );
        }
        let joined = answered.await.ok().flatten().ok_or(Broken::Closed)?;
        let joined: Joined = serde_json::from_str(joined.get())?;
        self.link.set_lineage(joined.lineage);
        self.link.note_tenure(joined.longest.longest_us);
        self.registry.replace(joined.semaphores);
        if let Some(previous) = previous {
            // Only now: until its successor holds the same, nobody else may.
            self.link.say(Op::Retire { member: Some(previous.to_owned()) });
        }
        Ok(session)
    }

    /// Keeps this replica a member for as long as the process runs.
    pub async fn keep(self: Arc<Self>, mut session: Session) {
        loop {
            let Err(broken) = session.run(&self).await;
            tracing::warn!(reason = %broken, "the connection to Redis is lost");
            let is_over = matches!(broken, Broken::Expired);
            session = self.reopen(&session.member, is_over).await;
            tracing::info!("connected to Redis again");
        }
    }

    async fn reopen(&self, previous: &str, mut is_over: bool) -> Session {
        let mut told = false;
        loop {
            match self.open(Some(previous), is_over).await {
                Ok(session) => return session,
                Err(Broken::Expired) => is_over = true,
                Err(reason) => {
                    if let Err(lost) = self.link.tenure.reach() {
                        self.link.refuse_impatient(lost);
                        if !told {
                            tracing::error!(%reason, "Redis is unavailable: no calls are started");
                        }
                        told = true;
                    }
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
    }
}

impl Session {
    /// Says what is to be said and hears the news, until the connection breaks.
    async fn run(&mut self, connector: &Connector) -> Result<Infallible, Broken> {
        loop {
            tokio::select! {
                news = self.news.recv() => {
                    connector.hear(news)?;
                    continue;
                }
                () = connector.link.outgoing.notified() => {}
                () = sleep_until(self.due) => connector.link.look_again(),
            }
            self.exchange(connector).await?;
        }
    }

    /// Says something; takes in what is told until the reply comes.
    async fn reply(&mut self, connector: &Connector, said: &[Said]) -> Result<Reply, Broken> {
        let mut reply = pin!(connector.invoke(&self.member, &self.connection, said));
        loop {
            tokio::select! {
                reply = &mut reply => {
                    let reply = reply?;
                    return match reply.other_format {
                        Some(theirs) => Err(Broken::OtherFormat { theirs, ours: reply.format }),
                        None if reply.expired => Err(Broken::Expired),
                        None => Ok(reply),
                    };
                }
                news = self.news.recv() => connector.hear(news)?,
            }
        }
    }

    /// Says all that is to be said, until nothing is left, and takes in what comes back and what
    /// is told meanwhile.
    async fn exchange(&mut self, connector: &Connector) -> Result<(), Broken> {
        loop {
            let said = connector.link.take_outbox();
            let (said_at, now) = (connector.link.tenure.now(), Instant::now());
            let reply = match self.reply(connector, &said).await {
                Ok(reply) => reply,
                Err(broken) => {
                    connector.link.take_back(said);
                    return Err(broken);
                }
            };
            connector.link.tenure.renewed(said_at);
            if let Some(micros) = reply.stepped_us {
                let seconds = micros / 1e6;
                tracing::warn!(seconds, "Redis's clock was set, which changes nothing here");
            }
            connector.registry.stand(&reply.semaphores);
            self.opens_in = reply.opens_in_us.map(|micros| Duration::from_micros(micros as u64));
            let look_again = connector.link.hear(said, reply);
            let heartbeat = connector.link.tenure.heartbeat();
            let due = look_again.filter(|_| connector.link.is_waited_for()).unwrap_or(heartbeat);
            self.due = now + due.clamp(Duration::from_millis(1), heartbeat);
            if connector.link.has_nothing_to_say() {
                return Ok(());
            }
        }
    }
}

impl Connector {
    async fn invoke(
        &self,
        member: &str,
        connection: &MultiplexedConnection,
        said: &[Said],
    ) -> Result<Reply, Broken> {
        let ops: Vec<_> = said.iter().map(|said| &said.op).collect();
        let tenure = micros(self.link.tenure.length());
        let mut connection = connection.clone();
        let mut call = self.script.key(&self.prefix);
        let quiet = self.link.tenure.quiet().map(|quiet| micros(quiet).to_string());
        call.arg(member).arg(tenure).arg(serde_json::to_string(&ops)?);
        call.arg(quiet.unwrap_or_default());
        let reply: String = call.invoke_async(&mut connection).await?;
        Ok(serde_json::from_str(&reply)?)
    }

    fn hear(&self, push: Option<PushInfo>) -> Result<(), Broken> {
        let push =
            push.filter(|push| push.kind != PushKind::Disconnection).ok_or(Broken::Closed)?;
        let Some(redis::Value::BulkString(news)) = push.data.get(1) else { return Ok(()) };
        if push.kind != PushKind::Message {
            return Ok(());
        }
        match serde_json::from_slice(news)? {
            News::Answers(answers) => self.link.answer(answers),
            News::Registered(registered) => drop(self.registry.register(registered)),
            News::Deleted(deleted) => self.registry.remove(&deleted),
            News::Watched(Account { account }) => {
                if let Some(budget) = self.link.budget(&account) {
                    budget.watch();
                }
            }
            News::Paused(Paused { account, for_us }) => {
                if let Some(budget) = self.link.budget(&account) {
                    budget.is_paused_for(Duration::from_micros(for_us));
                }
            }
            News::Resumed(Account { account }) => {
                if let Some(budget) = self.link.budget(&account) {
                    budget.is_resumed();
                }
            }
            News::ReplicaLease(Longest { longest_us }) => self.link.note_tenure(longest_us),
            News::Corrected(Corrected { account, quotas, learned, settings_differ }) => {
                if let Some(budget) = self.link.budget(&account) {
                    budget.is_corrected(quotas, learned);
                    if settings_differ {
                        budget.warn_of_differing_settings();
                    }
                }
            }
            News::Charged(Charged { account, to }) => {
                if let Some(budget) = self.link.budget(&account) {
                    budget.is_charged_to(to.as_deref());
                }
            }
        }
        Ok(())
    }
}

/// The same Redis at another node, which is told as `host:port`, or as `:port` on the same host.
fn redirected(redis: &ConnectionInfo, node: &str) -> Option<ConnectionInfo> {
    let (named, port) = node.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let mut there = redis.addr().clone();
    match &mut there {
        ConnectionAddr::Tcp(host, old) | ConnectionAddr::TcpTls { host, port: old, .. } => {
            if !named.is_empty() {
                named.clone_into(host);
            }
            *old = port;
        }
        _ => return None,
    }
    Some(redis.clone().set_addr(there))
}

/// Which run of Redis this is.
fn run_id(info: &str) -> Option<String> {
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
    Some(run.trim().to_owned())
}
