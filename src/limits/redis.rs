//! Limits that are kept in Redis, for all replicas together.
//!
//! | file | what is in it | uses |
//! |---|---|---|
//! | `script`, `script/*.lua` | all changes of the shared limits, in one atomic script, by Redis's clock | |
//! | `command`, `reply` | what is sent to the script; what it replies and publishes | |
//! | `replica_lease` | how long this replica may use what it holds | |
//! | `link` | commands to be sent, requests that wait, what is held here | `command`, `reply`, `replica_lease` |
//! | `semaphore`, `budget` | one semaphore, one account's budget | `link` and what it uses |
//! | `registry` | the known semaphores | `semaphore`, `link` |
//! | `session` | one connection until it breaks, and reconnecting | all of the above |
//!
//! Each replica has one connection. It sends all its commands in one call of the script, and what
//! comes up meanwhile in the next call. So the load on Redis grows with the number of replicas and
//! not with the number of calls. Permits are in the reply, or are published to the replica that
//! gets them.

mod budget;
mod command;
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
use jiff::Timestamp;
use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::budget::BudgetAdmin;
use super::model::{
    Lease, LeaseTerms, MAX_LEASE_TTL, NewLease, NoSuchLease, Payer, PlannedQuotas, SemaphoreId,
    StoreUnavailable,
};
use super::semaphore::{Permit, Semaphore};
use super::store::{Fetched, LeaseStore, Semaphores, Store, Unleased};
use budget::SharedBudget;
use command::{Command, GLOBAL, Registered, micros};
use link::Link;
use registry::Registry;
use replica_lease::ReplicaLease;
use reply::{
    DeleteResult, FindResult, LeaseResult, ListResult, RegisterResult, ReleaseResult, SharedLease,
};
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
}

impl LeaseStore for SharedStore {
    fn lease(
        &self,
        mut permit: Permit,
        new: NewLease,
    ) -> BoxFuture<'static, Result<(Lease, bool), Unleased>> {
        let semaphore = permit.semaphore().number();
        let permits = permit.defuse();
        self.link.hand_over(semaphore, permits);
        let NewLease { id, semaphore_id, terms, key } = new;
        let name = semaphore_id.as_str().to_owned();
        let command = Command::Lease {
            semaphore,
            name: name.clone(),
            id: String::from(&*id),
            holder: String::from(&*terms.holder),
            permits,
            ttl_us: micros(terms.ttl),
            key: key.as_deref().map(str::to_owned),
        };
        let link = Arc::clone(&self.link);
        // In a separate task, which continues if the request is dropped.
        let (granted, receiver) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let done: Result<Option<LeaseResult>, _> = link.call_anyway(command).await;
            // If the reply is lost, it is unknown whether the lease exists.
            let may_be_new = matches!(&done, Err(_) | Ok(Some(LeaseResult { new: true, .. })));
            let is_lost = done.is_err();
            if (granted.send(done).is_err() || is_lost) && may_be_new {
                let id = String::from(&*id);
                link.send(Command::ReleaseLease { name, id, unless_found: true });
            }
        });
        let link = Arc::clone(&self.link);
        async move {
            let done = receiver.await.unwrap_or_else(|_| Err(link.lease.unavailable()))?;
            let LeaseResult { lease, new } = done.ok_or(Unleased::Deleted)?;
            Ok((to_lease(lease).ok_or_else(|| link.lease.unavailable())?, new))
        }
        .boxed()
    }

    fn find_lease<'a>(
        &'a self,
        semaphore: &'a Arc<dyn Semaphore>,
        key: &'a str,
    ) -> Fetched<'a, Option<Lease>> {
        let command = Command::FindLease { semaphore: semaphore.number(), key: key.to_owned() };
        async move {
            let found: Option<LeaseResult> = self.link.call(command).await?;
            Ok(found.and_then(|found| to_lease(found.lease)))
        }
        .boxed()
    }

    fn renew_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
        ttl: Option<Duration>,
    ) -> Fetched<'a, Result<Lease, NoSuchLease>> {
        let name = semaphore_id.as_str().to_owned();
        let command =
            Command::RenewLease { name, id: lease_id.to_owned(), ttl_us: ttl.map(micros) };
        async move {
            let renewed: Option<LeaseResult> = self.link.call(command).await?;
            Ok(renewed.and_then(|renewed| to_lease(renewed.lease)).ok_or(NoSuchLease))
        }
        .boxed()
    }

    fn release_lease<'a>(
        &'a self,
        semaphore_id: &'a SemaphoreId,
        lease_id: &'a str,
    ) -> Fetched<'a, Result<(), NoSuchLease>> {
        let name = semaphore_id.as_str().to_owned();
        let command = Command::ReleaseLease { name, id: lease_id.to_owned(), unless_found: false };
        async move {
            let released: Option<ReleaseResult> = self.link.call(command).await?;
            let of_another = released.is_some_and(|released| released.of_another);
            Ok(if of_another { Err(NoSuchLease) } else { Ok(()) })
        }
        .boxed()
    }

    fn leases<'a>(&'a self, semaphore: &'a Arc<dyn Semaphore>) -> Fetched<'a, Vec<Lease>> {
        let command = Command::ListLeases { semaphore: semaphore.number() };
        async move {
            let list: Option<ListResult> = self.link.call(command).await?;
            let list = list.map(|list| list.leases).unwrap_or_default();
            let mut leases: Vec<_> = list.into_iter().filter_map(to_lease).collect();
            leases.sort_by_key(|lease| lease.fencing_token);
            Ok(leases)
        }
        .boxed()
    }
}

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

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            // If this fails, what is held becomes free when the replica lease ends.
            let _: Result<Option<()>, _> = self.link.call(Command::Retire { member: None }).await;
            self.session.lock().unwrap_or_else(PoisonError::into_inner).abort();
        }
        .boxed()
    }
}

/// Reads a lease from the script's result; `None` if it is invalid.
fn to_lease(lease: SharedLease) -> Option<Lease> {
    // A reply is not trusted to exceed the longest lease.
    let left = Duration::from_micros(lease.ends_in_us.max(0.0) as u64).min(MAX_LEASE_TTL);
    Some(Lease {
        id: lease.id.into(),
        semaphore_id: SemaphoreId::read(&lease.name).ok()?,
        terms: LeaseTerms {
            holder: lease.holder.into(),
            permits: lease.permits,
            ttl: Duration::from_micros(lease.asked_ttl_us),
        },
        expires: Instant::now() + left,
        expires_at: Timestamp::now() + left,
        fencing_token: lease.fencing_token.parse().ok()?,
    })
}
