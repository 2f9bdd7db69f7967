//! Many generations in one request: what the batch handlers of all kinds have in common.

mod item;

use std::{iter, mem};

use axum::Json;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::auth::{Caller, check_model, check_text};
use super::body::Asked;
use super::error::{ApiError, Detail};
use super::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::{ApiKey, Model};
use crate::generation::batch::{Item, Outcome, generate_all};
use crate::generation::{
    Credentials, Generation, InvalidField, Preparation, Request, Schemas, Segment, Terms,
};
use item::{BatchItem, ItemIds};

/// Asks for many things at once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest<R> {
    /// What is asked, each as in a request of its own. Its own `credentials` and
    /// `external_semaphore_id` win over the batch's.
    #[schema(schema_with = item::schema::<R>)]
    requests: Vec<BatchItem<R>>,
    /// The caller's own key, for the items that bring none.
    credentials: Option<Credentials>,
    /// The semaphore of the items that name none.
    external_semaphore_id: Option<String>,
}

/// What came of each item, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchResponse<T> {
    /// One for each item, in its place.
    results: Vec<BatchResult<T>>,
    /// How many items there were.
    total_requests: usize,
    /// How many succeeded.
    successful_requests: usize,
    /// How many did not.
    failed_requests: usize,
}

/// What came of one item.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum BatchResult<T> {
    /// It succeeded.
    Success(Indexed<T>),
    /// It failed.
    Failure(Indexed<ItemFailure>),
}

/// A result and where its request stood.
#[derive(Debug, Serialize, ToSchema)]
struct Indexed<T> {
    #[serde(flatten)]
    #[schema(inline)]
    result: T,
    /// The place of the request in the batch, from 0.
    index: usize,
    #[serde(flatten)]
    #[schema(inline)]
    ids: ItemIds,
}

/// Why an item of a batch, or a stream that has begun, gave nothing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ItemFailure {
    /// Always false.
    success: bool,
    /// What went wrong.
    error: Detail,
    /// What went wrong in a word that does not change.
    #[schema(value_type = String)]
    error_code: &'static str,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// The model that was asked.
    #[schema(value_type = String)]
    model: Model,
}

impl ItemFailure {
    pub(super) fn of(error: ApiError, model: Model) -> Self {
        let (error_code, retryable) = (error.code(), error.is_retryable());
        Self { success: false, error: error.into_detail(), error_code, retryable, model }
    }
}

/// Generates all of a batch and answers with what came of each item.
pub(super) async fn many<G: Generation>(
    gateway: &Gateway,
    mut asked: Asked<BatchRequest<G::Request>>,
) -> Result<Json<BatchResponse<G::Output>>, ApiError> {
    let _share = mem::take(&mut asked.share);
    let (items, ids) = prepare::<G>(gateway, asked).await?;
    let timeout = gateway.config.request_timeout;
    let outcomes = generate_all(&gateway.dispatcher, &gateway.offload, items, timeout).await?;
    // Items mostly fail for the same reason.
    let cause = outcomes.iter().find_map(|outcome| outcome.result.as_ref().err()?.cause());
    let response = BatchResponse::of(outcomes, ids);
    if response.failed_requests > 0 {
        let BatchResponse { total_requests, failed_requests, .. } = response;
        tracing::warn!(
            kind = G::KIND.label(),
            total_requests,
            failed_requests,
            cause,
            "items without an answer"
        );
    }
    Ok(Json(response))
}

/// Checks everything before anything is sent.
async fn prepare<G: Generation>(
    gateway: &Gateway,
    asked: Asked<BatchRequest<G::Request>>,
) -> Result<(Vec<Item<G>>, Vec<ItemIds>), ApiError> {
    let Asked { caller, semaphore, body, .. } = asked;
    let BatchRequest { mut requests, credentials, external_semaphore_id } = body;
    if requests.len() > gateway.config.max_batch_size {
        return Err(too_long(requests.len(), gateway.config.max_batch_size));
    }
    let terms: Vec<Terms> = requests.iter_mut().map(|item| item.request.take_terms()).collect();
    let ids: Vec<ItemIds> = requests.iter_mut().map(|item| mem::take(&mut item.ids)).collect();
    let keys = payers(gateway, caller, credentials.as_ref(), &terms)?;
    let prepared = checked::<G>(gateway, keys.first(), requests, &ids).await?;
    let shared = external_semaphore_id.or(semaphore);
    let shared = named_semaphore(gateway, shared.as_deref()).await?;
    let mut items = Vec::with_capacity(prepared.len());
    for ((generation, terms), key) in prepared.into_iter().zip(terms).zip(keys) {
        check_model(generation.model(), gateway)?;
        check_text(|| generation.ask(), gateway).await?;
        let own = named_semaphore(gateway, terms.external_semaphore_id.as_deref()).await?;
        items.push(Item { generation, key, semaphore: own.or_else(|| shared.clone()) });
    }
    Ok((items, ids))
}

/// The key that pays for each item: its own, or the one that pays for the batch.
fn payers(
    gateway: &Gateway,
    caller: Caller,
    shared: Option<&Credentials>,
    terms: &[Terms],
) -> Result<Vec<ApiKey>, ApiError> {
    let payer = || caller.payer(shared, gateway);
    if terms.is_empty() {
        payer()?;
    }
    let key = |(index, terms): (usize, &Terms)| {
        let own = terms.credentials.as_ref().filter(|own| own.gemini_api_key().is_some());
        own.map_or_else(payer, |own| {
            caller.payer(Some(own), gateway).map_err(|error| error.in_item(index))
        })
    };
    terms.iter().enumerate().map(key).collect()
}

/// All requests, checked; their schemas are compiled in the turn of `payer`.
async fn checked<G: Generation>(
    gateway: &Gateway,
    payer: Option<&ApiKey>,
    requests: Vec<BatchItem<G::Request>>,
    ids: &[ItemIds],
) -> Result<Vec<G>, ApiError> {
    let Some(payer) = payer else { return Ok(Vec::new()) };
    let config = &gateway.config;
    let mut schemas = Schemas::new(config.schema_limits, config.check_formats);
    requests.iter().for_each(|item| item.request.add_schema(&mut schemas));
    let deadline = Instant::now() + config.request_timeout;
    let schemas = schemas.compiled(&gateway.offload, payer.sha256(), deadline).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "requests"))?;
    let preparation = Preparation { defaults: &gateway.defaults, schemas: &schemas };
    let mut faults = Vec::new();
    let mut prepared = Vec::with_capacity(requests.len());
    for (index, (BatchItem { request, .. }, ids)) in iter::zip(requests, ids).enumerate() {
        faults.extend(ids.faults().map(|field| of_item(index, field)));
        match G::prepare(request, &preparation) {
            Ok(generation) => prepared.push(generation),
            Err(fields) => faults.extend(fields.into_iter().map(|field| of_item(index, field))),
        }
    }
    if faults.is_empty() { Ok(prepared) } else { Err(ApiError::invalid(faults)) }
}

fn too_long(items: usize, limit: usize) -> ApiError {
    let message = format!("A batch has at most {limit} items; this one has {items}");
    ApiError::invalid(vec![InvalidField::new("requests", "too_long", message)])
}

fn of_item(index: usize, field: InvalidField) -> InvalidField {
    let place = [Segment::from("requests"), Segment::Index(index)];
    InvalidField { path: place.into_iter().chain(field.path).collect(), ..field }
}

impl<T> BatchResponse<T> {
    fn of(outcomes: Vec<Outcome<T>>, ids: Vec<ItemIds>) -> Self {
        let total_requests = outcomes.len();
        let results = iter::zip(outcomes, ids).enumerate();
        let results: Vec<_> =
            results.map(|(index, (outcome, ids))| BatchResult::of(index, outcome, ids)).collect();
        let succeeded = |result: &&BatchResult<T>| matches!(result, BatchResult::Success(_));
        let successful_requests = results.iter().filter(succeeded).count();
        let failed_requests = total_requests - successful_requests;
        Self { results, total_requests, successful_requests, failed_requests }
    }
}

impl<T> BatchResult<T> {
    fn of(index: usize, Outcome { model, result }: Outcome<T>, ids: ItemIds) -> Self {
        match result {
            Ok(result) => Self::Success(Indexed { result, index, ids }),
            Err(failure) => {
                let result = ItemFailure::of(failure.into(), model);
                Self::Failure(Indexed { result, index, ids })
            }
        }
    }
}
