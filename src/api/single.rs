//! One generation: what the handlers of all kinds have in common.

use std::mem;
use std::sync::Arc;

use axum::Json;
use tokio::time::Instant;

use super::auth::{check_model, check_text};
use super::body::Asked;
use super::error::ApiError;
use super::semaphores::registered;
use crate::dispatch::{Call, CallRequest};
use crate::gateway::Gateway;
use crate::generation::{Failure, Generation, Preparation, Request, Schemas, generate};
use crate::limits::Semaphore;

/// Generates one thing and answers with it.
pub(super) async fn one<G: Generation>(
    gateway: &Gateway,
    mut asked: Asked<G::Request>,
) -> Result<Json<G::Output>, ApiError> {
    let _share = mem::take(&mut asked.share);
    let (generation, call) = enqueued::<G>(gateway, asked).await?;
    let output = generate(&gateway.dispatcher, &gateway.offload, &call, generation).await;
    output.map(Json).map_err(|failure| failed(&call, failure))
}

/// Checks a request and puts its call into the queue.
pub(super) async fn enqueued<G: Generation>(
    gateway: &Gateway,
    asked: Asked<G::Request>,
) -> Result<(G, Call), ApiError> {
    let deadline = Instant::now() + gateway.config.request_timeout;
    let Asked { caller, semaphore, mut body, .. } = asked;
    let terms = body.take_terms();
    let key = caller.payer(terms.credentials.as_ref(), gateway)?;
    let mut schemas = Schemas::new(gateway.config.schema_limits, gateway.config.check_formats);
    body.add_schema(&mut schemas);
    let schemas = Box::pin(schemas.compiled(&gateway.offload, key.sha256(), deadline)).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "json_schema"))?;
    let preparation = Preparation { defaults: &gateway.defaults, schemas: &schemas };
    let generation = G::prepare(body, &preparation).map_err(ApiError::invalid)?;
    check_model(generation.model(), gateway)?;
    check_text(|| generation.ask(), gateway).await?;
    let semaphore = terms.external_semaphore_id.or(semaphore);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let (model, size) = (generation.model().clone(), generation.input().into());
    let request = CallRequest { kind: G::KIND, key, model, semaphore, size, deadline };
    let call = gateway.dispatcher.enqueue(request);
    Ok((generation, call))
}

/// The failure of a call, which it tells the log.
pub(super) fn failed(call: &Call, failure: impl Into<Failure>) -> ApiError {
    let failure = failure.into();
    let cause = failure.cause();
    let error = ApiError::from(failure);
    let (model, code) = (call.model(), error.code());
    tracing::warn!(kind = call.kind().label(), %model, code, cause, "no answer");
    error
}

/// The semaphore that a request names.
///
/// # Errors
/// 404 where there is none of that name.
pub(super) async fn named_semaphore(
    gateway: &Gateway,
    id: Option<&str>,
) -> Result<Option<Arc<dyn Semaphore>>, ApiError> {
    match id {
        Some(id) => Ok(Some(registered(gateway, id).await?.1)),
        None => Ok(None),
    }
}
