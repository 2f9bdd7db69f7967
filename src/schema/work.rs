//! How much work compiling a schema or checking an answer may take, and how it is stopped.
//!
//! Work is counted in steps: about one for each value that is visited, or for each few dozen bytes
//! of text that are read. A step takes well under a microsecond.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio_util::sync::CancellationToken;

/// Steps between two looks at the token, which takes a lock.
const STEPS_BETWEEN_POLLS: u64 = 1024;

/// Steps that take a fraction of a millisecond: what a thread that serves connections may spend. The
/// answers to a batch come many at once, and each of them may spend as much.
const BRIEF: u64 = 16 * 1024;

/// A budget of steps that ends early when a token is cancelled.
#[derive(Debug)]
pub struct Work {
    left: Cell<u64>,
    until_poll: Cell<u64>,
    is_brief: bool,
    cancelled: CancellationToken,
}

/// The work is not finished: its steps are spent, or it was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was stopped before its end")]
pub struct Stopped;

/// Why a check ends in the middle of the validator, which has no way to return it.
pub(super) enum Interrupt {
    Stopped,
    /// A text is longer than its pattern can be matched against in bounded time.
    TooLongForPattern,
}

impl From<Stopped> for Interrupt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Work {
    /// Work that a serving thread may do itself.
    pub fn brief() -> Self {
        Self { is_brief: true, ..Self::limited(BRIEF, CancellationToken::new()) }
    }

    /// Work that goes on until the token is cancelled.
    pub fn until(cancelled: CancellationToken) -> Self {
        Self::limited(u64::MAX, cancelled)
    }

    fn limited(steps: u64, cancelled: CancellationToken) -> Self {
        let (left, until_poll) = (steps.into(), STEPS_BETWEEN_POLLS.into());
        Self { left, until_poll, is_brief: false, cancelled }
    }

    /// Work with steps of its own that is cancelled with this one.
    pub(super) fn part(&self, steps: u64) -> Self {
        Self::limited(steps, self.cancelled.clone())
    }

    /// Goes on with so many steps, as part of it was done elsewhere.
    pub(super) fn keep(&self, left: u64) {
        self.left.set(left);
    }

    /// Whether it is work that a serving thread may do.
    pub fn is_brief(&self) -> bool {
        self.is_brief
    }

    /// The steps that are left.
    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// Counts steps that are about to be taken.
    ///
    /// # Errors
    /// [`Stopped`] where there are too few left, or the token is cancelled.
    pub fn spend(&self, steps: usize) -> Result<(), Stopped> {
        let steps = steps as u64;
        let left = self.left.get().checked_sub(steps).ok_or(Stopped)?;
        self.left.set(left);
        match self.until_poll.get().checked_sub(steps) {
            Some(until_poll) => self.until_poll.set(until_poll),
            None if self.cancelled.is_cancelled() => return Err(Stopped),
            None => self.until_poll.set(STEPS_BETWEEN_POLLS),
        }
        Ok(())
    }

    /// The same inside [`interruptible`], which an interrupt ends.
    pub(super) fn spend_or_interrupt(&self, steps: usize) {
        if let Err(stopped) = self.spend(steps) {
            interrupt(stopped.into());
        }
    }
}

/// Ends the innermost [`interruptible`] around the caller. It unwinds the stack as a panic does, but
/// is none: no panic hook runs.
pub(super) fn interrupt(reason: Interrupt) -> ! {
    resume_unwind(Box::new(reason))
}

/// Runs a function that [`interrupt`] may end.
pub(super) fn interruptible<T>(run: impl FnOnce() -> T) -> Result<T, Interrupt> {
    let pass_on = |cause: Box<dyn Any + Send>| match cause.downcast() {
        Ok(interrupt) => *interrupt,
        Err(panic) => resume_unwind(panic),
    };
    // What was interrupted is dropped; nothing that it had changed is used again.
    catch_unwind(AssertUnwindSafe(run)).map_err(pass_on)
}
