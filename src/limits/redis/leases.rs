//! The leases of all replicas.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use super::SharedStore;
use super::command::{Command, micros};
use super::reply::{LeaseResult, ListResult, ReleaseResult, SharedLease};
use crate::limits::model::{Lease, LeaseTerms, MAX_LEASE_TTL, NewLease, NoSuchLease, SemaphoreId};
use crate::limits::semaphore::{Permit, Semaphore};
use crate::limits::store::{Fetched, LeaseStore, Unleased};

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
