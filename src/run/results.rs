//! Reads the results of a job line by line, as they come.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use memchr::memchr;
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::failure::{RunFailure, UNAVAILABLE};
use super::output::OutputError;
use super::service::JobService;
use crate::client::ClientError;

/// A connection over which no result came for this long may be dead, and is replaced.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// The longest result that is read, in bytes.
const MAX_LINE: usize = 256 << 20;

/// Takes results.
pub(super) trait ResultSink {
    /// Takes a result: a line of JSON without its end.
    ///
    /// # Errors
    /// [`Interruption`] if it cannot be read or written.
    fn line(&mut self, line: &[u8]) -> Result<(), Interruption>;

    /// Writes what was taken.
    ///
    /// # Errors
    /// [`Interruption`] if it cannot be written.
    fn flush(&mut self) -> Result<(), Interruption>;
}

/// Why reading ended before the end.
#[derive(Debug)]
pub(super) enum Interruption {
    Service(ClientError),
    Output(OutputError),
    Malformed(String),
}

impl From<Interruption> for RunFailure {
    fn from(interruption: Interruption) -> Self {
        match interruption {
            Interruption::Service(error) => error.into(),
            Interruption::Output(error) => error.into(),
            Interruption::Malformed(message) => Self::new(UNAVAILABLE, message),
        }
    }
}

/// Reads results until the service ends them. `query` says which.
pub(super) async fn read(
    service: &JobService,
    id: &str,
    query: &str,
    sink: &mut impl ResultSink,
) -> Result<(), Interruption> {
    let opened = timeout(SILENCE, service.results(id, query)).await;
    let opened = opened.unwrap_or_else(|_| Err(service.silent(SILENCE)));
    let mut body: Body = opened.map_err(Interruption::Service)?;
    let broken = |reason: &str| Interruption::Service(ClientError::Broken(reason.to_owned()));
    let mut start = Vec::new();
    loop {
        let frame = timeout(SILENCE, body.frame()).await;
        let frame = frame.map_err(|_| broken("no result for a while"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken(&format!("the connection broke: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        // The output may be a pipe that nobody reads.
        block_in_place(|| take(&mut start, data, sink))?;
    }
    if start.is_empty() { Ok(()) } else { Err(broken("a result is incomplete")) }
}

/// Passes the lines on in what has come, and keeps the start of a line that is not complete.
fn take(
    start: &mut Vec<u8>,
    mut data: Bytes,
    sink: &mut impl ResultSink,
) -> Result<(), Interruption> {
    while let Some(end) = memchr(b'\n', &data) {
        let rest = data.split_to(end + 1);
        let line = if start.is_empty() {
            &rest[..end]
        } else {
            start.extend_from_slice(&rest[..end]);
            &start[..]
        };
        if !line.trim_ascii().is_empty() {
            sink.line(line)?;
        }
        start.clear();
    }
    if start.len() + data.len() > MAX_LINE {
        let message = format!("a result is longer than {MAX_LINE} bytes");
        return Err(Interruption::Malformed(message));
    }
    start.extend_from_slice(&data);
    sink.flush()
}
