//! Ring buffers of the accounts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::rings::push;
use super::{AccountPoint, AccountSeries, AccountState, MAX_ACCOUNTS, Window};
use crate::limits::{PerKind, QuotaKind};

/// The memory for a point, for the test of the bound.
#[cfg(test)]
pub(super) const STORED_BYTES: usize = size_of::<Stored>();

/// The payer and the model of an account.
type Name = (Arc<str>, Arc<str>);

/// The past of all accounts.
#[derive(Debug, Default)]
pub(super) struct AccountRings(BTreeMap<Name, Rings>);

/// The past of one account.
#[derive(Debug, Default)]
struct Rings {
    hour: VecDeque<Stored>,
    day: VecDeque<Stored>,
    minute: Option<Stored>,
}

/// A point in little memory.
#[derive(Debug, Clone, Copy)]
struct Stored {
    at: Timestamp,
    millis: u32,
    concurrency_limit: u32,
    in_use: u32,
    paused: bool,
    used: PerKind<f32>,
    /// Not a number: unlimited.
    limits: PerKind<f32>,
}

impl AccountRings {
    /// Adds the states of all accounts after an interval of ten seconds. If there are too many accounts,
    /// the past of the one that is gone for the longest time is dropped.
    pub fn push(&mut self, accounts: &[AccountState], at: Timestamp, duration: Duration) {
        let day_ago = at - Window::Day.step() * Window::Day.points() as u32;
        self.0.retain(|_, rings| rings.last_at() > Some(day_ago));
        for account in accounts.iter().take(MAX_ACCOUNTS) {
            let name = (Arc::clone(&account.payer), Arc::clone(&account.model));
            if !self.0.contains_key(&name) && self.0.len() >= MAX_ACCOUNTS {
                let oldest = self.0.iter().min_by_key(|(_, rings)| rings.last_at());
                let oldest = oldest.map(|(name, _)| name.clone());
                oldest.and_then(|oldest| self.0.remove(&oldest));
            }
            self.0.entry(name).or_default().push(Stored::of(account, at, duration));
        }
    }

    /// The past of an account.
    pub fn series(&self, payer: &str, model: &str, window: Window) -> Option<AccountSeries> {
        let rings = self.0.get(&(payer.into(), model.into()))?;
        let points = match window {
            Window::Hour => &rings.hour,
            Window::Day => &rings.day,
        };
        Some(AccountSeries { window, points: points.iter().map(Stored::point).collect() })
    }
}

impl Rings {
    fn push(&mut self, point: Stored) {
        push(&mut self.hour, Window::Hour, point);
        let minute = self.minute.take().map_or(point, |minute| minute.and(&point));
        if Duration::from_millis(minute.millis.into()) < Window::Day.step() {
            self.minute = Some(minute);
        } else {
            push(&mut self.day, Window::Day, minute);
        }
    }

    fn last_at(&self) -> Option<Timestamp> {
        self.hour.back().map(|point| point.at)
    }
}

impl Stored {
    fn of(account: &AccountState, at: Timestamp, duration: Duration) -> Self {
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let usage = |kind: QuotaKind| account.quotas[kind];
        Self {
            at,
            millis: u32::try_from(duration.as_millis()).unwrap_or(u32::MAX),
            concurrency_limit: short(account.concurrency.limit),
            in_use: short(account.concurrency.in_use),
            paused: account.paused.is_some(),
            used: PerKind::from_fn(|kind| {
                usage(kind).used.saturating_add(usage(kind).reserved) as f32
            }),
            limits: PerKind::from_fn(|kind| {
                usage(kind).limit.map_or(f32::NAN, |limit| limit as f32)
            }),
        }
    }

    /// This interval and the next one together.
    fn and(&self, next: &Self) -> Self {
        Self {
            at: next.at,
            millis: self.millis.saturating_add(next.millis),
            concurrency_limit: self.concurrency_limit.min(next.concurrency_limit),
            in_use: self.in_use.max(next.in_use),
            paused: self.paused || next.paused,
            used: PerKind::from_fn(|kind| self.used[kind].max(next.used[kind])),
            limits: next.limits,
        }
    }

    fn point(&self) -> AccountPoint {
        AccountPoint {
            at: self.at,
            duration: Duration::from_millis(self.millis.into()),
            used: PerKind::from_fn(|kind| self.used[kind].into()),
            limits: PerKind::from_fn(|kind| {
                Some(f64::from(self.limits[kind])).filter(|limit| !limit.is_nan())
            }),
            concurrency_limit: self.concurrency_limit as usize,
            in_use: self.in_use as usize,
            paused: self.paused,
        }
    }
}
