//! Which blocks are claimed. Only one process may use the database, so claims are in its memory, and cost
//! no write. They end with the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::jobs::model::{JobNumber, ReplicaId};

/// The claims of a process, by job and index of the first item.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(BTreeMap<(i64, i64), Claim>);

#[derive(Debug, Clone)]
struct Claim {
    holder: Arc<str>,
    /// By the clock that is never set.
    until: Instant,
    /// Items without a result.
    unanswered: u64,
}

impl Claims {
    pub fn is_claimed(&self, job: i64, first: i64, now: Instant) -> bool {
        self.0.get(&(job, first)).is_some_and(|claim| claim.until > now)
    }

    pub fn claim(
        &mut self,
        job: i64,
        first: i64,
        holder: &ReplicaId,
        until: Instant,
        unanswered: u64,
    ) {
        let claim = Claim { holder: holder.0.as_str().into(), until, unanswered };
        self.0.insert((job, first), claim);
    }

    /// Results of items of a block came. A block without unanswered items is no longer claimed.
    pub fn answered(&mut self, job: i64, first: i64, unanswered: u64) {
        if unanswered == 0 {
            self.0.remove(&(job, first));
        } else if let Some(claim) = self.0.get_mut(&(job, first)) {
            claim.unanswered = unanswered;
        }
    }

    pub fn renew(&mut self, holder: &ReplicaId, until: Instant) -> Vec<(JobNumber, u64)> {
        let held = self.0.iter_mut().filter(|(_, claim)| *claim.holder == *holder.0);
        let held = held.map(|((job, first), claim)| {
            claim.until = until;
            (JobNumber(*job), first.cast_unsigned())
        });
        held.collect()
    }

    pub fn release(&mut self, holder: &ReplicaId, of: Option<JobNumber>) {
        self.0.retain(|(job, _), claim| {
            *claim.holder != *holder.0 || of.is_some_and(|of| of.0 != *job)
        });
    }

    pub fn release_block(&mut self, job: i64, first: i64) {
        self.0.remove(&(job, first));
    }

    /// The job was cancelled or deleted.
    pub fn end(&mut self, job: i64) {
        self.0.retain(|(claimed, _), _| *claimed != job);
    }

    /// Items without a result in claimed blocks of a job.
    pub fn unanswered(&self, job: i64) -> u64 {
        self.0.range((job, 0)..=(job, i64::MAX)).map(|(_, claim)| claim.unanswered).sum()
    }
}
