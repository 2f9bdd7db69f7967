//! Enqueued tokens: what batch jobs hold from their creation until they end.
//!
//! This quota bounds a queue and not a rate, so it is kept as a semaphore whose permits are tokens, for
//! each payer and model. A job holds a lease of its tokens, under its name, so that every replica can
//! end it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::accounts::Account;
use super::limiter::{Limiter, QueueTicket, Refused};
use super::model::{
    Exhausted, LeaseTerms, NewLease, Payer, Planned, QuotaKind, SemaphoreId, StoreUnavailable,
};
use super::semaphore::Permit;

/// How long a job holds its tokens if nothing reports its end. Gemini gives a job up after 48 hours
/// (Gemini API docs, batch API); the rest is a margin.
const JOB_LIFETIME: Duration = Duration::from_secs(50 * 3600);

/// When a job that found no room may be created again. Nobody knows when a job ends.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The most payers and models whose tokens are kept. Callers can make up keys and models.
const MAX_KEPT: usize = 1024;

/// The largest limit. The script in Redis writes numbers with 14 digits.
const MAX_TOKENS: u64 = 10_000_000_000_000;

/// The tokens of a job that is about to be created. Dropping the value gives them back.
#[derive(Debug)]
#[must_use = "dropping it gives the tokens back at once"]
pub struct EnqueuedTokens {
    permit: Permit,
    semaphore_id: SemaphoreId,
    payer: Payer,
}

impl Limiter {
    /// Whether the enqueued tokens of a key for a model are limited.
    pub fn limits_enqueued(&self, key_sha256: &[u8; 32], model: &str) -> bool {
        self.accounts().enqueued_limit(&self.accounts().payer(key_sha256), model).is_some()
    }

    /// Waits until the jobs of a key and model leave room for a job of so many tokens, first come,
    /// first served. `None` if these tokens are not limited. A job whose estimate exceeds the whole
    /// limit takes all of it, unless it has `at_least` more tokens.
    ///
    /// # Errors
    /// [`Refused::Exhausted`] for a job that never fits, and where there is no room before the
    /// deadline; [`Refused::QueueFull`]; [`Refused::TooManyAccounts`]; [`Refused::StoreUnavailable`].
    pub async fn reserve_enqueued(
        self: &Arc<Self>,
        key_sha256: &[u8; 32],
        model: &str,
        tokens: u64,
        at_least: u64,
        deadline: Instant,
    ) -> Result<Option<EnqueuedTokens>, Refused> {
        let payer = self.accounts().payer(key_sha256);
        let Some(Planned { limit, .. }) = self.accounts().enqueued_limit(&payer, model) else {
            return Ok(None);
        };
        let limit = limit.min(MAX_TOKENS);
        if limit == 0 {
            let kind = Some(QuotaKind::EnqueuedTokens);
            return Err(Exhausted::NoQuota { kind }.into());
        }
        let fits = |limit: u64| match at_least > limit {
            true => {
                let (kind, cost) = (QuotaKind::EnqueuedTokens, at_least);
                Err(Exhausted::TooLarge { kind, cost, limit })
            }
            false => Ok(()),
        };
        fits(limit)?;
        let as_permits = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        let semaphore_id = SemaphoreId::enqueued(&payer, model);
        self.make_room(&semaphore_id).await?;
        let (semaphore, _) = self.store().register(semaphore_id.clone(), as_permits(limit)).await?;
        // Another replica's may be lower.
        let limit = semaphore.usage().limit as u64;
        fits(limit)?;
        let ticket = QueueTicket::new(Arc::clone(self));
        let permits = as_permits(tokens.min(limit).max(1));
        let no_room = Refused::from(Exhausted::NoRoom { retry_after: RETRY_AFTER });
        match timeout_at(deadline, ticket.acquire_many(&semaphore, permits)).await {
            Ok(Ok(permit)) => Ok(Some(EnqueuedTokens { permit, semaphore_id, payer })),
            // A replica with a lower limit has started, or the semaphore was empty and forgotten.
            Ok(Err(Refused::MoreThanLimit { .. } | Refused::SemaphoreDeleted)) | Err(_) => {
                Err(no_room)
            }
            Ok(Err(refused)) => Err(refused),
        }
    }

    /// Forgets the payers and models that hold nothing, if too many are kept.
    async fn make_room(&self, new: &SemaphoreId) -> Result<(), Refused> {
        let kept = self.store().enqueued();
        if kept.len() < MAX_KEPT || kept.iter().any(|(id, _)| id == new) {
            return Ok(());
        }
        self.store().refresh().await?;
        let mut count = kept.len();
        for (id, semaphore) in kept {
            let usage = semaphore.usage();
            if usage.in_use == 0 && usage.waiting == 0 && self.store().delete(&id).await? {
                count -= 1;
            }
        }
        if count < MAX_KEPT { Ok(()) } else { Err(Refused::TooManyAccounts) }
    }

    /// Whether any job may hold tokens.
    pub fn has_enqueued(&self) -> bool {
        !self.store().enqueued().is_empty()
    }

    /// Gives the tokens back of a job that has ended. Without effect for a job that holds none.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    pub async fn job_ended(
        &self,
        key_sha256: &[u8; 32],
        job: &str,
    ) -> Result<(), StoreUnavailable> {
        let payer = self.accounts().payer(key_sha256);
        let lease_id = lease_id(&payer, job);
        let enqueued = self.store().enqueued().into_iter();
        for (id, _) in enqueued.filter(|(id, _)| id.is_enqueued_by(&payer)) {
            // A job of another model has no lease here.
            let _ = self.store().release_lease(&id, &lease_id).await?;
        }
        Ok(())
    }

    /// The limit of the enqueued tokens of an account's model, and how many its jobs hold.
    pub fn enqueued_usage(&self, account: &Account) -> (Option<Planned>, u64) {
        // An account of one method belongs to the model before the colon.
        let model = account.model().split(':').next().unwrap_or_default();
        let planned = self.accounts().enqueued_limit(account.payer(), model);
        let own = SemaphoreId::enqueued(account.payer(), model);
        let kept =
            planned.and_then(|_| self.store().enqueued().into_iter().find(|(id, _)| *id == own));
        let Some((_, semaphore)) = kept else { return (planned, 0) };
        let usage = semaphore.usage();
        let lowest = |limit: u64| limit.min(usage.limit as u64);
        let planned = planned.map(|planned| Planned { limit: lowest(planned.limit), ..planned });
        (planned, usage.in_use as u64)
    }
}

impl EnqueuedTokens {
    /// The job was created under this name. It holds the tokens until it ends.
    pub async fn held_by(self, limiter: &Limiter, job: &str) {
        let Self { permit, semaphore_id, payer } = self;
        let terms =
            LeaseTerms { holder: "batch job".into(), permits: permit.permits(), ttl: JOB_LIFETIME };
        let id = lease_id(&payer, job).into();
        let lease = NewLease { id, semaphore_id, terms, key: None };
        if let Err(error) = limiter.store().lease(permit, lease).await {
            tracing::warn!(%error, "the tokens of a batch job are not counted");
        }
    }
}

/// The name of a job's lease. A job belongs to its payer, so that no other can end it.
fn lease_id(payer: &Payer, job: &str) -> String {
    format!("{}/{job}", payer.whole_name())
}

#[cfg(test)]
mod tests;
