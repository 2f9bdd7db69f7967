//! A budget by brute force, which knows only the log of events.

use std::collections::HashMap;

use super::properties::Call;
use super::*;

/// An event of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Event {
    Arrived,
    Reserved,
    Cancelled,
    Exhausted(Exhausted),
    Left,
    GaveBack,
    Costs(u64),
    Refused,
    /// The quotas were changed. This concerns no call.
    Set(Quotas),
}

/// The events: time in seconds, call, event.
pub(super) type Log = Vec<(f64, usize, Event)>;

/// One quota, and what the log says is spent of it.
pub(super) struct Model<'a> {
    log: &'a [(f64, usize, Event)],
    calls: &'a [Call],
    /// The cost of a call for the quota.
    cost: fn(Cost) -> u64,
}

impl Model<'_> {
    pub(super) fn cost_of(&self, call: usize) -> u64 {
        (self.cost)(self.calls[call].cost)
    }

    /// The calls that were sent: when, and their cost as far as the log knows.
    pub(super) fn sent(&self) -> Vec<(f64, u64)> {
        let mut sent = Vec::new();
        let mut index_of = HashMap::new();
        for (at, call, event) in self.log {
            match event {
                Event::Left => {
                    index_of.insert(call, sent.len());
                    sent.push((*at, self.cost_of(*call)));
                }
                Event::Costs(actual) => {
                    let tokens = *actual;
                    let cost = self.calls[*call].cost.with(Resource::InputTokens, tokens);
                    sent[index_of[call]].1 = (self.cost)(cost);
                }
                Event::Refused => sent[index_of[call]].1 = 0,
                _ => {}
            }
        }
        sent
    }

    pub(super) fn unsent(&self) -> u64 {
        let mut unsent = 0;
        for (_, call, event) in self.log {
            match event {
                Event::Reserved => unsent += self.cost_of(*call),
                Event::Left | Event::GaveBack => unsent -= self.cost_of(*call),
                _ => {}
            }
        }
        unsent
    }

    /// What was sent within the last `seconds`.
    pub(super) fn sent_within(&self, seconds: f64, now: f64) -> u64 {
        let sent = self.sent().into_iter().filter(|(at, _)| now - at < seconds - 1e-6);
        sent.map(|(_, cost)| cost).sum()
    }

    /// Whether `cost` may be reserved, by the documented rules and not by the code.
    pub(super) fn has_room(&self, limit: u64, cost: u64, now: f64) -> bool {
        const WINDOW: f64 = 60.3;
        let unsent = self.unsent();
        if self.sent_within(WINDOW, now) + unsent + cost > limit {
            return false;
        }
        // The backlog, in seconds at the rate of the limit.
        let seconds = |amount: u64| amount as f64 * WINDOW / limit as f64;
        let (mut later, mut backlog) = (0, f64::NEG_INFINITY);
        for (at, amount) in self.sent().into_iter().rev() {
            later += amount;
            backlog = backlog.max(seconds(later) - (now - at));
        }
        if unsent > 0 {
            backlog = backlog.max(0.0) + seconds(unsent);
        }
        let burst = seconds(1).max(WINDOW / 60.0);
        let tolerance = (burst - seconds(cost)).max(0.0);
        backlog <= tolerance - (tolerance / 2.0).max(0.03) + 1e-6
    }
}

/// For each limited quota, a model of the log before `index`, and the limit.
pub(super) fn models<'a>(
    log: &'a Log,
    index: usize,
    calls: &'a [Call],
    quotas: Quotas,
) -> impl Iterator<Item = (Model<'a>, u64)> {
    let of = move |limit: Option<u64>, cost: fn(Cost) -> u64| {
        limit.map(|limit| (Model { log: &log[..index], calls, cost }, limit))
    };
    [
        of(quotas[RequestsPerMinute], |cost| cost[Resource::Requests]),
        of(quotas[InputTokensPerMinute], |cost| cost[Resource::InputTokens]),
    ]
    .into_iter()
    .flatten()
}
