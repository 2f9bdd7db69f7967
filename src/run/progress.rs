//! How far a job is: a bar on a terminal, now and then a line elsewhere.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::service::{JobStatus, Status};

/// The bar while a job is sent, and while it is answered. The second line of the message says more.
const UPLOAD: &str = "[{bar:30}] {bytes}/{total_bytes} sent  {msg}";
const ITEMS: &str = "[{bar:30}] {human_pos}/{human_len} ({percent}%)  {msg}";

/// How long after a line the next one is printed at the earliest, if there is a percent more, and at the
/// latest.
const EARLIEST: Duration = Duration::from_secs(10);
const LATEST: Duration = Duration::from_secs(60);

/// Shows how far a job is.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    /// `None` if no lines are printed.
    lines: Option<Arc<Mutex<Lines>>>,
}

/// When lines are printed.
#[derive(Debug)]
struct Lines {
    /// When the last one was printed.
    at: Instant,
    /// How far it was then.
    position: u64,
    /// What was waited for then.
    waits: Option<String>,
}

impl Lines {
    fn new() -> Self {
        Self { at: Instant::now(), position: 0, waits: None }
    }

    /// Whether a line is due.
    fn is_due(&mut self, position: u64, length: u64, waits: Option<&str>) -> bool {
        let since = self.at.elapsed();
        let is_new = waits.is_some() && waits != self.waits.as_deref();
        let is_further =
            position.saturating_sub(self.position).saturating_mul(100) >= length.max(1);
        let is_due = is_new || since >= LATEST || (since >= EARLIEST && is_further);
        if is_due {
            let waits = waits.map(str::to_owned);
            *self = Self { at: Instant::now(), position, waits };
        }
        is_due
    }
}

impl Progress {
    /// A bar on standard error, if that is a terminal and the results are on another one; lines if it is
    /// none. Nothing if it is to be quiet.
    pub fn new(has_results: bool, is_quiet: bool) -> Self {
        let has_lines = !is_quiet && !io::stderr().is_terminal();
        // Where standard error is no terminal, indicatif draws nothing.
        let target = match has_results || is_quiet {
            false => ProgressDrawTarget::stderr(),
            true => ProgressDrawTarget::hidden(),
        };
        let lines = has_lines.then(|| Arc::new(Mutex::new(Lines::new())));
        Self { bar: ProgressBar::with_draw_target(None, target), lines }
    }

    /// Prints a line, if one is due.
    fn line(&self, waits: Option<&str>, text: impl FnOnce() -> String) {
        let Some(lines) = &self.lines else { return };
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_due(position, length, waits) {
            eprintln!("{}", text());
        }
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
        let total = self.bar.length().unwrap_or(0);
        let sent = || format!("{} of {} sent", HumanBytes(self.bar.position()), HumanBytes(total));
        self.line(None, sent);
    }

    /// Shows where a job is.
    pub fn show(&self, job: &JobStatus) {
        self.bar.set_style(style(ITEMS));
        self.bar.set_length(job.total);
        self.bar.set_position(job.done());
        self.bar.set_message(format!("{}\n{}", pace(job), account(job)));
        self.line(None, || line(job));
    }

    /// Shows why it does not go on.
    pub fn waits(&self, reason: &str) {
        self.bar.set_message(format!("waiting\n{reason}"));
        self.line(Some(reason), || format!("waiting: {reason}"));
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

/// How far a job is, on a line.
fn line(job: &JobStatus) -> String {
    let percent = job.done().saturating_mul(100).checked_div(job.total).unwrap_or(100);
    let (done, total) = (HumanCount(job.done()), HumanCount(job.total));
    let pace = Some(pace(job)).filter(|pace| !pace.is_empty());
    let pace = pace.map(|pace| format!("{pace}; ")).unwrap_or_default();
    format!("{done}/{total} ({percent}%); {pace}{}", account(job))
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
        let expected =
            "1,203/10,000 (12%); 25/s, 5 min 46 s left; 45,678 + 1,234 tokens, 0.1235 $; ";
        assert_eq!(line(&job), format!("{expected}{failed}"));
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        assert_eq!(pace(&job(json!({}))), "");
        assert_eq!(pace(&job(json!({"status": "queued"}))), "waiting for its turn");
        assert_eq!(account(&job(json!({}))), "0 + 0 tokens, 0 $");
        assert_eq!(line(&job(json!({}))), "0/10,000 (0%); 0 + 0 tokens, 0 $");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_printed_at_each_percent_but_neither_too_often_nor_too_seldom() {
        let mut lines = Lines::new();
        let mut printed = Vec::new();
        for second in 0..200 {
            // 2 % a second at first, then nothing more.
            if lines.is_due(second.min(25) * 20, 1000, None) {
                printed.push(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(printed, [10, 20, 30, 90, 150]);
        assert!(lines.is_due(500, 1000, Some("the service is away")));
        assert!(!lines.is_due(500, 1000, Some("the service is away")));
        assert!(lines.is_due(500, 1000, Some("the disk is full")));
    }

    #[test]
    fn durations_have_two_units() {
        let texts = [0, 59, 60, 3_599, 3_600, 86_399, 90_000].map(Duration::from_secs);
        let expected =
            ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"];
        assert_eq!(texts.map(duration), expected);
    }
}
