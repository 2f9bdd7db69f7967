//! One connection to Redis until it breaks, and reconnecting.

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

use super::command::{Command, micros};
use super::link::{BudgetChange, Link, Outgoing};
use super::registry::Registry;
use super::reply::{
    AccountName, ChargedAccount, Joined, LongestLease, Notification, Paused, Reply,
};
use super::script::SCRIPT;

/// The pause between two attempts to reconnect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// What is needed to connect.
pub(super) struct Connector {
    pub redis: ConnectionInfo,
    /// The prefix of all keys.
    pub prefix: String,
    pub link: Arc<Link>,
    pub registry: Arc<Registry>,
    pub script: Script,
}

/// Why a session ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Redis(#[from] redis::RedisError),
    #[error("the connection was closed")]
    Closed,
    #[error("the replica sent nothing for too long")]
    Expired,
    #[error("Redis sent an unreadable reply: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the user of REDIS_URL may not call INFO server, or its reply lacks run_id")]
    NoInfo,
    #[error(
        "replicas of another version keep their limits there in format {theirs}, and this one in \
         format {ours}: stop them first, or set another REDIS_PREFIX"
    )]
    OtherFormat { theirs: String, ours: String },
}

/// A connection and the member for which it was made.
pub(super) struct Session {
    connection: MultiplexedConnection,
    notifications: mpsc::UnboundedReceiver<PushInfo>,
    pub member: String,
    /// When the next call is made at the latest.
    due: Instant,
    /// When anything is granted, if Redis may have lost what is held.
    opens_in: Option<Duration>,
}

impl Connector {
    pub fn new(
        redis: ConnectionInfo,
        prefix: &str,
        link: Arc<Link>,
        registry: Arc<Registry>,
    ) -> Self {
        // In braces, so that all keys are in one slot of a cluster. The databases of a server share
        // their channels, so the prefix names the database.
        let prefix = match redis.redis_settings().db() {
            0 => format!("{{{prefix}}}"),
            database => format!("{{{prefix}/{database}}}"),
        };
        Self { redis, prefix, link, registry, script: Script::new(&SCRIPT) }
    }

    /// Connects and becomes a member that replaces `previous`.
    pub async fn open(&self, previous: Option<&str>, is_over: bool) -> Result<Session, Broken> {
        let opened = self.open_at(self.redis.clone(), previous, is_over).await;
        let Err(Broken::Redis(error)) = &opened else { return opened };
        // A node of a cluster names the node that has the slot.
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
        let lease = &self.link.lease;
        let (sender, notifications) = mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(lease.timeout()))
            .set_response_timeout(Some(lease.timeout()))
            .set_push_sender(sender);
        let mut connection =
            Client::open(redis)?.get_multiplexed_async_connection_with_config(&config).await?;
        let member = format!("{:032x}", fastrand::u128(..));
        connection.subscribe(format!("{}:all", self.prefix)).await?;
        connection.subscribe(format!("{}:to:{member}", self.prefix)).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let run = run_id(&info).ok_or(Broken::NoInfo)?;

        lease.renew_epoch(is_over);
        let (joined, receiver) = oneshot::channel();
        let join = Outgoing {
            command: Command::Join {
                run,
                limit: self.registry.limit(),
                starts: previous.is_none(),
                known: self.registry.known(),
                lineage: self.link.lineage(),
                longest_us: self.link.longest_us(),
            },
            result: Some(joined),
        };
        self.link.start_over(join, previous);
        let due = Instant::now();
        let mut session = Session { connection, notifications, member, due, opens_in: None };
        session.exchange(self).await?;
        if let Some(opens_in) = session.opens_in {
            tracing::warn!(
                seconds = opens_in.as_secs_f64().ceil(),
                "Redis may have lost the permits that replicas hold: calls start when all calls that \
                 may be in flight are over"
            );
        }
        let joined = receiver.await.ok().flatten().ok_or(Broken::Closed)?;
        let joined: Joined = serde_json::from_str(joined.get())?;
        self.link.set_lineage(joined.lineage);
        self.link.note_lease(joined.longest.longest_us);
        self.registry.replace(joined.semaphores);
        self.registry.settings().into_iter().for_each(|command| self.link.send(command));
        if let Some(previous) = previous {
            // Only now, when this member holds what the previous one held: nothing may become free.
            self.link.send(Command::Retire { member: Some(previous.to_owned()) });
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
        let mut is_logged = false;
        loop {
            match self.open(Some(previous), is_over).await {
                Ok(session) => return session,
                Err(Broken::Expired) => is_over = true,
                Err(reason) => {
                    if let Err(unavailable) = self.link.lease.reach() {
                        self.link.refuse_without_waiting(unavailable);
                        if !is_logged {
                            tracing::error!(%reason, "Redis is unavailable: no calls are started");
                        }
                        is_logged = true;
                    }
                }
            }
            sleep(RECONNECT_PAUSE).await;
        }
    }
}

impl Session {
    /// Sends commands and receives notifications until the connection breaks.
    async fn run(&mut self, connector: &Connector) -> Result<Infallible, Broken> {
        loop {
            tokio::select! {
                notification = self.notifications.recv() => {
                    connector.receive(notification)?;
                    continue;
                }
                () = connector.link.outgoing.notified() => {}
                () = sleep_until(self.due) => connector.link.check_again(),
            }
            self.exchange(connector).await?;
        }
    }

    /// Makes one call of the script and receives notifications until the reply arrives.
    async fn call(
        &mut self,
        connector: &Connector,
        outgoing: &[Outgoing],
    ) -> Result<Reply, Broken> {
        let mut reply = pin!(connector.invoke(&self.member, &self.connection, outgoing));
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
                notification = self.notifications.recv() => connector.receive(notification)?,
            }
        }
    }

    /// Sends the outbox until it is empty, and handles the replies and the notifications that come
    /// meanwhile.
    async fn exchange(&mut self, connector: &Connector) -> Result<(), Broken> {
        loop {
            let outgoing = connector.link.take_outbox();
            let (sent_at, now) = (connector.link.lease.now(), Instant::now());
            let reply = match self.call(connector, &outgoing).await {
                Ok(reply) => reply,
                Err(broken) => {
                    connector.link.take_back(outgoing);
                    return Err(broken);
                }
            };
            connector.link.lease.renewed(sent_at);
            if let Some(micros) = reply.stepped_us {
                let seconds = micros / 1e6;
                tracing::warn!(seconds, "Redis's clock was set, which changes nothing here");
            }
            connector.registry.update_usage(&reply.semaphores);
            self.opens_in = reply.opens_in_us.map(|micros| Duration::from_micros(micros as u64));
            let check_again = connector.link.handle(outgoing, reply);
            let heartbeat = connector.link.lease.heartbeat();
            let due = check_again.filter(|_| connector.link.has_waiters()).unwrap_or(heartbeat);
            self.due = now + due.clamp(Duration::from_millis(1), heartbeat);
            if connector.link.is_outbox_empty() {
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
        outgoing: &[Outgoing],
    ) -> Result<Reply, Broken> {
        let commands: Vec<_> = outgoing.iter().map(|outgoing| &outgoing.command).collect();
        let lease = micros(self.link.lease.length());
        let mut connection = connection.clone();
        let mut call = self.script.key(&self.prefix);
        let since_last = self.link.lease.since_last_command();
        call.arg(member).arg(lease).arg(serde_json::to_string(&commands)?);
        call.arg(since_last.map(|time| micros(time).to_string()).unwrap_or_default());
        let reply: String = call.invoke_async(&mut connection).await?;
        Ok(serde_json::from_str(&reply)?)
    }

    fn receive(&self, push: Option<PushInfo>) -> Result<(), Broken> {
        let push =
            push.filter(|push| push.kind != PushKind::Disconnection).ok_or(Broken::Closed)?;
        let Some(redis::Value::BulkString(message)) = push.data.get(1) else { return Ok(()) };
        if push.kind != PushKind::Message {
            return Ok(());
        }
        match serde_json::from_slice(message)? {
            Notification::Answers(answers) => self.link.deliver(answers),
            Notification::Registered(registered) => drop(self.registry.register(registered)),
            Notification::Deleted(deleted) => self.registry.remove(&deleted),
            Notification::LongestLease(LongestLease { longest_us }) => {
                self.link.note_lease(longest_us);
            }
            Notification::Watched(AccountName { account }) => {
                self.change(&account, BudgetChange::Watched);
            }
            Notification::Paused(Paused { account, for_us, kind }) => {
                self.change(&account, BudgetChange::Paused(Duration::from_micros(for_us), kind));
            }
            Notification::Resumed(AccountName { account }) => {
                self.change(&account, BudgetChange::Resumed);
            }
            Notification::Corrected(corrected) => {
                let account = Arc::clone(&corrected.account);
                self.change(&account, BudgetChange::Corrected(corrected));
            }
            Notification::Charged(ChargedAccount { account, to }) => {
                self.change(&account, BudgetChange::ChargedTo(to));
            }
        }
        Ok(())
    }

    /// Applies a change to the budget of an account, if it is in use here.
    fn change(&self, account: &str, change: BudgetChange) {
        if let Some(budget) = self.link.budget(account) {
            budget.receive(change);
        }
    }
}

/// The same Redis at another node, given as `host:port`, or as `:port` on the same host.
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

/// The id of Redis's current run.
fn run_id(info: &str) -> Option<String> {
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
    Some(run.trim().to_owned())
}
