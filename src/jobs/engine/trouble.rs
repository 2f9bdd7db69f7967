//! Trouble with the store: logged when it begins and when it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::jobs::store::StoreError;

/// Whether the store can be used for one purpose.
#[derive(Debug)]
pub(super) struct Trouble {
    begins: &'static str,
    ends: &'static str,
    lasts: AtomicBool,
}

impl Trouble {
    /// With the messages of the log for its begin and its end.
    pub const fn new(begins: &'static str, ends: &'static str) -> Self {
        Self { begins, ends, lasts: AtomicBool::new(false) }
    }

    /// An operation failed.
    pub fn failed(&self, error: &StoreError) {
        if !self.lasts.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "{}", self.begins);
        }
    }

    /// An operation succeeded.
    pub fn ended(&self) {
        if self.lasts.load(Ordering::Relaxed) && self.lasts.swap(false, Ordering::Relaxed) {
            tracing::info!("{}", self.ends);
        }
    }
}
