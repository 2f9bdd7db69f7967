//! The kinds of quotas, as data. Everything that has a value for each kind (settings, usage, refusals,
//! the script in Redis, `/_admin/limits`) iterates over [`QuotaKind::ALL`]. So a new kind is a variant
//! here and a row in [`KINDS`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Index, IndexMut};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Requests: one for most calls, one for each text to embed.
    Requests,
    /// Tokens of the input.
    InputTokens,
    /// Generated images.
    Images,
    /// Money, in billionths of a US dollar.
    Spend,
}

/// The window of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// Any minute, as a sliding window.
    Minute,
    /// Any ten minutes, as a sliding window.
    TenMinutes,
    /// From midnight to midnight in America/Los_Angeles.
    Day,
    /// From the creation of work to its end. [`Enqueued tokens`](crate::limits::EnqueuedTokens) are
    /// kept apart from the budgets of rates.
    Outstanding,
}

/// A kind of quota: a resource and a window. Gemini counts spend for a billing account over all its
/// models, and each other kind for a project and a model (Gemini API docs, rate limits).
//
// Four bytes: after one, compilers copy seven bytes of padding as two words that overlap, which stalls a
// processor that has just written them. Admission copies a kind several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum QuotaKind {
    /// Requests in any minute.
    RequestsPerMinute,
    /// Input tokens in any minute.
    InputTokensPerMinute,
    /// Requests in a day.
    RequestsPerDay,
    /// Input tokens in a day.
    InputTokensPerDay,
    /// Generated images in any minute.
    ImagesPerMinute,
    /// Input tokens of the batch jobs that have not ended.
    EnqueuedTokens,
    /// Money in any ten minutes, over all models.
    SpendPerTenMinutes,
}

/// The properties of a kind.
struct Kind {
    kind: QuotaKind,
    resource: Resource,
    window: Window,
    /// The name in `GEMINI_LIMITS` and in Redis.
    setting: &'static str,
    /// The name in `/_admin/limits`.
    name: &'static str,
}

const fn row(
    kind: QuotaKind,
    resource: Resource,
    window: Window,
    setting: &'static str,
    name: &'static str,
) -> Kind {
    Kind { kind, resource, window, setting, name }
}

/// The number of kinds.
const KIND_COUNT: usize = 7;

/// All kinds, in the order of the variants.
const KINDS: [Kind; KIND_COUNT] = {
    use QuotaKind::*;
    use Resource::*;
    use Window::*;
    [
        row(RequestsPerMinute, Requests, Minute, "rpm", "requests_per_minute"),
        row(InputTokensPerMinute, InputTokens, Minute, "tpm", "input_tokens_per_minute"),
        row(RequestsPerDay, Requests, Day, "rpd", "requests_per_day"),
        row(InputTokensPerDay, InputTokens, Day, "tpd", "input_tokens_per_day"),
        row(ImagesPerMinute, Images, Minute, "ipm", "images_per_minute"),
        row(EnqueuedTokens, InputTokens, Outstanding, "enqueued", "enqueued_tokens"),
        row(SpendPerTenMinutes, Spend, TenMinutes, "spend", "spend_per_ten_minutes"),
    ]
};

impl QuotaKind {
    /// All kinds, in the order in which they are shown.
    pub const ALL: [Self; KIND_COUNT] = {
        let mut all = [Self::RequestsPerMinute; KIND_COUNT];
        let mut i = 0;
        while i < all.len() {
            assert!(KINDS[i].kind as usize == i, "the rows are in the order of the variants");
            all[i] = KINDS[i].kind;
            i += 1;
        }
        all
    };

    fn row(self) -> &'static Kind {
        &KINDS[self as usize]
    }

    /// The resource that it counts.
    pub fn resource(self) -> Resource {
        self.row().resource
    }

    /// The window in which it counts.
    pub fn window(self) -> Window {
        self.row().window
    }

    /// How much of its window may be sent at once, in 60ths: what a second brings of a minute's quota, and
    /// a minute of ten. Of spend, which calls are charged is known only when they are answered, so more
    /// than a second's worth has to be under way.
    pub(in crate::limits) fn burst(self) -> u32 {
        match self.window() {
            Window::TenMinutes => 6,
            Window::Minute | Window::Day | Window::Outstanding => 1,
        }
    }

    /// Its name in `GEMINI_LIMITS`, such as `rpm`.
    pub fn setting(self) -> &'static str {
        self.row().setting
    }

    /// Its name in answers, such as `requests_per_minute`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether it is counted over all models of a payer together, in a budget beside those of the
    /// models.
    pub fn is_of_payer(self) -> bool {
        self.resource() == Resource::Spend
    }

    /// The kind that counts a resource in a window, if there is one.
    pub fn of(resource: Resource, window: Window) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| (kind.resource(), kind.window()) == (resource, window))
    }

    /// The kind with this name in `GEMINI_LIMITS`.
    pub fn from_setting(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.setting() == name)
    }
}

/// The number of resources.
pub(in crate::limits) const RESOURCE_COUNT: usize = 4;

impl Resource {
    /// All resources, in the order of the variants.
    pub const ALL: [Self; RESOURCE_COUNT] =
        [Self::Requests, Self::InputTokens, Self::Images, Self::Spend];

    /// The name in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input tokens",
            Self::Images => "images",
            Self::Spend => "billionths of a dollar",
        }
    }

    /// The name in Redis.
    pub(in crate::limits) fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "tokens",
            Self::Images => "images",
            Self::Spend => "spend",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::TenMinutes => "ten minutes",
            Self::Day => "day",
            Self::Outstanding => "queue",
        })
    }
}

/// A value for each kind of quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerKind<T>([T; KIND_COUNT]);

/// The quotas of an account. `None`: unlimited. A quota of 0 admits nothing.
pub type Quotas = PerKind<Option<u64>>;

impl<T> PerKind<T> {
    /// The values of a function for each kind.
    pub fn from_fn(mut value: impl FnMut(QuotaKind) -> T) -> Self {
        Self(QuotaKind::ALL.map(&mut value))
    }

    /// All kinds with their values.
    pub fn iter(&self) -> impl Iterator<Item = (QuotaKind, &T)> + Clone {
        QuotaKind::ALL.into_iter().zip(&self.0)
    }

    /// All kinds with mutable values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (QuotaKind, &mut T)> {
        QuotaKind::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> PerKind<Option<T>> {
    /// These values with another one for a kind.
    #[must_use]
    pub fn with(mut self, kind: QuotaKind, value: impl Into<Option<T>>) -> Self {
        self[kind] = value.into();
        self
    }

    /// These values, or the other ones for kinds without a value.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            if own.is_none() {
                *own = other;
            }
        }
        self
    }

    /// Whether any kind has a value.
    pub fn is_any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }
}

impl Quotas {
    /// The first limited kind with this window.
    pub(in crate::limits) fn first_in(&self, window: Window) -> Option<QuotaKind> {
        let mut limited = self.iter().filter(|(_, limit)| limit.is_some());
        limited.find_map(|(kind, _)| (kind.window() == window).then_some(kind))
    }

    /// The lower quota of each kind.
    pub(in crate::limits) fn lower(self, other: Self) -> Self {
        Self::from_fn(|kind| self[kind].into_iter().chain(other[kind]).min())
    }

    /// These quotas, each at most that of `most`. Unlimited ones stay unlimited.
    pub(in crate::limits) fn within(self, most: Self) -> Self {
        Self::from_fn(|kind| {
            self[kind].map(|limit| most[kind].map_or(limit, |most| limit.min(most)))
        })
    }
}

impl<T> Index<QuotaKind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: QuotaKind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> IndexMut<QuotaKind> for PerKind<T> {
    fn index_mut(&mut self, kind: QuotaKind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

/// As a map from the names in `GEMINI_LIMITS`, without kinds that have no value.
impl<T: Serialize> Serialize for PerKind<Option<T>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.iter().filter_map(|(kind, value)| Some((kind, value.as_ref()?)));
        serializer.collect_map(values)
    }
}

/// From a map as [`Serialize`] writes it. Other names are skipped.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for PerKind<Option<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values = BTreeMap::<String, T>::deserialize(deserializer)?;
        Ok(Self::from_fn(|kind| values.remove(kind.setting())))
    }
}

impl Serialize for QuotaKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.setting())
    }
}

impl<'de> Deserialize<'de> for QuotaKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_setting(&name).ok_or_else(|| D::Error::custom("unknown quota kind"))
    }
}
