//! Admission: a request takes a place in the queue and is let in when its turn comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::named::NamedSemaphores;
use super::semaphore::{Permit, Semaphore, Waiting};

/// The one way in to Gemini: a global limit on calls in flight and the semaphores that add to it.
#[derive(Debug)]
pub struct Door {
    global: Arc<Semaphore>,
    named: NamedSemaphores,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Why a call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many requests wait as may wait.
    #[error("the queue is full")]
    QueueFull,
    /// The named semaphore was deleted while the call waited for it.
    #[error("the semaphore was deleted")]
    SemaphoreDeleted,
}

/// How busy the door is at one moment. In calls, but for `waiting`: in requests, of which a
/// batch is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// How many calls may be in flight at once.
    pub limit: usize,
    /// How many more could start now.
    pub available: usize,
    /// How many are in flight.
    pub in_flight: usize,
    /// How many wait, for the global or for a named semaphore.
    pub waiting: usize,
}

impl Door {
    /// A door through which `limit` calls go at once, and at which `max_waiting` requests wait.
    pub fn new(limit: usize, max_waiting: usize) -> Arc<Self> {
        Arc::new(Self {
            global: Semaphore::new(limit),
            named: NamedSemaphores::default(),
            waiting: AtomicUsize::new(0),
            max_waiting,
        })
    }

    /// The semaphores that calls can name.
    pub fn named(&self) -> &NamedSemaphores {
        &self.named
    }

    /// How busy the door is now.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            limit: self.global.limit(),
            available: self.global.available(),
            in_flight: self.global.in_use(),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    fn join_queue(&self, accepted: bool) -> Result<Waiting<'_>, Refused> {
        if accepted {
            return Ok(Waiting::join(&self.waiting));
        }
        Waiting::join_up_to(&self.waiting, self.max_waiting).ok_or(Refused::QueueFull)
    }
}

/// A request's place in the queue. A batch of any size has one, as a single request has: its
/// calls pass one after the other, first attempts and retries alike, so that nobody who comes
/// after ten thousand items waits for more than one of them.
#[derive(Debug)]
pub struct Turnstile {
    door: Arc<Door>,
    turn: Mutex<()>,
    accepted: AtomicBool,
}

impl Turnstile {
    /// A place for one request or one batch.
    pub fn new(door: Arc<Door>) -> Self {
        Self { door, turn: Mutex::new(()), accepted: AtomicBool::new(false) }
    }

    /// Waits for the named semaphore, if any, and then for the global one. In this order the
    /// global slot, the scarcest, is never held by one who still waits, and nobody can deadlock.
    /// Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] when a request that has not waited before would have to and too
    /// many do; [`Refused::SemaphoreDeleted`].
    pub async fn admit(&self, named: Option<&Arc<Semaphore>>) -> Result<Admission, Refused> {
        let asked = Instant::now();
        let _turn = self.turn.lock().await;
        if let Some(named) = named {
            let permit = self.acquire(named).await?;
            let global = self.acquire(&self.door.global).await?;
            return Ok(Admission {
                _global: global,
                _named: Some(permit),
                waited: asked.elapsed(),
            });
        }
        let global = self.acquire(&self.door.global).await?;
        Ok(Admission { _global: global, _named: None, waited: asked.elapsed() })
    }

    async fn acquire(&self, semaphore: &Arc<Semaphore>) -> Result<Permit, Refused> {
        if let Some(permit) = semaphore.try_acquire() {
            self.accepted.store(true, Ordering::Relaxed);
            return Ok(permit);
        }
        let _waiting = self.door.join_queue(self.accepted.load(Ordering::Relaxed))?;
        // Work that was accepted is not refused later for those who came after it.
        self.accepted.store(true, Ordering::Relaxed);
        semaphore.acquire().await.map_err(|_| Refused::SemaphoreDeleted)
    }
}

/// The right to one call; dropping it lets the next one in.
#[derive(Debug)]
#[must_use = "dropping an admission gives its slots back at once"]
pub struct Admission {
    // Fields drop in this order: the global slot, for which all wait, comes free first.
    _global: Permit,
    _named: Option<Permit>,
    /// How long the call waited to be let in.
    pub waited: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SemaphoreId;

    #[tokio::test]
    async fn a_task_that_panics_gives_its_slots_back() {
        let door = Door::new(1, 0);
        let id = SemaphoreId::parse("images").unwrap();
        let (named, _) = door.named().register(id, 1).unwrap();
        let admission = Turnstile::new(Arc::clone(&door)).admit(Some(&named)).await.unwrap();
        assert_eq!((door.occupancy().in_flight, named.in_use()), (1, 1));
        let task = tokio::spawn(async move {
            let _admission = admission;
            panic!("with the admission in its hands");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!((door.occupancy().in_flight, door.occupancy().available), (0, 1));
        assert_eq!((named.in_use(), named.available()), (0, 1));
    }

    /// The lock that a batch's items pass through one by one is not poisoned by one of them.
    #[tokio::test]
    async fn a_task_that_panics_in_the_queue_leaves_it_to_the_others() {
        let door = Door::new(1, 10);
        let place = Arc::new(Turnstile::new(Arc::clone(&door)));
        let held = place.admit(None).await.unwrap();
        let waits = Arc::clone(&place);
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = waits.admit(None) => {}
                () = std::future::ready(()) => panic!("while it waits"),
            }
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(door.occupancy().waiting, 0);
        drop(held);
        assert!(place.admit(None).await.is_ok());
    }
}
