//! `jobs`: lists and changes the jobs of a running service.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Method;
use indicatif::HumanCount;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::failure::{RunFailure, UNAVAILABLE, USAGE};
use super::follow::{ABSENCE, Backoff};
use super::output::{Output, beside, check_replaceable, is_standard};
use super::progress::{account, dollars, duration};
use super::results::{self, Interruption, ResultSink};
use super::service::{Action, JobService, JobStatus, Status};
use super::{ServiceArguments, client, printable};
use crate::config::Config;

/// What is done with the jobs of a running service.
#[derive(Debug, Args)]
pub struct JobsArguments {
    #[command(subcommand)]
    command: JobsCommand,
    /// Prints what the service answers, as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    service: ServiceArguments,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// Lists jobs, the newest first.
    List {
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
    },
    /// Shows where a job is.
    Show {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
    },
    /// Ends a job: items without a result get none.
    Cancel {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
    },
    /// Sends nothing more of a job until it is resumed.
    Pause {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
    },
    /// Lets a paused job go on.
    Resume {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
    },
    /// Asks failed items again that may succeed.
    Retry {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
        /// Asks all failed items again.
        #[arg(long)]
        all: bool,
    },
    /// Writes the results of a job, in the order of its items: those that are there.
    Results {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
        /// The file for the results; - is standard output.
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// Only failed items.
        #[arg(long)]
        failed: bool,
        /// Waits for further results until the job ends.
        #[arg(long)]
        follow: bool,
        /// Replaces an existing file.
        #[arg(long)]
        force: bool,
    },
    /// Removes a job with its prompts and results.
    Delete {
        /// The id of the job.
        #[arg(value_parser = job_id)]
        id: String,
    },
}

/// Does it, and prints what came of it.
///
/// # Errors
/// [`RunFailure`] if the service cannot be reached, or refuses.
pub async fn manage(arguments: JobsArguments, config: &Config) -> Result<(), RunFailure> {
    let JobsArguments { command, json, service } = arguments;
    let url = service.url.or_else(|| config.gateway_url.clone());
    let url = url.unwrap_or_else(|| format!("http://{}:{}", Ipv4Addr::LOCALHOST, config.port));
    let service = JobService::new(client(&url, service.key_from, config)?);
    let (action, id) = match command {
        JobsCommand::List { limit } => {
            let answer = service.value(Method::GET, &format!("/jobs?limit={limit}")).await?;
            return print(&answer, json, |answer| table(&jobs(answer)?));
        }
        JobsCommand::Show { id } => {
            let answer = service.value(Method::GET, &format!("/jobs/{id}")).await?;
            return print(&answer, json, shown);
        }
        JobsCommand::Delete { id } => {
            service.value(Method::DELETE, &format!("/jobs/{id}")).await?;
            return Ok(());
        }
        JobsCommand::Results { id, output, failed, follow, force } => {
            check_new(&output, force)?;
            let only = if failed { "&only=failed" } else { "" };
            let output = Output::of_lines(&output, force)?;
            return write_results(&service, &id, follow, only, output).await;
        }
        JobsCommand::Cancel { id } => (Action::Cancel, id),
        JobsCommand::Pause { id } => (Action::Pause, id),
        JobsCommand::Resume { id } => (Action::Resume, id),
        JobsCommand::Retry { id, all } => (if all { Action::RetryAll } else { Action::Retry }, id),
    };
    let answer = service.change(&id, action).await?;
    print(&answer, json, shown)
}

/// Refuses an output that exists, or has begun to, unless it is a file that is to be replaced.
fn check_new(output: &Path, force: bool) -> Result<(), RunFailure> {
    let refused = |message| RunFailure::new(USAGE, message);
    check_replaceable(output, None).map_err(refused)?;
    let existing = [output.to_owned(), beside(output, ".part")];
    match existing.into_iter().find(|path| !force && !is_standard(output) && path.exists()) {
        Some(path) => Err(refused(format!("{} exists; --force replaces it", path.display()))),
        None => Ok(()),
    }
}

/// Writes results as they come. One that follows goes on after the last result where the connection or the
/// service breaks.
async fn write_results(
    service: &JobService,
    id: &str,
    follow: bool,
    only: &str,
    output: Output<'_>,
) -> Result<(), RunFailure> {
    let mut copied = Copied { output, next: 0 };
    let (mut backoff, mut reached) = (Backoff::default(), None::<Instant>);
    loop {
        let (before, begun) = (copied.next, Instant::now());
        let query = format!("follow={follow}&after={before}{only}");
        let error = match results::read(service, id, &query, &mut copied).await {
            Ok(()) => return Ok(copied.output.finish()?),
            Err(Interruption::Service(error)) if follow && error.is_transient() => error,
            Err(interruption) => return Err(interruption.into()),
        };
        if copied.next > before {
            (backoff, reached) = (Backoff::default(), Some(Instant::now()));
        } else if service.job(id).await.is_ok() {
            // There are no results yet.
            reached = Some(Instant::now());
        }
        match reached {
            None => return Err(error.into()),
            Some(reached) if reached.elapsed() >= ABSENCE => return Err(error.into()),
            Some(reached) if reached < begun => eprintln!("waiting: {error}"),
            Some(_) => {}
        }
        backoff.pause().await;
    }
}

/// Lines that are written as they come.
struct Copied<'a> {
    output: Output<'a>,
    /// The index after that of the last line.
    next: u64,
}

/// What each result has.
#[derive(Deserialize)]
struct Indexed {
    index: u64,
}

impl ResultSink for Copied<'_> {
    fn line(&mut self, line: &[u8]) -> Result<(), Interruption> {
        let Indexed { index } = serde_json::from_slice(line).map_err(|error| {
            Interruption::Malformed(format!("a result cannot be read: {error}"))
        })?;
        self.output.add_line(line).map_err(Interruption::Output)?;
        self.next = index + 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Interruption> {
        self.output.flush().map_err(Interruption::Output)
    }
}

/// Prints an answer, for programs as it came.
fn print(
    answer: &Value,
    json: bool,
    text: impl FnOnce(&Value) -> Result<String, RunFailure>,
) -> Result<(), RunFailure> {
    if json {
        println!("{answer}");
    } else {
        print!("{}", text(answer)?);
    }
    Ok(())
}

fn job(answer: &Value) -> Result<JobStatus, RunFailure> {
    let unknown = |error| RunFailure::new(UNAVAILABLE, format!("the answer is not a job: {error}"));
    serde_json::from_value(answer.clone()).map_err(unknown)
}

fn jobs(answer: &Value) -> Result<Vec<JobStatus>, RunFailure> {
    answer["jobs"].as_array().into_iter().flatten().map(job).collect()
}

/// The jobs as a table.
fn table(jobs: &[JobStatus]) -> Result<String, RunFailure> {
    const HEADER: [&str; 7] = ["JOB", "NAME", "STATUS", "DONE", "FAILED", "COST", "CREATED"];
    let rows = jobs.iter().map(|job| {
        let name: String = job.job_name.as_deref().unwrap_or_default().chars().take(24).collect();
        let created = job.created_at.as_deref().unwrap_or_default();
        [
            job.job_id.clone(),
            printable(&name),
            status_name(job.status).to_owned(),
            format!("{}/{}", HumanCount(job.done()), HumanCount(job.total)),
            HumanCount(job.failed).to_string(),
            dollars(job.cost_usd),
            created.get(..16).unwrap_or(created).replace('T', " "),
        ]
    });
    let rows: Vec<_> = [HEADER.map(str::to_owned)].into_iter().chain(rows).collect();
    let widths: Vec<_> = (0..HEADER.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut table = String::new();
    for row in &rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        let _ = writeln!(table, "{}", cells.join("  ").trim_end());
    }
    Ok(table)
}

/// One job, a line for each thing that is known.
fn shown(answer: &Value) -> Result<String, RunFailure> {
    let job = job(answer)?;
    let mut text = format!("{} {}", job.job_id, status_name(job.status));
    if let Some(reason) = &job.reason {
        let _ = write!(text, " ({reason})");
    }
    if let Some(name) = &job.job_name {
        let _ = write!(text, ", {}", printable(name));
    }
    let (done, total) = (HumanCount(job.done()), HumanCount(job.total));
    let running = HumanCount(job.running);
    let _ = writeln!(text, "\n{done} of {total} items have a result, {running} are in flight");
    let _ = writeln!(text, "{}", account(&job));
    let left = job.eta_seconds.and_then(|left| std::time::Duration::try_from_secs_f64(left).ok());
    if let (Some(left), false) = (left, job.has_ended()) {
        let _ = writeln!(text, "{} left", duration(left));
    }
    Ok(text)
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Queued => "queued",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Completed => "completed",
        Status::Cancelled => "cancelled",
    }
}

/// An id is a part of a path.
fn job_id(id: &str) -> Result<String, String> {
    let is_valid = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_valid.then(|| id.to_owned()).ok_or_else(|| "expected an id such as job_0123…".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({"jobs": [
            {"job_id": "job_2", "job_name": "b\u{1b}[2J", "status": "running", "total": 1_000_000,
             "succeeded": 1234, "failed": 1, "running": 15, "eta_seconds": 3600.0, "cost_usd": 0.5,
             "failures": {"content_blocked": {"count": 1, "example": 5}},
             "created_at": "2026-11-29T22:48:00.123Z"},
            {"job_id": "job_1", "status": "paused", "reason": "requested", "total": 5}
        ]})
    }

    #[test]
    fn jobs_are_a_table() {
        let table = table(&jobs(&answer()).unwrap()).unwrap();
        let expected = "\
JOB    NAME   STATUS   DONE             FAILED  COST      CREATED
job_2  b [2J  running  1,235/1,000,000  1       0.5000 $  2026-11-29 22:48
job_1         paused   0/5              0       0 $
";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_job_is_a_few_lines() {
        let first = shown(&answer()["jobs"][0]).unwrap();
        let expected = "\
job_2 running, b [2J
1,235 of 1,000,000 items have a result, 15 are in flight
0 + 0 tokens, 0.5000 $; 1 failed: 1 content_blocked
1 h 0 min left
";
        assert_eq!(first, expected);
        let second = shown(&answer()["jobs"][1]).unwrap();
        assert!(second.starts_with("job_1 paused (requested)\n0 of 5 items"), "{second}");
    }
}
