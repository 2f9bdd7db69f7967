//! The work of compiling a schema or checking an answer: how it is bounded and stopped.
//!
//! Work is counted in steps: about one for each value visited, or for each few dozen bytes of text
//! read. A step takes well under a microsecond.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio_util::sync::CancellationToken;

/// Steps between two checks of the token, which takes a lock.
const STEPS_BETWEEN_POLLS: u64 = 1024;

/// The steps that a thread which serves connections may spend on one piece of work: a fraction of a
/// millisecond. Many answers to a batch arrive at once, and each may spend as much.
const BRIEF: u64 = 16 * 1024;

/// A budget of steps that ends early when a token is cancelled.
#[derive(Debug)]
pub struct Work {
    left: Cell<u64>,
    until_poll: Cell<u64>,
    is_brief: bool,
    cancelled: CancellationToken,
}

/// The work was not finished: its steps are spent, or it was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was stopped before its end")]
pub struct Stopped;

/// Why a check ends inside the validator, which cannot return an error for it.
pub(super) enum Interrupt {
    Stopped,
    /// A text is too long to be matched against its pattern in bounded time.
    TooLongForPattern,
    /// An expression takes too much memory, with the others.
    PatternTooLarge,
}

impl From<Stopped> for Interrupt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Work {
    /// Work that a serving thread may do.
    pub fn brief() -> Self {
        Self { is_brief: true, ..Self::limited(BRIEF, CancellationToken::new()) }
    }

    /// Work that may continue until the token is cancelled.
    pub fn until(cancelled: CancellationToken) -> Self {
        Self::limited(u64::MAX, cancelled)
    }

    fn limited(steps: u64, cancelled: CancellationToken) -> Self {
        let (left, until_poll) = (steps.into(), STEPS_BETWEEN_POLLS.into());
        Self { left, until_poll, is_brief: false, cancelled }
    }

    /// Work with its own steps that is cancelled together with this work.
    pub(super) fn part(&self, steps: u64) -> Self {
        Self::limited(steps, self.cancelled.clone())
    }

    /// Sets the remaining steps, after part of the work was done elsewhere.
    pub(super) fn keep(&self, left: u64) {
        self.left.set(left);
    }

    /// Whether a serving thread may do this work.
    pub fn is_brief(&self) -> bool {
        self.is_brief
    }

    /// The remaining steps.
    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// Counts steps before they are taken.
    ///
    /// # Errors
    /// [`Stopped`] when too few steps are left, or the token is cancelled.
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

    /// Counts steps inside [`interruptible`], which is interrupted when the work is stopped.
    pub(super) fn spend_or_interrupt(&self, steps: usize) {
        if let Err(stopped) = self.spend(steps) {
            interrupt(stopped.into());
        }
    }
}

/// Ends the innermost [`interruptible`] around the caller. It unwinds the stack like a panic, but
/// runs no panic hook.
pub(super) fn interrupt(reason: Interrupt) -> ! {
    resume_unwind(Box::new(reason))
}

/// Runs a function that [`interrupt`] may end.
pub(super) fn interruptible<T>(run: impl FnOnce() -> T) -> Result<T, Interrupt> {
    let pass_on = |cause: Box<dyn Any + Send>| match cause.downcast() {
        Ok(interrupt) => *interrupt,
        Err(panic) => resume_unwind(panic),
    };
    // The interrupted state is dropped and not used again.
    catch_unwind(AssertUnwindSafe(run)).map_err(pass_on)
}
