//! Prepares the items of jobs for the engine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::item::{Item, Labels, Reading, failed, failure_of, names};
use super::rules::JobRules;
use crate::api::error::ApiError;
use crate::api::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Model};
use crate::generation::SchemaCache;
use crate::jobs::item::{ItemFormat, ItemOutcome, PreparedItem};
use crate::jobs::{Answered, Job, JobId, JobKind};

/// How many jobs' rules are kept.
const MAX_KEPT: usize = 64;

/// The formats of the items of all kinds, for the engine.
pub fn item_format(gateway: Gateway) -> Arc<dyn ItemFormat> {
    let config = &gateway.config;
    let schemas = SchemaCache::new(config.schema_limits, config.check_formats);
    Arc::new(Formats(Arc::new(Shared { gateway, schemas, rules: Mutex::default() })))
}

struct Formats(Arc<Shared>);

struct Shared {
    gateway: Gateway,
    schemas: SchemaCache,
    /// What applies to the items of the jobs that were read last.
    rules: Mutex<VecDeque<(JobId, Arc<JobRules>)>>,
}

impl ItemFormat for Formats {
    fn prepare(
        &self,
        job: &Job,
        key: &ApiKey,
        index: u64,
        line: Bytes,
    ) -> BoxFuture<'static, Result<PreparedItem, ItemOutcome>> {
        let (shared, id, payer) = (Arc::clone(&self.0), job.id.clone(), *key.sha256());
        let rules = self.0.rules(job);
        let kind = job.spec.kind;
        Box::pin(async move {
            let prepared = match rules {
                Ok(rules) => shared.prepare(&rules, &payer, id.clone(), index, &line).await,
                Err(error) => Err(error),
            };
            prepared.map_err(|error| failed(shared.labels(id, kind, index, &line), error.into()))
        })
    }

    fn internal_error(&self, job: &Job, index: u64, line: &[u8]) -> Answered {
        let labels = self.0.labels(job.id.clone(), job.spec.kind, index, line);
        failure_of(labels, ApiError::internal().into())
    }
}

impl Shared {
    async fn prepare(
        &self,
        rules: &JobRules,
        payer: &[u8; 32],
        job: JobId,
        index: u64,
        line: &Bytes,
    ) -> Result<PreparedItem, ApiError> {
        let Self { gateway, schemas, .. } = self;
        let item = Reading { gateway, rules, schemas, payer }.item(line).await?;
        let timeout = gateway.config.request_timeout_of(item.service_tier());
        let Item { kind, model, semaphore, tier, size, content } = item;
        let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
        let sender = content.into_sender(gateway.clone(), job, index);
        Ok(PreparedItem { kind, model, semaphore, tier, size, timeout, sender })
    }

    /// What applies to the items of a job.
    fn rules(&self, job: &Job) -> Result<Arc<JobRules>, ApiError> {
        let mut kept = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rules)) = kept.iter().find(|(id, _)| *id == job.id) {
            return Ok(Arc::clone(rules));
        }
        let rules = Arc::new(JobRules::of(&job.spec).map_err(ApiError::invalid)?);
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((job.id.clone(), Arc::clone(&rules)));
        Ok(rules)
    }

    /// What identifies an item that cannot be read.
    fn labels(&self, job: JobId, kind: JobKind, index: u64, line: &[u8]) -> Labels {
        let (names, model) = (names(kind, line), self.default_model(kind).clone());
        Labels { job, index, names, model, names_model: true }
    }

    /// The model that is shown where none could be read.
    fn default_model(&self, kind: JobKind) -> &Model {
        match kind {
            JobKind::Chat | JobKind::Gemini | JobKind::OpenAi => &self.gateway.defaults.chat_model,
            JobKind::StructuredOutput | JobKind::CinematicStoryDesign => {
                &self.gateway.defaults.structured_model
            }
        }
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formats").finish_non_exhaustive()
    }
}
