//! Claims whose outcome nobody learned: the connection broke, or the caller went away. The database may
//! hold them for this replica, which would renew them for ever, so they are given back when it renews.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::jobs::model::ReplicaId;

/// How many are remembered. Only a claim that reached the database matters.
const MAX_KEPT: usize = 4096;

/// Numbers of lost claims.
#[derive(Debug, Default)]
pub(super) struct LostClaims(Mutex<VecDeque<(ReplicaId, i64)>>);

/// A claim that is being made. It is lost when it is dropped, unless it [was received](Self::received).
#[derive(Debug)]
pub(super) struct ClaimInProgress {
    lost: Arc<LostClaims>,
    claim: Option<(ReplicaId, i64)>,
    number: i64,
}

impl LostClaims {
    pub fn begin(self: &Arc<Self>, replica: &ReplicaId) -> ClaimInProgress {
        let number = fastrand::i64(..);
        let claim = Some((replica.clone(), number));
        ClaimInProgress { lost: Arc::clone(self), claim, number }
    }

    /// The lost claims of a process. They stay: the database may make one of them yet.
    pub fn of(&self, replica: &ReplicaId) -> Vec<i64> {
        let lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.iter().filter(|(holder, _)| holder == replica).map(|(_, claim)| *claim).collect()
    }
}

impl ClaimInProgress {
    pub fn number(&self) -> i64 {
        self.number
    }

    pub fn received(mut self) {
        self.claim = None;
    }
}

impl Drop for ClaimInProgress {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let mut lost = self.lost.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.len() >= MAX_KEPT {
            lost.pop_front();
        }
        lost.push_back(claim);
    }
}
