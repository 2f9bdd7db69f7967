//! What a link has queued, requested and received.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::LinkedBudget;
use super::waiter::Waiter;
use crate::limits::model::Cost;
use crate::limits::redis::command::{Command, SemaphoreGeneration};
use crate::limits::redis::reply::Verdict;

/// The most commands in one call of the script. Redis does nothing else meanwhile.
const MAX_COMMANDS: usize = 250;

/// The most accounts in one call of the script. Each takes Redis about 60 µs.
const MAX_ACCOUNTS: usize = 32;

/// How many budgets are registered before unused ones are removed.
pub(super) const MANY_BUDGETS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct State {
    pub outbox: Vec<Outgoing>,
    pub last_ticket: u64,
    /// The requests that wait for an answer by ticket, in ascending order.
    pub waiters: BTreeMap<u64, Waiter>,
    /// The permits that this process holds, by semaphore.
    pub held: BTreeMap<SemaphoreGeneration, usize>,
    /// What this process has reserved and not sent, by account.
    pub reserved: BTreeMap<Arc<str>, Cost>,
    pub budgets: BTreeMap<Arc<str>, Weak<dyn LinkedBudget>>,
    /// The number of budgets at which unused ones are removed.
    pub sweep_at: usize,
    /// The data set that this process is a member of, as Redis names it.
    pub lineage: Option<Arc<str>>,
}

/// A command in the outbox.
#[derive(Debug)]
pub(in crate::limits::redis) struct Outgoing {
    pub command: Command,
    pub result: Option<ResultSender>,
}

impl Outgoing {
    pub fn without_result(command: Command) -> Self {
        Self { command, result: None }
    }
}

/// Receives the result of a command; `None` if the script returned none.
pub(in crate::limits::redis) type ResultSender = oneshot::Sender<Option<Box<RawValue>>>;

/// How many commands of the outbox go into the next call.
pub(super) fn commands_of_next_call(outbox: &[Outgoing]) -> usize {
    let mut accounts = BTreeSet::new();
    let first_beyond = outbox.iter().take(MAX_COMMANDS).position(|outgoing| {
        accounts.extend(outgoing.command.account());
        accounts.len() > MAX_ACCOUNTS
    });
    first_beyond.unwrap_or(outbox.len().min(MAX_COMMANDS))
}

impl State {
    pub fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Counts what this process has received.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Granted { semaphore, permits } => {
                *self.held.entry(*semaphore).or_default() += permits;
            }
            Verdict::Reserved { account, cost } => {
                *self.reserved.entry(Arc::clone(account)).or_default() += *cost;
            }
            _ => {}
        }
    }

    /// The budgets of which something is reserved or requested here.
    pub fn budgets_in_use(&self) -> Vec<(Arc<str>, Arc<dyn LinkedBudget>)> {
        let requested = self.waiters.values().filter_map(Waiter::account);
        let accounts: BTreeSet<_> = requested.chain(self.reserved.keys()).collect();
        let budget = |account: &Arc<str>| {
            let budget = self.budgets.get(account).and_then(Weak::upgrade)?;
            Some((Arc::clone(account), budget))
        };
        accounts.into_iter().filter_map(budget).collect()
    }

    pub fn release(&mut self, semaphore: SemaphoreGeneration, permits: usize) {
        let held = self.held.entry(semaphore).or_default();
        *held = held.saturating_sub(permits);
        if *held == 0 {
            self.held.remove(&semaphore);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_is_bounded_in_commands_and_in_accounts() {
        let outgoing = Outgoing::without_result;
        let refresh = |n: u64| outgoing(Command::Refresh { semaphore: n });
        let prove = |n: u64| outgoing(Command::ProveBudget { account: n.to_string().into() });
        let outbox = |each: &dyn Fn(u64) -> Outgoing| -> Vec<_> { (0..1000).map(each).collect() };
        assert_eq!(commands_of_next_call(&[]), 0);
        assert_eq!(commands_of_next_call(&outbox(&refresh)), MAX_COMMANDS);
        assert_eq!(commands_of_next_call(&outbox(&|n| prove(n % 5))), MAX_COMMANDS);
        assert_eq!(commands_of_next_call(&outbox(&prove)), MAX_ACCOUNTS);
        let mixed = outbox(&|n| if n % 2 == 0 { refresh(n) } else { prove(n) });
        assert_eq!(commands_of_next_call(&mixed), 2 * MAX_ACCOUNTS + 1);
    }
}
