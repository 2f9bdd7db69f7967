//! Items of the gateway's own kinds.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::outcome::{Labels, Names, failed, refused, succeeded};
use super::{Content, Item, Reading, parsed};
use crate::api::batch::{BatchItem, BatchResult, ItemIds};
use crate::api::error::ApiError;
use crate::api::generation_request::{GenerationKind, GenerationRequest};
use crate::api::jobs::object::Object;
use crate::dispatch::{Admitted, Call, CallError};
use crate::gateway::Gateway;
use crate::generation::batch::Outcome;
use crate::generation::{Generation, InvalidField, generate_admitted};
use crate::jobs::JobId;
use crate::jobs::item::{ItemOutcome, ItemSender};

/// Reads an item.
///
/// # Errors
/// As for [`Reading::item`].
pub(super) async fn read<K: GenerationKind>(
    reading: &Reading<'_>,
    line: &Bytes,
) -> Result<Item, ApiError> {
    let Reading { gateway, rules, schemas: cache, payer } = reading;
    let item = parsed::<BatchItem<GenerationRequest<K>>>(rules.completed(line)).await?;
    let BatchItem { request: GenerationRequest { shared, own }, ids } = item;
    let (options, mut model_options) = shared.into_options();
    let mut errors: Vec<_> = ids.errors().collect();
    if options.credentials.is_some() {
        let message = "The items of a job have no credentials: send the key in a header";
        errors.push(InvalidField::new("credentials", "extra_forbidden", message));
    }
    let tier = options.tier.check_within(rules.tier).map_err(|fields| errors.extend(fields));
    let names_model = model_options.model.is_some();
    model_options.model = model_options.model.or_else(|| rules.model.clone());
    let mut schemas = cache.schemas();
    own.add_schema(&mut schemas);
    let deadline = Instant::now() + gateway.config.request_timeout;
    let schemas = cache.compiled(schemas, &gateway.offload, payer, deadline).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "json_schema"))?;
    let generation = own.generation(model_options, &schemas, &gateway.defaults);
    let generation = generation.map_err(|fields| errors.extend(fields));
    let (Ok(tier), Ok(generation), true) = (tier, generation, errors.is_empty()) else {
        return Err(ApiError::invalid(errors));
    };
    Ok(Item {
        kind: K::Generation::KIND,
        model: generation.model().clone(),
        semaphore: options.external_semaphore_id.or_else(|| rules.semaphore.clone()),
        tier: tier.chosen_at(Instant::now()),
        size: generation.input().into(),
        content: Box::new(Own::<K> { generation: Arc::new(generation), ids, names_model }),
    })
}

/// The ids in a line.
pub(super) fn names(line: &[u8]) -> Names {
    let object = Object::read(line);
    let id = |name| serde_json::from_str(object.as_ref()?.get(name)?).ok()?;
    Names::Own(ItemIds { custom_id: id("custom_id"), id: id("id") })
}

/// One generation.
struct Own<K: GenerationKind> {
    generation: Arc<K::Generation>,
    ids: ItemIds,
    /// Whether the item names a model of its own.
    names_model: bool,
}

impl<K: GenerationKind> Content for Own<K> {
    fn body(&self) -> Bytes {
        self.generation.body()
    }

    fn into_sender(
        self: Box<Self>,
        gateway: Gateway,
        job: JobId,
        index: u64,
    ) -> Box<dyn ItemSender> {
        let Self { generation, ids, names_model } = *self;
        let model = generation.model().clone();
        let labels = Labels { job, index, names: Names::Own(ids), model, names_model };
        Box::new(Sender::<K> { gateway, generation, labels })
    }
}

/// Sends one generation.
struct Sender<K: GenerationKind> {
    gateway: Gateway,
    generation: Arc<K::Generation>,
    labels: Labels,
}

impl<K: GenerationKind> ItemSender for Sender<K> {
    fn send(self: Box<Self>, call: Call, admitted: Admitted) -> BoxFuture<'static, ItemOutcome> {
        Box::pin(async move {
            let Self { gateway, generation, labels } = *self;
            let (dispatcher, offload) = (&gateway.dispatcher, &gateway.offload);
            match generate_admitted(dispatcher, offload, &call, &generation, admitted).await {
                Ok(generated) => {
                    let Labels { index, names: Names::Own(ids), model, .. } = labels else {
                        unreachable!("it has the ids of its kind")
                    };
                    let usage = generated.usage;
                    let outcome = Outcome { model, result: Ok(generated) };
                    let position = usize::try_from(index).unwrap_or(usize::MAX);
                    let result = BatchResult::<K::Response>::of(position, outcome, ids);
                    succeeded(index, &result, usage)
                }
                Err(error) => failed(labels, error.into()),
            }
        })
    }

    fn refused(self: Box<Self>, error: CallError) -> ItemOutcome {
        refused(self.labels, error)
    }
}

impl<K: GenerationKind> fmt::Debug for Own<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl<K: GenerationKind> fmt::Debug for Sender<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("labels", &self.labels).finish_non_exhaustive()
    }
}
