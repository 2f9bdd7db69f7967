//! What calls are expected to cost in money, learned from what earlier ones have cost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CallKind;
use crate::gemini::{TokenEstimator, Usage};
use crate::limits::Account;
use crate::prices::{ChargedTokens, NanoDollars, PriceTier, Prices};

/// The output that is expected of the first call of a kind, in tokens.
const FIRST_OUTPUT: u64 = 1_000;

/// How much of the mean deviation is added to the mean. Errors of many calls cancel out, and what is
/// reserved in excess delays others until the call is answered.
const MARGIN: f64 = 0.25;

/// The most that one call teaches, in billionths of a dollar: 1,000 dollars. Sums stay exact.
const MOST: f64 = 1e12;

/// What is learned from the calls of one account. It is kept with the account, so that no key can teach
/// another one's.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// The cost of a character, in tokens.
    pub tokens: TokenEstimator,
    /// What calls cost beyond their input at the standard price, for each kind.
    beyond_input: Mutex<HashMap<CallKind, Average>>,
}

/// A moving average with its mean deviation, as for the round-trip time in TCP (RFC 6298, section 2).
#[derive(Debug, Clone, Copy)]
struct Average {
    mean: f64,
    deviation: f64,
}

/// Estimates what the calls of one account cost. Only for accounts whose payer has a limit on its spend.
#[derive(Debug)]
pub(super) struct SpendEstimator {
    account: Arc<Account>,
    prices: Arc<Prices>,
    kind: CallKind,
}

impl Learned {
    fn beyond_input(&self) -> MutexGuard<'_, HashMap<CallKind, Average>> {
        self.beyond_input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpendEstimator {
    /// An estimator for calls of a kind; `None` if the payer may spend any amount.
    pub fn new(account: &Arc<Account>, prices: &Arc<Prices>, kind: CallKind) -> Option<Self> {
        let (account, prices) = (Arc::clone(account), Arc::clone(prices));
        account.counts_spend().then_some(Self { account, prices, kind })
    }

    /// What a call with so many tokens of input is expected to cost, in billionths of a dollar: the
    /// mean of earlier calls of its kind, and a margin. At least 1, also without input, since what costs
    /// nothing is not settled; 0 if the model's price is unknown.
    ///
    /// What a call costs beyond its input depends on its output, on its tier and on what is cached. Of
    /// these, nothing is known before.
    pub fn estimate(&self, learned: &Learned, input: u64) -> u64 {
        if !self.prices.knows(self.account.charged().model()) {
            return 0;
        }
        let known = learned.beyond_input().get(&self.kind).copied();
        let output = if known.is_some() { 0 } else { FIRST_OUTPUT };
        let NanoDollars(cost) = self.standard(input, output);
        let Some(Average { mean, deviation }) = known else { return cost.max(1) };
        // The conversion cuts off fractions and negative numbers.
        ((cost as f64 + mean + MARGIN * deviation) as u64).max(1)
    }

    /// Learns from the usage that Gemini reports for a call.
    pub fn learn(&self, learned: &Learned, usage: Usage) {
        let NanoDollars(input) = self.standard(usage.charged().input, 0);
        let beyond = (usage.cost.0 as f64 - input as f64).clamp(-MOST, MOST);
        let mut all = learned.beyond_input();
        let average =
            all.entry(self.kind).or_insert(Average { mean: beyond, deviation: beyond.abs() / 2.0 });
        let error = beyond - average.mean;
        average.mean += error / 8.0;
        average.deviation += (error.abs() - average.deviation) / 4.0;
    }

    /// The cost of so many tokens in the standard tier of the model that is charged.
    fn standard(&self, input: u64, output: u64) -> NanoDollars {
        let charged = self.account.charged();
        let tokens = ChargedTokens { input, cached_input: 0, output };
        self.prices.estimate(charged.model(), PriceTier::Standard, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Limit, LimitScope, Limiter, Limits, QuotaKind, QuotaPlan};

    fn estimator(model: &str) -> SpendEstimator {
        let mut plan = QuotaPlan::default();
        let limits =
            Limits::default().with(QuotaKind::SpendPerTenMinutes, Limit::AtMost(10_000_000_000));
        plan.add_limits(LimitScope { label: None, model: None }, limits).unwrap();
        let limiter = Limiter::new(1, 1, plan);
        let account = limiter.accounts().of(&[7; 32], &model.into());
        SpendEstimator::new(&account, &Arc::default(), CallKind::Chat).unwrap()
    }

    fn usage(cost: u64) -> Usage {
        Usage { prompt_tokens: 1000, cost: NanoDollars(cost), ..Usage::default() }
    }

    #[test]
    fn the_first_call_is_expected_to_have_a_thousand_tokens_of_output() {
        let (estimator, learned) = (estimator("gemini-3.8-flash"), Learned::default());
        assert_eq!(estimator.estimate(&learned, 1000), 1000 * 750 + 1000 * 3750);
    }

    #[test]
    fn the_estimate_is_above_the_mean_of_earlier_calls_and_follows_them() {
        let (estimator, learned) = (estimator("gemini-3.8-flash"), Learned::default());
        for at in 0..200 {
            estimator.learn(&learned, usage(750_000 + if at % 2 == 0 { 100_000 } else { 300_000 }));
        }
        let estimate = estimator.estimate(&learned, 1000);
        assert!((950_000..1_050_000).contains(&estimate), "{estimate}");
        for _ in 0..200 {
            estimator.learn(&learned, usage(375_000));
        }
        let estimate = estimator.estimate(&learned, 1000);
        assert!((375_000..376_000).contains(&estimate), "cheaper than standard input: {estimate}");
    }

    #[test]
    fn absurd_costs_give_a_finite_estimate_that_is_forgotten_again() {
        let (estimator, learned) = (estimator("gemini-3.8-flash"), Learned::default());
        estimator.learn(&learned, usage(u64::MAX));
        assert!(estimator.estimate(&learned, 1000) <= 2_000_000_000_000);
        estimator.learn(&learned, usage(0));
        for _ in 0..500 {
            estimator.learn(&learned, usage(750_000));
        }
        let estimate = estimator.estimate(&learned, 1000);
        assert!((750_000..751_000).contains(&estimate), "{estimate}");
    }

    #[test]
    fn a_call_without_input_is_expected_to_cost_its_output() {
        let (estimator, learned) = (estimator("gemini-3.8-flash"), Learned::default());
        for _ in 0..200 {
            estimator.learn(&learned, usage(950_000));
        }
        let estimate = estimator.estimate(&learned, 0);
        assert!((200_000..210_000).contains(&estimate), "{estimate}");
        for _ in 0..200 {
            estimator.learn(&learned, usage(375_000));
        }
        assert_eq!(estimator.estimate(&learned, 0), 1, "it is counted when it is settled");
    }

    #[test]
    fn a_model_without_a_price_is_free_and_an_account_without_a_limit_needs_no_estimate() {
        let (estimator, learned) = (estimator("unknown"), Learned::default());
        estimator.learn(&learned, usage(5));
        assert_eq!(estimator.estimate(&learned, 1000), 0);
        let limiter = Limiter::new(1, 1, QuotaPlan::default());
        let account = limiter.accounts().of(&[7; 32], &"gemini-3.8-flash".into());
        assert!(SpendEstimator::new(&account, &Arc::default(), CallKind::Chat).is_none());
    }
}
