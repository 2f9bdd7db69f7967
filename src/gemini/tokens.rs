//! What an input costs, in tokens, before Gemini has counted them.

use std::iter::Sum;
use std::ops::Add;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a token of ASCII text is long before anything is learned: Google says about 4 bytes.
const BYTES_PER_TOKEN: f64 = 4.0;

/// How uncertain the two defaults are: the square of a relative error of 50 %.
const DEFAULT_VARIANCE: f64 = 0.25;

/// How much texts of one kind differ from one another: the square of 20 %.
const TEXT_VARIANCE: f64 = 0.04;

/// How fast what was learned gets uncertain again, per call. With [`TEXT_VARIANCE`] it makes the
/// last 30 calls or so count.
const DRIFT: f64 = 4e-5;

/// The size below which a text says less about others, in tokens.
const SMALL_TEXT: f64 = 100.0;

/// A call that differs more than this from what was expected, either way, teaches no more than
/// one that differs just so much.
const OUTLIER: f64 = 2.0;

/// What of an input decides how many tokens it is. Those of several add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputFeatures {
    /// Bytes that are ASCII characters.
    pub ascii_bytes: u64,
    /// Characters that are not ASCII.
    pub other_chars: u64,
    /// What its images, sounds, films and documents cost, in tokens; roughly.
    pub media_tokens: u64,
}

/// Learns for one model what texts cost, from what Gemini counts.
///
/// It begins with a token for every 4 ASCII bytes and one for every other character; how far off
/// these two are is followed by a Kalman filter, so that code and Japanese are learned apart
/// though a text has both. Estimates err high by an eighth of the usual error of one call, 0.5 %
/// to 5 %: the calls of a minute, a hundred or more, then seldom cost more than estimated
/// together, the error of whose sum is less than a tenth of one call's.
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
        // The other bytes go on with a character that one of these begins.
        Self {
            ascii_bytes: count(|byte| byte < 0x80),
            other_chars: count(|byte| byte >= 0xC0),
            media_tokens: 0,
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
            ascii_bytes: self.ascii_bytes + other.ascii_bytes,
            other_chars: self.other_chars + other.other_chars,
            media_tokens: self.media_tokens + other.media_tokens,
        }
    }
}

impl Sum for InputFeatures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl TokenEstimator {
    /// About how many tokens an input is; rather a little more.
    pub fn estimate(&self, features: InputFeatures) -> u64 {
        let learned = self.learned();
        let margin = (learned.error.sqrt() / 8.0).clamp(0.005, 0.05);
        let text = (learned.expected(features.default_tokens()) * (1.0 + margin)).ceil() as u64;
        text.saturating_add(features.media_tokens)
    }

    /// Learns what a text of these features cost, in tokens. Of one beside media nothing is learned:
    /// nobody knows what of it the media cost.
    pub fn learn(&self, features: InputFeatures, actual: u64) {
        if features.media_tokens > 0 {
            return;
        }
        self.learned().learn(features.default_tokens(), actual as f64);
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
        self.ratio[0] = (self.ratio[0] * (1.0 + first / total * error)).clamp(0.1, 10.0);
        self.ratio[1] = (self.ratio[1] * (1.0 + second / total * error)).clamp(0.1, 10.0);
        self.variance[0] -= first * first / total;
        self.variance[1] -= second * second / total;
        self.covariance -= first * second / total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ascii_bytes: u64, other_chars: u64) -> InputFeatures {
        InputFeatures { ascii_bytes, other_chars, media_tokens: 0 }
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
    fn media_cost_what_they_cost_and_teach_nothing_about_text() {
        let estimator = TokenEstimator::default();
        let film = InputFeatures { media_tokens: 5000, ..text(4000, 0) };
        assert_eq!(estimator.estimate(film), 6025);
        estimator.learn(film, 100_000);
        assert_eq!(estimator.estimate(film), 6025);
    }

    #[test]
    fn two_kinds_of_text_are_learned_apart_though_every_call_has_both() {
        let estimator = TokenEstimator::default();
        // Code, 2.5 bytes a token; Japanese, 0.6 tokens a character.
        let cost = |features: InputFeatures| {
            (features.ascii_bytes as f64 / 2.5 + features.other_chars as f64 * 0.6) as u64
        };
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let features = text(random.u64(100..20_000), random.u64(100..5000));
            estimator.learn(features, cost(features));
        }
        for features in [text(10_000, 0), text(0, 10_000), text(5000, 1000)] {
            let error = error_of(&estimator, features, cost(features));
            assert!((0.0..0.03).contains(&error), "{features:?}: {error}");
        }
    }

    #[test]
    fn what_was_learned_of_one_kind_is_kept_while_only_the_other_is_seen() {
        let estimator = TokenEstimator::default();
        for _ in 0..100 {
            estimator.learn(text(0, 1000), 600);
        }
        for _ in 0..100_000 {
            estimator.learn(text(4000, 0), 1300);
        }
        assert!(error_of(&estimator, text(0, 1000), 600).abs() < 0.03);
        assert!(error_of(&estimator, text(4000, 0), 1300).abs() < 0.02);
    }

    #[test]
    fn a_single_outlier_changes_little() {
        let estimator = TokenEstimator::default();
        for _ in 0..100 {
            estimator.learn(text(4000, 0), 1000);
        }
        for outlier in [u64::MAX, 0] {
            estimator.learn(text(4000, 0), outlier);
            assert!(error_of(&estimator, text(4000, 0), 1000).abs() < 0.07);
        }
    }

    #[test]
    fn a_lasting_change_is_learned() {
        let estimator = TokenEstimator::default();
        for tokens in [1000, 3000, 500] {
            for _ in 0..200 {
                estimator.learn(text(4000, 0), tokens);
            }
            let error = error_of(&estimator, text(4000, 0), tokens);
            assert!((-0.01..0.06).contains(&error), "{tokens}: {error}");
        }
    }

    #[test]
    fn the_calls_of_a_minute_seldom_cost_more_than_estimated_together() {
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
                estimator.learn(features, cost);
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
}
