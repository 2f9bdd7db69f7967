//! The file descriptors and the memory that connections take.

use super::connection::MEMORY;
use crate::memory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The assumed number of open files if the system does not report it.
const OPEN: u64 = 64;

/// Raises the soft limit of open files to the hard limit.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
}

/// How many connections clients may hold: at most `wanted`. Up to `reserved` file descriptors, but no
/// more than half of the free ones, are kept for connections to other services. Together the
/// connections take at most a quarter of the memory that the process may use.
pub fn affordable_connections(wanted: usize, reserved: usize) -> usize {
    let open_files = getrlimit(Resource::Nofile).current;
    let by_files =
        open_files.map(|limit| affordable(limit.saturating_sub(open()), reserved as u64));
    let by_memory = held_in(memory::available() / 4);
    let affordable = by_files.map_or(by_memory, |by_files| by_files.min(by_memory));
    let affordable = usize::try_from(affordable).unwrap_or(usize::MAX);
    if affordable < wanted {
        tracing::warn!(
            affordable,
            open_files,
            by_memory,
            "the limit of open files or the memory allows fewer connections than MAX_CONNECTIONS"
        );
    }
    wanted.min(affordable)
}

/// How many connections fit into this much memory.
fn held_in(memory: u64) -> u64 {
    (memory / MEMORY).max(1)
}

fn affordable(free: u64, reserved: u64) -> u64 {
    (free - reserved.min(free / 2)).max(1)
}

/// How many files this process has open.
fn open() -> u64 {
    std::fs::read_dir("/dev/fd").map_or(OPEN, |files| files.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_holds_fewer_connections() {
        assert_eq!(held_in(128 << 20), 2048);
        assert_eq!(held_in(0), 1);
    }

    #[test]
    fn descriptors_are_reserved_for_calls_but_at_most_half() {
        for (free, reserved, connections) in
            [(1000, 286, 714), (400, 286, 200), (20, 286, 10), (1, 286, 1), (0, 286, 1)]
        {
            assert_eq!(affordable(free, reserved), connections, "{free}");
        }
    }
}
