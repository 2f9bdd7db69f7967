//! The signals that ask this process to end.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// The received signals that ask this process to end.
#[derive(Debug)]
pub struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Listens for the signals that ask this process to end, except those that it was started to ignore:
    /// `nohup` and a shell's `&` ignore them for the command, which would otherwise receive them.
    ///
    /// # Errors
    /// If the system refuses to deliver signals.
    pub fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let ends = [
            (Signal::INT, SignalKind::interrupt()),
            (Signal::TERM, SignalKind::terminate()),
            (Signal::HUP, SignalKind::hangup()),
        ];
        let handled =
            ends.into_iter().filter(|(number, _)| ignored >> (number.as_raw() - 1) & 1 == 0);
        handled
            .map(|(number, kind)| Ok((number, signal(kind)?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let mut signals = self.0.iter_mut();
            let received = signals.find_map(|(number, signal)| {
                signal.poll_recv(context).is_ready().then_some(*number)
            });
            received.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The signals that this process was started to ignore, one bit each; none if the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
