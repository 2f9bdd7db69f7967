//! A larger stack for checks that need more than a thread usually has.

use std::panic::resume_unwind;
use std::thread::{Builder, scope};

use super::work::Work;

/// The most stack that the validator takes for each nested schema, in bytes. `oneOf` takes the most
/// when errors are collected: 3.4 KB in a debug build, and a third of that in a release build.
const LEVEL: usize = 4 << 10;

/// The levels that fit in the stack of any thread, which has 2 MiB.
const HELD_ANYWHERE: usize = 500;

/// The most levels: more than the longest chain for each of the 128 levels that the JSON of an
/// answer may have. The system provides the memory as the stack is used.
const MOST: usize = 40_000;

/// Runs a function on a stack for this many levels; none when there are too many.
pub(super) fn with_levels<T: Send>(
    levels: usize,
    work: &Work,
    run: impl FnOnce(&Work) -> T + Send,
) -> Option<T> {
    if levels <= HELD_ANYWHERE {
        return Some(run(work));
    }
    if levels > MOST {
        return None;
    }
    let part = work.part(work.left());
    let (result, left) = scope(|scope| {
        let thread = Builder::new().name("deep-check".to_owned()).stack_size(levels * LEVEL);
        let thread = thread.spawn_scoped(scope, move || (run(&part), part.left())).ok()?;
        Some(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    work.keep(left);
    Some(result)
}
