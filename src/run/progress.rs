//! How far a job is: a bar on a terminal, nothing elsewhere.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::service::{JobStatus, Status};

/// The bar while a job is sent, and while it is answered. The second line of the message says more.
const UPLOAD: &str = "[{bar:30}] {bytes}/{total_bytes} sent  {msg}";
const ITEMS: &str = "[{bar:30}] {human_pos}/{human_len} ({percent}%)  {msg}";

/// Shows how far a job is.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar on standard error, if that is a terminal and the bar is wanted.
    pub fn new(is_shown: bool) -> Self {
        // Where standard error is no terminal, indicatif draws nothing.
        let target =
            if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bar: ProgressBar::with_draw_target(None, target) }
    }

    /// Shows that a job of this size is sent.
    pub fn sends(&self, bytes: u64) {
        self.bar.set_style(style(UPLOAD));
        self.bar.set_length(bytes);
        self.bar.set_position(0);
        self.bar.set_message("");
    }

    /// Shows that more bytes were sent.
    pub fn sent(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Shows where a job is.
    pub fn show(&self, job: &JobStatus) {
        self.bar.set_style(style(ITEMS));
        self.bar.set_length(job.total);
        self.bar.set_position(job.done());
        self.bar.set_message(format!("{}\n{}", pace(job), account(job)));
    }

    /// Shows why it does not go on.
    pub fn waits(&self, reason: &str) {
        self.bar.set_message(format!("waiting\n{reason}"));
    }

    /// Leaves the bar as it is: the terminal has moved the cursor by writing `^C`, so that it cannot be
    /// drawn again in its place.
    pub fn leave(&self) {
        if !self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::hidden());
            eprintln!();
        }
        self.bar.abandon();
    }

    /// Takes the bar away, unless it was left.
    pub fn clear(&self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    style.progress_chars("=> ")
}

/// How fast a job is, and when it will be done.
fn pace(job: &JobStatus) -> String {
    match job.status {
        Status::Queued => return "waiting for its turn".to_owned(),
        Status::Paused => return "paused".to_owned(),
        Status::Completed | Status::Cancelled => return String::new(),
        Status::Running => {}
    }
    let mut pace = match job.items_per_second {
        0.0 => return String::new(),
        rate if rate < 10.0 => format!("{rate:.1}/s"),
        rate => format!("{rate:.0}/s"),
    };
    let left = job.eta_seconds.and_then(|left| Duration::try_from_secs_f64(left).ok());
    if let Some(left) = left {
        let _ = write!(pace, ", {} left", duration(left));
    }
    pace
}

/// What a job took so far: tokens, money, failures by code.
pub fn account(job: &JobStatus) -> String {
    let JobStatus { input_tokens, output_tokens, cost_usd, failed, failures, .. } = job;
    let mut account = format!(
        "{} + {} tokens, {}",
        HumanCount(*input_tokens),
        HumanCount(*output_tokens),
        dollars(*cost_usd)
    );
    if *failed > 0 {
        let mut codes: Vec<_> = failures.iter().collect();
        codes.sort_by_key(|(_, failures)| std::cmp::Reverse(failures.count));
        let codes: Vec<_> =
            codes.iter().map(|(code, it)| format!("{} {code}", HumanCount(it.count))).collect();
        let _ = write!(account, "; {} failed: {}", HumanCount(*failed), codes.join(", "));
    }
    account
}

/// An amount of US dollars, with as many digits as tell something.
pub fn dollars(amount: f64) -> String {
    match amount {
        0.0 => "0 $".to_owned(),
        _ if amount < 0.01 => format!("{amount:.6} $"),
        _ if amount < 10.0 => format!("{amount:.4} $"),
        _ => format!("{amount:.2} $"),
    }
}

/// A duration, such as `2 min 5 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(fields: serde_json::Value) -> JobStatus {
        let mut job = json!({"job_id": "j", "status": "running", "total": 10_000});
        job.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_bar_says_how_fast_a_job_is_and_what_it_took() {
        let job = job(json!({
            "succeeded": 1200, "failed": 3, "items_per_second": 25.31, "eta_seconds": 346.9,
            "input_tokens": 45_678, "output_tokens": 1234, "cost_usd": 0.123_45,
            "failures": {"schema_violation": {"count": 1}, "content_blocked": {"count": 2}}
        }));
        assert_eq!(pace(&job), "25/s, 5 min 46 s left");
        let failed = "3 failed: 2 content_blocked, 1 schema_violation";
        assert_eq!(account(&job), format!("45,678 + 1,234 tokens, 0.1235 $; {failed}"));
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        assert_eq!(pace(&job(json!({}))), "");
        assert_eq!(pace(&job(json!({"status": "queued"}))), "waiting for its turn");
        assert_eq!(account(&job(json!({}))), "0 + 0 tokens, 0 $");
    }

    #[test]
    fn durations_have_two_units() {
        let texts = [0, 59, 60, 3_599, 3_600, 86_399, 90_000].map(Duration::from_secs);
        let expected =
            ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"];
        assert_eq!(texts.map(duration), expected);
    }
}
