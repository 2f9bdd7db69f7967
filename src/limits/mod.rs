//! The door: how many calls run at once, and who goes next.
//!
//! Every call holds a permit of the global semaphore while Gemini works on it; a call that names
//! a semaphore holds one of that too. Both are first come, first served. Nothing here knows what
//! a call is.

mod door;
mod named;
mod semaphore;

pub use door::{Admission, Door, Occupancy, Refused, Turnstile};
pub use named::{InvalidSemaphore, NamedSemaphores, SemaphoreId};
pub use semaphore::{Closed, Permit, Semaphore};
