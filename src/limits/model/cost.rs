//! What a call costs.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Index, IndexMut, SubAssign};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Exhausted;
use super::quota::{RESOURCE_COUNT, Resource};

/// More than any call costs of any resource. Sums below it cannot overflow.
const MOST: u64 = 1 << 32;

/// What one or several calls cost: an amount of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost([u64; RESOURCE_COUNT]);

impl Cost {
    /// A call that counts as one request of `tokens` input tokens.
    pub const fn one(tokens: u64) -> Self {
        Self::of(1, tokens)
    }

    /// A number of requests with a number of input tokens together.
    pub const fn of(requests: u64, tokens: u64) -> Self {
        let mut amounts = [0; RESOURCE_COUNT];
        amounts[Resource::Requests as usize] = requests;
        amounts[Resource::InputTokens as usize] = tokens;
        Self(amounts)
    }

    /// This cost with another amount of one resource.
    #[must_use]
    pub fn with(mut self, resource: Resource, amount: u64) -> Self {
        self[resource] = amount;
        self
    }

    /// The amount of each resource.
    pub fn iter(self) -> impl Iterator<Item = (Resource, u64)> {
        Resource::ALL.into_iter().zip(self.0)
    }

    /// The cost limited to what can be counted, with at least one request.
    pub(in crate::limits) fn bounded(self) -> Self {
        let bounded = Self(self.0.map(Self::bounded_amount));
        bounded.with(Resource::Requests, bounded[Resource::Requests].max(1))
    }

    /// An amount limited to what can be counted.
    pub(in crate::limits) fn bounded_amount(amount: u64) -> u64 {
        amount.min(MOST)
    }

    /// Subtracts each amount, down to zero.
    pub(in crate::limits) fn saturating_sub(mut self, less: Self) -> Self {
        for (own, less) in self.0.iter_mut().zip(less.0) {
            *own = own.saturating_sub(less);
        }
        self
    }
}

impl Index<Resource> for Cost {
    type Output = u64;

    fn index(&self, resource: Resource) -> &u64 {
        &self.0[resource as usize]
    }
}

impl IndexMut<Resource> for Cost {
    fn index_mut(&mut self, resource: Resource) -> &mut u64 {
        &mut self.0[resource as usize]
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Self) {
        for (own, more) in self.0.iter_mut().zip(more.0) {
            *own += more;
        }
    }
}

impl SubAssign for Cost {
    fn sub_assign(&mut self, less: Self) {
        for (own, less) in self.0.iter_mut().zip(less.0) {
            *own -= less;
        }
    }
}

/// As a map from resource names to amounts, without amounts of zero.
impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let amounts = self.iter().filter(|(_, amount)| *amount > 0);
        serializer.collect_map(amounts.map(|(resource, amount)| (resource.key(), amount)))
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let amounts = BTreeMap::<String, u64>::deserialize(deserializer)?;
        let amount = |resource: Resource| amounts.get(resource.key()).copied().unwrap_or_default();
        Ok(Self(Resource::ALL.map(amount)))
    }
}

/// What a call is expected to cost, and what it costs at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// What is reserved.
    pub cost: Cost,
    /// The lowest number of input tokens that it can cost. Only this decides that a call is too large:
    /// the expected number may come from earlier calls and be wrong for another kind of text.
    pub at_least: u64,
}

impl Estimate {
    /// What to reserve instead of a `cost` that was refused for this reason: a whole window's tokens,
    /// if the cost was more and the call may cost that little.
    ///
    /// # Errors
    /// The reason, if nothing else can be reserved.
    pub(in crate::limits) fn within(
        self,
        reason: Exhausted,
        cost: Cost,
    ) -> Result<Cost, Exhausted> {
        match reason {
            Exhausted::TooLarge { kind, limit, .. }
                if kind.resource() == Resource::InputTokens
                    && self.at_least <= limit
                    && limit < cost[Resource::InputTokens] =>
            {
                Ok(cost.with(Resource::InputTokens, limit))
            }
            reason => Err(reason),
        }
    }
}

impl From<Cost> for Estimate {
    /// An estimate of a call whose cost is certain.
    fn from(cost: Cost) -> Self {
        Self { cost, at_least: cost[Resource::InputTokens] }
    }
}
