//! The options of jobs, read once: they are needed with each result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::StoreError;
use crate::jobs::model::{JobNumber, JobSpec};

/// How many are kept.
const MAX_KEPT: usize = 4096;

/// Options of jobs that were used lately. They never change.
#[derive(Debug, Default)]
pub(super) struct Specs(Mutex<HashMap<i64, Arc<JobSpec>>>);

impl Specs {
    pub fn get(&self, job: i64) -> Option<Arc<JobSpec>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&job).cloned()
    }

    /// Reads and keeps the options of a job.
    pub fn keep(&self, job: i64, text: &str) -> Result<Arc<JobSpec>, StoreError> {
        let spec = serde_json::from_str(text).map_err(|error| {
            StoreError::Damaged(format!("the options of a job are unreadable: {error}"))
        })?;
        let spec: Arc<JobSpec> = Arc::new(spec);
        let mut specs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if specs.len() >= MAX_KEPT {
            specs.clear();
        }
        specs.insert(job, Arc::clone(&spec));
        Ok(spec)
    }

    pub fn forget(&self, job: JobNumber) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.0);
    }
}
