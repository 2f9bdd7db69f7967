//! Limits that are kept in Redis, for all replicas together.
//!
//! | file | what is in it | uses |
//! |---|---|---|
//! | `script`, `script/*.lua` | all changes of the shared limits, in one atomic script, by Redis's clock | |
//! | `command`, `reply` | what is sent to the script; what it replies and publishes | |
//! | `replica_lease` | how long this replica may use what it holds | |
//! | `link` | commands to be sent, requests that wait, what is held here | `command`, `reply`, `replica_lease` |
//! | `semaphore`, `budget` | one semaphore, one account's budget | `link` and what it uses |
//! | `leases` | the leases | `command`, `reply` |
//! | `registry` | the known semaphores | `semaphore`, `link` |
//! | `session` | one connection until it breaks, and reconnecting | all of the above |
//!
//! Each replica has one connection. It sends all its commands in one call of the script, and what
//! comes up meanwhile in the next call. So the load on Redis grows with the number of replicas and
//! not with the number of calls. Permits are in the reply, or are published to the replica that
//! gets them.

mod budget;
mod command;
mod leases;
mod link;
mod registry;
mod replica_lease;
mod reply;
mod script;
mod semaphore;
mod session;
#[cfg(test)]
pub(crate) mod test_server;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinHandle;

use super::budget::BudgetAdmin;
use super::model::{Payer, PlannedQuotas, SemaphoreId, StoreUnavailable};
use super::semaphore::Semaphore;
use super::store::{Fetched, Report, Reports, Semaphores, Store};
use budget::SharedBudget;
use command::{Command, GLOBAL, Registered, micros};
use link::Link;
use registry::Registry;
use replica_lease::ReplicaLease;
use reply::{DeleteResult, FindResult, LoginResult, PastResult, RegisterResult, ReportResult};
use semaphore::SharedSemaphore;
use session::{Broken, Connector};

/// Where Redis is and how it is used.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://` or `rediss://`, with a password or without.
    pub url: SecretString,
    /// The prefix of all keys.
    pub prefix: String,
    /// How long Redis keeps the permits of a replica that sends nothing.
    pub lease: Duration,
}

/// Redis could not be used.
#[derive(Debug, thiserror::Error)]
#[error("Redis at {address}: {reason}")]
pub struct NoRedis {
    address: String,
    /// On one line.
    reason: String,
}

/// The URL is not a Redis URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Redis URL")]
pub struct InvalidRedisUrl;

impl RedisSettings {
    /// Checks a URL without connecting.
    ///
    /// # Errors
    /// [`InvalidRedisUrl`].
    pub fn check_url(url: &str) -> Result<(), InvalidRedisUrl> {
        connection_info(url).map(drop)
    }
}

fn connection_info(url: &str) -> Result<ConnectionInfo, InvalidRedisUrl> {
    if !["redis://", "rediss://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(InvalidRedisUrl);
    }
    let info = url.into_connection_info().map_err(|_| InvalidRedisUrl)?;
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_redis_settings(redis).set_tcp_settings(tcp))
}

/// The limits that all replicas share.
pub struct SharedStore {
    link: Arc<Link>,
    registry: Arc<Registry>,
    session: Mutex<JoinHandle<()>>,
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl SharedStore {
    /// Connects to Redis, and reconnects for as long as the store lives. `limit` is the global limit of
    /// all replicas together; the replica that started last decides.
    ///
    /// # Errors
    /// [`NoRedis`] if it cannot be reached or used.
    pub async fn connect(settings: &RedisSettings, limit: usize) -> Result<Arc<Self>, NoRedis> {
        let link = Link::new(ReplicaLease::new(settings.lease));
        let registry = Registry::new(Arc::clone(&link), limit);
        let info = connection_info(settings.url.expose_secret());
        let info = info.expect("the URL was checked with the settings");
        let address = info.addr().to_string();
        let failed = |reason: Broken| {
            let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            NoRedis { address: address.clone(), reason }
        };
        let connector =
            Connector::new(info, &settings.prefix, Arc::clone(&link), Arc::clone(&registry));
        let session = connector.open(None, false).await.map_err(failed)?;
        let session = tokio::spawn(Arc::new(connector).keep(session));
        Ok(Arc::new(Self { link, registry, session: Mutex::new(session) }))
    }

    fn registered(&self, registered: Registered) -> Result<Arc<SharedSemaphore>, StoreUnavailable> {
        match self.registry.register(registered) {
            Some(semaphore) => Ok(semaphore),
            None => Err(self.link.lease.unavailable()),
        }
    }
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.session.get_mut().unwrap_or_else(PoisonError::into_inner).abort();
    }
}

impl Semaphores for SharedStore {
    fn global(&self) -> Arc<dyn Semaphore> {
        Arc::<SharedSemaphore>::clone(&self.registry.global)
    }

    fn set_global(&self, limit: usize) -> Fetched<'_, ()> {
        async move {
            let _: Option<()> = self.link.call(Command::SetGlobalLimit { limit }).await?;
            self.registry.set_limit(limit);
            Ok(())
        }
        .boxed()
    }

    fn register(&self, id: SemaphoreId, limit: usize) -> Fetched<'_, (Arc<dyn Semaphore>, bool)> {
        async move {
            let (name, of_setting) = (id.as_str().to_owned(), id.is_enqueued());
            let command = Command::Register { name: name.clone(), limit, of_setting };
            let done: Option<RegisterResult> = self.link.call(command).await?;
            let RegisterResult { semaphore, new, limit: counts } =
                done.ok_or_else(|| self.link.lease.unavailable())?;
            let semaphore = self.registered(Registered { name, semaphore, limit: counts })?;
            if of_setting {
                semaphore.note_setting(limit);
            }
            if counts < limit && self.link.is_first_warning_of_settings() {
                tracing::warn!(
                    semaphore = id.as_str(),
                    here = limit,
                    counts,
                    "replicas have different GEMINI_LIMITS or GEMINI_TIER; of each quota the lowest \
                     limit of all running replicas counts"
                );
            }
            Ok((semaphore as Arc<dyn Semaphore>, new))
        }
        .boxed()
    }

    fn delete(&self, id: &SemaphoreId) -> Fetched<'_, bool> {
        let command = Command::Delete { name: id.as_str().to_owned() };
        async move {
            let done: Option<DeleteResult> = self.link.call(command).await?;
            Ok(done.is_some_and(|done| done.deleted))
        }
        .boxed()
    }

    fn find<'a>(&'a self, id: &'a SemaphoreId) -> Fetched<'a, Option<Arc<dyn Semaphore>>> {
        async move {
            if let Some(known) = self.registry.find(id) {
                return Ok(Some(known as Arc<dyn Semaphore>));
            }
            // Another replica may have registered it just now.
            let name = id.as_str().to_owned();
            let found: Option<FindResult> =
                self.link.call(Command::Find { name: name.clone() }).await?;
            let Some(FindResult { semaphore, limit }) = found else { return Ok(None) };
            Ok(Some(self.registered(Registered { name, semaphore, limit })? as Arc<dyn Semaphore>))
        }
        .boxed()
    }

    fn all(&self) -> Vec<(SemaphoreId, Arc<dyn Semaphore>)> {
        let all = self.registry.all().into_iter();
        all.map(|(id, semaphore)| (id, semaphore as Arc<dyn Semaphore>)).collect()
    }

    fn refresh(&self) -> Fetched<'_, ()> {
        async move {
            for (_, semaphore) in self.registry.all() {
                self.link.send(Command::Refresh { semaphore: semaphore.generation() });
            }
            // By the reply to a later command, all of them are updated.
            let _: Option<()> = self.link.call(Command::Refresh { semaphore: GLOBAL }).await?;
            Ok(())
        }
        .boxed()
    }

    fn held_here(&self) -> usize {
        self.link.held(GLOBAL)
    }

    fn leased(&self, id: &SemaphoreId) -> usize {
        self.registry.find(id).map_or(0, |semaphore| semaphore.leased())
    }
}

/// How many points of the past are read at once, so that Redis is never busy for long.
const POINTS_AT_ONCE: i64 = 120;

/// The most points of the past that are read.
const MAX_POINTS: i64 = 1440;

/// The longest report and the longest point that are read, in bytes.
const MAX_TEXT: usize = 65_536;

/// The most reports that are read.
const MAX_REPORTS: usize = 64;

impl Store for SharedStore {
    fn budget(
        &self,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<dyn BudgetAdmin> {
        SharedBudget::new(&self.link, payer, model, planned, minute)
    }

    fn reach(&self) -> Result<(), StoreUnavailable> {
        self.link.lease.reach()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn report(&self, report: Report) -> Fetched<'_, Reports> {
        let Report { text, points } = report;
        async move {
            let done: Option<ReportResult> =
                self.link.call(Command::Report { report: text, points }).await?;
            let ReportResult { mut reports, first } =
                done.ok_or_else(|| self.link.lease.unavailable())?;
            reports.retain(|report| report.len() <= MAX_TEXT);
            reports.truncate(MAX_REPORTS);
            Ok(Reports { texts: reports, is_first: first })
        }
        .boxed()
    }

    fn open_login(&self, id: &str, idle: Duration, longest: Duration) -> Fetched<'_, ()> {
        let (id, idle_us, longest_us) = (id.to_owned(), micros(idle), micros(longest));
        async move {
            let command = Command::OpenLogin { id, idle_us, longest_us };
            let _: Option<()> = self.link.call(command).await?;
            Ok(())
        }
        .boxed()
    }

    fn use_login(&self, id: &str, idle: Option<Duration>) -> Fetched<'_, bool> {
        let command = Command::UseLogin { id: id.to_owned(), idle_us: idle.map(micros) };
        async move {
            let used: Option<LoginResult> = self.link.call(command).await?;
            Ok(used.is_some_and(|used| used.open))
        }
        .boxed()
    }

    fn close_login(&self, id: &str) -> Fetched<'_, ()> {
        let command = Command::CloseLogin { id: id.to_owned() };
        async move {
            let _: Option<()> = self.link.call(command).await?;
            Ok(())
        }
        .boxed()
    }

    fn read_past(&self, window: &'static str) -> Fetched<'_, Vec<String>> {
        async move {
            let mut points = Vec::new();
            for from in (0..MAX_POINTS).step_by(POINTS_AT_ONCE as usize) {
                let command = Command::ReadPast { window, from, to: from + POINTS_AT_ONCE - 1 };
                let part: Option<PastResult> = self.link.call(command).await?;
                let mut part = part.map(|part| part.points).unwrap_or_default();
                let is_last = part.len() < POINTS_AT_ONCE as usize;
                part.truncate(POINTS_AT_ONCE as usize);
                points.extend(part.into_iter().filter(|point| point.len() <= MAX_TEXT));
                if is_last {
                    break;
                }
            }
            Ok(points)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            // If this fails, what is held becomes free when the replica lease ends.
            let _: Result<Option<()>, _> = self.link.call(Command::Retire { member: None }).await;
            self.session.lock().unwrap_or_else(PoisonError::into_inner).abort();
        }
        .boxed()
    }
}
