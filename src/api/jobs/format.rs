//! Prepares the items of jobs for the engine.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::item::{Item, Labels, Reading, failed, failure_of, names};
use super::rules::JobRules;
use crate::api::error::ApiError;
use crate::api::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Model};
use crate::generation::{InvalidField, SchemaCache};
use crate::jobs::item::{ItemFormat, ItemOutcome, ItemReader, PreparedItem};
use crate::jobs::{Answered, Job, JobId, JobKind, SharedFields};

/// The formats of the items of all kinds, for the engine.
pub fn item_format(gateway: Gateway) -> Arc<dyn ItemFormat> {
    let config = &gateway.config;
    let schemas = SchemaCache::new(config.schema_limits, config.check_formats);
    Arc::new(Formats(Arc::new(Shared { gateway, schemas })))
}

struct Formats(Arc<Shared>);

struct Shared {
    gateway: Gateway,
    schemas: SchemaCache,
}

impl ItemFormat for Formats {
    fn reader(&self, job: &Job, shared: SharedFields) -> Arc<dyn ItemReader> {
        Arc::new(Reader {
            shared: Arc::clone(&self.0),
            job: job.id.clone(),
            kind: job.spec.kind,
            rules: JobRules::of(&job.spec, &shared).map(Arc::new),
        })
    }
}

/// Reads the items of one job.
#[derive(Clone)]
struct Reader {
    shared: Arc<Shared>,
    job: JobId,
    kind: JobKind,
    /// What applies to each item. Options that an earlier version accepted may be invalid now.
    rules: Result<Arc<JobRules>, Vec<InvalidField>>,
}

impl ItemReader for Reader {
    fn prepare(
        &self,
        key: &ApiKey,
        index: u64,
        line: Bytes,
    ) -> BoxFuture<'static, Result<PreparedItem, ItemOutcome>> {
        let (reader, payer) = (self.clone(), *key.sha256());
        Box::pin(async move {
            let prepared = reader.prepared(&payer, index, &line).await;
            prepared.map_err(|error| failed(reader.labels(index, &line), error.into()))
        })
    }

    fn internal_error(&self, index: u64, line: &[u8]) -> Answered {
        failure_of(self.labels(index, line), ApiError::internal().into())
    }
}

impl Reader {
    async fn prepared(
        &self,
        payer: &[u8; 32],
        index: u64,
        line: &Bytes,
    ) -> Result<PreparedItem, ApiError> {
        let Shared { gateway, schemas } = &*self.shared;
        let rules = self.rules.as_ref().map_err(|errors| ApiError::invalid(errors.clone()))?;
        let item = Reading { gateway, rules, schemas, payer }.item(line).await?;
        let timeout = gateway.config.request_timeout_of(item.service_tier());
        let Item { kind, model, semaphore, tier, size, content } = item;
        let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
        let sender = content.into_sender(gateway.clone(), self.job.clone(), index);
        Ok(PreparedItem { kind, model, semaphore, tier, size, timeout, sender })
    }

    /// What identifies an item that cannot be read.
    fn labels(&self, index: u64, line: &[u8]) -> Labels {
        let (job, names) = (self.job.clone(), names(self.kind, line));
        Labels { job, index, names, model: self.default_model().clone(), names_model: true }
    }

    /// The model that is shown where none could be read.
    fn default_model(&self) -> &Model {
        let defaults = &self.shared.gateway.defaults;
        match self.kind {
            JobKind::Chat | JobKind::Gemini | JobKind::OpenAi => &defaults.chat_model,
            JobKind::StructuredOutput | JobKind::CinematicStoryDesign => &defaults.structured_model,
        }
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formats").finish_non_exhaustive()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("job", &self.job).finish_non_exhaustive()
    }
}
