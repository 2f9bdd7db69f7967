//! The spans of jobs and their items.
//!
//! Each item is a trace of its own, linked to the run of its job: receivers cannot show a trace with a
//! million spans, and refuse it.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::trace::{Link, Span as _, SpanBuilder, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;
use serde::Serialize;

use super::Tracing;
use super::attributes::*;
use super::calls::{CallSpans, number};
use crate::dispatch::CallObserver;
use crate::jobs::{Job, JobObserver, JobState, RunObserver};

/// Makes the spans of jobs.
#[derive(Debug)]
pub(super) struct JobSpans(pub Arc<Tracing>);

/// The span of one run of a job, which ends with it.
#[derive(Debug)]
struct RunSpan {
    tracing: Arc<Tracing>,
    /// What the spans of the items have of the job.
    job: [KeyValue; 2],
    span: Mutex<Span>,
    /// The job when its results were last recorded.
    last: Mutex<Option<(JobState, u64, u64)>>,
}

impl JobObserver for JobSpans {
    fn begins(&self, job: &Job) -> Arc<dyn RunObserver> {
        let tracing = Arc::clone(&self.0);
        let id = KeyValue::new(JOB_ID, job.id.to_string());
        let kind = KeyValue::new(JOB_KIND, name(&job.spec.kind));
        let attributes =
            vec![id.clone(), kind.clone(), KeyValue::new(JOB_ITEMS, number(job.total))];
        let span = SpanBuilder::from_name("job").with_attributes(attributes);
        let span = Mutex::new(tracing.tracer.build_with_context(span, &Context::new()));
        Arc::new(RunSpan { tracing, job: [id, kind], span, last: Mutex::default() })
    }
}

impl RunObserver for RunSpan {
    fn item(&self, index: u64) -> Option<Arc<dyn CallObserver>> {
        let run = self.span.lock().unwrap_or_else(PoisonError::into_inner).span_context().clone();
        let index = KeyValue::new(ITEM_INDEX, number(index));
        let attributes = self.job.iter().cloned().chain([index]);
        let span = SpanBuilder::from_name("job item")
            .with_attributes(attributes)
            .with_links(vec![Link::with_context(run)]);
        let span = self.tracing.tracer.build_with_context(span, &Context::new());
        Some(Arc::new(CallSpans::of_item(Arc::clone(&self.tracing), span)))
    }

    fn progressed(&self, job: &Job) {
        let last = (job.state, job.progress.succeeded, job.progress.failed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

impl Drop for RunSpan {
    fn drop(&mut self) {
        let last = self.last.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some((state, succeeded, failed)) = last else { return };
        let span = self.span.get_mut().unwrap_or_else(PoisonError::into_inner);
        span.set_attributes([
            KeyValue::new(JOB_STATE, name(&state)),
            KeyValue::new(JOB_SUCCEEDED, number(succeeded)),
            KeyValue::new(JOB_FAILED, number(failed)),
        ]);
    }
}

/// The name of a value, as in answers.
fn name(value: &impl Serialize) -> String {
    let name = serde_json::to_value(value).ok();
    name.and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
}
