//! Signals: those that this process is sent, and those that it sends to the command.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind, signal};

/// The signals that ask a process to end, as they come.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Takes in what asks this process to end, but for what it was started to ignore: `nohup` and
    /// a shell's `&` mean the command, which would no longer ignore it.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let ends = [
            (Signal::INT, SignalKind::interrupt()),
            (Signal::TERM, SignalKind::terminate()),
            (Signal::HUP, SignalKind::hangup()),
        ];
        let heard =
            ends.into_iter().filter(|(number, _)| ignored >> (number.as_raw() - 1) & 1 == 0);
        heard.map(|(number, kind)| Ok((number, signal(kind)?))).collect::<Result<_, _>>().map(Self)
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let mut signals = self.0.iter_mut();
            let come = signals.find_map(|(number, signal)| {
                signal.poll_recv(context).is_ready().then_some(*number)
            });
            come.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The signals that this process was started to ignore, one bit each; none where the system does
/// not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Sends a signal to a command, unless it has ended.
pub(super) fn send(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(id) = id {
        // It fails only where the command has just ended.
        let _ = kill_process(id, signal);
    }
}
