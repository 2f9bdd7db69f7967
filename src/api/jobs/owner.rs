//! Whose job it is, and who may see it.

use http::request::Parts;

use crate::api::auth::{Caller, Purpose, Tier};
use crate::api::credentials::Credentials;
use crate::api::error::ApiError;
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::jobs::{Change, Job, JobId, JobNumber, Owner};

/// The sender of a request about jobs.
#[derive(Debug, Clone)]
pub(crate) enum Viewer {
    /// The administrator, who sees all jobs.
    Admin,
    /// A caller with a key of their own, who sees the jobs that this key pays for.
    Key(ApiKey),
    /// A caller without a key, who sees the jobs of such callers, if they know their ids.
    Anybody,
}

/// Whose job a request begins, and the key that pays for it.
///
/// # Errors
/// As for [`Caller::payer`].
pub(in crate::api) fn owner(
    caller: &Caller,
    credentials: Option<&Credentials>,
    gateway: &Gateway,
) -> Result<(Owner, ApiKey), ApiError> {
    let key = caller.payer(credentials, gateway)?;
    let owner = match caller.paid_by(credentials, gateway) {
        Tier::Admin => Owner::Admin,
        Tier::Own => Owner::Key(*key.sha256()),
        Tier::Fallback => Owner::Fallback,
    };
    Ok((owner, key))
}

impl Viewer {
    /// The sender of a request.
    ///
    /// # Errors
    /// 401 without a key, where no request may do without; 400 for different keys.
    pub(super) fn of(caller: &Caller, gateway: &Gateway) -> Result<Self, ApiError> {
        if caller.is_admin() {
            return Ok(Self::Admin);
        }
        let payer = caller.relayed(Purpose::Generation, gateway)?;
        Ok(match payer.tier {
            Tier::Admin => Self::Admin,
            Tier::Own => Self::Key(payer.key),
            Tier::Fallback => Self::Anybody,
        })
    }

    /// The owner whose jobs are listed; `None` for all.
    ///
    /// # Errors
    /// 401 for callers without a key: they know their jobs by their ids alone.
    pub(super) fn listed(&self) -> Result<Option<Owner>, ApiError> {
        match self {
            Self::Admin => Ok(None),
            Self::Key(key) => Ok(Some(Owner::Key(*key.sha256()))),
            Self::Anybody => Err(ApiError::beyond_fallback()),
        }
    }

    /// The job with this id, if it is theirs.
    ///
    /// # Errors
    /// 404 if it is not, and 503 if the store is unavailable.
    pub(crate) async fn job(&self, id: &str, gateway: &Gateway) -> Result<Job, ApiError> {
        let Some(id) = JobId::parse(id) else { return Err(ApiError::unknown_job()) };
        let job = gateway.jobs.store().job(id).await?;
        job.filter(|job| self.sees(job)).ok_or_else(ApiError::unknown_job)
    }

    fn sees(&self, job: &Job) -> bool {
        match (self, &job.owner) {
            (Self::Admin, _) | (Self::Anybody, Owner::Fallback) => true,
            (Self::Key(key), Owner::Key(sha256)) => key.sha256() == sha256,
            _ => false,
        }
    }

    /// Keeps the key of a job's owner in memory, so that the job can go on.
    pub(super) fn brings_key(&self, job: &Job, gateway: &Gateway) {
        if let (Self::Key(key), Owner::Key(sha256)) = (self, &job.owner)
            && key.sha256() == sha256
        {
            gateway.jobs.hold_key(job.number, key.clone());
        }
    }
}

/// Changes a job that may have vanished meanwhile.
///
/// # Errors
/// 404 if it has; 503 if the store is unavailable.
pub(super) async fn change(
    number: JobNumber,
    change: Change,
    gateway: &Gateway,
) -> Result<Job, ApiError> {
    let changed = gateway.jobs.store().change(number, change, jiff::Timestamp::now()).await?;
    gateway.jobs.wake(number);
    changed.ok_or_else(ApiError::unknown_job)
}

/// The sender of a request.
///
/// # Errors
/// As for [`Viewer::of`].
pub(super) fn viewer(head: &Parts, gateway: &Gateway) -> Result<Viewer, ApiError> {
    Viewer::of(&Caller::of(&head.headers, head.uri.query(), gateway), gateway)
}
