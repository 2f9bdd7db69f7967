//! What becomes of the items of a run.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Order, Prepared, Run};
use crate::jobs::engine::backoff;
use crate::jobs::engine::in_doubt::CallInDoubt;
use crate::jobs::engine::item::{Ended, JobItem};
use crate::jobs::item::ItemOutcome;
use crate::jobs::model::{Answered, Job, JobState};
use crate::jobs::store::{StoreError, Stored};

/// The job is to be paused because its items fail without hope.
pub(super) struct Failing {
    pub(super) code: &'static str,
    pub(super) pending: Option<Stored<Option<Job>>>,
    pub(super) failed: u32,
    pub(super) again_at: Option<Instant>,
}

impl Run {
    pub(super) fn prepared(&mut self, index: u64, prepared: Prepared) {
        match (prepared, &self.bulk) {
            (Ok(Ok(item)), Some(bulk)) => {
                let lease = Arc::clone(&self.engine.lease);
                let unrecorded = Arc::clone(&self.returned.unrecorded);
                let (route, item) = JobItem::new(item, self.key.clone(), lease, unrecorded);
                let item = item.observed_by(self.observer.as_ref(), index);
                bulk.add(index, route, item);
            }
            // It is prepared again when items may be sent.
            (Ok(Ok(_)), None) => self.window.take_back(index),
            (Ok(Err(outcome)), _) => self.returned.put(index, Ended::With(outcome, None)),
            (Err(_), _) => self.returned.put(index, Ended::Panicked),
        }
    }

    /// Takes the outcome of an item.
    pub(super) fn take(&mut self, index: u64, ended: Ended) {
        let now = Instant::now();
        let (outcome, in_doubt) = match ended {
            Ended::With(outcome, in_doubt) => (outcome, in_doubt),
            Ended::NotSent => return self.window.take_back(index),
            Ended::Panicked => {
                let Some(line) = self.window.line(index) else { return };
                let answered = self.reader.internal_error(index, &line);
                self.returned.unrecorded.add(answered.line.len());
                (ItemOutcome::Done(answered), None)
            }
        };
        self.refused = 0;
        match outcome {
            ItemOutcome::Done(answered) => self.answer(index, answered, in_doubt),
            ItemOutcome::Repeat(answered) => {
                let at = |before| Some(now + backoff::repeat(before)?);
                if self.window.repeat(index, &answered, at) {
                    self.returned.unrecorded.subtract(answered.line.len());
                    self.engine.metrics.job_item("repeated");
                } else {
                    self.answer(index, answered, in_doubt);
                }
            }
            ItemOutcome::Later(told) => {
                let until = |before| now + backoff::put_off(before, told);
                let is_soon = told.is_none_or(|told| told < backoff::LONGEST_GUESS);
                self.window.put_off(index, is_soon, until);
            }
            ItemOutcome::Hopeless(code) => {
                self.window.take_back(index);
                self.failing.get_or_insert(Failing {
                    code,
                    pending: None,
                    failed: 0,
                    again_at: None,
                });
            }
        }
    }

    fn answer(&mut self, index: u64, answered: Answered, in_doubt: Option<CallInDoubt>) {
        let bytes = answered.line.len();
        match self.window.answered(index, answered) {
            Some(answered) => {
                self.in_doubt.extend(in_doubt.map(|call| (index, (call, Instant::now()))));
                self.record.add(answered);
            }
            None => self.returned.unrecorded.subtract(bytes),
        }
    }

    pub(super) fn recorded(&mut self, recorded: Result<(Vec<Answered>, Option<Job>), StoreError>) {
        let (results, job) = match recorded {
            Ok(recorded) => recorded,
            Err(error) => return self.engine.writing.failed(&error),
        };
        self.engine.writing.ended();
        for Answered { index, line, failure, .. } in results {
            self.window.recorded(index);
            if let Some((_call, ended)) = self.in_doubt.remove(&index) {
                self.returned.unrecorded.note_recording(ended.elapsed());
            }
            self.returned.unrecorded.subtract(line.len());
            let outcome = if failure.is_none() { "succeeded" } else { "failed" };
            self.engine.metrics.job_item(outcome);
        }
        self.engine.jobs.notify_watchers(self.job.number);
        if let (Some(observer), Some(job)) = (&self.observer, &job) {
            observer.progressed(job);
        }
        match job.map(|job| job.state) {
            Some(JobState::Queued | JobState::Running) => {}
            // The supervisor knows what was changed last.
            Some(JobState::Paused) => self.engine.jobs.wake_engine(),
            Some(JobState::Completed | JobState::Cancelled) | None => {
                self.engine.jobs.ended().notify_one();
                self.order = Order::Abort;
            }
        }
    }

    /// The store was asked to pause the job.
    pub(super) fn paused(&mut self, paused: Result<Option<Job>, StoreError>) {
        let Some(failing) = &mut self.failing else { return };
        failing.pending = None;
        match paused {
            Ok(_) => {
                let (job_id, code) = (self.job.id.beginning(), failing.code);
                tracing::warn!(job_id, code, "a job is paused: all of its items would fail");
                // The run ends even if the job is resumed at once. Another one follows then.
                (self.failing, self.order) = (None, self.order.max(Order::WindDown));
                self.engine.jobs.wake(self.job.number);
            }
            Err(error) => {
                self.engine.writing.failed(&error);
                failing.again_at = Some(Instant::now() + backoff::again(failing.failed));
                failing.failed += 1;
            }
        }
    }
}
