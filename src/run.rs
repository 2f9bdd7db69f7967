//! `run`: answers the prompts of a file. `jobs`: lists and changes jobs.
//!
//! The prompts become a job, of a running service or of a gateway in this process, and its results are
//! written as they come. The job outlives this process: the same command goes on where it stopped.

mod begin;
mod directory;
mod failure;
mod follow;
mod input;
mod local;
mod manage;
mod output;
mod plan;
mod progress;
mod result;
mod results;
mod service;
mod template;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::HumanCount;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::client::{ClientKey, GatewayClient};
use crate::config::{AdminKey, Config};
use crate::signals::Signals;
use begin::{Contact, begin, persistently};
use failure::{NO_PERMISSION, NOT_NOW, NOT_PAUSED, SOME_FAILED, UNAVAILABLE, USAGE};
use follow::{End, FailedItem, Follower, watch};
use local::LocalGateway;
use output::{Output, OutputFormat, check_replaceable};
use plan::Plan;
use progress::{Progress, account, duration};
use service::{Action, JobService, JobStatus};
use upload::{JobArguments, Upload};

pub use failure::{EXIT_STATUSES, RunFailure};
pub use manage::{JobsArguments, manage};

/// What is asked, and where the answers go.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    job: JobArguments,
    /// The file for the results; - is standard output. It is written as FILE.part and renamed at the end.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// The form of the output; default: by the extension of its name.
    #[arg(long, value_enum, value_name = "FORMAT")]
    output_format: Option<OutputFormat>,
    /// Replaces an existing output, and asks all items again.
    #[arg(long)]
    force: bool,
    /// Shows no progress: only the summary and errors.
    #[arg(short, long)]
    quiet: bool,
    /// Asks failed items of a run again: those that may succeed, or with --retry=all every one.
    #[arg(
        long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true,
        default_missing_value = "retryable"
    )]
    retry: Option<Retry>,
    #[command(flatten)]
    service: ServiceArguments,
}

/// Which gateway is asked.
#[derive(Debug, Args)]
pub struct ServiceArguments {
    /// The URL of a running gateway; default: GATEWAY_URL.
    #[arg(long, global = true)]
    url: Option<String>,
    /// Which key is sent to it; default: the first one that is set.
    #[arg(long, value_enum, value_name = "VARIABLE", global = true)]
    key_from: Option<KeySource>,
}

/// Where the key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KeySource {
    #[value(name = "ADMIN_API_KEY")]
    Admin,
    #[value(name = "GEMINI_API_KEY")]
    Gemini,
    #[value(name = "none")]
    Nowhere,
}

/// Which failed items are asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Retry {
    Retryable,
    All,
}

/// Answers the prompts. Without a service, a gateway in this process does. Returns the exit status.
///
/// # Errors
/// [`RunFailure`] if not every item has a result.
pub async fn run(arguments: Arguments, config: Config) -> Result<u8, RunFailure> {
    let Arguments { job, output, output_format, force, quiet, retry, service } = arguments;
    let url = service.url.or_else(|| config.gateway_url.clone());
    let client = url.map(|url| client(&url, service.key_from, &config)).transpose()?;
    if client.is_none() && config.gemini_api_key.is_none() {
        let message = "GEMINI_API_KEY is not set, and no service is named: --url, or GATEWAY_URL";
        return Err(RunFailure::new(NO_PERMISSION, message));
    }
    // Until all of it is read, signals end the process.
    let upload = Arc::new(Upload::new(job, config.max_body_bytes)?);
    check_replaceable(&output, Some(upload.input()))
        .map_err(|message| RunFailure::new(USAGE, message))?;
    let measure = upload.measure()?;
    let url = client.as_ref().and_then(GatewayClient::url);
    let mut plan = Plan::new(&output, &measure, url, force, retry)?;
    let mut signals =
        Signals::listen().map_err(|error| RunFailure::new(UNAVAILABLE, error.to_string()))?;

    let (client, local) = match client {
        Some(client) => (client, None),
        None => {
            let data = plan.data().expect("a run without a service has a directory");
            match LocalGateway::start(config, data).await {
                Ok(local) => (local.client(), Some(local)),
                Err(failure) => {
                    if !plan.had_record() {
                        plan.abandon(&output)?;
                    }
                    return Err(failure);
                }
            }
        }
    };
    let service = JobService::new(client);
    let results = Output::create(&output, output_format, &upload, plan.had_record())?;
    let progress = Progress::new(results.is_terminal(), quiet);
    let outcome = work(&service, &upload, &mut plan, results, &progress, &mut signals).await;
    progress.clear();
    if let Some(local) = local {
        // A second signal does not wait for calls in flight.
        let signalled = async {
            signals.next().await;
        };
        local.stop(signalled).await;
    }
    if plan.job_id().is_none() {
        // A service that has all of it may have accepted the job without having said so.
        let is_open = match &outcome {
            Ok(_) => true,
            Err(failure) => failure.may_be_accepted(),
        };
        if !(is_open && upload.was_sent()) {
            plan.abandon(&output)?;
        }
        return match outcome {
            Ok(Outcome::Interrupted(exit_status)) => Ok(exit_status),
            Ok(Outcome::Complete { .. }) => unreachable!("a job that was not accepted has no end"),
            Err(failure) => Err(failure),
        };
    }
    match outcome? {
        Outcome::Interrupted(exit_status) => Ok(exit_status),
        Outcome::Complete { job, failed } => {
            plan.finish(job.failed > 0)?;
            list(&failed, &job);
            Ok(if job.failed > 0 { SOME_FAILED } else { 0 })
        }
    }
}

/// After all of a job was sent, and before the answer.
const MAY_BE_ACCEPTED: &str =
    "ended before an answer: the service may have accepted the job; the same command continues it";

/// Before that.
const NOT_ACCEPTED: &str = "ended before the job was accepted; nothing was asked";

/// How a run ended.
enum Outcome {
    /// The output is complete.
    Complete { job: Box<JobStatus>, failed: Vec<FailedItem> },
    /// A signal came. The exit status says whether the job is paused.
    Interrupted(u8),
}

/// Begins or continues the job, and follows it to its end.
async fn work(
    service: &JobService,
    upload: &Arc<Upload>,
    plan: &mut Plan,
    output: Output<'_>,
    progress: &Progress,
    signals: &mut Signals,
) -> Result<Outcome, RunFailure> {
    let started = Instant::now();
    let job = tokio::select! {
        job = begin(service, upload, plan, progress) => job?,
        signal = signals.next() => {
            if let Some(id) = plan.job_id() {
                return Ok(Outcome::Interrupted(pause(service, id, progress, signals, signal).await));
            }
            progress.leave();
            let may_be_accepted = upload.was_sent();
            eprintln!("{}", if may_be_accepted { MAY_BE_ACCEPTED } else { NOT_ACCEPTED });
            let goes_on = may_be_accepted && !service.is_here();
            return Ok(Outcome::Interrupted(if goes_on { NOT_PAUSED } else { killed_by(signal) }));
        }
    };
    progress.show(&job);
    let id = &*job.job_id;
    let mut follower = Follower::new(service, id, upload.kind(), output);
    let end = tokio::select! {
        end = follower.follow(job.total) => end,
        failure = watch(service, id, progress) => Err(failure),
        signal = signals.next() => {
            return Ok(Outcome::Interrupted(pause(service, id, progress, signals, signal).await));
        }
    };
    let end = match end {
        Err(failure) if failure.is_of_output() => {
            // Nothing more is spent on answers that nobody gets.
            drop(service.act(id, Action::Pause).await);
            return Err(failure);
        }
        end => end?,
    };
    let job = persistently(progress, Contact::Later, async || service.job(id).await).await?;
    let (failed, output) = follower.into_parts();
    if end == End::Cancelled {
        let (done, total) = (HumanCount(job.done()), HumanCount(job.total));
        let message = format!(
            "the job {id} was cancelled: {done} of {total} items have a result; with --retry, the \
             same command continues it"
        );
        return Err(RunFailure::new(NOT_NOW, message));
    }
    output.finish()?;
    progress.clear();
    summarise(&job, started.elapsed());
    if plan.is_repeated() {
        eprintln!("these are stored answers of the job {id}; --force asks all items again");
    }
    Ok(Outcome::Complete { job: Box::new(job), failed })
}

/// Pauses the job after a signal, unless another signal comes, and says how to continue. Returns the exit
/// status.
async fn pause(
    service: &JobService,
    id: &str,
    progress: &Progress,
    signals: &mut Signals,
    signal: Signal,
) -> u8 {
    progress.leave();
    eprintln!("pausing; Ctrl-C again ends at once");
    // A gateway in this process ends with it.
    let unpaused = if service.is_here() { killed_by(signal) } else { NOT_PAUSED };
    let paused = tokio::select! {
        paused = service.act(id, Action::Pause) => paused,
        _ = signals.next() => {
            if !service.is_here() {
                eprintln!("ended before the job {id} was paused; it may go on");
            }
            std::process::exit(unpaused.into());
        }
    };
    match paused {
        Ok(job) => {
            let (done, total) = (HumanCount(job.done()), HumanCount(job.total));
            eprintln!("paused: {done} of {total} items are answered; the same command continues");
            killed_by(signal)
        }
        Err(error) => {
            let goes_on = if service.is_here() { "" } else { ", and goes on" };
            eprintln!("the job {id} could not be paused{goes_on}: {error}");
            unpaused
        }
    }
}

/// Prints what a job took.
fn summarise(job: &JobStatus, time: Duration) {
    let (total, succeeded) = (HumanCount(job.total), HumanCount(job.succeeded));
    let (items, time) = (if job.total == 1 { "item" } else { "items" }, duration(time));
    eprintln!("{total} {items}: {succeeded} answered; {}; {time}", account(job));
}

/// Prints the first failed items.
fn list(failed: &[FailedItem], job: &JobStatus) {
    for FailedItem { index, custom_id, failure } in failed {
        let name = custom_id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
        let message: String = failure.message.chars().take(200).collect();
        eprintln!("  {index}{name} {}: {}", failure.code, printable(&message));
    }
    let more = job.failed.saturating_sub(failed.len() as u64);
    if more > 0 {
        eprintln!("  and {} more", HumanCount(more));
    }
    if job.failed > 0 {
        eprintln!(
            "the same command asks those again that may succeed with --retry, and every one with \
             --retry=all"
        );
    }
}

/// A text without characters that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A client of a running service.
fn client(
    url: &str,
    from: Option<KeySource>,
    config: &Config,
) -> Result<GatewayClient, RunFailure> {
    let admin = config.admin_api_key.as_ref().and_then(AdminKey::header).map(ClientKey::Admin);
    let own = || config.gemini_api_key.clone().map(ClientKey::Own);
    let missing = |name| RunFailure::new(NO_PERMISSION, format!("{name} is not set"));
    let key = match from {
        Some(KeySource::Admin) => admin.ok_or_else(|| missing("ADMIN_API_KEY"))?,
        Some(KeySource::Gemini) => own().ok_or_else(|| missing("GEMINI_API_KEY"))?,
        Some(KeySource::Nowhere) => ClientKey::None,
        None => admin.or_else(own).unwrap_or(ClientKey::None),
    };
    GatewayClient::new(url, key).map_err(|message| RunFailure::new(USAGE, message))
}

fn killed_by(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}
