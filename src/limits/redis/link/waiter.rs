//! Requests that wait for an answer from Redis.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{LinkedSemaphore, midnight_us};
use crate::limits::budget::{Budget, NotReserved, Reservation};
use crate::limits::model::{Cost, Line, StoreUnavailable};
use crate::limits::redis::command::{Command, SemaphoreGeneration};
use crate::limits::semaphore::GrantResult;

/// A request and the receiver of its answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub since: Instant,
    pub wait: bool,
    pub request: Request,
}

#[derive(Debug)]
pub(super) enum Request {
    Permits {
        semaphore: Arc<dyn LinkedSemaphore>,
        generation: SemaphoreGeneration,
        permits: usize,
        /// Whether it is served ahead of all first requests.
        returns: bool,
        result: oneshot::Sender<GrantResult>,
    },
    Reservation {
        budget: Arc<dyn Budget>,
        account: Arc<str>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        result: oneshot::Sender<Result<Option<Reservation>, NotReserved>>,
    },
}

impl Waiter {
    /// The command that makes the request.
    pub fn command(&self, ticket: u64) -> Command {
        let Self { since, wait, .. } = *self;
        match &self.request {
            Request::Permits { generation, permits, returns, .. } => Command::RequestPermits {
                semaphore: *generation,
                ticket,
                permits: *permits,
                since,
                wait,
                returns: *returns,
            },
            Request::Reservation { account, line, cost, deadline, .. } => Command::Reserve {
                account: Arc::clone(account),
                ticket,
                cost: *cost,
                line: match line {
                    Line::Queue => "queue",
                    Line::YieldOnce => "yields_once",
                    Line::Returning => "returning",
                },
                since,
                deadline: *deadline,
                midnight_us: midnight_us(),
                wait,
            },
        }
    }

    /// The command that withdraws the request.
    pub fn cancel(&self, ticket: u64) -> Command {
        match &self.request {
            Request::Permits { generation, permits, .. } => {
                Command::CancelRequest { semaphore: *generation, ticket, permits: *permits }
            }
            Request::Reservation { account, .. } => {
                Command::CancelReserve { account: Arc::clone(account), ticket }
            }
        }
    }

    pub fn semaphore(&self) -> Option<SemaphoreGeneration> {
        match &self.request {
            Request::Permits { generation, .. } => Some(*generation),
            Request::Reservation { .. } => None,
        }
    }

    pub fn account(&self) -> Option<&Arc<str>> {
        match &self.request {
            Request::Permits { .. } => None,
            Request::Reservation { account, .. } => Some(account),
        }
    }

    /// Fails the request because the store is unavailable.
    pub fn refuse(self, reason: StoreUnavailable) {
        // The receiver may be gone.
        match self.request {
            Request::Permits { result, .. } => drop(result.send(Err(reason.into()))),
            Request::Reservation { result, .. } => drop(result.send(Err(reason.into()))),
        }
    }
}
