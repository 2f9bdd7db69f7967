//! The memory of compiled expressions: that of a document, and that of all of this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};

use crate::memory;

/// The most that the expressions of a document take, in bytes.
const OF_DOCUMENT: usize = 32 << 20;

/// The most that those of all documents take: a part of the memory that the process may use, and at
/// least so many bytes.
const OF_PROCESS: u64 = 8;
const LEAST_OF_PROCESS: usize = 64 << 20;

/// The largest expression, in bytes, that may use the last eighth of that: a few large ones do not
/// keep small ones out.
const SMALL: usize = 64 << 10;

static MOST: LazyLock<usize> = LazyLock::new(|| {
    let part = usize::try_from(memory::available() / OF_PROCESS).unwrap_or(usize::MAX);
    part.max(LEAST_OF_PROCESS)
});

static USED: AtomicUsize = AtomicUsize::new(0);

/// The memory of a document's compiled expressions, until it is dropped with them.
#[derive(Debug, Default)]
pub(in crate::schema) struct PatternMemory {
    used: AtomicUsize,
    refusal: OnceLock<String>,
}

impl PatternMemory {
    /// Counts an expression of this size.
    ///
    /// # Errors
    /// What is used up.
    pub fn hold(&self, size: usize) -> Result<(), String> {
        let held = self.try_hold(size);
        if let Err(refusal) = &held {
            // Only the first one is shown.
            let _ = self.refusal.set(refusal.clone());
        }
        held
    }

    /// Why an expression was not counted, if one was not.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    fn try_hold(&self, size: usize) -> Result<(), String> {
        if !add(&self.used, size, OF_DOCUMENT) {
            return Err(format!(
                "the regular expressions of the schema take more than {OF_DOCUMENT} bytes when they are \
                 compiled"
            ));
        }
        let most = if size <= SMALL { *MOST } else { *MOST - *MOST / 8 };
        if !add(&USED, size, most) {
            self.used.fetch_sub(size, Ordering::Relaxed);
            return Err(
                "the regular expressions of other requests use up the memory for them; try \
                        again later"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Drop for PatternMemory {
    fn drop(&mut self) {
        USED.fetch_sub(*self.used.get_mut(), Ordering::Relaxed);
    }
}

/// Adds to what is used, unless it then is more than `most`.
fn add(used: &AtomicUsize, size: usize, most: usize) -> bool {
    let more = |used: usize| used.checked_add(size).filter(|used| *used <= most);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expressions_of_a_document_take_bounded_memory() {
        let document = PatternMemory::default();
        for _ in 0..8 {
            document.hold(4 << 20).unwrap();
        }
        assert_eq!(document.refusal(), None);
        let refusal = document.hold(1).unwrap_err();
        assert!(refusal.contains("33554432 bytes"), "{refusal}");
        assert_eq!(document.refusal(), Some(&*refusal));
        PatternMemory::default().hold(4 << 20).expect("another document has its own");
    }
}
