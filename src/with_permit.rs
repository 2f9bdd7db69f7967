//! `with-permit`: runs a command while holding a lease of a running service.
//!
//! It waits for the lease, renews it while the command runs, releases it when the command ends, and exits
//! with the status of the command.

mod service;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::client::Refusal;
use crate::config::Config;
use crate::limits::{Leases, SemaphoreId};
use crate::signals::Signals;
use service::{GrantedLease, LeaseError, LeaseOrder, Service};

/// The service cannot be reached, or does not grant the lease (`EX_UNAVAILABLE` of sysexits.h).
const UNAVAILABLE: u8 = 69;
/// The lease was lost while the command ran (`EX_TEMPFAIL`).
const LOST: u8 = 75;
/// The admin key is missing or wrong (`EX_NOPERM`).
const NO_PERMISSION: u8 = 77;
/// A setting is invalid (`EX_CONFIG`).
const SETTINGS: u8 = 78;
/// The command cannot be started, or does not exist: the exit statuses of POSIX shells.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The longest name of a holder, in characters.
const MAX_HOLDER: usize = 128;

/// The command to run, and the lease to hold.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The URL of the service; default: http://127.0.0.1 with the port in PORT.
    #[arg(long)]
    url: Option<String>,
    /// How many permits to hold, 1 to 1000.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    permits: u16,
    /// After how many seconds the lease expires unless it is renewed, 1 to 3600. It is renewed after each
    /// third of this.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = ttl)]
    ttl: Duration,
    /// The name of the holder in lists of leases; default: the command, its process and its machine.
    #[arg(long, value_name = "NAME", value_parser = holder)]
    holder: Option<String>,
    /// The semaphore.
    #[arg(value_parser = SemaphoreId::parse)]
    id: SemaphoreId,
    /// The command and its arguments. Its environment has PERMIT_LEASE_ID and PERMIT_FENCING_TOKEN.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Why the command was not run, or was stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit status for this error.
    pub exit_status: u8,
    message: String,
}

impl Failure {
    fn new(exit_status: u8, message: impl Into<String>) -> Self {
        Self { exit_status, message: message.into() }
    }

    /// A setting is invalid.
    pub fn settings(message: String) -> Self {
        Self::new(SETTINGS, message)
    }
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        let exit_status = match &error {
            LeaseError::Refused(refusal) => refused(refusal),
            _ => UNAVAILABLE,
        };
        Self::new(exit_status, error.to_string())
    }
}

/// The exit status for a refusal.
fn refused(refusal: &Refusal) -> u8 {
    match refusal.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => NO_PERMISSION,
        _ => UNAVAILABLE,
    }
}

/// Runs the command with the lease, with only these environment variables. Returns the exit status: the
/// command's, or 128 plus the number of the signal that killed it.
///
/// # Errors
/// [`Failure`] if the command was not run, or was stopped because the lease was lost.
pub async fn run(
    arguments: Arguments,
    config: &Config,
    environment: &HashMap<OsString, OsString>,
) -> Result<u8, Failure> {
    let Arguments { url, permits, ttl, holder, id, command } = arguments;
    let no_key = || Failure::new(NO_PERMISSION, "ADMIN_API_KEY is not set, or holds no key");
    let admin_key = config.admin_api_key.as_ref().and_then(|key| key.header());
    let url = url.unwrap_or_else(|| format!("http://{}:{}", Ipv4Addr::LOCALHOST, config.port));
    let service = Service::new(&url, &id, admin_key.ok_or_else(no_key)?)
        .map_err(|message| Failure::new(UNAVAILABLE, message))?;
    let holder = holder.unwrap_or_else(|| default_holder(&command[0]));
    let request = LeaseOrder { holder, permits, ttl };
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(UNAVAILABLE, error.to_string()))?;

    let (lease, ends) = tokio::select! {
        taken = take(&service, &request) => taken?,
        signal = signals.next() => return Ok(killed_by(signal)),
    };
    let child = Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .envs(environment)
        .env("PERMIT_LEASE_ID", &lease.lease_id)
        .env("PERMIT_FENCING_TOKEN", lease.fencing_token.to_string())
        .spawn();
    let outcome = match child {
        Ok(child) => supervise(child, &service, &lease, ttl, ends, &mut signals).await,
        Err(error) => {
            let not_found = error.kind() == ErrorKind::NotFound;
            let exit_status = if not_found { NOT_FOUND } else { NOT_EXECUTABLE };
            Err(Failure::new(exit_status, format!("{}: {error}", command[0].display())))
        }
    };
    if let Err(error) = service.release(&lease).await
        && outcome.is_ok()
    {
        eprintln!(
            "gemini-concurrent-generation: the lease could not be released, and expires: {error}"
        );
    }
    outcome
}

/// Waits for a lease, and renews it at once, because the answer does not say how long ago it was granted.
/// Returns it with the time at which it expires.
async fn take(
    service: &Service,
    request: &LeaseOrder,
) -> Result<(GrantedLease, Instant), LeaseError> {
    loop {
        let lease = service.take(request).await?;
        if let Ok(ends) = service.renew(&lease, request.ttl).await {
            return Ok((lease, ends));
        }
        // The lease expired meanwhile, or cannot be renewed.
        service.release(&lease).await?;
    }
}

/// Renews the lease and forwards signals until the command ends.
async fn supervise(
    mut child: Child,
    service: &Service,
    lease: &GrantedLease,
    ttl: Duration,
    ends: Instant,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let mut lost = None;
    let mut kept = pin!(service.keep(lease, ttl, ends));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            signal = signals.next() => send(&child, signal),
            reason = &mut kept, if lost.is_none() => {
                send(&child, Signal::TERM);
                lost = Some(format!("the lease was lost, and the command stopped: {reason}"));
            }
        }
    };
    match (lost, status) {
        (Some(reason), _) => Err(Failure::new(LOST, reason)),
        (None, Ok(status)) => Ok(exit_status(status)),
        (None, Err(error)) => Err(Failure::new(UNAVAILABLE, error.to_string())),
    }
}

/// Sends a signal to a command, unless it has ended.
fn send(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(id) = id {
        // This fails only if the command has just ended.
        let _ = kill_process(id, signal);
    }
}

fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn killed_by(signal: Signal) -> u8 {
    exit_status(ExitStatus::from_raw(signal.as_raw()))
}

fn ttl(seconds: &str) -> Result<Duration, String> {
    let time = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| Leases::TTL.contains(time))
        .ok_or_else(|| "expected a number of seconds from 1 to 3600".to_owned())
}

fn holder(name: &str) -> Result<String, String> {
    let fits = !name.trim().is_empty() && name.chars().count() <= MAX_HOLDER;
    fits.then(|| name.to_owned()).ok_or_else(|| "expected 1 to 128 characters".to_owned())
}

/// Such as `render.sh, process 4711, on build-7`.
fn default_holder(command: &OsStr) -> String {
    let name = Path::new(command).file_name().unwrap_or(command);
    let name: String = name.to_string_lossy().chars().take(48).collect();
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine: String = machine.trim().chars().take(48).collect();
    let process = std::process::id();
    if machine.is_empty() {
        format!("{name}, process {process}")
    } else {
        format!("{name}, process {process}, on {machine}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_status_of_a_refusal_is_that_of_its_code_or_else_of_its_status() {
        for (status, code, exit_status) in [
            (401, "unauthenticated", NO_PERMISSION),
            (403, "", NO_PERMISSION),
            (407, "", UNAVAILABLE),
            (404, "semaphore_not_found", UNAVAILABLE),
            (422, "validation_error", UNAVAILABLE),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let refusal = Refusal::new(status, &json!({"code": code}));
            assert_eq!(refused(&refusal), exit_status, "{status} {code:?}");
        }
    }
}
