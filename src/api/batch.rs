//! Requests for many generations, of any kind.

mod item;
mod lines;
mod stored;
mod wanted;

use std::collections::HashSet;
use std::{iter, mem};

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::auth::{Caller, check_model, check_text};
use super::credentials::Credentials;
use super::error::{ApiError, Detail};
use super::generation_request::{CallOptions, GenerationKind, GenerationRequest};
use super::incoming::Incoming;
use super::service_tier::{RequestedTier, TierFields};
use super::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Model, Usage};
use crate::generation::batch::{Item, Outcome, generate_all};
use crate::generation::{Generated, Generation, InvalidField, ModelOptions, Schemas, Segment};
use crate::prices::PriceTier;
use lines::stream_batch;
use stored::answer_stored;
use wanted::Wanted;

pub(super) use item::{BatchItem, ItemIds};

/// Many requests of one kind.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest<R> {
    /// The requests, each as if it were sent alone. Its own `credentials`, `external_semaphore_id`,
    /// `service_tier` and `flex_fallback_seconds` override the batch's.
    #[schema(schema_with = item::schema::<R>)]
    requests: Vec<BatchItem<R>>,
    /// The caller's own key, for the requests without credentials of their own.
    credentials: Option<Credentials>,
    /// The semaphore of the requests that name none.
    external_semaphore_id: Option<String>,
    /// The service tier of the requests that name none: `standard`, `flex` or `priority`.
    #[schema(pattern = "^(standard|flex|priority)$")]
    service_tier: Option<String>,
    /// With the service tier `flex`: after how many seconds a request that has not been served is sent
    /// in the standard tier instead, counted from when the batch came.
    #[schema(exclusive_minimum = 0, maximum = 31_536_000)]
    flex_fallback_seconds: Option<f64>,
}

/// The results, in the order of the requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchResponse<T> {
    /// One result for each request, in the order of the requests.
    results: Vec<BatchResult<T>>,
    #[serde(flatten)]
    #[schema(inline)]
    totals: BatchTotals,
}

/// The totals of a batch: the last line, where each result is a line.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(super) struct BatchTotals {
    /// How many requests the batch has.
    total_requests: usize,
    /// How many succeeded.
    successful_requests: usize,
    /// How many failed.
    failed_requests: usize,
    /// The tokens that were spent on all requests, failed ones included, and what they cost.
    usage: Usage,
}

/// The result of one request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BatchResult<T> {
    /// The request succeeded.
    Success(Indexed<T>),
    /// The request failed.
    Failure(Indexed<ItemError>),
}

/// A result and the position of its request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Indexed<T> {
    #[serde(flatten)]
    #[schema(inline)]
    result: T,
    /// The index of the request in the batch, from 0.
    index: usize,
    #[serde(flatten)]
    #[schema(inline)]
    ids: ItemIds,
}

/// The error of a batch item, or of a stream that has begun.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ItemFailure)]
pub(super) struct ItemError {
    /// Always false.
    success: bool,
    /// What went wrong.
    error: Detail,
    /// The error code, which does not change.
    #[schema(value_type = String)]
    error_code: &'static str,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
}

impl ItemError {
    pub(super) fn new(error: ApiError, model: Model) -> Self {
        let (error_code, retryable) = (error.code(), error.is_retryable());
        Self { success: false, error: error.into_detail(), error_code, retryable, model }
    }
}

/// Answers a batch as the headers of its request say: with all results, with each as soon as it is there,
/// or later.
///
/// # Errors
/// As for [`generate_batch`]; where the batch becomes a job, 409 and the errors of the store too.
pub(super) async fn answer_batch<K: GenerationKind>(
    gateway: &Gateway,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of(request.headers());
    if wanted.is_stored() {
        return answer_stored(gateway, K::JOB_KIND, wanted, request).await;
    }
    let incoming = Incoming::from_request(request, gateway).await?;
    if wanted.lines {
        return stream_batch::<K>(gateway, incoming).await;
    }
    generate_batch::<K>(gateway, incoming).await.map(IntoResponse::into_response)
}

/// Generates all items of a batch and answers with their results.
///
/// # Errors
/// 401, 404 or 422 if an item is invalid, and 503 if the queue is full: then nothing was sent. Other
/// errors are those of their items.
async fn generate_batch<K: GenerationKind>(
    gateway: &Gateway,
    mut incoming: Incoming<BatchRequest<GenerationRequest<K>>>,
) -> Result<Json<BatchResponse<K::Response>>, ApiError> {
    let _share = mem::take(&mut incoming.share);
    let (items, ids) = prepare(gateway, incoming).await?;
    let outcomes = generate_all(&gateway.dispatcher, &gateway.offload, items).await?;
    // One cause is enough for the log, because items mostly fail for the same reason.
    let cause = outcomes.iter().find_map(|outcome| outcome.result.as_ref().err()?.cause());
    let response = BatchResponse::of(outcomes, ids);
    if response.totals.failed_requests > 0 {
        let BatchTotals { total_requests, failed_requests, .. } = response.totals;
        let kind = K::Generation::KIND.label();
        tracing::warn!(kind, total_requests, failed_requests, cause, "items of a batch failed");
    }
    Ok(Json(response))
}

/// Checks all items before anything is sent.
async fn prepare<K: GenerationKind>(
    gateway: &Gateway,
    incoming: Incoming<BatchRequest<GenerationRequest<K>>>,
) -> Result<(Vec<Item<K::Generation>>, Vec<ItemIds>), ApiError> {
    let Incoming { caller, semaphore, body, observer, .. } = incoming;
    let came_at = Instant::now();
    let BatchRequest { requests, credentials, external_semaphore_id, .. } = body;
    let BatchRequest { service_tier, flex_fallback_seconds, .. } = body;
    let batch_tier = TierFields { service_tier, flex_fallback_seconds }.check();
    check_length(requests.len(), gateway)?;
    let (mut ids, mut call_options) = (Vec::new(), Vec::new());
    let requests = requests.into_iter().map(|BatchItem { request, ids: own_ids }| {
        let (options, model_options) = request.shared.into_options();
        ids.push(own_ids);
        call_options.push(options);
        (request.own, model_options)
    });
    let requests: Vec<_> = requests.collect();
    let keys = payers(gateway, caller, credentials.as_ref(), &call_options)?;
    let tiers = tiers(batch_tier, &call_options);
    let (generations, tiers) = check(gateway, keys.first(), requests, &ids, tiers).await?;
    let default = external_semaphore_id.or(semaphore);
    let default = named_semaphore(gateway, default.as_deref()).await?;
    let mut items = Vec::with_capacity(generations.len());
    let items_checked = generations.into_iter().zip(tiers).zip(call_options).zip(keys);
    for (((generation, tier), options), key) in items_checked {
        check_model(generation.model(), gateway)?;
        check_text(|| generation.body(), gateway).await?;
        let own = named_semaphore(gateway, options.external_semaphore_id.as_deref()).await?;
        let semaphore = own.or_else(|| default.clone());
        let timeout = gateway.config.request_timeout_of(tier.tier());
        let (tier, observer) = (tier.chosen_at(came_at), observer.clone());
        items.push(Item { generation, key, semaphore, tier, timeout, observer });
    }
    Ok((items, ids))
}

/// The key that pays for each item: its own, or the one that pays for the batch.
fn payers(
    gateway: &Gateway,
    caller: Caller,
    default: Option<&Credentials>,
    options: &[CallOptions],
) -> Result<Vec<ApiKey>, ApiError> {
    let payer = || caller.payer(default, gateway);
    if options.is_empty() {
        payer()?;
    }
    let key = |(index, options): (usize, &CallOptions)| {
        let own = options.credentials.as_ref().filter(|own| own.gemini_api_key().is_some());
        own.map_or_else(payer, |own| {
            caller.payer(Some(own), gateway).map_err(|error| error.in_item(index))
        })
    };
    options.iter().enumerate().map(key).collect()
}

/// The service tier of each item: its own, or that of the batch.
fn tiers(
    batch: Result<RequestedTier, Vec<InvalidField>>,
    options: &[CallOptions],
) -> Result<Vec<RequestedTier>, Vec<InvalidField>> {
    let (mut tiers, mut errors) = (Vec::with_capacity(options.len()), Vec::new());
    let batch = batch.unwrap_or_else(|fields| {
        errors.extend(fields);
        RequestedTier::default()
    });
    for (index, options) in options.iter().enumerate() {
        match options.tier.check_within(batch) {
            Ok(tier) => tiers.push(tier),
            Err(fields) => errors.extend(fields.into_iter().map(|field| in_item(index, field))),
        }
    }
    if errors.is_empty() { Ok(tiers) } else { Err(errors) }
}

/// Checks all requests. Their schemas are compiled when it is `payer`'s turn.
async fn check<K: GenerationKind>(
    gateway: &Gateway,
    payer: Option<&ApiKey>,
    requests: Vec<(K, ModelOptions)>,
    ids: &[ItemIds],
    tiers: Result<Vec<RequestedTier>, Vec<InvalidField>>,
) -> Result<(Vec<K::Generation>, Vec<RequestedTier>), ApiError> {
    let Some(payer) = payer else {
        return tiers.map(|_| <_>::default()).map_err(ApiError::invalid);
    };
    let config = &gateway.config;
    let mut schemas = Schemas::new(config.schema_limits, config.check_formats);
    requests.iter().for_each(|(request, _)| request.add_schema(&mut schemas));
    let deadline = Instant::now() + config.request_timeout;
    let schemas = schemas.compiled(&gateway.offload, payer.sha256(), deadline).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "requests"))?;
    let mut errors = Vec::new();
    let mut generations = Vec::with_capacity(requests.len());
    for (index, ((request, options), ids)) in iter::zip(requests, ids).enumerate() {
        errors.extend(ids.errors().map(|field| in_item(index, field)));
        match request.generation(options, &schemas, &gateway.defaults) {
            Ok(generation) => generations.push(generation),
            Err(fields) => errors.extend(fields.into_iter().map(|field| in_item(index, field))),
        }
    }
    match tiers {
        Ok(tiers) if errors.is_empty() => Ok((generations, tiers)),
        tiers => {
            errors.extend(tiers.err().into_iter().flatten());
            Err(ApiError::invalid(errors))
        }
    }
}

/// Checks the number of items.
///
/// # Errors
/// 422 if there are too many.
pub(super) fn check_length(items: usize, gateway: &Gateway) -> Result<(), ApiError> {
    let limit = gateway.config.max_batch_size;
    if items <= limit {
        return Ok(());
    }
    let message = format!("A batch has at most {limit} items; this one has {items}");
    Err(ApiError::invalid(vec![InvalidField::new("requests", "too_long", message)]))
}

fn in_item(index: usize, field: InvalidField) -> InvalidField {
    let item = [Segment::from("requests"), Segment::Index(index)];
    InvalidField { path: item.into_iter().chain(field.path).collect(), ..field }
}

impl<T> BatchResponse<T> {
    fn of<V>(outcomes: Vec<Outcome<V>>, ids: Vec<ItemIds>) -> Self
    where
        T: From<Generated<V>>,
    {
        let total_requests = outcomes.len();
        let mut usage = TotalUsage::default();
        outcomes.iter().for_each(|outcome| usage.add(outcome.usage()));
        let usage = usage.sum();
        let results = iter::zip(outcomes, ids).enumerate();
        let results: Vec<_> =
            results.map(|(index, (outcome, ids))| BatchResult::of(index, outcome, ids)).collect();
        let succeeded = |result: &&BatchResult<T>| matches!(result, BatchResult::Success(_));
        let successful_requests = results.iter().filter(succeeded).count();
        let failed_requests = total_requests - successful_requests;
        let totals = BatchTotals { total_requests, successful_requests, failed_requests, usage };
        Self { results, totals }
    }
}

/// The usage of several requests.
#[derive(Debug, Default)]
struct TotalUsage {
    total: Usage,
    tiers: HashSet<PriceTier>,
}

impl TotalUsage {
    fn add(&mut self, usage: Usage) {
        self.tiers.extend(usage.service_tier);
        self.total += usage;
    }

    /// The sum. It names a service tier if all calls were served in one.
    fn sum(&self) -> Usage {
        let service_tier = self.total.service_tier.filter(|_| self.tiers.len() == 1);
        Usage { service_tier, ..self.total }
    }
}

impl<T> BatchResult<T> {
    /// The result of the request with this index.
    pub(super) fn of<V>(index: usize, Outcome { model, result }: Outcome<V>, ids: ItemIds) -> Self
    where
        T: From<Generated<V>>,
    {
        match result {
            Ok(generated) => Self::Success(Indexed { result: generated.into(), index, ids }),
            Err(error) => Self::failure(index, ItemError::new(error.into(), model), ids),
        }
    }

    /// The result of a request that failed.
    pub(super) fn failure(index: usize, result: ItemError, ids: ItemIds) -> Self {
        Self::Failure(Indexed { result, index, ids })
    }
}
