//! Logs.

use std::io::{self, IsTerminal, Write, stderr};
use std::panic::{self, PanicHookInfo};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::gemini::{Secrets, redact};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// How many lines wait to be written. Further lines are dropped: a log that nobody reads must not block
/// anything.
const WAITING_LINES: usize = 8192;

/// How long writing the remaining lines may take at the end.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Counts the dropped lines.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Writes the remaining lines when it is dropped at the end of the process.
#[derive(Debug)]
#[must_use = "without it, the last lines are lost"]
pub struct Logs {
    guard: Option<WorkerGuard>,
    filter: LogFilter,
}

/// Decides what is logged. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Replaces the filter.
    pub fn set(&self, filter: &str) {
        // It fails when nothing is logged any more.
        let _ = self.0.reload(env_filter(filter));
    }
}

impl Logs {
    /// The filter of these logs.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        // On a separate thread, since it blocks while nobody reads the log.
        let (flushed, wait) = mpsc::channel();
        let guard = self.guard.take();
        let flush = move || {
            drop(guard);
            let _ = flushed.send(());
        };
        if thread::Builder::new().spawn(flush).is_ok() {
            let _ = wait.recv_timeout(FLUSH_TIME);
        }
    }
}

/// Always off: it logs malformed paths, which may contain a key.
const UNLOGGED: &str = "h2::server=off";

/// How many log lines were dropped because they could not be written fast enough.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Starts to write the logs of this process, including panics, to standard error. The given secrets and
/// everything that has the form of a secret are overwritten. A separate thread does the writing. A
/// second call changes nothing.
pub fn init(format: LogFormat, filter: &str, secrets: Secrets) -> Logs {
    let (filter, handle) = reload::Layer::new(env_filter(filter));
    // Colours are for terminals, not for files and collectors.
    let colours = stderr().is_terminal();
    let writer = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_LINES);
    let (writer, guard) = writer.thread_name("log").finish(stderr());
    let dropped = writer.error_counter();
    // If the log's reader is gone, so is standard error; reporting an error there would panic.
    let lines = fmt::layer().with_ansi(colours).log_internal_errors(false);
    let lines = lines.with_writer(Redacted { lines: writer, secrets });
    let logs = tracing_subscriber::registry().with(filter);
    let result = match format {
        LogFormat::Text => logs.with(lines).try_init(),
        LogFormat::Json => logs.with(lines.json().flatten_event(true)).try_init(),
    };
    panic::set_hook(Box::new(log_panic));
    match result {
        Ok(()) => {
            let _ = DROPPED.set(dropped);
        }
        Err(_) => tracing::debug!("logging is already set up"),
    }
    Logs { guard: Some(guard), filter: LogFilter(handle) }
}

fn env_filter(filter: &str) -> EnvFilter {
    EnvFilter::new(filter).add_directive(UNLOGGED.parse().expect("it is a directive"))
}

/// Writes lines, or makes the writer for them, with secrets overwritten.
struct Redacted<W> {
    lines: W,
    secrets: Secrets,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacted<M> {
    type Writer = Redacted<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Redacted { lines: self.lines.make_writer(), secrets: self.secrets.clone() }
    }
}

impl<W: Write> Write for Redacted<W> {
    /// Writes one complete line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.secrets.can_pass(line) {
            self.lines.write_all(line)?;
        } else {
            let masked = self.secrets.mask(Bytes::copy_from_slice(line));
            self.lines.write_all(&redact(&masked))?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// Logs the location of a panic without its message, which may contain a part of a prompt: for example,
/// slicing a string inside a character shows the string.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, "panicked");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn secrets_are_overwritten_in_the_log() {
        let log = Log::default();
        let lines = log.clone();
        let key = crate::gemini::ApiKey::new("the-server-key").unwrap();
        let secrets = Secrets::new([&key]);
        let lines = Redacted { lines: move || lines.clone(), secrets };
        let logs = tracing_subscriber::fmt().with_writer(lines).finish();
        let google = format!("AIza{}", "x".repeat(35));
        tracing::subscriber::with_default(logs, || {
            tracing::warn!(path = %format_args!("/v1beta/{google}"), "the-server-key is no model");
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("/v1beta/***") && log.contains("************** is no model"), "{log}");
        assert!(!log.contains("AIza"), "{log}");
    }

    #[test]
    fn a_panic_is_logged_with_its_location_and_without_its_message() {
        let log = Log::default();
        let writer = log.clone();
        let logs = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let usual = panic::take_hook();
        panic::set_hook(Box::new(log_panic));
        tracing::subscriber::with_default(logs, || {
            let cut = |text: &str| text[..text.len() - 1].len();
            assert!(panic::catch_unwind(|| cut("a secret, cut at an \u{e9}")).is_err());
        });
        panic::set_hook(usual);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("panicked") && log.contains("telemetry.rs"), "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
}
