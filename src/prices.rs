//! What calls cost in US dollars.
//!
//! The table in `prices/table.toml` has Google's prices on its date. A file of the operator's
//! (`GEMINI_PRICES_FILE`) overrides it model by model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde::Deserialize;

use crate::regular_file;

/// The largest file of prices, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The highest price that is accepted, in US dollars per million tokens.
const MAX_PRICE: f64 = 1e6;

/// The most unknown models that the log names.
const MAX_UNKNOWN: usize = 1000;

/// The most tokens that are charged for one count.
const MAX_TOKENS: u64 = 1 << 32;

/// An amount of money in billionths of a US dollar, the unit in which calls are charged: one token
/// costs at most some thousand of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct NanoDollars(pub u64);

impl NanoDollars {
    /// The amount in US dollars.
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The sum, or the largest amount if the sum is larger.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for NanoDollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.dollars())
    }
}

/// Google's service tiers: how soon a call is served, at which price.
///
/// Source: Gemini API, "Flex inference", "Priority inference" and "Batch API".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum PriceTier {
    /// The ordinary tier.
    #[default]
    Standard,
    /// Served when there is capacity, at half the price.
    Flex,
    /// Served first, at a higher price.
    Priority,
    /// Jobs of the Batch API, at half the price.
    Batch,
}

impl PriceTier {
    /// Its name in Gemini's format and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
            Self::Batch => "batch",
        }
    }

    /// The tier that a call can ask for by this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Standard, Self::Flex, Self::Priority].into_iter().find(|tier| tier.name() == name)
    }
}

/// The tokens that a call is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChargedTokens {
    /// Of the input, cached ones and those of tools included.
    pub input: u64,
    /// Those of the input that were read from a cache.
    pub cached_input: u64,
    /// Of the output, thoughts included.
    pub output: u64,
}

/// The prices of all known models. They can be replaced while calls are charged.
#[derive(Debug)]
pub struct Prices {
    table: RwLock<Table>,
    /// Unknown models that the log has named.
    unknown: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Clone)]
struct Table {
    updated: String,
    models: BTreeMap<String, ModelPrice>,
}

/// Why prices cannot be used, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPrices(String);

/// A price file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    updated: toml::value::Datetime,
    #[serde(default)]
    models: BTreeMap<String, ModelPrice>,
}

/// The prices of one model, in US dollars per million tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelPrice {
    input: f64,
    output: f64,
    cached_input: Option<f64>,
    flex: Option<Price>,
    priority: Option<Price>,
    long: Option<LongPrice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    input: f64,
    output: f64,
}

/// The prices of a call with a long input.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongPrice {
    /// The input is long if it has more tokens than this.
    above: u64,
    input: f64,
    output: f64,
}

impl Default for Prices {
    /// Google's prices, from the table in the code.
    fn default() -> Self {
        Table::googles().into()
    }
}

impl Prices {
    /// Google's prices, overridden by those in a file.
    ///
    /// # Errors
    /// [`InvalidPrices`] if the file cannot be read, is larger than a megabyte, or is wrong.
    pub fn with_file(path: &Path) -> Result<Self, InvalidPrices> {
        let text = regular_file::read(path, MAX_FILE)
            .map_err(|error| InvalidPrices(format!("the file cannot be read: {error}")))?
            .ok_or_else(|| InvalidPrices("the file is larger than a megabyte".to_owned()))?;
        let text = String::from_utf8(text)
            .map_err(|_| InvalidPrices("the file is not text in UTF-8".to_owned()))?;
        let own = Table::parse(&text)?;
        let mut table = Table::googles();
        table.models.extend(own.models);
        table.updated = own.updated;
        Ok(table.into())
    }

    /// Takes over other prices, for calls that are charged from now on.
    pub fn replace(&self, other: &Self) {
        let table = other.table().clone();
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// The date of the prices, such as `2026-11-27`.
    pub fn updated(&self) -> String {
        self.table().updated.clone()
    }

    /// What a call costs. Nothing if the model's prices are unknown, which the log reports once for
    /// each model.
    pub fn cost(&self, model: &str, tier: PriceTier, tokens: ChargedTokens) -> NanoDollars {
        let table = self.table();
        match table.price_of(model) {
            Some(price) => price.cost(tier, tokens),
            None => {
                drop(table);
                self.warn_unknown(model);
                NanoDollars::default()
            }
        }
    }

    /// Whether the prices of a model are known.
    pub fn knows(&self, model: &str) -> bool {
        self.table().price_of(model).is_some()
    }

    /// What so many tokens of input and output are expected to cost: like [`Prices::cost`], but an
    /// unknown model is not logged.
    pub fn estimate(&self, model: &str, tier: PriceTier, tokens: ChargedTokens) -> NanoDollars {
        self.table().price_of(model).map(|price| price.cost(tier, tokens)).unwrap_or_default()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn_unknown(&self, model: &str) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < MAX_UNKNOWN && !unknown.contains(model) {
            unknown.insert(model.to_owned());
            tracing::warn!(model, "the price of this model is unknown; its calls count as free");
        }
    }
}

impl From<Table> for Prices {
    fn from(table: Table) -> Self {
        Self { table: RwLock::new(table), unknown: Mutex::default() }
    }
}

impl Table {
    /// Google's prices, from the table in the code.
    fn googles() -> Self {
        Self::parse(include_str!("prices/table.toml")).expect("a test reads the table")
    }

    fn parse(text: &str) -> Result<Self, InvalidPrices> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            InvalidPrices(format!("{place}{message}"))
        })?;
        for (model, price) in &file.models {
            if let Some(wrong) = price.all().find(|price| !(0.0..=MAX_PRICE).contains(price)) {
                let reason = format!("{model}: {wrong} is not a price from 0 to {MAX_PRICE}");
                return Err(InvalidPrices(reason));
            }
        }
        Ok(Self { updated: file.updated.to_string(), models: file.models })
    }

    /// The prices of a model, or of the one that it is a numbered version of, such as `-001`.
    fn price_of(&self, model: &str) -> Option<&ModelPrice> {
        let unversioned = || {
            let (name, version) = model.rsplit_once('-')?;
            let is_version = version.len() == 3 && version.bytes().all(|b| b.is_ascii_digit());
            is_version.then(|| self.models.get(name)).flatten()
        };
        self.models.get(model).or_else(unversioned)
    }
}

impl ModelPrice {
    fn all(&self) -> impl Iterator<Item = f64> {
        let tiers =
            self.flex.iter().chain(&self.priority).flat_map(|tier| [tier.input, tier.output]);
        let long = self.long.iter().flat_map(|long| [long.input, long.output]);
        [self.input, self.output].into_iter().chain(self.cached_input).chain(tiers).chain(long)
    }

    fn cost(&self, tier: PriceTier, tokens: ChargedTokens) -> NanoDollars {
        let [input, cached, output] =
            [tokens.input, tokens.cached_input.min(tokens.input), tokens.output]
                .map(|count| count.min(MAX_TOKENS));
        let (standard_input, standard_output) = match self.long {
            Some(long) if input > long.above => (long.input, long.output),
            _ => (self.input, self.output),
        };
        let [input_factor, output_factor] = self.factors(tier);
        let input_price = standard_input * input_factor;
        // The price of cached tokens changes with the price of all others.
        let cached_share = self.cached_input.map_or(1.0, |cached| ratio(cached, self.input));
        let dollars_per_million = (input - cached) as f64 * input_price
            + cached as f64 * input_price * cached_share
            + output as f64 * standard_output * output_factor;
        // A dollar per million tokens is a thousand billionths of a dollar per token.
        NanoDollars((dollars_per_million * 1000.0).round() as u64)
    }

    /// The price of a tier as a multiple of the standard price, for input and for output.
    fn factors(&self, tier: PriceTier) -> [f64; 2] {
        let named = match tier {
            PriceTier::Standard => return [1.0, 1.0],
            PriceTier::Batch => return [0.5, 0.5],
            PriceTier::Flex => self.flex.ok_or(0.5),
            PriceTier::Priority => self.priority.ok_or(1.8),
        };
        match named {
            Ok(price) => [ratio(price.input, self.input), ratio(price.output, self.output)],
            Err(usual) => [usual, usual],
        }
    }
}

/// How much of `whole` is `part`; all of it if both are nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input: u64, cached_input: u64, output: u64) -> ChargedTokens {
        ChargedTokens { input, cached_input, output }
    }

    fn dollars(model: &str, tier: PriceTier, tokens: ChargedTokens) -> f64 {
        Prices::default().cost(model, tier, tokens).dollars()
    }

    #[test]
    fn a_call_costs_its_input_and_output_at_the_prices_of_its_tier() {
        let million = tokens(1_000_000, 0, 1_000_000);
        for (tier, cost) in [
            (PriceTier::Standard, 4.5),
            (PriceTier::Flex, 2.25),
            (PriceTier::Priority, 8.1),
            (PriceTier::Batch, 2.25),
        ] {
            assert!((dollars("gemini-3.8-flash", tier, million) - cost).abs() < 1e-9, "{tier:?}");
        }
        assert_eq!(
            Prices::default().cost("gemini-3.8-flash", PriceTier::Standard, tokens(1, 0, 1)).0,
            4500
        );
    }

    #[test]
    fn cached_input_is_cheaper() {
        let cost = dollars("gemini-3.8-flash", PriceTier::Standard, tokens(1_000_000, 400_000, 0));
        assert!((cost - (0.6 * 0.75 + 0.4 * 0.075)).abs() < 1e-9, "{cost}");
        let cost = dollars("gemini-3.8-flash", PriceTier::Flex, tokens(1_000_000, 1_000_000, 0));
        assert!((cost - 0.0375).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn a_long_input_has_its_own_prices() {
        let model = "gemini-3.1-pro-preview";
        let cost = |input| dollars(model, PriceTier::Standard, tokens(input, 0, 1_000_000));
        assert!((cost(200_000) - (0.2 * 2.0 + 12.0)).abs() < 1e-9);
        assert!((cost(200_001) - (0.200_001 * 4.0 + 18.0)).abs() < 1e-9);
    }

    #[test]
    fn a_numbered_version_costs_what_its_model_costs_and_other_models_nothing() {
        let million = tokens(1_000_000, 0, 0);
        assert!(dollars("gemini-3.8-flash-001", PriceTier::Standard, million) > 0.0);
        for unknown in ["gemini-3.8-flash-x01", "gemini-9", "", "-001"] {
            assert_eq!(dollars(unknown, PriceTier::Standard, million), 0.0, "{unknown}");
        }
    }

    #[test]
    fn absurd_counts_give_a_finite_cost() {
        let prices = Prices::default();
        let cost = prices.cost(
            "gemini-3-pro-image",
            PriceTier::Priority,
            tokens(u64::MAX, u64::MAX, u64::MAX),
        );
        assert!(cost < NanoDollars(u64::MAX), "{cost}");
        assert_eq!(cost.saturating_add(NanoDollars(u64::MAX)), NanoDollars(u64::MAX));
    }

    #[test]
    fn a_file_overrides_the_table_model_by_model() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let own =
            "updated = 2027-01-01\n[models.\"gemini-3.8-flash\"]\ninput = 1.5\noutput = 7.5\n";
        std::fs::write(&file, own).unwrap();
        let prices = Prices::with_file(file.path()).unwrap();
        let million = tokens(1_000_000, 0, 1_000_000);
        assert_eq!(prices.cost("gemini-3.8-flash", PriceTier::Standard, million).dollars(), 9.0);
        assert_eq!(prices.cost("gemini-3.8-flash", PriceTier::Flex, million).dollars(), 4.5);
        assert!(prices.cost("gemini-3.5-flash-lite", PriceTier::Standard, million).dollars() > 0.0);
        assert_eq!(prices.updated(), "2027-01-01");
        prices.replace(&Prices::default());
        assert!(prices.cost("gemini-3.8-flash", PriceTier::Standard, million).dollars() < 9.0);
        assert_eq!(prices.updated(), Prices::default().updated());
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let message = |text: &str| Table::parse(text).unwrap_err().to_string();
        let head = "updated = 2027-01-01\n[models.a]\n";
        assert!(message(&format!("{head}input = 1\noutput = \"x\"\n")).starts_with("line 4: "));
        assert!(
            message(&format!("{head}input = 1\noutput = 1\nprice = 2\n")).starts_with("line 5: ")
        );
        assert_eq!(
            message(&format!("{head}input = -1\noutput = 1\n")),
            "a: -1 is not a price from 0 to 1000000"
        );
        assert!(message(&format!("{head}input = nan\noutput = 1\n")).contains("NaN"));
        let missing = Prices::with_file(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(missing.starts_with("the file cannot be read: "), "{missing}");
    }
}
