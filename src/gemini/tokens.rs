//! Estimates the tokens of an input before Gemini counts them.

use std::iter::Sum;
use std::ops::{Add, RangeInclusive};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The default length of a token of ASCII text in bytes. Google says about 4.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The uncertainty of the two defaults: the square of a relative error of 50 %.
const DEFAULT_VARIANCE: f64 = 0.25;

/// How much texts of one kind differ from each other: the square of 20 %.
const TEXT_VARIANCE: f64 = 0.04;

/// How much uncertainty each call adds. With [`TEXT_VARIANCE`], about the last 30 calls count.
const DRIFT: f64 = 4e-5;

/// The size in tokens below which a text says less about others.
const SMALL_TEXT: f64 = 100.0;

/// The range of the learned ratio to the default: a token for 16 ASCII characters to one for each, and a
/// token for 4 other characters to 4 for each.
const RATIOS: RangeInclusive<f64> = 0.25..=4.0;

/// The lowest possible cost in relation to the default, for ASCII and for other text: a token for 8 ASCII
/// characters, or for 4 others.
const LEAST_RATIO: [f64; 2] = [0.5, 0.25];

/// A call whose cost differs from the expected one by more than this factor teaches no more than one that
/// differs by exactly this factor.
const OUTLIER: f64 = 2.0;

/// The features of an input that determine its number of tokens. Features of several inputs add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputFeatures {
    /// Bytes that are ASCII characters.
    pub ascii_bytes: u64,
    /// Characters that are not ASCII.
    pub other_chars: u64,
    /// The approximate tokens of its images, audio, video and documents.
    pub media_tokens: u64,
    /// Whether a part is stored elsewhere, such as in a cache or a file, so that its cost is
    /// unknown.
    pub has_unseen: bool,
}

/// Learns the cost of texts for one key and one model from Gemini's counts. The defaults are fixed: no
/// key can change what another one starts with.
///
/// The defaults are a token for every 4 ASCII bytes and one for every other character. A Kalman filter
/// tracks how far off both are, so that code and Japanese are learned separately even if each text has
/// both. Estimates err high by an eighth of the usual error of one call, 0.5 % to 5 %. So the calls of a
/// minute, a hundred or more, together seldom cost more than estimated: the relative error of their sum
/// is less than a tenth of one call's.
#[derive(Debug, Default)]
pub struct TokenEstimator(Mutex<Learned>);

#[derive(Debug)]
struct Learned {
    /// Tokens per default token, of ASCII and of other text.
    ratio: [f64; 2],
    /// The variances of the relative errors of `ratio`, and their covariance.
    variance: [f64; 2],
    covariance: f64,
    /// The mean square of the relative error of an estimate.
    error: f64,
}

impl InputFeatures {
    /// The features of a text.
    pub fn of(text: &str) -> Self {
        let count = |is: fn(u8) -> bool| text.bytes().filter(|byte| is(*byte)).count() as u64;
        // UTF-8: the other bytes continue a character.
        Self {
            ascii_bytes: count(|byte| byte < 0x80),
            other_chars: count(|byte| byte >= 0xC0),
            ..Self::default()
        }
    }

    fn default_tokens(self) -> [f64; 2] {
        [self.ascii_bytes as f64 / BYTES_PER_TOKEN, self.other_chars as f64]
    }
}

impl Add for InputFeatures {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ascii_bytes: self.ascii_bytes.saturating_add(other.ascii_bytes),
            other_chars: self.other_chars.saturating_add(other.other_chars),
            media_tokens: self.media_tokens.saturating_add(other.media_tokens),
            has_unseen: self.has_unseen || other.has_unseen,
        }
    }
}

impl Sum for InputFeatures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl TokenEstimator {
    /// The estimated tokens of an input, with a small margin.
    pub fn estimate(&self, features: InputFeatures) -> u64 {
        let learned = self.learned();
        let margin = (learned.error.sqrt() / 8.0).clamp(0.005, 0.05);
        let text = (learned.expected(features.default_tokens()) * (1.0 + margin)).ceil() as u64;
        text.saturating_add(features.media_tokens)
    }

    /// The fewest tokens that the text of an input can have, whatever was learned from others.
    pub fn at_least(&self, features: InputFeatures) -> u64 {
        let [ascii, other] = features.default_tokens();
        let least = ascii * LEAST_RATIO[0] + other * LEAST_RATIO[1];
        (least.floor() as u64).min(self.estimate(features))
    }

    /// Learns from a text with these features that cost `actual` tokens, `cached` of which were
    /// cached. Inputs with media or with content stored elsewhere are ignored, since their share of
    /// the cost is unknown. Cached tokens may or may not belong to the text, so an estimate that
    /// differs by no more than these counts as correct.
    pub fn learn(&self, features: InputFeatures, actual: u64, cached: u64) {
        if features.media_tokens > 0 || features.has_unseen {
            return;
        }
        let mut learned = self.learned();
        let default_tokens = features.default_tokens();
        let [least, most] = [actual.saturating_sub(cached), actual].map(|tokens| tokens as f64);
        let actual = learned.expected(default_tokens).clamp(least, most);
        learned.learn(default_tokens, actual);
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            ratio: [1.0; 2],
            variance: [DEFAULT_VARIANCE; 2],
            covariance: 0.0,
            error: TEXT_VARIANCE,
        }
    }
}

impl Learned {
    fn expected(&self, default_tokens: [f64; 2]) -> f64 {
        self.ratio[0] * default_tokens[0] + self.ratio[1] * default_tokens[1]
    }

    fn learn(&mut self, default_tokens: [f64; 2], actual: f64) {
        let expected = self.expected(default_tokens);
        if expected < 1.0 {
            return;
        }
        let shares = [0, 1].map(|kind| self.ratio[kind] * default_tokens[kind] / expected);
        let error = (actual / expected).clamp(1.0 / OUTLIER, OUTLIER) - 1.0;
        self.error += (error * error - self.error) / 30.0;

        for (variance, share) in self.variance.iter_mut().zip(shares) {
            *variance = (*variance + DRIFT * share).min(DEFAULT_VARIANCE);
        }
        let [first, second] = [
            self.variance[0] * shares[0] + self.covariance * shares[1],
            self.covariance * shares[0] + self.variance[1] * shares[1],
        ];
        let noise = TEXT_VARIANCE * (1.0 + SMALL_TEXT / expected);
        let total = first * shares[0] + second * shares[1] + noise;
        self.ratio[0] =
            (self.ratio[0] * (1.0 + first / total * error)).clamp(*RATIOS.start(), *RATIOS.end());
        self.ratio[1] =
            (self.ratio[1] * (1.0 + second / total * error)).clamp(*RATIOS.start(), *RATIOS.end());
        self.variance[0] -= first * first / total;
        self.variance[1] -= second * second / total;
        self.covariance -= first * second / total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ascii_bytes: u64, other_chars: u64) -> InputFeatures {
        InputFeatures { ascii_bytes, other_chars, ..InputFeatures::default() }
    }

    fn error_of(estimator: &TokenEstimator, features: InputFeatures, actual: u64) -> f64 {
        estimator.estimate(features) as f64 / actual as f64 - 1.0
    }

    #[test]
    fn characters_are_counted_by_kind() {
        assert_eq!(InputFeatures::of(""), text(0, 0));
        assert_eq!(InputFeatures::of("été 今日は 🦀!"), text(4, 6));
        let parts = ["let x;", "世界"].map(InputFeatures::of);
        assert_eq!(parts.into_iter().sum::<InputFeatures>(), text(6, 2));
    }

    #[test]
    fn before_anything_is_learned_four_bytes_or_one_other_character_are_a_token() {
        let estimator = TokenEstimator::default();
        assert_eq!(estimator.estimate(text(0, 0)), 0);
        assert_eq!(estimator.estimate(text(40_000, 0)), 10_250);
        assert_eq!(estimator.estimate(text(0, 10_000)), 10_250);
        assert_eq!(estimator.estimate(text(1, 0)), 1);
    }

    #[test]
    fn media_is_added_and_teaches_nothing_about_text() {
        let estimator = TokenEstimator::default();
        let film = InputFeatures { media_tokens: 5000, ..text(4000, 0) };
        assert_eq!(estimator.estimate(film), 6025);
        estimator.learn(film, 100_000, 0);
        assert_eq!(estimator.estimate(film), 6025);
    }

    #[test]
    fn two_kinds_of_text_are_learned_separately_from_mixed_calls() {
        let estimator = TokenEstimator::default();
        // Code at 2.5 bytes a token; Japanese at 0.6 tokens a character.
        let cost = |features: InputFeatures| {
            (features.ascii_bytes as f64 / 2.5 + features.other_chars as f64 * 0.6) as u64
        };
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let features = text(random.u64(100..20_000), random.u64(100..5000));
            estimator.learn(features, cost(features), 0);
        }
        for features in [text(10_000, 0), text(0, 10_000), text(5000, 1000)] {
            let error = error_of(&estimator, features, cost(features));
            assert!((0.0..0.03).contains(&error), "{features:?}: {error}");
        }
    }

    #[test]
    fn one_kind_stays_learned_while_only_the_other_is_seen() {
        let estimator = TokenEstimator::default();
        for _ in 0..100 {
            estimator.learn(text(0, 1000), 600, 0);
        }
        for _ in 0..100_000 {
            estimator.learn(text(4000, 0), 1300, 0);
        }
        assert!(error_of(&estimator, text(0, 1000), 600).abs() < 0.03);
        assert!(error_of(&estimator, text(4000, 0), 1300).abs() < 0.02);
    }

    #[test]
    fn a_single_outlier_changes_little() {
        let estimator = TokenEstimator::default();
        for _ in 0..100 {
            estimator.learn(text(4000, 0), 1000, 0);
        }
        for outlier in [u64::MAX, 0] {
            estimator.learn(text(4000, 0), outlier, 0);
            assert!(error_of(&estimator, text(4000, 0), 1000).abs() < 0.07);
        }
    }

    #[test]
    fn a_lasting_change_is_learned() {
        let estimator = TokenEstimator::default();
        for tokens in [1000, 3000, 500] {
            for _ in 0..200 {
                estimator.learn(text(4000, 0), tokens, 0);
            }
            let error = error_of(&estimator, text(4000, 0), tokens);
            assert!((-0.01..0.06).contains(&error), "{tokens}: {error}");
        }
    }

    #[test]
    fn the_calls_of_a_minute_together_seldom_cost_more_than_estimated() {
        let estimator = TokenEstimator::default();
        let mut random = fastrand::Rng::with_seed(7);
        let (mut exceeded, mut estimates, mut actuals) = (0, 0, 0);
        for minute in 0..100 {
            let (mut estimated, mut actual) = (0, 0);
            for _ in 0..300 {
                let features = text(random.u64(200..40_000), 0);
                // Between 2.6 and 4.6 bytes a token.
                let cost = (features.ascii_bytes as f64 / (2.6 + 2.0 * random.f64())) as u64;
                estimated += estimator.estimate(features);
                actual += cost;
                estimator.learn(features, cost, 0);
            }
            if minute > 0 {
                exceeded += usize::from(actual > estimated);
                estimates += estimated;
                actuals += actual;
            }
        }
        assert!(exceeded <= 10, "exceeded in {exceeded} minutes of 99");
        let surplus = estimates as f64 / actuals as f64 - 1.0;
        assert!((0.0..0.05).contains(&surplus), "{surplus}");
    }

    #[test]
    fn nothing_is_learned_from_calls_with_content_stored_elsewhere() {
        let estimator = TokenEstimator::default();
        let unseen = InputFeatures { has_unseen: true, ..text(4000, 0) };
        for _ in 0..100 {
            estimator.learn(unseen, 1_000_000, 0);
        }
        assert_eq!(estimator.estimate(text(4000, 0)), 1025);
    }

    #[test]
    fn cached_tokens_may_or_may_not_belong_to_the_text() {
        let estimator = TokenEstimator::default();
        for _ in 0..100 {
            // It is only known that the text has 200 to 100,200 tokens.
            estimator.learn(text(4000, 0), 100_200, 100_000);
        }
        let learned_nothing = error_of(&estimator, text(4000, 0), 1000);
        assert!((0.0..0.03).contains(&learned_nothing), "{learned_nothing}");
        for _ in 0..100 {
            estimator.learn(text(4000, 0), 1500, 200);
        }
        let raised = error_of(&estimator, text(4000, 0), 1300);
        assert!((-0.03..0.1).contains(&raised), "{raised}");
    }

    #[test]
    fn the_minimum_of_a_text_does_not_rise_with_what_was_learned() {
        let estimator = TokenEstimator::default();
        let sample = text(8000, 400);
        assert_eq!(estimator.at_least(sample), 1100);
        for _ in 0..1000 {
            estimator.learn(sample, u64::MAX, 0);
        }
        assert!(estimator.estimate(sample) > 9000);
        assert_eq!(estimator.at_least(sample), 1100);
        for _ in 0..1000 {
            estimator.learn(sample, 800, 0);
        }
        let least = estimator.at_least(sample);
        assert_eq!(least, estimator.estimate(sample).min(1100));
        assert!(least < 1000, "{least}: texts of this key cost less");
    }
}
