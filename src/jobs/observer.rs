//! What happens to jobs in this process, told to whoever follows it.

use std::fmt::Debug;
use std::sync::Arc;

use super::model::Job;
use crate::dispatch::CallObserver;

/// Follows the jobs whose items this process sends.
pub trait JobObserver: Debug + Send + Sync {
    /// This process begins to send the items of a job. It stops when the observer of the run is dropped: the
    /// job has ended, is paused, or this process ends.
    fn begins(&self, job: &Job) -> Arc<dyn RunObserver>;
}

/// Follows one run of a job.
///
/// The methods run where items are sent and recorded, so they neither block nor panic.
pub trait RunObserver: Debug + Send + Sync {
    /// An item is at the head of the queue: the observer of its calls, if they are followed.
    fn item(&self, index: u64) -> Option<Arc<dyn CallObserver>>;

    /// Results were recorded.
    fn progressed(&self, job: &Job);
}
