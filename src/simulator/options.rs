//! The options of a simulator.

use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::civil::Date;

/// How a simulator behaves. The defaults set no limit, no latency and no failures.
///
/// Every field except `journal` is also a command line option of the same name.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct Options {
    /// Requests a minute that each key may send to each model; unlimited when absent
    #[arg(long, value_name = "REQUESTS")]
    pub requests_per_minute: Option<u64>,

    /// Input tokens a minute that each key may send to each model; unlimited when absent
    #[arg(long, value_name = "TOKENS")]
    pub input_tokens_per_minute: Option<u64>,

    /// Requests a day that each key may send to each model; the day ends at midnight in
    /// Los Angeles; unlimited when absent
    #[arg(long, value_name = "REQUESTS")]
    pub requests_per_day: Option<u64>,

    /// How the two per-minute quotas are counted
    #[arg(long, value_enum, default_value_t)]
    pub counting: Counting,

    /// Length of a minute, in seconds: less than 60 scales a long run down
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive)]
    pub minute_seconds: f64,

    /// Name the free tier's quotas in refusals instead of the paid tier's
    #[arg(long)]
    pub free_tier: bool,

    /// Calls served at the same time, without flex calls; further ones are refused with 503; unlimited
    /// when absent
    #[arg(long, value_name = "CALLS")]
    pub capacity: Option<usize>,

    /// Time from a call's arrival to the last byte of its answer, in milliseconds; the median
    /// when there is a spread. Refusals for the request, a quota or the capacity are immediate
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub latency_ms: u64,

    /// Spread of the latency: sigma of a log-normal distribution, without unit; 0 is a fixed
    /// latency, 0.5 makes one call in twenty take more than twice the median
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0, value_parser = not_negative)]
    pub latency_sigma: f64,

    /// Seed of everything random: latencies, failures and the values in JSON answers
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Fraction of the calls, from 0 to 1, refused with 503 "overloaded"
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, value_parser = fraction)]
    pub error_rate_503: f64,

    /// Fraction of the calls, from 0 to 1, refused with 500 "internal error"
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, value_parser = fraction)]
    pub error_rate_500: f64,

    /// Fraction of the calls, from 0 to 1, refused with a 429 that gives no details
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, value_parser = fraction)]
    pub error_rate_429: f64,

    /// Size of a text answer, in bytes: the text is padded or cut to it; the natural length when
    /// absent
    #[arg(long, value_name = "BYTES")]
    pub answer_bytes: Option<usize>,

    /// Chunks in which a streamed answer is sent, spread evenly over the latency
    #[arg(long, value_name = "CHUNKS", default_value_t = 4)]
    pub stream_chunks: usize,

    /// Models that exist, separated by commas; when empty, every name that begins with gemini-,
    /// gemma-, text-embedding- or embedding- and contains neither "unknown" nor "retired"
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    pub models: Vec<String>,

    /// Flex calls served at the same time; further ones are refused with 503; unlimited when absent
    #[arg(long, value_name = "CALLS")]
    pub flex_capacity: Option<usize>,

    /// Latency of flex calls, in milliseconds; that of the other tiers when absent
    #[arg(long, value_name = "MILLISECONDS")]
    pub flex_latency_ms: Option<u64>,

    /// US dollars that each key may spend in ten minutes over all models; unlimited when absent
    #[arg(long, value_name = "DOLLARS", value_parser = positive)]
    pub spend_per_ten_minutes: Option<f64>,

    /// Refuse every generating call with 402, as for an account without credits
    #[arg(long)]
    pub unfunded: bool,

    /// Tokens that the active batches of each key and model may hold; unlimited when absent
    #[arg(long, value_name = "TOKENS")]
    pub enqueued_tokens: Option<u64>,

    /// Time from creating a batch to its end, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub batch_ms: u64,

    /// The day that decides which models have retired, such as 2026-12-01; the current day when
    /// absent
    #[arg(long, value_name = "DATE")]
    pub today: Option<Date>,

    /// API keys refused as invalid, separated by commas, besides those that begin with "invalid"
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub bad_keys: Vec<String>,

    /// Keep every generating call, with its key and body, for
    /// [`Simulator::journal`](super::Simulator::journal); for tests, in process only
    #[arg(skip)]
    pub journal: bool,
}

/// How calls are counted against a per-minute quota. Google does not say how it counts.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// Calls that arrived in the last minute count
    #[default]
    SlidingWindow,
    /// The count restarts every minute, counted from the simulator's start
    FixedMinute,
    /// The bucket fills evenly and holds at most one second's worth of the quota. A call that costs
    /// more than it can hold is served when the bucket is full and leaves a debt, so that the rate
    /// over the minute is kept
    TokenBucket,
}

impl Options {
    /// The length of a minute.
    pub(super) fn minute(&self) -> Duration {
        Duration::from_secs_f64(self.minute_seconds)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            input_tokens_per_minute: None,
            requests_per_day: None,
            counting: Counting::default(),
            minute_seconds: 60.0,
            free_tier: false,
            capacity: None,
            latency_ms: 0,
            latency_sigma: 0.0,
            seed: 0,
            error_rate_503: 0.0,
            error_rate_500: 0.0,
            error_rate_429: 0.0,
            answer_bytes: None,
            stream_chunks: 4,
            models: Vec::new(),
            flex_capacity: None,
            flex_latency_ms: None,
            spend_per_ten_minutes: None,
            unfunded: false,
            enqueued_tokens: None,
            batch_ms: 0,
            today: None,
            bad_keys: Vec::new(),
            journal: false,
        }
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    in_range(text, |number| (0.0..=1.0).contains(&number), "a number from 0 to 1")
}

fn positive(text: &str) -> Result<f64, String> {
    in_range(text, |number| number > 0.0 && number.is_finite(), "a number above 0")
}

fn not_negative(text: &str) -> Result<f64, String> {
    in_range(text, |number| number >= 0.0 && number.is_finite(), "0 or a number above it")
}

fn in_range(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if fits(number) => Ok(number),
        _ => Err(format!("expected {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_default_is_the_command_line_without_arguments() {
        CommandLine::command().debug_assert();
        let parsed = CommandLine::try_parse_from(["simulate"]).expect("no argument is required");
        assert_eq!(parsed.options, Options::default());
    }

    #[test]
    fn options_are_named_after_their_fields() {
        let arguments = ["simulate", "--counting", "token-bucket", "--models", "gemini-a,gemini-b"];
        let options = CommandLine::try_parse_from(arguments).expect("valid arguments").options;
        assert_eq!(options.counting, Counting::TokenBucket);
        assert_eq!(options.models, ["gemini-a", "gemini-b"]);
    }

    #[test]
    fn a_rate_above_one_is_refused() {
        assert!(CommandLine::try_parse_from(["simulate", "--error-rate-503", "1.5"]).is_err());
    }
}
