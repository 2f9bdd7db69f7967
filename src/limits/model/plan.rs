//! The settings of quotas: for which keys and models, and where they come from.

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quota::{PerKind, QuotaKind, Quotas};

/// The fewest hex digits that identify a key. With 8, the chance that two of a thousand keys collide is
/// about one in nine thousand.
const LEAST_DIGITS: usize = 8;

/// A dollar in billionths.
const ONE_DOLLAR: u64 = 1_000_000_000;

/// How much longer than Google's ten minutes a payer's spend counts here: a call counts here from the
/// moment it is sent, and at Google only once it is answered. So calls that were sent evenly can be
/// counted a little closer together. The money of a call that takes longer counts from its end, here
/// too.
pub(in crate::limits) const SPEND_MARGIN: Duration = Duration::from_secs(12);

/// Stands for all models of a payer. No model has this name.
pub(in crate::limits) const EVERY_MODEL: &str = "*";

/// The settings of quotas. By default there are none, and a minute has 60 seconds.
#[derive(Debug, Clone)]
pub struct QuotaPlan {
    /// The quotas that hold if no rule does; `None` for no limits.
    pub tier: Option<Tier>,
    /// The length of a minute: 60 s, or shorter to scale a measurement down.
    pub minute: Duration,
    /// The most specific first. No scope occurs twice.
    rules: Vec<(LimitScope, Limits)>,
    labels: Vec<(KeyDigest, Arc<str>)>,
}

/// A set of quotas for each key and model, named after Google's tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// 5 requests and 25,000 input tokens a minute, 25 requests a day.
    Free,
    /// 300 requests and 1,000,000 input tokens a minute, 1,000 requests a day, 10 dollars in ten
    /// minutes.
    Tier1,
    /// 1,000 requests and 2,000,000 input tokens a minute, 10,000 requests a day, 50 dollars in ten
    /// minutes.
    Tier2,
    /// 2,000 requests and 8,000,000 input tokens a minute, 200 dollars in ten minutes.
    Tier3,
}

/// Where a limit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `GEMINI_TIER`.
    Tier,
    /// `GEMINI_LIMITS`.
    Setting,
    /// The `quotaValue` of a 429.
    Gemini,
}

/// A limit and its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// The most that may be spent. A limit of 0 admits nothing.
    pub limit: u64,
    /// Where the limit comes from.
    pub source: Source,
}

/// The quotas of a key for a model with their sources. `None`: unlimited.
pub type PlannedQuotas = PerKind<Option<Planned>>;

/// The keys and models to which a rule applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitScope {
    /// The label of the keys; `None` for every key.
    pub label: Option<Arc<str>>,
    /// The model, without `models/`; `None` for every model.
    pub model: Option<Arc<str>>,
}

/// The limits of one rule. `None`: less specific rules decide.
pub type Limits = PerKind<Option<Limit>>;

/// A rule's limit of one quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// At most this much. 0 admits nothing.
    AtMost(u64),
    /// No limit, even if the tier has one.
    Unlimited,
}

/// The first 8 to 64 hex digits of a key's SHA-256. They identify the key and are not secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyDigest {
    /// Zero after the digits.
    bytes: [u8; 32],
    digits: usize,
}

/// There is already a rule for the same keys and model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is a rule for these keys and this model already")]
pub struct RepeatedScope;

/// The digest, or another that matches the same keys, already has another label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key has another label already")]
pub struct OtherLabel;

/// The text is not the beginning of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the beginning of a SHA-256 is 8 to 64 hex digits")]
pub struct InvalidDigest;

impl Default for QuotaPlan {
    fn default() -> Self {
        Self { tier: None, minute: Duration::from_secs(60), rules: Vec::new(), labels: Vec::new() }
    }
}

/// The tokens that the batch jobs of a family of models may hold in Google's tiers 1, 2 and 3. The
/// first family whose name is part of the model's holds. Source: Gemini API docs, rate limits, as of
/// 2026-08-18.
const ENQUEUED_TOKENS: [(&str, [u64; 3]); 7] = [
    ("embedding", [500_000, 5_000_000, 10_000_000]),
    ("flash-lite-image", [2_000_000, 270_000_000, 1_000_000_000]),
    ("pro-image", [2_000_000, 270_000_000, 1_000_000_000]),
    ("flash-image", [1_000_000, 250_000_000, 750_000_000]),
    ("flash-lite", [10_000_000, 500_000_000, 1_000_000_000]),
    ("flash", [3_000_000, 400_000_000, 1_000_000_000]),
    ("pro", [5_000_000, 500_000_000, 1_000_000_000]),
];

impl QuotaPlan {
    /// The quotas for a label (if any) and a model, with their sources. For each quota, the most
    /// specific rule that sets it holds: one with label and model, then with a label, then with a
    /// model. The payer's own quotas are not among them.
    pub fn quotas(&self, label: Option<&str>, model: &str) -> PlannedQuotas {
        self.planned(label, model, |kind| !kind.is_of_payer())
    }

    /// The quotas that a label (if any) has for all its models together. Rules for single models do not
    /// set them.
    pub fn of_payer(&self, label: Option<&str>) -> PlannedQuotas {
        self.planned(label, EVERY_MODEL, QuotaKind::is_of_payer)
    }

    /// The window in which a payer's spend is counted here: ten minutes and a margin of 12 seconds, both
    /// in proportion to the minute.
    pub fn ten_minutes(&self) -> Duration {
        let seconds = 10 * 60 + SPEND_MARGIN.as_secs() as u32;
        self.minute * seconds / 60
    }

    fn planned(
        &self,
        label: Option<&str>,
        model: &str,
        is_asked: impl Fn(QuotaKind) -> bool,
    ) -> PlannedQuotas {
        let tier = self.tier.map(|tier| tier.quotas_of(model)).unwrap_or_default();
        PerKind::from_fn(|kind| {
            if !is_asked(kind) {
                return None;
            }
            let mut rules = self.rules.iter().filter(|(scope, _)| scope.covers(label, model));
            match rules.find_map(|(_, limits)| limits[kind]) {
                Some(Limit::AtMost(limit)) => Some(Planned { limit, source: Source::Setting }),
                Some(Limit::Unlimited) => None,
                None => tier[kind].map(|limit| Planned { limit, source: Source::Tier }),
            }
        })
    }

    /// The label of the key with this SHA-256, if it has one.
    pub fn label(&self, key_sha256: &[u8; 32]) -> Option<&Arc<str>> {
        let (_, label) = self.labels.iter().find(|(digest, _)| digest.covers(key_sha256))?;
        Some(label)
    }

    /// Whether some key has this label.
    pub fn has_label(&self, label: &str) -> bool {
        self.labels.iter().any(|(_, known)| **known == *label)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// [`RepeatedScope`] if there is one for the same label and model.
    pub fn add_limits(&mut self, scope: LimitScope, limits: Limits) -> Result<(), RepeatedScope> {
        if self.rules.iter().any(|(other, _)| *other == scope) {
            return Err(RepeatedScope);
        }
        let index =
            self.rules.partition_point(|(other, _)| other.specificity() >= scope.specificity());
        self.rules.insert(index, (scope, limits));
        Ok(())
    }

    /// Gives a label to the keys whose SHA-256 begins with a digest.
    ///
    /// # Errors
    /// [`OtherLabel`] if a key could have two labels: the digest, or one that is the beginning of the
    /// other, has a different label.
    pub fn add_label(&mut self, digest: KeyDigest, label: &str) -> Result<(), OtherLabel> {
        let contradicts =
            |(other, known): &(KeyDigest, Arc<str>)| **known != *label && digest.overlaps(other);
        if self.labels.iter().any(contradicts) {
            return Err(OtherLabel);
        }
        self.labels.push((digest, label.into()));
        Ok(())
    }

    /// Gives a label to the key with this SHA-256, unless it has one.
    pub fn add_default_label(&mut self, key_sha256: &[u8; 32], label: &str) {
        if self.label(key_sha256).is_none() {
            self.labels.push((KeyDigest { bytes: *key_sha256, digits: 64 }, label.into()));
        }
    }
}

impl Tier {
    /// The quotas of each key for each model, and those of each key.
    pub fn quotas(self) -> Quotas {
        let (requests_per_minute, input_tokens_per_minute, requests_per_day, dollars) = match self {
            Self::Free => (5, 25_000, Some(25), None),
            Self::Tier1 => (300, 1_000_000, Some(1_000), Some(10)),
            Self::Tier2 => (1_000, 2_000_000, Some(10_000), Some(50)),
            Self::Tier3 => (2_000, 8_000_000, None, Some(200)),
        };
        Quotas::default()
            .with(QuotaKind::RequestsPerMinute, requests_per_minute)
            .with(QuotaKind::InputTokensPerMinute, input_tokens_per_minute)
            .with(QuotaKind::RequestsPerDay, requests_per_day)
            .with(QuotaKind::SpendPerTenMinutes, dollars.map(|dollars: u64| dollars * ONE_DOLLAR))
    }

    /// The same, with what depends on the model.
    fn quotas_of(self, model: &str) -> Quotas {
        self.quotas().with(QuotaKind::EnqueuedTokens, self.enqueued_tokens(model))
    }

    /// How many tokens the batch jobs of a model may hold; `None` for a model without a published
    /// limit.
    fn enqueued_tokens(self, model: &str) -> Option<u64> {
        let model = model.strip_prefix("gemini-")?;
        if ["tts", "live"].iter().any(|other| model.contains(other)) {
            return None;
        }
        let (_, [tier1, tier2, tier3]) =
            ENQUEUED_TOKENS.iter().find(|(family, _)| model.contains(family))?;
        match self {
            Self::Free => None,
            Self::Tier1 => Some(*tier1),
            Self::Tier2 => Some(*tier2),
            Self::Tier3 => Some(*tier3),
        }
    }

    /// The default number of concurrent calls, which is enough to use the tier's quotas.
    pub fn concurrency(self) -> usize {
        match self {
            Self::Free => 2,
            Self::Tier1 => 15,
            Self::Tier2 => 50,
            Self::Tier3 => 100,
        }
    }
}

impl PlannedQuotas {
    /// The quotas that hold when an alias is charged to this model: the lowest set by hand for either,
    /// or else this model's.
    pub(in crate::limits) fn with_alias(self, alias: Self) -> Self {
        let lowest = |own: Option<Planned>, alias: Option<Planned>| {
            let by_hand = own.into_iter().chain(alias).filter(Planned::is_by_hand);
            by_hand.min_by_key(|planned| planned.limit).or(own)
        };
        Self::from_fn(|kind| lowest(self[kind], alias[kind]))
    }

    /// The quotas that were set by hand.
    pub(in crate::limits) fn by_hand(self) -> Quotas {
        Quotas::from(Self::from_fn(|kind| self[kind].filter(Planned::is_by_hand)))
    }
}

impl Planned {
    fn is_by_hand(&self) -> bool {
        self.source == Source::Setting
    }
}

impl From<PlannedQuotas> for Quotas {
    fn from(planned: PlannedQuotas) -> Self {
        Self::from_fn(|kind| planned[kind].map(|planned| planned.limit))
    }
}

impl LimitScope {
    fn covers(&self, label: Option<&str>, model: &str) -> bool {
        (self.label.is_none() || self.label.as_deref() == label)
            && self.model.as_deref().is_none_or(|own| own == model)
    }

    /// Greater for more specific scopes.
    fn specificity(&self) -> (bool, bool) {
        (self.label.is_some(), self.model.is_some())
    }
}

impl KeyDigest {
    fn covers(&self, sha256: &[u8; 32]) -> bool {
        let whole = self.digits / 2;
        let half = self.digits.is_multiple_of(2) || self.bytes[whole] >> 4 == sha256[whole] >> 4;
        half && self.bytes[..whole] == sha256[..whole]
    }

    /// Whether one digest is the beginning of the other.
    fn overlaps(&self, other: &Self) -> bool {
        let (short, long) = if self.digits < other.digits { (self, other) } else { (other, self) };
        short.covers(&long.bytes)
    }
}

impl FromStr for KeyDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let mut bytes = [0; 32];
        if !(LEAST_DIGITS..=2 * bytes.len()).contains(&text.len()) {
            return Err(InvalidDigest);
        }
        for (index, digit) in text.chars().enumerate() {
            let digit = digit.to_digit(16).ok_or(InvalidDigest)?;
            bytes[index / 2] |= (digit as u8) << if index.is_multiple_of(2) { 4 } else { 0 };
        }
        Ok(Self { bytes, digits: text.len() })
    }
}

impl fmt::Debug for KeyDigest {
    /// Shows a part only: with the whole digest, a guessed key could be verified.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.bytes;
        write!(f, "KeyDigest({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}
